//! Attributes of descriptors: numbers from the C header, and values of fixed sizes.

use super::status::{Refusal, invalid};

/// An attribute: its number in the C header, and the bytes that a caller must hand over.
pub struct Attribute {
    pub number: u32,
    pub n_bytes: usize,
}

/// Values of attributes by their number, as the caller set them.
#[derive(Debug, Clone, Default)]
pub struct Attributes {
    values: Vec<(u32, u64)>,
}

impl Attributes {
    fn get(&self, number: u32) -> Option<u64> {
        self.values.iter().find(|(known, _)| *known == number).map(|(_, value)| *value)
    }

    pub fn set(&mut self, number: u32, value: u64) {
        match self.values.iter_mut().find(|(known, _)| *known == number) {
            Some((_, old)) => *old = value,
            None => self.values.push((number, value)),
        }
    }

    /// The value that was set, or the default.
    pub fn or(&self, number: u32, default: u64) -> u64 {
        self.get(number).unwrap_or(default)
    }
}

/// Something with attributes that the caller holds by a handle.
pub trait Descriptor: Sized {
    const NAME: &'static str;
    /// All that may be set and read.
    const ATTRIBUTES: &'static [Attribute];

    fn attributes(&mut self) -> &mut Attributes;
    /// The value of an attribute that was not set.
    fn default_of(number: u32) -> u64;

    /// Takes `bytes` over as an attribute's value.
    fn set(&mut self, number: u32, bytes: &[u8]) -> Result<(), Refusal> {
        let n_bytes = n_bytes_of::<Self>(number)?;
        if bytes.len() != n_bytes {
            let n = bytes.len();
            return Err(invalid(format!(
                "attribute {number} of a {} has {n_bytes} bytes, not {n}",
                Self::NAME
            )));
        }
        let mut value = [0; 8];
        value[..n_bytes].copy_from_slice(bytes);
        self.attributes().set(number, u64::from_le_bytes(value));
        Ok(())
    }

    /// The bytes of an attribute's value.
    fn get(&mut self, number: u32) -> Result<Vec<u8>, Refusal> {
        let n_bytes = n_bytes_of::<Self>(number)?;
        let value = self.attributes().or(number, Self::default_of(number));
        Ok(value.to_le_bytes()[..n_bytes].to_vec())
    }
}

fn n_bytes_of<D: Descriptor>(number: u32) -> Result<usize, Refusal> {
    let known = D::ATTRIBUTES.iter().find(|attribute| attribute.number == number);
    let known = known.ok_or_else(|| invalid(format!("a {} has no attribute {number}", D::NAME)))?;
    Ok(known.n_bytes)
}

pub const fn attribute(number: u32, n_bytes: usize) -> Attribute {
    Attribute { number, n_bytes }
}
