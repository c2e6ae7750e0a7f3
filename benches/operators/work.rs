//! Who asks what: users that ask again when they have their answer.

use scheduler::TokenId;

/// Users and what they ask for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Workload {
    pub(crate) n_users: usize,
    /// Questions of a user, one after another.
    pub(crate) n_turns: usize,
    /// Tokens that all users' first prompts begin with.
    pub(crate) n_common: usize,
    /// Tokens of a question.
    pub(crate) n_question: usize,
    pub(crate) n_answer: usize,
    /// A question follows what was said before, else it stands alone.
    pub(crate) goes_on: bool,
    /// From an answer to the next question.
    pub(crate) pause_s: f64,
}

impl Workload {
    /// Every user has one question under way, always; the first are left out of the figures.
    pub(crate) fn closed(n_users: usize, n_question: usize, n_answer: usize) -> Workload {
        Workload {
            n_users,
            n_turns: 4,
            n_common: 0,
            n_question,
            n_answer,
            goes_on: false,
            pause_s: 0.0,
        }
    }

    /// Agents with one set of instructions and tools, each in a conversation of its own that grows
    /// by what a tool says; more of it than the cache holds.
    pub(crate) fn agents() -> Workload {
        Workload {
            n_users: 300,
            n_turns: 12,
            n_common: 4000,
            n_question: 900,
            n_answer: 200,
            goes_on: true,
            pause_s: 5.0,
        }
    }

    pub(crate) fn name(&self) -> String {
        let Workload { n_users, n_turns, n_common, n_question, n_answer, .. } = self;
        match self.goes_on {
            false => format!("{n_users} users, {n_question} in, {n_answer} out"),
            true => format!(
                "{n_users} agents, {n_common} in common, {n_turns} turns of {n_question} in, \
                 {n_answer} out"
            ),
        }
    }

    /// What a user asks in a turn, after what was said before.
    pub(crate) fn prompt(&self, user: usize, turn: usize, said: &[TokenId]) -> Vec<TokenId> {
        let common = (0..self.n_common).map(|at| token(usize::MAX, 0, at));
        let question = (0..self.n_question).map(|at| token(user, turn, at));
        match (self.goes_on, turn) {
            (true, 1..) => said.iter().copied().chain(question).collect(),
            _ => common.chain(question).collect(),
        }
    }
}

/// A token that tells who said it, and where.
pub(crate) fn token(user: usize, turn: usize, at: usize) -> TokenId {
    let mut bits = (user as u64) << 40 ^ (turn as u64) << 32 ^ at as u64;
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    TokenId((bits >> 40) as u32 % 128_000)
}
