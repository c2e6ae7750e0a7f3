//! Arguments of the commands that look at models or write them, and run none.

use clap::Args;
use weights::sharded::N_RANKS_MAX;

use super::*;

pub(super) const PLAN_EXAMPLES: &str = "\
Examples:
  lnserve plan ultra-253b                                  FP8 on eight H100s of 80 GB
  lnserve plan ultra-253b --format bf16                    the same in BF16
  lnserve plan super-49b --gpus 1 --json                   for programs
  lnserve plan /models/ultra-fp8 --gpu-memory 143771MiB    a checkpoint, on H200s

No GPU is needed, and none is asked. `serve --device cuda` boots from the same plan, made from what
its GPUs say they have. Exit status 1: it does not fit, and the report says what would.";

pub(super) const SHARD_EXAMPLES: &str = "\
Example:
  lnserve shard /models/ultra-fp8 --tp 8 --out /fast/ultra-fp8-tp8
  lnserve serve /fast/ultra-fp8-tp8 --tp 8 --device cuda

The files hold the same bytes, each rank's in one run, with a SHA-256 of every tensor that `lnserve
verify` checks; what is a hole stays one. The folder gets its name when all of it is written: after
Ctrl-C nothing is left.";

pub(super) const VERIFY_WORDS: &str = "\
Looks at config.json, the index, every shard's header, every tensor's name, shape and type, every
scale, and every value for NaN and infinity. Where the directory has a file SHA256SUMS (as sha256sum
writes it), its files are held against it, and what `lnserve shard` wrote against the checksum of
every tensor. Nothing is written. Exit status 1: something is broken.";

#[derive(Args)]
pub(in crate::config) struct InspectArguments {
    /// A checkpoint's directory; `demo`; or, to look at a model without its weights, a preset
    /// (tiny, bench-0.6b, nano-8b, super-49b, ultra-253b) or a config.json
    model: String,

    /// Weight format that sizes are computed for, where there are no weights
    #[arg(long, value_enum, default_value_t = Format::ModeloptFp8)]
    format: Format,

    #[command(flatten)]
    capacity: CapacityArguments,

    #[command(flatten)]
    device: DeviceArguments,
}

#[derive(Args)]
pub(in crate::config) struct PlanArguments {
    /// A checkpoint's directory; `demo`; or a preset (tiny, bench-0.6b, nano-8b, super-49b,
    /// ultra-253b) or a config.json
    model: String,

    /// Weight format, where there are no weights
    #[arg(long, value_enum, default_value_t = Format::ModeloptFp8)]
    format: Format,

    /// GPUs, one a rank: each holds 1/N of every block
    #[arg(long, visible_alias = "tp", value_name = "N", default_value_t = 8)]
    #[arg(value_parser = at_least_one)]
    gpus: usize,

    /// Memory of each GPU, as nvidia-smi counts it
    #[arg(long, value_name = "SIZE", default_value = "81559MiB")]
    gpu_memory: ByteSize,

    /// Sequences that run at once
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = at_least_one)]
    max_seqs: usize,

    /// Tokens computed in a step
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = at_least_one)]
    max_tokens_per_step: usize,

    /// Tokens of one sequence, prompt and answer [default: the model's max_position_embeddings,
    /// less if memory does not hold one]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    max_model_len: Option<usize>,

    /// Element type of the KV cache; auto takes fp8 where there are KV scales, else bf16
    #[arg(long, value_enum, value_name = "TYPE", default_value_t = KvType::Auto)]
    kv_dtype: KvType,

    /// Memory for the KV cache over all GPUs [default: what --max-seqs sequences of full length
    /// need, at most what is left]
    #[arg(long, value_name = "SIZE")]
    kv_memory: Option<ByteSize>,

    /// Print one JSON object: `kv_tokens`, and in `ranks` an object a GPU, whose keys in `_bytes`
    /// add up to its `total_bytes`
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub(in crate::config) struct VerifyArguments {
    /// A checkpoint's directory
    dir: PathBuf,

    /// Threads that read [default: this machine's cores]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    threads: Option<usize>,
}

#[derive(Args)]
pub(in crate::config) struct ShardArguments {
    /// A checkpoint's directory
    dir: PathBuf,

    /// Ranks to cut it for: what `serve --tp` will say
    #[arg(long, value_name = "N", value_parser = ranks)]
    tp: usize,

    /// Directory to make and write to; it must not be there yet
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

/// As many ranks as a checkpoint can be cut for.
fn ranks(text: &str) -> Result<usize, String> {
    let n_ranks = text.parse().ok().filter(|n_ranks| (1..=N_RANKS_MAX).contains(n_ranks));
    n_ranks.ok_or_else(|| format!("it must be a number from 1 to {N_RANKS_MAX}"))
}

#[derive(Args)]
pub(in crate::config) struct SynthArguments {
    /// What model to write: a config.json, or a preset (tiny, bench-0.6b, nano-8b, super-49b,
    /// ultra-253b)
    #[arg(long, value_name = "FILE|PRESET")]
    config: String,

    /// Directory to write to; it must not hold a checkpoint yet
    #[arg(long, value_name = "DIR")]
    out: PathBuf,

    /// Weight format
    #[arg(long, value_enum, default_value_t = Format::Bf16)]
    format: Format,

    /// Files to spread the tensors over, at most; a tensor is never cut [default: as many as keep
    /// them at 5 GB]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    shards: Option<usize>,

    /// Leave weights out as holes, which read as zeroes and take no room on the disk: the whole
    /// layout at its true size, for `inspect`, `plan`, `verify` and runs that compute nothing.
    /// Norms and scales are written
    #[arg(long)]
    sparse: bool,

    /// The same seed writes the same bytes
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

impl From<InspectArguments> for InspectCommand {
    fn from(arguments: InspectArguments) -> InspectCommand {
        InspectCommand {
            model: arguments.model,
            format: arguments.format.into(),
            engine: arguments.device.engine(arguments.capacity),
        }
    }
}

impl From<PlanArguments> for PlanCommand {
    fn from(arguments: PlanArguments) -> PlanCommand {
        let capacity = CapacityArguments { max_seqs: arguments.max_seqs, max_waiting: 1 };
        let device = DeviceArguments {
            max_model_len: arguments.max_model_len,
            max_tokens_per_step: arguments.max_tokens_per_step,
            kv_dtype: arguments.kv_dtype,
            kv_memory: arguments.kv_memory,
            reuse: ReuseArguments::default(),
            device: Device::Cuda,
            tp: arguments.gpus,
            threads: None,
            deterministic: false,
            f32_inputs: false,
        };
        PlanCommand {
            model: arguments.model,
            format: arguments.format.into(),
            engine: device.engine(capacity),
            device_bytes: arguments.gpu_memory.0,
            is_json: arguments.json,
        }
    }
}

impl From<VerifyArguments> for VerifyCommand {
    fn from(arguments: VerifyArguments) -> VerifyCommand {
        let n_cores = || std::thread::available_parallelism().map_or(1, usize::from);
        VerifyCommand { dir: arguments.dir, n_threads: arguments.threads.unwrap_or_else(n_cores) }
    }
}

impl From<ShardArguments> for ShardCommand {
    fn from(arguments: ShardArguments) -> ShardCommand {
        let ShardArguments { dir, tp, out } = arguments;
        ShardCommand { dir, n_ranks: tp, out }
    }
}

impl From<SynthArguments> for SynthCommand {
    fn from(arguments: SynthArguments) -> SynthCommand {
        SynthCommand {
            config: arguments.config,
            out: arguments.out,
            format: arguments.format.into(),
            n_shards: arguments.shards,
            is_sparse: arguments.sparse,
            seed: arguments.seed,
        }
    }
}
