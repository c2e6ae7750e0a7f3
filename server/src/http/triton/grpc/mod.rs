//! KServe v2 over gRPC: the same core as its HTTP routes, on a port of its own.
//!
//! Calls run within the same middleware as HTTP requests, so ids, spans, metrics and draining are
//! theirs too. It knows how messages become tensors and back, and nothing of what they mean.

mod calls;
mod convert;
#[cfg(test)]
mod hostile;
mod infer;
mod model;
mod operate;
mod status;
mod stream;

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use tonic::Status;
use tonic::service::Routes;

use super::super::observe::{Record, observe};
use super::super::state::App;
use super::error::Refusal;

/// Messages and service, made of `proto/kserve.proto`.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod protocol {
    tonic::include_proto!("inference");
}

use protocol::grpc_inference_service_server::GrpcInferenceServiceServer;

/// Answers the calls.
#[derive(Clone)]
struct Service {
    app: App,
}

/// All calls.
pub fn router(app: &App) -> Router {
    let n_bytes_max = app.config.limits.n_body_bytes_max;
    let service = GrpcInferenceServiceServer::new(Service { app: Arc::clone(app) })
        .max_decoding_message_size(n_bytes_max)
        .max_encoding_message_size(usize::MAX);
    Routes::new(service)
        .into_axum_router()
        .layer(from_fn_with_state(Arc::clone(app), authorize))
        .layer(from_fn_with_state(Arc::clone(app), observe))
}

/// Calls that need no key, as with HTTP.
const OPEN: [&str; 2] =
    ["/inference.GRPCInferenceService/ServerLive", "/inference.GRPCInferenceService/ServerReady"];

async fn authorize(State(app): State<App>, request: Request, next: Next) -> Response {
    match app.config.api_keys.check(request.headers()) {
        Ok(tenant) => {
            if let Some(record) = request.extensions().get::<Arc<Record>>() {
                record.belongs_to(tenant);
            }
        }
        Err(_) if OPEN.contains(&request.uri().path()) => {}
        Err(error) => return Status::unauthenticated(error.to_string()).into_http(),
    }
    next.run(request).await
}

/// What calls about shared memory are told.
fn no_shared_memory<T>() -> Result<tonic::Response<T>, Status> {
    Err(status::status(Refusal::SharedMemoryOff))
}
