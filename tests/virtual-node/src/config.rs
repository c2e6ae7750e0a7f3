//! What the environment asks of the virtual node, read once per process.

use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

/// H100s in one node.
pub const N_DEVICES_MAX: usize = 8;

/// Whether kernels and copies are run or only counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Kernels and copies are run.
    Execute,
    /// Memory is address space only; kernels and copies are checked and counted, not run.
    Dry,
}

/// Checks of kernels that cost time and are made on request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CheckConfig {
    /// Two threads of a block that touch the same shared memory without a barrier between.
    pub races: bool,
    /// Reads of memory that nobody wrote.
    pub init: bool,
    /// Sectors that warps touch in global memory, against the fewest possible.
    pub sectors: bool,
    /// Bank conflicts in shared memory.
    pub banks: bool,
    /// No check: products whose algorithm splits `k` are summed in parts, as on a real node, so
    /// that the choice of an algorithm shows in their bits.
    pub splits: bool,
}

/// The settings of one process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// `VIRTUAL_NODE_MODE`: `execute` (the default) or `dry`.
    pub mode: Mode,
    /// `VIRTUAL_NODE_DEVICES`: 1 to 8, 8 by default.
    pub n_devices: usize,
    /// `VIRTUAL_NODE_CHECKS`: a list of `races`, `init`, `sectors`, `banks`, `splits`.
    pub checks: CheckConfig,
    /// `VIRTUAL_NODE_REPORT`: where the counters go when the process ends.
    pub report: Option<PathBuf>,
    /// `VIRTUAL_NODE_TRACE`: name every call on stderr.
    pub trace: bool,
    /// `VIRTUAL_NODE_THREADS`: processor cores that run the blocks of kernels, all by default.
    pub n_threads: usize,
    /// `VIRTUAL_NODE_KERNELS`: a folder of further `X.cubin` + `X.ptx` pairs, so that a CUBIN that
    /// the product does not ship can be loaded too.
    pub kernels: Option<PathBuf>,
    /// `VIRTUAL_NODE_HOLD`: `BYTES:PIPE`, a named pipe at which the first copies of so many bytes
    /// or more from the host to a device wait until somebody has written to it and closed it. So a
    /// test stops a program while it loads.
    pub hold: Option<(u64, PathBuf)>,
}

impl Config {
    /// The process's settings. A setting that is no setting ends the process: nobody could
    /// return the error through a C function, and a wrong mode must not pass for the right one.
    pub fn get() -> &'static Config {
        static CONFIG: OnceLock<Config> = OnceLock::new();
        CONFIG.get_or_init(|| {
            Config::parse(|name| std::env::var(name).ok()).unwrap_or_else(|problem| {
                eprintln!("virtual node: {problem}");
                std::process::exit(2);
            })
        })
    }

    /// Reads the settings from whatever `get` answers for a variable's name.
    pub fn parse(get: impl Fn(&str) -> Option<String>) -> Result<Config, ConfigError> {
        let get = |name: &str| get(name).filter(|value| !value.is_empty());
        let mode = match get("VIRTUAL_NODE_MODE").as_deref() {
            None | Some("execute") => Mode::Execute,
            Some("dry") => Mode::Dry,
            Some(other) => return Err(ConfigError::Mode(other.to_owned())),
        };
        let n_devices = number("VIRTUAL_NODE_DEVICES", get("VIRTUAL_NODE_DEVICES"), N_DEVICES_MAX)?;
        let n_cores = std::thread::available_parallelism().map_or(1, usize::from);
        let n_threads = match get("VIRTUAL_NODE_THREADS") {
            None => n_cores,
            some => number("VIRTUAL_NODE_THREADS", some, 1024)?,
        };
        Ok(Config {
            mode,
            n_devices,
            checks: checks(&get("VIRTUAL_NODE_CHECKS").unwrap_or_default())?,
            report: get("VIRTUAL_NODE_REPORT").map(PathBuf::from),
            trace: get("VIRTUAL_NODE_TRACE").is_some_and(|value| value != "0"),
            n_threads,
            kernels: get("VIRTUAL_NODE_KERNELS").map(PathBuf::from),
            hold: get("VIRTUAL_NODE_HOLD").map(hold).transpose()?,
        })
    }

    /// Whether kernels and copies are only counted.
    pub fn is_dry(&self) -> bool {
        self.mode == Mode::Dry
    }
}

/// Checks that a test set while the process ran.
static SET_CHECKS: Mutex<Option<CheckConfig>> = Mutex::new(None);

/// Sets the checks of all launches from now on, by their names.
pub fn set_checks(list: &str) -> Result<(), ConfigError> {
    *SET_CHECKS.lock() = Some(checks(list)?);
    Ok(())
}

/// The checks that launches make now.
pub fn current_checks() -> CheckConfig {
    SET_CHECKS.lock().unwrap_or(Config::get().checks)
}

/// See [`patience`].
static PATIENCE_MS: AtomicU64 = AtomicU64::new(200);

/// Sets how long the node is patient from now on; `u64::MAX` ms are for ever.
pub fn set_patience(n_ms: u64) {
    PATIENCE_MS.store(n_ms, Ordering::Relaxed);
}

/// How long copies to and from the host, and calls back into it, are held up for a program that
/// waits for nothing; `None` for ever.
pub fn patience() -> Option<Duration> {
    match PATIENCE_MS.load(Ordering::Relaxed) {
        u64::MAX => None,
        n_ms => Some(Duration::from_millis(n_ms)),
    }
}

/// A setting that is none.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// No mode has this name.
    #[error("VIRTUAL_NODE_MODE is execute or dry, not {0}")]
    Mode(String),
    /// Not a number, or none that the setting may have.
    #[error("{name} is a number from 1 to {max}, not {value}")]
    Number {
        /// The variable.
        name: &'static str,
        /// The greatest number.
        max: usize,
        /// What stood there.
        value: String,
    },
    /// No check has this name.
    #[error("VIRTUAL_NODE_CHECKS lists races, init, sectors, banks and splits, not {0}")]
    Check(String),
    /// What is to be held, and where.
    #[error("VIRTUAL_NODE_HOLD is a number of bytes, a colon and a pipe's path, not {0}")]
    Hold(String),
}

fn number(name: &'static str, value: Option<String>, max: usize) -> Result<usize, ConfigError> {
    let Some(value) = value else { return Ok(max) };
    match value.parse() {
        Ok(number) if (1..=max).contains(&number) => Ok(number),
        _ => Err(ConfigError::Number { name, max, value }),
    }
}

fn hold(text: String) -> Result<(u64, PathBuf), ConfigError> {
    let parts = text.split_once(':').and_then(|(n, path)| Some((n.parse().ok()?, path.into())));
    parts.ok_or(ConfigError::Hold(text))
}

fn checks(list: &str) -> Result<CheckConfig, ConfigError> {
    let mut checks = CheckConfig::default();
    for name in list.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        match name {
            "races" => checks.races = true,
            "init" => checks.init = true,
            "sectors" => checks.sectors = true,
            "banks" => checks.banks = true,
            "splits" => checks.splits = true,
            other => return Err(ConfigError::Check(other.to_owned())),
        }
    }
    Ok(checks)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(name: &str, value: &str) -> Result<Config, ConfigError> {
        Config::parse(|asked| (asked == name).then(|| value.to_owned()))
    }

    #[test]
    fn settings_have_defaults() {
        let config = Config::parse(|_| None).expect("nothing is set");
        assert_eq!((config.mode, config.n_devices), (Mode::Execute, 8));
        assert_eq!(config.checks, CheckConfig::default());
    }

    #[test]
    fn settings_are_read() {
        assert!(parse("VIRTUAL_NODE_MODE", "dry").expect("a mode").is_dry());
        assert_eq!(parse("VIRTUAL_NODE_DEVICES", "2").expect("a number").n_devices, 2);
        let hold = parse("VIRTUAL_NODE_HOLD", "4096:/tmp/pipe").expect("a pipe").hold;
        assert_eq!(hold, Some((4096, "/tmp/pipe".into())));
        let checks = parse("VIRTUAL_NODE_CHECKS", "races, banks").expect("checks").checks;
        assert_eq!(
            (checks.races, checks.init, checks.sectors, checks.banks),
            (true, false, false, true)
        );
    }

    #[test]
    fn wrong_settings_are_refused() {
        for (name, value) in [
            ("VIRTUAL_NODE_MODE", "fast"),
            ("VIRTUAL_NODE_DEVICES", "9"),
            ("VIRTUAL_NODE_DEVICES", "0"),
            ("VIRTUAL_NODE_CHECKS", "races,speed"),
            ("VIRTUAL_NODE_HOLD", "/tmp/pipe"),
            ("VIRTUAL_NODE_HOLD", "many:/tmp/pipe"),
        ] {
            let problem = parse(name, value).expect_err(value).to_string();
            assert!(problem.contains(name), "{problem}");
        }
    }
}
