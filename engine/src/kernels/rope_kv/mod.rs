//! Queries and keys turned by their positions, keys and values written to their pages.

mod cpu;
mod cuda;

use weights::AttentionSpec;

use crate::device::{Deferred, DeviceError, Exec, KvLocation, KvRegion, RopeAngles, ViewMut};

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
}

/// Rotates and writes every token.
pub fn rope_kv(exec: &mut Exec, args: Args<'_>) -> Result<(), DeviceError> {
    args.check();
    match exec {
        Exec::Cpu(cpu) => cpu::rope_kv(cpu, args),
    }
    Ok(())
}

impl Args<'_> {
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
        }
        let shape = self.cache.shape();
        assert_eq!((shape.n_kv_heads, shape.head_dim), (n_kv_heads, head_dim), "the cache's heads");
    }
}

#[cfg(test)]
mod tests;
