"""Reads the configuration of nemotron-nas for transformers, which does not know it."""

from types import SimpleNamespace

from transformers import PretrainedConfig


def attributes(value):
    """Dictionaries as objects, as the model's code wants its blocks."""
    if isinstance(value, dict):
        return SimpleNamespace(**{name: attributes(inner) for name, inner in value.items()})
    return value


class DeciLMConfig(PretrainedConfig):
    model_type = "nemotron-nas"

    def __init__(self, block_configs=None, **others):
        # The base class already asks for some of them.
        for name in ("hidden_size", "max_position_embeddings", "num_attention_heads"):
            setattr(self, name, others.get(name))
        self.block_configs = [attributes(block) for block in block_configs or []]
        super().__init__(**others)

    def to_dict(self):
        told = super().to_dict()
        told["block_configs"] = [
            {part: vars(values) for part, values in vars(block).items()}
            for block in self.block_configs
        ]
        return told
