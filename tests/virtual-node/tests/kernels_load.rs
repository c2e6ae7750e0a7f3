//! Every kernel that the workspace ships is understood by the front end, to the last modifier.

use std::path::{Path, PathBuf};

/// Files with an extension under a folder, at any depth.
fn files_under(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.expect("the folder can be listed").path();
        if path.is_dir() {
            files.extend(files_under(&path, extension));
        } else if path.extension().is_some_and(|found| found == extension) {
            files.push(path);
        }
    }
    files.sort();
    files
}

#[test]
fn every_shipped_kernel_loads() {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let paths = files_under(&workspace.join("engine/src/kernels"), "ptx");
    assert!(!paths.is_empty(), "the kernels' PTX lies beside them");
    let mut problems = Vec::new();
    let mut n_kernels = 0;
    for path in paths {
        let text = std::fs::read_to_string(&path).unwrap();
        match virtual_node::ptx::load(&text) {
            Ok(module) => n_kernels += module.kernels.len(),
            Err(error) => problems.push(format!("{}: {error}", path.display())),
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    assert!(n_kernels > 0, "no entry in any of them");
}
