//! How fast weights get from files to devices, beside what the machine can do at all.
//!
//! `cargo bench --bench loading [-- --gib 4] [--ranks 8] [--dir DIR] [--made DIR] [--json]`
//!
//! A synthetic checkpoint is written, loaded by the shipped code, and removed; with `--made` it
//! stays in that folder, where the next run finds it. The devices are
//! those of a virtual node that counts and does not compute: a copy from pinned memory to a device
//! costs the processor nothing there, as it costs nothing where a copy engine does it, and the
//! device's memory takes none of the host's. So what is timed is everything up to the pinned
//! memory; a real link (PCIe 5: 50 GB/s for each GPU) is faster than the disks and processors that
//! this is for, and is not shown. Getting the pinned memory is part of what is timed. Beside it, in
//! the same run: the same checkpoint cut for its ranks by `lnserve shard`; a plain parallel read of
//! the same bytes, with buffers that are used again, on a thread a core; the same past the page
//! cache; a plain copy from memory to memory, of which the goal is a share, and one from memory
//! into 8 MiB a thread, which stay in the processor's caches as the loader's pieces should. Both
//! write to memory that they have used before. *Cold* means that the files were dropped from the
//! page cache, *warm* that the loader has loaded them once before: a server that starts again. How
//! fast the system gives what it has in memory depends on how it got there, by a factor of four.

use std::fs::{self, File, OpenOptions};
use std::ops::ControlFlow;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use anyhow::{Context, ensure};
use benches::Report;
use engine::{DeviceKind, EngineConfig, KvDtype, boot_watched};
use rustix::fs::{Advice, OFlags, fadvise};
use weights::presets::preset;
use weights::sharded::write_sharded;
use weights::synthetic::{SyntheticConfig, SyntheticFormat, write_synthetic};
use weights::{Checkpoint, FfnSpec, MixerSpec};

/// What is to be reached, of a plain read cold and of a plain copy warm.
const GOAL_COLD: f64 = 0.9;
const GOAL_WARM: f64 = 0.7;

/// Memory beyond the destination that a rank may take.
const RESIDENT_BYTES_MAX: f64 = (256 << 20) as f64;

/// Bytes of a read, as the loader's own.
const READ_BYTES: usize = 8 << 20;

/// What disks read at once, and memory is aligned to where the page cache is passed by.
const BLOCK_BYTES: usize = 4096;

/// Memory that a plain copy goes through, for each thread: more than the processor's caches hold.
const N_COPIED_BYTES: usize = 512 << 20;

/// Rounds, of which the median counts.
const N_ROUNDS: usize = 3;

fn main() -> anyhow::Result<ExitCode> {
    if !harness::is_dry() {
        let (name, value) = harness::DRY;
        let mut again = Command::new(std::env::current_exe()?);
        let status = again.args(std::env::args_os().skip(1)).env(name, value).status()?;
        return Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let report = Report::new("loading");
    let n_gib: f64 = argument("--gib")?.unwrap_or(4.0);
    let n_ranks: usize = argument("--ranks")?.unwrap_or(8);
    let parent = argument::<PathBuf>("--dir")?.unwrap_or_else(std::env::temp_dir);
    let made: Option<PathBuf> = argument("--made")?;
    let removed = Removed(parent.join(format!("lnserve-loading-{}", std::process::id())));
    let [files, cut] = make(made.as_deref().unwrap_or(&removed.0), n_gib, n_ranks)?;
    report.note(&format!(
        "{:.2} GB in {} files for {n_ranks} ranks, {} threads read beside them",
        files.n_bytes() as f64 / 1e9,
        files.files.len(),
        n_threads()
    ));
    let cold = Rates::measure([&files, &cut], n_ranks, true)?;
    let warm = Rates::measure([&files, &cut], n_ranks, false)?;
    let copied = warm.copied;
    let near = median((0..N_ROUNDS).map(|_| copy(files.n_bytes(), READ_BYTES)).collect());
    for (name, rates) in [("cold", &cold), ("warm", &warm)] {
        report.row(&format!("{name}: loader"), rates.loaded, "GB/s");
        report.row(&format!("{name}: loader, files cut for the ranks"), rates.cut, "GB/s");
        report.row(&format!("{name}: plain parallel read"), rates.read, "GB/s");
        report.row(&format!("{name}: the same past the page cache"), rates.direct, "GB/s");
    }
    report.row("memory to memory", copied, "GB/s");
    report.row("memory to the processor's caches", near, "GB/s");
    let ratios = [cold.loaded / cold.read, warm.loaded / copied, warm.cut / copied];
    report.row("cold: loader of a plain read", ratios[0], "times");
    report.row("warm: loader of a plain copy", ratios[1], "times");
    report.row("warm: loader of a plain copy, files cut for the ranks", ratios[2], "times");
    for (name, rates) in [("cold", &cold), ("warm", &warm)] {
        let row = format!("{name}: files cut for the ranks of whole ones");
        report.row(&row, rates.cut / rates.loaded, "times");
    }
    let resident = cold.resident.max(warm.resident) / n_ranks as f64;
    report.row("resident beyond the destination, a rank", resident / f64::from(1 << 20), "MiB");
    report.note(&format!(
        "goals: {GOAL_COLD} cold {}, {GOAL_WARM} warm {}, with files cut for the ranks {}",
        reached(ratios[0] >= GOAL_COLD),
        reached(ratios[1] >= GOAL_WARM),
        reached(ratios[2] >= GOAL_WARM)
    ));
    ensure!(resident <= RESIDENT_BYTES_MAX, "a rank takes {resident} bytes beyond its weights");
    Ok(ExitCode::SUCCESS)
}

/// Whole files and those cut for the ranks, made where they are not there.
fn make(dir: &Path, n_gib: f64, n_ranks: usize) -> anyhow::Result<[Files; 2]> {
    let [whole, cut] = ["whole", "cut"].map(|name| dir.join(name));
    if !whole.exists() {
        write(&whole, n_gib)?;
    }
    if !cut.exists() {
        let go_on = &mut |_, _| ControlFlow::Continue(());
        write_sharded(&Checkpoint::open(&whole)?, &cut, n_ranks, go_on)?;
    }
    Ok([Files::open(&whole)?, Files::open(&cut)?])
}

fn reached(is_reached: bool) -> &'static str {
    if is_reached { "reached" } else { "MISSED" }
}

/// The value behind a flag of the command line.
fn argument<T: std::str::FromStr>(flag: &str) -> anyhow::Result<Option<T>> {
    let mut arguments = std::env::args().skip_while(|argument| argument != flag);
    if arguments.next().is_none() {
        return Ok(None);
    }
    let value = arguments.next().with_context(|| format!("{flag} wants a value"))?;
    value.parse().map(Some).map_err(|_| anyhow::anyhow!("{flag} {value} is no value for it"))
}

/// A folder that goes when this goes.
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A checkpoint of LN-Ultra's proportions of attention and FFN, so that rows and columns are cut as
/// there, with as many blocks as make the bytes.
fn write(dir: &Path, n_gib: f64) -> anyhow::Result<()> {
    let mut spec = preset("nano-8b").context("there is no such preset")?;
    let is_attention = |mixer: &MixerSpec| matches!(mixer, MixerSpec::Attention(_));
    let whole = spec.blocks.iter().find(|block| {
        block.mixer.as_ref().is_some_and(is_attention)
            && matches!(block.ffn, Some(FfnSpec::SwiGlu { .. }))
    });
    let block = whole.context("it has a whole block")?.clone();
    // Few, so that most bytes are blocks'; what ends an answer is one of them.
    (spec.vocab_size, spec.bos_token, spec.eos_tokens) = (16_384, Some(0), vec![1]);
    let mut config =
        SyntheticConfig { spec, format: SyntheticFormat::ModelOptFp8, n_shards: 4, seed: 1 };
    let bytes_of = |config: &mut SyntheticConfig, n_blocks: usize| {
        config.spec.blocks = vec![block.clone(); n_blocks];
        config.n_bytes() as f64
    };
    let (one, two) = (bytes_of(&mut config, 1), bytes_of(&mut config, 2));
    let n_blocks = 1.0 + (n_gib * f64::from(1 << 30) - one) / (two - one);
    bytes_of(&mut config, (n_blocks.round() as usize).max(1));
    write_synthetic(dir, &config, &mut |_, _| {})?;
    Ok(())
}

/// The files of a checkpoint.
struct Files {
    dir: PathBuf,
    files: Vec<(PathBuf, File, u64)>,
}

/// Whether reads go through the page cache.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cache {
    Through,
    Past,
}

impl Files {
    fn open(dir: &Path) -> anyhow::Result<Files> {
        let mut files = Vec::new();
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "safetensors") {
                let file = File::open(&path)?;
                file.sync_all()?;
                let n_bytes = file.metadata()?.len();
                files.push((path, file, n_bytes));
            }
        }
        Ok(Files { dir: dir.to_owned(), files })
    }

    fn n_bytes(&self) -> u64 {
        self.files.iter().map(|(_, _, n_bytes)| n_bytes).sum()
    }

    /// Has the system forget what it holds of them, or hold what the loader leaves there.
    fn prepare(&self, is_cold: bool, n_ranks: usize) -> anyhow::Result<()> {
        if is_cold { self.forget() } else { load(&self.dir, n_ranks).map(drop) }
    }

    fn forget(&self) -> anyhow::Result<()> {
        for (_, file, _) in &self.files {
            fadvise(file, 0, None, Advice::DontNeed)?;
        }
        Ok(())
    }

    /// Reads everything on as many threads as there are, each its own run of it, as the system
    /// likes it best; the rate. The last bytes of a file that are no whole block are left out where
    /// the cache is.
    fn read(&self, cache: Cache) -> anyhow::Result<f64> {
        let pieces: Vec<(&Path, u64, usize)> = self
            .files
            .iter()
            .flat_map(|(path, _, n_bytes)| {
                (0..*n_bytes).step_by(READ_BYTES).map(move |begin| {
                    (path.as_path(), begin, READ_BYTES.min((n_bytes - begin) as usize))
                })
            })
            .collect();
        let runs = pieces.chunks(pieces.len().div_ceil(n_threads()));
        let began = Instant::now();
        std::thread::scope(|scope| {
            let threads: Vec<_> = runs.map(|run| scope.spawn(|| read_run(run, cache))).collect();
            threads.into_iter().try_for_each(|thread| thread.join().expect("no reader panics"))
        })?;
        Ok(self.n_bytes() as f64 / began.elapsed().as_secs_f64() / 1e9)
    }
}

/// Reads pieces of files, one after the other.
fn read_run(pieces: &[(&Path, u64, usize)], cache: Cache) -> std::io::Result<()> {
    let flags = if cache == Cache::Past { OFlags::DIRECT } else { OFlags::empty() };
    let mut memory = vec![0; READ_BYTES + BLOCK_BYTES];
    let begin = memory.as_ptr().align_offset(BLOCK_BYTES);
    let buffer = &mut memory[begin..begin + READ_BYTES];
    let mut opened: Option<(&Path, File)> = None;
    for &(path, offset, n_bytes) in pieces {
        let n_bytes = match cache {
            Cache::Through => n_bytes,
            Cache::Past => n_bytes / BLOCK_BYTES * BLOCK_BYTES,
        };
        if opened.as_ref().is_none_or(|(name, _)| *name != path) {
            let file =
                OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(path)?;
            fadvise(&file, 0, None, Advice::Sequential)?;
            opened = Some((path, file));
        }
        let (_, file) = opened.as_ref().expect("it was opened");
        file.read_exact_at(&mut buffer[..n_bytes], offset)?;
    }
    Ok(())
}

/// Rates in GB/s, and memory.
struct Rates {
    loaded: f64,
    /// Of the checkpoint that was cut for its ranks.
    cut: f64,
    read: f64,
    direct: f64,
    /// From memory to memory.
    copied: f64,
    /// Bytes beyond what was resident before, of all ranks.
    resident: f64,
}

impl Rates {
    /// Each in turn, so that a machine that changes its mind changes it for all.
    fn measure(
        [files, cut_files]: [&Files; 2],
        n_ranks: usize,
        is_cold: bool,
    ) -> anyhow::Result<Rates> {
        let [mut loaded, mut cut, mut read, mut direct, mut copied] = [const { Vec::new() }; 5];
        let mut resident = 0f64;
        for _ in 0..N_ROUNDS {
            files.prepare(is_cold, n_ranks)?;
            read.push(files.read(Cache::Through)?);
            for (files, rates) in [(files, &mut loaded), (cut_files, &mut cut)] {
                files.prepare(is_cold, n_ranks)?;
                let (rate, n_bytes) = load(&files.dir, n_ranks)?;
                rates.push(rate);
                resident = resident.max(n_bytes);
            }
            files.prepare(is_cold, n_ranks)?;
            direct.push(files.read(Cache::Past)?);
            copied.push(copy(files.n_bytes(), N_COPIED_BYTES));
        }
        let rates = [loaded, cut, read, direct, copied].map(median);
        let [loaded, cut, read, direct, copied] = rates;
        Ok(Rates { loaded, cut, read, direct, copied, resident })
    }
}

/// Boots and shuts down; the rate at which weights were loaded, and the memory that it took.
fn load(dir: &Path, n_ranks: usize) -> anyhow::Result<(f64, f64)> {
    let checkpoint = Arc::new(Checkpoint::open(dir)?);
    let n_bytes: u64 = checkpoint.tensors().map(|tensor| tensor.n_bytes).sum();
    let config = EngineConfig {
        device: DeviceKind::Cuda,
        n_ranks,
        n_threads: None,
        n_slots: 1,
        n_waiting_max: 1,
        n_tokens_per_step: 16,
        n_context_tokens: Some(256),
        kv_dtype: Some(KvDtype::Fp8),
        kv_bytes: None,
        overlaps_steps: false,
        caches_prefixes: false,
        policy: engine::Policy::plain(),
        host_kv: None,
        n_candidates_max: 0,
        is_deterministic: false,
        rounds_inputs: false,
    };
    let before = resident("VmRSS:")?;
    fs::write("/proc/self/clear_refs", "5").context("the peak can be set back")?;
    // The first bytes that are sent are norms and scales, before any file is read.
    let sent = Arc::new(Mutex::new(None));
    let times = Arc::clone(&sent);
    let progress = move |_, _| {
        let (now, mut times) = (Instant::now(), times.lock().expect("nobody panics with it"));
        let (first, _) = times.unwrap_or((now, now));
        *times = Some((first, now));
    };
    let engine = boot_watched(Arc::clone(&checkpoint), &config, Arc::new(progress))?;
    let taken = resident("VmHWM:")? - before;
    engine.shutdown();
    ensure!(checkpoint.n_bytes_read() == n_bytes, "{} of {n_bytes}", checkpoint.n_bytes_read());
    let (first, last) = sent.lock().expect("nobody panicked").context("something was sent")?;
    Ok((n_bytes as f64 / (last - first).as_secs_f64() / 1e9, taken))
}

/// A line of the process's status, in bytes.
fn resident(name: &str) -> anyhow::Result<f64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.split_whitespace().next()).context("there is a line")?;
    Ok(number.parse::<f64>()? * 1024.0)
}

/// From memory to `n_to_bytes` of it for each thread, piece by piece as the loader has them; the
/// rate.
fn copy(n_bytes: u64, n_to_bytes: usize) -> f64 {
    let n_each = n_bytes as usize / n_threads();
    let work = || {
        let from = vec![1u8; N_COPIED_BYTES.min(n_each)];
        let mut to = vec![2u8; n_to_bytes];
        let began = Instant::now();
        let mut n_done = 0;
        while n_done < n_each {
            let begin = n_done % (from.len() - READ_BYTES + 1);
            let to_begin = n_done % (to.len() - READ_BYTES + 1);
            to[to_begin..to_begin + READ_BYTES].copy_from_slice(&from[begin..begin + READ_BYTES]);
            std::hint::black_box(&to);
            n_done += READ_BYTES;
        }
        n_done as f64 / began.elapsed().as_secs_f64()
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..n_threads()).map(|_| scope.spawn(work)).collect();
        let rates = threads.into_iter().map(|thread| thread.join().expect("no copier panics"));
        rates.sum::<f64>() / 1e9
    })
}

fn n_threads() -> usize {
    std::thread::available_parallelism().map_or(1, |n_cores| n_cores.get())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
