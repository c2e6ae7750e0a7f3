//! HTTP in, tokens out. One endpoint a file; what they share lies beside them.
//!
//! The way of a request: [`server`] accepts its connection, [`observe`] gives it an id and
//! [`router`] finds its endpoint in [`openai`] or [`triton`], which reads it with [`fields`] into
//! the checked values of [`request`]. [`generation`] submits them to the engine and turns tokens
//! into text with [`answer`]; the endpoint writes that down, whole or through [`sse`].

pub mod answer;
mod attend;
pub mod auth;
pub mod body;
mod connection;
pub mod error;
pub mod fields;
pub mod generation;
pub mod limits;
mod load_report;
pub mod observe;
pub mod openai;
pub mod page;
pub mod request;
pub mod router;
mod seats;
pub mod server;
pub mod shutdown;
pub mod sse;
pub mod state;
pub mod timing;
pub mod triton;

pub use auth::{ApiKeys, N_KEYS_MAX};
pub use axum::http::HeaderValue;
pub use error::ApiError;
pub use limits::HttpLimits;
pub use page::PageConfig;
pub use server::{Outcome, Server, claim};
pub use shutdown::{Phase, Shutdown};
pub use state::{App, AppState, ServeConfig};
