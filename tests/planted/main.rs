//! Bugs planted into copies of the scheduler, each of which the simulator must catch: what a
//! checker does not catch, it does not check.
//!
//! A plant is a change of the sources' text. The copy is compiled, the simulator (`tests/sim`) is
//! compiled against it, and lives until something is wrong. What it says then is printed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Lives that a copy is given. The unchanged scheduler survives them.
const N_LIVES: &str = "400";

/// A bug: in `file`, `right` becomes `wrong`.
struct Plant {
    what: &'static str,
    file: &'static str,
    right: &'static str,
    wrong: &'static str,
}

const PLANTS: [Plant; 45] = [
    Plant {
        what: "an end leaks its pages",
        file: "machine.rs",
        right: "            self.pools.forfeit(slot);\n",
        wrong: "            let _ = slot;\n",
    },
    Plant {
        what: "a page is freed twice",
        file: "pool.rs",
        right: "(0, None) => self.free.push(page),",
        wrong: "(0, None) => self.free.extend([page, page]),",
    },
    Plant {
        what: "a victim keeps its pages",
        file: "preempt.rs",
        right: "        pools.forfeit(victim);\n",
        wrong: "        let _ = victim;\n",
    },
    Plant {
        what: "a window gives a page back one token early",
        file: "pages.rs",
        right: "(n_computed + 1).saturating_sub",
        wrong: "(n_computed + 2).saturating_sub",
    },
    Plant {
        what: "who found no room is not asked again",
        file: "machine.rs",
        right: "let now = (self.pools.n_returns(), self.roster.queue().n_changes());",
        wrong: "let now = (last.n_returns, self.roster.queue().n_changes());",
    },
    Plant {
        what: "equal tokens after other tokens pass for the same",
        file: "prefix.rs",
        right: "self.parent(node) == Some(parent) && self.tokens(node) == tokens",
        wrong: "self.parent(node).is_some() && self.tokens(node) == tokens",
    },
    Plant {
        what: "a page that is taken is still found by what it held",
        file: "pool.rs",
        right: "            prefixes.unset_page(node, self.group);\n",
        wrong: "            let _ = (node, prefixes);\n",
    },
    Plant {
        what: "a page is let go while another holds it",
        file: "pool.rs",
        right: "        *n_holders -= 1;\n",
        wrong: "        *n_holders = 0;\n",
    },
    Plant {
        what: "salts are not looked at",
        file: "siblings.rs",
        right: "self.find(newcomer.cache_salt(), newcomer.n_cacheable(), &read)",
        wrong: "self.find(&None, newcomer.n_cacheable(), &read)",
    },
    Plant {
        what: "a prompt is found whole and nothing is left to compute",
        file: "sequence.rs",
        right: "if scores { 0 } else { self.n_tokens() - 1 }",
        wrong: "if scores { 0 } else { self.n_tokens() }",
    },
    Plant {
        what: "positions that are to be scored are taken from the cache",
        file: "sequence.rs",
        right: "if scores { 0 } else { self.n_tokens() - 1 }",
        wrong: "if scores { self.n_tokens() - 1 } else { self.n_tokens() - 1 }",
    },
    Plant {
        what: "a row follows the first row instead of its own",
        file: "sequence.rs",
        right: "self.late_answer_idx = answer_idx;",
        wrong: "self.late_answer_idx = answer_idx.min(0);",
    },
    Plant {
        what: "a row is planned for the last token",
        file: "sequence.rs",
        right: "if is_last { 0 } else",
        wrong: "if is_last && n_tokens == 0 { 0 } else",
    },
    Plant {
        what: "a row that was void when it landed counts as computed",
        file: "sequence.rs",
        right: "            self.n_void_rows -= 1;\n            return;\n",
        wrong: "            self.n_void_rows -= 1;\n",
    },
    Plant {
        what: "what a newcomer takes is not taken from the budget",
        file: "machine.rs",
        right: "            budget.take_newcomer(n_tokens);\n",
        wrong: "            budget.take_newcomer(0);\n",
    },
    Plant {
        what: "the first in turn gives way",
        file: "roster.rs",
        right: "let slot = self.running.pop().expect(\"somebody runs\");",
        wrong: "let slot = self.running.remove(0);",
    },
    Plant {
        what: "a guided row does not wait for what it may sample",
        file: "sequence.rs",
        right: "self.is_held = self.request.is_guided;",
        wrong: "self.is_held = false;",
    },
    Plant {
        what: "a guided row is planned while its token is in flight",
        file: "sequence.rs",
        right: "self.is_held || (self.request.is_guided && self.n_late > 0)",
        wrong: "self.is_held",
    },
    Plant {
        what: "wrong guesses count as computed",
        file: "sequence.rs",
        right: "self.n_computed += row.n_tokens - row.n_candidates + n_accepted;",
        wrong: "self.n_computed += row.n_tokens;",
    },
    Plant {
        what: "pages of wrong guesses are kept",
        file: "machine.rs",
        right: "self.pools.truncate(slot, sequence.n_planned());",
        wrong: "let _ = slot;",
    },
    Plant {
        what: "what was sampled behind a stop token is told",
        file: "machine.rs",
        right: "if sequence.is_stopped() {",
        wrong: "if sequence.is_stopped() && n_pushed == 0 {",
    },
    Plant {
        what: "a row is planned ahead of guesses",
        file: "sequence.rs",
        right: "if self.speculates && self.n_late > 0 {",
        wrong: "if self.speculates && self.n_late > 1 {",
    },
    Plant {
        what: "guesses reach beyond the end",
        file: "sequence.rs",
        right: "saturating_sub(self.n_tokens() + 1)",
        wrong: "saturating_sub(self.n_tokens())",
    },
    Plant {
        what: "guesses are not taken from the budget",
        file: "machine/rows.rs",
        right: "budget.take_spare(grant.n_candidates);",
        wrong: "budget.take_spare(0);",
    },
    Plant {
        what: "guesses take pages that are not there",
        file: "machine/rows.rs",
        right: "pools.n_affordable(grant.slot, first, n_max.min(budget.n_spare()))",
        wrong: "n_max.min(budget.n_spare())",
    },
    Plant {
        what: "a sibling writes the page that it should copy",
        file: "siblings.rs",
        right: "let page = if page_idx < n_full {",
        wrong: "let page = if page_idx <= n_full {",
    },
    Plant {
        what: "a sibling begins behind what is not computed yet",
        file: "siblings.rs",
        right: "if sequence.n_computed() < n_tokens {",
        wrong: "if sequence.n_computed() + 1 < n_tokens {",
    },
    Plant {
        what: "siblings of different salts share",
        file: "siblings.rs",
        right: "&& sequence.cache_salt() == newcomer.cache_salt();",
        wrong: ";",
    },
    Plant {
        what: "a page is taken for a sibling and nothing copied",
        file: "siblings.rs",
        right: "self.moves.push(PageMove::Copy { group, from: theirs, to });",
        wrong: "let _ = (group, &self.moves);",
    },
    Plant {
        what: "a sibling begins with what has left the window",
        file: "siblings.rs",
        right: "pool.tables[slot.idx()].first_idx <= first_idx",
        wrong: "pool.tables[slot.idx()].first_idx <= first_idx + 1",
    },
    Plant {
        what: "what falls out of the cache is not copied",
        file: "pool.rs",
        right: "moves.push(PageMove::Out { group: self.group, from: page, to });",
        wrong: "let _ = (to, &moves);",
    },
    Plant {
        what: "what comes back is not copied",
        file: "adopt.rs",
        right: "moves.push(PageMove::In { group, from, to });",
        wrong: "let _ = (from, &moves);",
    },
    Plant {
        what: "a host's page that is to be read is overwritten before",
        file: "host.rs",
        right: "let page = self.free.pop().or_else(oldest)?;",
        wrong: "let page = self.free.pop().or_else(oldest).unwrap_or(HostPageId(0));",
    },
    Plant {
        what: "a host's page is found by what it held before",
        file: "host.rs",
        right: "            prefixes.unset_host_page(before, self.group);\n",
        wrong: "            let _ = before;\n",
    },
    Plant {
        what: "pages move after what is behind them",
        file: "machine.rs",
        right: "        plan.moves.append(&mut self.pools.moves);\n",
        wrong: "        plan.moves.extend(self.pools.moves.drain(..).rev());\n",
    },
    Plant {
        what: "levels are upside down",
        file: "queue.rs",
        right: "self.priorities.n_levels_below_first(turn.due(), n_steps)",
        wrong: "self.priorities.n_levels_below_first(n_steps, turn.due())",
    },
    Plant {
        what: "who waits never rises",
        file: "limits.rs",
        right: "due.saturating_sub(n_steps).div_ceil",
        wrong: "(due + 0 * n_steps).div_ceil",
    },
    Plant {
        what: "what a tenant was served is not counted",
        file: "queue.rs",
        right: ".n_served += n_tokens as u64;",
        wrong: ".n_served += 0 * n_tokens as u64;",
    },
    Plant {
        what: "a tenant that comes back is owed what it left unused",
        file: "queue.rs",
        right: "*n_served = self.n_served_last.max(*n_served);",
        wrong: "*n_served = 0 * self.n_served_last + *n_served;",
    },
    Plant {
        what: "a newcomer goes before who was preempted",
        file: "queue.rs",
        right: "if new_level >= level(turn)",
        wrong: "if new_level > level(turn)",
    },
    Plant {
        what: "a turn in a step is not counted before the next one",
        file: "machine.rs",
        right: "        self.roster.serve(grant.slot, end);\n",
        wrong: "        if grant.n_tokens == 1 { self.roster.serve(grant.slot, end); }\n",
    },
    Plant {
        what: "a clock that goes back gives time back",
        file: "machine.rs",
        right: "self.now = self.now.max(now);",
        wrong: "self.now = now;",
    },
    Plant {
        what: "a queue timeout ends who has had a slot",
        file: "sequence.rs",
        right: ".filter(|_| !self.has_begun)",
        wrong: ".filter(|_| true || self.has_begun)",
    },
    Plant {
        what: "an end leaves its deadline behind",
        file: "expiry.rs",
        right: "self.moments.remove(&(until, request))",
        wrong: "self.moments.contains(&(until, request))",
    },
    Plant {
        what: "a deadline that has come has not passed",
        file: "expiry.rs",
        right: "(until <= now)",
        wrong: "(until < now)",
    },
];

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
