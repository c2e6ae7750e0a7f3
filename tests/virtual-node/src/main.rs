//! `virtual-node run -- COMMAND`: runs a program on eight virtual H100s.

mod run;

use clap::{Parser, Subcommand};

/// A node of eight H100s that exists only in memory.
#[derive(Parser)]
#[command(name = "virtual-node", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Run(run::RunArguments),
}

fn main() -> anyhow::Result<()> {
    let Command::Run(arguments) = Arguments::parse().command;
    run::run(&arguments)
}
