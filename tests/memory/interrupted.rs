//! A signal in the middle of weights on their way to devices ends the program, and nothing stays.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use harness::DRY;
use server::config::Settings;
use weights::MixerSpec;
use weights::presets::preset;
use weights::synthetic::{SyntheticConfig, SyntheticFormat, write_synthetic};

/// Bytes of a copy that only a matrix has, in the smallest of presets.
const HELD_BYTES: usize = 16 << 10;

/// What the program does with its command line.
fn serve(model: &str) {
    let line = ["lnserve", "serve", model, "--device", "cuda", "--tp", "2", "--port", "0"];
    let line = line.map(Into::into).to_vec();
    let settings = Settings::parse(line, None).expect("it is a command line");
    let ended = server::cli::run(settings);
    panic!("it was to end by a signal while it loads: {ended:?}");
}

/// A model whose heads are as wide as a device takes.
fn write(dir: &Path) {
    let mut spec = preset("tiny").expect("a preset");
    for block in &mut spec.blocks {
        if let Some(MixerSpec::Attention(attention)) = &mut block.mixer {
            attention.head_dim = 32;
        }
    }
    let config = SyntheticConfig { spec, format: SyntheticFormat::Bf16, n_shards: 1, seed: 1 };
    write_synthetic(dir, &config, &mut |_, _| {}).expect("it can be written");
}

fn paths(dirs: [&Path; 2]) -> BTreeSet<PathBuf> {
    let entries = dirs.map(|dir| fs::read_dir(dir).expect("it is there"));
    entries.into_iter().flatten().map(|entry| entry.expect("it is read").path()).collect()
}

fn kill(signal: &str, target: &str) -> bool {
    let mut kill = Command::new("kill");
    let sent = kill.args(["-s", signal, "--", target]).stderr(Stdio::null()).status();
    sent.expect("kill runs").success()
}

/// The node waits with large copies until a pipe is closed, which nobody does: the ranks are in the
/// middle of loading, however fast the machine is.
#[test]
fn a_signal_in_the_middle_of_weights_ends_it_and_leaves_nothing() {
    if let Some(model) = harness::part() {
        return serve(&model);
    }
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("interrupted");
    let _ = fs::remove_dir_all(&folder);
    let (model, pipe) = (folder.join("model"), folder.join("pipe"));
    write(&model);
    assert!(Command::new("mkfifo").arg(&pipe).status().expect("mkfifo runs").success());
    let name = "interrupted::a_signal_in_the_middle_of_weights_ends_it_and_leaves_nothing";
    for (signal, said, status) in [("INT", "Ctrl-C", 130), ("TERM", "SIGTERM", 143)] {
        let before = paths([&folder, &model]);
        let child = Command::new(std::env::current_exe().expect("a test is a program"))
            .args([name, "--exact", "--nocapture"])
            .envs([DRY])
            .env(harness::PART, &model)
            .env("VIRTUAL_NODE_HOLD", format!("{HELD_BYTES}:{}", pipe.display()))
            .current_dir(&folder)
            .process_group(0)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts");
        // It opens when a rank is at its copy.
        let held = OpenOptions::new().write(true).open(&pipe).expect("it opens the other end");
        let maps = fs::read_to_string(format!("/proc/{}/maps", child.id())).expect("it runs");
        assert!(maps.contains("model.safetensors"), "weights are mapped");
        assert!(!maps.contains("/dev/shm") && !maps.contains("/SYSV"), "no memory is shared");
        let group = format!("-{}", child.id());
        assert!(kill(signal, &child.id().to_string()));
        let ended = child.wait_with_output().expect("it ends, though nobody has closed the pipe");
        drop(held);
        let complaint = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(status), "{signal}: {complaint}");
        let line = format!("lnserve: {said} while model was loaded; nothing is kept\n");
        assert_eq!(complaint, line);
        assert_eq!(paths([&folder, &model]), before, "it leaves no file behind");
        assert!(!kill("0", &group), "it leaves no child behind");
    }
    fs::remove_dir_all(&folder).expect("it is ours");
}
