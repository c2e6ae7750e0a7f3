//! On what terms a request is served: whom it may pass, whose share it takes, and how long it is
//! wanted. It does not know how turns follow from that.

use crate::TenantId;

/// A point in time: microseconds since any beginning, as long as it stays the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(
    /// The microseconds.
    pub u64,
);

/// What a request asks for besides tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// As with Triton: 1 goes first; 0 is the default level, and so is any number that is no level.
    pub priority: u32,
    /// Whose share of the machine it takes.
    pub tenant: TenantId,
    /// Where it has had no slot by then, nobody wants it any more.
    pub queue_deadline: Option<Moment>,
    /// Where it has not ended by then, nobody wants it any more.
    pub deadline: Option<Moment>,
}

impl Terms {
    /// The default priority, the first tenant, all the time in the world.
    pub fn ordinary() -> Terms {
        Terms { priority: 0, tenant: TenantId(0), queue_deadline: None, deadline: None }
    }
}
