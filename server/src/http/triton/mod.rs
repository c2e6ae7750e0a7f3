//! The KServe v2 routes as Triton answers them. Names, statuses and texts of errors are Triton's
//! own (2.51), since clients match on them.
//!
//! There is one tensor interface (`interface`) for the model and all its names. A request on
//! either wire becomes checked tensors (`check`; generate has a simpler reader), these become
//! rows of `inputs`, and `call` makes jobs of them and tensors of the answers. It knows nothing
//! of `/v1`.

mod access;
mod call;
mod check;
mod error;
mod generate;
pub mod grpc;
mod health;
#[cfg(test)]
mod hostile;
mod infer;
mod inputs;
mod interface;
mod json;
mod metadata;
mod models;
mod node;
mod options;
mod pieces;
mod problem;
mod repository;
mod settings;
mod statistics;
mod target;
mod tensor;
mod wire;

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, Request, State};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::Response;
use axum::routing::{MethodRouter, get, post};

pub use error::Refusal;
pub use models::Models;

use super::error::ApiError;
use super::observe::Record;
use super::state::App;
use error::{InferRefusal, ProbeRefusal};
use target::Target;

/// The only version that a model has.
const VERSION: &str = "1";

/// Everything under `/v2`. Health is open to all; the rest asks for the key.
pub fn router(app: &App) -> Router<App> {
    let health = Router::new()
        .route("/v2/health/live", probe(get(health::live)))
        .route("/v2/health/ready", probe(get(health::ready)));
    let models = Router::new()
        .route("/v2", just_get(get(metadata::server)))
        .route("/v2/models/stats", just_get(get(metadata::all_statistics)))
        .merge(of_models("/v2/models/{model}"))
        .merge(of_models("/v2/models/{model}/versions/{version}").route_layer(from_fn(numbered)))
        .merge(settings())
        .method_not_allowed_fallback(wrong_method)
        .route_layer(from_fn_with_state(Arc::clone(app), authorize));
    health.merge(models)
}

/// Routes that each model has, with a version and without.
fn of_models(path: &str) -> Router<App> {
    let path = |rest: &str| format!("{path}{rest}");
    Router::new()
        .route(&path(""), just_get(get(metadata::model)))
        .route(&path("/ready"), probe(get(health::model_ready)))
        .route(&path("/config"), just_get(get(metadata::config)))
        .route(&path("/stats"), just_get(get(metadata::model_statistics)))
        .route(&path("/infer"), post(infer::infer).fallback(wrong_infer))
        .route(&path("/generate"), post(generate::whole))
        .route(&path("/generate_stream"), post(generate::stream))
        .method_not_allowed_fallback(wrong_method)
}

/// What an operator asks for and turns.
fn settings() -> Router<App> {
    let traced = "/v2/models/{model}/trace/setting";
    let mut router = Router::new()
        .route("/v2/repository/index", post(repository::index))
        .route("/v2/repository/{repository}/index", post(repository::index))
        .route("/v2/repository/models/{model}/load", post(repository::load))
        .route("/v2/repository/models/{model}/unload", post(repository::unload))
        .route("/v2/logging", just_get(get(settings::logging).post(settings::set_logging)))
        .route("/v2/trace/setting", just_get(get(settings::tracing).post(settings::set_tracing)))
        .route(traced, just_get(get(settings::model_tracing).post(settings::set_model_tracing)));
    for change in ["load", "unload"] {
        let path = format!("/v2/repository/{{repository}}/models/{{model}}/{change}");
        router = router.route(&path, post(repository::named_repository));
    }
    for memory in ["system", "cuda"] {
        let path = |rest: &str| format!("/v2/{memory}sharedmemory{rest}");
        let region = move |Path(region): Path<String>| async move {
            Refusal::UnknownRegion { memory, region }
        };
        router = router
            .route(&path("/status"), just_get(get(settings::shared_memory)))
            .route(&path("/region/{region}/status"), just_get(get(region)))
            .route(&path("/unregister"), post(settings::change_shared_memory))
            .route(&path("/region/{region}/register"), post(settings::change_shared_memory))
            .route(&path("/region/{region}/unregister"), post(settings::change_shared_memory));
    }
    router
}

/// A GET route also takes HEAD in axum; Triton's do not.
fn just_get(route: MethodRouter<App>) -> MethodRouter<App> {
    route.head(wrong_method)
}

/// The same where errors are plain text.
fn probe(route: MethodRouter<App>) -> MethodRouter<App> {
    route.head(wrong_probe).fallback(wrong_probe)
}

/// A version is a number: where it is none there is no path, whatever the method.
async fn numbered(_: Target, request: Request, next: Next) -> Response {
    next.run(request).await
}

async fn wrong_method() -> Refusal {
    ApiError::WrongMethod.into()
}

async fn wrong_probe() -> ProbeRefusal {
    ProbeRefusal(ApiError::WrongMethod)
}

async fn wrong_infer() -> InferRefusal {
    InferRefusal(ApiError::WrongMethod.into())
}

async fn authorize(
    State(app): State<App>,
    request: Request,
    next: Next,
) -> Result<Response, Refusal> {
    let tenant = app.config.api_keys.check(request.headers()).map_err(Refusal::from)?;
    if let Some(record) = request.extensions().get::<Arc<Record>>() {
        record.belongs_to(tenant);
    }
    Ok(next.run(request).await)
}
