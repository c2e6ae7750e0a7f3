//! The sources: every `.cu` in a family's folder is a unit, compiled alone.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// One `.cu` and the headers of ours that it includes.
pub(crate) struct Unit {
    /// `swiglu` for `swiglu/swiglu.cu`; unique among all families.
    pub(crate) name: String,
    /// The `.cu` itself.
    pub(crate) path: PathBuf,
    /// Its text.
    pub(crate) text: String,
    /// Headers by the name that `#include` gives them, with their text.
    pub(crate) headers: BTreeMap<String, String>,
}

impl Unit {
    /// All units below `kernels`, by name.
    pub(crate) fn all(kernels: &Path) -> Result<Vec<Unit>> {
        let mut units: BTreeMap<String, Unit> = BTreeMap::new();
        for family in entries(kernels)?.into_iter().filter(|path| path.is_dir()) {
            for path in entries(&family)? {
                if path.extension().is_some_and(|extension| extension == "cu") {
                    let unit = Unit::read(kernels, &path)?;
                    let name = unit.name.clone();
                    ensure!(units.insert(name.clone(), unit).is_none(), "two units named {name}");
                }
            }
        }
        Ok(units.into_values().collect())
    }

    fn read(kernels: &Path, path: &Path) -> Result<Unit> {
        let name = path.file_stem().and_then(|stem| stem.to_str()).context("a name in UTF-8")?;
        let text = read(path)?;
        let mut headers = BTreeMap::new();
        let mut wanted = includes(&text);
        while let Some(header) = wanted.pop() {
            if headers.contains_key(&header) {
                continue;
            }
            let text = read(&kernels.join(&header))?;
            wanted.extend(includes(&text));
            headers.insert(header, text);
        }
        Ok(Unit { name: name.to_owned(), path: path.to_owned(), text, headers })
    }

    /// Machine code.
    pub(crate) fn cubin_path(&self) -> PathBuf {
        self.path.with_extension("cubin")
    }

    /// What the virtual node executes.
    pub(crate) fn ptx_path(&self) -> PathBuf {
        self.path.with_extension("ptx")
    }

    /// Least numbers of instructions that the source claims for a kernel, from lines such as
    /// `// sass swiglu_e4m3: LDG.E.128 2, STG.E.64 1`: kernel, then opcode and count. An opcode
    /// matches by its dotted parts, whatever stands between them.
    pub(crate) fn claims(&self) -> Result<Vec<Claim>> {
        let mut claims = Vec::new();
        for line in self.text.lines().filter_map(|line| line.trim().strip_prefix("// sass ")) {
            let (kernel, list) = line.split_once(':').context("a claim names its kernel")?;
            for claim in list.split(',') {
                let (opcode, n_min) =
                    claim.trim().split_once(' ').context("a claim has opcode and count")?;
                let n_min = n_min.parse().with_context(|| format!("in {line}"))?;
                let opcode = opcode.to_owned();
                claims.push(Claim { kernel: kernel.to_owned(), opcode, n_min });
            }
        }
        Ok(claims)
    }
}

/// A kernel has at least `n_min` instructions `opcode`.
pub(crate) struct Claim {
    pub(crate) kernel: String,
    pub(crate) opcode: String,
    pub(crate) n_min: usize,
}

/// Headers named in quotes: ours. CUDA's own stand in angle brackets.
fn includes(text: &str) -> Vec<String> {
    let quoted = |line: &str| {
        let name = line.trim().strip_prefix("#include \"")?;
        Some(name.strip_suffix('"')?.to_owned())
    };
    text.lines().filter_map(quoted).collect()
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries =
        fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_quoted_headers_are_ours() {
        let text = "#include <cuda_fp8.h>\n#include \"common.cuh\"\n// #include \"no.cuh\"\n";
        assert_eq!(includes(text), ["common.cuh"]);
    }

    #[test]
    fn claims_are_read_from_comments() {
        let text = "// sass a_kernel: LDG.128 2, STG.64 1\n// sass: no claim\nint x;\n";
        let unit = Unit {
            name: "a".to_owned(),
            path: "a.cu".into(),
            text: text.to_owned(),
            headers: BTreeMap::new(),
        };
        let claims = unit.claims().expect("well-formed claims");
        let read: Vec<_> =
            claims.iter().map(|c| (c.kernel.as_str(), c.opcode.as_str(), c.n_min)).collect();
        assert_eq!(read, [("a_kernel", "LDG.128", 2), ("a_kernel", "STG.64", 1)]);
    }
}
