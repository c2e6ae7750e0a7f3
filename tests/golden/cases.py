"""The table of cases. A case is data; README.md says what each is for.

Seeds were chosen with `make_golden.py --find-seed` for wide greedy gaps and, in FP8, for no
activation so near a tie of e4m3 that float32 arithmetic rounds it the other way.
"""

from __future__ import annotations

from model import (
    Attention,
    Block,
    Case,
    Linear,
    Model,
    Quantization,
    RopeScaling,
    SwiGlu,
    swiglu_mult,
)

LINEAR, EMPTY = Linear(), Block()

# Small originals, so that within 40 positions some frequencies are kept, some blended, some slowed.
ULTRA_ROPE = RopeScaling(factor=16.0, original_max=256)
SUPER_ROPE = RopeScaling(factor=8.0, original_max=256)


def attention(group: int, window: int | None = None) -> Attention:
    """Short for the table."""
    return Attention(group, window)


def combos(*ffns: SwiGlu) -> tuple[Block, ...]:
    """All four combinations: FFN first, attention last, empty blocks between, two group sizes."""
    return (
        Block(ffn=ffns[0]),
        Block(attention(2), ffns[1]),
        EMPTY,
        Block(attention(4)),
        EMPTY,
        Block(attention(4)),
    )


FP8_BLOCKS = (
    Block(attention(2), SwiGlu(96)),
    Block(ffn=SwiGlu(160)),
    EMPTY,
    Block(attention(4), SwiGlu(64)),
    Block(attention(8)),
    Block(attention(4), SwiGlu(32)),
)

CASES = [
    Case(
        name="f32-combos",
        seed=121,
        model=Model(
            blocks=combos(swiglu_mult(2.625, 64), swiglu_mult(6.0, 64)),
            vocab=96,
            dtype="F32",
            rope_scaling=ULTRA_ROPE,
        ),
    ),
    Case(
        name="f32-first-last-empty",
        seed=8,
        model=Model(
            blocks=(
                EMPTY,
                Block(attention(2), SwiGlu(32)),
                Block(ffn=SwiGlu(48)),
                Block(attention(8)),
                Block(attention(4), SwiGlu(32)),
                EMPTY,
            ),
            hidden=48,
            head_dim=12,
            vocab=128,
            dtype="F32",
        ),
    ),
    Case(
        name="f32-linear-window",
        seed=132,
        model=Model(
            blocks=(
                Block(attention(4, window=5), SwiGlu(32)),
                Block(LINEAR, SwiGlu(16)),
                Block(attention(8), LINEAR),
                Block(attention(8, window=16)),
                Block(LINEAR, LINEAR),
                Block(attention(4), SwiGlu(32)),
                Block(ffn=LINEAR),
                Block(LINEAR),
            ),
            vocab=128,
            dtype="F32",
            rope_scaling=SUPER_ROPE,
        ),
    ),
    Case(
        name="f32-puzzletron",
        seed=221,
        schema="puzzletron",
        model=Model(
            blocks=(
                Block(attention(4), SwiGlu(32)),
                Block(ffn=SwiGlu(48)),
                EMPTY,
                Block(attention(1)),
                Block(LINEAR, SwiGlu(16)),
                Block(attention(8), LINEAR),
            ),
            vocab=128,
            dtype="F32",
            rope_scaling=SUPER_ROPE,
        ),
    ),
    Case(
        name="llama-tied-bf16",
        seed=121,
        schema="llama",
        model=Model(
            blocks=(Block(attention(4), SwiGlu(32)),) * 6,
            rope_scaling=SUPER_ROPE,
            tied=True,
        ),
    ),
    Case(
        name="bf16-combos",
        seed=57,
        n_shards=2,
        model=Model(
            blocks=combos(swiglu_mult(5.25, 64), SwiGlu(32)),
            rope_scaling=ULTRA_ROPE,
        ),
    ),
    Case(
        name="f16-combos",
        seed=186,
        model=Model(
            blocks=combos(SwiGlu(32), SwiGlu(64)),
            dtype="F16",
            rope_scaling=ULTRA_ROPE,
        ),
    ),
    Case(
        name="modelopt-fp8",
        seed=300,
        n_shards=2,
        model=Model(blocks=FP8_BLOCKS, head_dim=16, rope_scaling=ULTRA_ROPE),
        quantization=Quantization(
            method="modelopt",
            declared_in="hf_quant_config.json",
            kv_fp8=True,
            input_scale_factors=(
                # Unequal within a fused projection: the largest rules.
                ("model.layers.3.self_attn.q_proj", 0.75),
                ("model.layers.3.self_attn.v_proj", 1.25),
                ("model.layers.5.mlp.gate_proj", 1.5),
                # Too small for what will come: inputs are clamped.
                ("model.layers.1.mlp.down_proj", 0.5),
            ),
        ),
    ),
    Case(
        name="modelopt-fp8-config",
        seed=234,
        model=Model(blocks=FP8_BLOCKS, rope_scaling=SUPER_ROPE),
        quantization=Quantization(
            method="modelopt",
            ignore=("lm_head", "model.layers.3.mlp.down_proj", "model.layers.4.self_attn*"),
        ),
    ),
    Case(
        name="fp8-dynamic",
        seed=373,
        model=Model(blocks=FP8_BLOCKS, rope_scaling=SUPER_ROPE),
        quantization=Quantization(method="compressed-tensors"),
        zero_token_at=(0, 20),
    ),
]
