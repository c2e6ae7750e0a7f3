//! The command line as `clap` reads it, with its help. It decides names, defaults and words; the
//! typed parts are made in the module above.

mod looking;

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::callers::CallerArguments;
use super::connections::ConnectionArguments;
use super::reuse::ReuseArguments;
use super::size::ByteSize;
use super::traces::TraceArguments;
use super::turns::TurnArguments;
use super::*;

use looking::{InspectArguments, PlanArguments, ShardArguments, SynthArguments, VerifyArguments};

const EXAMPLES: &str = "\
Examples:
  lnserve                                     serve the built-in demo model on 127.0.0.1:8000
  lnserve serve /models/ultra-fp8 --tp 8 --host 0.0.0.0
  lnserve chat --prompt 'What is 27 + 58?'    ask the demo model one question
  lnserve inspect /models/ultra-fp8 --tp 8    does it fit? what does each rank hold?
  lnserve plan ultra-253b                     the same, to the byte, for GPUs not at hand
  lnserve verify /models/ultra-fp8            is every byte of it there, and sound?
  lnserve synth --config tiny --out /tmp/tiny a random checkpoint to test with
  lnserve bench --concurrency 8               how fast does the server on 127.0.0.1:8000 answer?

Exit status: 0 done, 1 it failed (one line says what and the remedy), 2 wrong usage.";

const SERVE_EXAMPLES: &str = "\
Examples:
  lnserve serve
  curl -s http://127.0.0.1:8000/v1/chat/completions -H 'content-type: application/json' \\
    -d '{\"model\": \"demo\", \"messages\": [{\"role\": \"user\", \"content\": \"What is 27 + 58?\"}]}'

Endpoints: /v1/chat/completions, /v1/completions, /v1/models (OpenAI); /v2/... (Triton, and
over gRPC with --grpc-port);
/health and /v2/health/ready (200 once it can answer), /metrics (Prometheus).
SIGTERM or Ctrl-C: takes no more requests, finishes those that run, exits; a second one exits at
once. Behind a load balancer see --drain-notice.";

const CHAT_EXAMPLES: &str = "\
Without --prompt, questions are read from the terminal. Ctrl-C stops an answer; Ctrl-D or /quit
leaves; /clear forgets the conversation; /thinking on|off turns reasoning on or off.
Where standard output is not a terminal, it gets the answer alone, standard error the reasoning.";

/// Serves NVIDIA's Llama-Nemotron models from one node: OpenAI and Triton endpoints, one binary.
#[derive(Parser)]
#[command(name = "lnserve", version, after_help = EXAMPLES, max_term_width = 100)]
#[command(disable_help_subcommand = true)]
pub(super) struct Arguments {
    #[command(subcommand)]
    pub(super) command: Option<CommandArguments>,

    /// What to log, on standard error: error, warn, info, debug, trace, or a filter such as
    /// `info,engine=debug`. RUST_LOG is read too. [default: info for serve, else warn]
    #[arg(long, global = true, value_name = "LEVEL", env = "LNSERVE_LOG", help_heading = "Log")]
    pub(super) log: Option<String>,

    /// Lines of text, or one JSON object a line
    #[arg(long, global = true, value_name = "FORMAT", help_heading = "Log")]
    #[arg(value_enum, default_value_t = LogFormat::Text)]
    pub(super) log_format: LogFormat,
}

#[derive(Subcommand)]
pub(super) enum CommandArguments {
    /// Serve a model over HTTP (what `lnserve` alone does, with the demo model)
    #[command(after_help = SERVE_EXAMPLES)]
    Serve(ServeArguments),
    /// Talk to a model in the terminal
    #[command(after_help = CHAT_EXAMPLES)]
    Chat(ChatArguments),
    /// Show a model's blocks, tensors and sizes, and what each rank would hold
    Inspect(InspectArguments),
    /// Show what a model takes of each GPU, to the byte, and what fits beside it
    #[command(after_help = looking::PLAN_EXAMPLES)]
    Plan(PlanArguments),
    /// Look a checkpoint over: is everything there, and sound?
    #[command(after_help = looking::VERIFY_WORDS)]
    Verify(VerifyArguments),
    /// Cut a checkpoint for so many ranks, a file each, for those who restart often
    #[command(after_help = looking::SHARD_EXAMPLES)]
    Shard(ShardArguments),
    /// Write a checkpoint of random weights, for tests and measurements
    Synth(SynthArguments),
    /// Put load on a server, this one or another, and measure it
    #[command(after_help = bench::EXAMPLES)]
    Bench(Box<bench::BenchArguments>),
}

#[derive(Args)]
pub(super) struct ServeArguments {
    /// A checkpoint's directory (config.json, safetensors, tokenizer.json), or `demo`, the model
    /// that is part of this program. For a directory of that name, write ./demo
    #[arg(default_value = "demo")]
    model: String,

    /// Address to listen on; 0.0.0.0 listens on every network
    #[arg(long, default_value = "127.0.0.1", help_heading = "Network")]
    host: String,

    /// TCP port; 0 takes a free one and says which
    #[arg(long, default_value_t = 8000, help_heading = "Network")]
    port: u16,

    /// TCP port on which KServe v2 is spoken over gRPC too, as by Triton's on 8001; 0 takes a free
    /// one and says which. Without it there is no gRPC
    #[arg(long, value_name = "PORT", help_heading = "Network")]
    grpc_port: Option<u16>,

    /// TCP port on which /metrics is served too, and nothing else, as by Triton's on 8002; 0 takes
    /// a free one and says which
    #[arg(long, value_name = "PORT", help_heading = "Network")]
    metrics_port: Option<u16>,

    /// Serve no page at / and nothing of what it shows of the node (/v1/node)
    #[arg(long, help_heading = "Network")]
    no_page: bool,

    #[command(flatten)]
    callers: CallerArguments,

    #[command(flatten)]
    connections: ConnectionArguments,

    /// How chat answers are told apart into reasoning and content: by the family's
    /// <think>...</think>, or not at all
    #[arg(long, value_enum, value_name = "PARSER", default_value_t = ReasoningParser::Think)]
    reasoning_parser: ReasoningParser,

    /// Name that requests use for the model; may be given several times, the first is shown in
    /// answers and metrics [default: the directory's name, or demo]
    #[arg(long, value_name = "NAME", help_heading = "Network")]
    #[arg(value_parser = clap::builder::NonEmptyStringValueParser::new())]
    served_model_name: Vec<String>,

    #[command(flatten)]
    capacity: CapacityArguments,

    #[command(flatten)]
    turns: TurnArguments,

    #[command(flatten)]
    traces: TraceArguments,

    #[command(flatten)]
    device: DeviceArguments,
}

/// See `--reasoning-parser`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ReasoningParser {
    Think,
    None,
}

#[derive(Args)]
pub(super) struct ChatArguments {
    /// A checkpoint's directory, or `demo`, the model that is part of this program
    #[arg(default_value = "demo")]
    model: String,

    /// Ask this one question and exit; without it, a conversation begins
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,

    /// The system message
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,

    /// Reason in <think>...</think> before the answer [default: as the chat template has it]
    #[arg(long, value_enum, value_name = "on|off")]
    thinking: Option<Switch>,

    /// Randomness, 0 to 100; 0 always takes the most likely token [default: 0.6 while reasoning,
    /// 0 with --thinking off]
    #[arg(long, value_name = "T", help_heading = "Sampling")]
    temperature: Option<f32>,

    /// Draw from the most likely tokens whose probability adds up to this, above 0 up to 1
    /// [default: 0.95]
    #[arg(long, value_name = "P", help_heading = "Sampling")]
    top_p: Option<f32>,

    /// The same seed gives the same answer
    #[arg(long, default_value_t = 0, help_heading = "Sampling")]
    seed: u64,

    /// Tokens of an answer at most [default: what the context holds]
    #[arg(long, value_name = "N", value_parser = at_least_one, help_heading = "Sampling")]
    max_tokens: Option<usize>,

    #[command(flatten)]
    device: DeviceArguments,
}

/// How much it takes on at once.
#[derive(Args)]
struct CapacityArguments {
    /// Sequences that run at once; more of them wait
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = at_least_one)]
    #[arg(help_heading = "Capacity")]
    max_seqs: usize,

    /// Requests that may wait; beyond that, callers get 429 with Retry-After
    #[arg(long, value_name = "N", default_value_t = 512, help_heading = "Capacity")]
    max_waiting: usize,
}

/// Where and how it runs.
#[derive(Args)]
struct DeviceArguments {
    /// Tokens of one sequence, prompt and answer [default: the checkpoint's
    /// max_position_embeddings, less if memory does not hold one]
    #[arg(long, value_name = "N", value_parser = at_least_one, help_heading = "Capacity")]
    max_model_len: Option<usize>,

    /// Tokens computed in a step: long prompts are cut into such chunks. More is faster for
    /// prompts, less keeps running answers smoother and takes less workspace
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = at_least_one)]
    #[arg(help_heading = "Capacity")]
    max_tokens_per_step: usize,

    /// Element type of the KV cache; auto takes fp8 where the checkpoint brings KV scales, else
    /// bf16
    #[arg(long, value_enum, value_name = "TYPE", default_value_t = KvType::Auto)]
    #[arg(help_heading = "Memory")]
    kv_dtype: KvType,

    /// Memory for the KV cache over all ranks, such as 512MiB, 2GB or 1.5GiB [default: what
    /// --max-seqs sequences of full length need, at most 4GiB, or on GPUs what they have left]
    #[arg(long, value_name = "SIZE", help_heading = "Memory")]
    kv_memory: Option<ByteSize>,

    #[command(flatten)]
    reuse: ReuseArguments,

    /// What to run on: this machine's processor, or its H100s, one a rank
    #[arg(long, value_enum, default_value_t = Device::Cpu, help_heading = "Device")]
    device: Device,

    /// Tensor-parallel ranks: each holds 1/N of every block. N must divide the query heads and
    /// FFN widths of every block
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = at_least_one)]
    #[arg(help_heading = "Device")]
    tp: usize,

    /// Compute threads over all ranks [default: this machine's cores]
    #[arg(long, value_name = "N", value_parser = at_least_one, help_heading = "Device")]
    threads: Option<usize>,

    /// On GPUs: the same answer, bit for bit, whatever runs beside a request and however its prompt
    /// is cut (the processor always does so). Each product has one algorithm for all numbers of
    /// tokens, sums over ranks never leave it to NCCL, and a single token attends as a prompt does,
    /// on one block a key/value head: expect slower steps, the more so the longer the context
    #[arg(long, help_heading = "Device")]
    deterministic: bool,

    /// On the processor: keep what meets BF16 weights (the head's input is such with FP8 weights
    /// too), and with AMX what attention multiplies, in f32, where a GPU rounds to BF16. Prompts
    /// and many sequences then take about twice as long where the processor multiplies BF16. A
    /// request's logits are the same bits alone or in a batch either way
    #[arg(long, help_heading = "Device")]
    f32_inputs: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum LogFormat {
    Text,
    Json,
}

#[derive(Clone, Copy, ValueEnum)]
enum Switch {
    On,
    Off,
}

#[derive(Clone, Copy, ValueEnum)]
enum Device {
    Cpu,
    Cuda,
}

#[derive(Clone, Copy, ValueEnum)]
enum KvType {
    Auto,
    Bf16,
    Fp8,
    F32,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Bf16,
    #[value(name = "modelopt-fp8")]
    ModeloptFp8,
    #[value(name = "fp8-dynamic")]
    Fp8Dynamic,
    F32,
    F16,
}

pub(super) fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("must be at least 1".to_owned()),
        Ok(n) => Ok(n),
        Err(error) => Err(error.to_string()),
    }
}

impl DeviceArguments {
    fn engine(self, capacity: CapacityArguments) -> EngineConfig {
        let engine = EngineConfig {
            device: match self.device {
                Device::Cpu => DeviceKind::Cpu,
                Device::Cuda => DeviceKind::Cuda,
            },
            n_ranks: self.tp,
            n_threads: self.threads,
            n_slots: capacity.max_seqs,
            n_waiting_max: capacity.max_waiting,
            n_tokens_per_step: self.max_tokens_per_step,
            n_context_tokens: self.max_model_len,
            kv_dtype: match self.kv_dtype {
                KvType::Auto => None,
                KvType::Bf16 => Some(KvDtype::Bf16),
                KvType::Fp8 => Some(KvDtype::Fp8),
                KvType::F32 => Some(KvDtype::F32),
            },
            kv_bytes: self.kv_memory.map(|size| size.0),
            is_deterministic: self.deterministic,
            rounds_inputs: !self.f32_inputs,
            overlaps_steps: matches!(self.device, Device::Cuda),
            caches_prefixes: true,
            policy: Policy::plain(),
            host_kv: None,
            n_candidates_max: 0,
        };
        self.reuse.decide(engine)
    }
}

impl From<ServeArguments> for ServeCommand {
    fn from(arguments: ServeArguments) -> ServeCommand {
        ServeCommand {
            model: ModelSource::new(&arguments.model),
            host: arguments.host,
            port: arguments.port,
            grpc_port: arguments.grpc_port,
            metrics_port: arguments.metrics_port,
            served_model_names: arguments.served_model_name,
            callers: arguments.callers.decide(),
            has_page: !arguments.no_page,
            traces: arguments.traces.decide(),
            limits: arguments.connections.limits(),
            splits_reasoning: arguments.reasoning_parser == ReasoningParser::Think,
            engine: EngineConfig {
                policy: arguments.turns.policy(),
                ..arguments.device.engine(arguments.capacity)
            },
        }
    }
}

impl From<ChatArguments> for ChatCommand {
    fn from(arguments: ChatArguments) -> ChatCommand {
        let one_at_a_time = CapacityArguments { max_seqs: 1, max_waiting: 1 };
        ChatCommand {
            model: ModelSource::new(&arguments.model),
            prompt: arguments.prompt,
            system: arguments.system,
            thinking: arguments.thinking.map(|switch| match switch {
                Switch::On => Thinking::On,
                Switch::Off => Thinking::Off,
            }),
            sampling: ChatSampling {
                temperature: arguments.temperature,
                top_p: arguments.top_p,
                seed: arguments.seed,
                n_new_max: arguments.max_tokens,
            },
            engine: arguments.device.engine(one_at_a_time),
        }
    }
}

impl From<Format> for SyntheticFormat {
    fn from(format: Format) -> SyntheticFormat {
        match format {
            Format::Bf16 => SyntheticFormat::Bf16,
            Format::ModeloptFp8 => SyntheticFormat::ModelOptFp8,
            Format::Fp8Dynamic => SyntheticFormat::Fp8Dynamic,
            Format::F32 => SyntheticFormat::F32,
            Format::F16 => SyntheticFormat::F16,
        }
    }
}
