//! Workloads out of files: conversations as ShareGPT has them, and traces in Mooncake's format.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;

use super::error::BenchError;
use super::lengths::N_TOKENS_MAX;

/// Bytes of a file at most.
const N_FILE_BYTES_MAX: u64 = 4 << 30;

/// Entries of a file at most.
const N_ENTRIES_MAX: usize = 10_000_000;

/// Tokens behind each of a trace's hashes: what Mooncake's published traces use.
pub const N_TRACE_BLOCK_TOKENS: usize = 512;

/// What a person said and what the model answered, turn by turn.
pub type Conversation = Vec<(String, String)>;

/// One line of a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceEntry {
    /// When it came, from the trace's first.
    pub at: Duration,
    /// Tokens of the prompt.
    pub n_in: usize,
    /// Tokens of the answer.
    pub n_out: usize,
    /// What the prompt consists of, block by block: equal hashes are equal texts.
    pub blocks: Vec<u64>,
}

/// Reads `[{"conversations": [{"from": "human", "value": …}, {"from": "gpt", "value": …}, …]}, …]`.
/// Conversations that do not begin with a question and its answer are left out.
///
/// # Errors
/// The file cannot be read, is something else, or has no conversation.
pub fn share_gpt(path: &Path) -> Result<Vec<Conversation>, BenchError> {
    #[derive(Deserialize)]
    struct Entry {
        conversations: Vec<Said>,
    }
    #[derive(Deserialize)]
    struct Said {
        from: String,
        value: String,
    }
    let entries: Vec<Entry> = serde_json::from_reader(open(path)?).map_err(|error| {
        let problem = format!("{error}; ShareGPT's JSON is a list of {{\"conversations\": […]}}");
        content(path, format!("line {}", error.line()), problem)
    })?;
    let is_person = |said: &Said| matches!(said.from.as_str(), "human" | "user");
    let is_model = |said: &Said| matches!(said.from.as_str(), "gpt" | "assistant" | "chatgpt");
    let mut conversations = Vec::new();
    for entry in entries {
        let pairs = entry.conversations.chunks_exact(2);
        let turns: Conversation = pairs
            .take_while(|pair| is_person(&pair[0]) && is_model(&pair[1]))
            .filter(|pair| !pair[0].value.trim().is_empty() && !pair[1].value.trim().is_empty())
            .map(|pair| (pair[0].value.clone(), pair[1].value.clone()))
            .collect();
        if !turns.is_empty() {
            conversations.push(turns);
        }
    }
    match conversations.is_empty() {
        true => Err(content(path, "all of it".into(), "no question with an answer".into())),
        false => Ok(conversations),
    }
}

/// Reads lines of `{"timestamp": ms, "input_length": n, "output_length": n, "hash_ids": [n, …]}`.
///
/// # Errors
/// The file cannot be read, a line is something else, or there is none.
pub fn mooncake(path: &Path) -> Result<Vec<TraceEntry>, BenchError> {
    #[derive(Deserialize)]
    struct Line {
        timestamp: f64,
        input_length: usize,
        output_length: usize,
        #[serde(default)]
        hash_ids: Vec<u64>,
    }
    let mut entries: Vec<TraceEntry> = Vec::new();
    for (line_idx, line) in open(path)?.lines().enumerate() {
        let place = || format!("line {}", line_idx + 1);
        let line = line.map_err(|source| BenchError::File { path: path.to_owned(), source })?;
        if line.trim().is_empty() {
            continue;
        }
        let line: Line = serde_json::from_str(&line).map_err(|error| {
            let form = "a line is {\"timestamp\": ms, \"input_length\": n, \"output_length\": n, \
                        \"hash_ids\": [n, …]}";
            content(path, place(), format!("{error}; {form}"))
        })?;
        let lengths = 1..=N_TOKENS_MAX;
        let at = Duration::try_from_secs_f64(line.timestamp / 1e3);
        let (true, true, Ok(at)) =
            (lengths.contains(&line.input_length), lengths.contains(&line.output_length), at)
        else {
            let problem = "lengths are from 1 to 10,000,000, timestamps are not negative";
            return Err(content(path, place(), problem.into()));
        };
        if line.hash_ids.len() > line.input_length.div_ceil(N_TRACE_BLOCK_TOKENS) {
            let problem = "more hash_ids than blocks of 512 tokens";
            return Err(content(path, place(), problem.into()));
        }
        if entries.len() == N_ENTRIES_MAX {
            return Err(content(path, place(), "more than 10,000,000 lines".into()));
        }
        let (n_in, n_out, blocks) = (line.input_length, line.output_length, line.hash_ids);
        entries.push(TraceEntry { at, n_in, n_out, blocks });
    }
    entries.sort_by_key(|entry| entry.at);
    let Some(first) = entries.first().map(|entry| entry.at) else {
        return Err(content(path, "all of it".into(), "no line".into()));
    };
    entries.iter_mut().for_each(|entry| entry.at -= first);
    Ok(entries)
}

fn open(path: &Path) -> Result<impl BufRead + use<>, BenchError> {
    let io = |source| BenchError::File { path: path.to_owned(), source };
    let file = File::open(path).map_err(io)?;
    let n_bytes = file.metadata().map_err(io)?.len();
    if n_bytes > N_FILE_BYTES_MAX {
        return Err(content(path, "all of it".into(), "more than 4 GiB: cut it".into()));
    }
    Ok(BufReader::new(file.take(N_FILE_BYTES_MAX)))
}

fn content(path: &Path, place: String, problem: String) -> BenchError {
    BenchError::Content { path: path.to_owned(), place, problem }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    struct TestFile(PathBuf);

    impl TestFile {
        fn new(name: &str, text: &str) -> TestFile {
            let path = std::env::temp_dir().join(format!("lnserve-{}-{name}", std::process::id()));
            std::fs::write(&path, text).expect("a file can be written");
            TestFile(path)
        }
    }

    impl Drop for TestFile {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    #[test]
    fn conversations_are_questions_with_answers() {
        let text = r#"[
            {"id": "a", "conversations": [
                {"from": "human", "value": "1?"}, {"from": "gpt", "value": "1."},
                {"from": "human", "value": "2?"}, {"from": "gpt", "value": "2."},
                {"from": "human", "value": "3?"}]},
            {"conversations": [{"from": "gpt", "value": "I begin"}]},
            {"conversations": [{"from": "user", "value": "b"}, {"from": "assistant", "value": "c"}]}
        ]"#;
        let file = TestFile::new("share.json", text);
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        let expected = vec![vec![pair("1?", "1."), pair("2?", "2.")], vec![pair("b", "c")]];
        assert_eq!(share_gpt(&file.0).expect("it is ShareGPT's"), expected);
    }

    #[test]
    fn a_trace_begins_at_its_first_request() {
        let text = "{\"timestamp\": 3000, \"input_length\": 600, \"output_length\": 5, \
                    \"hash_ids\": [0, 7]}\n\n{\"timestamp\": 1500, \"input_length\": 9, \
                    \"output_length\": 1}\n";
        let file = TestFile::new("trace.jsonl", text);
        let ms = Duration::from_millis;
        assert_eq!(
            mooncake(&file.0).expect("it is a trace"),
            [
                TraceEntry { at: ms(0), n_in: 9, n_out: 1, blocks: vec![] },
                TraceEntry { at: ms(1500), n_in: 600, n_out: 5, blocks: vec![0, 7] },
            ]
        );
    }

    #[test]
    fn bad_files_are_named_with_line_and_form() {
        let line = "{\"timestamp\": 0, \"input_length\": 1, \"output_length\": 1}\n";
        let traces = [
            ("".to_owned(), "no line"),
            (format!("{line}nonsense"), "line 2"),
            (format!("{line}{}", line.replace(": 0", ": -5")), "line 2: lengths are from 1"),
            (line.replace("\"input_length\": 1", "\"input_length\": 0"), "line 1: lengths"),
            (line.replace("}", ", \"hash_ids\": [1, 2]}"), "more hash_ids than blocks"),
        ];
        for (idx, (text, expected)) in traces.iter().enumerate() {
            let file = TestFile::new(&format!("bad-{idx}.jsonl"), text);
            let message = mooncake(&file.0).expect_err(text).to_string();
            assert!(message.contains(expected) && message.contains("bad-"), "{message}");
        }
        for (idx, text) in ["[]", "{}", "[{\"conversations\": 1}]"].iter().enumerate() {
            let file = TestFile::new(&format!("bad-{idx}.json"), text);
            let message = share_gpt(&file.0).expect_err(text).to_string();
            assert!(message.contains("bad-"), "{message}");
        }
        let message = mooncake(Path::new("/nowhere/at all")).expect_err("missing").to_string();
        assert!(message.starts_with("/nowhere/at all: "), "{message}");
    }
}
