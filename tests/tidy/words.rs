//! Words that may not stand in code, or only in the files that are there for them.

use crate::finding::Finding;
use crate::source::{Source, word_positions};

/// Something that is written only in certain files.
struct Ban {
    pattern: Pattern,
    /// Where it is banned: paths that start so.
    scope: &'static [&'static str],
    /// Where it is allowed all the same.
    allowed: &'static [&'static str],
    remedy: &'static str,
}

enum Pattern {
    /// A word of its own.
    Word(&'static str),
    /// These characters, anywhere.
    Text(&'static str),
}

use Pattern::{Text, Word};

const EVERYWHERE: &[&str] = &[""];
const NOWHERE: &[&str] = &[];
const SCHEDULER: &[&str] = &["scheduler/"];
const PRODUCT: &[&str] = &["engine/", "parallel/", "scheduler/", "server/", "weights/"];
const ENVIRONMENT: &[&str] = &[
    "server/src/config.rs",
    "tests/harness/",
    "tests/sim/",
    "tests/virtual-node/",
    "engine/artifacts/",
];
const PRINTERS: &[&str] =
    &["server/src/main.rs", "server/src/cli/", "benches/", "tests/", "engine/artifacts/"];

const PURE: &str = "the scheduler is a pure state machine: hand the value in as an argument";
const READ_ONCE: &str = "make it a part of the config, which server/src/config.rs reads once";
const PRINT: &str = "libraries speak through tracing, return values and errors";
const BOUNDED: &str = "every queue has a bound: take one with a capacity, from the limits";
const ONE_RUN: &str = "every test runs in every run: assert what is, with a FIXME that says why";

const BANS: &[Ban] = &[
    ban(Text("std::time"), SCHEDULER, NOWHERE, PURE),
    ban(Text("std::thread"), SCHEDULER, NOWHERE, PURE),
    ban(Text("std::fs"), SCHEDULER, NOWHERE, PURE),
    ban(Text("std::sync::mpsc"), SCHEDULER, NOWHERE, PURE),
    ban(Word("tokio"), SCHEDULER, NOWHERE, PURE),
    ban(Word("rand"), SCHEDULER, NOWHERE, PURE),
    ban(Word("tracing"), SCHEDULER, NOWHERE, PURE),
    ban(Text("env::var"), EVERYWHERE, ENVIRONMENT, READ_ONCE),
    ban(Text("env::set_var"), EVERYWHERE, NOWHERE, READ_ONCE),
    ban(Text("dbg!"), EVERYWHERE, NOWHERE, "remove it"),
    ban(Text("todo!"), EVERYWHERE, NOWHERE, "write it"),
    ban(Text("unimplemented!"), EVERYWHERE, NOWHERE, "write it"),
    ban(Word("println!"), EVERYWHERE, PRINTERS, PRINT),
    ban(Word("print!"), EVERYWHERE, PRINTERS, PRINT),
    ban(Text("unbounded"), EVERYWHERE, NOWHERE, BOUNDED),
    ban(Text("mpsc::channel()"), PRODUCT, NOWHERE, BOUNDED),
    ban(Text("mpsc::channel::<"), PRODUCT, &["server/"], BOUNDED),
    ban(Text("#[ignore"), EVERYWHERE, NOWHERE, ONE_RUN),
    ban(Text("#[should_panic"), EVERYWHERE, NOWHERE, "catch the panic and look at its message"),
    ban(Word("too_many_arguments"), EVERYWHERE, NOWHERE, "make the arguments a struct"),
];

const fn ban(
    pattern: Pattern,
    scope: &'static [&'static str],
    allowed: &'static [&'static str],
    remedy: &'static str,
) -> Ban {
    Ban { pattern, scope, allowed, remedy }
}

/// Files that may have `unsafe`, each with a `SAFETY:` comment.
fn may_be_unsafe(path: &str) -> bool {
    let kernel = path.strip_prefix("engine/src/kernels/");
    path.starts_with("engine/src/device/")
        || kernel.is_some_and(|rest| {
            let is_launcher = rest.ends_with("/mod.rs") || rest.ends_with("/cuda.rs");
            is_launcher && rest.matches('/').count() == 1
        })
        || path == "parallel/src/nccl.rs"
        || path == "parallel/src/nccl/library.rs"
        || path == "weights/src/source/mapped.rs"
        // It answers C callers and holds the memory of devices.
        || path.starts_with("tests/virtual-node/")
        || path.starts_with("engine/artifacts/")
}

/// Words in files where they do not belong.
pub(crate) fn banned(source: &Source) -> Vec<Finding> {
    let starts = |prefixes: &[&str]| prefixes.iter().any(|prefix| source.path.starts_with(prefix));
    let mut findings = Vec::new();
    for ban in BANS.iter().filter(|ban| starts(ban.scope) && !starts(ban.allowed)) {
        let (what, lines): (_, Vec<usize>) = match ban.pattern {
            Pattern::Word(word) => (word, source.lines_with_word(word).collect()),
            Pattern::Text(text) => (text, source.lines_with(text).collect()),
        };
        findings.extend(lines.into_iter().map(|line_idx| {
            Finding::at(&source.path, line_idx, format!("{what} does not belong here"), ban.remedy)
        }));
    }
    findings
}

/// `unsafe` in a file that is not there for it, or that does not say why it is sound.
pub(crate) fn unsafe_code(source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    for line_idx in source.lines_with_word("unsafe") {
        let mut add = |problem: &str, remedy: &str| {
            findings.push(Finding::at(&source.path, line_idx, problem.to_owned(), remedy));
        };
        if !may_be_unsafe(&source.path) {
            let homes = "move it to engine/src/device, a kernel's launcher, parallel/src/nccl.rs \
                         or weights/src/source.rs";
            add("unsafe code outside the files that are there for it", homes);
        } else if !is_type(&source.code[line_idx]) && !says_why_safe(source, line_idx) {
            add("unsafe code without a reason", "say why it is sound in a `// SAFETY:` line above");
        }
    }
    findings
}

/// Whether the line has `unsafe` only as part of a function pointer's type.
fn is_type(line: &str) -> bool {
    word_positions(line, "unsafe").all(|at| {
        let rest = line[at + "unsafe".len()..].trim_start();
        // What stands between the quotes of the ABI is blanked.
        let rest = rest.trim_start_matches("extern").trim_start_matches([' ', '"']);
        rest.starts_with("fn(")
    })
}

/// Looks for the reason on the line, and above it up to the start of its statement and the
/// comments and attributes over that.
fn says_why_safe(source: &Source, line_idx: usize) -> bool {
    for idx in (0..=line_idx).rev() {
        let comment = &source.comments[idx];
        if comment.contains("SAFETY:") || comment.contains("# Safety") {
            return true;
        }
        let code = source.code[idx].trim();
        let blank = code.is_empty() && comment.trim().is_empty();
        let ends_statement = code.ends_with([';', '{', '}']);
        if blank || (idx != line_idx && ends_statement) {
            return false;
        }
    }
    false
}

/// Names of metrics outside the one file that holds them all, and names of ours without a unit.
pub(crate) fn metric_names(source: &Source) -> Vec<Finding> {
    const HOME: &str = "server/src/metrics.rs";
    // Tests name what they look for.
    let may_name = source.path == HOME || source.path.starts_with("tests/");
    let mut findings = Vec::new();
    for literal in source.literals.iter().filter(|literal| is_metric_name(&literal.text)) {
        let name = &literal.text;
        let mut add = |problem: String, remedy: &str| {
            findings.push(Finding::at(&source.path, literal.line_idx, problem, remedy));
        };
        if !may_name {
            add(format!("metric {name}"), "names, units and help are in server/src/metrics.rs");
        } else if name.starts_with(OURS) && !UNITS.iter().any(|unit| name.ends_with(unit)) {
            let remedy = format!("end it with one of {}", UNITS.join(", "));
            add(format!("metric {name} has no unit"), &remedy);
        }
    }
    findings
}

/// How our own metrics begin; the others' names are theirs to choose.
const OURS: &str = "lnserve_";

const UNITS: &[&str] = &[
    "_total",
    "_seconds",
    "_bytes",
    "_ratio",
    "_requests",
    "_connections",
    "_tokens",
    "_pages",
    "_info",
];

fn is_metric_name(text: &str) -> bool {
    let rest = [OURS, "vllm:", "nv_"].into_iter().find_map(|prefix| text.strip_prefix(prefix));
    let in_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == ':';
    rest.is_some_and(|rest| !rest.is_empty() && rest.chars().all(in_name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(findings: Vec<Finding>) -> Vec<usize> {
        findings.into_iter().map(|finding| finding.line).collect()
    }

    fn banned_lines(path: &str, text: &str) -> Vec<usize> {
        lines(banned(&Source::new(path, text)))
    }

    #[test]
    fn the_scheduler_is_pure() {
        for word in ["std::time", "std::thread", "std::fs", "tokio", "rand", "tracing"] {
            let text = format!("\nuse {word}::x;");
            assert_eq!(banned_lines("scheduler/src/a.rs", &text), [2], "{word}");
            assert_eq!(banned_lines("engine/src/a.rs", &text), [], "{word}");
        }
        assert_eq!(banned_lines("scheduler/src/a.rs", "// std::time\nlet operand = 1;"), []);
    }

    #[test]
    fn the_environment_is_read_in_one_place() {
        let text = "let home = std::env::var(\"HOME\");\nlet all = env::vars();";
        assert_eq!(banned_lines("engine/src/a.rs", text), [1, 2]);
        assert_eq!(banned_lines("tests/exactness.rs", text), [1, 2]);
        assert_eq!(banned_lines("server/src/config.rs", text), []);
        assert_eq!(banned_lines("tests/harness/mod.rs", text), []);
    }

    #[test]
    fn libraries_do_not_print() {
        let text = "println!(\"a\");\nprint!(\"a\");\neprintln!(\"a\");\n\"println!\"";
        assert_eq!(banned_lines("engine/src/a.rs", text), [1, 2]);
        assert_eq!(banned_lines("server/src/cli/chat.rs", text), []);
        assert_eq!(banned_lines("server/src/main.rs", text), []);
    }

    #[test]
    fn nothing_is_left_for_later_or_without_a_bound() {
        for text in [
            "dbg!(x)",
            "todo!()",
            "unimplemented!()",
            "#[ignore = \"slow\"]",
            "#[ignore]",
            "#[should_panic(expected = \"x\")]",
            "mpsc::unbounded_channel()",
            "crossbeam::channel::unbounded()",
            "std::sync::mpsc::channel()",
            "mpsc::channel::<u8>()",
            "#[allow(clippy::too_many_arguments)]",
            "#![expect(clippy::too_many_arguments)]",
        ] {
            assert_eq!(banned_lines("engine/src/a.rs", text), [1], "{text}");
        }
        let good = "mpsc::channel(capacity);\nsync_channel::<u8>(1);\n// dbg!\nlet s = \"todo!\";";
        assert_eq!(banned_lines("engine/src/a.rs", good), []);
    }

    fn unsafe_lines(path: &str, text: &str) -> Vec<usize> {
        lines(unsafe_code(&Source::new(path, text)))
    }

    #[test]
    fn unsafe_code_has_homes() {
        let text = "// SAFETY: because\nunsafe { f() }";
        for home in [
            "engine/src/device/cuda.rs",
            "engine/src/device/simd/avx2.rs",
            "engine/src/kernels/gemm/mod.rs",
            "parallel/src/nccl.rs",
            "weights/src/source/mapped.rs",
        ] {
            assert_eq!(unsafe_lines(home, text), [], "{home}");
        }
        for path in [
            "engine/src/kernels/mod.rs",
            "engine/src/kernels/gemm/cpu.rs",
            "engine/src/model.rs",
            "tests/harness/mod.rs",
        ] {
            assert_eq!(unsafe_lines(path, text), [2], "{path}");
        }
    }

    #[test]
    fn unsafe_code_says_why_it_is_sound() {
        let path = "engine/src/device/cuda.rs";
        for good in [
            "// SAFETY: a\nunsafe { f() }",
            "// SAFETY: a\n// b\n#[inline]\nunsafe { f() }",
            "// SAFETY: a\nlet x =\n    unsafe { f() };",
            "unsafe { f() } // SAFETY: a",
            "/// # Safety\n/// a\npub unsafe fn f() {}",
            "type F = unsafe fn(u8);\ntype G = unsafe extern \"C\" fn(u8);",
            "#![forbid(unsafe_code)]",
        ] {
            assert_eq!(unsafe_lines(path, good), [], "{good}");
        }
        for bad in [
            "f();\nunsafe { f() }",
            "// SAFETY: a\n\nunsafe { f() }",
            "// SAFETY: a\nlet x = unsafe { f() };\nlet y = unsafe { f() };",
        ] {
            assert_eq!(unsafe_lines(path, bad), [bad.lines().count()], "{bad}");
        }
    }

    #[test]
    fn metric_names_have_one_home() {
        let text = "f(\"lnserve_steps_total\");\nf(\"vllm:num_requests\");\nf(\"nv_cpu\");\n\
                    f(\"lnserve_\");\nf(\"lnserve_x is\"); // \"nv_x\"";
        assert_eq!(lines(metric_names(&Source::new("engine/src/a.rs", text))), [1, 2, 3]);
        assert_eq!(lines(metric_names(&Source::new("server/src/metrics.rs", text))), []);
    }

    #[test]
    fn our_metrics_have_units() {
        let text = "\"lnserve_steps\"\n\"lnserve_step_seconds\"\n\"vllm:num_requests_running\"";
        assert_eq!(lines(metric_names(&Source::new("server/src/metrics.rs", text))), [1]);
    }
}
