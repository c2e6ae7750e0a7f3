//! Reading JSON values in the words of Triton's own reader, whose every complaint is INTERNAL.

use serde_json::{Map, Value};

use super::problem::Problem;

/// What Triton's reader says of a value that is not what it reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// The value is of another type.
    Type { expected: &'static str, read_as: &'static str },
    /// The member is not there.
    Missing { member: &'static str },
}

impl Access {
    pub(super) const SIGNED: Access = Access::of_type("signed-integer", "signed-integer");

    const fn of_type(expected: &'static str, read_as: &'static str) -> Access {
        Access::Type { expected, read_as }
    }

    /// The complaint about a member.
    pub(super) fn of(self, member: impl Into<String>) -> Problem {
        Problem::Unparsed { member: member.into(), access: self }
    }
}

impl std::fmt::Display for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Access::Type { expected, read_as } => {
                write!(f, "attempt to access JSON non-{expected} as {read_as}")
            }
            Access::Missing { member } => {
                write!(f, "attempt to access non-existing object member '{member}'")
            }
        }
    }
}

/// A member that must be there.
pub(super) fn member<'a>(
    members: &'a Map<String, Value>,
    member: &'static str,
) -> Result<&'a Value, Access> {
    members.get(member).ok_or(Access::Missing { member })
}

/// A string.
pub(super) fn string(value: &Value) -> Result<&str, Access> {
    value.as_str().ok_or(Access::of_type("string", "string"))
}

/// A truth value.
pub(super) fn boolean(value: &Value) -> Result<bool, Access> {
    value.as_bool().ok_or(Access::of_type("boolean", "boolean"))
}

/// An integer.
pub(super) fn signed(value: &Value) -> Result<i64, Access> {
    value.as_i64().ok_or(Access::SIGNED)
}

/// An integer from 0 on.
pub(super) fn unsigned(value: &Value) -> Result<u64, Access> {
    value.as_u64().ok_or(Access::of_type("unsigned-integer", "unsigned-integer"))
}

/// A number.
pub(super) fn double(value: &Value) -> Result<f64, Access> {
    value.as_f64().ok_or(Access::of_type("number", "double"))
}

/// A list.
pub(super) fn array(value: &Value) -> Result<&[Value], Access> {
    value.as_array().map(Vec::as_slice).ok_or(Access::of_type("array", "array"))
}

/// An object.
pub(super) fn object(value: &Value) -> Result<&Map<String, Value>, Access> {
    value.as_object().ok_or(Access::of_type("object", "object"))
}
