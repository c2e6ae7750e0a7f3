//! The numbers that programs hold for the driver's objects.
//!
//! A handle is never followed: it is looked up, so that a stale or foreign one is an error and
//! not a crash.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::RwLock;

use super::status::{Answer, Status};

/// Handles lie above this address, where a program that follows one dies.
const FIRST_HANDLE: usize = 0x1f00_0000_0000;

/// A fresh handle; no two objects of any kind ever share one.
pub(super) fn new_handle() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(FIRST_HANDLE);
    NEXT.fetch_add(16, Ordering::Relaxed)
}

/// All live objects of one kind, by handle.
pub(super) struct Registry<T> {
    objects: RwLock<Option<HashMap<usize, Arc<T>>>>,
    /// What a call answers for a handle that is none.
    missing: Status,
}

impl<T> Registry<T> {
    pub(super) const fn new(missing: Status) -> Registry<T> {
        Registry { objects: RwLock::new(None), missing }
    }

    pub(super) fn insert(&self, handle: usize, object: Arc<T>) {
        self.objects.write().get_or_insert_default().insert(handle, object);
    }

    pub(super) fn get(&self, handle: usize) -> Answer<Arc<T>> {
        let objects = self.objects.read();
        let found = objects.as_ref().and_then(|objects| objects.get(&handle));
        found.cloned().ok_or(self.missing)
    }

    pub(super) fn remove(&self, handle: usize) -> Answer<Arc<T>> {
        let mut objects = self.objects.write();
        let found = objects.as_mut().and_then(|objects| objects.remove(&handle));
        found.ok_or(self.missing)
    }

    /// Removes the objects that the condition holds for.
    pub(super) fn remove_if(&self, condition: impl Fn(&T) -> bool) {
        if let Some(objects) = self.objects.write().as_mut() {
            objects.retain(|_, object| !condition(object));
        }
    }
}
