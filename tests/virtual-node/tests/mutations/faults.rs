//! The faults: mistakes that are made in kernels of this kind, one by one.

use virtual_node::ptx::Module;

use crate::attention;
use crate::scenarios::{self, Outcome};
use crate::two_shot;

/// A mistake in one kernel.
pub(crate) struct Fault {
    /// What was done wrong.
    pub(crate) name: &'static str,
    /// The kernel's source without its ending.
    pub(crate) unit: &'static str,
    pub(crate) kernel: &'static str,
    pub(crate) change: Change,
    pub(crate) scenario: fn(&Module) -> Outcome,
    pub(crate) noticed: Noticed,
}

/// A change of the kernel's text. `line` is what the line contains, `nth` which of those that come
/// after the first line with `after`.
#[derive(Clone, Copy)]
pub(crate) enum Change {
    Remove {
        after: &'static str,
        line: &'static str,
        nth: usize,
    },
    Replace {
        after: &'static str,
        line: &'static str,
        from: &'static str,
        to: &'static str,
    },
    /// Every one of the two for the other.
    Swap(&'static str, &'static str),
}

/// How it must show.
#[derive(Clone, Copy)]
pub(crate) enum Noticed {
    /// As a fault with these words.
    Fault(&'static str),
    /// As another result.
    Result,
    /// As a fault or as another result, whichever is first.
    Either,
}

use Change::{Remove, Replace, Swap};

const NORM: &str = "reduce_norm_e4m3_token";
const TWO_SHOT: &str = "reduce_norm_two_shot_e4m3_token";
const TWO_SHOT_STATIC: &str = "reduce_norm_two_shot_e4m3";
const DECODE: &str = "attention_decode_d32_bf16";
const PREFILL: &str = "attention_prefill_d32_bf16";

macro_rules! fault {
    ($name:literal, $unit:literal $kernel:expr, $change:expr, $scenario:path, $noticed:expr) => {
        Fault {
            name: $name,
            unit: $unit,
            kernel: $kernel,
            change: $change,
            scenario: $scenario,
            noticed: $noticed,
        }
    };
}

pub(crate) const FAULTS: &[Fault] = &[
    fault!(
        "the last column is one too far", "embed" "embed_bf16",
        Replace { after: "%ctaid.x", line: "setp.ge.s32", from: "setp.ge", to: "setp.gt" },
        scenarios::embed, Noticed::Fault("allocation")
    ),
    fault!(
        "entries below the first are taken for held", "embed" "embed_bf16",
        Replace { after: "sub.s32", line: "setp.gt.s32", from: ", -1", to: ", -9" },
        scenarios::embed, Noticed::Fault("allocation")
    ),
    fault!(
        "a chunk begins half a chunk late", "embed" "embed_bf16",
        Replace { after: "", line: "ld.global.nc.v4.u32", from: "]", to: "+8]" },
        scenarios::embed, Noticed::Fault("aligned")
    ),
    fault!(
        "slots are counted from one", "embed" "embed_bf16",
        Replace { after: "", line: "xor.b64", from: ", -4", to: ", -8" },
        scenarios::embed, Noticed::Either
    ),
    fault!(
        "the greatest e4m3 is 432", "quantize" "quantize_known",
        Replace { after: "", line: "div.rn.f32", from: "0f43E00000", to: "0f43D80000" },
        scenarios::quantize, Noticed::Result
    ),
    fault!(
        "a row's tail is stored whole", "quantize" "quantize_known",
        Replace { after: "", line: "setp.ge.s32", from: "setp.ge", to: "setp.eq" },
        scenarios::quantize, Noticed::Fault("allocation")
    ),
    fault!(
        "a sign is kept in a magnitude", "quantize" "magnitudes_bf16",
        Replace { after: "", line: "abs.f32", from: "abs", to: "mov" },
        scenarios::magnitudes, Noticed::Result
    ),
    fault!(
        "lanes look the wrong way", "quantize" "magnitudes_bf16",
        Replace { after: "", line: "shfl.sync.bfly", from: "bfly", to: "up" },
        scenarios::magnitudes, Noticed::Result
    ),
    fault!(
        "no barrier before other warps' maxima", "quantize" "magnitudes_bf16",
        Remove { after: "", line: "bar.sync", nth: 0 },
        scenarios::magnitudes, Noticed::Either
    ),
    fault!(
        "half of a warp is left out of a shuffle", "quantize" "magnitudes_bf16",
        Replace { after: ", 31;", line: ", -1;", from: ", -1;", to: ", 65535;" },
        scenarios::magnitudes, Noticed::Fault("must")
    ),
    fault!(
        "the launch bound is half of what is launched", "quantize" "magnitudes_bf16",
        Replace { after: "", line: ".maxntid", from: "256", to: "128" },
        scenarios::magnitudes, Noticed::Fault("limit")
    ),
    fault!(
        "a block never tells its maximum", "swiglu" "swiglu_bf16_magnitudes",
        Remove { after: "", line: "st.shared::cluster", nth: 0 },
        scenarios::swiglu, Noticed::Either
    ),
    fault!(
        "blocks do not wait for each other's maxima", "swiglu" "swiglu_bf16_magnitudes",
        Remove { after: "arrive.release", line: "barrier.cluster.wait", nth: 0 },
        scenarios::swiglu, Noticed::Either
    ),
    fault!(
        "a block waits where it never arrived", "swiglu" "swiglu_bf16_magnitudes",
        Remove { after: "", line: "barrier.cluster.arrive.relaxed", nth: 0 },
        scenarios::swiglu, Noticed::Fault("")
    ),
    fault!(
        "no barrier before other threads' angles", "rope_kv" "rope_kv_e4m3",
        Remove { after: "", line: "bar.sync", nth: 0 },
        scenarios::rope_kv, Noticed::Either
    ),
    fault!(
        "padding is taken for a token", "rope_kv" "rope_kv_e4m3",
        Replace { after: "", line: "setp.lt.s32", from: ", 0;", to: ", -5;" },
        scenarios::rope_kv, Noticed::Fault("allocation")
    ),
    fault!(
        "a page is taken for eight tokens", "rope_kv" "rope_kv_e4m3",
        Replace { after: "bar.sync", line: "and.b32", from: ", -16;", to: ", -8;" },
        scenarios::rope_kv, Noticed::Either
    ),
    fault!(
        "a sine's sign is of the wrong quarter", "rope_kv" "rope_kv_e4m3",
        Replace { after: "cvt.rni", line: "and.b32", from: ", 1;", to: ", 2;" },
        scenarios::rope_kv, Noticed::Result
    ),
    fault!(
        "no barrier before other warps' sums", "reduce_norm" NORM,
        Remove { after: "cluster.wait", line: "bar.sync", nth: 0 },
        scenarios::reduce_norm, Noticed::Either
    ),
    fault!(
        "ranks are summed in another order", "reduce_norm" NORM,
        Swap("_param_0+8]", "_param_0+16]"),
        scenarios::reduce_norm, Noticed::Result
    ),
    fault!(
        "nobody waits for the other ranks", "reduce_norm" NORM,
        Replace { after: "ld.acquire", line: "setp.lt.s32", from: ", 0;", to: ", -9;" },
        scenarios::reduce_norm_left_alone, Noticed::Result
    ),
    fault!(
        "an exchange is never counted", "reduce_norm" NORM,
        Remove { after: "atom.global.add.u32", line: "st.global.u32", nth: 1 },
        scenarios::reduce_norm_left_alone, Noticed::Result
    ),
    fault!(
        "what an exchange waited has no end", "reduce_norm" NORM,
        Remove { after: "ld.acquire", line: "atom.global.add.u64", nth: 0 },
        scenarios::reduce_norm_left_alone, Noticed::Result
    ),
    fault!(
        "what an exchange took has no end", "reduce_norm" NORM,
        Remove { after: "atom.global.add.u32", line: "atom.global.add.u64", nth: 0 },
        scenarios::reduce_norm_left_alone, Noticed::Result
    ),
    fault!(
        "what an exchange took has no begin", "reduce_norm" NORM,
        Remove { after: "", line: "atom.global.add.u64", nth: 0 },
        scenarios::reduce_norm_left_alone, Noticed::Result
    ),
    fault!(
        "weights are fetched beyond their end", "reduce_norm" NORM,
        Replace { after: "%nctaid.x", line: "setp.ge.u32", from: "ge", to: "gt" },
        scenarios::reduce_norm_left_alone, Noticed::Fault("allocation")
    ),
    fault!(
        "an exchange waits for blocks that only fetch", "reduce_norm" NORM,
        Replace { after: "atom.global.add.u32", line: "add.s32", from: ", -1", to: ", 1" },
        scenarios::reduce_norm_left_alone, Noticed::Result
    ),
    fault!(
        "ranks are summed in another order in two shots", "reduce_norm_two_shot" TWO_SHOT,
        Swap("_param_0+8]", "_param_0+16]"),
        two_shot::reduce_norm, Noticed::Result
    ),
    fault!(
        "nobody waits for the others' partial results", "reduce_norm_two_shot" TWO_SHOT,
        Replace { after: "ld.acquire", line: "setp.lt.s32", from: ", 0;", to: ", -9;" },
        two_shot::reduce_norm, Noticed::Result
    ),
    fault!(
        "nobody waits for the others' rows", "reduce_norm_two_shot" TWO_SHOT,
        Replace { after: "atom.global.add.u32", line: "setp.lt.s32", from: ", 0;", to: ", -9;" },
        two_shot::reduce_norm, Noticed::Result
    ),
    fault!(
        "rows do not reach the last rank", "reduce_norm_two_shot" TWO_SHOT,
        Replace { after: "st.global.v2.u32", line: "setp.lt.s32", from: ", 3;", to: ", 9;" },
        two_shot::reduce_norm, Noticed::Result
    ),
    fault!(
        "another block than the last says that all is written",
        "reduce_norm_two_shot" TWO_SHOT,
        Replace { after: "atom.global.add.u32", line: "setp.eq.s32", from: "eq", to: "ne" },
        two_shot::reduce_norm, Noticed::Either
    ),
    fault!(
        "picked rows of other owners are finished too", "reduce_norm_two_shot" TWO_SHOT_STATIC,
        Replace { after: "rem.s32", line: "setp.eq.s32", from: "eq", to: "ne" },
        two_shot::picked, Noticed::Result
    ),
    fault!(
        "rows that follow each other use one room", "reduce_norm_two_shot" TWO_SHOT_STATIC,
        Replace { after: "rem.s32", line: "xor.b32", from: ", 1;", to: ", 0;" },
        two_shot::picked, Noticed::Fault("race")
    ),
    fault!(
        "blocks meet and do not tell what they wrote", "reduce_norm_two_shot" TWO_SHOT_STATIC,
        Replace { after: "rem.s32", line: "cluster.arrive", from: "release", to: "relaxed" },
        two_shot::picked, Noticed::Fault("race")
    ),
    fault!(
        "no barrier before other threads' queries", "attention" DECODE,
        Remove { after: "", line: "bar.sync", nth: 0 },
        attention::decode, Noticed::Fault("nothing wrote")
    ),
    fault!(
        "no barrier before other warps' softmax", "attention" DECODE,
        Remove { after: "mma.sync", line: "bar.sync", nth: 0 },
        attention::decode, Noticed::Fault("nothing wrote")
    ),
    fault!(
        "the output is written over sums in use", "attention" DECODE,
        Remove { after: "mma.sync", line: "bar.sync", nth: 1 },
        attention::decode, Noticed::Fault("race")
    ),
    fault!(
        "a token behind the context is seen", "attention" DECODE,
        Replace { after: "setp.le.s32", line: "setp.lt.s32", from: ".lt", to: ".le" },
        attention::decode, Noticed::Result
    ),
    fault!(
        "a token before the window is seen", "attention" DECODE,
        Replace { after: "mma.sync", line: "setp.le.s32", from: "setp.le", to: "setp.ne" },
        attention::decode, Noticed::Result
    ),
    fault!(
        "a page is that of the entry behind", "attention" DECODE,
        Replace { after: "", line: "ld.global.nc.s32", from: "]", to: "+4]" },
        attention::decode, Noticed::Result
    ),
    fault!(
        "a prefetched piece is one too far", "attention" DECODE,
        Replace { after: "evict_last", line: "setp.ge.u32", from: "setp.ge", to: "setp.gt" },
        attention::decode, Noticed::Fault("allocation")
    ),
    fault!(
        "no barrier before other threads' angles", "attention" DECODE,
        Remove { after: "cvt.rni", line: "bar.sync", nth: 0 },
        attention::decode_projected, Noticed::Either
    ),
    fault!(
        "no barrier behind turned queries and the own key", "attention" DECODE,
        Remove { after: "cvt.rni", line: "bar.sync", nth: 1 },
        attention::decode_projected, Noticed::Either
    ),
    fault!(
        "the row's own key goes to another page's place", "attention" DECODE,
        Replace { after: "ld.param.v2.f32", line: "and.b32", from: ", -16;", to: ", -8;" },
        attention::decode_projected, Noticed::Either
    ),
    fault!(
        "a page is used before it has landed", "attention" DECODE,
        Replace { after: "", line: "cp.async.wait_group", from: "group 1", to: "group 2" },
        attention::decode, Noticed::Either
    ),
    fault!(
        "a page lands where another is in use", "attention" DECODE,
        Replace { after: "cp.async.wait_group", line: "setp.eq.s32", from: ", 0;", to: ", 1;" },
        attention::decode, Noticed::Either
    ),
    fault!(
        "a page is read before the row's own key is there", "attention" DECODE,
        Replace { after: "setp.ne.s64", line: "setp.eq.s32", from: ".eq", to: ".ne" },
        attention::decode_projected, Noticed::Either
    ),
    fault!(
        "parts without it write the row's own key", "attention" DECODE,
        Replace { after: "cvt.rni", line: "setp.ne.s32", from: "setp.ne", to: "setp.eq" },
        attention::decode_projected, Noticed::Either
    ),
    fault!(
        "a score is not scaled", "attention" DECODE,
        Replace { after: "mma.sync", line: "mul.f32", from: ", %f55,", to: ", 0f3F800000," },
        attention::decode, Noticed::Result
    ),
    fault!(
        "no barrier before other threads' keys", "attention_prefill" PREFILL,
        Remove { after: "", line: "bar.sync", nth: 1 },
        attention::prefill, Noticed::Fault("nothing wrote")
    ),
    fault!(
        "the next keys come while these are in use", "attention_prefill" PREFILL,
        Remove { after: "", line: "bar.sync", nth: 2 },
        attention::prefill, Noticed::Fault("race")
    ),
    fault!(
        "a token sees the one behind it", "attention_prefill" PREFILL,
        Replace { after: "mma.sync", line: "setp.lt.s32", from: "setp.lt", to: "setp.le" },
        attention::prefill, Noticed::Result
    ),
    fault!(
        "a page of keys is that of the entry behind", "attention_prefill" PREFILL,
        Replace { after: "selp.u32", line: "ld.global.nc.u32", from: "]", to: "+4]" },
        attention::prefill, Noticed::Result
    ),
    fault!(
        "a score has the factor of another type", "attention_prefill" PREFILL,
        Replace { after: "ld.param.f32", line: "mul.f32", from: ", %f1;", to: ", 0f3F800000;" },
        attention::prefill, Noticed::Result
    ),
];
