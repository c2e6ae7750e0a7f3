//! `lnserve verify`: is every byte of a checkpoint there, and sound? With a picture of where not.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use weights::BlockSpec;
use weights::verify::{Half, Place, Problem, Survey};

use super::CliError;
use super::table::{grouped, table};
use crate::config::{ByteSize, VerifyCommand};
use crate::progress::bar;

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
    let bar = bar("", of_tensors + of_files);
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

#[cfg(test)]
mod tests {
    use weights::presets::preset;
    use weights::verify::VerifyError;

    use super::*;

    /// Blocks of LN-Ultra: a whole one, one without attention, one without anything.
    fn blocks() -> [BlockSpec; 3] {
        let spec = preset("ultra-253b").expect("a preset");
        let find = |has_mixer, has_ffn| {
            let is_it = |block: &&BlockSpec| {
                (block.mixer.is_some(), block.ffn.is_some()) == (has_mixer, has_ffn)
            };
            spec.blocks.iter().find(is_it).cloned()
        };
        let whole = find(true, true).expect("it has whole ones");
        let absent = BlockSpec { mixer: None, ffn: None };
        [whole, find(false, true).expect("most have no attention"), absent]
    }

    fn problems(places: &[Place]) -> Vec<Problem> {
        let of = |place: &Place| Problem {
            place: place.clone(),
            shard: None,
            error: VerifyError::ChecksumLine { line: 1 },
        };
        places.iter().map(of).collect()
    }

    #[test]
    fn the_picture_has_a_cell_for_each_half_of_a_block_where_it_is_broken() {
        let sound = "  blocks 0 to 2\n  mixer  █··\n  ffn    ██·\n\
                     \x20 embedding, last norm and head █\n  █ sound, ✗ broken, · absent\n";
        assert_eq!(picture(&blocks(), &[], false), sound);
        // A file is nowhere in the model.
        assert_eq!(picture(&blocks(), &problems(&[Place::Whole]), false), sound);
        let broken = [
            Place::Block(0, Half::Ffn),
            Place::Block(1, Half::Ffn),
            // What should not be there can be broken all the same.
            Place::Block(2, Half::Mixer),
            Place::Ends,
        ];
        assert_eq!(
            picture(&blocks(), &problems(&broken), false),
            "  blocks 0 to 2\n  mixer  █·✗\n  ffn    ✗✗·\n\
             \x20 embedding, last norm and head ✗\n  █ sound, ✗ broken, · absent\n"
        );
        let (good, bad) = ("\x1b[32m█\x1b[0m", "\x1b[31m✗\x1b[0m");
        let coloured = picture(&blocks(), &problems(&broken), true);
        assert!(coloured.contains(&format!("  mixer  {good}·{bad}\n")), "{coloured}");
        assert!(coloured.contains(&format!("  ffn    {bad}{bad}·\n")), "{coloured}");
    }

    #[test]
    fn the_picture_of_many_blocks_breaks_its_lines_and_counts_on() {
        let [whole, ..] = blocks();
        let blocks = vec![whole; 2 * N_BLOCKS_PER_LINE + 3];
        let last = 2 * N_BLOCKS_PER_LINE + 1;
        let broken = [Place::Block(N_BLOCKS_PER_LINE, Half::Mixer), Place::Block(last, Half::Ffn)];
        let text = picture(&blocks, &problems(&broken), false);
        let lines: Vec<&str> = text.lines().collect();
        let row = |broken_idx: Option<usize>, n: usize| -> String {
            (0..n).map(|idx| if Some(idx) == broken_idx { '✗' } else { '█' }).collect()
        };
        let n = N_BLOCKS_PER_LINE;
        let expected = [
            "  blocks 0 to 63".to_owned(),
            format!("  mixer  {}", row(None, n)),
            format!("  ffn    {}", row(None, n)),
            "  blocks 64 to 127".to_owned(),
            format!("  mixer  {}", row(Some(0), n)),
            format!("  ffn    {}", row(None, n)),
            "  blocks 128 to 130".to_owned(),
            format!("  mixer  {}", row(None, 3)),
            format!("  ffn    {}", row(Some(1), 3)),
        ];
        assert_eq!(lines[..9], expected);
    }

    #[test]
    fn the_report_names_problems_files_and_numbers() {
        use weights::synthetic::{SyntheticConfig, SyntheticFormat, write_synthetic};
        let name = format!("lnserve-verify-{}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        let spec = preset("tiny").expect("a preset");
        let config = SyntheticConfig { spec, format: SyntheticFormat::Bf16, n_shards: 2, seed: 1 };
        write_synthetic(&dir, &config, &mut |_, _| {}).expect("it can be written");
        let mut survey = Survey::open(&dir);
        let sound = report(&survey, false);
        assert!(sound.contains("in 2 files, 0 checksums: all sound"), "{sound}");
        assert!(!sound.contains("BROKEN") && sound.contains("  embedding, last norm and head █"));
        let shard = survey.shards[1].file.clone();
        let error = || VerifyError::NotFinite {
            tensor: "model.layers.1.mlp.up_proj.weight".to_owned(),
            element_idx: 7,
            value: f32::NAN,
        };
        let place = Place::Block(1, Half::Ffn);
        let problem =
            || Problem { place: place.clone(), shard: Some(shard.clone()), error: error() };
        survey.problems.push(problem());
        let text = report(&survey, false);
        let line =
            format!("  ✗ {shard}: `model.layers.1.mlp.up_proj.weight` holds NaN at element 7\n");
        assert!(text.starts_with(&line) && text.contains("0 checksums: 1 problem\n"), "{text}");
        let rows: Vec<&str> = text.lines().filter(|line| line.contains("safetensors ")).collect();
        assert!(
            rows.len() == 2 && rows[0].contains("sound") && rows[1].contains("BROKEN"),
            "{text}"
        );
        survey.problems.extend((0..N_SHOWN_MAX + 1).map(|_| problem()));
        let text = report(&survey, false);
        assert!(text.contains("\n  and 2 more\n") && text.contains(": 52 problems"), "{text}");
        std::fs::remove_dir_all(&dir).expect("it is ours");
    }
}
