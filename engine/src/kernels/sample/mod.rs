//! From logits to tokens: bias, penalties, temperature, filters and the draw of every row of a
//! step.
//!
//! On the host `Sampler` keeps the sequences' state and takes row after row; on a
//! GPU the state lives in its memory and a launch takes all rows. Both follow the order that
//! [`SamplingParams`](crate::SamplingParams) documents, and yield the same tokens from the same
//! logits but where a draw falls within rounding of the border between two.

pub(crate) mod cpu;
pub mod cuda;
