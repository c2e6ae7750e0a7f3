//! `lnserve plan`: what a model takes of each GPU, to the byte, before anybody has the GPUs.
//!
//! It shows the plan that the engine boots from, made for devices on paper.

mod advice;
mod bars;
mod heat;
mod json;
mod report;

use std::path::Path;

use engine::{MemoryError, MemoryPlan};
use weights::synthetic::SyntheticConfig;
use weights::{Checkpoint, LoadError};

use super::{CliError, model_spec};
use crate::boot;
use crate::config::{ModelSource, PlanCommand};

/// A model and what it was planned for.
struct Planned<'a> {
    command: &'a PlanCommand,
    checkpoint: Checkpoint,
    /// Whether there are weights, or only what they would be.
    has_weights: bool,
}

/// Prints the plan.
///
/// # Errors
/// The model cannot be read, or does not fit: then what it lacks has been printed.
pub fn run(command: &PlanCommand, has_colour: bool) -> Result<(), CliError> {
    let planned = Planned::open(command)?;
    let plan = planned.plan();
    let refused = match &plan {
        Err(error) if !is_about_room(error) => return Err(plan.expect_err("it is").into()),
        refused => refused.as_ref().err().map(ToString::to_string),
    };
    match command.is_json {
        true => println!("{:#}", json::of(&planned, &plan)),
        false => print!("{}", report::of(&planned, &plan, has_colour)),
    }
    match refused {
        None => Ok(()),
        Some(reason) => Err(CliError::DoesNotFit { model: command.model.clone(), reason }),
    }
}

/// Whether another machine or other settings would do.
fn is_about_room(error: &MemoryError) -> bool {
    matches!(
        error,
        MemoryError::DeviceTooSmall { .. }
            | MemoryError::KvTooSmall { .. }
            | MemoryError::KvTooLarge { .. }
    )
}

impl Planned<'_> {
    fn open(command: &PlanCommand) -> Result<Planned<'_>, CliError> {
        let source = ModelSource::new(&command.model);
        let has_weights = source == ModelSource::Demo || Path::new(&command.model).is_dir();
        let checkpoint = match has_weights {
            true => boot::open(&source)?,
            false => without_weights(command)?,
        };
        checkpoint.spec().check_sharding(command.engine.n_ranks)?;
        Ok(Planned { command, checkpoint, has_weights })
    }

    fn plan(&self) -> Result<MemoryPlan, MemoryError> {
        let PlanCommand { engine, device_bytes, .. } = self.command;
        MemoryPlan::on_paper(&self.checkpoint, engine, *device_bytes)
    }

    /// How the weights are stored.
    fn format(&self) -> String {
        match self.has_weights {
            true => format!("as stored (quantization: {})", self.checkpoint.quantization()),
            false => self.command.format.to_string(),
        }
    }
}

/// A checkpoint of the model as it would be stored, of which nothing is written.
fn without_weights(command: &PlanCommand) -> Result<Checkpoint, CliError> {
    let spec = model_spec(&command.model)?;
    let stored = SyntheticConfig { spec, format: command.format, n_shards: 1, seed: 0 };
    let opened: Result<Checkpoint, LoadError> = Checkpoint::without_data(&stored);
    Ok(opened?)
}

#[cfg(test)]
mod tests;
