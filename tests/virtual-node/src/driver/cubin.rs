//! What a CUBIN says of itself: its size, and the registers of its kernels.

use std::collections::BTreeMap;

use super::status::{Answer, Status};

/// The largest image that is looked at; a header that promises more is none.
const BYTES_MAX: usize = 1 << 30;
/// The type of a section without bytes in the file.
const NO_BITS: usize = 8;
/// In `.nv.info`: entries with data of their own behind them.
const FORMAT_SIZED: usize = 4;
/// In `.nv.info`: a symbol's number and its registers per thread.
const REGISTER_COUNT: usize = 0x2f;
/// Bytes of an entry of the table of symbols.
const SYMBOL_BYTES: usize = 24;

/// A section of an ELF file.
struct Section<'a> {
    name: &'a str,
    bytes: &'a [u8],
    /// The section that this one refers to.
    link: usize,
}

/// How many bytes an ELF image has, by what its header and its sections say. `read` answers the
/// byte at an offset.
pub(super) fn n_bytes(read: impl Fn(usize) -> u8) -> Answer<usize> {
    let number = |at: usize, n: usize| -> usize {
        (0..n).fold(0, |sum, i| sum | usize::from(read(at + i)) << (8 * i))
    };
    let (program_at, section_at) = (number(0x20, 8), number(0x28, 8));
    let (program_size, n_programs) = (number(0x36, 2), number(0x38, 2));
    let (section_size, n_sections) = (number(0x3a, 2), number(0x3c, 2));
    let program_end = program_at.saturating_add(program_size * n_programs);
    let mut end = program_end.max(section_at.saturating_add(section_size * n_sections));
    if end > BYTES_MAX {
        return Err(Status::INVALID_IMAGE);
    }
    for section_idx in 0..n_sections {
        let at = section_at + section_idx * section_size;
        if number(at + 4, 4) != NO_BITS {
            end = end.max(number(at + 0x18, 8).saturating_add(number(at + 0x20, 8)));
        }
    }
    if end > BYTES_MAX { Err(Status::INVALID_IMAGE) } else { Ok(end) }
}

/// Registers per thread, by kernel; `None` where the file is not what it should be.
pub(super) fn register_counts(bytes: &[u8]) -> Option<BTreeMap<String, u32>> {
    let sections = sections(bytes)?;
    let info = sections.iter().find(|section| section.name == ".nv.info")?;
    let symbols = sections.get(info.link)?;
    let names = sections.get(symbols.link)?;
    let mut counts = BTreeMap::new();
    let mut at = 0;
    while at + 4 <= info.bytes.len() {
        let (format, attribute) = (number(info.bytes, at, 1)?, number(info.bytes, at + 1, 1)?);
        let n_bytes = number(info.bytes, at + 2, 2)?;
        at += 4;
        if format != FORMAT_SIZED {
            continue;
        }
        if attribute == REGISTER_COUNT {
            let symbol_at = number(info.bytes, at, 4)? * SYMBOL_BYTES;
            let name = text(names.bytes, number(symbols.bytes, symbol_at, 4)?)?;
            counts.insert(name.to_owned(), number(info.bytes, at + 4, 4)? as u32);
        }
        at += n_bytes;
    }
    Some(counts)
}

fn sections(bytes: &[u8]) -> Option<Vec<Section<'_>>> {
    let (section_at, section_size) = (number(bytes, 0x28, 8)?, number(bytes, 0x3a, 2)?);
    let (n_sections, names_idx) = (number(bytes, 0x3c, 2)?, number(bytes, 0x3e, 2)?);
    let header = |section_idx: usize| section_at + section_idx * section_size;
    let names_at = number(bytes, header(names_idx) + 0x18, 8)?;
    let section = |section_idx: usize| {
        let at = header(section_idx);
        let (start, n_bytes) = (number(bytes, at + 0x18, 8)?, number(bytes, at + 0x20, 8)?);
        let is_empty = number(bytes, at + 4, 4)? == NO_BITS;
        Some(Section {
            name: text(bytes, names_at + number(bytes, at, 4)?)?,
            bytes: if is_empty { &[] } else { bytes.get(start..start.checked_add(n_bytes)?)? },
            link: number(bytes, at + 0x28, 4)?,
        })
    };
    (0..n_sections).map(section).collect()
}

/// A number of so many bytes, the lowest first.
fn number(bytes: &[u8], at: usize, n: usize) -> Option<usize> {
    let bytes = bytes.get(at..at.checked_add(n)?)?;
    Some(bytes.iter().rev().fold(0, |sum, byte| sum << 8 | usize::from(*byte)))
}

/// A text that ends with a zero.
fn text(bytes: &[u8], at: usize) -> Option<&str> {
    let text = bytes.get(at..)?.split(|byte| *byte == 0).next()?;
    std::str::from_utf8(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cubin_tells_its_size_and_registers() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../engine/src/kernels");
        let mut n_seen = 0;
        for family in std::fs::read_dir(folder).expect("the families").flatten() {
            let name = family.file_name().into_string().expect("ASCII");
            let Ok(cubin) = std::fs::read(family.path().join(format!("{name}.cubin"))) else {
                continue;
            };
            n_seen += 1;
            assert_eq!(n_bytes(|at| cubin[at]), Ok(cubin.len()), "{name}");
            let counts = register_counts(&cubin).expect("an ELF file");
            assert!(!counts.is_empty(), "{name}");
            assert!(counts.values().all(|n| (8..=255).contains(n)), "{name}: {counts:?}");
            // Cut short anywhere, it is none, or has fewer kernels; it is never a panic.
            for n_left in (0..cubin.len()).step_by(97) {
                register_counts(&cubin[..n_left]);
            }
        }
        assert!(n_seen > 0);
    }
}
