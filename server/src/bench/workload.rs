//! What is asked: sessions of one or more turns, each drawn from the seed and its own number alone,
//! so that every run, and every protocol, asks the same.

use std::sync::Arc;
use std::time::Duration;

use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use super::ask::{Message, Role};
use super::lengths::Lengths;
use super::source::{N_TRACE_BLOCK_TOKENS, TraceEntry};
use super::words::{LEAD, Words};

/// Where prompts come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// Drawn.
    Synthetic {
        /// Tokens of a turn's prompt, a template's among those of the first.
        n_in: Lengths,
        /// Tokens of an answer.
        n_out: Lengths,
    },
    /// Somebody's conversations: questions, and the tokens of their answers.
    Conversations(Vec<Vec<(Arc<str>, usize)>>),
    /// A trace, whose prompts are drawn block by block.
    Trace(Vec<TraceEntry>),
}

/// What is drawn beside lengths.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    /// Turns of a session.
    pub n_turns: Lengths,
    /// What a person takes from an answer to the next question.
    pub think_time: Duration,
    /// Share of sessions in which the model is told to reason; `None` says nothing about it.
    pub thinking: Option<f64>,
    /// Share of requests that hang up half-way.
    pub cancelled: f64,
    /// Tokens with which prompts begin that are not theirs alone.
    pub n_prefix: usize,
    /// How many such beginnings there are.
    pub n_prefixes: usize,
}

/// All that is asked.
#[derive(Clone, Debug)]
pub struct Workload {
    /// Where prompts come from.
    pub source: Source,
    /// What else is drawn.
    pub shape: Shape,
    /// What prompts are made of.
    pub words: Words,
    /// Decides all draws but those of words.
    pub seed: u64,
    /// Decides words: where two stretches should ask alike, but not find each other's prompts in
    /// the server's cache, only this differs.
    pub text_seed: u64,
}

/// A conversation that is to be held.
#[derive(Clone, Debug, PartialEq)]
pub struct Session {
    /// When it begins, where a trace says so.
    pub at: Option<Duration>,
    /// What it begins with.
    pub system: Option<Message>,
    /// Questions in turn.
    pub turns: Vec<Turn>,
}

/// A question.
#[derive(Clone, Debug, PartialEq)]
pub struct Turn {
    /// Its words.
    pub text: Arc<str>,
    /// Tokens of the answer.
    pub n_out: usize,
    /// Of the answer's draws.
    pub seed: u64,
    /// See [`super::ask::Ask::cancel_after`].
    pub cancel_after: Option<usize>,
}

/// What the family's system message says about reasoning.
pub fn thinking_words(is_on: bool) -> &'static str {
    if is_on { "detailed thinking on" } else { "detailed thinking off" }
}

/// Draws that depend on a seed and a number.
pub(super) fn stream(seed: u64, idx: u64) -> ChaCha8Rng {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(idx);
    random
}

/// Streams of draws that are not a session's.
const PREFIXES: u64 = u64::MAX;
const BLOCKS: u64 = u64::MAX / 2;

impl Workload {
    /// How many sessions there are, where a file bounds them.
    pub fn n_sessions(&self) -> Option<u64> {
        match &self.source {
            Source::Trace(entries) => Some(entries.len() as u64),
            Source::Synthetic { .. } | Source::Conversations(_) => None,
        }
    }

    /// The session of a number.
    pub fn session(&self, idx: u64) -> Session {
        let mut random = stream(self.seed, idx);
        let mut texts = stream(self.text_seed, idx);
        let is_on = self.shape.thinking.map(|share| random.random_bool(share));
        let system =
            is_on.map(|is_on| Message { role: Role::System, text: thinking_words(is_on).into() });
        let (at, questions) = match &self.source {
            Source::Synthetic { n_in, n_out } => {
                let n_turns = self.shape.n_turns.sample(&mut random);
                let turns = (0..n_turns).map(|turn_idx| {
                    let (n_in, n_out) = (n_in.sample(&mut random), n_out.sample(&mut random));
                    (self.question(n_in, turn_idx, &mut texts), n_out)
                });
                (None, turns.collect())
            }
            Source::Conversations(all) => {
                let n_turns = self.shape.n_turns.sample(&mut random);
                let conversation = &all[idx as usize % all.len()];
                (None, conversation.iter().take(n_turns).cloned().collect::<Vec<_>>())
            }
            Source::Trace(entries) => {
                let entry = &entries[idx as usize % entries.len()];
                (Some(entry.at), vec![(self.traced(entry, &mut texts), entry.n_out)])
            }
        };
        let turns = questions.into_iter().map(|(text, n_out)| {
            let is_cancelled = random.random_bool(self.shape.cancelled);
            Turn {
                text,
                n_out,
                // What every server's integers hold.
                seed: random.random_range(0..1 << 31),
                cancel_after: is_cancelled.then(|| random.random_range(1..=n_out.div_ceil(2))),
            }
        });
        Session { at, system, turns: turns.collect() }
    }

    fn question(&self, n_in: usize, turn_idx: usize, random: &mut ChaCha8Rng) -> Arc<str> {
        if turn_idx > 0 {
            return self.words.text(n_in, random).trim_start().into();
        }
        if self.shape.n_prefix == 0 {
            return self.words.prompt(n_in, random).into();
        }
        // What a template puts around it is shared too.
        let n_prefix = self.shape.n_prefix.min(n_in).max(self.words.n_min());
        let prefix_idx = random.random_range(0..self.shape.n_prefixes as u64);
        let mut shared = stream(self.text_seed, PREFIXES - prefix_idx);
        let prefix = self.words.prompt(n_prefix, &mut shared);
        let n_rest = n_in.saturating_sub(n_prefix);
        format!("{prefix}{}", self.words.text(n_rest, random)).into()
    }

    fn traced(&self, entry: &TraceEntry, random: &mut ChaCha8Rng) -> Arc<str> {
        let mut text = LEAD.to_owned();
        // The first block has the lead, and what a template adds.
        let mut n_left = entry.n_in;
        let mut n_missing = self.words.n_min();
        for block in &entry.blocks {
            let n_block = n_left.min(N_TRACE_BLOCK_TOKENS);
            n_left -= n_block;
            let mut of_block = stream(self.text_seed, BLOCKS ^ block);
            text += &self.words.text(n_block.saturating_sub(n_missing), &mut of_block);
            n_missing = n_missing.saturating_sub(n_block);
        }
        text += &self.words.text(n_left.saturating_sub(n_missing), random);
        text.into()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::words::N_REPEATS;
    use super::*;

    /// A token a word, and four around them.
    pub(in crate::bench) fn words() -> Words {
        let counts = super::super::words::CANDIDATES.map(|word| (word, 5 + N_REPEATS));
        Words::counted(5, &counts).expect("they add up")
    }

    fn n_tokens(text: &str) -> usize {
        4 + text.split_whitespace().count()
    }

    pub(in crate::bench) fn plain() -> Shape {
        Shape {
            n_turns: Lengths::Fixed { n: 1 },
            think_time: Duration::ZERO,
            thinking: None,
            cancelled: 0.0,
            n_prefix: 0,
            n_prefixes: 1,
        }
    }

    fn workload(source: Source, shape: Shape) -> Workload {
        Workload { source, shape, words: words(), seed: 11, text_seed: 12 }
    }

    fn drawn(shape: Shape) -> Workload {
        let n_in = Lengths::Uniform { min: 20, max: 90 };
        workload(Source::Synthetic { n_in, n_out: Lengths::Fixed { n: 8 } }, shape)
    }

    #[test]
    fn a_session_depends_on_seed_and_number_alone() {
        let workload = drawn(plain());
        assert_eq!(workload.session(5), workload.session(5));
        assert_ne!(workload.session(5), workload.session(6));
        let other = Workload { text_seed: 13, ..workload.clone() };
        let (one, same) = (&workload.session(5).turns[0], &other.session(5).turns[0]);
        assert_ne!(one.text, same.text);
        assert_eq!((n_tokens(&one.text), one.seed), (n_tokens(&same.text), same.seed));
        let other = Workload { seed: 12, ..workload.clone() };
        assert_ne!(workload.session(5).turns[0].seed, other.session(5).turns[0].seed);
        for idx in 0..50 {
            let n = n_tokens(&workload.session(idx).turns[0].text);
            assert!((20..=90).contains(&n), "{n}");
        }
    }

    #[test]
    fn prompts_share_as_much_as_they_should() {
        let workload = drawn(Shape { n_prefix: 15, n_prefixes: 3, ..plain() });
        let mut beginnings = std::collections::BTreeSet::new();
        for idx in 0..60 {
            let text = workload.session(idx).turns[0].text.clone();
            let words: Vec<&str> = text.split_whitespace().collect();
            assert!((20..=90).contains(&n_tokens(&text)));
            beginnings.insert(words[..15 - 4].join(" "));
        }
        assert_eq!(beginnings.len(), 3);
        // All but one of the shortest prompt's tokens.
        let workload = drawn(Shape { n_prefix: 19, ..plain() });
        let first = |idx| {
            let text = workload.session(idx).turns[0].text.clone();
            text.split_whitespace().take(19 - 4).collect::<Vec<_>>().join(" ")
        };
        assert!((1..60).all(|idx| first(idx) == first(0)));
    }

    #[test]
    fn shares_are_as_asked_for() {
        let n = 2000;
        let workload = drawn(Shape { thinking: Some(0.25), cancelled: 0.1, ..plain() });
        let sessions: Vec<Session> = (0..n).map(|idx| workload.session(idx)).collect();
        let n_on = sessions
            .iter()
            .filter(|session| &*session.system.as_ref().expect("told").text == thinking_words(true))
            .count();
        assert!((400..600).contains(&n_on), "{n_on}");
        let cuts = sessions.iter().filter_map(|session| session.turns[0].cancel_after);
        let cuts: Vec<usize> = cuts.collect();
        assert!((140..260).contains(&cuts.len()), "{}", cuts.len());
        assert!(cuts.iter().all(|cut| (1..=4).contains(cut)));
    }

    #[test]
    fn turns_are_as_many_as_asked_for_and_each_is_new() {
        let workload = drawn(Shape { n_turns: Lengths::Fixed { n: 3 }, ..plain() });
        let session = workload.session(0);
        assert_eq!(session.turns.len(), 3);
        assert!(session.turns[0].text.starts_with(LEAD));
        assert!(!session.turns[1].text.starts_with(LEAD));
        let conversations = vec![vec![("a".into(), 3), ("b".into(), 4)], vec![("c".into(), 5)]];
        let shape = Shape { n_turns: Lengths::Fixed { n: 9 }, ..plain() };
        let workload = workload_of(conversations, shape);
        let texts = |idx: u64| {
            let turns = workload.session(idx).turns;
            turns.iter().map(|turn| (turn.text.to_string(), turn.n_out)).collect::<Vec<_>>()
        };
        assert_eq!(texts(0), [("a".to_owned(), 3), ("b".to_owned(), 4)]);
        assert_eq!((texts(1), texts(0)), (texts(3), texts(2)));
    }

    fn workload_of(conversations: Vec<Vec<(Arc<str>, usize)>>, shape: Shape) -> Workload {
        workload(Source::Conversations(conversations), shape)
    }

    #[test]
    fn a_trace_says_when_how_long_and_what_is_shared() {
        let entry = |at_s, n_in, blocks: &[u64]| TraceEntry {
            at: Duration::from_secs(at_s),
            n_in,
            n_out: 2,
            blocks: blocks.to_vec(),
        };
        let entries =
            vec![entry(0, 1100, &[4, 9, 2]), entry(7, 1300, &[4, 9, 3]), entry(8, 1100, &[])];
        let workload = workload(Source::Trace(entries), plain());
        assert_eq!(workload.n_sessions(), Some(3));
        let texts: Vec<String> =
            (0..3).map(|idx| workload.session(idx).turns[0].text.to_string()).collect();
        assert_eq!(workload.session(1).at, Some(Duration::from_secs(7)));
        assert_eq!(texts.iter().map(|text| n_tokens(text)).collect::<Vec<_>>(), [1100, 1300, 1100]);
        let n_shared = |a: &str, b: &str| {
            a.split_whitespace().zip(b.split_whitespace()).take_while(|(a, b)| a == b).count()
        };
        let shared = n_shared(&texts[0], &texts[1]);
        assert!((1020..1030).contains(&shared), "two blocks, less what is not words: {shared}");
        assert!(n_shared(&texts[0], &texts[2]) < 20);
    }
}
