//! Statuses of cuBLASLt, and refusals that say which rule was broken.

/// What every function returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Status {
    Success = 0,
    NotInitialized = 1,
    InvalidValue = 7,
    ExecutionFailed = 13,
    InternalError = 14,
    NotSupported = 15,
}

/// A call that the library turns down, with the reason, which the real one keeps to its log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{status:?}: {reason}")]
pub struct Refusal {
    pub status: Status,
    pub reason: String,
}

impl Status {
    /// The status that C calls by this number.
    pub fn from_number(number: u32) -> Option<Status> {
        let all = [
            Status::Success,
            Status::NotInitialized,
            Status::InvalidValue,
            Status::ExecutionFailed,
            Status::InternalError,
            Status::NotSupported,
        ];
        all.into_iter().find(|status| *status as u32 == number)
    }

    /// As the C header calls it.
    pub fn name(self) -> &'static std::ffi::CStr {
        match self {
            Status::Success => c"CUBLAS_STATUS_SUCCESS",
            Status::NotInitialized => c"CUBLAS_STATUS_NOT_INITIALIZED",
            Status::InvalidValue => c"CUBLAS_STATUS_INVALID_VALUE",
            Status::ExecutionFailed => c"CUBLAS_STATUS_EXECUTION_FAILED",
            Status::InternalError => c"CUBLAS_STATUS_INTERNAL_ERROR",
            Status::NotSupported => c"CUBLAS_STATUS_NOT_SUPPORTED",
        }
    }
}

/// An argument that contradicts itself or another.
pub fn invalid(reason: impl Into<String>) -> Refusal {
    Refusal { status: Status::InvalidValue, reason: reason.into() }
}

/// Arguments in order that no kernel exists for.
pub fn unsupported(reason: impl Into<String>) -> Refusal {
    Refusal { status: Status::NotSupported, reason: reason.into() }
}

/// The status for the caller, with the reason of a refusal on standard error.
pub fn report(function: &str, result: Result<(), Refusal>) -> Status {
    match result {
        Ok(()) => Status::Success,
        Err(refusal) => {
            eprintln!("virtual-node: {function}: {refusal}");
            refusal.status
        }
    }
}
