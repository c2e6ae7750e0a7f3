//! Health, models, metrics, version, unknown paths and wrong methods.

use serde_json::json;

use super::{COMPLETIONS, shared};

#[test]
fn health_is_told_in_every_dialect() {
    // Path, method, status, body, content type.
    let complaint = r#"{"error":"Model version not ready"}"#;
    let wrong = r#"{"error":"Method Not Allowed"}"#;
    let plain = Some("text/plain");
    let json = Some("application/json");
    let cases = [
        ("GET", "/health", 200, "", None),
        ("GET", "/v2/health/live", 200, "", plain),
        ("GET", "/v2/health/ready", 200, "", plain),
        ("POST", "/v2/health/ready", 405, wrong, plain),
        ("HEAD", "/v2/health/live", 405, "", plain),
        ("GET", "/v2/models/demo/ready", 200, "", plain),
        ("GET", "/v2/models/ensemble/ready", 200, "", plain),
        ("GET", "/v2/models/test%2Fmodel/ready", 200, "", plain),
        ("GET", "/v2/models/demo/versions/1/ready", 200, "", plain),
        ("GET", "/v2/models/demo/versions/99/ready", 400, complaint, plain),
        ("GET", "/v2/models/nope/ready", 400, complaint, plain),
        ("POST", "/v2/models/demo/ready", 405, wrong, plain),
        ("GET", "/v2/models/demo/generate", 405, wrong, json),
        ("PUT", "/v2/models/demo/generate_stream", 405, wrong, json),
        ("GET", "/v2/nonsense", 404, r#"{"error":"Not Found"}"#, plain),
    ];
    for (method, path, status, body, content_type) in cases {
        let reply = shared().send(method, path, b"");
        assert_eq!(reply.status(), status, "{method} {path}: {}", reply.text());
        assert_eq!(reply.text(), body, "{method} {path}");
        assert_eq!(reply.head.header("content-type"), content_type, "{method} {path}");
        if status == 405 {
            assert_eq!(reply.head.reason, "Not Allowed", "{method} {path}");
        }
    }
}

#[test]
fn models_are_listed_under_all_their_names() {
    let list = shared().get("/v1/models").ok();
    let models = list["data"].as_array().expect("a list");
    let ids: Vec<_> = models.iter().map(|model| model["id"].as_str().expect("an id")).collect();
    assert_eq!(ids, ["demo", "test/model"]);
    assert_eq!(models[1]["max_model_len"], 256);
    assert_eq!(shared().get("/v1/models/test/model").ok(), models[1]);
    let unknown = shared().get("/v1/models/nope");
    assert_eq!(unknown.status(), 404);
    assert_eq!(unknown.json()["error"]["code"], "model_not_found");
}

#[test]
fn what_is_not_there_says_so_in_json() {
    let cases = [
        ("GET", "/nonsense", 404, "unknown_path"),
        ("GET", "/v1/nonsense", 404, "unknown_path"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("POST", "/v1/models", 405, "method_not_allowed"),
        ("DELETE", "/metrics", 405, "method_not_allowed"),
    ];
    for (method, path, status, code) in cases {
        let reply = shared().send(method, path, b"");
        assert_eq!(reply.status(), status, "{method} {path}");
        assert_eq!(reply.json()["error"]["code"], code, "{method} {path}");
    }
}

#[test]
fn a_request_keeps_its_id() {
    let body = json!({ "prompt": "a", "max_tokens": 1 });
    let reply = shared().with_header("X-Request-Id", "mine-7").post(COMPLETIONS, &body);
    assert_eq!(reply.head.header("x-request-id"), Some("mine-7"));
    assert_eq!(reply.ok()["id"], "cmpl-mine-7");
    let [first, second] =
        [(), ()].map(|()| shared().get("/health").head.header("x-request-id").map(str::to_owned));
    assert!(first.is_some() && first != second, "{first:?}");
}

#[test]
fn one_connection_takes_many_requests() {
    let mut connection = shared().connect();
    for _ in 0..3 {
        connection.write("GET", "/version", &[], b"").expect("open");
        let reply = connection.read_reply("GET").expect("open");
        assert!(reply.json()["version"].is_string());
        connection.write("POST", COMPLETIONS, &[], b"nonsense").expect("open");
        assert_eq!(connection.read_reply("POST").expect("open").status(), 400);
    }
}

#[test]
fn metrics_count_what_was_done() {
    let value = |text: &str, name: &str| -> f64 {
        let line = text.lines().find(|line| line.starts_with(name));
        let line = line.unwrap_or_else(|| panic!("no {name} in:\n{text}"));
        line.rsplit(' ').next().expect("a value").parse().expect("a number")
    };
    let before = shared().get("/metrics").text();
    let body = json!({ "prompt": "a", "max_tokens": 5, "ignore_eos": true, "temperature": 0 });
    shared().post(COMPLETIONS, &body).ok();
    let reply = shared().get("/metrics");
    let content_type = reply.head.header("content-type").expect("is given");
    assert!(content_type.starts_with("text/plain; version=0.0.4"), "{content_type}");
    let after = reply.text();
    // Other tests share the server, so values may have grown by more.
    for (name, least) in [
        ("lnserve_generated_tokens_total ", 5.0),
        ("lnserve_generations_total{finished_reason=\"length\"}", 1.0),
        ("lnserve_priority_waiting_requests{priority=\"1\"}", 0.0),
        ("lnserve_priority_generations_total{priority=\"1\",finished_reason=\"length\"}", 1.0),
        ("lnserve_priority_queue_seconds_count{priority=\"1\"}", 1.0),
        ("vllm:generation_tokens_total{model_name=\"demo\"}", 5.0),
        ("vllm:time_to_first_token_seconds_count{model_name=\"demo\"}", 1.0),
        ("vllm:inter_token_latency_seconds_count{model_name=\"demo\"}", 4.0),
        ("vllm:e2e_request_latency_seconds_count{model_name=\"demo\"}", 1.0),
        ("vllm:request_queue_time_seconds_count{model_name=\"demo\"}", 1.0),
        ("nv_inference_request_success{model=\"demo\",version=\"1\"}", 1.0),
        ("nv_inference_count{model=\"demo\",version=\"1\"}", 1.0),
    ] {
        let (old, new) = (optional(&before, name), value(&after, name));
        assert!(new >= old + least, "{name}: {old} then {new}");
    }
    for name in
        ["vllm:kv_cache_usage_perc", "nv_trt_llm_kv_cache_block_metrics", "lnserve_kv_pages"]
    {
        value(&after, name);
    }
    for what in ["generation_requests", "total_context_tokens"] {
        let metric = "nv_trt_llm_inflight_batcher_metrics{model=\"demo\",version=\"1\"";
        value(&after, &format!("{metric},inflight_batcher_specific_metric=\"{what}\"}}"));
    }
    let canceled = "nv_inference_request_failure{model=\"demo\",version=\"1\",reason=\"CANCELED\"}";
    value(&after, canceled);
    for line in after.lines().filter(|line| line.starts_with("# TYPE ")) {
        let words: Vec<&str> = line.split(' ').collect();
        assert!(["counter", "gauge", "histogram"].contains(&words[3]), "{line}");
    }

    fn optional(text: &str, name: &str) -> f64 {
        let line = text.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0.0)
    }
}

#[test]
fn who_balances_load_is_told_of_it() {
    let text = shared().get("/metrics").text();
    let size = text.lines().find(|line| line.starts_with("vllm:cache_config_info"));
    let size = size.expect("what the cache holds");
    let pages = shared().get("/v1/node").json()["now"]["groups"][0]["n_pages"].clone();
    assert!(size.contains("block_size=\"16\"") && size.ends_with(" 1"), "{size}");
    assert!(size.contains(&format!("num_gpu_blocks=\"{pages}\"")), "{size}, of {pages} pages");

    let body = json!({ "prompt": "a", "max_tokens": 1 });
    let asking = |format| {
        let client = shared().with_header("endpoint-load-metrics-format", format);
        let reply = client.post(COMPLETIONS, &body);
        reply.head.header("endpoint-load-metrics").map(str::to_owned)
    };
    let told = asking("JSON").expect("it was asked for");
    let told = told.strip_prefix("JSON ").expect("its format comes first");
    let told: serde_json::Value = serde_json::from_str(told).expect("JSON");
    let named = told["named_metrics"].as_object().expect("by name");
    let names: Vec<&str> = named.keys().map(String::as_str).collect();
    let wanted = [
        "kv_cache_usage_perc",
        "num_requests_running",
        "num_requests_waiting",
        "kv_cache_utilization",
        "max_token_capacity",
    ];
    assert_eq!(names, wanted);
    let capacity = pages.as_f64().expect("a number") * 16.0;
    assert_eq!(named["max_token_capacity"].as_f64(), Some(capacity));
    let share = named["kv_cache_usage_perc"].as_f64().expect("a number");
    assert!((0.0..=1.0).contains(&share), "{share}");
    let told = asking("text").expect("it was asked for");
    let told = told.strip_prefix("TEXT ").expect("its format comes first");
    let pairs: Vec<_> = told.split(", ").filter_map(|pair| pair.split_once('=')).collect();
    assert_eq!(pairs.len(), wanted.len(), "{told}");
    let capacity = format!("{capacity:?}");
    assert_eq!(pairs[4], ("named_metrics.max_token_capacity", capacity.as_str()));
    assert_eq!(asking("BIN"), None);
    let plain = shared().post(COMPLETIONS, &body);
    assert_eq!(plain.head.header("endpoint-load-metrics"), None, "nobody asked");
}
