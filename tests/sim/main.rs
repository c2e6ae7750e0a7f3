//! The scheduler, lived through many random lives. `SEED=n` replays one life, `LIVES=n` lives as
//! many, without asking how much they met.

mod draw;
mod life;
mod model;
mod random;
mod sights;
mod world;

use sights::Sights;

const N_LIVES: u64 = 5_000;

/// Lives a life; where it goes wrong, says how to see it again and the shortest way there.
fn live(seed: u64) -> Sights {
    let acts = life::acts(seed);
    let failure = match life::live(seed, &acts) {
        Ok(sights) => return sights,
        Err(failure) => failure,
    };
    let n_acts = acts.len();
    let acts = life::shrunk(seed, acts, &failure);
    eprintln!("replay with SEED={seed}; {} of {n_acts} acts suffice:", acts.len());
    let shortest = life::live(seed, &acts).err().unwrap_or(failure);
    for line in &shortest.story {
        eprintln!("  {line}");
    }
    panic!("{}", shortest.message);
}

#[test]
fn a_list_is_made_as_short_as_it_may_be() {
    let fails = |list: &[u32]| list.contains(&17) && list.contains(&80);
    assert_eq!(life::shorter((0..100).collect(), &fails), [17, 80]);
    assert_eq!(life::shorter(vec![1, 2], &|_| true), []);
}

#[test]
fn every_rule_holds_after_every_event() {
    if let Ok(seed) = std::env::var("SEED") {
        let sights = live(seed.parse().expect("SEED is a number"));
        eprintln!("{sights:#?}");
        return;
    }
    if let Ok(n_lives) = std::env::var("LIVES") {
        for seed in 0..n_lives.parse().expect("LIVES is a number") {
            live(seed);
        }
        return;
    }
    let lives: Vec<Sights> = (0..N_LIVES).map(live).collect();
    let sum = |field: fn(&Sights) -> u64| lives.iter().map(field).sum::<u64>();
    // A simulation that never meets what it is for would pass for nothing.
    let met = [
        ("events", sum(|s| s.n_events), 2_000_000),
        ("steps", sum(|s| s.n_steps), 200_000),
        ("preemptions", sum(|s| s.n_preemptions), 1_000),
        ("rows that sat out", sum(|s| s.n_sat_out), 1_000),
        ("cancelled in flight", sum(|s| s.n_cancelled_in_flight), 1_000),
        ("cancelled waiting", sum(|s| s.n_cancelled_waiting), 1_000),
        ("stopped", sum(|s| s.n_stopped), 1_000),
        ("ended by length", sum(|s| s.n_full), 1_000),
        ("refused: queue full", sum(|s| s.n_refused_queue), 1_000),
        ("refused: length", sum(|s| s.n_refused_length), 1_000),
        ("scored after a preemption", sum(|s| s.n_scored_after_preemption), 20),
        ("steps with prefill and decode", sum(|s| s.n_mixed_steps), 10_000),
        ("pages found in the cache", sum(|s| s.n_cached_pages), 20_000),
        ("steps planned ahead", sum(|s| s.n_ahead), 50_000),
        ("rows that follow others", sum(|s| s.n_following), 50_000),
        ("preemptions while a step ran", sum(|s| s.n_preempted_ahead), 500),
        ("rows that ran for nothing", sum(|s| s.n_rows_for_nothing), 1_000),
        ("rows of guided requests", sum(|s| s.n_guided), 10_000),
        ("guided requests held while others ran", sum(|s| s.n_held_beside), 10_000),
        ("pages copied from a sibling", sum(|s| s.n_copied_pages), 500),
        ("pages that went to the host", sum(|s| s.n_pages_out), 5_000),
        ("pages that came back", sum(|s| s.n_pages_in), 1_000),
        ("rows with candidates", sum(|s| s.n_speculative), 10_000),
        ("right candidates", sum(|s| s.n_accepted), 2_000),
        ("rows with a wrong candidate", sum(|s| s.n_rejected), 5_000),
        ("stops among candidates", sum(|s| s.n_stopped_early), 20),
        ("pages given back by a window", sum(|s| s.n_windowed_give_backs), 1_000),
        ("clocks that jumped", sum(|s| s.n_jumps), 5_000),
        ("queue timeouts", sum(|s| s.n_queue_timeouts), 1_000),
        ("deadlines passed", sum(|s| s.n_deadlines), 1_000),
        ("expired with a slot", sum(|s| s.n_expired_running), 500),
        ("rows that failed", sum(|s| s.n_failed_rows), 1_000),
        ("ranks that failed while a step ran", sum(|s| s.n_failed_in_flight), 500),
        ("results that came late", sum(|s| s.n_late), 5_000),
        ("admissions before an older request", sum(|s| s.n_passed_older), 5_000),
        ("gave way to a higher level", sum(|s| s.n_displaced), 1_000),
        ("plans for which tenants contended", sum(|s| s.n_contests), 5_000),
    ];
    for (what, n_met, n_wanted) in met {
        eprintln!("{n_met:>8} {what}");
        assert!(n_met >= n_wanted, "{what}: {n_met} met, {n_wanted} wanted");
    }
    // Nor would a bound that nobody ever comes near.
    let percent = lives.iter().map(|sights| sights.deadline_percent_max).max();
    eprintln!("{percent:?} percent of the steps that one of several tenants may take");
    assert!(percent > Some(30), "the bound is wide: {percent:?}");
}
