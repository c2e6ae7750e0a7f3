//! Panics of a library that gives up on input, taken as errors: nothing of them is printed.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

thread_local! {
    /// A panic of this thread is expected.
    static IS_EXPECTED: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work`, which may leave nothing half-done behind when it panics.
///
/// # Errors
/// It panicked: the first line of what it said.
pub(super) fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = take_hook();
        set_hook(Box::new(move |panic| {
            if !IS_EXPECTED.get() {
                before(panic);
            }
        }));
    });
    let was_expected = IS_EXPECTED.replace(true);
    let done = catch_unwind(AssertUnwindSafe(work));
    IS_EXPECTED.set(was_expected);
    done.map_err(|panic| words(&*panic))
}

fn words(panic: &(dyn Any + Send)) -> String {
    let given = panic.downcast_ref::<&str>().map(|words| (*words).to_owned());
    let given = given.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
    given.lines().next().unwrap_or("no word why").to_owned()
}
