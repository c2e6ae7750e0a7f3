"""The model that is measured, in every format that an engine wants.

It is the preset `bench-0.6b` but for its block without FFN, which llama.cpp leaves out: hidden size
2048, 12 blocks, one of them empty at each of two places, two without attention, two group sizes.
"""

import json
import math
import pathlib
import shutil
import subprocess

import gguf
import ml_dtypes
import numpy
import safetensors

HIDDEN = 2048
VOCABULARY = 32_768
N_HEADS = 32
HEAD_DIM = 64
N_POSITIONS = 8192
EPS = 1e-5
THETA = 500_000.0
SCALING = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
           "original_max_position_embeddings": 2048}
# Query heads to a key/value head, and the FFN's width; None where a block has no such part.
BLOCKS = [(4, 5632), (4, 8192), (None, None), (8, 5632), (None, 16384), (4, 6400), (4, 8192),
          (None, None), (None, 5632), (8, 6144), (4, 2048), (4, 5632)]

# Names in GGUF, by the published ones.
NAMES = gguf.get_tensor_name_map(gguf.MODEL_ARCH.DECI, len(BLOCKS))


def config():
    """As it is published."""
    blocks = []
    for group, width in BLOCKS:
        attention = {"n_heads_in_group": group, "no_op": group is None, "num_sink_tokens": None,
                     "replace_with_linear": False, "sparsify": None, "unshifted_sink": False,
                     "use_prefill_window_in_sink_attention": False, "window_length": None}
        # The width is 2/3 of the hidden size times this, rounded up to 256.
        multiple = None if width is None else 3 * width / (2 * HIDDEN)
        ffn = {"ffn_mult": multiple, "no_op": width is None, "replace_with_linear": False,
               "sparsify": None}
        blocks.append({"attention": attention, "ffn": ffn})
    return {
        "architectures": ["DeciLMForCausalLM"], "attention_bias": False, "mlp_bias": False,
        "block_configs": blocks, "bos_token_id": 256, "eos_token_id": 257, "head_dim": HEAD_DIM,
        "hidden_act": "silu", "hidden_size": HIDDEN, "intermediate_size": None,
        "max_position_embeddings": N_POSITIONS, "model_type": "nemotron-nas",
        "num_attention_heads": N_HEADS, "num_hidden_layers": len(BLOCKS),
        "num_key_value_heads": None, "rms_norm_eps": EPS, "rope_scaling": SCALING,
        "rope_theta": THETA, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
        "vocab_size": VOCABULARY,
    }


def write(program, folder):
    """Everything that is not there yet: `bf16`, `modelopt-fp8`, `vllm`, `bf16.gguf`, `q8.gguf`."""
    folder.mkdir(parents=True, exist_ok=True)
    stated = folder / "config.json"
    text = json.dumps(config(), indent=2)
    if not stated.exists() or stated.read_text() != text:
        for old in folder.iterdir():
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    stated.write_text(text)
    for name in ("bf16", "modelopt-fp8"):
        make(folder / name, lambda out, name=name: subprocess.run(
            [program, "synth", "--config", stated, "--format", name, "--out", out], check=True))
    make(folder / "vllm", lambda out: write_for_vllm(folder / "bf16", out))
    kinds = gguf.GGMLQuantizationType
    for name, kind in (("bf16.gguf", kinds.BF16), ("q8.gguf", kinds.Q8_0)):
        make(folder / name, lambda out, kind=kind: write_gguf(folder / "bf16", out, kind))


def make(path, write_to):
    """Under another name until it is whole."""
    if path.exists():
        return
    print(f"writing {path}", flush=True)
    partial = path.with_name("partial-" + path.name)
    if partial.is_dir():
        shutil.rmtree(partial)
    write_to(partial)
    partial.rename(path)


def write_for_vllm(source, out):
    """The checkpoint with a class that reads its configuration: transformers has none."""
    out.mkdir()
    for file in source.iterdir():
        if file.name != "config.json":
            (out / file.name).symlink_to(pathlib.Path("..") / source.name / file.name)
    auto = {"AutoConfig": "configuration_decilm.DeciLMConfig"}
    (out / "config.json").write_text(json.dumps({**config(), "auto_map": auto}, indent=2))
    shutil.copy(pathlib.Path(__file__).parent / "configuration_decilm.py", out)


def write_gguf(source, out, kind):
    """llama.cpp's format; matrices as `kind`."""
    writer = gguf.GGUFWriter(out, "deci")
    writer.add_block_count(len(BLOCKS))
    writer.add_context_length(N_POSITIONS)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length([width or 0 for _, width in BLOCKS])
    writer.add_head_count([N_HEADS if group else 0 for group, _ in BLOCKS])
    writer.add_head_count_kv([N_HEADS // group if group else 0 for group, _ in BLOCKS])
    writer.add_key_length(HEAD_DIM)
    writer.add_value_length(HEAD_DIM)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_rope_freq_base(THETA)
    writer.add_layer_norm_rms_eps(EPS)
    writer.add_vocab_size(VOCABULARY)
    add_tokens(writer, source)
    writer.add_tensor("rope_freqs.weight", rope_factors())
    for name, values in tensors(source):
        if values.ndim == 1:
            writer.add_tensor(name, values.astype(numpy.float32))
        else:
            stored = gguf.quants.quantize(values.astype(numpy.float32), kind)
            writer.add_tensor(name, stored, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_tokens(writer, source):
    """The checkpoint's vocabulary. It has no merges, of which llama.cpp wants one at least: prompts
    are given as ids, so it is never used."""
    stored = json.loads((source / "tokenizer.json").read_text())
    ids = stored["model"]["vocab"]
    special = {token["id"] for token in stored["added_tokens"]}
    tokens = sorted(ids, key=ids.get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(tokens)
    kinds = gguf.TokenType
    writer.add_token_types([kinds.CONTROL if ids[token] in special else kinds.NORMAL
                            for token in tokens])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(257)


def rope_factors():
    """What llama3's scaling divides each frequency by."""
    factors = []
    for i in range(0, HEAD_DIM, 2):
        wavelength = 2 * math.pi * THETA ** (i / HEAD_DIM)
        turns = SCALING["original_max_position_embeddings"] / wavelength
        low, high = SCALING["low_freq_factor"], SCALING["high_freq_factor"]
        smooth = min(max((turns - low) / (high - low), 0.0), 1.0)
        factors.append(1 / ((1 - smooth) / SCALING["factor"] + smooth))
    return numpy.array(factors, numpy.float32)


def tensors(source):
    """Names in GGUF and values in BF16."""
    assert ml_dtypes.bfloat16  # what safetensors gives BF16 as
    for shard in sorted(source.glob("*.safetensors")):
        with safetensors.safe_open(shard, "numpy") as file:
            for name in file.keys():
                values = file.get_tensor(name)
                if name.endswith(("q_proj.weight", "k_proj.weight")):
                    # GGUF has the two numbers that RoPE turns together side by side.
                    halves = values.reshape(-1, 2, HEAD_DIM // 2, HIDDEN)
                    values = halves.swapaxes(1, 2).reshape(values.shape)
                yield NAMES.get_name(name, try_suffixes=(".weight",)), values
