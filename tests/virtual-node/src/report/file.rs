//! The report of a process: what it counted, written when it ends.

use std::path::{Path, PathBuf};
use std::sync::Once;

use serde::{Deserialize, Serialize};

use super::Counters;
use crate::config::{Config, Mode};

/// What a report's file holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// `execute` or `dry`.
    pub mode: String,
    /// Devices that the process could see.
    pub n_devices: usize,
    /// What it did with them.
    pub counters: Counters,
}

impl Report {
    /// Of this process, until now.
    pub fn of_this_process() -> Report {
        let config = Config::get();
        let mode = match config.mode {
            Mode::Execute => "execute",
            Mode::Dry => "dry",
        };
        let (mode, n_devices) = (mode.to_owned(), config.n_devices);
        Report { mode, n_devices, counters: super::counters() }
    }
}

/// Has the report written when the process ends, if the environment names a file.
pub(super) fn write_at_exit() {
    static REGISTERED: Once = Once::new();
    REGISTERED.call_once(|| {
        if Config::get().report.is_some() {
            // SAFETY: the function needs nothing that is gone when it runs.
            unsafe { libc::atexit(write) };
        }
    });
}

extern "C" fn write() {
    let Some(path) = &Config::get().report else { return };
    let path = of_process(path, std::process::id());
    let json = serde_json::to_vec_pretty(&Report::of_this_process());
    let json = json.expect("counters are maps of numbers");
    if let Err(problem) = std::fs::write(&path, json) {
        eprintln!("virtual node: no report in {}: {problem}", path.display());
    }
}

/// `%p` stands for the number of the process, for commands that start several.
fn of_process(path: &Path, process: u32) -> PathBuf {
    path.to_string_lossy().replace("%p", &process.to_string()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_have_files_of_their_own() {
        let path = |text: &str| of_process(Path::new(text), 17);
        assert_eq!(path("out/%p.json"), Path::new("out/17.json"));
        assert_eq!(path("report.json"), Path::new("report.json"));
    }
}
