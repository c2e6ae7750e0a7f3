//! `lnserve bench`: measures, shows how far it is, prints a summary and writes the results.

mod screen;
mod summary;

use std::path::Path;
use std::sync::Arc;

use super::{CliError, io_error};
use crate::bench::client::Dial;
use crate::bench::clock::Clock;
use crate::bench::driver::Stop;
use crate::bench::report::Report;
use crate::bench::{BenchError, Measured, csv, html, measure};
use crate::config::bench::{BenchCommand, CompareCommand, MeasureCommand};
use screen::Screen;

/// Measures, or compares two results.
///
/// # Errors
/// There is no result, or none to rely on.
pub fn run(command: &BenchCommand, has_colour: bool) -> Result<(), CliError> {
    match command {
        BenchCommand::Measure(command) => run_measure(command, has_colour),
        BenchCommand::Compare(command) => run_compare(command),
    }
}

fn run_measure(command: &MeasureCommand, has_colour: bool) -> Result<(), CliError> {
    // What cannot be written is better found before an hour of measuring than after it.
    for path in [&command.json, &command.csv, &command.html].into_iter().flatten() {
        write(path, "")?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(command.n_threads)
        .enable_all()
        .build()
        .map_err(io_error("cannot start the runtime"))?;
    let screen = Arc::new(Screen::new(command.is_quiet));
    let stop = Stop::default();
    let measured = runtime.block_on(async {
        let stopping = stop.clone();
        tokio::spawn(async move {
            if tokio::signal::ctrl_c().await.is_ok() {
                stopping.set();
            }
        });
        let watch = |stage| screen.show(stage);
        measure(&command.settings, (Dial::Tcp, Clock::real()), &stop, &watch).await
    });
    screen.clear();
    let Measured { report, samples } = measured?;
    print!("{}", summary::of(&report, has_colour));
    if let Some(path) = &command.json {
        let text = serde_json::to_string_pretty(&report).expect("a report is JSON");
        write(path, &(text + "\n"))?;
    }
    if let Some(path) = &command.csv {
        write(path, &csv::of(&report, &samples))?;
    }
    if let Some(path) = &command.html {
        write(path, &html::page(&report))?;
    }
    verdict(&report)
}

/// Whether the result may be relied on.
fn verdict(report: &Report) -> Result<(), CliError> {
    let n_differences = report.n_differences();
    if n_differences > 0 {
        return Err(CliError::AnswersDiffer { n_differences });
    }
    match report.invalid().is_empty() {
        true => Ok(()),
        false => Err(CliError::InvalidRun),
    }
}

fn run_compare(command: &CompareCommand) -> Result<(), CliError> {
    let (before, after) = (Report::read(&command.before)?, Report::read(&command.after)?);
    let comparison = crate::bench::compare::compare(&before, &after);
    print!("{}", summary::of_comparison(&comparison));
    let worst = comparison.worst();
    match (command.regression_max, worst) {
        (Some(percent), Some(worst)) if worst.worse_percent > percent => {
            let (name, worse_percent) = (worst.name.clone(), worst.worse_percent);
            Err(CliError::Regressed { name, worse_percent, percent })
        }
        _ => Ok(()),
    }
}

fn write(path: &Path, text: &str) -> Result<(), BenchError> {
    std::fs::write(path, text).map_err(|source| BenchError::File { path: path.to_owned(), source })
}
