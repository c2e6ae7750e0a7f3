//! Texts of a wanted number of tokens, out of words whose tokens have been counted by the server's
//! own tokenizer. A tokenizer that cuts a text before every blank, as those of all models served
//! here do, gives a word behind a blank the same tokens everywhere, so counts add up; words for
//! which they do not are left out. The server's `usage` says in the end what prompts really were.

use rand::Rng;
use rand_chacha::ChaCha8Rng;

/// What every text begins with. A page of a prefix cache holds more than that.
pub const LEAD: &str = "Note:";

/// Words to choose from: of different lengths and first letters.
pub const CANDIDATES: [&str; 64] = [
    "a", "able", "after", "air", "and", "back", "bank", "be", "book", "by", "call", "case", "city",
    "day", "do", "door", "each", "end", "eye", "fact", "field", "fire", "for", "game", "go",
    "group", "hand", "home", "house", "idea", "in", "it", "job", "key", "land", "last", "life",
    "line", "long", "mind", "name", "new", "night", "number", "of", "on", "part", "people",
    "place", "point", "room", "see", "state", "story", "study", "the", "time", "to", "use",
    "water", "way", "week", "work", "year",
];

/// How often a word is repeated to see whether its counts add up.
pub const N_REPEATS: usize = 4;

/// Words and what they cost.
#[derive(Clone, Debug, PartialEq)]
pub struct Words {
    /// Each with its tokens behind a blank.
    words: Vec<(&'static str, f64)>,
    /// Tokens of a prompt beside its words: the lead, and a template's.
    overhead: f64,
    /// Whether tokens were counted, and not estimated.
    pub is_exact: bool,
}

impl Words {
    /// Of counts by a tokenizer: of the lead alone, in whatever surrounds it, and of it followed by
    /// [`N_REPEATS`] times each word. `None` if they add up for no word.
    pub fn counted(n_lead: usize, counts: &[(&'static str, usize)]) -> Option<Words> {
        let words: Vec<(&str, f64)> = counts
            .iter()
            .filter_map(|&(word, n)| {
                let n_added = n.checked_sub(n_lead)?;
                let adds_up = n_added > 0 && n_added.is_multiple_of(N_REPEATS);
                adds_up.then_some((word, (n_added / N_REPEATS) as f64))
            })
            .collect();
        (!words.is_empty()).then_some(Words { words, overhead: n_lead as f64, is_exact: true })
    }

    /// Of two prompts' counts: all words once behind the lead, and all twice. Every word then
    /// counts as the mean.
    pub fn estimated(n_once: usize, n_twice: usize) -> Words {
        let n_all = (n_twice.saturating_sub(n_once)).max(CANDIDATES.len()) as f64;
        let mean = n_all / CANDIDATES.len() as f64;
        Words {
            words: CANDIDATES.iter().map(|&word| (word, mean)).collect(),
            overhead: (n_once as f64 - n_all).max(0.0),
            is_exact: false,
        }
    }

    /// Tokens of the shortest prompt.
    pub fn n_min(&self) -> usize {
        self.overhead.ceil() as usize
    }

    /// A prompt's text of that many tokens, the overhead among them, or as near as the words allow.
    pub fn prompt(&self, n_tokens: usize, random: &mut ChaCha8Rng) -> String {
        let mut text = LEAD.to_owned();
        self.append(&mut text, n_tokens as f64 - self.overhead, random);
        text
    }

    /// Words of that many tokens.
    pub fn text(&self, n_tokens: usize, random: &mut ChaCha8Rng) -> String {
        let mut text = String::new();
        self.append(&mut text, n_tokens as f64, random);
        text
    }

    /// The first half a token over would be one too many.
    fn append(&self, text: &mut String, n_tokens: f64, random: &mut ChaCha8Rng) {
        let mut n_left = n_tokens;
        loop {
            let (word, cost) = self.words[random.random_range(0..self.words.len())];
            let (word, cost) = match cost <= n_left + 0.5 {
                true => (word, cost),
                // The end is filled with what fits.
                false => match self.words.iter().find(|(_, cost)| *cost <= n_left + 0.5) {
                    Some(&fitting) => fitting,
                    None => return,
                },
            };
            if n_left < 0.5 {
                return;
            }
            n_left -= cost;
            text.push(' ');
            text.push_str(word);
        }
    }
}

#[cfg(test)]
mod tests {
    use rand_chacha::rand_core::SeedableRng;

    use super::*;

    /// A token for the lead, as many for a word as it has letters over two, three around it all.
    fn count(text: &str) -> usize {
        3 + 1
            + text.strip_prefix(LEAD).expect("the lead").split_whitespace().map(cost).sum::<usize>()
    }

    fn cost(word: &str) -> usize {
        word.len().div_ceil(2)
    }

    #[test]
    fn prompts_have_the_tokens_that_were_asked_for() {
        let counts = CANDIDATES.map(|word| (word, 4 + N_REPEATS * cost(word)));
        let words = Words::counted(4, &counts).expect("they add up");
        let mut random = ChaCha8Rng::seed_from_u64(1);
        for n_tokens in [4, 5, 6, 7, 50, 999] {
            let prompt = words.prompt(n_tokens, &mut random);
            assert_eq!(count(&prompt), n_tokens, "{prompt}");
        }
        assert_eq!(words.n_min(), 4);
        assert_eq!(words.prompt(1, &mut random), LEAD, "none is shorter");
        let other = words.prompt(50, &mut random);
        assert_ne!(other, words.prompt(50, &mut random), "each is another");
    }

    #[test]
    fn words_whose_counts_do_not_add_up_are_left_out() {
        let words = Words::counted(4, &[("a", 8), ("b", 9), ("c", 4)]).expect("one does");
        assert_eq!(words.words, [("a", 1.0)]);
        assert_eq!(Words::counted(4, &[("b", 9)]), None);
    }

    #[test]
    fn without_a_tokenizer_lengths_are_right_in_the_mean() {
        let n_all: usize = CANDIDATES.iter().map(|word| cost(word)).sum();
        let words = Words::estimated(4 + n_all, 4 + 2 * n_all);
        assert!(!words.is_exact);
        assert_eq!(words.n_min(), 4);
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let n_seen: usize = (0..100).map(|_| count(&words.prompt(1000, &mut random))).sum();
        assert!(n_seen.abs_diff(100_000) < 1000, "{n_seen}");
    }
}
