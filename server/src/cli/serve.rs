//! `lnserve serve`: boots a model, listens, says where and how to ask, serves until told to stop.

use std::io::{IsTerminal, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

use super::files;
use super::interrupts::Interrupts;
use crate::boot::{self, Booted};
use crate::config::{ModelSource, ServeCommand};
use crate::http::{
    ApiKeys, App, AppState, HttpLimits, N_KEYS_MAX, Outcome, PageConfig, ServeConfig, Server, claim,
};
use crate::traces::Traces;

/// What the runtime's threads get to end once everything is answered.
const RUNTIME_TIMEOUT: Duration = Duration::from_secs(1);

/// What a shell reports for a program that was interrupted.
const INTERRUPTED: i32 = 130;

/// Serves until a signal has been obeyed or the engine fails.
///
/// # Errors
/// The port is taken, the model does not start, or the engine failed.
pub fn run(command: &ServeCommand) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let loading = heed_signals(&runtime, command.model.name())?;
    // Large models take minutes to load: a taken port is found before.
    let claimed = |port| {
        let socket = runtime.block_on(claim(&command.host, port));
        socket.with_context(|| format!("cannot listen on {}:{port}", command.host))
    };
    let http = claimed(command.port)?;
    let grpc = command.grpc_port.map(claimed).transpose()?;
    let metrics = command.metrics_port.map(claimed).transpose()?;
    let config = serve_config(command)?;
    let Booted { engine, text } = boot::boot(&command.model, &command.engine)?;
    let app = AppState::new(engine.handle(), text, config);
    let outcome = runtime.block_on(async {
        app.shutdown.on_signals()?;
        loading.abort();
        let server = Server::listen(http, grpc, app.clone())?.with_metrics(metrics)?;
        announce(command, &app, &server)?;
        anyhow::Ok(server.run().await)
    })?;
    tracing::info!(?outcome, "serving ended");
    if outcome == Outcome::Forced {
        // At once: nobody is waited for.
        std::process::exit(INTERRUPTED);
    }
    engine.shutdown();
    runtime.shutdown_timeout(RUNTIME_TIMEOUT);
    match outcome {
        Outcome::EngineFailed { cause } => bail!("the engine has failed: {cause}"),
        Outcome::Drained | Outcome::DeadlinePassed { .. } | Outcome::Forced => Ok(()),
    }
}

/// Until somebody can be answered, a signal ends the program at once and says so: nothing has been
/// written that could stay behind, and what is mapped or claimed goes with the process, whatever
/// its ranks are reading.
fn heed_signals(runtime: &Runtime, model: String) -> anyhow::Result<JoinHandle<()>> {
    let _inside = runtime.enter();
    let mut interrupts = Interrupts::new().context("cannot hear signals")?;
    Ok(runtime.spawn(async move {
        let interrupted = interrupts.next().await;
        let mut out = std::io::stderr().lock();
        // Below the progress bar, where there may be one.
        let begin = if out.is_terminal() { "\n" } else { "" };
        let name = interrupted.name;
        let _ = writeln!(out, "{begin}lnserve: {name} while {model} was loaded; nothing is kept");
        std::process::exit(interrupted.status.into())
    }))
}

fn serve_config(command: &ServeCommand) -> anyhow::Result<ServeConfig> {
    let names = match command.served_model_names.as_slice() {
        [] => vec![command.model.name()],
        names => names.to_vec(),
    };
    let mut keys = command.callers.api_keys.clone();
    if let Some(path) = &command.callers.api_key_file {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the API keys in {}", path.display()))?;
        let n_before = keys.len();
        keys.extend(ApiKeys::lines(&text).map(str::to_owned));
        if keys.len() == n_before {
            // Nobody means to let everybody in with an empty file.
            bail!("{} has no API key: write one a line", path.display());
        }
    }
    if keys.len() > N_KEYS_MAX {
        bail!("{} API keys were given, but at most {N_KEYS_MAX} are taken", keys.len());
    }
    let n_connections_max = files::allow(command.limits.n_connections_max, command.n_ports());
    Ok(ServeConfig {
        names,
        api_keys: ApiKeys::new(&keys),
        allowed_origins: command.callers.allowed_origins.clone(),
        splits_reasoning: command.splits_reasoning,
        traces: command.traces.as_ref().map(Traces::new).transpose()?,
        page: command.has_page.then(|| PageConfig { examples: examples(&command.model) }),
        limits: HttpLimits { n_connections_max, ..command.limits.clone() },
    })
}

/// Questions that the model can answer; at least one.
fn examples(model: &ModelSource) -> Vec<String> {
    let examples: &[&str] = match model {
        ModelSource::Demo => &["What is 27 + 58?", "What is 314 - 587?", "What is 37 * 42?"],
        ModelSource::Directory(_) => &["Who are you?", "Explain how a sailing boat tacks."],
    };
    examples.iter().map(|&example| example.to_owned()).collect()
}

/// Tells the person who started it what to do next.
fn announce(command: &ServeCommand, app: &App, server: &Server) -> std::io::Result<()> {
    let address = server.address()?;
    let reachable = match address.ip().is_unspecified() {
        true => SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), address.port()),
        false => address,
    };
    let examples = examples(&command.model);
    let question = &examples[0];
    let key = match command.callers.api_keys.is_empty() && command.callers.api_key_file.is_none() {
        false => " \\\n    -H 'Authorization: Bearer YOUR-KEY'",
        true => "",
    };
    let mut out = std::io::stdout().lock();
    writeln!(out, "lnserve serves {} on http://{address}", app.name())?;
    if let Some(address) = server.grpc_address()? {
        writeln!(out, "KServe v2 over gRPC is on grpc://{address}")?;
    }
    if let Some(address) = server.metrics_address()? {
        writeln!(out, "Metrics are on http://{address}/metrics")?;
    }
    match app.config.page {
        Some(_) => writeln!(out, "Open http://{reachable} in a browser, or ask it something:\n")?,
        None => writeln!(out, "Ask it something:\n")?,
    }
    writeln!(
        out,
        "  curl http://{reachable}/v1/chat/completions{key} \\\n    \
         -H 'Content-Type: application/json' \\\n    \
         -d '{{\"messages\":[{{\"role\":\"user\",\"content\":\"{question}\"}}],\
         \"temperature\":0}}'\n"
    )?;
    out.flush()
}
