//! The real program: started, asked, told to stop. Everything else about serving is tested in
//! process, where it is faster.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Ends the program where a test fails before it did.
struct Program {
    child: Child,
    out: BufReader<ChildStdout>,
}

impl Program {
    /// `lnserve` with arguments, listening on a free port. Returns what it printed, too.
    fn start(arguments: &[&str]) -> (Program, String) {
        let mut child = Command::new(env!("CARGO_BIN_EXE_lnserve"))
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the program starts");
        let out = BufReader::new(child.stdout.take().expect("it was piped"));
        let mut program = Program { child, out };
        let mut printed = String::new();
        while !printed.contains("-d '") {
            let n_bytes = program.out.read_line(&mut printed).expect("it is text");
            assert_ne!(n_bytes, 0, "it ended early: {printed}");
        }
        (program, printed)
    }

    fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        let sent = Command::new("kill").args(["-s", name, &id]).status();
        assert!(sent.expect("kill runs").success());
    }

    fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + Duration::from_secs(600);
        loop {
            if let Some(status) = self.child.try_wait().expect("it can be asked") {
                return status;
            }
            assert!(Instant::now() < deadline, "it does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Already ended, as a rule.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The address after `http://`, up to the path.
fn address(printed: &str) -> &str {
    let from = printed.find("http://").expect("it says where") + "http://".len();
    let rest = &printed[from..];
    &rest[..rest.find(|c: char| c == '/' || c.is_whitespace()).expect("something follows")]
}

/// Sends what the printed curl line sends.
fn paste(printed: &str, extra: &str) -> TcpStream {
    let from = printed.find("-d '").expect("a body") + "-d '".len();
    let body = &printed[from..printed.rfind('\'').expect("the body ends")];
    let body = body.replacen('{', &format!("{{{extra}"), 1);
    let mut stream = TcpStream::connect(address(printed)).expect("it listens");
    let length = body.len();
    let head = "POST /v1/chat/completions HTTP/1.1\r\nHost: test\r\nConnection: close\r\n";
    write!(stream, "{head}Content-Length: {length}\r\n\r\n{body}").expect("it reads");
    stream
}

fn read_all(mut stream: TcpStream) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("it answers");
    text
}

#[test]
fn the_printed_line_is_answered_and_a_signal_drains() {
    let (mut program, printed) = Program::start(&["serve", "demo", "--port", "0"]);
    let answer = read_all(paste(&printed, ""));
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains("85"), "27 + 58 in {answer}");
    // A long answer is under way when the signal comes, and is finished.
    let mut stream = paste(&printed, "\"stream\":true,\"ignore_eos\":true,\"max_tokens\":300,");
    let mut first = [0; 1];
    stream.read_exact(&mut first).expect("it has begun");
    program.signal("TERM");
    let rest = read_all(stream);
    assert!(rest.contains("data: [DONE]"), "{}", &rest[rest.len().saturating_sub(300)..]);
    assert_eq!(program.wait().code(), Some(0));
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let (mut program, printed) = Program::start(&["serve", "demo", "--port", "0"]);
    // Much more than sockets hold, and nobody reads it: it cannot be finished meanwhile.
    let endless =
        "\"stream\":true,\"ignore_eos\":true,\"logprobs\":true,\"top_logprobs\":20,\"n\":48,";
    let mut stream = paste(&printed, endless);
    let mut first = [0; 1];
    stream.read_exact(&mut first).expect("it has begun");
    program.signal("INT");
    program.signal("TERM");
    assert_eq!(program.wait().code(), Some(130));
}

/// A folder of a test, gone with it.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_signal_while_a_model_is_loaded_ends_it_at_once_and_leaves_nothing() {
    for (signal, name, status) in [("INT", "Ctrl-C", 130), ("TERM", "SIGTERM", 143)] {
        let folder = std::env::temp_dir().join(format!("lnserve-ended-{}", std::process::id()));
        let folder = Folder(folder);
        let path = folder.0.to_str().expect("it is text");
        let lnserve = || Command::new(env!("CARGO_BIN_EXE_lnserve"));
        let made = lnserve().args(["synth", "--config", "tiny", "--out", path]).output();
        assert!(made.expect("the program starts").status.success());
        // Its tokenizer is a pipe: who opens it waits for the other end, and who reads it for more.
        let pipe = folder.0.join("tokenizer.json");
        fs::remove_file(&pipe).expect("there was one");
        assert!(Command::new("mkfifo").arg(&pipe).status().expect("mkfifo runs").success());
        let names = || {
            let entries = fs::read_dir(&folder.0).expect("it is there");
            let names = entries.map(|entry| entry.expect("it is read").file_name());
            names.collect::<BTreeSet<_>>()
        };
        let before = names();
        let child = lnserve()
            .args(["serve", path, "--port", "0", "--log", "error"])
            .current_dir(&folder.0)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let mut child = child.expect("the program starts");
        let held = OpenOptions::new().write(true).open(&pipe).expect("it opens the other end");
        let sent = Command::new("kill").args(["-s", signal, &child.id().to_string()]).status();
        assert!(sent.expect("kill runs").success());
        let ended = child.wait().expect("it ends, though nobody has closed the pipe");
        drop(held);
        assert_eq!(ended.code(), Some(status), "{signal}");
        let mut said = [String::new(), String::new()];
        child.stdout.take().expect("piped").read_to_string(&mut said[0]).expect("it is text");
        child.stderr.take().expect("piped").read_to_string(&mut said[1]).expect("it is text");
        let model = folder.0.file_name().expect("a name").to_string_lossy();
        let line = format!("lnserve: {name} while {model} was loaded; nothing is kept\n");
        assert_eq!(said, [String::new(), line]);
        assert_eq!(names(), before, "it leaves nothing behind");
    }
}

#[test]
fn a_taken_port_is_said_in_one_line() {
    let (program, printed) = Program::start(&["serve", "demo", "--port", "0"]);
    let port = address(&printed).rsplit(':').next().expect("a port");
    let second = Command::new(env!("CARGO_BIN_EXE_lnserve"))
        .args(["serve", "demo", "--port", port, "--log", "error"])
        .output()
        .expect("the program starts");
    assert_eq!(second.status.code(), Some(1));
    let error = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(error.contains(&format!("cannot listen on 127.0.0.1:{port}")), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
    drop(program);
}

#[test]
fn a_tokenizer_that_its_library_panics_over_is_said_in_one_line() {
    let dir = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("tokenizer-that-panics");
    let _ = std::fs::remove_dir_all(&dir);
    let run = |arguments: &[&str]| {
        let command = &mut Command::new(env!("CARGO_BIN_EXE_lnserve"));
        command.args(arguments).arg(&dir).output().expect("the program starts")
    };
    assert!(run(&["synth", "--config", "tiny", "--out"]).status.success());
    let file = dir.join("tokenizer.json");
    let text = std::fs::read_to_string(&file).expect("it was written");
    let broken = text.replacen(
        "\"continuing_subword_prefix\":null",
        "\"continuing_subword_prefix\":\"long\"",
        1,
    );
    let broken = broken.replacen("\"merges\":[]", "\"merges\":[\"a b\"]", 1);
    assert_eq!(broken.len(), text.len() + 2 + 5, "both are there");
    std::fs::write(&file, broken).expect("it can be written");
    let refused = run(&["serve", "--port", "0", "--log", "error"]);
    let error = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{error}");
    assert!(error.contains("the tokenizers library gave it up: start byte index 4"), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
    let _ = std::fs::remove_dir_all(&dir);
}

/// `lnserve bench` on a server: its status, and what it printed.
fn bench(arguments: &[&str]) -> (Option<i32>, String) {
    let ended = Command::new(env!("CARGO_BIN_EXE_lnserve"))
        .arg("bench")
        .args(arguments)
        .output()
        .expect("the program starts");
    let said = [&ended.stdout[..], &ended.stderr[..]].map(String::from_utf8_lossy).concat();
    (ended.status.code(), said)
}

#[test]
fn a_measurement_ends_with_a_status_that_says_what_it_is_worth() {
    let (server, printed) = Program::start(&["serve", "demo", "--port", "0"]);
    let url = format!("http://{}", address(&printed));
    let folder = Folder(std::env::temp_dir().join(format!("lnserve-bench-{}", std::process::id())));
    fs::create_dir(&folder.0).expect("there is none");
    let file = |name: &str| folder.0.join(name).to_str().expect("it is text").to_owned();
    // However slow the machine is: it is not the generator that is tested here.
    let patient = ["--url", &url, "--quiet", "--isl", "24", "--osl", "4", "--lag-max-ms", "1e9"];
    let measure = |more: &[&str]| bench(&[&patient[..], more].concat());

    let (json, csv, html) = (file("a.json"), file("a.csv"), file("a.html"));
    let outputs = ["--json", &json, "--csv", &csv, "--html", &html];
    let ramp = ["--rate", "20", "--arrivals", "ramp", "--ramp-to", "60", "--duration", "0.5"];
    let (status, said) = measure(&[&ramp[..], &outputs].concat());
    assert_eq!(status, Some(0), "{said}");
    // Half a second at 40 a second in the mean.
    let lines = fs::read_to_string(&csv).expect("it was written").lines().count();
    assert_eq!(lines, 1 + 20, "a line a request and one of names");
    assert!(fs::read_to_string(&html).expect("it was written").contains("<svg"));

    // What a user gave: the questions of a file.
    let talk = r#"[{"conversations": [{"from": "human", "value": "What is 1 + 1?"},
                                      {"from": "gpt", "value": "It is 2."}]}]"#;
    fs::write(folder.0.join("talk.json"), talk).expect("it can be written");
    let dataset = format!("sharegpt:{}", file("talk.json"));
    let asked = ["--url", &url, "--quiet", "--lag-max-ms", "1e9", "--dataset", &dataset];
    let (status, said) = bench(&[&asked[..], &["--concurrency", "1"]].concat());
    assert_eq!(status, Some(0), "{said}");

    // A limit that every rate keeps: it is doubled until nothing more is tried.
    let found = file("found.json");
    let search = ["--find-rate", "--slo", "e2e=1e9", "--requests", "2", "--json", &found];
    let (status, said) = measure(&[&["--rate", "50", "--warmup", "0"][..], &search].concat());
    assert_eq!(status, Some(0), "{said}");
    assert!(said.contains("nothing higher was tried"), "{said}");

    // The generator is never on time to a millionth of a millisecond.
    let late = ["--url", &url, "--quiet", "--isl", "24", "--osl", "4", "--lag-max-ms", "0.000001"];
    let (status, said) = bench(&[&late[..], &["--rate", "50", "--requests", "4"]].concat());
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("INVALID") && said.contains("the generator lagged"), "{said}");

    let (status, said) = bench(&["compare", &json, &json, "--max-regression", "5"]);
    assert_eq!(status, Some(0), "{said}");
    // Twice as slow as it was.
    let slower = fs::read_to_string(&json).expect("it was written");
    let mut slower: serde_json::Value = serde_json::from_str(&slower).expect("JSON");
    for figure in slower["intervals"][0]["figures"].as_array_mut().expect("a list") {
        let mean = figure[1]["mean"].as_f64().expect("a number");
        figure[1]["mean"] = serde_json::json!(mean * 2.0);
    }
    fs::write(file("b.json"), slower.to_string()).expect("it can be written");
    let (status, said) = bench(&["compare", &json, &file("b.json"), "--max-regression", "5"]);
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("is worse by 100.0 %"), "{said}");

    drop(server);
    let (status, said) = measure(&["--concurrency", "1", "--requests", "1"]);
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("nobody answers at"), "{said}");
    let (status, said) = bench(&["--find-rate"]);
    assert_eq!(status, Some(2), "{said}");
}

#[test]
fn a_trace_is_replayed_at_its_own_moments() {
    let (_server, printed) = Program::start(&["serve", "demo", "--port", "0"]);
    let url = format!("http://{}", address(&printed));
    let folder = Folder(std::env::temp_dir().join(format!("lnserve-trace-{}", std::process::id())));
    fs::create_dir(&folder.0).expect("there is none");
    let file = |name: &str| folder.0.join(name).to_str().expect("it is text").to_owned();
    let replay = |trace: &str, more: &[&str]| {
        fs::write(file("trace.jsonl"), trace).expect("it can be written");
        let (dataset, csv) = (format!("mooncake:{}", file("trace.jsonl")), file("trace.csv"));
        let asked = ["--url", &url, "--quiet", "--lag-max-ms", "1e9", "--warmup", "0"];
        let files = ["--dataset", &dataset, "--csv", &csv];
        let (status, said) = bench(&[&asked[..], &files, more].concat());
        let rows = fs::read_to_string(&csv).unwrap_or_default();
        let _ = fs::remove_file(&csv);
        let rows: Vec<Vec<String>> =
            rows.lines().map(|row| row.split(',').map(str::to_owned).collect()).collect();
        (status, said, rows)
    };

    // As Mooncake publishes them: lengths, and a name for each 512 tokens of a prompt.
    let trace = r#"
{"timestamp": 27000, "input_length": 560, "output_length": 8, "hash_ids": [46, 47]}
{"timestamp": 27100, "input_length": 60, "output_length": 12, "hash_ids": [48]}

{"timestamp": 27300, "input_length": 590, "output_length": 16, "hash_ids": [46, 49]}
{"timestamp": 27450, "input_length": 40, "output_length": 10}
"#;
    let (status, said, rows) = replay(trace, &["--speed", "2"]);
    assert_eq!(status, Some(0), "{said}");
    assert!(said.contains("as traced, 2 times as fast"), "{said}");
    assert!(said.contains("4 asked for again alone, all the same"), "{said}");
    let place = |name: &str| rows[0].iter().position(|given| given == name).expect("a column");
    let columns = ["intended_s", "outcome", "prompt_tokens", "output_tokens"].map(place);
    let told: Vec<[&str; 4]> =
        rows[1..].iter().map(|row| columns.map(|column| row[column].as_str())).collect();
    let expected = [
        ["0.000000", "done", "560", "8"],
        ["0.050000", "done", "60", "12"],
        ["0.150000", "done", "590", "16"],
        ["0.225000", "done", "40", "10"],
    ];
    assert_eq!(told, expected, "{said}");

    // What has the same name is the same text, and the server still has it.
    let known = r#"{"timestamp": 0, "input_length": 530, "output_length": 8, "hash_ids": [46]}"#;
    let (status, said, rows) = replay(known, &["--check-answers", "0"]);
    assert_eq!(status, Some(0), "{said}");
    let n_cached: usize = rows[1][place("cached_tokens")].parse().expect("a count");
    assert!((480..=512).contains(&n_cached), "{n_cached} of 512: {said}");

    let (status, said, _) = replay(&trace.replace("[46, 49]", "[46, 49, 50]"), &[]);
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("trace.jsonl, line 5: more hash_ids than blocks of 512"), "{said}");
}

#[test]
fn every_option_of_a_measurement_can_be_given() {
    let (_server, printed) = Program::start(&["serve", "demo", "--port", "0", "--api-key", "k"]);
    let url = format!("http://{}", address(&printed));
    let measure = |options: &str| {
        // However slow the machine is: it is not the generator that is tested here.
        let always = format!("--url {url} --api-key k --quiet --lag-max-ms 1e9 --requests 4");
        bench(&always.split(' ').chain(options.split(' ')).collect::<Vec<_>>())
    };
    let rows: &[(&str, &str)] = &[
        ("--endpoint chat --model demo --threads 1", "4 of 4 answered"),
        ("--endpoint completions", "run 1: completions, 1 user"),
        ("--endpoint generate", "run 1: generate, 1 user"),
        ("--endpoint generate-stream", "run 1: generate-stream, 1 user"),
        ("--endpoint infer --concurrency 2", "run 1: infer, 2 users"),
        ("--compare-protocols", "run 5: "),
        ("--preset s1 --concurrency 2", "4 of 4 answered"),
        ("--preset s2 --concurrency 2", "4 of 4 answered"),
        ("--preset mlperf-server --rate 40", "4 of 4 answered"),
        ("--preset mlperf-interactive --rate 40", "4 of 4 answered"),
        ("--rate 40", "4 of 4 answered"),
        ("--rate 40 --arrivals gamma --burstiness 0.3", "4 of 4 answered"),
        ("--rate 40 --arrivals constant --max-in-flight 1", "4 of 4 answered"),
        ("--rate 40 --arrivals ramp --ramp-to 80 --duration 1", "4 of 4 answered"),
        ("--shared-prefix 20 --prefixes 2 --warmup 1", "4 of 4 answered"),
        ("--turns 2-3 --think-time 0.01", "4 of 4 answered"),
        ("--thinking 0.5", "4 of 4 answered"),
        ("--cancel 1", "4 cancelled"),
        ("--temperature 0.8 --natural-end --seed 9", "seed 9"),
        ("--slo ttft=1e9 --slo tpot=1e9 --slo e2e=1e9 --slo-percentile 90", "goodput"),
        ("--repeats 2 --check-answers 2", "run 2: "),
        ("--timeout 600", "4 of 4 answered"),
    ];
    for (options, expected) in rows {
        let (status, said) = measure(&format!("--isl 40 --osl 12 {options}"));
        assert!(said.contains(expected), "{options}: {said}");
        assert_eq!(status, Some(0), "{options}: {said}");
    }
    // Lengths that are drawn; short answers may be of tokens without text, which is said.
    for lengths in ["--isl 40-60 --osl 12-16", "--isl lognormal:60,10 --osl lognormal:16,2"] {
        let (status, said) = measure(lengths);
        assert_eq!(status, Some(0), "{lengths}: {said}");
    }
}
