//! Guides: whoever decides, from all tokens before, which may come next in one request's answer.
//!
//! A guide is asked after every token, on threads of its own while the ranks run a step for others:
//! the scheduler gives its request no row that samples before the answer is there. It knows no
//! grammar and no text; what a guide follows is its maker's business.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use rayon::{ThreadPool, ThreadPoolBuilder};
use scheduler::{RequestId, TokenId};

use crate::handle::Shared;

/// Threads that ask guides at most: an answer takes a fraction of a step.
const N_THREADS_MAX: usize = 4;

/// Says what may follow each token of one answer.
pub struct Guide {
    /// What the answer may begin with.
    pub first: Allowed,
    /// Takes the answer's tokens one by one, and says of each what may follow it. Where it panics,
    /// its request ends as if nothing might.
    pub next: NextAllowed,
}

/// See [`Guide::next`].
pub type NextAllowed = Box<dyn FnMut(TokenId) -> Allowed + Send>;

/// What may come next.
#[derive(Clone, Debug)]
pub enum Allowed {
    /// Any token.
    All,
    /// One of these.
    Only(Arc<TokenSet>),
    /// Nothing: the guide cannot go on, and the request ends.
    Nothing {
        /// Why, for the log.
        cause: String,
    },
}

/// Some of a vocabulary's tokens, at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenSet {
    /// Bit `token % 32` of word `token / 32`.
    words: Vec<u32>,
}

impl TokenSet {
    /// The tokens whose bits are set: `token % 32` of word `token / 32`. Those outside a vocabulary
    /// of `vocab_size` do not count; `None` where no other is left.
    pub fn from_words(mut words: Vec<u32>, vocab_size: usize) -> Option<TokenSet> {
        words.truncate(vocab_size.div_ceil(32));
        if words.len() * 32 > vocab_size
            && let Some(last) = words.last_mut()
        {
            *last &= u32::MAX >> (32 - vocab_size % 32);
        }
        words.iter().any(|&word| word != 0).then_some(TokenSet { words })
    }

    /// Those among `tokens` that a vocabulary of `vocab_size` has; `None` where it has none.
    pub fn of(tokens: &[TokenId], vocab_size: usize) -> Option<TokenSet> {
        let mut words = vec![0; vocab_size.div_ceil(32)];
        for token in tokens {
            if let Some(word) = words.get_mut(token.idx() / 32) {
                *word |= 1 << (token.idx() % 32);
            }
        }
        TokenSet::from_words(words, vocab_size)
    }

    /// The whole of a vocabulary of `vocab_size` but for `tokens`; `None` where nothing is left.
    pub fn all_but(tokens: &[TokenId], vocab_size: usize) -> Option<TokenSet> {
        let mut words = vec![u32::MAX; vocab_size.div_ceil(32)];
        for token in tokens {
            if let Some(word) = words.get_mut(token.idx() / 32) {
                *word &= !(1 << (token.idx() % 32));
            }
        }
        TokenSet::from_words(words, vocab_size)
    }

    /// Whether a token is among them.
    pub fn contains(&self, token: TokenId) -> bool {
        let word = self.words.get(token.idx() / 32).copied().unwrap_or(0);
        word >> (token.idx() % 32) & 1 == 1
    }

    /// How many there are.
    pub fn n_tokens(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Makes all others impossible in a row of logits.
    pub(crate) fn mask(&self, logits: &mut [f32]) {
        let words = self.words.iter().copied().chain(std::iter::repeat(0));
        for (word, logits) in words.zip(logits.chunks_mut(32)) {
            if word == u32::MAX {
                continue;
            }
            for (bit, logit) in logits.iter_mut().enumerate() {
                if word >> bit & 1 == 0 {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
    }
}

/// What a guide said.
pub(crate) struct Answer {
    pub(crate) request: RequestId,
    pub(crate) next: NextAllowed,
    pub(crate) allowed: Allowed,
}

/// The threads that ask. They exist from the first guided request on.
#[derive(Default)]
pub(crate) struct GuideThreads {
    pool: Option<ThreadPool>,
}

impl GuideThreads {
    /// Tells a guide its request's latest token. The answer comes into the inbox, which is woken.
    /// What waits here is bounded by the live requests: a guide is asked once a token.
    pub(crate) fn ask(
        &mut self,
        shared: &Arc<Shared>,
        mut next: NextAllowed,
        (request, token): (RequestId, TokenId),
    ) {
        let shared = Arc::clone(shared);
        self.pool.get_or_insert_with(new_pool).spawn(move || {
            let asked = catch_unwind(AssertUnwindSafe(|| next(token)));
            let allowed =
                asked.unwrap_or_else(|_| Allowed::Nothing { cause: "the guide panicked".into() });
            shared.inbox.lock().answers.push(Answer { request, next, allowed });
            shared.wake.notify_one();
        });
    }

    /// Drops a guide, if it is not away to be asked.
    pub(crate) fn let_go(&mut self, next: Option<NextAllowed>) {
        let Some(next) = next else { return };
        self.pool.get_or_insert_with(new_pool).spawn(move || {
            // A panic here would end the program.
            let _ = catch_unwind(AssertUnwindSafe(|| drop(next)));
        });
    }
}

fn new_pool() -> ThreadPool {
    let n_cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    ThreadPoolBuilder::new()
        .num_threads(n_cores.min(N_THREADS_MAX))
        .thread_name(|idx| format!("guide {idx}"))
        .build()
        .expect("threads can be started")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(ids: &[u32]) -> Vec<TokenId> {
        ids.iter().copied().map(TokenId).collect()
    }

    #[test]
    fn a_set_holds_what_it_was_made_of_and_nothing_outside_the_vocabulary() {
        for vocab_size in [1, 31, 32, 33, 64, 70] {
            let ids: Vec<u32> = [0, 3, 31, 32, 63, 69, 70, 1000].to_vec();
            let set = TokenSet::of(&tokens(&ids), vocab_size).expect("0 is in it");
            let others = TokenSet::all_but(&tokens(&ids), vocab_size);
            for id in 0..2000 {
                let is_in = ids.contains(&id) && (id as usize) < vocab_size;
                assert_eq!(set.contains(TokenId(id)), is_in, "{id} of {vocab_size}");
                let is_other = !ids.contains(&id) && (id as usize) < vocab_size;
                let contains = others.as_ref().is_some_and(|set| set.contains(TokenId(id)));
                assert_eq!(contains, is_other, "{id} of {vocab_size}, the others");
            }
            let n_others = others.as_ref().map_or(0, TokenSet::n_tokens);
            assert_eq!(set.n_tokens() + n_others, vocab_size);
        }
        assert_eq!(TokenSet::of(&tokens(&[5]), 5), None, "outside the vocabulary");
        assert_eq!(TokenSet::from_words(vec![0, 0], 64), None);
        assert_eq!(TokenSet::from_words(vec![!0 << 7], 7), None);
        assert_eq!(TokenSet::all_but(&tokens(&[0]), 1), None);
    }

    #[test]
    fn a_mask_leaves_the_set_as_it_was() {
        let set = TokenSet::of(&tokens(&[1, 40]), 50).expect("not empty");
        let mut logits: Vec<f32> = (0..50).map(|id| id as f32).collect();
        set.mask(&mut logits);
        for (id, &logit) in logits.iter().enumerate() {
            let kept = if id == 1 || id == 40 { id as f32 } else { f32::NEG_INFINITY };
            assert_eq!(logit, kept, "{id}");
        }
        // A vocabulary that was padded is longer than the set's words.
        let mut longer = vec![0.0; 100];
        set.mask(&mut longer);
        assert_eq!(longer.iter().filter(|logit| logit.is_finite()).count(), 2);
    }
}
