//! Machine code, counted: which instructions a kernel really has.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Numbers of a kernel's instructions by full opcode (`LDG.E.128.CONSTANT`).
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Sass(BTreeMap<String, usize>);

impl Sass {
    /// Every kernel of a CUBIN, by name.
    pub(crate) fn of_cubin(nvdisasm: &Path, cubin: &Path) -> Result<BTreeMap<String, Sass>> {
        let output = Command::new(nvdisasm).arg("--print-code").arg(cubin).output();
        let output = output.with_context(|| format!("cannot run {}", nvdisasm.display()))?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "nvdisasm of {}: {error}", cubin.display());
        let kernels = parse(&String::from_utf8_lossy(&output.stdout));
        ensure!(!kernels.is_empty(), "no kernel in {}", cubin.display());
        Ok(kernels)
    }

    /// What a test says that a kernel has.
    #[cfg(test)]
    pub(crate) fn from_counts(counts: &[(&str, usize)]) -> Sass {
        Sass(counts.iter().map(|&(opcode, n)| (opcode.to_owned(), n)).collect())
    }

    /// Instructions whose opcode begins as `wanted` does and holds its other dotted parts.
    pub(crate) fn count(&self, wanted: &str) -> usize {
        let matches = |opcode: &str| {
            let mut parts = opcode.split('.');
            let mut wanted = wanted.split('.');
            parts.next() == wanted.next() && wanted.all(|part| parts.any(|have| have == part))
        };
        self.0.iter().filter(|(opcode, _)| matches(opcode)).map(|(_, n)| n).sum()
    }

    /// Loads and stores of local memory: spilled registers and arrays that live in memory.
    pub(crate) fn n_local(&self) -> usize {
        self.count("LDL") + self.count("STL")
    }

    /// All instructions.
    pub(crate) fn n_instructions(&self) -> usize {
        self.0.values().sum()
    }
}

fn parse(text: &str) -> BTreeMap<String, Sass> {
    let mut kernels: BTreeMap<String, Sass> = BTreeMap::new();
    let mut kernel = None;
    for line in text.lines() {
        if let Some((_, section)) = line.split_once(".text.")
            && line.contains(".section")
        {
            let name = section.split([',', ' ', '"']).next().unwrap_or_default();
            kernel = Some(kernels.entry(name.to_owned()).or_default());
        } else if let (Some(opcode), Some(kernel)) = (opcode(line), kernel.as_mut()) {
            *kernel.0.entry(opcode.to_owned()).or_default() += 1;
        }
    }
    kernels
}

/// Of a line such as `        /*0030*/    @!P0 LDG.E.128 R4, [R2] ;`.
fn opcode(line: &str) -> Option<&str> {
    let (address, rest) = line.trim().strip_prefix("/*")?.split_once("*/")?;
    if address.is_empty() || !address.chars().all(|c| c.is_ascii_hexdigit()) {
        return None;
    }
    let mut words = rest.split_whitespace().skip_while(|word| word.starts_with('@'));
    words.next().map(|word| word.trim_end_matches(';')).filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_are_counted_by_opcode() {
        let text = "\t.section\t.text.a,\"ax\",@progbits\n.text.a:\n\
            \x20       /*0000*/                   LDC R1, c[0x0][0x28] ;\n\
            \x20       /*0010*/              @!P0 LDG.E.128.CONSTANT R4, [R2] ;\n\
            \x20       /*0020*/                   STL [R1], R4 ;\n\
            \t.section\t.text.b,\"ax\",@progbits\n\
            \x20       /*0000*/                   EXIT ;\n";
        let kernels = parse(text);
        let a = &kernels["a"];
        assert_eq!((a.count("LDG.128"), a.count("LDG.64"), a.count("LDG")), (1, 0, 1));
        assert_eq!((a.n_local(), a.n_instructions()), (1, 3));
        assert_eq!((kernels["b"].count("EXIT"), kernels["b"].n_local()), (1, 0));
    }
}
