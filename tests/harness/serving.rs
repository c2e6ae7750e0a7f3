//! A server in this process: the demo model behind a real socket, on a port of its own.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use engine::{
    DeviceKind, Engine, EngineConfig, EngineHandle, KvDtype, Output, Policy, ReaderGone, Request,
    SamplingParams, Terms, Ticket, TokenId,
};
use rustix::thread::{CpuSet, sched_setaffinity};
use server::boot::{self, Booted};
use server::config::ModelSource;
use server::http::{
    ApiKeys, App, AppState, HeaderValue, HttpLimits, Outcome, PageConfig, ServeConfig, Server,
    claim,
};
use server::text::{SpecialTokens, TextModel};
use server::traces::{TraceSettings, Traces};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

use crate::http::Client;
use crate::scripted::{self, Pace, Script, ScriptBounds};

/// Nothing that a test waits for takes longer, on any machine.
const PATIENCE: Duration = Duration::from_secs(600);

/// What a test wants of its server.
#[derive(Clone)]
pub struct ServerSettings {
    /// Where the model runs.
    pub device: DeviceKind,
    /// Tensor-parallel ranks.
    pub n_ranks: usize,
    /// Compute threads of all ranks together; `None` takes the machine's cores.
    pub n_threads: Option<usize>,
    /// Element type of the KV cache; `None` takes the checkpoint's.
    pub kv_dtype: Option<KvDtype>,
    /// Generations that run at once.
    pub n_slots: usize,
    /// Generations that wait.
    pub n_waiting_max: usize,
    /// Tokens of prompt and answer.
    pub n_context_tokens: usize,
    /// Bytes of the KV cache; `None` takes what all slots need.
    pub kv_bytes: Option<u64>,
    /// Key that callers must show.
    pub api_key: Option<String>,
    /// Origins whose pages may ask from a browser.
    pub allowed_origins: Vec<&'static str>,
    /// Whether there is a page at `/`.
    pub has_page: bool,
    /// What is traced, if anything is.
    pub traces: Option<TraceSettings>,
    /// Whose turn it is.
    pub policy: Policy,
    /// Bounds.
    pub limits: HttpLimits,
    /// Decides when a script's steps are done.
    pub pace: Pace,
    /// Listens for gRPC too.
    pub has_grpc: bool,
    /// Threads that serve sockets, and the processor that they and their helpers keep to.
    pub workers: Workers,
}

/// Threads of the server's side.
#[derive(Clone, Copy, Debug)]
pub struct Workers {
    /// How many serve sockets.
    pub n: usize,
    /// Their only processor; `None` lets them run anywhere.
    pub cpu: Option<usize>,
}

/// A running server. Dropping it stops it.
pub struct TestServer {
    /// Speaks to it.
    pub client: Client,
    /// Where it listens for gRPC, if it does.
    pub grpc: Option<SocketAddr>,
    /// What it shares among requests.
    pub app: App,
    engine: Option<Engine>,
    runtime: Option<Runtime>,
    serving: Option<JoinHandle<Outcome>>,
}

/// An engine that stands between two steps, until dropped: a request of the test's own is in every
/// step, and the engine's thread waits while it hands over that request's tokens. So whatever else
/// runs is under way for as long as the test wants it to be. It takes a slot.
pub struct HeldEngine {
    permits: Sender<()>,
    steps: Receiver<()>,
    _ticket: Ticket,
}

impl HeldEngine {
    /// Comes back when the engine stands.
    pub fn new(engine: &EngineHandle) -> HeldEngine {
        let (permits, permitted) = channel();
        let (stepped, steps) = channel();
        let deliver = move |output| {
            if let Output::Admitted { .. } = output {
                return Ok(());
            }
            // Whoever holds the engine may have let go of it.
            let _ = stepped.send(());
            permitted.recv().map_err(|_| ReaderGone)
        };
        let request = Request {
            prompt: vec![TokenId(1)].into(),
            n_new_max: engine.info().n_context_tokens - 1,
            stop_tokens: Vec::new().into(),
            sampling: SamplingParams::greedy(),
            n_logprobs: None,
            n_prompt_logprobs: None,
            hashes_logits: false,
            cache_salt: None,
            terms: Terms::ordinary(),
        };
        let ticket = engine.submit(request, Box::new(deliver)).expect("there is room for it");
        let held = HeldEngine { permits, steps, _ticket: ticket };
        held.steps.recv().expect("the engine runs");
        held
    }

    /// Lets it make `n` steps.
    pub fn make_steps(&self, n: usize) {
        for _ in 0..n {
            self.permits.send(()).expect("the engine runs");
            self.steps.recv().expect("the engine runs");
        }
    }
}

impl ServerSettings {
    /// Room for whatever a test does.
    pub fn roomy() -> ServerSettings {
        ServerSettings {
            device: DeviceKind::Cpu,
            n_ranks: 1,
            n_threads: Some(1),
            kv_dtype: None,
            n_slots: 16,
            n_waiting_max: 240,
            n_context_tokens: 256,
            kv_bytes: None,
            api_key: None,
            allowed_origins: Vec::new(),
            has_page: true,
            traces: None,
            policy: Policy::plain(),
            limits: HttpLimits::STANDARD,
            pace: Arc::new(|_| {}),
            has_grpc: false,
            workers: Workers { n: 2, cpu: None },
        }
    }
}

impl Workers {
    fn runtime(self) -> Runtime {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        if let Some(cpu) = self.cpu {
            builder.on_thread_start(move || pin(cpu));
        }
        builder.worker_threads(self.n).enable_all().build().expect("a runtime starts")
    }
}

/// Keeps the calling thread, and those that it starts, to one processor.
///
/// # Panics
/// There is none of that number.
pub fn pin(cpu: usize) {
    let mut cpus = CpuSet::new();
    cpus.set(cpu);
    sched_setaffinity(None, &cpus).expect("the processor is there");
}

impl TestServer {
    /// The demo model, named `demo` and `test/model`.
    pub fn start(settings: ServerSettings) -> TestServer {
        let config = EngineConfig {
            device: settings.device,
            n_ranks: settings.n_ranks,
            n_threads: settings.n_threads,
            n_slots: settings.n_slots,
            n_waiting_max: settings.n_waiting_max,
            n_tokens_per_step: 128,
            n_context_tokens: Some(settings.n_context_tokens),
            kv_dtype: settings.kv_dtype,
            kv_bytes: settings.kv_bytes,
            is_deterministic: false,
            rounds_inputs: false,
            // As the program does.
            overlaps_steps: settings.device == DeviceKind::Cuda,
            caches_prefixes: true,
            policy: settings.policy,
            host_kv: None,
            n_candidates_max: 0,
        };
        let booted = boot::boot(&ModelSource::Demo, &config).expect("the demo model boots");
        TestServer::over(booted, settings)
    }

    /// The same over a script: the demo's text, and no model. Answers go over `says` again and
    /// again, a token a step, and there are no pages to run out of.
    pub fn scripted(says: &str, settings: ServerSettings) -> TestServer {
        let checkpoint = boot::open(&ModelSource::Demo).expect("it is in the program");
        let text = TextModel::from_checkpoint(&checkpoint).expect("it has a tokenizer");
        let mut tokens: Vec<TokenId> = Vec::new();
        for token in text.encode(says, SpecialTokens::Literal).expect("it is text") {
            if !tokens.contains(&token) {
                tokens.push(token);
            }
        }
        let bounds = ScriptBounds {
            n_slots: settings.n_slots,
            n_waiting_max: settings.n_waiting_max,
            n_context_tokens: settings.n_context_tokens,
            spec: Arc::new(checkpoint.spec().clone()),
            policy: settings.policy,
        };
        let script = Script { tokens, pace: settings.pace.clone() };
        let engine = scripted::engine(script, &bounds);
        TestServer::over(Booted { engine, text: Arc::new(text) }, settings)
    }

    /// The same over an engine of the caller's, to which only what concerns HTTP in `settings`
    /// applies.
    pub fn over(Booted { engine, text }: Booted, settings: ServerSettings) -> TestServer {
        let from_static = HeaderValue::from_static;
        let serve_config = ServeConfig {
            names: vec!["demo".into(), "test/model".into()],
            api_keys: ApiKeys::new(&settings.api_key.into_iter().collect::<Vec<_>>()),
            allowed_origins: settings.allowed_origins.iter().map(|one| from_static(one)).collect(),
            splits_reasoning: true,
            page: settings.has_page.then(|| PageConfig { examples: vec!["What is 1 + 1?".into()] }),
            limits: settings.limits,
            traces: settings.traces.map(|traces| Traces::new(&traces).expect("it can be traced")),
        };
        let app = AppState::new(engine.handle(), text, serve_config);
        let runtime = settings.workers.runtime();
        let listening = {
            let app = app.clone();
            async move {
                let http = claim("127.0.0.1", 0).await?;
                let grpc = match settings.has_grpc {
                    true => Some(claim("127.0.0.1", 0).await?),
                    false => None,
                };
                Server::listen(http, grpc, app)
            }
        };
        let server = runtime.block_on(listening).expect("a port is free");
        let client = Client::new(server.address().expect("it listens"));
        let grpc = server.grpc_address().expect("it says where");
        let serving = Some(runtime.spawn(server.run()));
        TestServer { client, grpc, app, engine: Some(engine), runtime: Some(runtime), serving }
    }

    /// Waits for serving to end, which something else must have begun.
    pub fn outcome(&mut self) -> Outcome {
        let serving = self.serving.take().expect("asked once");
        let runtime = self.runtime.as_ref().expect("runs until dropped");
        runtime.block_on(serving).expect("serving does not panic")
    }

    /// Keeps the engine from going on until the value is dropped.
    pub fn hold_engine(&self) -> HeldEngine {
        HeldEngine::new(&self.app.engine)
    }

    /// Stops the engine under the server's feet: what runs is cancelled.
    pub fn stop_engine(&mut self, held: HeldEngine) {
        let engine = self.engine.take().expect("stopped once");
        thread::scope(|scope| {
            scope.spawn(|| engine.shutdown());
            // It waits for the step that is held, which must not be followed by another.
            self.wait_until("the engine was told to stop", |app| app.engine.ready().is_err());
            drop(held);
        });
    }

    /// Waits until every request is answered or its client's leaving was noticed, and the engine
    /// has nothing left and holds no page.
    pub fn expect_idle(&self) {
        self.wait_until("nothing is left", |app| {
            let stats = app.engine.stats();
            let n_left = app.in_flight.n() + app.engine.n_live() + stats.n_pages_used;
            n_left + stats.n_running + stats.n_waiting == 0
        });
    }

    /// Waits until something is so.
    ///
    /// # Panics
    /// It never is.
    pub fn wait_until(&self, what: &str, is_so: impl Fn(&App) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_so(&self.app) {
            let (in_flight, engine) = (self.app.in_flight.n(), &self.app.engine);
            let (n_live, stats) = (engine.n_live(), engine.stats());
            assert!(
                Instant::now() < deadline,
                "never so: {what}; {in_flight} in flight, {n_live} live, {stats:?}"
            );
            thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.app.shutdown.begin();
        self.app.shutdown.begin();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(5));
        }
    }
}
