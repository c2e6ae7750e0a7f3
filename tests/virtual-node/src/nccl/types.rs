//! Numbers of NCCL's C header: results, element types, reductions, and the config.

use std::ffi::{c_char, c_int, c_uint};

use crate::cublaslt::element::Element as Float;

/// What every function returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum NcclResult {
    Success = 0,
    UnhandledCudaError = 1,
    SystemError = 2,
    InternalError = 3,
    InvalidArgument = 4,
    InvalidUsage = 5,
    RemoteError = 6,
    InProgress = 7,
}

impl NcclResult {
    /// For people.
    pub fn text(self) -> &'static std::ffi::CStr {
        match self {
            NcclResult::Success => c"no error",
            NcclResult::UnhandledCudaError => c"unhandled cuda error",
            NcclResult::SystemError => c"unhandled system error",
            NcclResult::InternalError => c"internal error",
            NcclResult::InvalidArgument => c"invalid argument",
            NcclResult::InvalidUsage => c"invalid usage",
            NcclResult::RemoteError => c"remote process exited or there was a network error",
            NcclResult::InProgress => c"NCCL operation in progress",
        }
    }

    pub fn from_number(number: u32) -> Option<NcclResult> {
        use NcclResult::*;
        let all = [
            Success,
            UnhandledCudaError,
            SystemError,
            InternalError,
            InvalidArgument,
            InvalidUsage,
            RemoteError,
            InProgress,
        ];
        all.into_iter().find(|result| *result as u32 == number)
    }
}

/// A call that is turned down, with the reason.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{result:?}: {reason}")]
pub struct NcclError {
    pub result: NcclResult,
    pub reason: String,
}

pub fn invalid_argument(reason: impl Into<String>) -> NcclError {
    NcclError { result: NcclResult::InvalidArgument, reason: reason.into() }
}

pub fn invalid_usage(reason: impl Into<String>) -> NcclError {
    NcclError { result: NcclResult::InvalidUsage, reason: reason.into() }
}

/// What messages are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Element {
    I8,
    U8,
    I32,
    U32,
    I64,
    U64,
    F64,
    /// Added up in single precision.
    Float(Float),
}

impl Element {
    /// `ncclDataType_t`.
    pub fn from_number(number: c_int) -> Result<Element, NcclError> {
        Ok(match number {
            0 => Element::I8,
            1 => Element::U8,
            2 => Element::I32,
            3 => Element::U32,
            4 => Element::I64,
            5 => Element::U64,
            6 => Element::Float(Float::F16),
            7 => Element::Float(Float::F32),
            8 => Element::F64,
            9 => Element::Float(Float::Bf16),
            10 => Element::Float(Float::E4m3),
            11 => Element::Float(Float::E5m2),
            _ => return Err(invalid_argument(format!("data type {number}"))),
        })
    }

    pub fn n_bytes(self) -> usize {
        match self {
            Element::I8 | Element::U8 => 1,
            Element::I32 | Element::U32 => 4,
            Element::I64 | Element::U64 | Element::F64 => 8,
            Element::Float(float) => float.n_bytes(),
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Element::I8 => "i8",
            Element::U8 => "u8",
            Element::I32 => "i32",
            Element::U32 => "u32",
            Element::I64 => "i64",
            Element::U64 => "u64",
            Element::F64 => "f64",
            Element::Float(float) => float.name(),
        }
    }
}

/// How the ranks' elements become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reduction {
    Sum,
    Product,
    Max,
    Min,
    Average,
}

impl Reduction {
    /// `ncclRedOp_t`.
    pub fn from_number(number: c_int) -> Result<Reduction, NcclError> {
        Ok(match number {
            0 => Reduction::Sum,
            1 => Reduction::Product,
            2 => Reduction::Max,
            3 => Reduction::Min,
            4 => Reduction::Average,
            _ => return Err(invalid_argument(format!("reduction {number}"))),
        })
    }
}

/// As much of `ncclConfig_t` as every version since 2.14 has in common.
#[repr(C)]
pub struct Config {
    pub size: usize,
    pub magic: c_uint,
    pub version: c_uint,
    pub blocking: c_int,
    pub cga_cluster_size: c_int,
    pub n_ctas_min: c_int,
    pub n_ctas_max: c_int,
    pub net_name: *const c_char,
    pub split_share: c_int,
}

/// `NCCL_CONFIG_INITIALIZER` writes this.
pub const CONFIG_MAGIC: c_uint = 0xcafe_beef;
/// `NCCL_CONFIG_UNDEF_INT`.
pub const CONFIG_UNSET: c_int = c_int::MIN;

impl Config {
    /// Whether initialization and calls wait until they are done.
    pub fn is_blocking(&self) -> Result<bool, NcclError> {
        if self.magic != CONFIG_MAGIC {
            let reason = "the config was not made by NCCL_CONFIG_INITIALIZER (its magic is wrong)";
            return Err(invalid_argument(reason));
        }
        if self.n_ctas_min != CONFIG_UNSET
            && self.n_ctas_max != CONFIG_UNSET
            && (self.n_ctas_min <= 0 || self.n_ctas_max < self.n_ctas_min)
        {
            let (min, max) = (self.n_ctas_min, self.n_ctas_max);
            return Err(invalid_argument(format!("from {min} to {max} CTAs")));
        }
        match self.blocking {
            CONFIG_UNSET | 1 => Ok(true),
            0 => Ok(false),
            other => Err(invalid_argument(format!("blocking is 0 or 1, not {other}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        Config {
            size: size_of::<Config>(),
            magic: CONFIG_MAGIC,
            version: 22_703,
            blocking: CONFIG_UNSET,
            cga_cluster_size: CONFIG_UNSET,
            n_ctas_min: CONFIG_UNSET,
            n_ctas_max: CONFIG_UNSET,
            net_name: std::ptr::null(),
            split_share: CONFIG_UNSET,
        }
    }

    #[test]
    fn a_config_is_checked() {
        assert_eq!(config().is_blocking(), Ok(true));
        assert_eq!(Config { blocking: 0, ..config() }.is_blocking(), Ok(false));
        for (wrong, word) in [
            (Config { magic: 0, ..config() }, "magic"),
            (Config { blocking: 2, ..config() }, "blocking"),
            (Config { n_ctas_min: 8, n_ctas_max: 4, ..config() }, "8 to 4 CTAs"),
        ] {
            let error = wrong.is_blocking().unwrap_err();
            assert_eq!(error.result, NcclResult::InvalidArgument);
            assert!(error.reason.contains(word), "{error}");
        }
    }

    #[test]
    fn numbers_outside_the_header_are_refused() {
        assert_eq!(Element::from_number(9), Ok(Element::Float(Float::Bf16)));
        assert!(Element::from_number(12).is_err());
        assert_eq!(Reduction::from_number(2), Ok(Reduction::Max));
        assert!(Reduction::from_number(5).is_err());
    }
}
