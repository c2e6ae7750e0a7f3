//! Launches.

use super::operation::{Failure, WorkCx};
use super::status::Status;

/// A kernel with everything that one launch of it needs.
pub(super) struct KernelCall {
    name: String,
}

impl KernelCall {
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn run(&self, _cx: &WorkCx<'_>) -> Result<(), Failure> {
        let text = format!("{} cannot run yet", self.name);
        Err(Failure { status: Status::NOT_SUPPORTED, text })
    }
}
