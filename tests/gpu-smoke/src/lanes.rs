//! The tests that a real GPU can run as they are, a lane for each subject.
//!
//! Cargo builds them and this program starts them: Cargo would put the virtual node's libraries in
//! front of the machine's own.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// Tests of one package.
pub struct Lane {
    /// What they show.
    pub name: &'static str,
    /// Which of Cargo's test programs.
    pub target: &'static [&'static str],
    /// Arguments of the program: which of its tests.
    pub filters: &'static [&'static str],
}

/// In the order in which a failure says most: what later lanes stand on comes first.
pub const LANES: &[Lane] = &[
    Lane {
        name: "instructions against the ISA's tables; Triton's kernels",
        target: &["-p", "virtual-node", "--test", "oracles"],
        filters: &["--test-threads=1"],
    },
    Lane {
        name: "kernels against float64, sums over ranks by kernels and NCCL, graphs",
        target: &["-p", "engine", "--lib"],
        // Bytes are counted by the virtual node alone.
        filters: &[
            "cuda::",
            "inputs::",
            "loading::",
            "outbox::",
            "peers::",
            "--skip",
            "hardly_more_is_moved",
            "--test-threads=1",
        ],
    },
    Lane {
        name: "the demo and other models against the processor, 1 to 8 GPUs",
        target: &["-p", "lnserve-tests", "--test", "cuda"],
        filters: &["--test-threads=1"],
    },
];

/// How a lane ended.
pub struct Outcome {
    /// Whether every program ended well.
    pub passed: bool,
    /// From the first program's start to the last one's end.
    pub duration: Duration,
}

/// A test program that Cargo has built.
struct Program {
    path: PathBuf,
    /// The package's folder, in which its tests expect to run.
    folder: PathBuf,
}

/// Builds a lane's programs and runs them; their output goes where this program's goes.
///
/// # Errors
/// Nothing was built, or it does not start.
pub fn run(lane: &Lane) -> Result<Outcome> {
    let programs = build(lane)?;
    let started = Instant::now();
    let mut passed = true;
    for program in &programs {
        let status = Command::new(&program.path)
            .args(lane.filters)
            .current_dir(&program.folder)
            .status()
            .with_context(|| format!("{} does not start", program.path.display()))?;
        passed &= status.success();
    }
    Ok(Outcome { passed, duration: started.elapsed() })
}

fn build(lane: &Lane) -> Result<Vec<Program>> {
    let output = Command::new("cargo")
        .args(["test", "--release", "--no-run", "--message-format=json"])
        .args(lane.target)
        .stderr(Stdio::inherit())
        .output()
        .context("cargo does not start")?;
    ensure!(output.status.success(), "{} is not built", lane.target.join(" "));
    let programs = programs(&String::from_utf8_lossy(&output.stdout));
    ensure!(!programs.is_empty(), "{} has no program", lane.target.join(" "));
    Ok(programs)
}

/// The test programs among Cargo's messages, of which each is a line.
fn programs(messages: &str) -> Vec<Program> {
    let program = |line: &str| {
        let message: Value = serde_json::from_str(line).ok()?;
        let is_test = message["profile"]["test"].as_bool()?;
        let path = message["executable"].as_str()?;
        let manifest = Path::new(message["manifest_path"].as_str()?);
        let folder = manifest.parent()?.to_owned();
        is_test.then(|| Program { path: path.into(), folder })
    };
    messages.lines().filter_map(program).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_programs_are_found_among_cargos_messages() {
        let messages = concat!(
            r#"{"reason":"compiler-artifact","profile":{"test":false},"executable":null}"#,
            "\n",
            r#"{"reason":"compiler-artifact","manifest_path":"/a/b/Cargo.toml","#,
            r#""profile":{"test":true},"executable":"/a/target/b-1"}"#,
            "\nnot a message\n",
            r#"{"reason":"build-finished","success":true}"#,
        );
        let found = programs(messages);
        let paths: Vec<_> = found.iter().map(|p| (p.path.clone(), p.folder.clone())).collect();
        assert_eq!(paths, [(PathBuf::from("/a/target/b-1"), PathBuf::from("/a/b"))]);
    }

    /// Files below `folder` whose text has one of `words`, by their modules' path.
    fn modules_with(folder: &Path, words: &[&str], modules: &mut Vec<String>) {
        for entry in std::fs::read_dir(folder).expect("the engine's sources are there") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                modules_with(&path, words, modules);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).expect("text");
                let tests = text.split_once("#[test]").map_or("", |(_, tests)| tests);
                if words.iter().any(|word| tests.contains(word)) {
                    modules.push(path.with_extension("").to_string_lossy().replace('/', "::"));
                }
            }
        }
    }

    #[test]
    fn every_test_of_the_engine_that_opens_a_device_is_in_its_lane() {
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../engine/src");
        let mut modules = Vec::new();
        let words = ["TestDevice::open", "CudaExec::open", "on_ranks(", "pool(", "Probe::new("];
        modules_with(&sources, &words, &mut modules);
        assert!(modules.iter().any(|module| module.ends_with("peers::tests")), "{modules:?}");
        assert!(modules.len() > 8, "{modules:?}");
        let lane = LANES.iter().find(|lane| lane.target.contains(&"engine"));
        let filters = lane.expect("the engine has a lane").filters;
        let folder = sources.to_string_lossy().replace('/', "::");
        for module in modules {
            // The checkout's own folders may be called anything.
            let module = module.strip_prefix(&folder).expect("it lies in the sources");
            let is_run = filters.iter().any(|filter| format!("{module}::").contains(filter));
            assert!(is_run, "{module} has tests of a device that {filters:?} leave out");
        }
    }
}
