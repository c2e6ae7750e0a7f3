//! What happens in a life, as a list that a seed decides and that can be made shorter: an act draws
//! what it needs from a seed of its own, so that others may be left out.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};

use crate::random::{Random, mix};
use crate::sights::Sights;
use crate::world::World;

/// Acts of a life, each an event or several.
const N_ACTS: usize = 290;

/// Lives that are lived again at most to make a list shorter.
const N_TRIES_MAX: usize = 600;

/// Something that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Arrive,
    Cancel,
    Advance,
    Jump,
    FailRow,
    FailRank,
}

/// Something that happens, and what decides its details.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Act {
    pub(crate) kind: Kind,
    pub(crate) seed: u64,
}

/// A life that went wrong.
pub(crate) struct Failure {
    pub(crate) message: String,
    /// All that happened, in words.
    pub(crate) story: Vec<String>,
}

/// What a seed decides.
pub(crate) fn acts(seed: u64) -> Vec<Act> {
    let mut random = Random::new(mix(seed ^ 0xac75));
    let arrivals_in = random.within(2, 8);
    let cancels_in = random.within(5, 60);
    let act = |_| {
        let kind = match () {
            () if random.one_in(arrivals_in) => Kind::Arrive,
            () if random.one_in(cancels_in) => Kind::Cancel,
            () if random.one_in(40) => Kind::Jump,
            () if random.one_in(80) => Kind::FailRow,
            () if random.one_in(400) => Kind::FailRank,
            () => Kind::Advance,
        };
        Act { kind, seed: random.next() }
    };
    (0..N_ACTS).map(act).collect()
}

/// Lives through `acts` under the limits that the seed decides.
pub(crate) fn live(seed: u64, acts: &[Act]) -> Result<Sights, Failure> {
    let mut world = World::new(seed);
    let lived = catch_unwind(AssertUnwindSafe(|| {
        for &act in acts {
            world.act(act);
        }
        world.end();
    }));
    match lived {
        Ok(()) => Ok(world.sights),
        Err(panic) => Err(Failure { message: words(&*panic), story: world.story }),
    }
}

/// The shortest list found that fails in the same way.
pub(crate) fn shrunk(seed: u64, acts: Vec<Act>, failure: &Failure) -> Vec<Act> {
    let kind = |message: &str| message.split_whitespace().next().map(str::to_owned);
    let wanted = kind(&failure.message);
    let hook = take_hook();
    set_hook(Box::new(|_| {}));
    let fails = |acts: &[Act]| {
        live(seed, acts).err().is_some_and(|failure| kind(&failure.message) == wanted)
    };
    let acts = shorter(acts, &fails);
    set_hook(hook);
    acts
}

/// Leaves out runs of a list, long ones first, as long as it `fails` (Zeller and Hildebrandt,
/// "Simplifying and isolating failure-inducing input", 2002, without its complements).
pub(crate) fn shorter<T: Clone>(mut list: Vec<T>, fails: &dyn Fn(&[T]) -> bool) -> Vec<T> {
    let mut n_left = N_TRIES_MAX;
    let mut n_out = list.len();
    while n_out > 0 {
        let mut at = 0;
        while at < list.len() && n_left > 0 {
            let end = (at + n_out).min(list.len());
            let without = [&list[..at], &list[end..]].concat();
            n_left -= 1;
            if fails(&without) {
                list = without;
            } else {
                at = end;
            }
        }
        n_out /= 2;
    }
    list
}

fn words(panic: &(dyn Any + Send)) -> String {
    match (panic.downcast_ref::<String>(), panic.downcast_ref::<&str>()) {
        (Some(message), _) => message.clone(),
        (_, Some(message)) => (*message).to_owned(),
        _ => "no message".to_owned(),
    }
}
