//! The header of a safetensors file, believed only after it has been checked.
//!
//! It knows one file's bytes, not which tensors a model needs. The safetensors crate supplies the
//! header's types; its own reader keeps one of two equal names and does not name the tensor whose
//! offsets lie, so the checks are here.

use safetensors::Dtype as StoredDtype;
use safetensors::tensor::TensorInfo as StoredInfo;
use serde_json::Value;
use thiserror::Error;

use crate::error::span;
use crate::json::parse_strict;

/// Bytes of a header at most; the same bound as the format's own library.
pub(crate) const HEADER_BYTES_MAX: u64 = 100_000_000;

/// How a safetensors file contradicts itself.
#[derive(Debug, Error)]
pub enum HeaderError {
    /// There is not even a length.
    #[error("the file has {n_bytes} bytes, too few for a safetensors header")]
    TooShort {
        /// Bytes of the file.
        n_bytes: u64,
    },
    /// The length of the header is beyond the limit.
    #[error("the header claims {n_bytes} bytes, more than the limit of {n_bytes_max}")]
    HeaderTooLarge {
        /// Its claimed length.
        n_bytes: u64,
        /// The limit.
        n_bytes_max: u64,
    },
    /// The header is longer than the file.
    #[error("the header claims {n_bytes} bytes, but the file has {n_file_bytes}: is it truncated?")]
    HeaderBeyondFile {
        /// Its claimed length.
        n_bytes: u64,
        /// Bytes of the file.
        n_file_bytes: u64,
    },
    /// The header is not the JSON that it should be.
    #[error("the header is not valid: {0}")]
    Json(#[from] serde_json::Error),
    /// An entry is not a tensor's.
    #[error("the header's entry for `{tensor}` is not valid: {source}")]
    Entry {
        /// The entry's name.
        tensor: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The product of a shape does not fit 64 bits.
    #[error("tensor `{tensor}` has shape {shape:?}, whose size overflows 64 bits")]
    ShapeOverflow {
        /// The tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<usize>,
    },
    /// Shape and dtype do not agree with the offsets.
    #[error(
        "tensor `{tensor}` of shape {shape:?} and dtype {dtype} needs {expected} bytes, but its \
         offsets {offsets} do not span as many"
    )]
    Offsets {
        /// The tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<usize>,
        /// Its dtype.
        dtype: String,
        /// Bytes that they need.
        expected: u64,
        /// What the header says.
        offsets: String,
    },
    /// Two tensors share bytes, or bytes lie between tensors that belong to none.
    #[error(
        "tensor `{tensor}` begins at byte {found} of the data, the one before ends at {expected}"
    )]
    NotContiguous {
        /// The later tensor.
        tensor: String,
        /// Where the one before ends.
        expected: u64,
        /// Where it begins.
        found: u64,
    },
    /// A tensor ends behind the end of the file.
    #[error(
        "tensor `{tensor}` has offsets {offsets}, but the file has {n_bytes} bytes of data: is it \
         truncated?"
    )]
    BeyondFile {
        /// The tensor.
        tensor: String,
        /// What the header says.
        offsets: String,
        /// Bytes behind the header.
        n_bytes: u64,
    },
    /// Bytes that belong to no tensor follow the last one.
    #[error("tensors take {expected} bytes, but the file has {found} after the header")]
    DataLength {
        /// Bytes that the header describes.
        expected: u64,
        /// Bytes that there are.
        found: u64,
    },
}

/// A tensor of one file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct HeaderEntry {
    pub(crate) name: String,
    pub(crate) dtype: StoredDtype,
    pub(crate) shape: Vec<usize>,
    /// First byte, counted from the beginning of the file.
    pub(crate) offset: usize,
    pub(crate) n_bytes: u64,
}

/// The tensors of a file, in the order of their bytes. Every entry lies within `file`, none shares
/// a byte with another, and its bytes are as many as its shape and dtype need.
pub(crate) fn parse_header(file: &[u8]) -> Result<Vec<HeaderEntry>, HeaderError> {
    let (header, n_data_bytes) = header_bytes(file)?;
    let data_begin = file.len() as u64 - n_data_bytes;
    let Value::Object(object) = parse_strict(header)? else {
        return Err(HeaderError::Json(serde::de::Error::custom("not an object")));
    };
    let mut entries = Vec::with_capacity(object.len());
    for (name, entry) in object {
        if name == "__metadata__" {
            continue;
        }
        let info: StoredInfo = serde_json::from_value(entry)
            .map_err(|source| HeaderError::Entry { tensor: name.clone(), source })?;
        let n_bytes = checked_bytes(&name, &info)?;
        let (begin, end) = (info.data_offsets.0 as u64, info.data_offsets.1 as u64);
        if end > n_data_bytes {
            let offsets = span(&(begin..end));
            return Err(HeaderError::BeyondFile { tensor: name, offsets, n_bytes: n_data_bytes });
        }
        let offset = (data_begin + begin) as usize;
        entries.push(HeaderEntry { name, dtype: info.dtype, shape: info.shape, offset, n_bytes });
    }
    // An empty tensor lies before the one that begins where it ends.
    entries.sort_by_key(|entry| (entry.offset, entry.n_bytes));
    check_contiguous(&entries, data_begin, n_data_bytes)?;
    Ok(entries)
}

/// Every byte of the data belongs to exactly one tensor.
fn check_contiguous(
    entries: &[HeaderEntry],
    data_begin: u64,
    n_data_bytes: u64,
) -> Result<(), HeaderError> {
    let mut end = 0;
    for entry in entries {
        let begin = entry.offset as u64 - data_begin;
        if begin != end {
            let tensor = entry.name.clone();
            return Err(HeaderError::NotContiguous { tensor, expected: end, found: begin });
        }
        end += entry.n_bytes;
    }
    if end != n_data_bytes {
        return Err(HeaderError::DataLength { expected: end, found: n_data_bytes });
    }
    Ok(())
}

/// The header's JSON, and how many bytes follow it.
fn header_bytes(file: &[u8]) -> Result<(&[u8], u64), HeaderError> {
    let n_file_bytes = file.len() as u64;
    let Some((length, rest)) = file.split_first_chunk::<8>() else {
        return Err(HeaderError::TooShort { n_bytes: n_file_bytes });
    };
    let n_bytes = u64::from_le_bytes(*length);
    if n_bytes > HEADER_BYTES_MAX {
        return Err(HeaderError::HeaderTooLarge { n_bytes, n_bytes_max: HEADER_BYTES_MAX });
    }
    match rest.split_at_checked(n_bytes as usize) {
        Some((header, data)) => Ok((header, data.len() as u64)),
        None => Err(HeaderError::HeaderBeyondFile { n_bytes, n_file_bytes }),
    }
}

/// Bytes that shape and dtype need, if the offsets say the same.
fn checked_bytes(name: &str, info: &StoredInfo) -> Result<u64, HeaderError> {
    let n_bits = info
        .shape
        .iter()
        .try_fold(info.dtype.bitsize() as u64, |n, &size| n.checked_mul(size as u64))
        .ok_or_else(|| HeaderError::ShapeOverflow {
            tensor: name.to_owned(),
            shape: info.shape.clone(),
        })?;
    let (begin, end) = (info.data_offsets.0 as u64, info.data_offsets.1 as u64);
    if n_bits % 8 == 0 && end.checked_sub(begin) == Some(n_bits / 8) {
        return Ok(n_bits / 8);
    }
    Err(HeaderError::Offsets {
        tensor: name.to_owned(),
        shape: info.shape.clone(),
        dtype: info.dtype.to_string(),
        expected: n_bits.div_ceil(8),
        offsets: span(&(begin..end)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, n_data_bytes: usize) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend(vec![0; n_data_bytes]);
        bytes
    }

    fn check(header: &str, n_data_bytes: usize, expected: &str) {
        let error = parse_header(&file(header, n_data_bytes)).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }

    #[test]
    fn entries_come_in_byte_order_with_file_offsets() {
        let header = r#"{"__metadata__":{"format":"pt"},
            "b":{"dtype":"F32","shape":[],"data_offsets":[0,4]},
            "a":{"dtype":"F8_E4M3","shape":[3,2],"data_offsets":[4,10]},
            "c":{"dtype":"BF16","shape":[0,7],"data_offsets":[10,10]}}"#;
        let entries = parse_header(&file(header, 10)).unwrap();
        let begin = 8 + header.len();
        let seen: Vec<_> = entries.iter().map(|e| (e.name.as_str(), e.offset, e.n_bytes)).collect();
        assert_eq!(seen, [("b", begin, 4), ("a", begin + 4, 6), ("c", begin + 10, 0)]);
    }

    #[test]
    fn lengths_that_lie_are_refused() {
        let too_short = parse_header(&[1, 2, 3]).unwrap_err().to_string();
        assert!(too_short.contains("3 bytes"), "{too_short}");
        let mut huge = file("{}", 0);
        huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        let huge = parse_header(&huge).unwrap_err().to_string();
        assert!(huge.contains("limit of 100000000"), "{huge}");
        let mut beyond = file("{}", 0);
        beyond[..8].copy_from_slice(&3u64.to_le_bytes());
        let beyond = parse_header(&beyond).unwrap_err().to_string();
        assert!(beyond.contains("claims 3 bytes, but the file has 10"), "{beyond}");
    }

    #[test]
    fn offsets_that_lie_are_refused() {
        let entry = |shape: &str, offsets: &str| {
            format!(r#"{{"t":{{"dtype":"F16","shape":{shape},"data_offsets":{offsets}}}}}"#)
        };
        check(&entry("[2,2]", "[0,6]"), 6, "needs 8 bytes, but its offsets 0..6");
        check(&entry("[2,2]", "[8,0]"), 8, "offsets 8..0");
        check(&entry("[2,2]", "[2,10]"), 10, "begins at byte 2");
        check(&entry("[2,2]", "[0,8]"), 7, "has offsets 0..8, but the file has 7 bytes of data");
        check(&entry("[2,2]", "[0,8]"), 9, "take 8 bytes, but the file has 9");
        check(&entry("[4294967296,4294967296]", "[0,8]"), 8, "overflows 64 bits");
        check(&entry("[2,-2]", "[0,8]"), 8, "entry for `t`");
    }

    #[test]
    fn tensors_that_share_bytes_are_refused() {
        let header = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},
            "b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#;
        check(header, 12, "`b` begins at byte 4 of the data, the one before ends at 8");
    }

    #[test]
    fn a_name_twice_is_refused() {
        let entry = r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#;
        check(&format!(r#"{{"a":{entry},"a":{entry}}}"#), 4, "duplicate key `a`");
    }

    /// Whatever the bytes say, the answer is entries within the file or an error.
    #[test]
    fn no_bytes_make_it_panic_or_reach_outside() {
        let header = r#"{"__metadata__":{"format":"pt"},
            "a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},
            "b":{"dtype":"BF16","shape":[3,1],"data_offsets":[8,14]},
            "c":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[14,16]}}"#;
        let sound = file(header, 16);
        let replacements = b"0123456789-.,:{}[]\"ae\xff";
        const SEED: u64 = 0x5eed;
        let mut state = SEED;
        let mut draw = |n: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) as usize % n
        };
        let (mut n_sound, mut n_refused) = (0, 0);
        for _ in 0..50_000 {
            let mut bytes = sound.clone();
            for _ in 0..=draw(2) {
                let at = draw(bytes.len());
                bytes[at] = replacements[draw(replacements.len())];
            }
            if draw(4) == 0 {
                bytes.truncate(draw(bytes.len() + 1));
            }
            match parse_header(&bytes) {
                Err(_) => n_refused += 1,
                Ok(entries) => {
                    n_sound += 1;
                    for entry in entries {
                        assert!(entry.offset as u64 + entry.n_bytes <= bytes.len() as u64);
                    }
                }
            }
        }
        assert!(n_sound > 1000 && n_refused > 10_000, "{n_sound}, {n_refused}, seed {SEED:#x}");
    }
}
