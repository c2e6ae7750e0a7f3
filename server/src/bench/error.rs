//! Why a measurement cannot be made. Each says what is wrong and what to do about it.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// Why there is no result, or none to rely on.
#[derive(Debug, Error)]
pub enum BenchError {
    /// The address cannot be read.
    #[error("--url {url}: {problem}")]
    Url {
        /// As given.
        url: String,
        /// What is wrong, and what to write.
        problem: &'static str,
    },
    /// Nobody answers.
    #[error("nobody answers at {address}: {source}; start the server, or correct --url")]
    Unreachable {
        /// Host and port.
        address: String,
        /// The system's reason.
        source: io::Error,
    },
    /// The server does not serve this.
    #[error("the server has no model {model:?}; it has {served}: choose one with --model")]
    UnknownModel {
        /// As asked for.
        model: String,
        /// What it has.
        served: String,
    },
    /// A first request, before any measuring, was refused.
    #[error("the server refuses a first request to {path}: {problem}")]
    Refused {
        /// Where it went.
        path: String,
        /// Status and words.
        problem: String,
    },
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A file holds something else.
    #[error("{path}, {place}: {problem}")]
    Content {
        /// Which.
        path: PathBuf,
        /// Line or entry.
        place: String,
        /// What is wrong, and what belongs there.
        problem: String,
    },
    /// Settings contradict each other.
    #[error("{0}")]
    Settings(String),
    /// Nothing came back well.
    #[error("none of {n_requests} requests was answered: {commonest}")]
    NoAnswer {
        /// Requests.
        n_requests: usize,
        /// What went wrong most often.
        commonest: String,
    },
}
