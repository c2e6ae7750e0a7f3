//! Who subscribes to `tracing` finds the steps of a request: they follow from its span.

use std::fmt;
use std::sync::Mutex;

use harness::serving::{ServerSettings, TestServer};
use serde_json::json;
use tracing::Level;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{self, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

use super::traces::question;
use super::{COMPLETIONS, with};

/// Which steps follow from a request's span, for requests whose names begin with `FOLLOWED`.
struct Following;

const FOLLOWED: &str = "followed-";

static FOLLOWING: Mutex<Vec<(String, u64)>> = Mutex::new(Vec::new());

/// What a span is called by: a request's id, a step's number.
#[derive(Default)]
struct Named {
    id: Option<String>,
    step: Option<u64>,
}

impl Visit for Named {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "id" {
            self.id = Some(value.to_owned());
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        if field.name() == "step" {
            self.step = Some(value);
        }
    }

    fn record_debug(&mut self, _field: &Field, _value: &dyn fmt::Debug) {}
}

impl<S> Layer<S> for Following
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: layer::Context<'_, S>) {
        let mut named = Named::default();
        attributes.record(&mut named);
        context.span(id).expect("it is there").extensions_mut().insert(named);
    }

    fn on_follows_from(&self, span: &Id, follows: &Id, context: layer::Context<'_, S>) {
        let (Some(step), Some(request)) = (context.span(span), context.span(follows)) else {
            return;
        };
        let (step, request) = (step.extensions(), request.extensions());
        let step = step.get::<Named>().and_then(|named| named.step);
        let request = request.get::<Named>().and_then(|named| named.id.clone());
        let followed = request.filter(|id| id.starts_with(FOLLOWED)).zip(step);
        FOLLOWING.lock().expect("nobody failed").extend(followed);
    }
}

#[test]
fn who_subscribes_to_spans_finds_the_steps_that_follow_from_a_request() {
    let wanted = Targets::new()
        .with_target("engine::step", Level::TRACE)
        .with_target("server::http::observe", Level::INFO);
    let subscriber = tracing_subscriber::registry().with(Following.with_filter(wanted));
    tracing::subscriber::set_global_default(subscriber).expect("nobody else subscribes");
    let server = TestServer::start(ServerSettings::roomy());
    for (name, n_tokens) in [("first", 12), ("second", 5)] {
        let client = server.client.with_header("X-Request-Id", &format!("{FOLLOWED}{name}"));
        client.post(COMPLETIONS, &with(&question(), json!({ "max_tokens": n_tokens }))).ok();
    }
    let told = FOLLOWING.lock().expect("nobody failed").clone();
    let expected = (0..17).map(|step| {
        let name = if step < 12 { "first" } else { "second" };
        (format!("{FOLLOWED}{name}"), step)
    });
    assert_eq!(told, expected.collect::<Vec<_>>());
}
