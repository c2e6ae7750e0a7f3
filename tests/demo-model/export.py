"""Turns a training checkpoint into the shipped folder, in the layout of NVIDIA's ModelOpt FP8 exports."""

import argparse
import json
import random
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

import chat
import model as demo
from reference import E4M3_MAX, Reference, ffn_width

# The published models give multiples that do not hit a width exactly, and rounding up completes them.
FFN_MULT = {256: 2.625, 512: 5.25, 1024: 11.25}
SHARD_BOUNDARY = 6  # blocks before it are in the first shard
CALIBRATION_EXAMPLES = 512


# --- config.json ---------------------------------------------------------------------------------


def block_config(block: demo.Block) -> dict:
    attention = {"n_heads_in_group": demo.HEADS // block.kv_heads if block.kv_heads else None,
                 "no_op": not block.kv_heads, "num_sink_tokens": None, "replace_with_linear": False, "sparsify": None,
                 "unshifted_sink": False, "use_prefill_window_in_sink_attention": False, "window_length": None}
    mult = FFN_MULT[block.ffn_width] if block.ffn_width else None
    assert mult is None or ffn_width(mult, demo.HIDDEN) == block.ffn_width
    ffn = {"ffn_mult": mult, "no_op": not block.ffn_width, "replace_with_linear": False, "sparsify": None}
    return {"attention": attention, "ffn": ffn}


def config_json(tokenizer: Tokenizer) -> dict:
    return {
        "architectures": ["DeciLMForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "block_configs": [block_config(block) for block in demo.BLOCKS],
        "bos_token_id": tokenizer.token_to_id(chat.BOS),
        "eos_token_id": end_ids(tokenizer),
        "head_dim": demo.HEAD_DIM,
        "hidden_act": "silu",
        "hidden_size": demo.HIDDEN,
        "initializer_range": 0.02,
        "intermediate_size": None,
        "max_position_embeddings": demo.MAX_POSITIONS,
        "mlp_bias": False,
        "model_type": "nemotron-nas",
        "num_attention_heads": demo.HEADS,
        "num_hidden_layers": len(demo.BLOCKS),
        "num_key_value_heads": None,
        "pretraining_tp": 1,
        "rms_norm_eps": demo.EPS,
        "rope_scaling": demo.ROPE_SCALING,
        "rope_theta": demo.ROPE_THETA,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.45.1",
        "use_cache": True,
        "vocab_size": demo.VOCAB,
    }


def end_ids(tokenizer: Tokenizer) -> list[int]:
    return [tokenizer.token_to_id(token) for token in (chat.END_OF_TEXT, chat.END_OF_MESSAGE, chat.END_OF_TURN)]


def generation_config(tokenizer: Tokenizer) -> dict:
    return {"bos_token_id": tokenizer.token_to_id(chat.BOS), "do_sample": True, "eos_token_id": end_ids(tokenizer),
            "temperature": 0.6, "top_p": 0.95, "transformers_version": "4.45.1"}


def tokenizer_config(tokenizer: Tokenizer) -> dict:
    added = {str(tokenizer.token_to_id(token)): {"content": token, "lstrip": False, "normalized": False,
                                                 "rstrip": False, "single_word": False, "special": True}
             for token in chat.SPECIAL_TOKENS}
    return {"added_tokens_decoder": added, "bos_token": chat.BOS, "chat_template": chat.CHAT_TEMPLATE,
            "clean_up_tokenization_spaces": False, "eos_token": chat.END_OF_TURN,
            "model_input_names": ["input_ids", "attention_mask"], "model_max_length": demo.MAX_POSITIONS,
            "pad_token": chat.PAD, "tokenizer_class": "PreTrainedTokenizerFast"}


# The producer's name announces the layout (loaders look for it); the files were written by this script.
QUANT_CONFIG = {"producer": {"name": "modelopt", "version": "0.0.0"},
                "quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"]}}


# --- tensors -------------------------------------------------------------------------------------


def published_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The training model's parameters, in BF16 and under the names of the published checkpoints."""
    state = {name.removeprefix("_orig_mod."): tensor for name, tensor in state.items()}
    names = {n: ("" if n == "lm_head" else "model.") + n + ".weight" for n in state}
    return {names[n]: tensor.to(torch.bfloat16) for n, tensor in state.items()}


def calibrate(config: dict, tensors: dict, tokenizer: Tokenizer, seed: int) -> dict[str, torch.Tensor]:
    """The largest magnitude over training conversations, per linear input and per K and V, over 448."""
    largest: dict[str, float] = {}
    mask = None

    def observe(name, tensor):
        magnitude = tensor.abs().flatten(2).amax(-1)[mask].max().item()
        largest[name] = max(largest.get(name, 0.0), magnitude)

    reference = Reference(config, tensors)
    reference.observe = observe
    rng = random.Random(seed)
    frames = chat.fast_prompts()
    for _ in range(CALIBRATION_EXAMPLES // 64):
        texts = []
        for _ in range(64):
            thinking, question, reply = chat.draw_conversation(rng)
            earlier = chat.draw_earlier_exchanges(rng) if rng.random() < 0.2 else ""
            texts.append(frames[thinking][0] + earlier + question + frames[thinking][1] + reply)
        rows = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
        length = max(map(len, rows))
        ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
        mask = torch.arange(length) < torch.tensor([len(row) for row in rows])[:, None]
        positions = torch.arange(length).expand(len(rows), length)
        reference.forward(ids, positions, reference.new_cache(len(rows)))
    return {name: torch.tensor(value / E4M3_MAX) for name, value in largest.items() if not name.startswith("lm_head")}


def quantize(tensors: dict, scales: dict) -> dict:
    shipped = dict(tensors)
    for name in [n.removesuffix(".input_scale") for n in scales if n.endswith(".input_scale")]:
        weight = tensors[f"{name}.weight"].float()
        scale = weight.abs().max() / E4M3_MAX
        shipped[f"{name}.weight"] = (weight / scale).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)
        shipped[f"{name}.weight_scale"] = scale
    return shipped | scales


def write_shards(folder: Path, tensors: dict) -> None:
    def shard(name: str) -> int:
        parts = name.split(".")
        if parts[1] == "layers":
            return 1 if int(parts[2]) < SHARD_BOUNDARY else 2
        return 1 if parts[1] == "embed_tokens" else 2

    where = {name: f"model-{shard(name):05}-of-00002.safetensors" for name in sorted(tensors)}
    for file in sorted(set(where.values())):
        part = {name: tensors[name].contiguous() for name in where if where[name] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
        (folder / file).chmod(0o644)
    size = sum(t.numel() * t.element_size() for t in tensors.values())
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": where})


def write_json(path: Path, value) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


# --- the folder ----------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="the training run's folder")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=3)
    options = parser.parse_args()

    torch.set_num_threads(1)
    tokenizer = Tokenizer.from_file(str(options.run / "tokenizer.json"))
    checkpoint = torch.load(options.run / "latest.pt", weights_only=False)
    tensors = published_names(checkpoint["model"])
    config = config_json(tokenizer)
    scales = calibrate(config, tensors, tokenizer, options.seed)

    options.output.mkdir(parents=True, exist_ok=True)
    write_shards(options.output, quantize(tensors, scales))
    write_json(options.output / "config.json", config)
    write_json(options.output / "generation_config.json", generation_config(tokenizer))
    write_json(options.output / "hf_quant_config.json", QUANT_CONFIG)
    write_json(options.output / "tokenizer_config.json", tokenizer_config(tokenizer))
    write_json(options.output / "special_tokens_map.json",
               {"bos_token": chat.BOS, "eos_token": chat.END_OF_TURN, "pad_token": chat.PAD})
    tokenizer.save(str(options.output / "tokenizer.json"))
    print(f"step {checkpoint['step']}: {len(tensors)} parameter tensors written to {options.output}")


if __name__ == "__main__":
    main()
