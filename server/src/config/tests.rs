//! Defaults, every option, and what is refused.

use std::time::Duration;

use engine::{Policy, Priorities};

use super::*;

fn parse(line: &str) -> Result<Command, clap::Error> {
    let words = std::iter::once("lnserve").chain(line.split_whitespace());
    Settings::parse(words.map(OsString::from).collect(), None).map(|settings| settings.command)
}

fn refusal(line: &str) -> String {
    let error = parse(line).expect_err(line);
    assert_eq!(error.exit_code(), 2, "{error}");
    error.to_string()
}

fn serve(line: &str) -> ServeCommand {
    match parse(line).expect(line) {
        Command::Serve(command) => *command,
        other => panic!("{line} is {other:?}"),
    }
}

#[test]
fn no_arguments_serve_the_demo_model() {
    for line in ["", "serve", "serve demo"] {
        let command = serve(line);
        assert_eq!(command.model, ModelSource::Demo);
        assert_eq!((command.host.as_str(), command.port), ("127.0.0.1", 8000));
        assert!(command.served_model_names.is_empty());
        let engine = command.engine;
        assert_eq!((engine.device, engine.n_ranks, engine.n_threads), (DeviceKind::Cpu, 1, None));
        assert_eq!((engine.n_slots, engine.n_waiting_max), (64, 512));
        assert_eq!((engine.n_tokens_per_step, engine.n_context_tokens), (512, None));
        assert_eq!((engine.kv_dtype, engine.kv_bytes), (None, None));
        assert!(!engine.is_deterministic);
        let priorities = Priorities { n_levels: 3, default_level: 2, n_steps_a_level: 256 };
        assert_eq!(engine.policy, Policy { priorities, ..Policy::plain() });
    }
}

#[test]
fn every_option_of_serve_arrives() {
    let command = serve(
        "serve some/dir --host 0.0.0.0 --port 9 --device cpu --tp 8 --max-seqs 3 --max-waiting 0 \
         --max-tokens-per-step 64 --max-model-len 1000 --kv-dtype fp8 --kv-memory 1.5GiB \
         --served-model-name a --served-model-name b --api-key secret --threads 16 \
         --deterministic --no-prefix-cache --speculate ngram:5 --priority-levels 4 \
         --priority-steps 9 --itl-target-ms 30 --queue-timeout 5",
    );
    assert_eq!(command.model, ModelSource::Directory(PathBuf::from("some/dir")));
    assert_eq!((command.host.as_str(), command.port), ("0.0.0.0", 9));
    assert_eq!(command.served_model_names, ["a", "b"]);
    assert_eq!(command.callers.api_keys, ["secret"]);
    let engine = command.engine;
    assert_eq!((engine.n_ranks, engine.n_threads), (8, Some(16)));
    assert_eq!((engine.n_slots, engine.n_waiting_max), (3, 0));
    assert_eq!((engine.n_tokens_per_step, engine.n_context_tokens), (64, Some(1000)));
    assert_eq!((engine.kv_dtype, engine.kv_bytes), (Some(KvDtype::Fp8), Some(3 << 29)));
    assert!(engine.is_deterministic);
    assert!(!engine.caches_prefixes && serve("serve some/dir").engine.caches_prefixes);
    assert_eq!(engine.n_candidates_max, 5);
    let priorities = Priorities { n_levels: 4, default_level: 2, n_steps_a_level: 9 };
    let policy = Policy {
        priorities,
        step_target: Some(Duration::from_millis(30)),
        queue_timeout: Some(Duration::from_secs(5)),
    };
    assert_eq!(engine.policy, policy);
    assert_eq!(serve("serve some/dir").engine.n_candidates_max, 0);
}

#[test]
fn kv_types_are_named_as_documented() {
    let cases = [
        ("auto", None),
        ("bf16", Some(KvDtype::Bf16)),
        ("fp8", Some(KvDtype::Fp8)),
        ("f32", Some(KvDtype::F32)),
    ];
    for (name, kv_dtype) in cases {
        assert_eq!(serve(&format!("serve --kv-dtype {name}")).engine.kv_dtype, kv_dtype);
    }
}

#[test]
fn chat_runs_one_sequence() {
    let Ok(Command::Chat(command)) = parse("chat --thinking off --prompt hi --max-tokens 9") else {
        panic!("not chat");
    };
    assert_eq!(command.model, ModelSource::Demo);
    assert_eq!(command.thinking, Some(Thinking::Off));
    assert_eq!(command.prompt.as_deref(), Some("hi"));
    assert_eq!(command.sampling.n_new_max, Some(9));
    assert_eq!((command.engine.n_slots, command.engine.n_waiting_max), (1, 1));
}

#[test]
fn inspect_and_synth_take_what_they_need() {
    let Ok(Command::Inspect(command)) = parse("inspect ultra-253b --tp 8") else {
        panic!("not inspect");
    };
    assert_eq!((command.model.as_str(), command.engine.n_ranks), ("ultra-253b", 8));
    let formats = [
        ("bf16", SyntheticFormat::Bf16),
        ("modelopt-fp8", SyntheticFormat::ModelOptFp8),
        ("fp8-dynamic", SyntheticFormat::Fp8Dynamic),
        ("f32", SyntheticFormat::F32),
        ("f16", SyntheticFormat::F16),
    ];
    for (name, format) in formats {
        let line = format!("synth --config tiny --out d --format {name} --shards 3 --seed 7");
        let Ok(Command::Synth(command)) = parse(&line) else { panic!("not synth") };
        assert_eq!((command.config.as_str(), command.out), ("tiny", PathBuf::from("d")));
        assert_eq!((command.format, command.n_shards, command.seed), (format, Some(3), 7));
        assert!(!command.is_sparse);
    }
    let Ok(Command::Synth(command)) = parse("synth --config ultra-253b --sparse --out d") else {
        panic!("not synth");
    };
    assert_eq!((command.n_shards, command.is_sparse), (None, true));
}

#[test]
fn plan_and_verify_take_what_they_need() {
    let plan = |line: &str| match parse(line).expect(line) {
        Command::Plan(command) => command,
        other => panic!("{line} is {other:?}"),
    };
    let command = plan("plan ultra-253b");
    assert_eq!((command.model.as_str(), command.device_bytes), ("ultra-253b", 81_559 << 20));
    assert_eq!((command.format, command.is_json), (SyntheticFormat::ModelOptFp8, false));
    let engine = command.engine;
    assert_eq!((engine.device, engine.n_ranks, engine.n_slots), (DeviceKind::Cuda, 8, 64));
    assert_eq!((engine.n_tokens_per_step, engine.kv_dtype), (512, None));
    let command = plan(
        "plan config.json --gpus 2 --gpu-memory 143771MiB --kv-dtype fp8 --max-seqs 3 --json \
         --max-tokens-per-step 64 --max-model-len 1000 --kv-memory 2GiB --format bf16",
    );
    assert_eq!((command.device_bytes, command.is_json), (143_771 << 20, true));
    let engine = command.engine;
    assert_eq!((engine.n_ranks, engine.n_slots, engine.n_tokens_per_step), (2, 3, 64));
    assert_eq!((engine.n_context_tokens, engine.kv_bytes), (Some(1000), Some(2 << 30)));
    assert_eq!((engine.kv_dtype, command.format), (Some(KvDtype::Fp8), SyntheticFormat::Bf16));
    let Ok(Command::Verify(command)) = parse("verify some/dir --threads 3") else {
        panic!("not verify");
    };
    assert_eq!(command, VerifyCommand { dir: PathBuf::from("some/dir"), n_threads: 3 });
}

#[test]
fn wrong_usage_names_the_option_and_the_remedy() {
    let cases: [(&str, &[&str]); 9] = [
        ("serve --kv-memory 2gigs", &["--kv-memory", "unknown unit \"gigs\"", "GiB"]),
        ("serve --kv-memory lots", &["--kv-memory", "512MiB"]),
        ("serve --kv-dtype int4", &["--kv-dtype", "[possible values: auto, bf16, fp8, f32]"]),
        ("serve --device tpu", &["--device", "cpu"]),
        ("serve --tp 0", &["--tp", "at least 1"]),
        ("serve --port 70000", &["--port", "65535"]),
        ("chat --thinking maybe", &["--thinking", "on, off"]),
        ("synth --out d", &["--config"]),
        ("serv", &["serve"]),
    ];
    for (line, expected) in cases {
        let message = refusal(line);
        for words in expected {
            assert!(message.contains(words), "{line} says: {message}");
        }
    }
}

#[test]
fn help_mentions_every_option_and_its_default() {
    let help = |line: &str| {
        let error = parse(line).expect_err("help");
        assert_eq!(error.exit_code(), 0);
        error.to_string()
    };
    let every_command = ["--log", "--log-format", "--help"];
    let engine = [
        "--device",
        "--tp",
        "--threads",
        "--max-model-len",
        "--max-tokens-per-step",
        "--kv-dtype",
        "--kv-memory",
    ];
    let serve = [
        "--host",
        "127.0.0.1",
        "--port",
        "8000",
        "--api-key",
        "LNSERVE_API_KEY",
        "--served-model-name",
        "--max-seqs",
        "64",
        "--max-waiting",
        "512",
        "--priority-levels",
        "--priority-steps",
        "256",
        "--itl-target-ms",
        "--queue-timeout",
        "curl",
        "demo",
    ];
    let chat = ["--prompt", "--thinking", "--system", "--temperature", "--top-p", "--seed"];
    let synth = ["--config", "--out", "--format", "fp8-dynamic", "--shards", "--seed", "tiny"];
    let cases: [(&str, &[&[&str]]); 5] = [
        ("--help", &[&["serve", "chat", "inspect", "synth", "Examples", "Exit status"]]),
        ("serve --help", &[&engine, &serve, &every_command]),
        ("chat --help", &[&engine, &chat, &["Ctrl-C"]]),
        ("inspect --help", &[&engine, &["ultra-253b", "--max-seqs"]]),
        ("synth --help", &[&synth]),
    ];
    for (line, groups) in cases {
        let text = help(line);
        for words in groups.iter().flat_map(|group| group.iter()) {
            assert!(text.contains(words), "{words} is not in\n{text}");
        }
        for preset in weights::presets::preset_names().filter(|_| line.starts_with("synth")) {
            assert!(text.contains(preset), "{preset} is not in\n{text}");
        }
    }
}

#[test]
fn a_secret_in_the_environment_is_not_shown_by_help() {
    let text = parse("serve --help").expect_err("help").to_string();
    assert!(text.contains("[env: LNSERVE_API_KEY]"), "{text}");
}

#[test]
fn servers_log_more_than_tools_unless_told() {
    let filter_with = |line: &str, rust_log: Option<&str>| {
        let words = std::iter::once("lnserve").chain(line.split_whitespace());
        let words = words.map(OsString::from).collect();
        let settings = Settings::parse(words, rust_log.map(str::to_owned)).expect(line);
        (settings.log.filter, settings.log.is_json)
    };
    let filter = |line: &str| filter_with(line, None);
    assert_eq!(filter_with("serve", Some("debug")).0, "debug");
    assert_eq!(filter_with("serve --log info", Some("debug")).0, "info");
    assert_eq!(filter("serve"), ("info".to_owned(), false));
    assert_eq!(filter("inspect demo"), ("warn".to_owned(), false));
    assert_eq!(filter("chat --log debug --log-format json"), ("debug".to_owned(), true));
}

#[test]
fn a_model_is_called_after_its_directory() {
    assert_eq!(ModelSource::new("demo").name(), "demo");
    assert_eq!(ModelSource::new("./demo").name(), "demo");
    assert_eq!(ModelSource::new("/no/such/ultra-fp8/").name(), "ultra-fp8");
}

/// What a command line of `lnserve bench` comes to.
fn bench(words: &str) -> Result<bench::MeasureCommand, String> {
    let line = ["lnserve", "bench"].into_iter().chain(words.split_whitespace());
    match Settings::parse(line.map(OsString::from).collect(), None) {
        Ok(Settings { command: Command::Bench(bench::BenchCommand::Measure(command)), .. }) => {
            Ok(*command)
        }
        Ok(other) => panic!("{other:?}"),
        Err(error) => Err(error.to_string()),
    }
}

#[test]
fn a_preset_says_what_the_operator_does_not() {
    use crate::bench::arrivals::{Arrivals, Pattern};
    let settings = bench("--preset s1").expect("a preset").settings;
    assert_eq!(settings.arrivals, Arrivals::Closed { n_users: 250 });
    let work = &settings.described.iter().find(|(name, _)| name == "work").expect("said").1;
    assert_eq!(work, "synthetic, in 500, out 2000");
    let settings = bench("--preset s2 --concurrency 3 --osl 9").expect("overridden").settings;
    assert_eq!(settings.arrivals, Arrivals::Closed { n_users: 3 });
    let settings = bench("--preset mlperf-interactive --rate 2").expect("a preset").settings;
    assert_eq!(settings.arrivals, Arrivals::Open(Pattern::Poisson { rate: 2.0 }));
    assert_eq!(settings.slos.limits.iter().map(|slo| slo.limit_ms).sum::<f64>(), 4580.0);
    assert_eq!((settings.duration.map(|s| s.as_secs()), settings.n_requests), (Some(600), None));
    let settings = bench("").expect("defaults").settings;
    assert_eq!((settings.n_requests, settings.endpoints.len()), (Some(100), 1));
    assert_eq!(bench("--compare-protocols").expect("all").settings.endpoints.len(), 5);
}

#[test]
fn flags_of_a_measurement_that_contradict_each_other_are_refused() {
    for (words, expected) in [
        ("--rate 1 --concurrency 2", "cannot be used with"),
        ("--find-rate", "--rate"),
        ("--find-rate --rate 1", "needs limits to keep"),
        ("--thinking 0.5 --endpoint infer", "only --endpoint chat has"),
        ("--slo ttft=5 --endpoint generate", "answer in one piece"),
        ("--cancel 0.5 --endpoint infer", "answer in one piece"),
        ("--rate 1 --arrivals ramp", "goes with --ramp-to and --duration"),
        ("--dataset mooncake:x --osl 5", "--osl is the trace's"),
        ("--dataset x", "write sharegpt:FILE or mooncake:FILE"),
        ("--url https://a", "TLS is not spoken"),
        ("--isl none", "is no length"),
        ("--slo itl=5", "is no limit"),
        ("--rate 0", "must be from"),
        ("--thinking 2", "must be from 0 to 1"),
        ("compare a.json", "<AFTER>"),
    ] {
        let message = bench(words).expect_err(words);
        assert!(message.contains(expected), "{words}: {message}");
    }
}

#[test]
fn a_shutdown_gives_notice_if_it_is_told_to() {
    let limits = serve("serve").limits;
    assert_eq!((limits.drain_notice, limits.drain_timeout.as_secs()), (Duration::ZERO, 30));
    let limits = serve("serve --drain-notice 10 --drain-timeout 600").limits;
    assert_eq!((limits.drain_notice.as_secs(), limits.drain_timeout.as_secs()), (10, 600));
}
