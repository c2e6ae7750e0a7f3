//! `lnserve verify`: is every byte of a checkpoint there, and sound? With a picture of where not.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use indicatif::{ProgressBar, ProgressStyle};
use weights::BlockSpec;
use weights::verify::{Half, Place, Problem, Survey};

use super::CliError;
use super::table::{grouped, table};
use crate::config::{ByteSize, VerifyCommand};

/// Blocks of a line, as in `inspect`.
const N_BLOCKS_PER_LINE: usize = 64;

/// Problems that are written out.
const N_SHOWN_MAX: usize = 50;

/// Looks a checkpoint over and prints what was found.
///
/// # Errors
/// It is broken, which has been shown.
pub fn run(command: &VerifyCommand, has_colour: bool) -> Result<(), CliError> {
    let mut survey = Survey::open(&command.dir);
    let found = read_all(&survey, command.n_threads);
    survey.problems.extend(found);
    print!("{}", report(&survey, has_colour));
    match survey.problems.len() {
        0 => Ok(()),
        n_problems => Err(CliError::Broken { dir: command.dir.clone(), n_problems }),
    }
}

/// Checks all values and files, on several threads. What was found comes in the tensors' order.
fn read_all(survey: &Survey, n_threads: usize) -> Vec<Problem> {
    let (n_files, n_tensors) = (survey.checksums.len(), survey.tensors.len());
    let of_tensors: u64 = survey.tensors.iter().map(|tensor| tensor.n_bytes).sum();
    let of_files: u64 = survey.checksums.iter().map(|checksum| checksum.n_bytes).sum();
    // Hidden by itself where standard error is not a terminal.
    let look = "{bar:40} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
    let bar = ProgressBar::new(of_tensors + of_files)
        .with_style(ProgressStyle::with_template(look).expect("the template is valid"));
    let (next, found) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
    let work = || {
        loop {
            let idx = next.fetch_add(1, Ordering::Relaxed);
            let problem = match idx.checked_sub(n_files) {
                None => survey.check_file(&survey.checksums[idx], &|n_bytes| bar.inc(n_bytes)),
                Some(tensor_idx) if tensor_idx < n_tensors => {
                    let tensor = &survey.tensors[tensor_idx];
                    let problem = survey.check_tensor(tensor);
                    bar.inc(tensor.n_bytes);
                    problem
                }
                Some(_) => return,
            };
            if let Some(problem) = problem {
                found.lock().expect("nobody panics with it").insert(idx, problem);
            }
        }
    };
    std::thread::scope(|scope| (0..n_threads).for_each(|_| drop(scope.spawn(work))));
    bar.finish_and_clear();
    found.into_inner().expect("nobody panicked with it").into_values().collect()
}

fn report(survey: &Survey, has_colour: bool) -> String {
    let mut text = String::new();
    let mut line = |what: &str| writeln!(text, "{what}").expect("a string takes everything");
    for problem in survey.problems.iter().take(N_SHOWN_MAX) {
        let shard = problem.shard.as_ref().map(|shard| format!("{shard}: ")).unwrap_or_default();
        let said = problem.error.to_string();
        // Many errors name their file themselves.
        let shard = if said.contains(shard.trim_end_matches(": ")) { "" } else { &shard };
        line(&format!("  {} {shard}{said}", mark(true, has_colour)));
    }
    if let Some(n_more) = survey.problems.len().checked_sub(N_SHOWN_MAX + 1) {
        line(&format!("  and {} more", grouped(n_more + 1)));
    }
    if !survey.problems.is_empty() {
        line("");
    }
    let n_bytes: u64 = survey.tensors.iter().map(|tensor| tensor.n_bytes).sum();
    line(&format!(
        "{} tensors of {} in {} files, {} checksums: {}",
        grouped(survey.tensors.len()),
        ByteSize(n_bytes),
        grouped(survey.shards.len()),
        grouped(survey.n_checksums()),
        match survey.problems.len() {
            0 => "all sound".to_owned(),
            1 => "1 problem".to_owned(),
            n => format!("{} problems", grouped(n)),
        }
    ));
    text.push('\n');
    text.push_str(&shards_table(survey));
    if let Some(spec) = &survey.spec {
        text.push('\n');
        text.push_str(&picture(&spec.blocks, &survey.problems, has_colour));
    }
    text
}

fn shards_table(survey: &Survey) -> String {
    let broken: BTreeSet<&str> =
        survey.problems.iter().filter_map(|problem| problem.shard.as_deref()).collect();
    let rows = survey.shards.iter().map(|shard| {
        vec![
            shard.file.clone(),
            grouped(shard.n_tensors),
            ByteSize(shard.n_bytes).to_string(),
            if broken.contains(shard.file.as_str()) { "BROKEN" } else { "sound" }.to_owned(),
        ]
    });
    table(&["file", "tensors", "bytes", ""], &rows.collect::<Vec<_>>())
}

/// Two cells a block, as in `inspect`.
fn picture(blocks: &[BlockSpec], problems: &[Problem], has_colour: bool) -> String {
    let is_broken = |place: Place| problems.iter().any(|problem| problem.place == place);
    let mut text = String::new();
    for (line_idx, line) in blocks.chunks(N_BLOCKS_PER_LINE).enumerate() {
        let first_idx = line_idx * N_BLOCKS_PER_LINE;
        let last_idx = first_idx + line.len() - 1;
        writeln!(text, "  blocks {first_idx} to {last_idx}").expect("a string takes everything");
        for (name, half) in [("mixer", Half::Mixer), ("ffn", Half::Ffn)] {
            write!(text, "  {name:6} ").expect("a string takes everything");
            for (idx, block) in line.iter().enumerate() {
                let is_there = match half {
                    Half::Mixer => block.mixer.is_some(),
                    Half::Ffn => block.ffn.is_some(),
                };
                let cell = match (is_broken(Place::Block(first_idx + idx, half)), is_there) {
                    (false, false) => "·".to_owned(),
                    (is_broken, _) => mark(is_broken, has_colour),
                };
                text.push_str(&cell);
            }
            text.push('\n');
        }
    }
    let ends = mark(is_broken(Place::Ends), has_colour);
    writeln!(text, "  embedding, last norm and head {ends}").expect("a string takes everything");
    let [sound, broken] = [false, true].map(|is_broken| mark(is_broken, has_colour));
    writeln!(text, "  {sound} sound, {broken} broken, · absent")
        .expect("a string takes everything");
    text
}

fn mark(is_broken: bool, has_colour: bool) -> String {
    match (is_broken, has_colour) {
        (true, true) => "\x1b[31m✗\x1b[0m".to_owned(),
        (true, false) => "✗".to_owned(),
        (false, true) => "\x1b[32m█\x1b[0m".to_owned(),
        (false, false) => "█".to_owned(),
    }
}
