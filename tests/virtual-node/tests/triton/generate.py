"""Compiles Triton kernels for an H100 to PTX, with no GPU: `python generate.py` in this folder.

Writes `<name>.ptx` and `kernels.json`, which are committed. Needs `triton` (the version that wrote
them stands in `kernels.json`) and nothing else. The test beside this folder runs every kernel on
the virtual node and holds what it computes against float64: code from another compiler, known to
be right on real H100s, is an oracle for the node that its authors did not write.
"""

import json
import os
import pathlib

os.environ.setdefault("TRITON_DISABLE_LINE_INFO", "1")

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

HERE = pathlib.Path(__file__).parent
TARGET = GPUTarget("cuda", 90, 32)
PTX_VERSION = 87


@triton.jit
def matmul(a, b, c, m, n, k, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """c[m, n] = a[m, k] @ b[k, n], any tile; rows and columns beyond the end are masked."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    cols = tl.program_id(1) * BN + tl.arange(0, BN)
    inner = tl.arange(0, BK)
    a_at = a + rows[:, None] * k + inner[None, :]
    b_at = b + inner[:, None] * n + cols[None, :]
    sums = tl.zeros((BM, BN), dtype=tl.float32)
    for start in range(0, k, BK):
        a_tile = tl.load(a_at, mask=(rows[:, None] < m) & (inner[None, :] < k - start), other=0.0)
        b_tile = tl.load(b_at, mask=(inner[:, None] < k - start) & (cols[None, :] < n), other=0.0)
        sums = tl.dot(a_tile, b_tile, sums)
        a_at += BK
        b_at += BK * n
    c_at = c + rows[:, None] * n + cols[None, :]
    tl.store(c_at, sums.to(c.dtype.element_ty), mask=(rows[:, None] < m) & (cols[None, :] < n))


@triton.jit
def matmul_transposed(a, b, c, m, n, k, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """c[m, n] = a[m, k] @ b[n, k]ᵀ: both operands contiguous along K, as FP8 needs them."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    cols = tl.program_id(1) * BN + tl.arange(0, BN)
    inner = tl.arange(0, BK)
    a_at = a + rows[:, None] * k + inner[None, :]
    b_at = b + cols[None, :] * k + inner[:, None]
    sums = tl.zeros((BM, BN), dtype=tl.float32)
    for _ in range(0, k, BK):
        sums = tl.dot(tl.load(a_at), tl.load(b_at), sums)
        a_at += BK
        b_at += BK
    tl.store(c + rows[:, None] * n + cols[None, :], sums.to(c.dtype.element_ty))


@triton.jit
def matmul_split_k(a, b, c, m, n, k, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
                   SPLIT: tl.constexpr):
    """c[m, n] += a[m, k] @ b[k, n] in TF32, parts of K in blocks of their own, added atomically."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    cols = tl.program_id(1) * BN + tl.arange(0, BN)
    first = tl.program_id(2) * (k // SPLIT)
    sums = tl.zeros((BM, BN), dtype=tl.float32)
    for start in range(0, k // SPLIT, BK):
        inner = first + start + tl.arange(0, BK)
        a_tile = tl.load(a + rows[:, None] * k + inner[None, :])
        b_tile = tl.load(b + inner[:, None] * n + cols[None, :])
        sums = tl.dot(a_tile, b_tile, sums, input_precision="tf32")
    tl.atomic_add(c + rows[:, None] * n + cols[None, :], sums)


@triton.jit
def matmul_descriptor(a, b, c, m, n, k, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """c[m, n] = a[m, k] @ b[n, k]ᵀ through tensor maps that the kernel itself writes."""
    a_map = tl.make_tensor_descriptor(a, shape=[m, k], strides=[k, 1], block_shape=[BM, BK])
    b_map = tl.make_tensor_descriptor(b, shape=[n, k], strides=[k, 1], block_shape=[BN, BK])
    c_map = tl.make_tensor_descriptor(c, shape=[m, n], strides=[n, 1], block_shape=[BM, BN])
    row, col = tl.program_id(0) * BM, tl.program_id(1) * BN
    sums = tl.zeros((BM, BN), dtype=tl.float32)
    for start in range(0, k, BK):
        sums = tl.dot(a_map.load([row, start]), b_map.load([col, start]).T, sums)
    c_map.store([row, col], sums.to(c.dtype.element_ty))


@triton.jit
def matmul_host_descriptor(a, b, c, k, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """The same through tensor maps that the host encodes and passes by value."""
    row, col = tl.program_id(0) * BM, tl.program_id(1) * BN
    sums = tl.zeros((BM, BN), dtype=tl.float32)
    for start in range(0, k, BK):
        sums = tl.dot(a.load([row, start]), b.load([col, start]).T, sums)
    c.store([row, col], sums.to(tl.bfloat16))


@triton.jit
def matmul_int8(a, b, c, m, n, k, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """c[m, n] = a[m, k] @ b[n, k]ᵀ in integers."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    cols = tl.program_id(1) * BN + tl.arange(0, BN)
    inner = tl.arange(0, BK)
    sums = tl.zeros((BM, BN), dtype=tl.int32)
    for start in range(0, k, BK):
        a_tile = tl.load(a + rows[:, None] * k + start + inner[None, :])
        b_tile = tl.load(b + cols[None, :] * k + start + inner[:, None])
        sums = tl.dot(a_tile, b_tile, sums, out_dtype=tl.int32)
    tl.store(c + rows[:, None] * n + cols[None, :], sums)


@triton.jit
def attention(q, k, v, o, n_tokens, scale, BM: tl.constexpr, BN: tl.constexpr, D: tl.constexpr):
    """Causal attention with running maxima and sums; one head a block, all tensors [head, t, D]."""
    head = tl.program_id(1) * n_tokens * D
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    dims = tl.arange(0, D)
    q_tile = tl.load(q + head + rows[:, None] * D + dims[None, :])
    highest = tl.full((BM,), float("-inf"), tl.float32)
    total = tl.zeros((BM,), tl.float32)
    sums = tl.zeros((BM, D), tl.float32)
    for start in range(0, (tl.program_id(0) + 1) * BM, BN):
        keys = start + tl.arange(0, BN)
        k_tile = tl.load(k + head + keys[None, :] * D + dims[:, None])
        scores = tl.dot(q_tile, k_tile) * scale
        scores = tl.where(rows[:, None] >= keys[None, :], scores, float("-inf"))
        higher = tl.maximum(highest, tl.max(scores, 1))
        weights = tl.exp2(scores - higher[:, None])
        shrink = tl.exp2(highest - higher)
        total = total * shrink + tl.sum(weights, 1)
        v_tile = tl.load(v + head + keys[:, None] * D + dims[None, :])
        sums = tl.dot(weights.to(v_tile.dtype), v_tile, sums * shrink[:, None])
        highest = higher
    o_at = o + head + rows[:, None] * D + dims[None, :]
    tl.store(o_at, (sums / total[:, None]).to(o.dtype.element_ty))


@triton.jit
def rms_norm(x, w, y, n_cols, eps, BLOCK: tl.constexpr):
    """y = x / rms(x) × w, a row a block."""
    row = tl.program_id(0)
    cols = tl.arange(0, BLOCK)
    mask = cols < n_cols
    values = tl.load(x + row * n_cols + cols, mask=mask, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(values * values, 0) / n_cols + eps)
    weights = tl.load(w + cols, mask=mask, other=0.0).to(tl.float32)
    tl.store(y + row * n_cols + cols, (values * scale * weights).to(y.dtype.element_ty), mask=mask)


@triton.jit
def layer_norm(x, w, b, y, mean, n_cols, eps, BLOCK: tl.constexpr):
    """y = (x − mean) / σ × w + b, a row a block, in chunks; keeps the mean."""
    row = tl.program_id(0)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, n_cols, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        total += tl.load(x + row * n_cols + cols, mask=cols < n_cols, other=0.0)
    middle = tl.sum(total, 0) / n_cols
    squares = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, n_cols, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        values = tl.load(x + row * n_cols + cols, mask=cols < n_cols, other=0.0)
        apart = tl.where(cols < n_cols, values - middle, 0.0)
        squares += apart * apart
    scale = 1 / tl.sqrt(tl.sum(squares, 0) / n_cols + eps)
    tl.store(mean + row, middle)
    for start in range(0, n_cols, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        mask = cols < n_cols
        values = tl.load(x + row * n_cols + cols, mask=mask, other=0.0)
        turned = (values - middle) * scale * tl.load(w + cols, mask=mask)
        tl.store(y + row * n_cols + cols, turned + tl.load(b + cols, mask=mask), mask=mask)


@triton.jit
def softmax(x, y, n_cols, BLOCK: tl.constexpr):
    """A row a block."""
    row = tl.program_id(0)
    cols = tl.arange(0, BLOCK)
    mask = cols < n_cols
    values = tl.load(x + row * n_cols + cols, mask=mask, other=float("-inf"))
    weights = tl.exp(values - tl.max(values, 0))
    tl.store(y + row * n_cols + cols, weights / tl.sum(weights, 0), mask=mask)


@triton.jit
def sort(x, y, BLOCK: tl.constexpr):
    """Sorts each row, ascending."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + at, tl.sort(tl.load(x + at)))


@triton.jit
def scan(x, sums, products, BLOCK: tl.constexpr):
    """Running sums of integers, and running products from the other end."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(x + at)
    tl.store(sums + at, tl.cumsum(values, 0))
    tl.store(products + at, tl.cumprod(values | 1, 0, reverse=True))


@triton.jit
def histogram(x, counts, greatest, n, BLOCK: tl.constexpr, BINS: tl.constexpr):
    """Counts values below BINS over all blocks, and keeps the greatest value."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = at < n
    values = tl.load(x + at, mask=mask, other=0)
    tl.atomic_add(counts + tl.arange(0, BINS), tl.histogram(values, BINS, mask=mask))
    tl.atomic_max(greatest, tl.max(values, 0))


@triton.jit
def to_fp8(x, e4m3, e5m2, back, n, BLOCK: tl.constexpr):
    """To both 8-bit formats, and from the first back to halves."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = at < n
    values = tl.load(x + at, mask=mask, other=0.0)
    small = values.to(tl.float8e4nv)
    tl.store(e4m3 + at, small, mask=mask)
    tl.store(e5m2 + at, values.to(tl.float8e5), mask=mask)
    tl.store(back + at, small.to(tl.float16), mask=mask)


@triton.jit
def top_and_gather(x, table, best, picked, n_cols, BLOCK: tl.constexpr):
    """Per row: position of the greatest value, and a table's entry there."""
    row = tl.program_id(0)
    cols = tl.arange(0, BLOCK)
    values = tl.load(x + row * n_cols + cols, mask=cols < n_cols, other=float("-inf"))
    at = tl.argmax(values, 0)
    tl.store(best + row, at)
    tl.store(picked + row, tl.load(table + at))


def tiles(bm, bn, bk, **more):
    return {"BM": bm, "BN": bn, "BK": bk, **more}


BF16_MATMUL = {"a": "*bf16", "b": "*bf16", "c": "*bf16", "m": "i32", "n": "i32", "k": "i32"}

# Name, function, types of arguments, constants, options. `:16` says: divisible by 16.
KERNELS = [
    ("matmul_bf16_64x64x64_w4", matmul, BF16_MATMUL, tiles(64, 64, 64), {"num_warps": 4}),
    ("matmul_bf16_128x128x64_w8", matmul, BF16_MATMUL, tiles(128, 128, 64),
     {"num_warps": 8, "num_stages": 3}),
    ("matmul_bf16_16x32x64_w2", matmul, BF16_MATMUL, tiles(16, 32, 64), {"num_warps": 2}),
    ("matmul_f16_64x256x32_w4", matmul, {**BF16_MATMUL, "a": "*fp16", "b": "*fp16", "c": "*fp32"},
     tiles(64, 256, 32), {"num_warps": 4, "num_stages": 2}),
    ("matmul_fp8_64x128x128_w4", matmul_transposed,
     {**BF16_MATMUL, "a": "*fp8e4nv", "b": "*fp8e4nv"}, tiles(64, 128, 128), {"num_warps": 4}),
    ("matmul_fp8_16x64x64_w4", matmul_transposed,
     {**BF16_MATMUL, "a": "*fp8e4nv", "b": "*fp8e5"}, tiles(16, 64, 64), {"num_warps": 4}),
    ("matmul_tf32_split_k", matmul_split_k,
     {**BF16_MATMUL, "a": "*fp32", "b": "*fp32", "c": "*fp32"}, tiles(64, 64, 32, SPLIT=2),
     {"num_warps": 4}),
    ("matmul_int8_64x64x64_w4", matmul_int8,
     {**BF16_MATMUL, "a": "*i8", "b": "*i8", "c": "*i32"}, tiles(64, 64, 64), {"num_warps": 4}),
    ("matmul_descriptor_64x64x64", matmul_descriptor, BF16_MATMUL, tiles(64, 64, 64),
     {"num_warps": 4, "num_stages": 3}),
    ("matmul_host_descriptor", matmul_host_descriptor,
     {"a": "tensordesc<bf16[64,64]>", "b": "tensordesc<bf16[64,64]>",
      "c": "tensordesc<bf16[64,64]>", "k": "i32"}, tiles(64, 64, 64), {"num_warps": 4}),
    ("attention_f16_64x64x64_w4", attention,
     {"q": "*fp16", "k": "*fp16", "v": "*fp16", "o": "*fp16", "n_tokens": "i32", "scale": "fp32"},
     {"BM": 64, "BN": 64, "D": 64}, {"num_warps": 4, "num_stages": 2}),
    ("rms_norm", rms_norm,
     {"x": "*bf16", "w": "*bf16", "y": "*bf16", "n_cols": "i32", "eps": "fp32"},
     {"BLOCK": 1024}, {"num_warps": 4}),
    ("layer_norm", layer_norm,
     {"x": "*fp32", "w": "*fp32", "b": "*fp32", "y": "*fp32", "mean": "*fp32", "n_cols": "i32",
      "eps": "fp32"}, {"BLOCK": 256}, {"num_warps": 8}),
    ("softmax", softmax, {"x": "*fp32", "y": "*fp32", "n_cols": "i32"}, {"BLOCK": 1024},
     {"num_warps": 4}),
    ("sort", sort, {"x": "*i32", "y": "*i32"}, {"BLOCK": 256}, {"num_warps": 2}),
    ("scan", scan, {"x": "*i32", "sums": "*i32", "products": "*i32"}, {"BLOCK": 512},
     {"num_warps": 4}),
    ("histogram", histogram,
     {"x": "*i32", "counts": "*i32", "greatest": "*i32", "n": "i32"},
     {"BLOCK": 512, "BINS": 64}, {"num_warps": 4}),
    ("to_fp8", to_fp8,
     {"x": "*fp32", "e4m3": "*fp8e4nv", "e5m2": "*fp8e5", "back": "*fp16", "n": "i32"},
     {"BLOCK": 512}, {"num_warps": 4}),
    ("top_and_gather", top_and_gather,
     {"x": "*fp32", "table": "*i64", "best": "*i32", "picked": "*i64", "n_cols": "i32"},
     {"BLOCK": 256}, {"num_warps": 4}),
]


def aligned(signature):
    """Pointers and sizes are multiples of 16, as Triton sees them specialised at run time."""
    return {(i,): [["tt.divisibility", 16]]
            for i, kind in enumerate(signature.values()) if kind.startswith("*") or kind == "i32"}


def build(name, function, signature, constants, options):
    full = {**signature, **{constant: "constexpr" for constant in constants}}
    ragged = name in ("rms_norm", "softmax", "to_fp8", "histogram", "top_and_gather", "layer_norm",
                      "matmul_bf16_16x32x64_w2")
    attrs = {} if ragged else aligned(signature)
    source = ASTSource(function, signature=full, constexprs=constants, attrs=attrs)
    options = {"ptx_version": PTX_VERSION, **options}
    compiled = triton.compile(source, target=TARGET, options=options)
    (HERE / f"{name}.ptx").write_text(compiled.asm["ptx"])
    metadata = compiled.metadata
    return {
        "name": name,
        "function": metadata.name,
        "arguments": list(signature.values()),
        "constants": constants,
        "n_warps": metadata.num_warps,
        "shared_bytes": metadata.shared,
        "global_scratch_bytes": metadata.global_scratch_size,
        "global_scratch_align": metadata.global_scratch_align,
        "profile_scratch_bytes": metadata.profile_scratch_size,
        "tensor_maps": getattr(metadata, "tensordesc_meta", None) or [],
    }


def main():
    kernels = []
    for kernel in KERNELS:
        print(kernel[0])
        kernels.append(build(*kernel))
    manifest = {"triton": triton.__version__, "ptx_version": PTX_VERSION, "kernels": kernels}
    (HERE / "kernels.json").write_text(json.dumps(manifest, indent=1, default=str) + "\n")


if __name__ == "__main__":
    main()
