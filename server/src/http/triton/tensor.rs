//! Tensors as the protocol carries them: a name, a shape, values of one type. Reading and writing
//! their binary form, and their values from JSON.
//!
//! It knows no model: which names and shapes there may be is in [`interface`](super::interface).

use serde_json::Value;

use super::access::{Access, boolean, double, signed, unsigned};
use super::problem::Problem;

/// Lists within lists beyond which JSON tensors are refused, as in Triton.
const DEPTH_MAX: usize = 100;

/// Bytes of the length that goes before each string in binary form.
const N_LENGTH_BYTES: usize = size_of::<u32>();

/// The types of values that occur here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DataType {
    Bytes,
    Bool,
    Int32,
    Int64,
    Uint64,
    Fp32,
}

/// The values of a tensor, or of a part of one.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Data {
    Bytes(Vec<Vec<u8>>),
    Bool(Vec<bool>),
    Int32(Vec<i32>),
    Int64(Vec<i64>),
    Uint64(Vec<u64>),
    Fp32(Vec<f32>),
}

/// A named tensor.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Tensor {
    pub(super) name: String,
    /// Sizes, the batch first.
    pub(super) shape: Vec<u64>,
    /// As many values as the shape says.
    pub(super) data: Data,
}

/// Every data type of the protocol. A name outside this list is no data type at all.
const NAMES: [&str; 13] = [
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16",
    "BF16", "FP32", "BYTES",
];

/// Whether the protocol has a data type of that name, whatever models take.
pub(super) fn is_data_type(name: &str) -> bool {
    NAMES.contains(&name) || name == "FP64"
}

impl DataType {
    /// The protocol's name.
    pub(super) fn name(self) -> &'static str {
        match self {
            DataType::Bytes => "BYTES",
            DataType::Bool => "BOOL",
            DataType::Int32 => "INT32",
            DataType::Int64 => "INT64",
            DataType::Uint64 => "UINT64",
            DataType::Fp32 => "FP32",
        }
    }

    /// The name in a model's configuration.
    pub(super) fn config_name(self) -> &'static str {
        match self {
            DataType::Bytes => "TYPE_STRING",
            DataType::Bool => "TYPE_BOOL",
            DataType::Int32 => "TYPE_INT32",
            DataType::Int64 => "TYPE_INT64",
            DataType::Uint64 => "TYPE_UINT64",
            DataType::Fp32 => "TYPE_FP32",
        }
    }

    /// Bytes of a value; none where values differ.
    pub(super) fn n_bytes(self) -> Option<u64> {
        match self {
            DataType::Bytes => None,
            DataType::Bool => Some(1),
            DataType::Int32 | DataType::Fp32 => Some(4),
            DataType::Int64 | DataType::Uint64 => Some(8),
        }
    }

    /// Reads binary values, little-endian; BYTES have their lengths before them.
    ///
    /// # Errors
    /// `bytes` does not hold `n` values exactly. A string is copied only once it is known to be
    /// there whole, so nothing is reserved on the word of a length.
    pub(super) fn read(self, bytes: &[u8], n: u64) -> Result<Data, Problem> {
        match self {
            DataType::Bytes => strings(bytes, n).map(Data::Bytes),
            DataType::Bool => fixed(bytes, n, |[byte]| byte != 0).map(Data::Bool),
            DataType::Int32 => fixed(bytes, n, i32::from_le_bytes).map(Data::Int32),
            DataType::Int64 => fixed(bytes, n, i64::from_le_bytes).map(Data::Int64),
            DataType::Uint64 => fixed(bytes, n, u64::from_le_bytes).map(Data::Uint64),
            DataType::Fp32 => fixed(bytes, n, f32::from_le_bytes).map(Data::Fp32),
        }
    }

    /// Reads values from a JSON value or from lists of any nesting.
    ///
    /// # Errors
    /// A value is of another type, or lists are nested too deeply.
    pub(super) fn read_json(self, value: &Value) -> Result<Data, Problem> {
        let mut values = Vec::new();
        flatten(value, 0, &mut values)?;
        let data = match self {
            DataType::Bytes => {
                let texts = values.iter().map(|value| value.as_str());
                let texts: Option<Vec<_>> =
                    texts.map(|text| Some(text?.as_bytes().to_vec())).collect();
                return texts.map(Data::Bytes).ok_or(Problem::NotText);
            }
            DataType::Bool => each(&values, boolean).map(Data::Bool),
            DataType::Int32 => {
                each(&values, |value| i32::try_from(signed(value)?).map_err(|_| Access::SIGNED))
                    .map(Data::Int32)
            }
            DataType::Int64 => each(&values, signed).map(Data::Int64),
            DataType::Uint64 => each(&values, unsigned).map(Data::Uint64),
            DataType::Fp32 => {
                each(&values, |value| double(value).map(|number| number as f32)).map(Data::Fp32)
            }
        };
        data.map_err(|access| access.of("data"))
    }
}

impl Data {
    /// The type of the values.
    pub(super) fn data_type(&self) -> DataType {
        match self {
            Data::Bytes(_) => DataType::Bytes,
            Data::Bool(_) => DataType::Bool,
            Data::Int32(_) => DataType::Int32,
            Data::Int64(_) => DataType::Int64,
            Data::Uint64(_) => DataType::Uint64,
            Data::Fp32(_) => DataType::Fp32,
        }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        match self {
            Data::Bytes(values) => values.len(),
            Data::Bool(values) => values.len(),
            Data::Int32(values) => values.len(),
            Data::Int64(values) => values.len(),
            Data::Uint64(values) => values.len(),
            Data::Fp32(values) => values.len(),
        }
    }

    /// The `part_idx`th of `n_parts` equal parts.
    pub(super) fn part(&self, part_idx: usize, n_parts: usize) -> Data {
        let n = self.len() / n_parts;
        let range = part_idx * n..(part_idx + 1) * n;
        match self {
            Data::Bytes(values) => Data::Bytes(values[range].to_vec()),
            Data::Bool(values) => Data::Bool(values[range].to_vec()),
            Data::Int32(values) => Data::Int32(values[range].to_vec()),
            Data::Int64(values) => Data::Int64(values[range].to_vec()),
            Data::Uint64(values) => Data::Uint64(values[range].to_vec()),
            Data::Fp32(values) => Data::Fp32(values[range].to_vec()),
        }
    }

    /// The binary form.
    pub(super) fn write(&self, to: &mut Vec<u8>) {
        match self {
            Data::Bytes(values) => {
                for value in values {
                    let n = u32::try_from(value.len()).expect("no text of ours has 4 GiB");
                    to.extend_from_slice(&n.to_le_bytes());
                    to.extend_from_slice(value);
                }
            }
            Data::Bool(values) => to.extend(values.iter().map(|&value| u8::from(value))),
            Data::Int32(values) => to.extend(values.iter().flat_map(|value| value.to_le_bytes())),
            Data::Int64(values) => to.extend(values.iter().flat_map(|value| value.to_le_bytes())),
            Data::Uint64(values) => to.extend(values.iter().flat_map(|value| value.to_le_bytes())),
            Data::Fp32(values) => to.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        }
    }

    /// The values as JSON has them. Floats are written with all digits of the double that they
    /// are widened to.
    pub(super) fn json(&self) -> Vec<Value> {
        match self {
            Data::Bytes(values) => {
                values.iter().map(|value| String::from_utf8_lossy(value).into()).collect()
            }
            Data::Bool(values) => values.iter().map(|&value| value.into()).collect(),
            Data::Int32(values) => values.iter().map(|&value| value.into()).collect(),
            Data::Int64(values) => values.iter().map(|&value| value.into()).collect(),
            Data::Uint64(values) => values.iter().map(|&value| value.into()).collect(),
            Data::Fp32(values) => values.iter().map(|&value| f64::from(value).into()).collect(),
        }
    }
}

/// Values that a shape stands for; `None` where no machine could hold them.
pub(super) fn n_values(shape: &[u64]) -> Option<u64> {
    shape.iter().try_fold(1_u64, |n, &size| n.checked_mul(size))
}

fn fixed<T, const N: usize>(
    bytes: &[u8],
    n: u64,
    read: impl Fn([u8; N]) -> T,
) -> Result<Vec<T>, Problem> {
    let (values, rest) = bytes.as_chunks::<N>();
    if !rest.is_empty() || values.len() as u64 != n {
        let expected = n.saturating_mul(N as u64);
        return Err(Problem::ByteSize { expected, n: bytes.len() });
    }
    Ok(values.iter().map(|&value| read(value)).collect())
}

fn strings(mut bytes: &[u8], n: u64) -> Result<Vec<Vec<u8>>, Problem> {
    let mut values = Vec::new();
    while !bytes.is_empty() {
        if values.len() as u64 == n {
            return Err(Problem::StringCount { n: n.saturating_add(1), expected: n });
        }
        let Some((length, rest)) = bytes.split_first_chunk::<N_LENGTH_BYTES>() else {
            return Err(Problem::StringLength { n_left: bytes.len() });
        };
        let n_bytes = u32::from_le_bytes(*length) as usize;
        let Some((value, rest)) = rest.split_at_checked(n_bytes) else {
            return Err(Problem::StringData { n_bytes, n_left: rest.len() });
        };
        values.push(value.to_vec());
        bytes = rest;
    }
    if values.len() as u64 != n {
        return Err(Problem::StringCount { n: values.len() as u64, expected: n });
    }
    Ok(values)
}

fn flatten<'a>(value: &'a Value, depth: usize, to: &mut Vec<&'a Value>) -> Result<(), Problem> {
    let Value::Array(items) = value else {
        to.push(value);
        return Ok(());
    };
    if depth >= DEPTH_MAX {
        return Err(Problem::TooDeep { n_max: DEPTH_MAX });
    }
    items.iter().try_for_each(|item| flatten(item, depth + 1, to))
}

fn each<T>(
    values: &[&Value],
    read: impl Fn(&Value) -> Result<T, Access>,
) -> Result<Vec<T>, Access> {
    values.iter().map(|value| read(value)).collect()
}

#[cfg(test)]
mod tests;
