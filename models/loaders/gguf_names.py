"""What GGUF metadata says of a model, as a configuration and tensor names in Hugging Face's words.

One table row per architecture. What changes a model's results and is not known here is refused by its key. Sources:
llama.cpp's llama-arch.cpp and its converter, for names; its models, for what an architecture does without saying so.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lutra.runtime.errors import CorruptModelError, UnsupportedModelError

__all__ = ["Model", "model_of"]

Metadata = Mapping[str, Any]
Shapes = Mapping[str, tuple[int, ...]]

WHOLE = {
    "token_embd": "model.embed_tokens",
    "token_embd_norm": "model.embedding_norm",  # of LFM2, and its last one
    "output_norm": "model.norm",
    "output": "lm_head",
}
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_sub_norm": "self_attn.attn_sub_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_sub_norm": "mlp.ffn_sub_norm",
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.{}.gate_proj",  # every expert's, one behind the other
    "ffn_up_exps": "mlp.experts.{}.up_proj",
    "ffn_down_exps": "mlp.experts.{}.down_proj",
    "ffn_gate_up_exps": "mlp.experts.{}.gate_up_proj",
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}
APART = (".attn_k_b.weight", ".attn_v_b.weight")  # which make one matrix
SINGLE_ROW = "ffn_gate_inp_shexp.weight"  # a matrix that files have as a vector


@dataclass(frozen=True)
class Arch:
    """An architecture: Hugging Face's model_type; what its configuration says besides; its tensors of other names.

    layer: by the stem of a layer's tensor, or by all of its name.
    """

    model_type: str
    config: dict[str, Any] = field(default_factory=dict)
    layer: dict[str, str] = field(default_factory=dict)


NEIGHBOURS = {"rope_interleaved": True}  # the converter stores rows of q and k in that order
RELU2 = {"hidden_act": "relu2"}  # which files do not say
POST_NORMS = {"post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm"}
GEMMA = POST_NORMS | {"ffn_norm": "pre_feedforward_layernorm"}
MOE = "block_sparse_moe"
QWEN35 = {
    "post_attention_norm": "post_attention_layernorm",
    "attn_qkv": "linear_attn.in_proj_qkv",
    "attn_gate": "linear_attn.in_proj_z",
    "ssm_alpha": "linear_attn.in_proj_a",
    "ssm_beta": "linear_attn.in_proj_b",
    "ssm_conv1d": "linear_attn.conv1d",
    "ssm_a": "linear_attn.A_log",
    "ssm_dt.bias": "linear_attn.dt_bias",
    "ssm_norm": "linear_attn.norm",
    "ssm_out": "linear_attn.out_proj",
}
QWEN35_AS_STORED = {"norm_offset": 0, "linear_heads_tiled": True, "linear_rates_as_logarithms": False}
QWEN3NEXT = QWEN35 | {"ssm_in": "linear_attn.in_proj_qkvz", "ssm_ba": "linear_attn.in_proj_ba"}
QWEN3NEXT_AS_STORED = {"norm_offset": 0, "linear_rates_as_logarithms": False, "norm_topk_prob": True}
SHARED = "mlp.shared_experts"
DEEPSEEK2 = {
    "attn_q_a": "self_attn.q_a_proj",
    "attn_q_a_norm": "self_attn.q_a_layernorm",
    "attn_q_b": "self_attn.q_b_proj",
    "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
    "attn_kv_a_norm": "self_attn.kv_a_layernorm",
    "attn_kv_b": "self_attn.kv_b_proj",
    **{f"ffn_{part}_shexp": f"{SHARED}.{part}_proj" for part in ("gate", "up", "down")},
}
LFM2 = {
    "attn_norm": "operator_norm",
    "attn_q_norm": "self_attn.q_layernorm",
    "attn_k_norm": "self_attn.k_layernorm",
    "attn_output": "self_attn.out_proj",
    "shortconv.in_proj.weight": "conv.in_proj.weight",
    "shortconv.conv.weight": "conv.conv.weight",
    "shortconv.out_proj.weight": "conv.out_proj.weight",
    "ffn_norm": "ffn_norm",
    "ffn_gate": "feed_forward.w1",
    "ffn_up": "feed_forward.w3",
    "ffn_down": "feed_forward.w2",
}
ARCHS = {
    "arcee": Arch("arcee", NEIGHBOURS),
    "gemma": Arch("gemma", {"norm_offset": 0}),  # the converter has added the 1
    "gemma2": Arch("gemma2", {"norm_offset": 0}, GEMMA),
    "gemma3": Arch("gemma3_text", {"norm_offset": 0}, GEMMA),
    "command-r": Arch("cohere"),
    "cohere2": Arch("cohere2"),
    "deepseek2": Arch("deepseek_v2", layer=DEEPSEEK2),
    "ernie4_5": Arch("ernie4_5"),
    "exaone": Arch("llama"),
    "exaone4": Arch("exaone4", layer=POST_NORMS),
    "glm4": Arch(
        "glm4",
        layer={
            "ffn_up": "mlp.gate_up_proj",
            "post_attention_norm": "post_self_attn_layernorm",
            "post_ffw_norm": "post_mlp_layernorm",
        },
    ),
    "gpt-oss": Arch(
        "gpt_oss",
        layer={
            "post_attention_norm": "post_attention_layernorm",
            "ffn_gate_inp": "mlp.router",
            "attn_sinks.weight": "self_attn.sinks",
        },
    ),
    "granite": Arch("granite", NEIGHBOURS),
    "granitemoe": Arch(
        "granitemoe",
        NEIGHBOURS,
        {
            "ffn_gate_inp": f"{MOE}.router.layer",
            "ffn_gate_exps": f"{MOE}.experts.{{}}.gate_proj",
            "ffn_up_exps": f"{MOE}.experts.{{}}.up_proj",
            "ffn_down_exps": f"{MOE}.experts.{{}}.down_proj",
        },
    ),
    "hunyuan-dense": Arch(
        "hunyuan_v1_dense",
        layer={"attn_q_norm": "self_attn.query_layernorm", "attn_k_norm": "self_attn.key_layernorm"},
    ),
    "internlm2": Arch("llama", NEIGHBOURS),
    "lfm2": Arch("lfm2", {"block_auto_adjust_ff_dim": False}, LFM2),
    "llama": Arch("llama", NEIGHBOURS),
    "nemotron": Arch("nemotron", {"norm_offset": 0}),
    "stablelm": Arch("stablelm"),
    "starcoder2": Arch("starcoder2", layer={"ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"}),
    "bitnet": Arch("bitnet", {"hidden_act": "silu"}),
    "bitnet-25": Arch("bitnet", RELU2),
    "bitnet-b1.58": Arch("bitnet", RELU2),
    "minicpm": Arch("minicpm", NEIGHBOURS),
    "mistral3": Arch("ministral3", NEIGHBOURS),
    "olmo2": Arch("olmo3", layer=POST_NORMS),  # 2 has no window, and is the same without
    "olmoe": Arch("olmoe", {"norm_topk_prob": False}),  # as llama.cpp runs it
    "phi3": Arch("phi3", layer={"ffn_up": "mlp.gate_up_proj"}),
    "qwen2": Arch("qwen2"),
    "seed_oss": Arch("seed_oss", layer={"post_attention_norm": "post_attention_layernorm"}),
    "smollm3": Arch("smollm3", NEIGHBOURS),
    "qwen2vl": Arch("qwen2"),  # the text parts, whose files hold no more
    "qwen3": Arch("qwen3"),
    "qwen3vl": Arch("qwen3"),
    "qwen3moe": Arch("qwen3_moe", {"norm_topk_prob": True}),  # and this
    "qwen3vlmoe": Arch("qwen3_moe", {"norm_topk_prob": True}),
    "qwen2moe": Arch("qwen2_moe", {"norm_topk_prob": False}),
    "qwen35": Arch("qwen3_5_text", QWEN35_AS_STORED, QWEN35),
    "qwen35moe": Arch("qwen3_5_moe_text", QWEN35_AS_STORED | {"norm_topk_prob": True}, QWEN35),
    "qwen3next": Arch("qwen3_next", QWEN3NEXT_AS_STORED, QWEN3NEXT),
}
MIXTRAL = Arch(  # which files call llama, too
    "mixtral",
    NEIGHBOURS,
    {
        "ffn_gate_inp": f"{MOE}.gate",
        "ffn_gate_exps": f"{MOE}.experts.{{}}.w1",
        "ffn_up_exps": f"{MOE}.experts.{{}}.w3",
        "ffn_down_exps": f"{MOE}.experts.{{}}.w2",
    },
)
PARTS = {  # what general.type says of files that are no models
    "adapter": "an adapter (LoRA), which changes another model",
    "imatrix": "statistics for a quantizer",
    "mmproj": "the eyes or ears of another model",
}
TABLES = ("rope_freqs", "rope_factors_short", "rope_factors_long")  # tensors that belong to the configuration

# Keys of an architecture, without its name, that change results. By value: what is the same as their absence.
CHANGING = {
    "expert_count": 0,
    "expert_shared_count": 0,
    "expert_weights_scale": 0.0,
    "expert_weights_norm": False,
    "expert_gating_func": 1,  # softmax
    "use_parallel_residual": False,
    "attention.causal": True,
    "attention.scale": 0.0,
    "attention.clamp_kqv": 0.0,
    "attention.max_alibi_bias": 0.0,
    "attention.temperature_length": 0,
    "attn_logit_softcapping": 0.0,
    "final_logit_softcapping": 0.0,
    "embedding_scale": 0.0,
    "residual_scale": 0.0,
    "logit_scale": 0.0,
    "pooling_type": 0,
    "nextn_predict_layers": 0,
}
GRANITE = {"attention.scale", "embedding_scale", "residual_scale", "logit_scale"}
HANDLED = {
    "gemma2": {"attention.scale", "attn_logit_softcapping", "final_logit_softcapping"},
    "gemma3": {"attention.scale", "final_logit_softcapping"},
    "deepseek2": {"expert_count", "expert_shared_count", "expert_weights_scale"},
    "command-r": {"logit_scale"},
    "cohere2": {"logit_scale"},
    "llama": {"expert_count"},
    "gpt-oss": {"expert_count"},
    "granite": GRANITE,
    "granitemoe": GRANITE | {"expert_count"},
    "stablelm": {"use_parallel_residual"},
    "olmoe": {"expert_count"},
    "qwen2moe": {"expert_count"},
    "qwen3moe": {"expert_count"},
    "qwen3vlmoe": {"expert_count"},
    "qwen3next": {"expert_count", "nextn_predict_layers"},
    "minicpm": {"embedding_scale", "residual_scale", "logit_scale"},
    "qwen35": {"nextn_predict_layers"},
    "qwen35moe": {"expert_count", "nextn_predict_layers"},
}
SCALED = {("gemma2", 46), ("gemma3", 62)}  # 27B: scores are scaled by the width of a head in the residual stream


@dataclass(frozen=True)
class Model:
    """names: a tensor's name in the file -> its logical one. factors: -> the tensor that scales it."""

    names: dict[str, str]
    factors: dict[str, str]
    bitnet: bool
    notes: list[str]
    config: Callable[[Callable[[str], np.ndarray]], dict[str, Any]]


def model_of(metadata: Metadata, shapes: Shapes) -> Model:
    """The model that metadata and tensors' shapes describe. ``config`` reads tensors of floats by their names.

    Raises UnsupportedModelError for an architecture or a key that lutra does not run, CorruptModelError for values
    that make no model.
    """
    name, kind = metadata.get("general.architecture"), metadata.get("general.type", "model")
    if kind in list(PARTS):
        raise UnsupportedModelError(f"this GGUF file holds {PARTS[kind]}", "Give the model's own file.")
    arch = ARCHS.get(name) if isinstance(name, str) else None
    if arch is None:
        raise UnsupportedModelError(
            f"lutra does not run GGUF models of architecture {name!r:.80}", f"It runs {', '.join(ARCHS)}."
        )
    if not shapes:
        raise UnsupportedModelError("this GGUF file holds a vocabulary and no weights", "Give the model's own file.")
    keys = _Keys(metadata, str(name))
    if name == "llama" and keys.get("expert_count"):
        arch = MIXTRAL
    if (layers := keys.size("block_count")) > len(shapes):
        raise CorruptModelError(
            f"the file says that its {len(shapes)} tensors make {layers:,} layers", "Download it again."
        )
    _refuse_changes(keys)
    notes = [f"GGUF architecture {name}"]
    if guessing := _guessing(keys):
        notes.append("the model can guess several tokens at once: those layers are not read")
        shapes = {tensor: shape for tensor, shape in shapes.items() if not tensor.startswith(guessing)}
    names, factors = _names(arch, shapes)

    def config(floats: Callable[[str], np.ndarray]) -> dict[str, Any]:
        return _config(arch, keys, shapes, floats)

    return Model(names, factors, str(name).startswith("bitnet"), notes, config)


class _Keys:
    """The metadata of one architecture."""

    def __init__(self, metadata: Metadata, arch: str):
        self.metadata, self.arch = metadata, arch

    def get(self, key: str, default: Any = None) -> Any:
        return self.metadata.get(f"{self.arch}.{key}", default)

    def number(self, key: str, default: float | None = None) -> float:
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise CorruptModelError(f"the file says {self.arch}.{key} is {value!r:.80}", "Download it again.")
        return value

    def size(self, key: str, default: int | None = None) -> int:
        value = self.get(key, default)
        if isinstance(value, np.ndarray) and len(value) and (value == value[0]).all():
            value = value[0].item()  # the same for every layer
        if isinstance(value, np.ndarray):
            raise UnsupportedModelError(f"lutra runs no model whose {self.arch}.{key} differs between layers")
        if type(value) is not int or not 0 < value < 1 << 31:
            raise CorruptModelError(f"the file says {self.arch}.{key} is {value!r:.80}", "Download it again.")
        return value


def _refuse_changes(keys: _Keys) -> None:
    """What would make another model of it."""
    for key, same in CHANGING.items():
        value = keys.get(key, same)
        if key not in HANDLED.get(keys.arch, ()) and value != same:
            raise UnsupportedModelError(f"lutra does not run GGUF models with {keys.arch}.{key} = {value!r:.40}")


def _guessing(keys: _Keys) -> tuple[str, ...]:
    """How names of the last layers' tensors begin, which are there for guessing tokens beyond the next."""
    count = keys.size("nextn_predict_layers") if keys.get("nextn_predict_layers") else 0
    layers = keys.size("block_count") if count else 0
    if count and not count < layers:
        raise CorruptModelError(f"the file says that {count} of {layers} layers guess", "Download it again.")
    return tuple(f"blk.{i}." for i in range(layers - count, layers))


def _names(arch: Arch, shapes: Shapes) -> tuple[dict[str, str], dict[str, str]]:
    """Logical names of all tensors but those that belong to the configuration, and the factors of some."""
    names, factors = {}, {}
    for name in shapes:
        stem, _, kind = name.rpartition(".")
        whole = re.fullmatch(r"blk\.(\d{1,4})\.([\w.]+)", name)
        layer = re.fullmatch(r"blk\.(\d{1,4})\.(\w+)", stem)
        if kind == "scale" and f"{stem}.weight" in shapes:
            factors[f"{stem}.weight"] = name
        elif whole and whole[2] in arch.layer:
            names[name] = f"model.layers.{int(whole[1])}.{arch.layer[whole[2]]}"
        elif layer:
            own = arch.layer.get(layer[2]) or LAYER.get(layer[2], layer[2])
            names[name] = f"model.layers.{int(layer[1])}.{own}.{kind}"
        elif stem not in TABLES:
            names[name] = f"{WHOLE.get(stem, stem)}.{kind}"
    return names, factors


def _config(arch: Arch, keys: _Keys, shapes: Shapes, floats: Callable[[str], np.ndarray]) -> dict[str, Any]:
    hidden, heads = keys.size("embedding_length"), keys.size("attention.head_count")
    head_dim = keys.size("attention.key_length_mla", keys.get("attention.key_length", hidden // heads))
    value_dim = keys.size("attention.value_length_mla", keys.get("attention.value_length", head_dim))
    if value_dim != head_dim and keys.arch != "deepseek2":
        raise UnsupportedModelError("lutra runs no model whose keys and values are of different sizes")
    turning, layer_eps = keys.size("rope.dimension_count", head_dim), keys.get("attention.layer_norm_epsilon")
    kinds = _convolving(keys) if keys.arch == "lfm2" else {}
    kv_heads = kinds.pop("num_key_value_heads", None) or keys.size("attention.head_count_kv", heads)
    config = {
        "model_type": arch.model_type,
        "hidden_size": hidden,
        "num_hidden_layers": keys.size("block_count") - len(_guessing(keys)),
        "intermediate_size": keys.size("feed_forward_length", keys.get("expert_feed_forward_length")),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "max_position_embeddings": keys.size("context_length"),
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon", layer_eps),
        "layer_norm_eps": layer_eps,
        "use_parallel_residual": keys.get("use_parallel_residual", False),
        "vocab_size": shapes.get("token_embd.weight", (0,))[0] or keys.size("vocab_size"),
        "rope_theta": float(keys.number("rope.freq_base", 10000.0)),
        "partial_rotary_factor": turning / head_dim,
        "rope_scaling": _scaling(keys, shapes, floats),
        "sliding_window": keys.get("attention.sliding_window") or None,
        "tie_word_embeddings": "output.weight" not in shapes,
        "torch_dtype": "float32",
        **arch.config,
        **_pattern(keys),
        **kinds,
    }
    if activation := keys.get("hidden_activation") or keys.get("hidden_act"):
        config["hidden_act"] = activation
    if keys.get("expert_count"):
        config |= _mixture(keys, shapes, config)
    if keys.arch in ("granite", "granitemoe"):
        config |= _granite(keys, head_dim)
    if keys.arch == "minicpm":
        config |= _minicpm(keys, config)
    if keys.arch == "deepseek2":
        config |= _deepseek(keys, head_dim, value_dim, turning)
    if keys.arch in ("command-r", "cohere2"):
        config["logit_scale"] = keys.number("logit_scale", 0.0) or 1.0
        config["use_qk_norm"] = any("attn_q_norm" in name for name in shapes)
    if keys.arch in ("gemma2", "gemma3"):
        config |= _gemma(keys, config)
    if keys.arch in ("qwen35", "qwen35moe", "qwen3next"):
        config |= _qwen35(keys)
    if keys.arch == "qwen3next":
        config["linear_qkvz_by_head"] = any(".ssm_in." in name for name in shapes)  # in files of 2025
    return config


def _pattern(keys: _Keys) -> dict[str, Any]:
    """Which layers have a sliding window: a flag for each, or every nth has none."""
    pattern = keys.get("attention.sliding_window_pattern")
    if isinstance(pattern, np.ndarray):
        return {"layer_types": ["sliding_attention" if each else "full_attention" for each in pattern.tolist()]}
    return {} if pattern is None else {"sliding_window_pattern": pattern}


def _deepseek(keys: _Keys, head_dim: int, value_dim: int, turning: int) -> dict[str, Any]:
    return {
        "q_lora_rank": keys.get("attention.q_lora_rank"),
        "kv_lora_rank": keys.size("attention.kv_lora_rank"),
        "qk_rope_head_dim": turning,
        "qk_nope_head_dim": head_dim - turning,
        "v_head_dim": value_dim,
        "n_routed_experts": keys.size("expert_count"),
        "n_shared_experts": keys.get("expert_shared_count"),
        "first_k_dense_replace": keys.get("leading_dense_block_count", 0),
        "routed_scaling_factor": keys.number("expert_weights_scale", 0.0) or 1.0,
        "topk_method": "greedy" if keys.get("expert_group_count", 1) in (0, 1) else "group_limited_greedy",
    }


def _convolving(keys: _Keys) -> dict[str, Any]:
    """LFM2's layers: those without heads of keys convolve."""
    heads = keys.get("attention.head_count_kv")
    if not isinstance(heads, np.ndarray) or not (heads[heads > 0] == heads.max()).all() or heads.max() < 1:
        raise CorruptModelError(f"the file says {keys.arch}.attention.head_count_kv is {heads!r:.80}")
    return {
        "num_key_value_heads": int(heads.max()),
        "layer_types": ["full_attention" if each else "conv" for each in heads.tolist()],
        "norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
        "conv_L_cache": keys.size("shortconv.l_cache"),
    }


def _mixture(keys: _Keys, shapes: Shapes, config: dict[str, Any]) -> dict[str, Any]:
    layers = range(config["num_hidden_layers"])
    return {
        "num_experts": keys.size("expert_count"),
        "num_experts_per_tok": keys.size("expert_used_count"),
        "moe_intermediate_size": keys.size("expert_feed_forward_length", config["intermediate_size"]),
        "shared_expert_intermediate_size": keys.get("expert_shared_feed_forward_length"),
        "mlp_only_layers": [i for i in layers if f"blk.{i}.ffn_gate_inp.weight" not in shapes],
    }


def _gemma(keys: _Keys, config: dict[str, Any]) -> dict[str, Any]:
    wide = (keys.arch, config["num_hidden_layers"]) in SCALED
    width = config["hidden_size"] / config["num_attention_heads"] if wide else config["head_dim"]
    scale = keys.number("attention.scale", 0.0)
    names = ("attn_logit_softcapping", "final_logit_softcapping")
    caps = {name: value for name in names if (value := keys.get(name)) is not None}
    local: dict[str, Any] = {"rope_local_base_freq": float(keys.number("rope.freq_base_swa", 10000.0))}
    return {"query_pre_attn_scalar": scale**-2 if scale else width, **caps, **local}


def _granite(keys: _Keys, head_dim: int) -> dict[str, Any]:
    return {
        "embedding_multiplier": keys.number("embedding_scale", 0.0) or 1.0,
        "residual_multiplier": keys.number("residual_scale", 0.0) or 1.0,
        "attention_multiplier": keys.number("attention.scale", 0.0) or head_dim**-0.5,
        "logits_scaling": keys.number("logit_scale"),
    }


def _qwen35(keys: _Keys) -> dict[str, Any]:
    heads, columns = keys.size("ssm.time_step_rank"), keys.size("ssm.inner_size")
    if columns % heads:
        raise CorruptModelError(f"the file says that {heads} heads have {columns} columns", "Download it again.")
    return {
        "full_attention_interval": keys.size("full_attention_interval", 4),
        "linear_conv_kernel_dim": keys.size("ssm.conv_kernel"),
        "linear_num_key_heads": keys.size("ssm.group_count"),
        "linear_num_value_heads": heads,
        "linear_key_head_dim": keys.size("ssm.state_size"),
        "linear_value_head_dim": columns // heads,
    }


def _minicpm(keys: _Keys, config: dict[str, Any]) -> dict[str, Any]:
    return {
        "scale_emb": keys.number("embedding_scale"),
        "scale_depth": keys.number("residual_scale") * math.sqrt(config["num_hidden_layers"]),
        "dim_model_base": config["hidden_size"] / keys.number("logit_scale"),
    }


def _scaling(keys: _Keys, shapes: Shapes, floats: Callable[[str], np.ndarray]) -> dict[str, Any] | None:
    """What rope_scaling would say, or None."""
    original = keys.get("rope.scaling.original_context_length")
    kind = keys.get("rope.scaling.type", "none")
    if "rope_freqs.weight" in shapes:
        return {"rope_type": "factors", "factors": floats("rope_freqs.weight").tolist()}
    if "rope_factors_short.weight" in shapes:
        return {
            "rope_type": "longrope",
            "short_factor": floats("rope_factors_short.weight").tolist(),
            "attention_factor": keys.number("rope.scaling.attn_factor", 1.0),
            "original_max_position_embeddings": original,
        }
    factor = keys.number("rope.scaling.factor", keys.get("rope.scale_linear", 1.0))
    if kind == "yarn":
        said = {name: keys.get(f"rope.scaling.yarn_{name}") for name in ("beta_fast", "beta_slow")}
        weight = keys.number("rope.scaling.yarn_log_multiplier", 0.0)
        if keys.arch == "mistral3":
            said |= {"mscale": 1.0, "mscale_all_dim": keys.get("rope.scaling.yarn_log_multiplier")}
            said["llama_4_scaling_beta"] = keys.get("attention.temperature_scale")
        elif weight and keys.arch == "deepseek2":
            said |= {"mscale": 10 * weight, "mscale_all_dim": 10 * weight}
        elif weight:
            raise UnsupportedModelError(f"lutra does not know {keys.arch}.rope.scaling.yarn_log_multiplier")
        if (magnitude := keys.get("rope.scaling.attn_factor")) is not None:
            said["attention_factor"] = (0.1 * math.log(factor) + 1.0) * magnitude
        if keys.arch == "gpt-oss":
            said["truncate"] = False  # as the model was trained; files do not say it
        return {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original, **said}
    if kind in ("none", "linear"):
        return {"rope_type": "linear", "factor": factor} if factor not in (0.0, 1.0) else None
    raise UnsupportedModelError(f"lutra does not know {keys.arch}.rope.scaling.type {kind!r:.40}")
