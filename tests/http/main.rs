//! The HTTP side over real sockets, with the demo model behind it.

mod bench;
mod callers;
mod chat;
mod completions;
mod crowd;
mod formats;
mod grpc;
mod kserve;
mod lifecycle;
mod malformed;
mod page;
mod probes;
mod robust;
mod spans;
mod traces;
mod triton;

use std::sync::OnceLock;

use harness::http::Client;
use harness::serving::{ServerSettings, TestServer};
use serde_json::Value;

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

/// A server for tests that leave nothing behind; the others start their own.
fn shared() -> &'static Client {
    static SERVER: OnceLock<TestServer> = OnceLock::new();
    &SERVER.get_or_init(|| TestServer::start(ServerSettings::roomy())).client
}

/// A body with some members replaced or added.
fn with(body: &Value, members: Value) -> Value {
    let mut body = body.clone();
    let (Value::Object(to), Value::Object(from)) = (&mut body, members) else {
        panic!("bodies are objects");
    };
    to.extend(from);
    body
}

/// The texts of a list.
fn strings(list: &Value) -> Vec<&str> {
    list.as_array().expect("a list").iter().map(|text| text.as_str().expect("a string")).collect()
}

/// The numbers of a list.
fn numbers(list: &Value) -> Vec<u64> {
    list.as_array().expect("a list").iter().map(|n| n.as_u64().expect("a count")).collect()
}
