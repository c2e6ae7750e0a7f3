//! Special registers by name.

use crate::exec::inst::{ClockKind, R32};
use crate::exec::special::{LaneMask, Special};
use crate::ptx::error::{Lowered, Problem};
use crate::ptx::lower::Lowering;

/// A register that changes while a thread runs.
pub(super) fn clock(name: &str) -> Option<ClockKind> {
    match name {
        "%clock" | "%clock64" => Some(ClockKind::Cycles),
        "%clock_hi" => Some(ClockKind::CyclesHigh),
        "%globaltimer" | "%globaltimer_lo" => Some(ClockKind::Nanoseconds),
        "%globaltimer_hi" => Some(ClockKind::NanosecondsHigh),
        _ => None,
    }
}

fn parse(name: &str) -> Option<Special> {
    let name = name.strip_prefix('%')?;
    let (stem, axis) = match name.rsplit_once('.') {
        None => (name, None),
        Some((stem, "x")) => (stem, Some(0)),
        Some((stem, "y")) => (stem, Some(1)),
        Some((stem, "z")) => (stem, Some(2)),
        Some(_) => return None,
    };
    Some(match (stem, axis) {
        ("tid", Some(axis)) => Special::Tid(axis),
        ("ntid", Some(axis)) => Special::Ntid(axis),
        ("ctaid", Some(axis)) => Special::Ctaid(axis),
        ("nctaid", Some(axis)) => Special::Nctaid(axis),
        ("clusterid", Some(axis)) => Special::ClusterId(axis),
        ("nclusterid", Some(axis)) => Special::NClusterId(axis),
        ("cluster_ctaid", Some(axis)) => Special::ClusterCtaid(axis),
        ("cluster_nctaid", Some(axis)) => Special::ClusterNctaid(axis),
        ("cluster_ctarank", None) => Special::ClusterCtaRank,
        ("cluster_nctarank", None) => Special::ClusterNctaRank,
        ("laneid", None) => Special::LaneId,
        ("warpid", None) => Special::WarpId,
        ("nwarpid", None) => Special::NWarpId,
        ("smid", None) => Special::SmId,
        ("nsmid", None) => Special::NSmId,
        ("gridid", None) => Special::GridId,
        ("lanemask_eq", None) => Special::LaneMask(LaneMask::Eq),
        ("lanemask_le", None) => Special::LaneMask(LaneMask::Le),
        ("lanemask_lt", None) => Special::LaneMask(LaneMask::Lt),
        ("lanemask_ge", None) => Special::LaneMask(LaneMask::Ge),
        ("lanemask_gt", None) => Special::LaneMask(LaneMask::Gt),
        ("dynamic_smem_size", None) => Special::DynamicSharedBytes,
        ("total_smem_size" | "aggr_smem_size", None) => Special::TotalSharedBytes,
        (stem, None) if stem.starts_with("envreg") => Special::Zero,
        _ => return None,
    })
}

impl Lowering<'_> {
    /// The row of a special register.
    pub(super) fn special(&mut self, name: &str) -> Lowered<R32> {
        let special = parse(name).ok_or_else(|| Problem::Unknown { name: name.to_owned() })?;
        if let Some(row) = self.pool.special.get(&special) {
            return Ok(*row);
        }
        let row = self.new_r32();
        self.pool.special.insert(special, row);
        self.constants.special.push((row, special));
        Ok(row)
    }
}
