//! Amounts of memory as people write them: `512MiB`, `2GB`, `1.5GiB`.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// Bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

/// Not an amount of memory.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SizeError {
    /// No number at the front.
    #[error("no number: write a size such as 512MiB, 2GB or 1.5GiB")]
    NoNumber,
    /// A unit that we do not know.
    #[error("unknown unit {unit:?}: write KB, MB, GB, TB (1000s) or KiB, MiB, GiB, TiB (1024s)")]
    UnknownUnit {
        /// What stands after the number.
        unit: String,
    },
    /// Less than a byte, or more than memory can be.
    #[error("out of range: from 1B to 8388608TiB")]
    OutOfRange,
}

const BINARY_UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];

impl FromStr for ByteSize {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<ByteSize, SizeError> {
        let text = text.trim();
        let n_number = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(n_number);
        let number: f64 = number.parse().map_err(|_| SizeError::NoNumber)?;
        let unit_bytes: u64 = match unit.trim().to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "k" | "kb" => 1_000,
            "m" | "mb" => 1_000_000,
            "g" | "gb" => 1_000_000_000,
            "t" | "tb" => 1_000_000_000_000,
            "kib" | "ki" => 1 << 10,
            "mib" | "mi" => 1 << 20,
            "gib" | "gi" => 1 << 30,
            "tib" | "ti" => 1 << 40,
            _ => return Err(SizeError::UnknownUnit { unit: unit.trim().to_owned() }),
        };
        let bytes = number * unit_bytes as f64;
        // Beyond any machine, and exact as a float.
        if !(1.0..=(1_u64 << 63) as f64).contains(&bytes) {
            return Err(SizeError::OutOfRange);
        }
        Ok(ByteSize(bytes as u64))
    }
}

impl fmt::Display for ByteSize {
    /// In the largest binary unit that it fills: `1.50 GiB`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let power = (self.0.max(1).ilog2() / 10).min(4) as usize;
        if power == 0 {
            return f.pad(&format!("{} B", self.0));
        }
        let amount = self.0 as f64 / (1_u64 << (10 * power)) as f64;
        let n_decimals = if amount < 10.0 { 2 } else { 1 };
        f.pad(&format!("{amount:.n_decimals$} {}", BINARY_UNITS[power]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        let cases = [
            ("1", 1),
            ("512MiB", 512 << 20),
            ("2GB", 2_000_000_000),
            ("1.5GiB", 3 << 29),
            ("2 gib", 2 << 30),
            ("64k", 64_000),
            ("8TiB", 8 << 40),
        ];
        for (text, bytes) in cases {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused_with_the_remedy() {
        let message = |text: &str| text.parse::<ByteSize>().expect_err(text).to_string();
        for text in ["", "GiB", "-1GiB", "1.2.3GB", ".", "NaN"] {
            assert!(message(text).starts_with("no number"), "{text}");
        }
        assert!(message("2 gigs").contains("unknown unit \"gigs\""));
        for text in ["0", "0.1B", "9999999999TiB"] {
            assert!(message(text).starts_with("out of range"), "{text}");
        }
    }

    #[test]
    fn sizes_are_shown_in_their_largest_unit() {
        let cases = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (3 << 29, "1.50 GiB"),
            (25 << 20, "25.0 MiB"),
            (1 << 60, "1048576.0 TiB"),
        ];
        for (bytes, text) in cases {
            assert_eq!(ByteSize(bytes).to_string(), text);
        }
        assert_eq!(format!("{:>10}|", ByteSize(1024)), "  1.00 KiB|");
    }
}
