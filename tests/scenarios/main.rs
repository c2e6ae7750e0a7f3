//! The scheduler's behaviour as transcripts: `*.txt` beside this file.
//!
//! A line at the margin is a command, the indented lines below it are all that follows from it. A
//! line of `#` explains. Requests are numbers, and so are slots (`s`), groups (`g`) and pages.
//!
//! ```text
//! limits slots=2 waiting=4 step=8 context=64 page=4 pages=6,3/5   two groups; 3 pages, window of 5
//!                                                                 `cache`: prefixes are cached
//!                                                                 `host=4,4/8`: host pages, and
//!                                                                 how many tokens come back
//!                                                                 `speculate=3`: a row carries up
//!                                                                 to three candidates
//! arrive 0 prompt=5 new=3 stop=7,8 score guided                   prompt of five tokens
//! arrive 1 prompt=5 new=3 as=0:4 salt=x                           its first four are request 0's
//! arrive 2 prompt=5 new=3 sibling=1                               another answer to 1's prompt
//! plan                                                            what a step holds
//! complete 7 -                                                    a sampled token, or none, a row
//!                                                                 of the oldest plan, its
//!                                                                 candidates counting as rows
//!                                                                 `levels=3/2/9`: of priority, the
//!                                                                 default, steps to rise by one
//! arrive 2 prompt=5 new=3 priority=1 tenant=4                     of `tenants=5`
//! took 90                                                         microseconds that steps take now
//! now 30                                                          what time it is from here on
//! arrive 3 prompt=5 new=3 queued=40 until=90                      has a slot by 40, ends by 90, or
//!                                                                 nobody wants it
//! cancel 0
//! allow 0                                                         a guided request may go on
//! stats                                                           gauges
//! ```
//!
//! When a transcript differs, the failure prints it as it is now: read it, and if it is right, it
//! is the new file.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use scheduler::{
    Admission, Effect, Emit, Event, FinishReason, GroupLimits, HostTier, LatencyTarget, Limits,
    Moment, PageMove, PageUpdate, PrefixCache, Priorities, Refusal, Request, RequestId, Row,
    Scheduler, Speculation, StepPlan, StepResult, TenantId, Terms, TokenId,
};

/// A transcript that is being written.
struct Transcript {
    scheduler: Option<Scheduler>,
    /// Not completed, oldest first.
    plans: VecDeque<StepPlan>,
    now: Moment,
    took_us: u64,
    prompts: Prompts,
    text: String,
}

#[test]
fn transcripts_are_as_written() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/scenarios");
    let mut paths: Vec<_> = fs::read_dir(&folder)
        .expect("the folder exists")
        .map(|entry| entry.expect("it is readable").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "txt"))
        .collect();
    paths.sort();
    assert!(paths.len() >= 20, "only {} scenarios found", paths.len());
    let mut n_different = 0;
    for path in paths {
        let expected = fs::read_to_string(&path).expect("a scenario is text");
        let actual = replay(&expected);
        if actual != expected {
            n_different += 1;
            let same = actual.lines().zip(expected.lines()).take_while(|(a, e)| a == e).count();
            eprintln!("{}:{}: differs; it is now\n{actual}", path.display(), same + 1);
        }
    }
    assert_eq!(n_different, 0, "scenarios that differ");
}

#[test]
fn a_wrong_expectation_is_noticed() {
    let right = "limits slots=1 waiting=1 step=1 context=4 page=1 pages=4\nplan\n  nothing\n";
    assert_eq!(replay(right), right);
    for wrong in
        [right.replace("nothing", "row 0 s0 0..1 Sample"), right.replace("  nothing\n", "")]
    {
        assert_ne!(replay(&wrong), wrong);
    }
}

/// Runs a transcript's commands and writes what follows from each.
fn replay(script: &str) -> String {
    let mut transcript = Transcript {
        scheduler: None,
        plans: VecDeque::new(),
        now: Moment(0),
        took_us: 1,
        prompts: Prompts::new(),
        text: String::new(),
    };
    for line in script.lines() {
        if line.starts_with("  ") {
            continue;
        }
        transcript.text += line;
        transcript.text.push('\n');
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.split_first() {
            None => {}
            Some((word, _)) if word.starts_with('#') => {}
            Some((command, arguments)) => transcript.run(command, arguments),
        }
    }
    transcript.text
}

impl Transcript {
    fn run(&mut self, command: &str, arguments: &[&str]) {
        match command {
            "limits" => self.scheduler = Some(Scheduler::new(limits(&fields(arguments)))),
            "arrive" => {
                let request = request(arguments, &mut self.prompts);
                self.apply(Event::Arrive(request));
            }
            "allow" => self.apply(Event::Allow(RequestId(number(arguments[0]) as u64))),
            "cancel" => self.apply(Event::Cancel(RequestId(number(arguments[0]) as u64))),
            "complete" => {
                let plan = self.plans.pop_front().expect("complete follows plan");
                let tokens = arguments.iter().map(|&word| token(word)).collect();
                self.complete(plan, tokens);
            }
            "plan" => self.plan(),
            "stats" => self.stats(),
            "took" => self.took_us = number(arguments[0]) as u64,
            "now" => self.now = Moment(number(arguments[0]) as u64),
            _ => panic!("unknown command {command:?}"),
        }
        self.scheduler().check();
    }

    fn scheduler(&mut self) -> &mut Scheduler {
        self.scheduler.as_mut().expect("limits come first")
    }

    fn say(&mut self, what: std::fmt::Arguments<'_>) {
        writeln!(self.text, "  {what}").expect("a string takes all");
    }

    fn apply(&mut self, event: Event) {
        let mut effects = Vec::new();
        let now = self.now;
        self.scheduler().apply(event, now, &mut effects);
        for effect in effects {
            match effect {
                Effect::Token { request, token, answer_idx } => {
                    self.say(format_args!("token {} {} row {answer_idx}", request.0, token.0));
                }
                Effect::Finish { request, reason } => match reason {
                    FinishReason::Stop(token) => {
                        self.say(format_args!("finish {} stop {}", request.0, token.0));
                    }
                    FinishReason::Length => self.say(format_args!("finish {} length", request.0)),
                    FinishReason::Cancelled => {
                        self.say(format_args!("finish {} cancelled", request.0));
                    }
                    FinishReason::QueueTimeout => {
                        self.say(format_args!("finish {} queue timeout", request.0));
                    }
                    FinishReason::DeadlinePassed => {
                        self.say(format_args!("finish {} deadline passed", request.0));
                    }
                },
                Effect::Refuse { request, refusal } => match refusal {
                    Refusal::QueueFull => self.say(format_args!("refuse {} queue full", request.0)),
                    Refusal::EmptyPrompt => self.say(format_args!("refuse {} empty", request.0)),
                    Refusal::TooLong { n_prompt, n_max } => {
                        let id = request.0;
                        self.say(format_args!("refuse {id} too long: {n_prompt} of {n_max}"));
                    }
                },
            }
        }
    }

    fn complete(&mut self, plan: StepPlan, tokens: Vec<Option<TokenId>>) {
        let next = self.plans.front_mut();
        if let Some(next) = next {
            next.settle(&tokens);
        }
        self.apply(Event::Complete(StepResult { step: plan.step, tokens, took_us: self.took_us }));
        self.scheduler().recycle(plan);
        if let Some(next) = self.plans.pop_front() {
            for row in &next.rows {
                self.check_tokens(&next, row);
            }
            self.plans.push_front(next);
        }
    }

    fn plan(&mut self) {
        let Some(plan) = self.scheduler().plan() else {
            return self.say(format_args!("nothing"));
        };
        for admission in &plan.admitted {
            let Admission { request, slot, n_cached } = *admission;
            let cached = if n_cached > 0 { format!(" cached={n_cached}") } else { String::new() };
            self.say(format_args!("admit {} s{}{cached}", request.0, slot.0));
        }
        for row in &plan.rows {
            let (request, slot) = (row.request.0, row.slot.0);
            let end = row.start + row.n_tokens - row.n_candidates;
            let emit = match row.emit {
                Emit::Nothing => "",
                Emit::Sample => " sample",
                Emit::Score => " score",
                Emit::ScoreAndSample => " score sample",
            };
            let follows = row.follows.map(|row_idx| format!(" follows {row_idx}"));
            let follows = follows.unwrap_or_default();
            let candidates = plan.row_tokens(row).iter().skip(end - row.start);
            let candidates: String = candidates.map(|token| format!(" ?{}", token.0)).collect();
            let start = row.start;
            self.say(format_args!(
                "row {request} s{slot} {start}..{end}{candidates}{emit}{follows}"
            ));
            if row.follows.is_none() {
                self.check_tokens(&plan, row);
            }
        }
        for (table, entries) in tables(&plan.pages) {
            self.say(format_args!("pages s{} g{}:{entries}", table.0, table.1));
        }
        for page in &plan.moves {
            match page {
                PageMove::Copy { group, from, to } => {
                    self.say(format_args!("copy g{} {} to {}", group.0, from.0, to.0));
                }
                PageMove::Out { group, from, to } => {
                    self.say(format_args!("out g{} {} to h{}", group.0, from.0, to.0));
                }
                PageMove::In { group, from, to } => {
                    self.say(format_args!("in g{} h{} to {}", group.0, from.0, to.0));
                }
            }
        }
        self.plans.push_back(plan);
    }

    /// A row's tokens are those of its request, generated ones included, if it has not ended.
    fn check_tokens(&mut self, plan: &StepPlan, row: &Row) {
        let tokens = self.scheduler().request_tokens(row.request);
        let Some((prompt, generated)) = tokens else { return };
        let tokens = [prompt, generated].concat();
        let n_own = row.n_tokens - row.n_candidates;
        assert_eq!(&plan.row_tokens(row)[..n_own], &tokens[row.start..row.start + n_own]);
    }

    fn stats(&mut self) {
        let stats = self.scheduler().stats();
        let mut pages = String::new();
        for group in &stats.groups {
            write!(pages, " pages={}/{}", group.n_pages_used, group.n_pages).expect("it takes all");
            if group.n_pages_cached > 0 {
                write!(pages, " cached={}", group.n_pages_cached).expect("it takes all");
            }
        }
        let (n_running, n_waiting) = (stats.n_running, stats.n_waiting);
        let (n_preemptions, n_lost) = (stats.counters.n_preemptions, stats.counters.n_lost_tokens);
        let lost = format_args!("preemptions={n_preemptions} lost={n_lost}");
        self.say(format_args!("running={n_running} waiting={n_waiting}{pages} {lost}"));
    }
}

/// New page-table entries, by slot and group.
fn tables(updates: &[PageUpdate]) -> BTreeMap<(u32, u16), String> {
    let mut tables = BTreeMap::new();
    for update in updates {
        let entries: &mut String = tables.entry((update.slot.0, update.group.0)).or_default();
        write!(entries, " {}={}", update.page_idx, update.page.0).expect("a string takes all");
    }
    tables
}

/// `key=value` words; a bare word has an empty value.
fn fields<'a>(words: &[&'a str]) -> BTreeMap<&'a str, &'a str> {
    words.iter().map(|word| word.split_once('=').unwrap_or((word, ""))).collect()
}

fn number(word: &str) -> usize {
    word.parse().unwrap_or_else(|_| panic!("{word:?} is not a number"))
}

fn token(word: &str) -> Option<TokenId> {
    (word != "-").then(|| TokenId(number(word) as u32))
}

/// `levels=3/2/10`: three, of which the second is the default, ten steps each.
fn priorities(fields: &BTreeMap<&str, &str>) -> Priorities {
    let Some(word) = fields.get("levels") else { return Priorities::single() };
    let numbers: Vec<u32> = word.split('/').map(|word| number(word) as u32).collect();
    let [n_levels, default_level, n_steps_a_level] = numbers[..] else { panic!("{word:?}") };
    Priorities { n_levels, default_level, n_steps_a_level }
}

fn limits(fields: &BTreeMap<&str, &str>) -> Limits {
    let group = |word: &str| match word.split_once('/') {
        Some((pages, window)) => {
            GroupLimits { n_pages: number(pages), window: Some(number(window)) }
        }
        None => GroupLimits { n_pages: number(word), window: None },
    };
    Limits {
        n_slots: number(fields["slots"]),
        n_waiting_max: number(fields["waiting"]),
        n_tokens_per_step: number(fields["step"]),
        n_context_tokens: number(fields["context"]),
        page_tokens: number(fields["page"]),
        priorities: priorities(fields),
        n_tenants: fields.get("tenants").map_or(1, |word| number(word)),
        latency: fields.get("pace").map(|word| {
            let (step_us, n_min) = word.split_once('/').expect("pace=100/2");
            LatencyTarget { step_us: number(step_us) as u64, n_prompt_tokens_min: number(n_min) }
        }),
        prefix_cache: fields.contains_key("cache").then_some(PrefixCache { seed: 0 }),
        host_tier: fields.get("host").map(|word| {
            let (pages, n_tokens_min) = word.split_once('/').expect("pages/tokens");
            let group_pages = pages.split(',').map(number).collect();
            HostTier { group_pages, n_tokens_min: number(n_tokens_min) }
        }),
        speculation: fields
            .get("speculate")
            .map(|word| Speculation { n_candidates_max: number(word) }),
        groups: fields.get("pages").map_or(Vec::new(), |all| all.split(',').map(group).collect()),
    }
}

fn terms(fields: &BTreeMap<&str, &str>) -> Terms {
    let moment = |field| fields.get(field).map(|word| Moment(number(word) as u64));
    let given = |field| fields.get(field).map_or(0, |word| number(word) as u32);
    Terms {
        priority: given("priority"),
        tenant: TenantId(given("tenant")),
        queue_deadline: moment("queued"),
        deadline: moment("until"),
    }
}

/// Siblings have one prompt between them.
type Prompts = BTreeMap<usize, Arc<[TokenId]>>;

fn request(words: &[&str], prompts: &mut Prompts) -> Request {
    let fields = fields(&words[1..]);
    let id = number(words[0]);
    // Tokens that tell request and position; as another request's, where they begin alike.
    let (as_id, n_alike) = match fields.get("as").and_then(|word| word.split_once(':')) {
        Some((as_id, n_alike)) => (number(as_id), number(n_alike)),
        None => (id, 0),
    };
    let owner = |at| if at < n_alike { as_id } else { id };
    let prompt =
        (0..number(fields["prompt"])).map(|at| TokenId((1000 * (owner(at) + 1) + at) as u32));
    let sibling = fields.get("sibling").and_then(|of| prompts.get(&number(of)));
    let prompt = sibling.cloned().unwrap_or_else(|| prompt.collect());
    prompts.insert(id, Arc::clone(&prompt));
    let stops = fields.get("stop").map_or(Vec::new(), |stops| stops.split(',').collect());
    Request {
        id: RequestId(id as u64),
        prompt,
        n_new_max: number(fields["new"]),
        stop_tokens: stops.into_iter().filter_map(token).collect(),
        scores_prompt: fields.contains_key("score"),
        cache_salt: fields.get("salt").map(|&salt| salt.into()),
        is_guided: fields.contains_key("guided"),
        terms: terms(&fields),
    }
}
