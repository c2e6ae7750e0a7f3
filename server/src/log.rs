//! The program's log on standard error, and how much of it is written: decided when the program
//! starts, and turned at run time by those who may.

use std::io;
use std::sync::OnceLock;

use tracing_subscriber::filter::{EnvFilter, ParseError};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, fmt};

use crate::config::LogSettings;

/// What of the log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verbosity {
    /// What serving does.
    pub info: bool,
    /// What looks wrong.
    pub warning: bool,
    /// What is wrong.
    pub error: bool,
    /// Above 0, what a developer wants to see; from 2 on, all there is.
    pub verbose_level: u32,
}

impl Verbosity {
    /// As the program was started.
    pub const STANDARD: Verbosity =
        Verbosity { info: true, warning: true, error: true, verbose_level: 0 };

    /// The filter for it, where `started` is the filter that the program was started with.
    fn filter(self, started: &str) -> &str {
        match self {
            Verbosity { verbose_level: 2.., .. } => "trace",
            Verbosity { verbose_level: 1, .. } => "debug",
            Verbosity { info: true, .. } => started,
            Verbosity { warning: true, .. } => "warn",
            Verbosity { error: true, .. } => "error",
            _ => "off",
        }
    }
}

struct Turnable {
    started: String,
    filter: reload::Handle<EnvFilter, Registry>,
}

/// Set once, when the program starts its log; tests have none.
static TURNABLE: OnceLock<Turnable> = OnceLock::new();

/// Sends the log to standard error, from now on.
///
/// # Errors
/// The filter is none.
///
/// # Panics
/// The log was started before.
pub fn start(settings: &LogSettings) -> Result<(), ParseError> {
    let (filter, handle) = reload::Layer::new(EnvFilter::try_new(&settings.filter)?);
    let lines = fmt::layer().with_writer(io::stderr).with_ansi(settings.has_colour);
    let lines = match settings.is_json {
        true => lines.json().boxed(),
        false => lines.boxed(),
    };
    tracing_subscriber::registry().with(filter).with(lines).init();
    let turnable = Turnable { started: settings.filter.clone(), filter: handle };
    assert!(TURNABLE.set(turnable).is_ok(), "the log is started once");
    Ok(())
}

/// Turns the log up or down.
pub fn set_verbosity(verbosity: Verbosity) {
    let Some(turnable) = TURNABLE.get() else { return };
    // The filter was read when the program started, and the others are ours.
    let filter = EnvFilter::new(verbosity.filter(&turnable.started));
    if let Err(error) = turnable.filter.reload(filter) {
        tracing::error!(%error, "the log cannot be turned");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_level_that_is_on_decides() {
        let off = Verbosity { info: false, warning: false, error: false, verbose_level: 0 };
        for (verbosity, filter) in [
            (Verbosity::STANDARD, "info,engine=debug"),
            (Verbosity { verbose_level: 1, ..Verbosity::STANDARD }, "debug"),
            (Verbosity { verbose_level: 9, ..off }, "trace"),
            (Verbosity { warning: true, ..off }, "warn"),
            (Verbosity { error: true, ..off }, "error"),
            (off, "off"),
        ] {
            assert_eq!(verbosity.filter("info,engine=debug"), filter, "{verbosity:?}");
        }
    }
}
