//! A load test of any server that speaks one of our protocols.
//!
//! [`workload`] says what is asked, out of [`source`] files or drawn [`lengths`] and [`words`];
//! [`arrivals`] when. [`driver`] sends it through [`exchange`], one request and its timed answer,
//! in a [`protocol`] over a [`client`]. What comes back are [`sample`]s: [`figures`] derive from
//! them alone. [`answers`] asks for some answers again, [`generator`] judges whether the tool
//! itself kept up, [`search`] looks for the highest rate; [`mod@measure`] is all of that in turn,
//! and [`report`] what is written of it.
//!
//! It knows nothing of the engine, and of this program's server only its headers.

pub mod answers;
pub mod arrivals;
pub mod ask;
pub mod charts;
pub mod client;
pub mod clock;
pub mod compare;
pub mod csv;
pub mod driver;
pub mod error;
pub mod exchange;
pub mod figures;
pub mod generator;
pub mod html;
pub mod lengths;
pub mod measure;
pub mod preflight;
pub mod presets;
pub mod protocol;
pub mod report;
pub mod sample;
pub mod search;
pub mod settings;
pub mod slo;
pub mod source;
pub mod sse;
pub mod statistics;
pub mod words;
pub mod workload;

#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;

pub use error::BenchError;
pub use measure::{Measured, Stage, measure};
pub use settings::Settings;
