//! What the cross-crate tests share.

pub mod accuracy;
pub mod grpc;
pub mod http;
pub mod mutation;
pub mod plans;
pub mod random;
pub mod scripted;
pub mod serving;

use std::process::{Child, Command, Stdio};

/// The seed of a test's random draws: `SEED`, or a new one. Print it where the test fails.
pub fn seed() -> u64 {
    let fresh = || {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.map_or(1, |since| since.as_nanos() as u64)
    };
    wanted_seed().unwrap_or_else(fresh)
}

/// The same for a test that needs something to happen, which happens with the seed `usual`.
pub fn seed_or(usual: u64) -> u64 {
    wanted_seed().unwrap_or(usual)
}

/// The seed of a run that is to be repeated.
pub fn wanted_seed() -> Option<u64> {
    std::env::var("SEED").ok().and_then(|seed| seed.parse().ok())
}

/// What tells the virtual node to count and not to compute. It reads this once in a process.
pub const DRY: (&str, &str) = ("VIRTUAL_NODE_MODE", "dry");

/// Whether this process's node only counts.
pub fn is_dry() -> bool {
    std::env::var(DRY.0).is_ok_and(|mode| mode == DRY.1)
}

/// Runs the test `name` of this program in a process of its own whose node does not compute.
///
/// # Panics
/// The test fails, or there is none of that name.
pub fn run_dry(name: &str) {
    run_with(DRY, name);
}

/// Says to a process that it runs one test, which has all its memory and files to itself.
const ALONE: (&str, &str) = ("LNSERVE_TEST_ALONE", "yes");

/// Runs `test`, which is the test `name`, in a process of its own.
///
/// # Panics
/// The test fails, or there is none of that name.
pub fn alone(name: &str, test: impl FnOnce()) {
    match std::env::var(ALONE.0).is_ok_and(|value| value == ALONE.1) {
        true => test(),
        false => run_with(ALONE, name),
    }
}

/// Gives a process the part that it plays in another one's test.
pub const PART: &str = "LNSERVE_TEST_PART";

/// The part that this process plays in another one's test, if it does.
pub fn part() -> Option<String> {
    std::env::var(PART).ok()
}

/// A process that plays a part, until dropped. Its standard input ends with this one, however that
/// ends.
pub struct Player(Child);

/// Has the test `name` of this program play a part in a process of its own; it finds it in
/// [`part`].
pub fn play(name: &str, part: &str) -> Player {
    let program = std::env::current_exe().expect("a test is a program");
    let mut child = Command::new(program);
    child.args([name, "--exact"]).env(PART, part).stdin(Stdio::piped());
    Player(child.spawn().expect("it starts"))
}

impl Drop for Player {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Bytes of this process's memory that are resident.
pub fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("the kernel tells");
    let pages = statm.split(' ').nth(1).and_then(|n_pages| n_pages.parse::<usize>().ok());
    pages.expect("it is a number") * rustix::param::page_size()
}

fn run_with((name_of_variable, value): (&str, &str), name: &str) {
    let program = std::env::current_exe().expect("a test is a program");
    let mut child = Command::new(program);
    child.args([name, "--exact", "--nocapture"]).env(name_of_variable, value);
    let output = child.output().expect("it starts");
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{complained}");
    assert!(said.contains("1 passed"), "the child ran one test: {said}");
    print!("{said}");
}
