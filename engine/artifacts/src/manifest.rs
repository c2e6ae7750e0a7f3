//! `artifacts.json`: from which sources and by which compiler each artifact was made, and what the
//! assembler said of each kernel. It lets a test find stale artifacts without a compiler.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::compiler::{Artifact, OPTIONS};
use crate::digest::sha256;
use crate::source::Unit;
use crate::toolchain::{HEADERS, NVRTC};

/// Everything, by unit.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    units: BTreeMap<String, UnitFacts>,
}

/// One unit's artifacts.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct UnitFacts {
    /// SHA-256 of the sources, headers, compiler and options.
    pub(crate) source: String,
    /// SHA-256 of the CUBIN.
    pub(crate) cubin: String,
    /// SHA-256 of the PTX.
    pub(crate) ptx: String,
    /// By name.
    pub(crate) kernels: BTreeMap<String, KernelFacts>,
}

/// What the assembler says of a kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KernelFacts {
    /// Of a thread.
    pub(crate) n_registers: usize,
    /// Stores and loads of registers that did not fit.
    pub(crate) spill_bytes: usize,
    /// Local memory of a thread.
    pub(crate) stack_bytes: usize,
    /// Shared memory whose size the source fixes.
    pub(crate) static_shared_bytes: usize,
    /// From `__launch_bounds__`.
    pub(crate) n_threads_max: usize,
}

impl Manifest {
    pub(crate) fn empty() -> Manifest {
        Manifest { units: BTreeMap::new() }
    }

    pub(crate) fn read(kernels: &Path) -> Result<Manifest> {
        let path = kernels.join("artifacts.json");
        let text = fs::read_to_string(&path)
            .with_context(|| format!("cannot read {}: run cargo kernels build", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("in {}", path.display()))
    }

    pub(crate) fn write(&self, kernels: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)? + "\n";
        fs::write(kernels.join("artifacts.json"), text).context("cannot write artifacts.json")
    }

    /// Forgets units that are no more.
    pub(crate) fn keep(&mut self, units: &[Unit]) {
        self.units.retain(|name, _| units.iter().any(|unit| unit.name == *name));
    }

    pub(crate) fn insert(&mut self, unit: &Unit, artifact: &Artifact) {
        let facts = UnitFacts {
            source: fingerprint(unit),
            cubin: sha256(&artifact.cubin),
            ptx: sha256(artifact.ptx.as_bytes()),
            kernels: artifact.kernels.clone(),
        };
        self.units.insert(unit.name.clone(), facts);
    }

    pub(crate) fn n_units(&self) -> usize {
        self.units.len()
    }

    pub(crate) fn unit(&self, name: &str) -> Option<&UnitFacts> {
        self.units.get(name)
    }

    /// What is out of date, in words; nothing where all is well.
    pub(crate) fn stale(&self, units: &[Unit]) -> Vec<String> {
        let mut findings = Vec::new();
        let is_file =
            |path: &Path, digest: &str| fs::read(path).is_ok_and(|bytes| sha256(&bytes) == digest);
        for unit in units {
            let name = &unit.name;
            let Some(facts) = self.unit(name) else {
                findings.push(format!("{name}.cu was never compiled"));
                continue;
            };
            if facts.source != fingerprint(unit) {
                findings.push(format!("{name} has changed since it was compiled"));
            }
            if !is_file(&unit.cubin_path(), &facts.cubin) {
                findings.push(format!("{name}.cubin is not what the compiler wrote"));
            }
            if !is_file(&unit.ptx_path(), &facts.ptx) {
                findings.push(format!("{name}.ptx is not what the compiler wrote"));
            }
        }
        let is_gone = |name: &&String| !units.iter().any(|unit| unit.name == **name);
        findings.extend(self.units.keys().filter(is_gone).map(|name| format!("no {name}.cu")));
        findings
    }
}

impl KernelFacts {
    /// Every kernel of the assembler's log; bounds on threads are only in the PTX.
    pub(crate) fn all(log: &str, ptx: &str) -> Result<BTreeMap<String, KernelFacts>> {
        let mut kernels = BTreeMap::new();
        let mut stack = (0, 0);
        let mut name = None;
        for line in log.lines() {
            if let Some((_, rest)) = line.split_once("Compiling entry function '") {
                name = rest.split('\'').next();
            } else if line.contains("bytes stack frame") {
                let spills = number_before(line, "bytes spill stores").unwrap_or(0)
                    + number_before(line, "bytes spill loads").unwrap_or(0);
                stack = (number_before(line, "bytes stack frame").unwrap_or(0), spills);
            } else if line.contains(" registers") {
                let Some(name) = name.take() else { continue };
                let facts = KernelFacts {
                    n_registers: number_before(line, "registers").context("its registers")?,
                    spill_bytes: stack.1,
                    stack_bytes: stack.0,
                    static_shared_bytes: number_before(line, "bytes smem").unwrap_or(0),
                    n_threads_max: n_threads_max(ptx, name)?,
                };
                kernels.insert(name.to_owned(), facts);
            }
        }
        anyhow::ensure!(!kernels.is_empty(), "no kernel in the assembler's log");
        Ok(kernels)
    }
}

/// The number that stands before `unit`.
fn number_before(line: &str, unit: &str) -> Option<usize> {
    let before = line[..line.find(unit)?].trim_end();
    before.rsplit(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// `.maxntid` of the kernel: without it the assembler could not plan registers for the launch.
fn n_threads_max(ptx: &str, kernel: &str) -> Result<usize> {
    let begin = ptx.find(&format!(".entry {kernel}(")).context("the kernel is in the PTX")?;
    let head = &ptx[begin..];
    let head = &head[..head.find('{').unwrap_or(head.len())];
    let (_, bound) = head
        .split_once(".maxntid")
        .with_context(|| format!("{kernel} has no __launch_bounds__"))?;
    let bound = bound.lines().next().unwrap_or_default();
    bound.split(',').map(|n| Ok(n.trim().parse::<usize>()?)).product()
}

/// Of everything that decides what comes out.
fn fingerprint(unit: &Unit) -> String {
    let mut text = format!("{NVRTC} {HEADERS} {}\n{}", OPTIONS.join(" "), unit.text);
    for (name, header) in &unit.headers {
        text += &format!("\n{name}\n{header}");
    }
    sha256(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn committed_artifacts_are_of_these_sources() {
        let folder = crate::kernels_folder();
        let units = Unit::all(&folder).expect("sources");
        let manifest = Manifest::read(&folder).expect("a manifest");
        let stale = manifest.stale(&units);
        assert!(stale.is_empty(), "{}: run cargo kernels build", stale.join("; "));
    }

    #[test]
    fn a_changed_source_or_header_is_stale() {
        let folder = crate::kernels_folder();
        let manifest = Manifest::read(&folder).expect("a manifest");
        let changed = |change: fn(&mut Unit)| {
            let mut units = Unit::all(&folder).expect("sources");
            change(&mut units[0]);
            manifest.stale(&units).len()
        };
        assert_eq!(changed(|_| ()), 0);
        assert_eq!(changed(|unit| unit.text.push(' ')), 1);
        assert_eq!(changed(|unit| *unit.headers.entry("common.cuh".into()).or_default() += " "), 1);
        // Not compiled, not there: both names are wrong.
        assert_eq!(changed(|unit| unit.name.push('x')), 2);
    }

    #[test]
    fn the_assembler_is_understood() {
        let log = "ptxas info    : 0 bytes gmem\n\
            ptxas info    : Compiling entry function 'a' for 'sm_90a'\n\
            ptxas info    : Function properties for a\n    \
            16 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads\n\
            ptxas info    : Used 32 registers, used 1 barriers, 400 bytes smem, 380 bytes \
            cmem[0]\n";
        let ptx = ".visible .entry a(\n.param .u64 p\n)\n.maxntid 256, 1, 1\n{ret;}";
        let kernels = KernelFacts::all(log, ptx).expect("a log");
        let expected = KernelFacts {
            n_registers: 32,
            spill_bytes: 12,
            stack_bytes: 16,
            static_shared_bytes: 400,
            n_threads_max: 256,
        };
        assert_eq!(kernels, BTreeMap::from([("a".to_owned(), expected)]));
        let boundless = ptx.replace(".maxntid 256, 1, 1", "");
        assert!(KernelFacts::all(log, &boundless).is_err(), "launch bounds are asked for");
    }
}
