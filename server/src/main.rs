//! The `lnserve` program: settings in, log set up, one command run, an exit status out.

use std::process::ExitCode;

use server::config::Settings;
use server::{cli, log};

/// Wrong usage, as `clap` has it.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let settings = Settings::read();
    if let Err(error) = log::start(&settings.log) {
        let filter = &settings.log.filter;
        eprintln!("lnserve: --log {filter}: {error}; write a level such as info or debug");
        return ExitCode::from(USAGE);
    }
    match cli::run(settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lnserve: {error}");
            ExitCode::from(error.status())
        }
    }
}
