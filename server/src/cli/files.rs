//! How many files the system lets this process have open, which connections are too.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Files that are no connections: the checkpoint's, the log, what the runtime and libraries open.
const N_OTHER_FILES: usize = 512;

/// Raises the soft limit so that each of `n_ports` may have `n_connections` open, as far as the
/// hard limit goes. Returns how many each may have.
pub(super) fn allow(n_connections: usize, n_ports: usize) -> usize {
    let n_files = n_connections.saturating_mul(n_ports).saturating_add(N_OTHER_FILES) as u64;
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    // None is no limit.
    let allowed = maximum.map_or(n_files, |maximum| n_files.min(maximum));
    let mut current = current.unwrap_or(u64::MAX);
    if current < allowed {
        match setrlimit(Resource::Nofile, Rlimit { current: Some(allowed), maximum }) {
            Ok(()) => current = allowed,
            Err(error) => tracing::warn!(%error, allowed, "the limit of open files stays"),
        }
    }
    let n_left = usize::try_from(current).unwrap_or(usize::MAX).saturating_sub(N_OTHER_FILES);
    let n_possible = (n_left / n_ports).max(1);
    if n_possible < n_connections {
        tracing::warn!(
            n_connections,
            n_possible,
            n_files_max = current,
            "fewer connections than asked for: raise the limit of open files (ulimit -n)"
        );
    }
    n_connections.min(n_possible)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_keep_within_the_limit_of_open_files() {
        let Rlimit { current, .. } = getrlimit(Resource::Nofile);
        assert_eq!(allow(1, 2), 1);
        assert_eq!(getrlimit(Resource::Nofile).current, current, "one is no reason to raise it");
        let n = allow(usize::MAX, 2);
        let raised = getrlimit(Resource::Nofile);
        assert_eq!(raised.current, raised.maximum, "as far as it goes");
        if let Some(maximum) = raised.maximum {
            assert!(2 * n + N_OTHER_FILES <= maximum as usize, "{n}");
        }
    }
}
