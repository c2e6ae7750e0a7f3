//! KServe v2 over gRPC, frame by frame: whole calls, the streaming call, errors, and clients that
//! leave or stop reading.

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use engine::{Policy, Priorities};
use harness::grpc::{Call, Channel, Refused};
use harness::serving::{ServerSettings, TestServer};
use serde_json::json;
use server::http::HttpLimits;
use server::http::triton::grpc::protocol::infer_parameter::ParameterChoice;
use server::http::triton::grpc::protocol::model_infer_request::{
    InferInputTensor, InferRequestedOutputTensor,
};
use server::http::triton::grpc::protocol::{
    InferParameter, InferTensorContents, ModelInferRequest, ModelInferResponse,
    ModelStreamInferResponse, SystemSharedMemoryUnregisterRequest,
};

/// What the script says.
const SAYS: &str = "The sum is 85.";

const NOT_FOUND: u32 = 5;
const INVALID_ARGUMENT: u32 = 3;
const ABORTED: u32 = 10;
const UNIMPLEMENTED: u32 = 12;
const UNAVAILABLE: u32 = 14;

fn server(settings: ServerSettings) -> TestServer {
    TestServer::scripted(SAYS, ServerSettings { has_grpc: true, ..settings })
}

/// Runs a client's side. Its connection goes on while the test waits for something.
fn with_channel<T, F: Future<Output = T>>(
    server: &TestServer,
    talk: impl FnOnce(Channel) -> F,
) -> T {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let address = server.grpc.expect("it listens for gRPC");
    let talking = async { talk(Channel::open(address).await).await };
    runtime.expect("a runtime starts").block_on(talking)
}

fn parameter(choice: ParameterChoice) -> InferParameter {
    InferParameter { parameter_choice: Some(choice) }
}

fn input(name: &str, datatype: &str, contents: InferTensorContents) -> InferInputTensor {
    InferInputTensor {
        name: name.to_owned(),
        datatype: datatype.to_owned(),
        shape: vec![1, 1],
        contents: Some(contents),
        ..InferInputTensor::default()
    }
}

/// Asks for so many tokens after `a`.
fn request(n_tokens: i32) -> ModelInferRequest {
    let text = InferTensorContents {
        bytes_contents: vec![b"a".to_vec().into()],
        ..InferTensorContents::default()
    };
    let length =
        InferTensorContents { int_contents: vec![n_tokens], ..InferTensorContents::default() };
    ModelInferRequest {
        model_name: "demo".to_owned(),
        inputs: vec![input("text_input", "BYTES", text), input("max_tokens", "INT32", length)],
        ..ModelInferRequest::default()
    }
}

/// The same in pieces.
fn stream_request(n_tokens: i32) -> ModelInferRequest {
    let mut request = request(n_tokens);
    let yes = InferTensorContents { bool_contents: vec![true], ..InferTensorContents::default() };
    request.inputs.push(input("stream", "BOOL", yes));
    request
}

/// The bytes of an answer's output.
fn output<'a>(response: &'a ModelInferResponse, name: &str) -> &'a [u8] {
    let at = response.outputs.iter().position(|output| output.name == name);
    &response.raw_output_contents[at.expect("it is among the outputs")]
}

fn text(response: &ModelInferResponse) -> String {
    let bytes = output(response, "text_output");
    let (length, text) = bytes.split_at(4);
    assert_eq!(u32::from_le_bytes(length.try_into().expect("four")) as usize, text.len());
    String::from_utf8(text.to_vec()).expect("text")
}

fn is_final(response: &ModelInferResponse) -> bool {
    let told = &response.parameters["triton_final_response"].parameter_choice;
    matches!(told, Some(ParameterChoice::BoolParam(true)))
}

async fn next(call: &mut Call) -> ModelStreamInferResponse {
    call.next().await.expect("the stream goes on").expect("there is more")
}

#[test]
fn a_whole_answer_is_that_of_http() {
    let server = server(ServerSettings::roomy());
    let asked = json!({ "text_input": "a", "max_tokens": 6 });
    let expected = server.client.post("/v2/models/demo/generate", &asked).ok();
    with_channel(&server, async |channel| {
        let request = ModelInferRequest { id: "7".into(), ..request(6) };
        let answer: ModelInferResponse =
            channel.ask("ModelInfer", &request).await.expect("it is answered");
        assert_eq!(text(&answer), expected["text_output"]);
        assert_eq!((answer.id.as_str(), answer.model_version.as_str()), ("7", "1"));
        assert_eq!(answer.outputs[0].shape, [1, 1]);
    });
    server.expect_idle();
}

#[test]
fn mistakes_have_codes_and_words() {
    let server = server(ServerSettings::roomy());
    let unknown = ModelInferRequest { model_name: "nope".into(), ..request(1) };
    let old = ModelInferRequest { model_version: "9".into(), ..request(1) };
    let mut no_text = request(1);
    no_text.inputs.remove(0);
    let mut no_output = request(1);
    let name = "nope".to_owned();
    no_output.outputs.push(InferRequestedOutputTensor { name, ..Default::default() });
    let mut urgent = request(1);
    let high = parameter(ParameterChoice::StringParam("high".into()));
    urgent.parameters.insert("priority".into(), high);
    let mut half_raw = request(1);
    half_raw.raw_input_contents.push(b"x".to_vec().into());
    let cases = [
        (unknown, NOT_FOUND, "Request for unknown model: 'nope' is not found"),
        (old, NOT_FOUND, "'demo' version 9 is not found"),
        (no_text, INVALID_ARGUMENT, "missing required input(s) ['text_input']"),
        (request(0), INVALID_ARGUMENT, "`max_tokens` is 0"),
        (no_output, INVALID_ARGUMENT, "unexpected inference output 'nope'"),
        (urgent, INVALID_ARGUMENT, "priority"),
        (half_raw, INVALID_ARGUMENT, "one for each input"),
    ];
    with_channel(&server, async |channel| {
        for (request, code, words) in cases {
            let answered = channel.ask::<ModelInferResponse>("ModelInfer", &request).await;
            let refused = answered.expect_err(words);
            assert_eq!(refused.code, code, "{refused:?}");
            assert!(refused.words.contains(words), "{refused:?}");
        }
        let forget = SystemSharedMemoryUnregisterRequest { name: "r".into() };
        let answered =
            channel.ask::<ModelInferResponse>("SystemSharedMemoryUnregister", &forget).await;
        let refused = answered.expect_err("there is no shared memory");
        assert_eq!(refused.code, UNIMPLEMENTED);
        let answered = channel.ask::<ModelInferResponse>("ModelDream", &request(1)).await;
        assert_eq!(answered.expect_err("there is no such call").code, UNIMPLEMENTED);
    });
    server.expect_idle();
}

#[test]
fn a_stream_answers_each_request_in_pieces_and_outlives_a_mistake() {
    let server = server(ServerSettings::roomy());
    with_channel(&server, async |channel| {
        let whole: ModelInferResponse =
            channel.ask("ModelInfer", &request(9)).await.expect("it is answered");
        let mut call = channel.call("ModelStreamInfer").await;
        // One after the other, so that their responses are too.
        for empty_end in [false, true] {
            let mut request = ModelInferRequest { id: "s".into(), ..stream_request(9) };
            let wanted = parameter(ParameterChoice::BoolParam(empty_end));
            request.parameters.insert("triton_enable_empty_final_response".into(), wanted);
            call.send(&request);
            let mut pieces = Vec::new();
            loop {
                let ModelStreamInferResponse { error_message, infer_response } =
                    next(&mut call).await;
                assert_eq!(error_message, "");
                pieces.push(infer_response.expect("a response"));
                if is_final(pieces.last().expect("just pushed")) {
                    break;
                }
            }
            // The last token's response says that it is the last: nothing empty is needed.
            assert_eq!(pieces.len(), 9);
            assert_eq!(pieces.iter().map(text).collect::<String>(), text(&whole));
            assert!(pieces.iter().all(|piece| piece.id == "s"));
        }
        call.send(&ModelInferRequest { id: "bad".into(), ..stream_request(0) });
        let refused = next(&mut call).await;
        assert!(refused.error_message.contains("`max_tokens` is 0"), "{refused:?}");
        let response = refused.infer_response.expect("it says whose it is");
        assert_eq!((response.id.as_str(), is_final(&response)), ("bad", true));
        call.send(&request(9));
        let good = next(&mut call).await.infer_response.expect("a response");
        assert_eq!((text(&good), is_final(&good)), (text(&whole), true));
        call.close();
        assert_eq!(call.next::<ModelStreamInferResponse>().await, Ok(None));
    });
    server.expect_idle();
}

#[test]
fn a_stream_that_is_dropped_cancels_what_runs() {
    let server = server(ServerSettings { n_context_tokens: 1 << 20, ..ServerSettings::roomy() });
    let held = server.hold_engine();
    with_channel(&server, async |channel| {
        let mut call = channel.call("ModelStreamInfer").await;
        for _ in 0..3 {
            call.send(&stream_request(1 << 16));
        }
        server.wait_until("all three are in the engine", |app| app.engine.n_live() == 4);
        held.make_steps(3);
        for _ in 0..3 {
            assert_eq!(next(&mut call).await.error_message, "");
        }
        drop(call);
        // Not the connection's end: another call still goes over it.
        server.wait_until("its leaving was noticed", |app| app.in_flight.n() == 0);
        held.make_steps(2);
        server.wait_until("their slots are free", |app| app.engine.n_live() == 1);
        let unknown = ModelInferRequest { model_name: "nope".into(), ..request(1) };
        let refused = channel.ask::<ModelInferResponse>("ModelInfer", &unknown).await;
        assert_eq!(refused.expect_err("no such model").code, NOT_FOUND);
    });
    drop(held);
    server.expect_idle();
}

#[test]
fn a_stream_whose_client_stops_reading_is_ended() {
    let limits = HttpLimits { write_timeout: Duration::from_millis(50), ..HttpLimits::STANDARD };
    let settings = ServerSettings { n_context_tokens: 1 << 20, ..ServerSettings::roomy() };
    let server = server(ServerSettings { limits, ..settings });
    with_channel(&server, async |channel| {
        let mut call = channel.call("ModelStreamInfer").await;
        call.send(&stream_request(1 << 19));
        // What HTTP/2's window takes is sent; then nothing moves.
        server.wait_until("it runs", |app| app.engine.stats().n_steps > 0);
        server.wait_until("it was given up", |app| app.engine.n_live() == 0);
        let mut n_responses = 0;
        let ended: Result<(), Refused> = loop {
            match call.next::<ModelStreamInferResponse>().await {
                Ok(Some(_)) => n_responses += 1,
                Ok(None) => break Ok(()),
                Err(refused) => break Err(refused),
            }
        };
        let refused = ended.expect_err("it is told that something is missing");
        assert_eq!(refused.code, ABORTED, "{refused:?}");
        assert!((1..1 << 19).contains(&n_responses), "{n_responses}");
    });
    let cut = "lnserve_connections_cut_total{reason=\"write_timeout\"} 1";
    let metrics = server.client.get("/metrics").text();
    assert!(metrics.contains(cut), "{metrics}");
    server.expect_idle();
}

/// One slot beside the one that holds the engine, and priorities as the program has them.
fn crowded() -> ServerSettings {
    let priorities = Priorities { n_levels: 3, default_level: 2, n_steps_a_level: 1 << 20 };
    ServerSettings {
        n_slots: 2,
        n_context_tokens: 1 << 20,
        policy: Policy { priorities, ..Policy::plain() },
        ..ServerSettings::roomy()
    }
}

/// Nanoseconds at which a request got its slot.
fn scheduled(response: &ModelInferResponse) -> i64 {
    let bytes = output(response, "first_scheduled_time_ns");
    i64::from_le_bytes(bytes.try_into().expect("eight bytes"))
}

/// Steps as long as it takes until `talk` is over.
fn meanwhile<T: Send>(server: &TestServer, talk: impl FnOnce() -> T + Send) -> T {
    let held = server.hold_engine();
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let talking = scope.spawn(|| {
            let said = talk();
            is_over.store(true, Ordering::SeqCst);
            said
        });
        // Whoever is to come first has to be there: the one that takes the slot, and two that wait.
        server.wait_until("all are there", |app| app.engine.n_live() == 4);
        while !is_over.load(Ordering::SeqCst) && !talking.is_finished() {
            held.make_steps(1);
        }
        talking.join().expect("it goes well")
    })
}

#[test]
fn priority_one_goes_before_who_came_earlier() {
    let server = server(crowded());
    let [ordinary, urgent] = meanwhile(&server, || {
        with_channel(&server, async |channel| {
            let perf = InferTensorContents { bool_contents: vec![true], ..Default::default() };
            let measured = |n_tokens, priority| {
                let mut request = request(n_tokens);
                request.inputs.push(input("return_perf_metrics", "BOOL", perf.clone()));
                let priority = parameter(ParameterChoice::Int64Param(priority));
                request.parameters.insert("priority".into(), priority);
                request
            };
            let mut calls = Vec::new();
            // The first takes the slot; each comes when those before it are there.
            for (n_live, request) in [(1, measured(9, 2)), (2, measured(2, 0)), (3, measured(2, 1))]
            {
                while server.app.engine.n_live() < n_live {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                let mut call = channel.call("ModelInfer").await;
                call.send(&request);
                call.close();
                calls.push(call);
            }
            let mut scheduled_at = Vec::new();
            for mut call in calls {
                let answer: Option<ModelInferResponse> = call.next().await.expect("it is answered");
                scheduled_at.push(scheduled(&answer.expect("an answer")));
            }
            [scheduled_at[1], scheduled_at[2]]
        })
    });
    assert!(urgent < ordinary, "{urgent} {ordinary}");
    server.expect_idle();
}

#[test]
fn over_http_priority_one_goes_before_who_came_earlier() {
    let server = server(crowded());
    let ask = |n_tokens: usize, priority: u32| {
        let asked = json!({ "text_input": "a", "max_tokens": n_tokens, "priority": priority,
                            "return_perf_metrics": true });
        let answer = server.client.post("/v2/models/demo/generate", &asked).ok();
        answer["first_scheduled_time_ns"].as_i64().expect("a number")
    };
    let [ordinary, urgent] = meanwhile(&server, || {
        thread::scope(|scope| {
            let there = |n_live| {
                server.wait_until("it is there", |app| app.engine.n_live() >= n_live);
            };
            scope.spawn(|| ask(9, 2));
            there(2);
            let ordinary = scope.spawn(|| ask(2, 0));
            there(3);
            let urgent = scope.spawn(|| ask(2, 1));
            [ordinary, urgent].map(|asked| asked.join().expect("it is answered"))
        })
    });
    assert!(urgent < ordinary, "{urgent} {ordinary}");
    server.expect_idle();
}

#[test]
fn who_waits_longer_than_its_timeout_is_told_so() {
    let server = server(crowded());
    meanwhile(&server, || {
        thread::scope(|scope| {
            // It has the slot for as long as the others need.
            let body = json!({ "text_input": "a", "max_tokens": 1 << 19 }).to_string();
            let mut running = server.client.connect();
            let path = "/v2/models/demo/generate";
            running.write("POST", path, &[], body.as_bytes()).expect("the server reads");
            server.wait_until("it is there", |app| app.engine.n_live() == 2);
            let waiting = scope.spawn(|| {
                // Microseconds.
                let asked = json!({ "text_input": "a", "max_tokens": 2, "timeout": 1 });
                let reply = server.client.post("/v2/models/demo/generate", &asked);
                assert_eq!(reply.status(), 503, "{}", reply.text());
                assert_eq!(reply.head.header("retry-after"), Some("1"));
                let words = reply.json()["error"].as_str().expect("words").to_owned();
                assert!(words.contains("Request timeout expired"), "{words}");
            });
            with_channel(&server, async |channel| {
                let mut request = request(2);
                let timeout = parameter(ParameterChoice::Int64Param(1));
                request.parameters.insert("timeout".into(), timeout);
                let answered = channel.ask::<ModelInferResponse>("ModelInfer", &request).await;
                let refused = answered.expect_err("nobody leaves the slot");
                assert_eq!(refused.code, UNAVAILABLE, "{refused:?}");
                assert!(refused.words.contains("Request timeout expired"), "{refused:?}");
            });
            waiting.join().expect("it is told");
            drop(running);
        });
    });
    server.expect_idle();
}
