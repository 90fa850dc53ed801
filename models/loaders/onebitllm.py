"""1bitLLM's reproductions of BitNet b1.58 (``bitnet_b1_58-large``, ``-xl``, ``-3B``).

They say they are Llama, keep latent float weights, and have BitNet's two extra norms under names
of their own; read as plain Llama they answer with nonsense. Source: their model cards and configs.
"""

from __future__ import annotations

from lutra.models.loaders.bitnet import is_linear, latent_entry
from lutra.models.loaders.checkpoint import Source
from lutra.runtime.errors import UnsupportedModelError

__all__ = ["decode"]

RENAMED = {
    "self_attn.inner_attn_ln.": "self_attn.attn_sub_norm.",
    "mlp.ffn_layernorm.": "mlp.ffn_sub_norm.",
}


def decode(source: Source) -> bool:
    """Rewrite such a directory as the BitNet that it is; returns False for any other directory."""
    if not _recognized(source):
        return False
    config = source.config
    weight_bits, input_bits = config.get("weight_bits", 1), config.get("input_bits", 8)
    if (weight_bits, input_bits) != (1, 8):
        raise UnsupportedModelError(
            f"{source.path} is BitNet with {weight_bits!r:.20}-bit weights and "
            f"{input_bits!r:.20}-bit activations; lutra runs 1 and 8"
        )
    source.kind = "1bitllm"
    source.config = {**config, "model_type": "bitnet", "hidden_act": "silu"}
    source.entries = {_renamed(name): entry for name, entry in source.entries.items()}
    for name, entry in source.entries.items():
        if is_linear(name, entry):
            source.entries[name] = latent_entry(name, entry)
    return True


def _recognized(source: Source) -> bool:
    config = source.config
    return not source.quantization and (
        config.get("architectures") == ["BitnetForCausalLM"]
        or ("weight_bits" in config and "input_bits" in config)
        or any(mark in name for name in source.entries for mark in RENAMED)
    )


def _renamed(name: str) -> str:
    for theirs, ours in RENAMED.items():
        name = name.replace(theirs, ours)
    return name
