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
    "per_layer_token_embd": "model.embed_tokens_per_layer",
    "per_layer_model_proj": "model.per_layer_model_projection",
    "per_layer_proj_norm": "model.per_layer_projection_norm",
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
FLAT = (".ssm_a", ".ssm_d", ".ssm_norm.weight")  # vectors that files have as matrices
APART = (".attn_k_b.weight", ".attn_v_b.weight")  # which make one matrix
SINGLE_ROW = "ffn_gate_inp_shexp.weight"  # a matrix that files have as a vector


@dataclass(frozen=True)
class Arch:
    """An architecture: Hugging Face's model_type; what its configuration says besides; its tensors of other names.

    layer: by the stem of a layer's tensor, or by all of its name. words: what it calls some of the configuration.
    whole: of tensors of no layer. layers: how names of layers' begin.
    """

    model_type: str
    config: dict[str, Any] = field(default_factory=dict)
    layer: dict[str, str] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)
    whole: dict[str, str] = field(default_factory=dict)
    layers: str = "model.layers"


NEIGHBOURS = {"rope_interleaved": True}  # the converter stores rows of q and k in that order
RELU2 = {"hidden_act": "relu2"}  # which files do not say
POST_NORMS = {"post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm"}
GEMMA = POST_NORMS | {"ffn_norm": "pre_feedforward_layernorm"}
GEMMA4 = GEMMA | {
    "ffn_gate_inp": "router.proj",
    "ffn_gate_inp.scale": "router.scale",
    "ffn_gate_exps": "experts.{}.gate_proj",
    "ffn_up_exps": "experts.{}.up_proj",
    "ffn_gate_up_exps": "experts.{}.gate_up_proj",
    "ffn_down_exps": "experts.{}.down_proj",
    "ffn_down_exps.scale": "router.per_expert_scale",
    "pre_ffw_norm_2": "pre_feedforward_layernorm_2",
    "post_ffw_norm_1": "post_feedforward_layernorm_1",
    "post_ffw_norm_2": "post_feedforward_layernorm_2",
    "layer_output_scale.weight": "layer_scalar",
    "inp_gate": "per_layer_input_gate",
    "proj": "per_layer_projection",
    "post_norm": "post_per_layer_input_norm",
}
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
RATES = {"rates_as_logarithms": False}  # of Mamba 2's heads: they are as they are, and below 0


def _mamba(stem: str) -> dict[str, str]:
    """A layer of Mamba 2's."""
    return {
        "ssm_in": f"{stem}.in_proj",
        "ssm_conv1d": f"{stem}.conv1d",
        "ssm_dt.bias": f"{stem}.dt_bias",
        "ssm_a": f"{stem}.A_log",
        "ssm_d": f"{stem}.D",
        "ssm_norm": f"{stem}.norm",
        "ssm_out": f"{stem}.out_proj",
    }


GRANITE4 = _mamba("mamba") | {
    "ffn_gate": "shared_mlp.gate_proj",
    "ffn_up": "shared_mlp.up_proj",
    "ffn_down": "shared_mlp.output_linear",
    "ffn_gate_shexp": "shared_mlp.gate_proj",
    "ffn_up_shexp": "shared_mlp.up_proj",
    "ffn_down_shexp": "shared_mlp.output_linear",
}
FALCON_H1 = _mamba("mamba") | {
    "ffn_norm": "pre_ff_layernorm.weight",  # as its converter names it
    "ffn_norm.weight": "pre_ff_layernorm.weight",
    **{f"ffn_{part}": f"feed_forward.{part}_proj" for part in ("gate", "up", "down")},
}
NEMOTRON_H = _mamba("mixer") | {
    "attn_norm": "norm",
    **{f"attn_{x}": f"mixer.{x}_proj" for x in "qkv"},
    "attn_output": "mixer.o_proj",
    "ffn_up": "mixer.up_proj",
    "ffn_down": "mixer.down_proj",
}
SHARED = "mlp.shared_experts"
CHOSEN = {
    "exp_probs_b.bias": "mlp.gate.e_score_correction_bias",
    **{f"ffn_{part}_shexp": f"{SHARED}.{part}_proj" for part in ("gate", "up", "down")},
}
DEEPSEEK2 = CHOSEN | {
    "attn_q_a": "self_attn.q_a_proj",
    "attn_q_a_norm": "self_attn.q_a_layernorm",
    "attn_q_b": "self_attn.q_b_proj",
    "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
    "attn_kv_a_norm": "self_attn.kv_a_layernorm",
    "attn_kv_b": "self_attn.kv_b_proj",
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
LFM2MOE = LFM2 | {
    "ffn_gate_inp": "feed_forward.gate",
    "ffn_gate_exps": "feed_forward.experts.{}.w1",
    "ffn_up_exps": "feed_forward.experts.{}.w3",
    "ffn_down_exps": "feed_forward.experts.{}.w2",
    "exp_probs_b.bias": "feed_forward.expert_bias",
}
ARCHS = {
    "arcee": Arch("arcee", NEIGHBOURS),
    "gemma": Arch("gemma", {"norm_offset": 0}),  # the converter has added the 1
    "gemma2": Arch("gemma2", {"norm_offset": 0}, GEMMA),
    "gemma3": Arch("gemma3_text", {"norm_offset": 0}, GEMMA),
    "gemma4": Arch("gemma4_text", {"norm_offset": 0}, GEMMA4),
    "command-r": Arch("cohere"),
    "cohere2": Arch("cohere2"),
    "deepseek2": Arch("deepseek_v2", layer=DEEPSEEK2),
    "dots1": Arch("dots1", layer=CHOSEN),
    "ernie4_5": Arch("ernie4_5"),
    "ernie4_5-moe": Arch(
        "ernie4_5_moe",
        {"norm_topk_prob": True, "scoring_func": "softmax"},
        CHOSEN | {"exp_probs_b.bias": "mlp.moe_statics.e_score_correction_bias"},
        {
            "moe_num_experts": "n_routed_experts",
            "moe_k": "num_experts_per_tok",
            "moe_num_shared_experts": "n_shared_experts",
            "moe_layer_start_index": "first_k_dense_replace",
        },
    ),
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
    "glm4moe": Arch("glm4_moe", layer=CHOSEN | {"post_attention_norm": "post_attention_layernorm"}),
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
    "granitehybrid": Arch(
        "granitemoehybrid",
        NEIGHBOURS | RATES | {"shared_mlp_joined": False},
        GRANITE4
        | {
            "ffn_gate_inp": f"{MOE}.router.layer",
            "ffn_gate_exps": f"{MOE}.experts.{{}}.gate_proj",
            "ffn_up_exps": f"{MOE}.experts.{{}}.up_proj",
            "ffn_down_exps": f"{MOE}.experts.{{}}.down_proj",
        },
    ),
    "falcon-h1": Arch(
        "falcon_h1",
        RATES | {"mamba_norm_before_gate": False},
        FALCON_H1,
        whole={"output_norm": "model.final_layernorm"},
    ),
    "nemotron_h": Arch(
        "nemotron_h",
        RATES | {"time_step_min": 0.0},
        NEMOTRON_H,
        whole={"token_embd": "backbone.embeddings", "output_norm": "backbone.norm_f"},
        layers="backbone.layers",
    ),
    "hunyuan-dense": Arch(
        "hunyuan_v1_dense",
        layer={"attn_q_norm": "self_attn.query_layernorm", "attn_k_norm": "self_attn.key_layernorm"},
    ),
    "hunyuan-moe": Arch(
        "hunyuan_v1_moe",
        {"norm_topk_prob": True},
        {
            "attn_q_norm": "self_attn.query_layernorm",
            "attn_k_norm": "self_attn.key_layernorm",
            "ffn_gate_inp": "mlp.gate.wg",
            **{f"ffn_{part}_shexp": f"mlp.shared_mlp.{part}_proj" for part in ("gate", "up", "down")},
        },
        {"moe_topk": "num_experts_per_tok"},
    ),
    "internlm2": Arch("llama", NEIGHBOURS),
    "lfm2": Arch("lfm2", {"block_auto_adjust_ff_dim": False}, LFM2),
    "lfm2moe": Arch("lfm2_moe", {"norm_topk_prob": True}, LFM2MOE, {"num_dense_layers": "first_k_dense_replace"}),
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
DEEPSEEK3 = Arch("deepseek_v3", layer=DEEPSEEK2)  # which files call deepseek2, as GLM-4.7-Flash
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
ROUTING = {"expert_count", "expert_shared_count", "expert_weights_scale", "expert_weights_norm", "expert_gating_func"}
GRANITE = {"attention.scale", "embedding_scale", "residual_scale", "logit_scale"}
HANDLED = {
    "gemma2": {"attention.scale", "attn_logit_softcapping", "final_logit_softcapping"},
    "gemma3": {"attention.scale", "final_logit_softcapping"},
    "gemma4": {"expert_count", "final_logit_softcapping"},
    "deepseek2": ROUTING | {"nextn_predict_layers"},
    "dots1": ROUTING,
    "ernie4_5-moe": ROUTING | {"nextn_predict_layers"},
    "hunyuan-moe": ROUTING,
    "lfm2moe": ROUTING,
    "glm4moe": ROUTING | {"nextn_predict_layers"},
    "command-r": {"logit_scale"},
    "cohere2": {"logit_scale"},
    "llama": {"expert_count"},
    "gpt-oss": {"expert_count"},
    "granite": GRANITE,
    "granitemoe": GRANITE | {"expert_count"},
    "granitehybrid": GRANITE | {"expert_count"},
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
    if name == "deepseek2" and _routing(keys, shapes, arch.config)["scoring_func"] == "sigmoid":
        arch = DEEPSEEK3
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
        if whole and whole[2] in arch.layer:
            names[name] = f"{arch.layers}.{int(whole[1])}.{arch.layer[whole[2]]}"
        elif kind == "scale" and f"{stem}.weight" in shapes:
            factors[f"{stem}.weight"] = name
        elif layer:
            own = arch.layer.get(layer[2]) or LAYER.get(layer[2], layer[2])
            names[name] = f"{arch.layers}.{int(layer[1])}.{own}.{kind}"
        elif stem not in TABLES:
            names[name] = f"{arch.whole.get(stem) or WHOLE.get(stem, stem)}.{kind}"
    return names, factors


def _config(arch: Arch, keys: _Keys, shapes: Shapes, floats: Callable[[str], np.ndarray]) -> dict[str, Any]:
    hidden, heads = keys.size("embedding_length"), keys.size("attention.head_count")
    head_dim = keys.size("attention.key_length_mla", keys.get("attention.key_length", hidden // heads))
    value_dim = keys.size("attention.value_length_mla", keys.get("attention.value_length", head_dim))
    if value_dim != head_dim and keys.arch != "deepseek2":
        raise UnsupportedModelError("lutra runs no model whose keys and values are of different sizes")
    turning, layer_eps = keys.size("rope.dimension_count", head_dim), keys.get("attention.layer_norm_epsilon")
    kinds = _kinds(keys, shapes)
    kv_heads = kinds.pop("num_key_value_heads", None) or keys.size("attention.head_count_kv", heads)
    width = kinds.pop("intermediate_size", None)
    config = {
        "model_type": arch.model_type,
        "hidden_size": hidden,
        "num_hidden_layers": keys.size("block_count") - len(_guessing(keys)),
        "intermediate_size": width or keys.size("feed_forward_length", keys.get("expert_feed_forward_length")),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "max_position_embeddings": keys.size("context_length"),
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon", layer_eps),
        "layer_norm_eps": layer_eps,
        "layer_norm_epsilon": keys.get("attention.layer_norm_rms_epsilon", layer_eps),
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
    if keys.arch in MAMBA:
        config |= _mamba_sizes(keys, MAMBA[keys.arch])
    if keys.arch == "falcon-h1":
        config["mamba_rms_norm"] = any("ssm_norm" in name for name in shapes)
    if keys.arch == "granitehybrid":
        width = keys.get("expert_shared_feed_forward_length") or config["intermediate_size"]
        rotated = keys.get("rope.scaling.finetuned", False)
        config |= {"shared_intermediate_size": width, "position_embedding_type": "rope" if rotated else None}
        config.setdefault("num_local_experts", keys.get("expert_count", 0))
    if keys.arch in ("granite", "granitemoe", "granitehybrid"):
        config |= _granite(keys, head_dim)
    if keys.arch == "minicpm":
        config |= _minicpm(keys, config)
    if "expert_gating_func" in HANDLED.get(keys.arch, ()):
        config |= _routing(keys, shapes, config)
    if keys.arch == "glm4moe":
        config["use_qk_norm"] = any("attn_q_norm" in name for name in shapes)
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
    return config | {theirs: config[ours] for theirs, ours in arch.words.items()}


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
        "topk_method": "greedy" if keys.get("expert_group_count", 1) in (0, 1) else "group_limited_greedy",
    }


def _routing(keys: _Keys, shapes: Shapes, config: Mapping[str, Any]) -> dict[str, Any]:
    """How tokens choose experts, in DeepSeek's words. Files with biases may not say that these go with sigmoids."""
    biased = any(name.endswith(".exp_probs_b.bias") for name in shapes)
    said = keys.get("expert_gating_func") or 0
    silent = config.get("scoring_func", "sigmoid" if biased else "softmax")
    if said not in (0, 1, 2):
        raise UnsupportedModelError(f"lutra does not know {keys.arch}.expert_gating_func = {said!r:.40}")
    return {
        "n_routed_experts": keys.size("expert_count"),
        "n_shared_experts": keys.get("expert_shared_count"),
        "first_k_dense_replace": keys.get("leading_dense_block_count", 0),
        "routed_scaling_factor": keys.number("expert_weights_scale", 0.0) or 1.0,
        "norm_topk_prob": bool(keys.get("expert_weights_norm", config.get("norm_topk_prob"))),
        "scoring_func": (silent, "softmax", "sigmoid")[said],
        "use_expert_bias": biased,
        "n_group": keys.get("expert_group_count") or 1,
        "topk_group": keys.get("expert_group_used_count") or 1,
        "moe_layer_interval": keys.get("interleave_moe_layer_step", 1),
    }


MAMBA = {  # what configurations call heads of Mamba 2, their columns, groups, those of what they share, and taps
    **dict.fromkeys(
        ("granitehybrid", "falcon-h1"),
        ("mamba_n_heads", "mamba_d_head", "mamba_n_groups", "mamba_d_state", "mamba_d_conv"),
    ),
    "nemotron_h": ("mamba_num_heads", "mamba_head_dim", "n_groups", "ssm_state_size", "conv_kernel"),
}


def _mamba_sizes(keys: _Keys, names: tuple[str, ...]) -> dict[str, Any]:
    heads, columns = keys.size("ssm.time_step_rank"), keys.size("ssm.inner_size")
    if columns % heads:
        raise CorruptModelError(f"the file says that {heads} heads have {columns} columns", "Download it again.")
    said = [keys.size(f"ssm.{key}") for key in ("group_count", "state_size", "conv_kernel")]
    return dict(zip(names, (heads, columns // heads, *said), strict=True))


def _kinds(keys: _Keys, shapes: Shapes) -> dict[str, Any]:
    """What differs between layers."""
    if keys.arch in ("lfm2", "lfm2moe"):
        return _convolving(keys)
    if keys.arch == "gemma4":
        return _gemma4(keys, shapes)
    if keys.arch not in ("granitehybrid", "nemotron_h"):
        return {}
    heads, widths = (keys.get(key) for key in ("attention.head_count_kv", "feed_forward_length"))
    layers = range(keys.size("block_count"))
    attending = [i for i in layers if f"blk.{i}.attn_q.weight" in shapes]
    feeding = [i for i in layers if f"blk.{i}.ffn_up.weight" in shapes] if keys.arch == "nemotron_h" else []
    kinds = ["full_attention" if i in attending else "mlp" if i in feeding else "linear_attention" for i in layers]
    most = [int(said.max()) if isinstance(said, np.ndarray) and len(said) else said for said in (heads, widths)]
    return {"layer_types": kinds, "num_key_value_heads": most[0] or None, "intermediate_size": most[1] or None}


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


def _gemma4(keys: _Keys, shapes: Shapes) -> dict[str, Any]:
    """What differs between layers: windows, heads, and how wide the feed-forwards of those are that share keys."""
    layers, windows = keys.size("block_count"), keys.get("attention.sliding_window_pattern")
    if not isinstance(windows, np.ndarray) or len(windows) != layers:
        raise CorruptModelError(f"the file says {keys.arch}.attention.sliding_window_pattern is {windows!r:.80}")
    everywhere, nearby = (
        _each(keys, "attention.head_count_kv", ~windows),
        _each(keys, "attention.head_count_kv", windows),
    )
    shared = keys.size("attention.shared_kv_layers") if keys.get("attention.shared_kv_layers") else 0
    sharing = np.arange(layers) >= layers - shared
    width, wide = (_each(keys, "feed_forward_length", some) for some in (~sharing, sharing))
    if wide and width and wide not in (width, 2 * width):
        raise UnsupportedModelError(f"lutra runs no Gemma 4 with feed-forwards of {width} and {wide}")
    own = [i for i in range(layers - shared) if not windows[i]]
    caps = {name: value for name in ("final_logit_softcapping",) if (value := keys.get(name)) is not None}
    vectors = shapes.get("per_layer_token_embd.weight")
    return {
        "intermediate_size": width,
        "use_double_wide_mlp": bool(wide and wide != width),
        "head_dim": keys.size("attention.key_length_swa"),
        "global_head_dim": keys.size("attention.key_length"),
        "num_key_value_heads": nearby or everywhere,
        "num_global_key_value_heads": everywhere,
        "attention_k_eq_v": bool(own) and not any(f"blk.{i}.attn_v.weight" in shapes for i in own),
        "num_kv_shared_layers": shared,
        "hidden_size_per_layer_input": vectors[1] // layers if vectors else 0,
        "vocab_size_per_layer_input": vectors[0] if vectors else 0,
        "enable_moe_block": bool(keys.get("expert_count")),
        "top_k_experts": keys.get("expert_used_count"),
        "rope_local_base_freq": float(keys.number("rope.freq_base_swa", 10000.0)),
        **caps,
    }


def _each(keys: _Keys, key: str, some: np.ndarray) -> int | None:
    """The size that a key says of these layers; None: there are none."""
    value = keys.get(key)
    if not some.any():
        return None
    if not isinstance(value, np.ndarray):
        return keys.size(key)
    if len(value) != len(some) or (value[some] != value[some][0]).any() or not 0 < value[some][0] < 1 << 31:
        raise CorruptModelError(f"the file says {keys.arch}.{key} is {value!r:.80}", "Download it again.")
    return int(value[some][0])


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
