"""A small model in Hugging Face's form that no other library is needed to make."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from lutra.models.loaders.safetensors import write_safetensors

CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 70,
    "max_position_embeddings": 64,
}
TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}<|assistant|>"
SPECIAL = ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]


def tensor_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The tensors of a tied Llama."""
    c = SimpleNamespace(**config)
    kv = c.hidden_size // c.num_attention_heads * c.num_key_value_heads
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (c.vocab_size, c.hidden_size),
        "model.norm.weight": (c.hidden_size,),
    }
    layer = {
        "input_layernorm": (c.hidden_size,),
        "post_attention_layernorm": (c.hidden_size,),
        "self_attn.q_proj": (c.hidden_size, c.hidden_size),
        "self_attn.k_proj": (kv, c.hidden_size),
        "self_attn.v_proj": (kv, c.hidden_size),
        "self_attn.o_proj": (c.hidden_size, c.hidden_size),
        "mlp.gate_proj": (c.intermediate_size, c.hidden_size),
        "mlp.up_proj": (c.intermediate_size, c.hidden_size),
        "mlp.down_proj": (c.hidden_size, c.intermediate_size),
    }
    for i in range(c.num_hidden_layers):
        shapes |= {f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()}
    return shapes


def small_llama(folder: Path, **config: Any) -> Path:
    """Write a dense float32 Llama of random weights, without a tokenizer; returns the folder."""
    folder.mkdir()
    config = {**CONFIG, **config}
    rng = np.random.default_rng(0)
    tensors = [
        (name, "F32", shape, (rng.standard_normal(shape) * 0.3).astype(np.float32))
        for name, shape in tensor_shapes(config).items()
    ]
    write_safetensors(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def small_chat_model(folder: Path, **config: Any) -> Path:
    """The same with a tokenizer of single bytes, and a chat template; returns the folder."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    small_llama(folder, **{"vocab_size": len(alphabet) + len(SPECIAL), "max_position_embeddings": 256, **config})
    tokenizer = Tokenizer(models.BPE({char: id for id, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>"}))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder
