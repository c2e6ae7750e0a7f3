//! A decoding step is launched before the tokens of the one before it are read: shown by the order
//! of calls that the virtual node counts, never by time.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};

use engine::device::CudaExec;
use engine::{
    DeviceKind, EndReason, Engine, EngineConfig, Output, ReaderGone, Request, SamplingParams,
    Terms, Ticket, TokenId,
};
use virtual_node::client::Node;
use virtual_node::report::DeviceCounters;
use weights::presets::preset;
use weights::synthetic::{SyntheticConfig, SyntheticFormat, write_synthetic};
use weights::{Checkpoint, MixerSpec};

/// Tokens of an answer, of which the first comes from the prompt's step.
const N_NEW: usize = 12;

/// The node counts for the whole process.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn tiny(test: &str) -> Arc<Checkpoint> {
    let mut spec = preset("tiny").expect("a preset");
    // Shared by two ranks evenly, so that devices draw.
    spec.vocab_size = 302;
    for block in &mut spec.blocks {
        if let Some(MixerSpec::Attention(attention)) = &mut block.mixer {
            // Heads that a device's kernels know.
            attention.head_dim = 32;
        }
    }
    let format = SyntheticFormat::ModelOptFp8;
    let config = SyntheticConfig { spec, format, n_shards: 1, seed: 3 };
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("ahead-{test}"));
    if dir.exists() {
        std::fs::remove_dir_all(&dir).expect("an earlier run's folder can be removed");
    }
    write_synthetic(&dir, &config, &mut |_, _| {}).expect("it can be written");
    Arc::new(Checkpoint::open(&dir).expect("what we write is valid"))
}

fn boot(checkpoint: &Arc<Checkpoint>, n_ranks: usize, overlaps_steps: bool) -> Engine {
    let config = EngineConfig {
        device: DeviceKind::Cuda,
        n_ranks,
        n_threads: Some(1),
        n_slots: 4,
        n_waiting_max: 8,
        n_tokens_per_step: 32,
        n_context_tokens: Some(64),
        kv_dtype: None,
        kv_bytes: None,
        is_deterministic: true,
        rounds_inputs: false,
        overlaps_steps,
        n_candidates_max: 0,
        host_kv: None,
        policy: engine::Policy::plain(),
        caches_prefixes: false,
    };
    engine::boot(Arc::clone(checkpoint), &config).expect("it boots")
}

fn request() -> Request {
    Request {
        prompt: [3, 1, 4, 1, 5].map(TokenId).to_vec().into(),
        n_new_max: N_NEW,
        stop_tokens: Vec::new().into(),
        sampling: SamplingParams::greedy(),
        n_logprobs: None,
        n_prompt_logprobs: None,
        hashes_logits: false,
        cache_salt: None,
        terms: Terms::ordinary(),
    }
}

fn submit(engine: &Engine, request: Request) -> (Ticket, Receiver<Output>) {
    let (sender, receiver) = channel();
    let deliver = Box::new(move |output| sender.send(output).map_err(|_| ReaderGone));
    (engine.handle().submit(request, deliver).expect("it is taken"), receiver)
}

fn first_token(receiver: &Receiver<Output>) -> u32 {
    let mut outputs = receiver.iter();
    let token = outputs.find_map(|output| match output {
        Output::Token { token, .. } => Some(token.0),
        _ => None,
    });
    token.expect("it begins")
}

/// Its tokens and its end.
fn drain(receiver: &Receiver<Output>) -> (Vec<u32>, EndReason) {
    let mut tokens = Vec::new();
    for output in receiver {
        match output {
            Output::Token { token, .. } => tokens.push(token.0),
            Output::Admitted { .. } | Output::PromptScores(_) => {}
            Output::Finish(finish) => return (tokens, finish.reason),
        }
    }
    panic!("a request ended without its end");
}

fn free_bytes(device: usize) -> usize {
    let exec = CudaExec::open(device).expect("the node has it");
    exec.memory_bytes().expect("it says so").0
}

/// What one request costs each device, and its tokens.
fn counted(engine: Engine, request: Request) -> (Vec<DeviceCounters>, Vec<u32>) {
    let node = Node::open().expect("this runs on the virtual node");
    node.reset();
    let (_ticket, receiver) = submit(&engine, request);
    let (tokens, reason) = drain(&receiver);
    assert_eq!((tokens.len(), reason), (N_NEW, EndReason::Length));
    // All that was launched has run, and nothing is launched any more.
    engine.shutdown();
    (node.counters().devices, tokens)
}

#[test]
fn a_step_is_launched_before_the_tokens_of_the_one_before_it_are_read() {
    let _alone = ONE_AT_A_TIME.lock();
    let checkpoint = tiny("launched");
    let n_decoded = N_NEW as u64 - 1;
    let mut answers = Vec::new();
    for n_ranks in [1, 2] {
        for overlaps_steps in [false, true] {
            let engine = boot(&checkpoint, n_ranks, overlaps_steps);
            let (devices, tokens) = counted(engine, request());
            assert_eq!(devices.len(), n_ranks);
            for device in &devices {
                let graphs = device.graphs;
                assert_eq!(graphs.n_launches, n_decoded, "a launch a step");
                // The first of them lies behind the prompt's step, which is no graph.
                let n_ahead = if overlaps_steps { n_decoded - 1 } else { 0 };
                assert_eq!(graphs.n_ahead, n_ahead, "{n_ranks} ranks, {overlaps_steps}");
            }
            answers.push(tokens);
        }
        // What wants scores is drawn by the host, which a step then waits for.
        let scored = Request { n_logprobs: Some(0), ..request() };
        let (devices, tokens) = counted(boot(&checkpoint, n_ranks, true), scored);
        assert!(devices.iter().all(|device| device.graphs.n_ahead == 0));
        answers.push(tokens);
    }
    // A split sum has other bits on another number of ranks: these are compared among themselves.
    for answers in answers.chunks(3) {
        assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
    }
}

/// On one device a step is waited for once, and nothing else is.
#[test]
fn a_steady_step_waits_for_the_device_once() {
    let _alone = ONE_AT_A_TIME.lock();
    let (devices, _) = counted(boot(&tiny("waits"), 1, true), request());
    // The driver's clean-up at the end waits for what is left: nothing is, but it is counted.
    let n_syncs = devices[0].n_host_syncs;
    println!("{n_syncs} waits");
    let n_steps = N_NEW as u64;
    assert!((n_steps..=n_steps + 2).contains(&n_syncs), "{n_syncs} waits in {n_steps} steps");
}

#[test]
fn what_ends_while_its_next_row_runs_leaves_nothing_behind() {
    let _alone = ONE_AT_A_TIME.lock();
    let checkpoint = tiny("ends");
    let engine = boot(&checkpoint, 2, false);
    let (_ticket, plain) = submit(&engine, request());
    let (expected, _) = drain(&plain);
    engine.shutdown();
    let engine = boot(&checkpoint, 2, true);
    // A token that comes first at its place.
    let is_new = |&at: &usize| !expected[..at].contains(&expected[at]);
    let at = (1..N_NEW - 1).rev().find(is_new).expect("not one token for ever");
    let stopping = Request { stop_tokens: vec![TokenId(expected[at])].into(), ..request() };
    let long = Request { n_new_max: 50, ..request() };
    let (_kept, stops) = submit(&engine, stopping);
    let (_also_kept, goes_on) = submit(&engine, request());
    let (ticket, cancelled) = submit(&engine, long);
    assert_eq!(first_token(&cancelled), expected[0]);
    drop(ticket);
    let (tokens, reason) = drain(&stops);
    assert_eq!((&tokens[..], reason), (&expected[..=at], EndReason::Stop(TokenId(expected[at]))));
    assert_eq!(drain(&goes_on), (expected.clone(), EndReason::Length));
    let (tokens, reason) = drain(&cancelled);
    assert!(expected[1..].iter().zip(&tokens).all(|(expected, token)| expected == token));
    assert!(reason == EndReason::Cancelled || tokens.len() == 49, "{reason:?}");
    // Slots and pages of all of them serve the next.
    for _ in 0..3 {
        let (_ticket, receiver) = submit(&engine, request());
        assert_eq!(drain(&receiver).0, expected);
    }
    assert_eq!(engine.handle().stats().n_pages_used, 0);
}

/// Between two commands a rank has a step on its device that waits for the other ranks. When one of
/// them fails before it has submitted its own, the others' devices must be closed all the same.
#[test]
fn a_rank_that_fails_leaves_no_device_waiting_for_it() {
    let _alone = ONE_AT_A_TIME.lock();
    let checkpoint = tiny("fails");
    let node = Node::open().expect("this runs on the virtual node");
    let n_free = || [0, 1].map(free_bytes);
    let before = n_free();
    let engine = boot(&checkpoint, 2, true);
    assert!(n_free().iter().zip(before).all(|(now, before)| *now < before));
    // Three numbers of rows were run and recorded: six calls. The seventh is a prompt's, and the
    // eighth that of another prompt beside a row that decodes, behind a step that runs.
    node.inject("nccl:rank=0:call=8:error").expect("it is a fault");
    let long = Request { n_new_max: 50, ..request() };
    // The engine's thread waits at the first token until the second request is there.
    let (at_token, is_at_token) = channel();
    let (gate, opened) = channel::<()>();
    let (sender, first) = channel();
    let deliver = move |output| {
        if matches!(output, Output::Token { .. }) {
            // Nobody listens after the first.
            let _ = at_token.send(());
            let _ = opened.recv();
        }
        sender.send(output).map_err(|_| ReaderGone)
    };
    let first_ticket = engine.handle().submit(long.clone(), Box::new(deliver));
    let _ticket = first_ticket.expect("it is taken");
    is_at_token.recv().expect("it begins");
    let prompt = [2, 7, 1, 8, 2].map(TokenId).to_vec().into();
    let (_kept, second) = submit(&engine, Request { prompt, ..long });
    drop((gate, is_at_token));
    for receiver in [&first, &second] {
        assert_eq!(drain(receiver).1, EndReason::EngineFailed);
    }
    engine.shutdown();
    node.clear_faults();
    assert_eq!(n_free(), before, "every rank's thread ended, and gave its memory back");
}
