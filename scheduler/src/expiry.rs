//! Until when requests are wanted. It does not know why, nor what they do meanwhile.

use std::collections::BTreeSet;

use crate::{Moment, RequestId};

/// Live requests that are wanted for a limited time, the first to expire first.
#[derive(Debug, Default)]
pub(crate) struct Expiry {
    moments: BTreeSet<(Moment, RequestId)>,
}

impl Expiry {
    /// Takes note of how long a request is wanted; `None` is for ever.
    pub(crate) fn watch(&mut self, request: RequestId, until: Option<Moment>) {
        if let Some(until) = until {
            self.moments.insert((until, request));
        }
    }

    /// Forgets what was noted.
    pub(crate) fn forget(&mut self, request: RequestId, until: Option<Moment>) {
        if let Some(until) = until {
            let was_watched = self.moments.remove(&(until, request));
            assert!(was_watched, "{request:?} was to expire at {until:?}");
        }
    }

    /// A request that nobody wants any more.
    pub(crate) fn expired(&self, now: Moment) -> Option<RequestId> {
        let &(until, request) = self.moments.first()?;
        (until <= now).then_some(request)
    }

    /// What was noted of a request, looked up; for checks.
    pub(crate) fn watches(&self, request: RequestId, until: Option<Moment>) -> bool {
        until.is_none_or(|until| self.moments.contains(&(until, request)))
    }

    /// Requests that will expire.
    pub(crate) fn len(&self) -> usize {
        self.moments.len()
    }
}
