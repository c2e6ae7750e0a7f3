//! What lies where: which crate knows which, what a kernel's folder holds, and paths of machines.

use std::collections::{BTreeMap, BTreeSet};

use crate::finding::Finding;

/// What each crate of the product may depend on in this workspace. Tests and benches may use all.
const DEPENDENCIES: &[(&str, &[&str])] = &[
    ("scheduler", &[]),
    ("parallel", &[]),
    ("weights", &[]),
    ("engine", &["scheduler", "parallel", "weights"]),
    // It reads checkpoints for its commands; everything else goes through the engine.
    ("server", &["engine", "weights"]),
];

/// Crates from outside that only some of ours may use, besides tests and benches.
const RESERVED: &[(&str, &[&str])] = &[
    ("tokio", &["server"]),
    ("axum", &["server"]),
    ("tower-http", &["server"]),
    ("serde_json", &["server", "weights"]),
    ("safetensors", &["weights"]),
    ("memmap2", &["weights"]),
    ("anyhow", &["server"]),
];

/// Files of every kernel's folder.
const KERNEL_FILES: &[&str] = &["mod.rs", "cpu.rs"];

/// Dependencies of a crate of the product that it may not have. `manifest` is the text of its
/// Cargo.toml.
pub(crate) fn dependencies(crate_name: &str, manifest: &str) -> Vec<Finding> {
    let Some((_, ours)) = DEPENDENCIES.iter().find(|(name, _)| *name == crate_name) else {
        return Vec::new();
    };
    let path = format!("{crate_name}/Cargo.toml");
    let mut findings = Vec::new();
    for (line_idx, dependency) in dependency_lines(manifest) {
        let is_ours = DEPENDENCIES.iter().any(|(name, _)| *name == dependency);
        let reserved = RESERVED.iter().find(|(name, _)| *name == dependency);
        if is_ours && !ours.contains(&dependency) {
            let problem = format!("{crate_name} may not know {dependency}");
            let remedy = "dependencies run server, engine, then scheduler, parallel and weights, \
                          which do not know each other";
            findings.push(Finding::at(&path, line_idx, problem, remedy));
        }
        if let Some((_, users)) = reserved.filter(|(_, users)| !users.contains(&crate_name)) {
            let problem = format!("{crate_name} may not know {dependency}");
            let remedy = format!("only {} may use it", users.join(" and "));
            findings.push(Finding::at(&path, line_idx, problem, &remedy));
        }
    }
    findings
}

/// Dependencies of all kinds, with their lines.
fn dependency_lines(manifest: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut in_dependencies = false;
    manifest.lines().enumerate().filter_map(move |(line_idx, line)| {
        let line = line.trim();
        if let Some(section) = line.strip_prefix('[') {
            let section = section.trim_end_matches(']');
            // `[dependencies.tokio]` names the dependency in the section.
            if let Some((_, name)) = section.split_once("dependencies.") {
                in_dependencies = false;
                return Some((line_idx, name));
            }
            in_dependencies = section.ends_with("dependencies");
            return None;
        }
        let name = line.split(['.', '=', ' ']).next().unwrap_or_default();
        (in_dependencies && !name.is_empty() && !line.starts_with('#')).then_some((line_idx, name))
    })
}

/// Kernels' folders that lack one of their files.
pub(crate) fn kernel_folders<'a>(paths: impl Iterator<Item = &'a str>) -> Vec<Finding> {
    let mut folders: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let mut modules: BTreeSet<&str> = BTreeSet::new();
    for path in paths {
        let Some(inner) = path.strip_prefix("engine/src/kernels/") else { continue };
        match inner.split_once('/') {
            Some((folder, file)) => {
                folders.entry(folder).or_default().insert(file);
            }
            None => modules.extend(inner.strip_suffix(".rs")),
        }
    }
    // What belongs to a module beside the families is none.
    folders.retain(|folder, _| !modules.contains(folder));
    let mut findings = Vec::new();
    for (folder, files) in folders {
        for missing in KERNEL_FILES.iter().filter(|file| !files.contains(*file)) {
            let path = format!("engine/src/kernels/{folder}/{missing}");
            let remedy = "a kernel has its launcher in mod.rs and its CPU arm in cpu.rs";
            findings.push(Finding::at(&path, 0, "the file is missing".to_owned(), remedy));
        }
    }
    findings
}

/// Paths that exist on somebody's machine only.
pub(crate) fn machine_paths(path: &str, text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (line_idx, line) in text.lines().enumerate() {
        for root in ["work", "root", "home"] {
            let root = format!("/{root}/");
            let is_absolute = |at: usize| {
                let before = line[..at].chars().next_back();
                !before.is_some_and(|c| c.is_alphanumeric() || "._-}>)*".contains(c))
            };
            if line.match_indices(&root).any(|(at, _)| is_absolute(at)) {
                let problem = format!("{root} is a path of one machine");
                let remedy = "make it relative, or an argument";
                findings.push(Finding::at(path, line_idx, problem, remedy));
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(findings: Vec<Finding>) -> Vec<(usize, String)> {
        findings.into_iter().map(|finding| (finding.line, finding.problem)).collect()
    }

    #[test]
    fn dependencies_run_one_way() {
        let manifest =
            |name: &str| format!("[dependencies]\nhalf = \"2\"\n{name}.workspace = true");
        for (crate_name, dependency) in [
            ("scheduler", "engine"),
            ("scheduler", "weights"),
            ("weights", "parallel"),
            ("parallel", "scheduler"),
            ("engine", "server"),
            ("server", "scheduler"),
            ("engine", "tokio"),
            ("engine", "serde_json"),
            ("parallel", "anyhow"),
        ] {
            let expected = [(3, format!("{crate_name} may not know {dependency}"))];
            assert_eq!(problems(dependencies(crate_name, &manifest(dependency))), expected);
        }
        for (crate_name, dependency) in [
            ("engine", "scheduler"),
            ("engine", "parallel"),
            ("server", "engine"),
            ("server", "tokio"),
            ("weights", "serde_json"),
            ("tests", "scheduler"),
            ("benches", "tokio"),
        ] {
            assert_eq!(dependencies(crate_name, &manifest(dependency)), []);
        }
    }

    #[test]
    fn dependencies_of_all_kinds_count() {
        for manifest in [
            "[dev-dependencies]\ntokio = \"1\"",
            "[build-dependencies]\ntokio={ version = \"1\" }",
            "[target.'cfg(unix)'.dependencies]\ntokio.workspace = true",
            "[dependencies.tokio]\nversion = \"1\"",
        ] {
            assert_eq!(dependencies("engine", manifest).len(), 1, "{manifest}");
        }
        let elsewhere =
            "[features]\ntokio = []\n[dependencies]\n# tokio = \"1\"\n[lints]\ntokio = 1";
        assert_eq!(dependencies("engine", elsewhere), []);
    }

    #[test]
    fn a_kernel_has_its_files() {
        let paths = [
            "engine/src/kernels/mod.rs",
            "engine/src/kernels/embed/mod.rs",
            "engine/src/kernels/embed/cpu.rs",
            "engine/src/kernels/gemm/mod.rs",
        ];
        let findings = kernel_folders(paths.into_iter());
        let missing: Vec<_> = findings.iter().map(|finding| &*finding.path).collect();
        assert_eq!(missing, ["engine/src/kernels/gemm/cpu.rs"]);
    }

    #[test]
    fn paths_of_machines_are_found() {
        // Put together here, or this file would break its own rule.
        let path = |root: &str| ["", root, "models"].join("/");
        for text in
            [path("work"), format!("a = \"{}\"", path("home")), format!("({})", path("root"))]
        {
            assert_eq!(machine_paths("a.md", &format!("\n{text}"))[0].line, 2, "{text}");
        }
        let within = |before: &str, root: &str| format!("{before}{}", path(root));
        for text in [
            within("tests", "work"),
            within("https://host", "home"),
            within("$HOME", "models"),
            path("working"),
            within(".", "root"),
        ] {
            assert_eq!(machine_paths("a.md", &text), [], "{text}");
        }
    }
}
