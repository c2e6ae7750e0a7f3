//! Rotary embedding from `rope_scaling`, or from the `rope_parameters` of newer producers.

use serde::Deserialize;
use serde_json::Value;

use super::{Config, field};
use crate::error::ConfigError;
use crate::spec::{RopeScaling, RopeSpec};

/// What Llama's configuration class takes where `rope_theta` is absent.
const THETA_DEFAULT: f64 = 10_000.0;

#[derive(Deserialize)]
struct RawRope {
    rope_theta: Option<f64>,
    rope_type: Option<String>,
    /// The older name of `rope_type`.
    r#type: Option<String>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<usize>,
    partial_rotary_factor: Option<f64>,
}

pub(super) fn parse(config: &Config) -> Result<RopeSpec, ConfigError> {
    let older = parse_section("rope_scaling", config.rope_scaling.as_ref())?;
    let newer = parse_section("rope_parameters", config.rope_parameters.as_ref())?;
    let (theta, scaling) = match (older, newer) {
        (Some((_, older)), Some((_, newer))) if older != newer => {
            let found = "different from rope_scaling".to_owned();
            return Err(field("rope_parameters", found, "the same, or only one of the two"));
        }
        (_, Some(section)) | (Some(section), None) => section,
        (None, None) => (None, RopeScaling::None),
    };
    let theta = theta.or(config.rope_theta).unwrap_or(THETA_DEFAULT);
    if !theta.is_finite() || theta <= 1.0 {
        return Err(field("rope_theta", theta.to_string(), "a finite number above 1"));
    }
    Ok(RopeSpec { theta, scaling })
}

/// The section's own theta, if it has one, and its scaling.
type Section = (Option<f64>, RopeScaling);

fn parse_section(
    name: &'static str,
    section: Option<&Value>,
) -> Result<Option<Section>, ConfigError> {
    let Some(section) = section else { return Ok(None) };
    let raw: RawRope = serde_json::from_value(section.clone())?;
    if let Some(factor) = raw.partial_rotary_factor.filter(|&factor| factor != 1.0) {
        return Err(field(format!("{name}.partial_rotary_factor"), factor.to_string(), "1"));
    }
    let rope_type = raw.rope_type.as_deref().or(raw.r#type.as_deref());
    let scaling = match rope_type {
        None | Some("default") => RopeScaling::None,
        Some("llama3") => llama3(name, &raw)?,
        Some(other) => {
            let found = format!("\"{other}\"");
            return Err(field(format!("{name}.rope_type"), found, "\"default\" or \"llama3\""));
        }
    };
    Ok(Some((raw.rope_theta, scaling)))
}

fn llama3(section: &'static str, raw: &RawRope) -> Result<RopeScaling, ConfigError> {
    let number = |name: &str, value: Option<f64>, min: f64| match value {
        Some(value) if value.is_finite() && value >= min => Ok(value),
        other => {
            let found = other.map_or("missing".to_owned(), |value| value.to_string());
            let expected = format!("a finite number of at least {min}");
            Err(field(format!("{section}.{name}"), found, &expected))
        }
    };
    let factor = number("factor", raw.factor, 1.0)?;
    let low_freq_factor = number("low_freq_factor", raw.low_freq_factor, f64::MIN_POSITIVE)?;
    let high_freq_factor = number("high_freq_factor", raw.high_freq_factor, f64::MIN_POSITIVE)?;
    if high_freq_factor <= low_freq_factor {
        let expected = format!("more than low_freq_factor, {low_freq_factor}");
        let name = format!("{section}.high_freq_factor");
        return Err(field(name, high_freq_factor.to_string(), &expected));
    }
    match raw.original_max_position_embeddings {
        Some(n_positions_original) if n_positions_original > 0 => Ok(RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            n_positions_original,
        }),
        other => {
            let found = other.map_or("missing".to_owned(), |n| n.to_string());
            let name = format!("{section}.original_max_position_embeddings");
            Err(field(name, found, "a positive number"))
        }
    }
}
