//! `cargo kernels`: compiles every kernel family's `.cu` to what the engine embeds, says whether
//! what lies beside the source is what that source compiles to, and reads the machine code.
//!
//! It needs no GPU and no CUDA installation: the compiler is a pinned package that it downloads.
//! It knows nothing of what a kernel computes.

mod compiler;
mod digest;
mod manifest;
mod report;
mod sass;
mod source;
mod toolchain;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};

use compiler::{Artifact, Compiler};
use manifest::Manifest;
use source::Unit;
use toolchain::Toolchain;

#[derive(Parser)]
#[command(name = "cargo kernels", about = "Compiles and checks the CUDA kernels")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Compile every unit, or those named, and write the artifacts beside their sources
    Build {
        /// Units (`swiglu`) to compile; the others stay as they are
        units: Vec<String>,
    },
    /// Compile everything anew and compare each byte with what is committed
    Check,
    /// Show registers, spills, shared memory and machine code, and refuse what must not be
    Report,
}

fn main() -> Result<()> {
    match Arguments::parse().command {
        Command::Build { units } => build(&units),
        Command::Check => check(),
        Command::Report => {
            report::report(&kernels_folder(), &Toolchain::install(&tools_folder()?)?)
        }
    }
}

fn build(names: &[String]) -> Result<()> {
    let folder = kernels_folder();
    let compiler = Compiler::open(&Toolchain::install(&tools_folder()?)?)?;
    let units = Unit::all(&folder)?;
    for name in names {
        ensure!(units.iter().any(|unit| unit.name == *name), "there is no {name}.cu");
    }
    let mut manifest = match names {
        [] => Manifest::empty(),
        _ => Manifest::read(&folder)?,
    };
    manifest.keep(&units);
    for unit in units.iter().filter(|unit| names.is_empty() || names.contains(&unit.name)) {
        let artifact = compiler.compile(unit)?;
        write(unit, &artifact)?;
        manifest.insert(unit, &artifact);
        println!(
            "{}: {} kernels, {} bytes",
            unit.name,
            artifact.kernels.len(),
            artifact.cubin.len()
        );
    }
    manifest.write(&folder)
}

fn write(unit: &Unit, artifact: &Artifact) -> Result<()> {
    for (path, bytes) in
        [(unit.cubin_path(), &artifact.cubin[..]), (unit.ptx_path(), artifact.ptx.as_bytes())]
    {
        fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn check() -> Result<()> {
    let folder = kernels_folder();
    let compiler = Compiler::open(&Toolchain::install(&tools_folder()?)?)?;
    let mut expected = Manifest::empty();
    let mut stale = Vec::new();
    for unit in Unit::all(&folder)? {
        let artifact = compiler.compile(&unit)?;
        expected.insert(&unit, &artifact);
        let is_same = fs::read(unit.cubin_path()).is_ok_and(|bytes| bytes == artifact.cubin)
            && fs::read(unit.ptx_path()).is_ok_and(|bytes| bytes == artifact.ptx.as_bytes());
        if !is_same {
            stale.push(unit.name.clone());
        }
    }
    ensure!(stale.is_empty(), "not what the sources compile to: {}", stale.join(", "));
    ensure!(expected == Manifest::read(&folder)?, "artifacts.json is not of these artifacts");
    println!("{} units are what their sources compile to", expected.n_units());
    Ok(())
}

/// `engine/src/kernels`.
fn kernels_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../src/kernels")
}

/// `target/kernels`: beside the profile's folder that holds this program.
fn tools_folder() -> Result<PathBuf> {
    let program = std::env::current_exe().context("this program's path")?;
    let target = program.ancestors().nth(2).context("this program lies in target/<profile>")?;
    Ok(target.join("kernels"))
}
