//! Failures that a test asks for, so that a program can be seen to survive them.
//!
//! A list of `nccl:rank=R[:call=N]:WHAT`, by commas, where WHAT is
//! - `absent`: the rank never arrives, at the initialization or (with `call`) at its N-th
//!   collective, until it is aborted;
//! - `error`: its N-th call of a collective returns `ncclSystemError`;
//! - `async-error`: its N-th collective fails on the device: it never ends, and
//!   `ncclCommGetAsyncError` answers `ncclSystemError` there and `ncclRemoteError` elsewhere.
//!
//! Calls count from 1 for each rank and communicator: for `error` as the host makes them, for the
//! others as streams run them, launches of graphs included.

use parking_lot::Mutex;

/// One failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    pub rank: usize,
    /// `None`: at the initialization.
    pub call: Option<u64>,
    pub what: What,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    Absent,
    Error,
    AsyncError,
}

/// A list of faults that nobody can read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text} is no fault: write nccl:rank=R[:call=N]:absent, :error or :async-error")]
pub struct FaultError {
    text: String,
}

/// Failures of one process, those from the environment first.
pub struct Faults {
    list: Mutex<Option<Vec<Fault>>>,
}

static FAULTS: Faults = Faults { list: Mutex::new(None) };

/// Reads a list of faults.
pub fn parse(list: &str) -> Result<Vec<Fault>, FaultError> {
    let items = list.split(',').map(str::trim).filter(|item| !item.is_empty());
    items.map(|item| parse_one(item).ok_or_else(|| FaultError { text: item.to_owned() })).collect()
}

fn parse_one(text: &str) -> Option<Fault> {
    let parts: Vec<&str> = text.split(':').collect();
    let (rank, call, what) = match parts[..] {
        ["nccl", rank, what] => (rank, None, what),
        ["nccl", rank, call, what] => (rank, Some(call.strip_prefix("call=")?), what),
        _ => return None,
    };
    let call = call.map(str::parse).transpose().ok()?;
    let what = match what {
        "absent" => What::Absent,
        "error" if call.is_some() => What::Error,
        "async-error" if call.is_some() => What::AsyncError,
        _ => return None,
    };
    Some(Fault { rank: rank.strip_prefix("rank=")?.parse().ok()?, call, what })
}

/// Adds to the faults of this process.
pub fn inject(list: &str) -> Result<(), FaultError> {
    let mut faults = parse(list)?;
    FAULTS.with(|all| all.append(&mut faults));
    Ok(())
}

/// Forgets all faults, those from the environment too.
pub fn clear() {
    FAULTS.with(Vec::clear);
}

/// Whether this fault was asked for.
pub fn has(rank: usize, call: Option<u64>, what: What) -> bool {
    FAULTS.with(|all| all.contains(&Fault { rank, call, what }))
}

impl Faults {
    fn with<T>(&self, use_list: impl FnOnce(&mut Vec<Fault>) -> T) -> T {
        let mut list = self.list.lock();
        use_list(list.get_or_insert_with(|| {
            let list = std::env::var("VIRTUAL_NODE_FAULTS").unwrap_or_default();
            parse(&list).unwrap_or_else(|problem| {
                // Without the fault a test of it would pass for nothing.
                eprintln!("virtual-node: VIRTUAL_NODE_FAULTS: {problem}");
                std::process::exit(2)
            })
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_read() {
        assert_eq!(
            parse("nccl:rank=3:absent, nccl:rank=0:call=12:async-error"),
            Ok(vec![
                Fault { rank: 3, call: None, what: What::Absent },
                Fault { rank: 0, call: Some(12), what: What::AsyncError },
            ])
        );
        for wrong in [
            "nccl:rank=3",
            "nccl:rank=x:absent",
            "nccl:3:absent",
            "rank=3:absent",
            "nccl:rank=3:error",
            "nccl:rank=3:call=x:error",
            "nccl:rank=3:call=1:late",
        ] {
            assert_eq!(parse(wrong), Err(FaultError { text: wrong.to_owned() }));
        }
    }
}
