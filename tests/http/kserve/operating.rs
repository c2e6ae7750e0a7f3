//! What an operator sees and does: statistics, unloading and loading.

use harness::serving::{ServerSettings, TestServer};
use serde_json::{Value, json};

use super::body;
use crate::COMPLETIONS;

#[test]
fn statistics_add_up() {
    let server = TestServer::start(ServerSettings::roomy());
    let stats = |name: &str| {
        server.client.get(&format!("/v2/models/{name}/stats")).ok()["model_stats"][0].clone()
    };
    for _ in 0..3 {
        server.client.post("/v2/models/demo/infer", &body(json!({}))).ok();
    }
    let stream = json!({ "text_input": "a", "max_tokens": 3, "stream": true });
    let path = "/v2/models/demo/generate_stream";
    assert!(!server.client.stream(path, &stream).values().is_empty());
    let mut no_tokens = body(json!({}));
    no_tokens["inputs"][1]["data"] = json!([0]);
    // One that the model refuses, and one that fails before it.
    for broken in [no_tokens, json!({ "inputs": [] })] {
        assert_eq!(server.client.post("/v2/models/demo/infer", &broken).status(), 400);
    }
    server.expect_idle();
    let demo = stats("demo");
    let part = |name: &str| demo["inference_stats"][name].clone();
    let ns = |name: &str| part(name)["ns"].as_u64().expect("a duration");
    assert_eq!((&demo["inference_count"], &demo["execution_count"]), (&json!(4), &json!(4)));
    assert_eq!(part("fail")["count"], 2);
    for name in ["success", "queue", "compute_input", "compute_infer", "compute_output"] {
        assert_eq!(part(name)["count"], 4, "{name}");
    }
    let parts = ns("queue") + ns("compute_input") + ns("compute_infer") + ns("compute_output");
    assert_eq!(ns("success"), parts);
    assert!(ns("compute_infer") > 0);
    assert_eq!(demo["batch_stats"][0]["batch_size"], 1);
    assert_eq!(demo["batch_stats"][0]["compute_infer"], part("compute_infer"));
    assert!(demo["last_inference"].as_u64().is_some_and(|ms| ms > 1_700_000_000_000));
    assert_eq!(stats("ensemble")["inference_count"], 0);
    let all = server.client.get("/v2/models/stats").ok();
    assert_eq!(all["model_stats"][0], demo);
    assert_eq!(all["model_stats"].as_array().map(Vec::len), Some(3));
}

#[test]
fn unloading_drains_and_loading_brings_back() {
    let server = TestServer::start(ServerSettings::roomy());
    let held = server.hold_engine();
    let index = |body: &Value| server.client.post("/v2/repository/index", body).ok();
    let body = json!({ "text_input": "a", "max_tokens": 40, "stream": true, "ignore_eos": true });
    let mut stream = server.client.connect();
    let bytes = body.to_string();
    let path = "/v2/models/demo/generate_stream";
    stream.write("POST", path, &[], bytes.as_bytes()).expect("the server reads");
    server.wait_until("it has begun", |app| app.engine.n_live() == 2);
    held.make_steps(3);
    assert_eq!(stream.read_head().expect("its first token is there").status, 200);
    let unload = server.client.post("/v2/repository/models/demo/unload", &json!({}));
    assert_eq!((unload.status(), unload.text().as_str()), (200, ""));
    assert_eq!(server.client.get("/v2/health/live").status(), 200);
    assert_eq!(server.client.get("/v2/health/ready").status(), 400);
    assert_eq!(server.client.get("/v2/models/ensemble/ready").status(), 400);
    assert_eq!(server.client.get("/health").status(), 503);
    assert_eq!(index(&json!({}))[0]["state"], "UNLOADING");
    let refused = server.client.post("/v2/models/demo/generate", &body);
    let words = "Request for unknown model: 'demo' has no available versions";
    assert_eq!((refused.status(), refused.json()), (404, json!({ "error": words })));
    let prompt = json!({ "prompt": "a", "max_tokens": 2 });
    let openai = server.client.post(COMPLETIONS, &prompt);
    assert_eq!(openai.status(), 503);
    assert_eq!(openai.json()["error"]["code"], "model_unloaded");
    drop(held);
    // What ran is finished.
    let mut n_chunks = 0;
    while stream.read_chunk().expect("it ends with a last chunk").is_some() {
        n_chunks += 1;
    }
    assert!(n_chunks > 3, "{n_chunks}");
    server.expect_idle();
    let unavailable = index(&json!({}));
    assert_eq!(unavailable[0]["state"], "UNAVAILABLE");
    assert_eq!(unavailable[0]["reason"], "unloaded");
    assert_eq!(index(&json!({ "ready": true })), json!([]));
    let load = server.client.post("/v2/repository/models/ensemble/load", &json!({}));
    assert_eq!((load.status(), load.text().as_str()), (200, ""));
    assert_eq!(index(&json!({ "ready": true }))[0]["state"], "READY");
    assert_eq!(server.client.post(COMPLETIONS, &prompt).status(), 200);
}
