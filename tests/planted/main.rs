//! Bugs planted into copies of the scheduler, each of which the simulator must catch: what a
//! checker does not catch, it does not check.
//!
//! A plant is a change of the sources' text. The copy is compiled, the simulator (`tests/sim`) is
//! compiled against it, and lives until something is wrong. What it says then is printed.

mod plants;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use plants::{PLANTS, Plant};

/// Lives that a copy is given. The unchanged scheduler survives them.
const N_LIVES: &str = "1000";

#[test]
fn every_planted_bug_is_caught() {
    let next = AtomicUsize::new(0);
    let n_threads = std::thread::available_parallelism().map_or(1, |n| n.get()).min(4);
    let work = || {
        let mut missed = Vec::new();
        while let Some(plant) = PLANTS.get(next.fetch_add(1, Ordering::Relaxed)) {
            let (name, apply) = (plant.what.replace(' ', "-"), |copy: &Path| plant.apply(copy));
            match complaint(&name, apply) {
                Some(complaint) => eprintln!("{}: {complaint}", plant.what),
                None => missed.push(plant.what),
            }
        }
        missed
    };
    let missed: Vec<&str> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..n_threads).map(|_| scope.spawn(work)).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("it ends")).collect()
    });
    assert!(missed.is_empty(), "not caught: {missed:?}");
}

/// Else a catch would mean nothing.
#[test]
fn the_unchanged_copy_survives() {
    assert_eq!(complaint("unchanged", |_| {}), None);
}

impl Plant {
    fn apply(&self, copy: &Path) {
        let path = copy.join(self.file);
        let text = fs::read_to_string(&path).expect("a source");
        let n_found = text.matches(self.right).count();
        assert_eq!(n_found, 1, "{}: {:?} in {}", self.what, self.right, self.file);
        fs::write(path, text.replace(self.right, self.wrong)).expect("it can be written");
    }
}

/// What the simulator has against a changed copy of the scheduler, if anything.
fn complaint(name: &str, change: impl FnOnce(&Path)) -> Option<String> {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("planted").join(name);
    if folder.exists() {
        fs::remove_dir_all(&folder).expect("an earlier run's folder can be removed");
    }
    let copy = folder.join("src");
    copy_sources(&repository.join("scheduler/src"), &copy);
    change(&copy);
    let (library, program) = (folder.join("libscheduler.rlib"), folder.join("sim"));
    compile(&copy.join("lib.rs"), &library, &["--crate-type", "rlib", "--crate-name", "scheduler"]);
    let extern_scheduler = format!("scheduler={}", library.display());
    let sim = repository.join("tests/sim/main.rs");
    compile(&sim, &program, &["--test", "--extern", &extern_scheduler]);
    let run = Command::new(&program).env("LIVES", N_LIVES).env("RUST_BACKTRACE", "0").output();
    let run = run.expect("what was compiled runs");
    let said =
        String::from_utf8_lossy(&run.stdout).into_owned() + &String::from_utf8_lossy(&run.stderr);
    let panicked = said.lines().skip_while(|line| !line.contains("panicked at"));
    (!run.status.success()).then(|| panicked.skip(1).take(1).collect())
}

fn copy_sources(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder can be made");
    for entry in fs::read_dir(from).expect("the sources") {
        let path = entry.expect("it is readable").path();
        let to = to.join(path.file_name().expect("it has a name"));
        if path.is_dir() {
            copy_sources(&path, &to);
        } else {
            fs::copy(&path, to).expect("it is copied");
        }
    }
}

/// With the compiler that compiled this.
fn compile(source: &Path, to: &Path, arguments: &[&str]) {
    let beside = Path::new(env!("CARGO")).with_file_name("rustc");
    let rustc = if beside.exists() { beside } else { "rustc".into() };
    let output = Command::new(rustc)
        .args(["--edition", "2024", "-C", "opt-level=0", "--cap-lints", "allow"])
        .args(arguments)
        .arg("-o")
        .args([to, source])
        .output()
        .expect("the compiler runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{} does not compile: {errors}", source.display());
}
