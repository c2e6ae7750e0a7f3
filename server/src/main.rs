//! The `lnserve` program: settings in, log set up, one command run, an exit status out.

use std::io;
use std::process::ExitCode;

use server::cli;
use server::config::{LogSettings, Settings};
use tracing_subscriber::EnvFilter;

/// Wrong usage, as `clap` has it.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let settings = Settings::read();
    if let Err(error) = start_log(&settings.log) {
        let filter = &settings.log.filter;
        eprintln!("lnserve: --log {filter}: {error}; write a level such as info or debug");
        return ExitCode::from(USAGE);
    }
    match cli::run(settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lnserve: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Sends the log to standard error.
fn start_log(log: &LogSettings) -> Result<(), tracing_subscriber::filter::ParseError> {
    let filter = EnvFilter::try_new(&log.filter)?;
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(log.has_colour);
    match log.is_json {
        true => subscriber.json().init(),
        false => subscriber.init(),
    }
    Ok(())
}
