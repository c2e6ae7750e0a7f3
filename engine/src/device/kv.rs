//! KV memory of one block: pages of keys and of values, in the cache's element type.
//!
//! It does not know which sequence owns a page, nor which positions a page holds.

use std::ops::Range;

use half::bf16;
use scheduler::PageId;
use weights::Dtype;

use crate::KvDtype;

use super::aligned::ask_for_huge_pages;
use super::simd;
use super::{DeviceError, DevicePtr, Exec, Simd};

/// Where a token's key and value lie: the same in every block of a cache group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvLocation {
    /// The page.
    pub page: PageId,
    /// The token's place in the page.
    pub offset: u32,
}

/// A block's pages, `[page][kv_head][token][head_dim]` for keys and again for values: a head's
/// tokens within a page are contiguous.
pub struct KvRegion {
    pub(super) memory: Memory,
    shape: KvShape,
}

pub(super) enum Memory {
    Host { keys: Vec<u8>, values: Vec<u8> },
    Device(DevicePages),
}

/// A region's memory on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DevicePages {
    /// Where keys begin.
    pub keys: DevicePtr,
    /// Where values begin.
    pub values: DevicePtr,
}

/// Which head of which token.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KvPlace {
    /// Key/value head of this rank.
    pub(crate) kv_head: usize,
    /// The token.
    pub(crate) at: KvLocation,
}

/// One head's key or value, with the factor that an FP8 region stores it under.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scaled<'a> {
    /// `[head_dim]`
    pub(crate) x: &'a [f32],
    /// `x / scale` is stored.
    pub(crate) scale: f32,
}

/// What a region holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Element type.
    pub dtype: KvDtype,
    /// Pages.
    pub n_pages: usize,
    /// Tokens of a page.
    pub page_tokens: usize,
    /// Key/value heads of this rank.
    pub n_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
}

impl KvRegion {
    /// A zeroed region. Every page of memory is touched, so that a machine with too little fails
    /// here and not in a step.
    pub fn new(
        dtype: KvDtype,
        n_pages: usize,
        page_tokens: usize,
        n_kv_heads: usize,
        head_dim: usize,
    ) -> KvRegion {
        let shape = KvShape { dtype, n_pages, page_tokens, n_kv_heads, head_dim };
        assert!(page_tokens > 0 && n_kv_heads > 0 && head_dim > 0, "{shape:?}");
        let n_bytes = shape.n_bytes();
        let memory = Memory::Host { keys: touched(n_bytes), values: touched(n_bytes) };
        KvRegion { memory, shape }
    }

    /// A region whose pages lie on a device, [`KvShape::n_bytes`] of keys and as many of values.
    pub fn on_device(shape: KvShape, pages: DevicePages) -> KvRegion {
        KvRegion { memory: Memory::Device(pages), shape }
    }

    /// Its pages, for a device's kernel.
    pub fn device(&self) -> DevicePages {
        match self.memory {
            Memory::Host { .. } => panic!("{:?} for a kernel of the device", self.shape),
            Memory::Device(pages) => pages,
        }
    }

    /// What it holds.
    pub fn shape(&self) -> KvShape {
        self.shape
    }

    /// Bytes of keys and values.
    pub fn n_bytes(&self) -> usize {
        2 * self.shape.n_bytes()
    }

    /// What stored keys of `scale` must be multiplied by after [`simd::widen`].
    pub(crate) fn factor(&self, scale: f32) -> f32 {
        match self.shape.dtype {
            KvDtype::F32 | KvDtype::Bf16 => 1.0,
            KvDtype::Fp8 => scale * simd::widened_factor(Dtype::F8E4m3),
        }
    }

    /// Element type in the words of weights.
    pub(crate) fn stored(&self) -> Dtype {
        match self.shape.dtype {
            KvDtype::F32 => Dtype::F32,
            KvDtype::Bf16 => Dtype::Bf16,
            KvDtype::Fp8 => Dtype::F8E4m3,
        }
    }

    /// Stored keys of `kv_head` for the tokens of `page` from `offset` on.
    pub(crate) fn keys(&self, kv_head: usize, page: PageId, offset: usize) -> &[u8] {
        &self.host().0[self.shape.bytes_from(kv_head, page, offset)]
    }

    /// Stored values of `kv_head` for the tokens of `page` from `offset` on.
    pub(crate) fn values(&self, kv_head: usize, page: PageId, offset: usize) -> &[u8] {
        &self.host().1[self.shape.bytes_from(kv_head, page, offset)]
    }

    /// Keys and values, for a processor's kernel.
    fn host(&self) -> (&[u8], &[u8]) {
        match &self.memory {
            Memory::Host { keys, values } => (keys, values),
            Memory::Device(_) => panic!("{:?} for a kernel of the host", self.shape),
        }
    }

    /// Makes page `to` hold what page `from` holds: now, or when the device gets there.
    pub(crate) fn copy_page(
        &mut self,
        exec: &Exec,
        from: PageId,
        to: PageId,
    ) -> Result<(), DeviceError> {
        let [from, to] = [from, to].map(|page| self.shape.page_bytes(page));
        match (&mut self.memory, exec) {
            (Memory::Host { keys, values }, Exec::Cpu(_)) => {
                keys.copy_within(from.clone(), to.start);
                values.copy_within(from, to.start);
                Ok(())
            }
            (Memory::Device(pages), Exec::Cuda(gpu)) => {
                [pages.keys, pages.values].into_iter().try_for_each(|first| {
                    let (to, n_bytes) = (first.offset(to.start), to.len());
                    gpu.exec.stream().copy_within(to, first.offset(from.start), n_bytes)
                })
            }
            _ => panic!("{:?} is not where the model runs", self.shape),
        }
    }

    /// Writes one head's key and value. An FP8 region stores `e4m3(clamp(x / scale, ±448))`.
    pub(crate) fn write(&mut self, simd: Simd, place: KvPlace, key: Scaled<'_>, value: Scaled<'_>) {
        let shape = self.shape;
        let begin = shape.bytes_from(place.kv_head, place.at.page, place.at.offset as usize).start;
        let range = begin..begin + shape.head_bytes();
        let Memory::Host { keys, values } = &mut self.memory else {
            panic!("{shape:?} for a kernel of the host")
        };
        store(simd, shape.dtype, key, &mut keys[range.clone()]);
        store(simd, shape.dtype, value, &mut values[range]);
    }
}

impl KvShape {
    /// Bytes of all keys, and again of all values.
    pub fn n_bytes(&self) -> usize {
        self.n_pages * self.page_tokens * self.n_kv_heads * self.head_bytes()
    }

    /// Bytes of one token's key in one head.
    fn head_bytes(&self) -> usize {
        self.head_dim * self.dtype.n_bytes()
    }

    /// A page's keys, and again its values.
    pub(super) fn page_bytes(&self, page: PageId) -> Range<usize> {
        assert!(page.idx() < self.n_pages, "page {page:?} of {self:?}");
        let n_bytes = self.n_bytes() / self.n_pages;
        page.idx() * n_bytes..(page.idx() + 1) * n_bytes
    }

    /// The tokens of `page` from `offset` on, in `kv_head`.
    fn bytes_from(&self, kv_head: usize, page: PageId, offset: usize) -> Range<usize> {
        assert!(
            page.idx() < self.n_pages && kv_head < self.n_kv_heads && offset < self.page_tokens,
            "token {offset} of head {kv_head} in page {page:?} of {self:?}"
        );
        let run_idx = page.idx() * self.n_kv_heads + kv_head;
        let begin = run_idx * self.page_tokens;
        (begin + offset) * self.head_bytes()..(begin + self.page_tokens) * self.head_bytes()
    }
}

/// Zeroes, in memory that the system has really given.
pub(super) fn touched(n_bytes: usize) -> Vec<u8> {
    // Less than any system's page of memory, so that none is missed.
    const STEP_BYTES: usize = 4096;
    let mut bytes = vec![0; n_bytes];
    // A sequence's tokens lie in pages far apart.
    ask_for_huge_pages(&mut bytes);
    // The compiler may not assume that the zeroes of a fresh mapping are still there.
    for byte in std::hint::black_box(&mut bytes).iter_mut().step_by(STEP_BYTES) {
        *byte = 0;
    }
    std::hint::black_box(&mut bytes);
    bytes
}

fn store(simd: Simd, dtype: KvDtype, scaled: Scaled<'_>, out: &mut [u8]) {
    let Scaled { x, scale } = scaled;
    assert_eq!(out.len(), x.len() * dtype.n_bytes(), "a {dtype:?} head of {}", x.len());
    match dtype {
        KvDtype::F32 => {
            for (out, x) in out.as_chunks_mut().0.iter_mut().zip(x) {
                *out = x.to_ne_bytes();
            }
        }
        KvDtype::Bf16 => {
            for (out, &x) in out.as_chunks_mut().0.iter_mut().zip(x) {
                *out = bf16::from_f32(x).to_ne_bytes();
            }
        }
        KvDtype::Fp8 => simd::encode_e4m3(simd, x, scale, out),
    }
}
