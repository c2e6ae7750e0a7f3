//! Queries and keys turned by their positions, keys and values written to their pages. On a device
//! attention does it itself where all rows are of one token.

mod cpu;
pub(super) mod cuda;

use weights::AttentionSpec;

use crate::KvDtype;
use crate::device::{
    Deferred, DeviceError, DevicePtr, Exec, KvLocation, KvRegion, RopeAngles, ViewMut,
};

/// Rotates halves of every query and key head, and writes keys and values to the cache.
pub struct Args<'a> {
    /// `[T, (n_q_heads + 2 * n_kv_heads) * head_dim]`: queries, keys, values.
    pub qkv: ViewMut<'a>,
    /// `[T, n_q_heads * head_dim]`: rotated queries; `None` is in place.
    pub q: Option<ViewMut<'a>>,
    /// Factors that `qkv` still lacks.
    pub scales: Deferred,
    /// Of these T tokens.
    pub places: Places<'a>,
    /// This rank's heads.
    pub share: &'a AttentionSpec,
    /// An FP8 cache holds `key / k_scale`.
    pub k_scale: f32,
    /// An FP8 cache holds `value / v_scale`.
    pub v_scale: f32,
    /// This block's pages.
    pub cache: &'a mut KvRegion,
}

/// Where the step's tokens stand in their sequences, and where their keys and values go.
#[derive(Clone, Copy)]
pub enum Places<'a> {
    /// Worked out by the host.
    Host {
        /// Angles of every token.
        angles: &'a RopeAngles,
        /// `[T]`: no two alike.
        locations: &'a [KvLocation],
    },
    /// For the kernel to work out.
    Device(DevicePlaces),
}

/// A step's tokens on a device.
#[derive(Clone, Copy, Debug)]
pub struct DevicePlaces {
    /// i32 `[T]`.
    pub positions: DevicePtr,
    /// i32 `[T]`: whose page table; negative for padding.
    pub slots: DevicePtr,
    /// f64 `[head_dim / 2]`: what turns each pair.
    pub frequencies: DevicePtr,
    /// Of the block's cache group.
    pub tables: DeviceTables,
}

/// Page tables of one cache group on a device.
#[derive(Clone, Copy, Debug)]
pub struct DeviceTables {
    /// i32 `[n_slots, n_entries]`.
    pub first: DevicePtr,
    /// Entries of a slot.
    pub n_entries: usize,
}

/// Rotates and writes every token.
pub fn rope_kv(exec: &mut Exec, args: Args<'_>) -> Result<(), DeviceError> {
    args.check();
    match exec {
        Exec::Cpu(cpu) => {
            cpu::rope_kv(cpu, args);
            Ok(())
        }
        Exec::Cuda(gpu) => cuda::launch(&gpu.exec, &args.launch()),
    }
}

impl Args<'_> {
    fn launch(self) -> cuda::Launch {
        let Places::Device(places) = self.places else { panic!("places for a kernel of the host") };
        let (qkv, pages) = (self.qkv.device(), self.cache.device());
        let AttentionSpec { n_q_heads, n_kv_heads, head_dim, .. } = *self.share;
        let element = match self.cache.shape().dtype {
            KvDtype::Fp8 => cuda::Cached::E4m3 { k_scale: self.k_scale, v_scale: self.v_scale },
            KvDtype::Bf16 => cuda::Cached::Bf16,
            KvDtype::F32 => unreachable!("boot refuses an f32 cache on a device"),
        };
        cuda::Launch {
            wide: qkv.first,
            wide_stride: qkv.stride,
            scales: self.scales,
            n_tokens: qkv.n_rows,
            frequencies: places.frequencies,
            positions: places.positions,
            slots: places.slots,
            heads: cuda::Heads { n_q_heads, n_kv_heads, head_dim },
            q: self.q.expect("a device puts queries elsewhere").device().first,
            cache: cuda::Cache {
                keys: pages.keys,
                values: pages.values,
                element,
                page_tables: places.tables.first,
                n_pages_per_slot: places.tables.n_entries,
            },
        }
    }

    fn check(&self) {
        let AttentionSpec { n_q_heads, n_kv_heads, head_dim, .. } = *self.share;
        let n_tokens = self.qkv.n_rows();
        assert_eq!(self.qkv.n_cols(), (n_q_heads + 2 * n_kv_heads) * head_dim, "q, k and v");
        match self.places {
            Places::Host { angles, locations } => {
                assert_eq!(angles.n_tokens(), n_tokens, "angles of every token");
                assert_eq!(angles.n_pairs() * 2, head_dim, "angles of every pair");
                assert_eq!(locations.len(), n_tokens, "a location for every token");
            }
            Places::Device(_) => {}
        }
        let shape = self.cache.shape();
        assert_eq!((shape.n_kv_heads, shape.head_dim), (n_kv_heads, head_dim), "the cache's heads");
    }
}

#[cfg(test)]
mod tests;
