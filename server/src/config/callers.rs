//! Who may ask: keys, and pages in browsers.

use std::path::PathBuf;

use axum::http::HeaderValue;
use clap::Args;

/// Who may ask.
#[derive(Clone, Debug)]
pub struct Callers {
    /// Keys that callers may show.
    pub api_keys: Vec<String>,
    /// A file with more of them.
    pub api_key_file: Option<PathBuf>,
    /// Origins whose pages may ask from a browser.
    pub allowed_origins: Vec<HeaderValue>,
}

#[derive(Args)]
pub(super) struct CallerArguments {
    /// Key that callers must show as `Authorization: Bearer KEY`; may be given several times, and
    /// each is a tenant with a share of its own; none by default
    #[arg(long, value_name = "KEY", env = "LNSERVE_API_KEY", hide_env_values = true)]
    #[arg(value_parser = clap::builder::NonEmptyStringValueParser::new())]
    #[arg(help_heading = "Network")]
    api_key: Vec<String>,

    /// File with more keys, one a line; lines that begin with # say nothing
    #[arg(long, value_name = "FILE", help_heading = "Network")]
    api_key_file: Option<PathBuf>,

    /// Origin whose pages may ask from a browser (CORS), or *; may be given several times [default:
    /// none]
    #[arg(long, value_name = "ORIGIN", help_heading = "Network")]
    allow_origin: Vec<HeaderValue>,
}

impl CallerArguments {
    pub(super) fn decide(self) -> Callers {
        Callers {
            api_keys: self.api_key,
            api_key_file: self.api_key_file,
            allowed_origins: self.allow_origin,
        }
    }
}
