//! What programs load: PTX text, or a CUBIN whose PTX is known by the CUBIN's hash.
//!
//! A CUBIN holds machine code that nothing here executes. The product ships each one beside the
//! PTX that it was compiled with, and the build lists all pairs; so what production loads is what
//! is tested.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use sha2::{Digest, Sha256};

use super::status::Status;
use super::{complain, cubin};
use crate::config::Config;
use crate::ptx;

/// A CUBIN's hash and PTX, found when this crate was built.
struct Artifact {
    sha256: [u8; 32],
    ptx: &'static str,
}

include!(concat!(env!("OUT_DIR"), "/artifacts.rs"));

const ELF_MAGIC: [u8; 4] = *b"\x7fELF";
/// The first bytes of a fatbin, and of the structure that points to one.
const FATBIN_MAGICS: [[u8; 4]; 2] = [[0x50, 0xed, 0x55, 0xba], [0xb1, 0x43, 0x62, 0x46]];

/// A loaded image.
pub(super) struct Image {
    pub(super) module: ptx::Module,
    /// Registers per thread as the compiler wrote them into the CUBIN, by kernel; nothing for
    /// PTX.
    pub(super) n_registers: BTreeMap<String, u32>,
}

/// What kind of image begins with these four bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Cubin,
    Fatbin,
    Ptx,
}

impl Kind {
    pub(super) fn of(first: [u8; 4]) -> Kind {
        match first {
            ELF_MAGIC => Kind::Cubin,
            first if FATBIN_MAGICS.contains(&first) => Kind::Fatbin,
            _ => Kind::Ptx,
        }
    }
}

/// Decodes an image. The text is for the program's error log.
pub(super) fn load(bytes: &[u8]) -> Result<Arc<Image>, (Status, String)> {
    static LOADED: Mutex<Option<HashMap<[u8; 32], Arc<Image>>>> = Mutex::new(None);
    let hash: [u8; 32] = Sha256::digest(bytes).into();
    // Eight ranks load the same images, one after another: decoding once is enough.
    let mut loaded = LOADED.lock();
    let loaded = loaded.get_or_insert_default();
    if let Some(image) = loaded.get(&hash) {
        return Ok(image.clone());
    }
    let decoded = decode(bytes, hash);
    if let Err((status, text)) = &decoded {
        complain(format_args!("a module was not loaded: {text} ({status:?})"));
    }
    let image = Arc::new(decoded?);
    loaded.insert(hash, image.clone());
    Ok(image)
}

fn decode(bytes: &[u8], hash: [u8; 32]) -> Result<Image, (Status, String)> {
    let first = bytes.first_chunk().copied().unwrap_or_default();
    let (text, n_registers) = match Kind::of(first) {
        Kind::Cubin => {
            let text = ptx_of(hash).ok_or_else(|| {
                let text = "the CUBIN is not one whose PTX is known; load its PTX, or put the \
                            pair into the folder that VIRTUAL_NODE_KERNELS names";
                (Status::NO_BINARY_FOR_GPU, text.to_owned())
            })?;
            (text, cubin::register_counts(bytes).unwrap_or_default())
        }
        Kind::Fatbin => {
            let text = "fatbins are not taken apart here: load PTX or a CUBIN".to_owned();
            return Err((Status::INVALID_IMAGE, text));
        }
        Kind::Ptx => {
            let text = std::str::from_utf8(bytes)
                .map_err(|_| (Status::INVALID_IMAGE, "neither ELF nor text".to_owned()))?;
            (text.to_owned(), BTreeMap::new())
        }
    };
    check_target(&text)?;
    let module =
        ptx::load(&text).map_err(|error| (Status::INVALID_PTX, format!("ptx: {error}")))?;
    Ok(Image { module, n_registers })
}

/// Refuses code for other machines, as the real driver's compiler does.
fn check_target(text: &str) -> Result<(), (Status, String)> {
    let directive = text.lines().find_map(|line| line.trim().strip_prefix(".target"));
    let Some(target) =
        directive.and_then(|rest| rest.split([',', ' ', '\t']).find(|word| !word.is_empty()))
    else {
        return Err((Status::INVALID_PTX, "there is no .target".to_owned()));
    };
    let digits: String = target.chars().filter(char::is_ascii_digit).collect();
    let is_own = target.trim_end_matches(|c: char| c.is_ascii_digit() || c == 'a') == "sm_";
    let (version, is_exact) = (digits.parse::<u32>().unwrap_or(u32::MAX), target.ends_with('a'));
    if !is_own || version > 90 || (is_exact && version != 90) {
        let text = format!("{target} is no target of an H100, which is sm_90a");
        return Err((Status::NO_BINARY_FOR_GPU, text));
    }
    Ok(())
}

fn ptx_of(hash: [u8; 32]) -> Option<String> {
    let shipped = ARTIFACTS.iter().find(|artifact| artifact.sha256 == hash);
    shipped.map(|artifact| artifact.ptx.to_owned()).or_else(|| further().get(&hash).cloned())
}

/// The pairs of the folder that the environment names.
fn further() -> &'static HashMap<[u8; 32], String> {
    static FURTHER: OnceLock<HashMap<[u8; 32], String>> = OnceLock::new();
    FURTHER.get_or_init(|| Config::get().kernels.as_deref().map(read_pairs).unwrap_or_default())
}

fn read_pairs(folder: &Path) -> HashMap<[u8; 32], String> {
    let mut pairs = HashMap::new();
    let Ok(entries) = std::fs::read_dir(folder) else {
        complain(format_args!("{} is no folder that can be read", folder.display()));
        return pairs;
    };
    for path in entries.flatten().map(|entry| entry.path()) {
        let is_cubin = path.extension().is_some_and(|extension| extension == "cubin");
        if is_cubin
            && let Ok(cubin) = std::fs::read(&path)
            && let Ok(text) = std::fs::read_to_string(path.with_extension("ptx"))
        {
            pairs.insert(Sha256::digest(&cubin).into(), text);
        }
    }
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machines_targets_are_taken() {
        for good in ["sm_90a", "sm_90", "sm_80", "sm_75, debug"] {
            assert_eq!(check_target(&format!(".version 8.5\n.target {good}\n")), Ok(()), "{good}");
        }
        for bad in ["sm_100", "sm_100a", "sm_80a", "sm_120", "compute_90"] {
            let refused = check_target(&format!(".target {bad}")).expect_err(bad);
            assert_eq!(refused.0, Status::NO_BINARY_FOR_GPU, "{bad}");
        }
        assert_eq!(check_target("").expect_err("no target").0, Status::INVALID_PTX);
    }

    #[test]
    fn the_products_cubins_are_known() {
        assert!(!ARTIFACTS.is_empty());
        for artifact in ARTIFACTS {
            assert!(check_target(artifact.ptx).is_ok());
            assert_eq!(ptx_of(artifact.sha256).as_deref(), Some(artifact.ptx));
        }
        assert_eq!(ptx_of([0; 32]), None);
    }
}
