//! `virtual-node run`: the environment in which a command finds the node, and what it did there.

use std::ffi::{OsString, c_int};
use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::{AtomicI32, Ordering};

use anyhow::Context;
use clap::Args;
use virtual_node::report::file::Report;
use virtual_node::report::summary::summary;

/// Run a command on virtual H100s.
///
/// The command finds libcuda, libcublasLt and libnccl of the virtual node instead of NVIDIA's, and
/// needs no change and no GPU. Kernels are executed on this machine's processor: right, and slow.
/// Its output, its exit status and the signals that it is sent pass through; what it did on the
/// devices is summed up on standard error when it ends.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  Serve a model on eight devices:
    virtual-node run -- target/release/lnserve serve DIR --device cuda --tp 8
  How much would it launch and move? Memory is address space only, nothing is computed:
    virtual-node run --mode dry --report counters.json -- PROGRAM
  Look for races and for reads of memory that nobody wrote (slow):
    virtual-node run --devices 1 --check races,init -- PROGRAM
  Rank 3 stays away from its 12th collective:
    virtual-node run --fault nccl:rank=3:call=12:absent -- PROGRAM

When something fails:
  A kernel that does what it may not is named on standard error, with the block, the thread and the
  line of PTX; the program sees the CUDA error that a real device would report. Library calls that
  are refused say there which rule they broke. --trace names every call. A program that hangs in a
  collective is told after 10 seconds which rank is missing.
  \"cannot be loaded\": build it first (cargo build --release -p virtual-node).")]
pub(crate) struct RunArguments {
    /// H100s that the command sees, 1 to 8
    #[arg(long, value_name = "N", default_value_t = 8,
          value_parser = clap::value_parser!(u8).range(1..=8))]
    devices: u8,

    /// Run kernels and copies, or only check and count them
    #[arg(long, value_name = "MODE", default_value = "execute", value_parser = ["execute", "dry"])]
    mode: String,

    /// Checks that cost time: races, init, sectors, banks
    #[arg(long, value_name = "LIST", value_delimiter = ',',
          value_parser = ["races", "init", "sectors", "banks", "splits"])]
    check: Vec<String>,

    /// Where the counters go as JSON; %p in the name stands for the process
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,

    /// Cores that run kernels [default: all]
    #[arg(long, value_name = "N")]
    threads: Option<u16>,

    /// Failures on request, for example nccl:rank=3:call=12:absent (or :error, :async-error)
    #[arg(long, value_name = "LIST")]
    fault: Option<String>,

    /// Name every call of the driver and the libraries on standard error
    #[arg(long)]
    trace: bool,

    /// No summary at the end
    #[arg(long)]
    quiet: bool,

    /// The command and its arguments, after --
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// Names under which programs look for the libraries.
const NAMES: &[&str] = &[
    "libcuda.so",
    "libcuda.so.1",
    "libcublasLt.so",
    "libcublasLt.so.12",
    "libnccl.so",
    "libnccl.so.2",
];
const LIBRARY: &str = "libvirtual_node.so";

/// Runs the command, and ends as it ended.
pub(crate) fn run(arguments: &RunArguments) -> anyhow::Result<()> {
    let folder = Folder::new()?;
    for name in NAMES {
        symlink(library()?, folder.0.join(name)).context("linking the library")?;
    }
    let status = {
        let mut child = command(arguments, &folder.0)?
            .spawn()
            .with_context(|| format!("starting {}", arguments.command[0].to_string_lossy()))?;
        wait(&mut child)?
    };
    let reports = folder.reports()?;
    if let Some(path) = &arguments.report {
        write_reports(path, &reports)?;
    }
    if !arguments.quiet {
        let reports: Vec<Report> = reports.into_iter().map(|(_, report)| report).collect();
        eprint!("{}", summary(&reports));
    }
    drop(folder);
    end_as(status)
}

/// A folder that goes away with the command.
struct Folder(PathBuf);

impl Folder {
    fn new() -> anyhow::Result<Folder> {
        let path = std::env::temp_dir().join(format!("virtual-node-{}", std::process::id()));
        // Whatever lies there is of an earlier process with this number.
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(path.join("reports"))
            .with_context(|| format!("creating {}", path.display()))?;
        Ok(Folder(path))
    }

    /// What the command's processes left, by their numbers.
    fn reports(&self) -> anyhow::Result<Vec<(String, Report)>> {
        let mut reports = Vec::new();
        for entry in fs::read_dir(self.0.join("reports"))? {
            let path = entry?.path();
            let process = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let report = serde_json::from_slice(&fs::read(&path)?)
                .with_context(|| format!("reading the report of process {process}"))?;
            reports.push((process, report));
        }
        reports.sort_by(|(one, _), (other, _)| one.cmp(other));
        Ok(reports)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The library that was built together with this program.
fn library() -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe().context("finding this program")?;
    let folder = program.parent().context("finding this program's folder")?;
    let candidates = [folder.join(LIBRARY), folder.join("deps").join(LIBRARY)];
    let found = candidates.iter().find(|path| path.exists());
    found.cloned().with_context(|| {
        format!(
            "there is no {LIBRARY} in {}: cargo build --release -p virtual-node",
            folder.display()
        )
    })
}

fn command(arguments: &RunArguments, folder: &Path) -> anyhow::Result<Command> {
    let mut command = Command::new(&arguments.command[0]);
    command.args(&arguments.command[1..]);
    let mut search = vec![folder.to_owned()];
    if let Some(further) = std::env::var_os("LD_LIBRARY_PATH") {
        search.extend(std::env::split_paths(&further));
    }
    command
        .env("LD_LIBRARY_PATH", std::env::join_paths(search).context("a folder with a colon")?)
        .env("VIRTUAL_NODE_DEVICES", arguments.devices.to_string())
        .env("VIRTUAL_NODE_MODE", &arguments.mode)
        .env("VIRTUAL_NODE_CHECKS", arguments.check.join(","))
        .env("VIRTUAL_NODE_REPORT", folder.join("reports/%p.json"))
        .env("VIRTUAL_NODE_TRACE", if arguments.trace { "1" } else { "0" });
    if let Some(n_threads) = arguments.threads {
        command.env("VIRTUAL_NODE_THREADS", n_threads.to_string());
    }
    if let Some(faults) = &arguments.fault {
        virtual_node::nccl::faults::parse(faults)?;
        command.env("VIRTUAL_NODE_FAULTS", faults);
    }
    Ok(command)
}

/// One process's report goes where it is wanted; several need a `%p` to be kept apart.
fn write_reports(path: &Path, reports: &[(String, Report)]) -> anyhow::Result<()> {
    let name = path.to_string_lossy();
    if reports.len() > 1 && !name.contains("%p") {
        anyhow::bail!("{} processes used devices: put %p into {name}", reports.len());
    }
    for (process, report) in reports {
        let path = name.replace("%p", process);
        fs::write(&path, serde_json::to_vec_pretty(report)?)
            .with_context(|| format!("writing {path}"))?;
    }
    Ok(())
}

/// The command's process, for the handler of signals.
static CHILD: AtomicI32 = AtomicI32::new(0);

/// Waits for the command, and hands on what this process is told to do.
fn wait(child: &mut Child) -> anyhow::Result<ExitStatus> {
    CHILD.store(child.id() as i32, Ordering::Relaxed);
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT, libc::SIGUSR1] {
        // SAFETY: the handler only loads a number and calls `kill`, both allowed in handlers.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = hand_on as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
            libc::sigaction(signal, &action, std::ptr::null_mut());
        }
    }
    Ok(child.wait()?)
}

extern "C" fn hand_on(signal: c_int, info: *const libc::siginfo_t, _: *const libc::c_void) {
    // SAFETY: the kernel hands over what the signal came with.
    let code = unsafe { (*info).si_code };
    // What a terminal sends goes to all processes of its group, the command among them.
    if code <= 0 {
        // SAFETY: a number of our own child, which is not waited for before it has ended.
        unsafe { libc::kill(CHILD.load(Ordering::Relaxed), signal) };
    }
}

/// Ends with the command's exit status, or by the signal that ended it.
fn end_as(status: ExitStatus) -> ! {
    if let Some(signal) = status.signal() {
        // SAFETY: the default action of the signal is wanted, and nothing is left to do.
        unsafe {
            libc::signal(signal, libc::SIG_DFL);
            libc::raise(signal);
        }
        std::process::exit(128 + signal);
    }
    std::process::exit(status.code().unwrap_or(1))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        run: RunArguments,
    }

    fn parse(line: &[&str]) -> Result<RunArguments, clap::Error> {
        let words = ["run"].iter().chain(line);
        Line::try_parse_from(words).map(|line| line.run)
    }

    #[test]
    fn the_command_keeps_its_own_flags() {
        let line = ["--mode", "dry", "--check", "races,init", "--", "serve", "--mode", "fast"];
        let arguments = parse(&line).unwrap();
        assert_eq!(arguments.command, ["serve", "--mode", "fast"]);
        assert_eq!(
            (arguments.mode.as_str(), arguments.check.join(",")),
            ("dry", "races,init".into())
        );
        let command = command(&arguments, Path::new("folder")).unwrap();
        let get = |name: &str| {
            let found = command.get_envs().find(|(key, _)| *key == name);
            found.and_then(|(_, value)| value).map(|value| value.to_string_lossy().into_owned())
        };
        assert_eq!(get("VIRTUAL_NODE_MODE").as_deref(), Some("dry"));
        assert_eq!(get("VIRTUAL_NODE_CHECKS").as_deref(), Some("races,init"));
        assert!(get("LD_LIBRARY_PATH").unwrap().starts_with("folder"));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for line in [
            &["--devices", "9", "--", "true"][..],
            &["--mode", "fast", "--", "true"],
            &["--check", "speed", "--", "true"],
            &["--devices", "2"],
        ] {
            assert!(parse(line).is_err(), "{line:?}");
        }
        let faulty = parse(&["--fault", "rank 3", "--", "true"]).unwrap();
        assert!(command(&faulty, Path::new("folder")).is_err());
    }
}
