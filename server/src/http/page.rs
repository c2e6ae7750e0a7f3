//! The page that a browser gets at `/`, and what it watches: a chat, and the node as it lives.
//!
//! The page is a handful of plain files in the binary. It asks for nothing from elsewhere, which
//! its `Content-Security-Policy` holds it to, and speaks to the same routes as everybody: chat
//! completions, and `/v1/node` for what the node does. The files say nothing of anybody, so they
//! are given without a key; `/v1/node` is not.

mod feed;
mod node;

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use axum::http::header::{REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;

pub use feed::Feed;

use super::error::ApiError;
use super::openai::{self, Refusal};
use super::state::App;

/// What the operator decides about the page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageConfig {
    /// Questions that it offers where nothing was asked yet.
    pub examples: Vec<String>,
}

/// Watchers of the node at once; each costs a connection and no more, for all are told the same.
pub const N_WATCHERS_MAX: usize = 64;

/// Where the page may load from and send to: here. No frame of another page may hold it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src \
                      'self'; img-src 'self'; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'";

struct Asset {
    name: &'static str,
    kind: &'static str,
    text: &'static str,
}

macro_rules! asset {
    ($name:literal, $kind:literal) => {
        Asset { name: $name, kind: $kind, text: include_str!(concat!("../../page/", $name)) }
    };
}

const INDEX: Asset = asset!("index.html", "text/html; charset=utf-8");

const ASSETS: [Asset; 8] = [
    asset!("style.css", "text/css; charset=utf-8"),
    asset!("app.js", "text/javascript; charset=utf-8"),
    asset!("chat.js", "text/javascript; charset=utf-8"),
    asset!("stream.js", "text/javascript; charset=utf-8"),
    asset!("prose.js", "text/javascript; charset=utf-8"),
    asset!("node.js", "text/javascript; charset=utf-8"),
    asset!("charts.js", "text/javascript; charset=utf-8"),
    asset!("icon.svg", "image/svg+xml"),
];

/// The page and what it watches; nothing where the operator wants none.
pub fn router(app: &App) -> Router<App> {
    if app.config.page.is_none() {
        return Router::new();
    }
    let node = Router::new()
        .route("/v1/node", get(snapshot))
        .route("/v1/node/events", get(feed::events))
        .method_not_allowed_fallback(wrong_method)
        .route_layer(from_fn_with_state(Arc::clone(app), openai::authorize));
    Router::new()
        .route("/", get(|| async { INDEX.response() }))
        .route("/page/{name}", get(asset))
        .method_not_allowed_fallback(wrong_method)
        .merge(node)
}

async fn wrong_method() -> Refusal {
    Refusal(ApiError::WrongMethod)
}

async fn asset(Path(name): Path<String>) -> Response {
    match ASSETS.iter().find(|asset| asset.name == name) {
        Some(asset) => asset.response(),
        None => Refusal(ApiError::UnknownPath).into_response(),
    }
}

async fn snapshot(State(app): State<App>) -> Response {
    Json(node::Snapshot::new(&app)).into_response()
}

impl Asset {
    fn response(&self) -> Response {
        let headers = [
            (CONTENT_TYPE, self.kind),
            (CONTENT_SECURITY_POLICY, POLICY),
            // Another version of the program has another page.
            (CACHE_CONTROL, "no-cache"),
            (REFERRER_POLICY, "no-referrer"),
            (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        ];
        (headers, self.text).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_of_the_folder_is_an_asset() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/page");
        let mut files: Vec<String> = std::fs::read_dir(folder)
            .expect("the folder is there")
            .map(|entry| entry.expect("readable").file_name().to_string_lossy().into_owned())
            .collect();
        files.sort_unstable();
        let mut names: Vec<&str> = ASSETS.iter().chain([&INDEX]).map(|asset| asset.name).collect();
        names.sort_unstable();
        assert_eq!(files, names);
    }

    #[test]
    fn the_page_asks_for_nothing_from_elsewhere() {
        for Asset { name, text, .. } in ASSETS.iter().chain([&INDEX]) {
            // Names of XML's vocabularies are no addresses, though they look like some.
            let text = text.replace("http://www.w3.org/2000/svg", "");
            for elsewhere in ["http:", "https:", "//cdn", "@import", "eval(", "innerHTML"] {
                assert!(!text.contains(elsewhere), "{name} has {elsewhere}");
            }
        }
        // Inline code is what the policy forbids.
        for inline in ["<script>", "<style", " style=", " onclick=", "javascript:"] {
            assert!(!INDEX.text.contains(inline), "index.html has {inline}");
        }
    }
}
