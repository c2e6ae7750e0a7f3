//! What may come next, looked up in a sequence's own past: where it was last as it is now, what
//! followed then is proposed (prompt lookup decoding, as vLLM's `ngram` and Hugging Face's
//! `prompt_lookup_num_tokens`). Text that repeats itself or its prompt (code, quotes, tables) is
//! guessed well, other text seldom, and a wrong guess costs what its tokens cost to compute.
//!
//! Every pair of neighbours is filed under a hash, those of one hash behind each other as in LZ77's
//! hash chains (RFC 1951, section 4), so that a look costs the same however long the sequence is.
//! It does not know pages, plans or models.

use crate::TokenId;

/// Past places that a look compares at most.
const N_LOOKS: usize = 16;

/// Tokens before a place that are compared at most: of two places, the one that agrees further
/// back is the better guess.
const N_COMPARED: usize = 8;

/// An entry that holds no place. Contexts are shorter (`Limits::check`).
const NOWHERE: u32 = u32::MAX;

/// A sequence's pairs of neighbours.
#[derive(Debug)]
pub(crate) struct Lookup {
    /// By hash: the last place of a pair, that of its second token.
    heads: Vec<u32>,
    /// By place: the place before it of the same hash.
    links: Vec<u32>,
}

impl Lookup {
    /// Room for a sequence of `n_tokens_max`, so that no step allocates.
    pub(crate) fn new(n_tokens_max: usize) -> Lookup {
        Lookup {
            heads: vec![NOWHERE; n_tokens_max.next_power_of_two()],
            links: Vec::with_capacity(n_tokens_max),
        }
    }

    /// Appends what may follow the sequence's `n_tokens` tokens, which `token_at` knows:
    /// `n_wanted` candidates or none.
    pub(crate) fn propose(
        &mut self,
        n_tokens: usize,
        n_wanted: usize,
        token_at: impl Fn(usize) -> TokenId,
        candidates: &mut Vec<TokenId>,
    ) {
        if n_tokens < 2 || n_wanted == 0 {
            return;
        }
        self.file(n_tokens - 1, &token_at);
        let Some(place) = self.best(n_tokens - 1, &token_at) else { return };
        let first = candidates.len();
        // What is copied may reach what was just copied: a short loop goes on as it went.
        for at in place + 1..=place + n_wanted {
            let token = match at.checked_sub(n_tokens) {
                None => token_at(at),
                Some(copied_idx) => candidates[first + copied_idx],
            };
            candidates.push(token);
        }
    }

    /// Files what is not filed yet of the pairs before `end`.
    fn file(&mut self, end: usize, token_at: &impl Fn(usize) -> TokenId) {
        for place in self.links.len()..end {
            let before = match place.checked_sub(1) {
                None => NOWHERE,
                Some(first) => {
                    let bucket_idx = self.bucket_idx(token_at(first), token_at(place));
                    std::mem::replace(&mut self.heads[bucket_idx], place as u32)
                }
            };
            self.links.push(before);
        }
    }

    /// The place before `last` that agrees furthest back with it, and of equals the latest; none
    /// that does not agree on a pair.
    fn best(&self, last: usize, token_at: &impl Fn(usize) -> TokenId) -> Option<usize> {
        let head = self.heads[self.bucket_idx(token_at(last - 1), token_at(last))];
        let chain =
            std::iter::successors(Some(head), |&place| self.links.get(place as usize).copied());
        let mut best = (1, None);
        for place in chain.take_while(|&place| place != NOWHERE).take(N_LOOKS) {
            let place = place as usize;
            let n_compared = N_COMPARED.min(place + 1);
            let agrees = |&back: &usize| token_at(place - back) == token_at(last - back);
            let n_agreeing = (0..n_compared).take_while(agrees).count();
            if n_agreeing > best.0 {
                best = (n_agreeing, Some(place));
            }
        }
        best.1
    }

    fn bucket_idx(&self, first: TokenId, second: TokenId) -> usize {
        let pair = u64::from(first.0) << 32 | u64::from(second.0);
        let hash = pair.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (hash >> 32) as usize & (self.heads.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proposed(tokens: &[u32], n_wanted: usize) -> Vec<u32> {
        let mut candidates = Vec::new();
        let mut lookup = Lookup::new(tokens.len());
        // Also where it looks again and again as the sequence grows.
        for n_tokens in 1..=tokens.len() {
            candidates.clear();
            let token_at = |at: usize| {
                assert!(at < n_tokens, "{at} is not known yet");
                TokenId(tokens[at])
            };
            lookup.propose(n_tokens, n_wanted, token_at, &mut candidates);
        }
        let mut at_once = Vec::new();
        let token_at = |at: usize| TokenId(tokens[at]);
        Lookup::new(tokens.len()).propose(tokens.len(), n_wanted, token_at, &mut at_once);
        assert_eq!(candidates, at_once);
        candidates.into_iter().map(|token| token.0).collect()
    }

    #[test]
    fn what_followed_the_last_pair_follows_again() {
        assert_eq!(proposed(&[1, 2, 3, 4, 5, 1, 2], 3), [3, 4, 5]);
        assert_eq!(proposed(&[1, 2, 3, 4, 5, 1, 2], 0), []);
        assert_eq!(proposed(&[1, 2, 3, 4, 5, 9, 2], 3), [], "one token alone is no reason");
        assert_eq!(proposed(&[1], 3), []);
    }

    #[test]
    fn the_place_that_agrees_furthest_back_wins_then_the_latest() {
        assert_eq!(proposed(&[7, 1, 2, 30, 8, 1, 2, 40, 7, 1, 2], 1), [30]);
        assert_eq!(proposed(&[7, 1, 2, 30, 7, 1, 2, 40, 7, 1, 2], 1), [40]);
    }

    #[test]
    fn a_short_loop_goes_on() {
        assert_eq!(proposed(&[1, 2, 1, 2], 5), [1, 2, 1, 2, 1]);
        assert_eq!(proposed(&[3, 3, 3], 4), [3, 3, 3, 3]);
    }

    #[test]
    fn one_bucket_is_as_good_while_few_share_it() {
        let mut lookup = Lookup { heads: vec![NOWHERE], links: Vec::new() };
        let tokens = [1, 2, 3, 4, 5, 6, 1, 2];
        let mut candidates = Vec::new();
        lookup.propose(8, 2, |at| TokenId(tokens[at]), &mut candidates);
        assert_eq!(candidates, [TokenId(3), TokenId(4)]);
    }
}
