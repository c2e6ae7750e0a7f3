//! A token at a time, each by the thread that calls: little work next to the projections.

use crate::device::{CpuExec, Deferred, KvPlace, Scaled};

use super::{Args, Places};

pub(super) fn rope_kv(exec: &CpuExec, args: Args<'_>) {
    let Args { qkv, q, scales, places, share, k_scale, v_scale, cache } = args;
    assert_eq!(scales, Deferred::Nothing, "the processor finishes its products");
    assert!(q.is_none(), "the processor rotates in place");
    let Places::Host { angles, locations } = places else {
        panic!("places for a kernel of the device")
    };
    let mut qkv = qkv.host();
    let head_dim = share.head_dim;
    for (token_idx, &at) in locations.iter().enumerate() {
        let (cos, sin) = angles.token(token_idx);
        let (q, kv) = qkv.row_mut(token_idx).split_at_mut(share.n_q_heads * head_dim);
        let (k, v) = kv.split_at_mut(share.n_kv_heads * head_dim);
        for head in q.chunks_exact_mut(head_dim).chain(k.chunks_exact_mut(head_dim)) {
            rotate(head, cos, sin);
        }
        let heads = k.chunks_exact(head_dim).zip(v.chunks_exact(head_dim));
        for (kv_head, (key, value)) in heads.enumerate() {
            let place = KvPlace { kv_head, at };
            let key = Scaled { x: key, scale: k_scale };
            let value = Scaled { x: value, scale: v_scale };
            cache.write(exec.simd(), place, key, value);
        }
    }
}

/// Pair `i` is elements `i` and `i + head_dim / 2`.
fn rotate(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (low, high) = head.split_at_mut(cos.len());
    for (((a, b), cos), sin) in low.iter_mut().zip(high).zip(cos).zip(sin) {
        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
    }
}
