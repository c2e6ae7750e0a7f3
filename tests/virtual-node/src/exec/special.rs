//! Special registers: what each thread knows of its place.

/// A special register that does not change while a thread runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Special {
    /// Axis 0 to 2.
    Tid(u8),
    Ntid(u8),
    Ctaid(u8),
    Nctaid(u8),
    LaneId,
    WarpId,
    NWarpId,
    LaneMask(LaneMask),
    SmId,
    NSmId,
    /// Low half.
    GridId,
    ClusterId(u8),
    NClusterId(u8),
    ClusterCtaid(u8),
    ClusterNctaid(u8),
    ClusterCtaRank,
    ClusterNctaRank,
    IsExplicitCluster,
    DynamicSharedBytes,
    TotalSharedBytes,
    Zero,
}

/// Which lanes relative to one's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LaneMask {
    Eq,
    Le,
    Lt,
    Ge,
    Gt,
}
