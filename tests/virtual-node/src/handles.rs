//! What C callers of cuBLASLt and NCCL hold: numbers that are looked up and never followed, so a
//! stale handle is an error and no crash.

use std::collections::BTreeMap;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

/// Above the driver's handles, and where nothing can be mapped by accident.
const FIRST_HANDLE: usize = 0x2f00_0000_0000;

/// All live objects of one kind.
pub struct Registry<T>(Mutex<BTreeMap<usize, T>>);

impl<T> Registry<T> {
    pub const fn new() -> Registry<T> {
        Registry(Mutex::new(BTreeMap::new()))
    }

    /// Keeps the object, and returns its handle, which no other object ever gets.
    pub fn insert(&self, object: T) -> usize {
        static NEXT: AtomicUsize = AtomicUsize::new(FIRST_HANDLE);
        let handle = NEXT.fetch_add(16, Ordering::Relaxed);
        self.0.lock().insert(handle, object);
        handle
    }

    /// Shows the object, if the handle has one.
    pub fn with<R>(&self, handle: usize, show: impl FnOnce(&mut T) -> R) -> Option<R> {
        self.0.lock().get_mut(&handle).map(show)
    }

    pub fn remove(&self, handle: usize) -> Option<T> {
        self.0.lock().remove(&handle)
    }
}

impl<T: Clone> Registry<T> {
    /// The object as it is now.
    pub fn get(&self, handle: usize) -> Option<T> {
        self.with(handle, |object| object.clone())
    }
}

impl<T> Default for Registry<T> {
    fn default() -> Registry<T> {
        Registry::new()
    }
}

/// Values that a C caller says lie at an address: none if the address is null.
pub fn caller_values<'a, T>(address: usize, n: usize) -> Option<&'a [T]> {
    if address == 0 {
        return None;
    }
    // SAFETY: the contract of every C function with such a pair of arguments.
    Some(unsafe { std::slice::from_raw_parts(address as *const T, n) })
}

/// Room for values that a C caller says lies at an address.
pub fn caller_room<'a, T>(address: usize, n: usize) -> Option<&'a mut [MaybeUninit<T>]> {
    if address == 0 {
        return None;
    }
    // SAFETY: the contract of every C function with such a pair of arguments.
    Some(unsafe { std::slice::from_raw_parts_mut(address as *mut MaybeUninit<T>, n) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_is_good_once() {
        let names = Registry::new();
        let (a, b) = (names.insert("a"), names.insert("b"));
        assert_eq!((names.get(a), names.get(b)), (Some("a"), Some("b")));
        assert_eq!(names.remove(a), Some("a"));
        assert_eq!((names.get(a), names.remove(a)), (None, None));
        assert_ne!(names.insert("c"), a);
    }
}
