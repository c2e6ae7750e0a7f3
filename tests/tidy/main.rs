//! The rules of the house that no compiler holds: where things belong, how long they may be, and
//! which words are not written. Reads the workspace's files, and names file, line and remedy.
//!
//! Each rule is a function from a file to its findings and has tests of its own, beside it.

mod finding;
mod layout;
mod sizes;
mod source;
mod words;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use finding::Finding;
use source::Source;

/// A file that git tracks, or would.
struct File {
    path: String,
    text: String,
}

#[test]
fn crates_know_only_what_they_may() {
    report(files().iter().flat_map(|file| match file.path.strip_suffix("/Cargo.toml") {
        Some(crate_name) => layout::dependencies(crate_name, &file.text),
        None => Vec::new(),
    }));
}

#[test]
fn kernels_have_their_files() {
    report(layout::kernel_folders(files().iter().map(|file| &*file.path)));
}

#[test]
fn no_file_names_somebodys_machine() {
    report(files().iter().flat_map(|file| layout::machine_paths(&file.path, &file.text)));
}

#[test]
fn words_are_where_they_belong() {
    report(sources().iter().flat_map(words::banned));
}

#[test]
fn unsafe_code_is_where_it_belongs_and_says_why() {
    report(sources().iter().flat_map(words::unsafe_code));
}

#[test]
fn metrics_are_named_in_one_file() {
    report(sources().iter().flat_map(words::metric_names));
}

#[test]
fn modules_state_their_purpose() {
    report(sources().iter().flat_map(sizes::purpose));
}

#[test]
fn lines_are_narrow() {
    report(sources().iter().flat_map(sizes::columns));
}

#[test]
fn functions_and_files_are_short() {
    let excesses: Vec<_> = sources().iter().flat_map(sizes::excesses).collect();
    report(sizes::ratchet(&excesses, sizes::EXCEPTIONS));
}

/// Fails with all findings, if there are any.
fn report(findings: impl IntoIterator<Item = Finding>) {
    let mut findings: Vec<Finding> = findings.into_iter().collect();
    findings.sort();
    let lines: Vec<String> = findings.iter().map(Finding::to_string).collect();
    assert!(lines.is_empty(), "{} findings\n{}\n", lines.len(), lines.join("\n"));
}

fn sources() -> Vec<Source> {
    let files = files().into_iter().filter(|file| file.path.ends_with(".rs"));
    let sources: Vec<_> = files.map(|file| Source::new(&file.path, &file.text)).collect();
    assert!(sources.len() > 50, "only {} sources: is this the workspace?", sources.len());
    sources
}

/// Everything that is or would be committed, but for what is no text.
fn files() -> Vec<File> {
    let root = root();
    let listed = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(&root)
        .output()
        .expect("git lists the workspace's files");
    assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    let paths = String::from_utf8(listed.stdout).expect("paths are UTF-8");
    let paths = paths.split_terminator('\0');
    // A file that git knows may have been removed since.
    let read = |path: &str| {
        let text = String::from_utf8(fs::read(root.join(path)).ok()?).ok()?;
        Some(File { path: path.to_owned(), text })
    };
    paths.filter_map(read).collect()
}

fn root() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().expect("the tests are a folder of the workspace").to_owned()
}
