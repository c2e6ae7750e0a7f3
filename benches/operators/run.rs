//! A workload in virtual time: the scheduler plans a step ahead, as the engine lets it on GPUs.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use anyhow::{Context, ensure};
use scheduler::{
    Effect, Event, Moment, Request, RequestId, Scheduler, StepPlan, StepResult, Terms, TokenId,
};
use weights::presets::preset;

use crate::cost::Cost;
use crate::setup::Setup;
use crate::work::{Workload, token};

/// What came of it.
pub(crate) struct Outcome {
    pub(crate) first_ms: Spread,
    pub(crate) gap_ms: Spread,
    pub(crate) tokens_a_second: f64,
    /// Of the prompts' tokens, those that were not computed.
    pub(crate) cached_share: f64,
    pub(crate) n_preemptions: u64,
}

/// Of many values.
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) p99: f64,
    pub(crate) mean: f64,
}

struct Run<'a> {
    workload: &'a Workload,
    scheduler: Scheduler,
    effects: Vec<Effect>,
    /// Seconds.
    now: f64,
    /// Who asks next, and when; in microseconds, so that it has an order.
    asks: BinaryHeap<Reverse<(u64, usize, usize)>>,
    live: BTreeMap<RequestId, Live>,
    said: Vec<Vec<TokenId>>,
    n_requests: u64,
    first_ms: Vec<f64>,
    gaps_ms: Vec<f64>,
    n_prompt: usize,
    n_cached: usize,
}

/// A step that runs.
struct Step {
    plan: StepPlan,
    seconds: f64,
    end: f64,
}

struct Live {
    user: usize,
    turn: usize,
    asked: f64,
    last: Option<f64>,
}

/// Lets everybody ask all that they ask.
pub(crate) fn run(workload: &Workload, setup: &Setup) -> anyhow::Result<Outcome> {
    let limits = setup.limits()?;
    let spec = preset("ultra-253b").context("there is no such preset")?;
    let mut cost = Cost::new(spec, setup.page_tokens);
    let mut run = Run::new(workload, Scheduler::new(limits));
    let mut running: Option<Step> = None;
    loop {
        run.ask();
        let next = run.scheduler.plan();
        let done = running.take();
        if let Some(step) = &done {
            run.now = step.end;
        }
        if let Some(mut plan) = next {
            let seconds = cost.seconds(&plan);
            if let Some(before) = &done {
                plan.settle(&answers(&before.plan));
            }
            run.note_cached(&plan);
            running = Some(Step { plan, seconds, end: run.now + seconds });
        }
        match (done, &running) {
            (Some(step), _) => run.complete(step),
            (None, Some(_)) => {}
            (None, None) => match run.asks.peek() {
                Some(&Reverse((at_us, ..))) => run.now = run.now.max(at_us as f64 / 1e6),
                None => break,
            },
        }
    }
    ensure!(run.live.is_empty(), "somebody was never answered");
    Ok(run.outcome())
}

impl<'a> Run<'a> {
    fn new(workload: &'a Workload, scheduler: Scheduler) -> Run<'a> {
        // They do not all come at once.
        let asks = (0..workload.n_users).map(|user| Reverse((20_000 * user as u64, user, 0)));
        Run {
            workload,
            scheduler,
            effects: Vec::new(),
            now: 0.0,
            asks: asks.collect(),
            live: BTreeMap::new(),
            said: vec![Vec::new(); workload.n_users],
            n_requests: 0,
            first_ms: Vec::new(),
            gaps_ms: Vec::new(),
            n_prompt: 0,
            n_cached: 0,
        }
    }

    /// Whoever has something to ask by now asks it.
    fn ask(&mut self) {
        while let Some(&Reverse((at_us, user, turn))) = self.asks.peek() {
            if at_us as f64 / 1e6 > self.now {
                return;
            }
            self.asks.pop();
            let prompt = self.workload.prompt(user, turn, &self.said[user]);
            self.said[user].clone_from(&prompt);
            let id = RequestId(self.n_requests);
            self.n_requests += 1;
            let request = Request {
                id,
                prompt: prompt.into(),
                n_new_max: self.workload.n_answer,
                stop_tokens: [].into(),
                scores_prompt: false,
                cache_salt: None,
                is_guided: false,
                terms: Terms::ordinary(),
            };
            self.live.insert(id, Live { user, turn, asked: at_us as f64 / 1e6, last: None });
            self.apply(Event::Arrive(request));
        }
    }

    fn note_cached(&mut self, plan: &StepPlan) {
        for admission in &plan.admitted {
            let live = &self.live[&admission.request];
            if live.last.is_none() && is_counted(self.workload, live.turn) {
                self.n_prompt += self.said[live.user].len();
                self.n_cached += admission.n_cached;
            }
        }
    }

    fn complete(&mut self, step: Step) {
        let Step { plan, seconds, .. } = step;
        let took_us = (1e6 * seconds) as u64;
        let result = StepResult { step: plan.step, tokens: answers(&plan), took_us };
        self.apply(Event::Complete(result));
        self.scheduler.recycle(plan);
    }

    fn apply(&mut self, event: Event) {
        let mut effects = std::mem::take(&mut self.effects);
        self.scheduler.apply(event, Moment((1e6 * self.now) as u64), &mut effects);
        for effect in effects.drain(..) {
            match effect {
                Effect::Token { request, token, .. } => self.tell(request, token),
                Effect::Finish { request, .. } => self.finish(request),
                Effect::Refuse { refusal, .. } => panic!("{refusal:?}: the queue holds everybody"),
            }
        }
        self.effects = effects;
    }

    fn tell(&mut self, request: RequestId, token: TokenId) {
        let live = self.live.get_mut(&request).expect("it lives");
        self.said[live.user].push(token);
        let (asked, last) = (live.asked, live.last.replace(self.now));
        if is_counted(self.workload, live.turn) {
            match last {
                None => self.first_ms.push(1e3 * (self.now - asked)),
                Some(last) => self.gaps_ms.push(1e3 * (self.now - last)),
            }
        }
    }

    fn finish(&mut self, request: RequestId) {
        let Live { user, turn, .. } = self.live.remove(&request).expect("it lives");
        if turn + 1 < self.workload.n_turns {
            let at = self.now + self.workload.pause_s;
            self.asks.push(Reverse(((1e6 * at) as u64, user, turn + 1)));
        }
    }

    fn outcome(self) -> Outcome {
        let counters = self.scheduler.stats().counters;
        Outcome {
            tokens_a_second: counters.n_generated_tokens as f64 / self.now,
            first_ms: spread(self.first_ms),
            gap_ms: spread(self.gaps_ms),
            cached_share: self.n_cached as f64 / self.n_prompt.max(1) as f64,
            n_preemptions: counters.n_preemptions,
        }
    }
}

/// The first turn finds an empty machine, the last one leaves one.
fn is_counted(workload: &Workload, turn: usize) -> bool {
    turn > 0 && turn + 1 < workload.n_turns
}

/// What the ranks would say: a token that tells its row.
fn answers(plan: &StepPlan) -> Vec<Option<TokenId>> {
    let said = |row: &scheduler::Row| {
        let at = row.start + row.n_tokens;
        row.emit.samples().then(|| token(row.request.0 as usize, usize::MAX, at))
    };
    plan.rows.iter().map(said).collect()
}

fn spread(mut values: Vec<f64>) -> Spread {
    values.sort_by(f64::total_cmp);
    let at = |share: f64| values[(share * (values.len() - 1) as f64) as usize];
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    Spread { median: at(0.5), p99: at(0.99), mean }
}
