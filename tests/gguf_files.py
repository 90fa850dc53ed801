"""Recipes for tiny GGUF files, written by gguf-py, llama.cpp's own library, from transformers' random models.

A matrix becomes a type's blocks, and what gguf-py reads in these becomes the model's weight: so the model returned is
the reference, in float32 and eval mode. Importing this needs torch, transformers, accelerate and gguf.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import scipy.linalg
import sentencepiece
import torch
import transformers
from checkpoints import randomized, remembering, scaled
from gguf import GGMLQuantizationType as Type

from lutra.models.loaders import open_checkpoint

SHAPE = dict(
    vocab_size=128,
    hidden_size=256,
    intermediate_size=512,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
)
# Where float16 numbers stand in the blocks of types that gguf-py only reads, and how large they are.
RANDOM = {
    "Q2_K": {80: 0.01, 82: 0.01},
    "Q3_K": {108: 0.002},
    "Q4_K": {0: 0.0005, 2: 0.003},
    "Q5_K": {0: 0.0002, 2: 0.002},
    "Q6_K": {208: 0.00002},
    "NVFP4": {},
    "IQ4_NL": {0: 0.0005},
    "IQ4_XS": {0: 0.00002},
    "Q1_0": {0: 0.03},
    "Q2_0": {0: 0.03},
    "PQ2_0": {0: 0.03},
    "PTQ1_0": {26: 0.03},
}
# Types that gguf-py lacks: weights and bytes of a block, ggml's number.
SIZES = {
    "Q1_0": (128, 18, 41),
    "Q2_0": (64, 18, 42),
    "Q2_0 wide": (128, 34, 42),
    "STQ1_0": (256, 42, 43),
    "STQ1_0 early": (256, 42, 42),
    "I2_S": (128, 32, 36),
    "PQ2_0": (128, 34, 142),
    "PTQ1_0": (128, 28, 143),
}
# STQ1_0's published codebook: by sign and slot four codes of two bits, from the lowest on.
SHERRY = bytes.fromhex("a9892909a68626069a921a126a624a42012181a1042484a41018909840486068")
ARCHS = {  # of transformers -> of gguf-py
    "gemma": gguf.MODEL_ARCH.GEMMA,
    "glm4": gguf.MODEL_ARCH.GLM4,
    "mixtral": gguf.MODEL_ARCH.LLAMA,
    "gemma2": gguf.MODEL_ARCH.GEMMA2,
    "gemma3_text": gguf.MODEL_ARCH.GEMMA3,
    "gemma4_text": gguf.MODEL_ARCH.GEMMA4,
    "cohere": gguf.MODEL_ARCH.COMMAND_R,
    "cohere2": gguf.MODEL_ARCH.COHERE2,
    "exaone4": gguf.MODEL_ARCH.EXAONE4,
    "gpt_oss": gguf.MODEL_ARCH.GPT_OSS,
    "granite": gguf.MODEL_ARCH.GRANITE,
    "granitemoehybrid": gguf.MODEL_ARCH.GRANITE_HYBRID,
    "falcon_h1": gguf.MODEL_ARCH.FALCON_H1,
    "nemotron_h": gguf.MODEL_ARCH.NEMOTRON_H,
    "hunyuan_v1_dense": gguf.MODEL_ARCH.HUNYUAN_DENSE,
    "olmo2": gguf.MODEL_ARCH.OLMO2,
    "olmo3": gguf.MODEL_ARCH.OLMO2,
    "seed_oss": gguf.MODEL_ARCH.SEED_OSS,
    "smollm3": gguf.MODEL_ARCH.SMOLLM3,
    "llama": gguf.MODEL_ARCH.LLAMA,
    "ministral3": gguf.MODEL_ARCH.MISTRAL3,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "qwen3_moe": gguf.MODEL_ARCH.QWEN3MOE,
    "qwen2_moe": gguf.MODEL_ARCH.QWEN2MOE,
    "qwen3_5_moe_text": gguf.MODEL_ARCH.QWEN35MOE,
    "qwen3_next": gguf.MODEL_ARCH.QWEN3NEXT,
    "arcee": gguf.MODEL_ARCH.ARCEE,
    "deepseek_v2": gguf.MODEL_ARCH.DEEPSEEK2,
    "deepseek_v3": gguf.MODEL_ARCH.DEEPSEEK2,
    "glm4_moe": gguf.MODEL_ARCH.GLM4_MOE,
    "glm4_moe_lite": gguf.MODEL_ARCH.DEEPSEEK2,
    "ernie4_5_moe": gguf.MODEL_ARCH.ERNIE4_5_MOE,
    "hunyuan_v1_moe": gguf.MODEL_ARCH.HUNYUAN_MOE,
    "lfm2_moe": gguf.MODEL_ARCH.LFM2MOE,
    "dots1": gguf.MODEL_ARCH.DOTS1,
    "ernie4_5": gguf.MODEL_ARCH.ERNIE4_5,
    "granitemoe": gguf.MODEL_ARCH.GRANITE_MOE,
    "lfm2": gguf.MODEL_ARCH.LFM2,
    "nemotron": gguf.MODEL_ARCH.NEMOTRON,
    "stablelm": gguf.MODEL_ARCH.STABLELM,
    "starcoder2": gguf.MODEL_ARCH.STARCODER2,
    "olmoe": gguf.MODEL_ARCH.OLMOE,
    "phi3": gguf.MODEL_ARCH.PHI3,
    "qwen3_5_text": gguf.MODEL_ARCH.QWEN35,
    "bitnet": gguf.MODEL_ARCH.BITNET,
}
# Files of theirs have RoPE's pairs side by side.
NEIGHBOURS = ("arcee", "granite", "granitehybrid", "granitemoe", "internlm2", "llama", "minicpm", "mistral3", "smollm3")
LATENT = ("deepseek_v2", "deepseek_v3", "glm4_moe_lite")  # keys and values made of a short vector
REMEMBERING = ("qwen3_5_text", "qwen3_5_moe_text", "qwen3_next")
MAMBA = ("granitemoehybrid", "falcon_h1", "nemotron_h")
PLAIN = (
    "_norm.",
    ".D",
    "A_log",
    "norm.weight",
    "router.proj",
    "mlp.gate.",
    "mlp.router.",
    "moe.router.",
    "conv1d",
    "conv.conv.",
)  # matrices that stay floats
GEMMA4_SCALES = {
    "layer_scalar": "layer_output_scale.weight",
    "router.scale": "ffn_gate_inp.scale",
    "router.per_expert_scale": "ffn_down_exps.scale",
}
KNOWN_AS = {  # to gguf-py
    "attn_sub_norm": "inner_attn_ln",
    "ffn_sub_norm": "ffn_layernorm",
    "dt_bias": "dt_proj.bias",
    "self_attn.sinks": "self_attn.sinks.weight",
    "shared_mlp.output_linear": "mlp.down_proj",
    "moe.router.weight": "moe.router.layer.weight",
    "gate.moe_statics": "moe_statics",
    "e_score_correction_bias": "e_score_correction.bias",
    ".expert_bias": ".expert_bias.bias",
}
Model = transformers.PreTrainedModel


@dataclass
class Rotation:
    """PrismML's: matrices are stored times signs and a Hadamard matrix, as the metadata then says.

    grouped: whether the columns that follow heads of values are in transformers' order.
    """

    block: int
    explicit: bool = True
    grouped: bool = True
    signs: dict[int, np.ndarray] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)

    def turned(self, values: np.ndarray, back: bool = False) -> np.ndarray:
        """The matrix as it is stored, or ``back``: as it was."""
        cols = values.shape[1]
        signs = np.random.default_rng(cols).choice(np.array([-1.0, 1.0]), cols if self.explicit else 0)
        signs = self.signs.setdefault(cols, signs) if self.explicit else np.ones(cols)
        H = scipy.linalg.hadamard(self.block) / np.sqrt(self.block)
        blocks = (values if back else values * signs).reshape(len(values), -1, self.block) @ H
        return (blocks.reshape(values.shape) * (signs if back else 1)).astype(np.float32)

    def keys(self) -> dict[str, Any]:
        """The metadata."""
        said: dict[str, Any] = {
            "version": 1,
            "block_size": self.block,
            "transform": "normalized-sylvester-walsh-hadamard",
            "axis": "input-last-dimension",
            "sign_mode": "explicit" if self.explicit else "identity",
            "weight_names": [name for name in self.names if name != "token_embd.weight"],
            "inverse_weight_names": [name for name in self.names if name == "token_embd.weight"],
            "gdn_v_grouped": self.grouped,
        }
        if self.explicit:
            said["sign_widths"] = list(self.signs)
            said["sign_values"] = [int(sign) for signs in self.signs.values() for sign in signs]
        return {f"prism.hadamard.{key}": value for key, value in said.items()}


def model(arch: str, seed: int = 0, **config: Any) -> Model:
    """A random model of transformers."""
    settings = transformers.AutoConfig.for_model(arch, **{**SHAPE, "pad_token_id": None, **config})
    model = randomized(transformers.AutoModelForCausalLM.from_config, settings, seed)
    if arch in (*REMEMBERING, *MAMBA):
        remembering(model)
    if arch == "gemma4_text":
        scaled(model)
    return model


def write(
    path: Path,
    model: Model,
    types: Sequence[str],
    *,
    arch: str | None = None,
    keys: dict[str, Any] | None = None,
    tensors: dict[str, np.ndarray] | None = None,
    split: int = 0,
    rotation: Rotation | None = None,
    newer: bool = False,
) -> Model:
    """Write the model, its matrices in these types by turns; returns it with the weights that were written.

    arch: the file's name of the architecture. keys: more of its metadata. tensors: more of them. split: tensors a file.
    rotation: behind which all matrices lie, but those of gates. newer: as converters of 2026 write, experts' gates and
    what is up in one tensor, and what Qwen3-Next has joined apart.
    """
    config = model.config
    known = ARCHS[config.model_type]
    name = arch or gguf.MODEL_ARCH_NAMES[known]
    writer = gguf.GGUFWriter(path, name, split_max_tensors=split)
    _metadata(writer, config, newer=newer)
    adders = {str: writer.add_string, bool: writer.add_bool, int: writer.add_uint32, list: writer.add_array}

    def add(keys: dict[str, Any]) -> None:
        for key, value in keys.items():
            adders.get(value.__class__, writer.add_float32)(key, value)

    add({"tokenizer.ggml.model": "no_vocab", **(keys or {})})
    names, neighbours = gguf.get_tensor_name_map(known, config.num_hidden_layers), name in NEIGHBOURS
    rng, state, turn = np.random.default_rng(0), model.state_dict(), 0
    for tensor, values in state.items():
        if ".experts." in tensor:
            layer = f"blk.{tensor.split('.')[2]}"
            for part, some in _experts(tensor, values, config, newer).items():
                if tensor.endswith("_bias"):
                    writer.add_tensor(f"{layer}.ffn_{part}_exps.bias", some.contiguous().numpy())
                    continue
                _write_experts(writer, rng, f"{layer}.ffn_{part}_exps.weight", some, types[turn % len(types)])
                turn += 1
            continue
        if tensor.endswith(tuple(GEMMA4_SCALES)):
            ending = next(ending for ending in GEMMA4_SCALES if tensor.endswith(ending))
            writer.add_tensor(f"blk.{tensor.split('.')[2]}.{GEMMA4_SCALES[ending]}", values.numpy())
            continue
        if "shared_mlp.input_linear" in tensor:
            for part, some in zip(("gate", "up"), values.chunk(2), strict=True):
                type, turn = types[turn % len(types)], turn + 1
                data, read = blocks(rng, some.numpy(), type)
                writer.add_tensor(f"blk.{tensor.split('.')[2]}.ffn_{part}.weight", data, raw_dtype=Type[type])
                some.copy_(torch.from_numpy(read))
            continue
        if newer and "kv_b_proj" in tensor:
            layer, heads = (
                f"blk.{tensor.split('.')[2]}",
                values.reshape(config.num_attention_heads, -1, values.shape[1]),
            )
            k, v = heads.split([config.qk_nope_head_dim, config.v_head_dim], dim=1)
            writer.add_tensor(f"{layer}.attn_k_b.weight", k.swapaxes(1, 2).contiguous().numpy())
            writer.add_tensor(f"{layer}.attn_v_b.weight", v.contiguous().numpy())
            continue
        if newer and "in_proj_qkvz" in tensor:
            for name, some in _apart(values, config).items():
                writer.add_tensor(f"blk.{tensor.split('.')[2]}.{name}.weight", some.numpy())
            continue
        if tensor == "lm_head.weight" and config.tie_word_embeddings:
            continue
        turns = rotation and values.ndim == 2 and "in_proj_a" not in tensor and "in_proj_b" not in tensor
        grouped = turns and rotation.grouped and "linear_attn.out_proj" in tensor
        stored = values.numpy() if grouped else as_stored(tensor, values.numpy(), config, neighbours)
        stored = rotation.turned(stored) if turns else stored
        type = "F32"
        single = tensor.endswith("shared_expert_gate.weight")
        single = single or tensor.endswith("moe_statics.e_score_correction_bias")
        stored = stored[0] if single else stored
        if stored.ndim == 2 and not any(part in tensor for part in PLAIN):
            type, turn = types[turn % len(types)], turn + 1
        data, read = blocks(rng, stored, type)
        known_as = tensor.replace("model.", "backbone.") if config.model_type == "nemotron_h" else tensor
        for ours, theirs in KNOWN_AS.items():
            known_as = known_as.replace(ours, theirs)
        new = names.get_name(known_as, try_suffixes=(".weight", ".bias"))
        new = "output.weight" if tensor == "lm_head.weight" else new
        assert new, tensor
        if type in SIZES:  # as int8: of uint8 gguf-py would reckon the shape
            writer.add_tensor(new, data.view(np.int8), values.shape, SIZES[type][2])  # type: ignore[arg-type]
        else:
            writer.add_tensor(new, data, raw_dtype=Type[type])
        if turns:
            rotation.names.append(new)
        read = rotation.turned(read, back=True) if turns else read
        read = read[None] if single else read
        read = read if grouped else as_stored(tensor, read, config, neighbours, back=True)
        state[tensor].copy_(torch.from_numpy(np.ascontiguousarray(read)))
    for tensor, values in (tensors or {}).items():
        writer.add_tensor(tensor, values)
    add(rotation.keys() if rotation else {})
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def stories(path: Path, folder: Path, type: str) -> None:
    """A llama2.c model and its tokenizer, as llama.cpp's converter would write them."""
    with open_checkpoint(folder) as checkpoint:
        config = checkpoint.config
        state = {name: checkpoint.tensor(name) for name in checkpoint.names()}
        writer = gguf.GGUFWriter(path, "llama")
        rope = {"rope_theta": config["rope_theta"]}
        _metadata(writer, SimpleNamespace(**config | {"rope_parameters": rope}), vocabulary=False)
        names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
        for name, values in state.items():
            kind = "F16" if type == "Q8_0" and values.shape[-1] % 32 else type
            known = Type[kind if values.ndim == 2 else "F32"]
            new = names.get_name(name, try_suffixes=(".weight",))
            writer.add_tensor(new, gguf.quants.quantize(np.asarray(values), known), raw_dtype=known)
        model = sentencepiece.SentencePieceProcessor(str(next(folder.glob("*.model"))))
        pieces = range(model.vocab_size())
        writer.add_tokenizer_model("llama")
        writer.add_token_list([model.id_to_piece(i) for i in pieces])
        writer.add_token_scores([model.get_score(i) for i in pieces])
        kinds = {"is_unknown": 2, "is_control": 3, "is_byte": 6}
        writer.add_token_types([next((n for k, n in kinds.items() if getattr(model, k)(i)), 1) for i in pieces])
        writer.add_bos_token_id(model.bos_id())
        writer.add_eos_token_id(model.eos_id())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def _experts(tensor: str, values: Any, config: Any, joined: bool) -> dict[str, Any]:
    """Views of a tensor of all experts: [experts, out, in], or biases [experts, out]; gates and what is up apart."""
    turns = config.model_type == "gpt_oss"
    values = values.swapaxes(1, 2) if turns and values.ndim == 3 else values
    if "gate_up" not in tensor:
        return {"down": values}
    if joined:
        return {"gate_up": values}
    halves = (values[:, 0::2], values[:, 1::2]) if turns else values.chunk(2, dim=1)
    return dict(zip(("gate", "up"), halves, strict=True))


def _apart(values: Any, config: Any) -> dict[str, Any]:
    """Rows of q, k and v, and of z, which come by heads of keys."""
    keys, own = config.linear_num_key_heads, config.linear_key_head_dim
    rows = values.reshape(keys, -1, values.shape[1])
    each = (rows.shape[1] - 2 * own) // 2
    q, k, v, z = (x.reshape(-1, values.shape[1]) for x in rows.split([own, own, each, each], dim=1))
    return {"attn_qkv": torch.cat([q, k, v]), "attn_gate": z.contiguous()}


def _write_experts(writer: gguf.GGUFWriter, rng: np.random.Generator, name: str, some: Any, type: str) -> None:
    """All experts' matrices of a layer in one tensor."""
    data, read = blocks(rng, some.reshape(-1, some.shape[2]).numpy(), type)
    writer.add_tensor(name, data.reshape(*some.shape[:2], -1), raw_dtype=Type[type])
    some.copy_(torch.from_numpy(read).reshape(some.shape))


def _metadata(writer: gguf.GGUFWriter, config: Any, vocabulary: bool = True, newer: bool = False) -> None:
    local = config.per_layer_config["sliding_attention"] if config.model_type == "gemma4_text" else config
    head_dim = getattr(local, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    if hasattr(config, "intermediate_size") and config.model_type not in ("gemma4_text", "nemotron_h"):
        writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    if config.model_type in LATENT:
        _latent(writer, config, newer)
    elif config.model_type != "gemma4_text":
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    if hasattr(config, "rms_norm_eps"):
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    else:
        names = ("layer_norm_eps", "norm_epsilon", "norm_eps", "layer_norm_epsilon")
        writer.add_layer_norm_eps(next(getattr(config, name) for name in names if hasattr(config, name)))
    if config.model_type in ("lfm2", "lfm2_moe"):
        writer.add_layer_norm_rms_eps(config.norm_eps)
        writer.add_shortconv_l_cache(config.conv_L_cache)
        kv = [config.num_key_value_heads * (kind == "full_attention") for kind in config.layer_types]
        writer.add_head_count_kv(kv)
    elif config.model_type in ("granitemoehybrid", "nemotron_h"):
        writer.add_head_count_kv(
            [config.num_key_value_heads * (kind == "full_attention") for kind in config.layer_types]
        )
        writer.add_rope_scaling_finetuned(getattr(config, "position_embedding_type", None) == "rope")
    elif config.model_type == "gemma4_text":
        _gemma4(writer, config)
    elif config.model_type not in LATENT:
        writer.add_head_count_kv(config.num_key_value_heads)
    if config.model_type == "nemotron_h":
        writer.add_layer_norm_rms_eps(config.layer_norm_epsilon)
        writer.add_feed_forward_length([config.intermediate_size * (kind == "mlp") for kind in config.layer_types])
    if config.model_type in MAMBA:
        names = ("mamba_d_conv", "mamba_d_state", "mamba_n_groups", "mamba_n_heads", "mamba_d_head")
        others = ("conv_kernel", "ssm_state_size", "n_groups", "mamba_num_heads", "mamba_head_dim")
        names = others if config.model_type == "nemotron_h" else names
        taps, dim, groups, heads, width = (getattr(config, name) for name in names)
        writer.add_ssm_conv_kernel(taps)
        writer.add_ssm_state_size(dim)
        writer.add_ssm_group_count(groups)
        writer.add_ssm_time_step_rank(heads)
        writer.add_ssm_inner_size(heads * width)
    if config.model_type == "stablelm":
        writer.add_parallel_residual(config.use_parallel_residual)
    said = getattr(config, "rope_parameters", None) or {"rope_theta": 1e4}  # if it turns anything
    rope = said.get("full_attention", said)
    writer.add_rope_freq_base(rope["rope_theta"])
    if config.model_type == "gemma4_text":
        writer.add_rope_dimension_count(config.per_layer_config["full_attention"].head_dim)
    else:
        writer.add_rope_dimension_count(int(head_dim * rope.get("partial_rotary_factor", 1)))
    if rope.get("rope_type") == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        if "mscale_all_dim" in rope:
            writer.add_rope_scaling_yarn_log_mul(0.1 * rope["mscale_all_dim"])
    if hasattr(config, "shared_expert_intermediate_size"):
        writer.add_expert_shared_feed_forward_length(config.shared_expert_intermediate_size)
    if config.model_type.startswith("qwen3_5"):
        writer.add_rope_dimension_sections([*rope.get("mrope_section", [11, 11, 10]), 0])
    if config.model_type in REMEMBERING:
        writer.add_ssm_conv_kernel(config.linear_conv_kernel_dim)
        writer.add_ssm_state_size(config.linear_key_head_dim)
        writer.add_ssm_group_count(config.linear_num_key_heads)
        writer.add_ssm_time_step_rank(config.linear_num_value_heads)
        writer.add_ssm_inner_size(config.linear_num_value_heads * config.linear_value_head_dim)
        writer.add_full_attention_interval(config.layer_types.index("full_attention") + 1)
    if getattr(config, "n_routed_experts", 0) and config.model_type != "nemotron_h":
        _routing(writer, config)
    if config.model_type == "lfm2_moe":
        writer.add_leading_dense_block_count(config.num_dense_layers)
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    if config.model_type == "ernie4_5_moe":
        writer.add_leading_dense_block_count(config.moe_layer_start_index)
        writer.add_interleave_moe_layer_step(config.moe_layer_interval)
        writer.add_expert_shared_count(config.moe_num_shared_experts)
        writer.add_expert_shared_feed_forward_length(config.moe_num_shared_experts * config.moe_intermediate_size)
    if config.model_type == "hunyuan_v1_moe":
        writer.add_expert_shared_count(1)
        writer.add_expert_shared_feed_forward_length(config.intermediate_size)
    count = getattr(config, "num_experts", 0) or getattr(config, "num_local_experts", 0)
    if count and config.model_type != "nemotron_h":
        writer.add_expert_count(count)
        chosen = getattr(config, "moe_topk", None) or getattr(config, "top_k_experts", None)
        writer.add_expert_used_count(chosen or config.num_experts_per_tok)
        if config.model_type not in ("mixtral", "olmoe", "granitemoe"):
            width = getattr(config, "moe_intermediate_size", None) or config.intermediate_size
            writer.add_expert_feed_forward_length(width)
    if config.model_type.startswith("cohere"):
        writer.add_logit_scale(config.logit_scale)
    if config.model_type in ("gpt_oss", "cohere2"):
        writer.add_sliding_window(config.sliding_window)
    if config.model_type.startswith("granite"):
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        if writer.arch.startswith("granite"):
            writer.add_attention_scale(config.attention_multiplier)
        writer.add_logit_scale(config.logits_scaling)
    writer.add_vocab_size(config.vocab_size)


def _gemma4(writer: gguf.GGUFWriter, config: Any) -> None:
    """What files say of Gemma 4's layers."""
    windows = [kind == "sliding_attention" for kind in config.layer_types]
    near, own = (config.per_layer_config[kind] for kind in ("sliding_attention", "full_attention"))
    writer.add_key_length(own.head_dim)
    writer.add_value_length(own.head_dim)
    writer.add_key_length_swa(near.head_dim)
    writer.add_value_length_swa(near.head_dim)
    writer.add_rope_dimension_count_swa(near.head_dim)
    writer.add_rope_freq_base_swa(config.rope_parameters["sliding_attention"]["rope_theta"])
    writer.add_head_count_kv([(near if each else own).num_key_value_heads for each in windows])
    writer.add_sliding_window_pattern(windows)
    writer.add_sliding_window(config.sliding_window)
    writer.add_shared_kv_layers(config.num_kv_shared_layers)
    writer.add_embedding_length_per_layer_input(config.hidden_size_per_layer_input)
    wide = config.use_double_wide_mlp
    widths = [1 + (wide and i >= len(windows) - config.num_kv_shared_layers) for i in range(len(windows))]
    writer.add_feed_forward_length([config.intermediate_size * each for each in widths])
    turning = own.head_dim // 8
    factors = np.where(np.arange(own.head_dim // 2) < turning, 1, 1e30).astype(np.float32)
    writer.add_tensor("rope_freqs.weight", factors)


def _latent(writer: gguf.GGUFWriter, config: Any, newer: bool) -> None:
    """What files say of DeepSeek's attention; newer ones, as of one whose heads share short keys and values."""
    keys, values = config.qk_nope_head_dim + config.qk_rope_head_dim, config.v_head_dim
    writer.add_head_count_kv(1 if newer else config.num_attention_heads)
    writer.add_key_length(config.kv_lora_rank + config.qk_rope_head_dim if newer else keys)
    writer.add_value_length(config.kv_lora_rank if newer else values)
    if newer:
        writer.add_key_length_mla(keys)
        writer.add_value_length_mla(values)
    if config.q_lora_rank:
        writer.add_q_lora_rank(config.q_lora_rank)
    writer.add_kv_lora_rank(config.kv_lora_rank)


def _routing(writer: gguf.GGUFWriter, config: Any) -> None:
    """What files say of how tokens choose experts."""
    writer.add_leading_dense_block_count(getattr(config, "first_k_dense_replace", 1))
    writer.add_expert_shared_count(config.n_shared_experts)
    writer.add_expert_weights_scale(config.routed_scaling_factor)
    if config.model_type == "deepseek_v2":
        return
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    writer.add_expert_weights_norm(config.norm_topk_prob)
    writer.add_expert_group_count(config.n_group)
    writer.add_expert_group_used_count(config.topk_group)


def as_stored(name: str, values: np.ndarray, config: Any, neighbours: bool, back: bool = False) -> np.ndarray:
    """What a file stores for a tensor of transformers, or ``back``: what transformers has for one of a file."""
    if name.endswith((".D", "A_log")) and config.model_type in MAMBA:
        values = values.reshape(-1) if back else values[:, None]
    if name.endswith((".mamba.norm.weight", ".mixer.norm.weight")):
        groups = getattr(config, "mamba_n_groups", None) or config.n_groups
        return values.reshape(-1) if back else values.reshape(groups, -1)
    if neighbours and "mamba." not in name:
        return permuted(name, values, config, back)
    from_one = config.model_type.startswith(("gemma", "nemotron", *REMEMBERING)) and "linear_attn" not in name
    from_one = from_one and config.model_type not in ("gemma4_text", "nemotron_h")
    if from_one and name.endswith("norm.weight"):
        return values - 1 if back else values + 1
    if name.endswith("A_log"):
        values = np.log(-values) if back else -np.exp(values)
    if name.endswith(("conv1d.weight", "conv.conv.weight")):
        values = values[:, None] if back else values[:, 0]
    tiled = "linear_attn." in name and config.model_type.startswith("qwen3_5")
    return _tiled(name, values, config, back) if tiled else values


def _tiled(name: str, values: np.ndarray, config: Any, back: bool) -> np.ndarray:
    """Heads of values that share a head of keys lie apart in files, not side by side."""
    order = np.arange(config.linear_num_value_heads).reshape(config.linear_num_key_heads, -1).T.ravel()
    order, part = np.argsort(order) if back else order, name.split("linear_attn.")[1].removesuffix(".weight")
    if part in ("in_proj_a", "in_proj_b", "A_log", "dt_bias"):
        return values[order]
    if part == "out_proj":
        heads = values.reshape(len(values), len(order), -1)
        return np.ascontiguousarray(heads[:, order]).reshape(values.shape)
    if part in ("in_proj_z", "in_proj_qkv", "conv1d"):
        keys = 0 if part == "in_proj_z" else 2 * config.linear_num_key_heads * config.linear_key_head_dim
        heads = values[keys:].reshape(len(order), -1, *values.shape[1:])
        return np.concatenate([values[:keys], heads[order].reshape(-1, *values.shape[1:])])
    return values


def permuted(name: str, values: np.ndarray, config: Any, back: bool = False) -> np.ndarray:
    """Rows of queries and keys as files of Llamas have them: RoPE's pairs side by side, not in halves."""
    for part, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
        if f"{part}." in name:
            pairs = values.reshape(heads, *((-1, 2) if back else (2, -1)), *values.shape[1:])
            return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(values.shape)
    return values


def blocks(rng: np.random.Generator, values: np.ndarray, type: str) -> tuple[np.ndarray, np.ndarray]:
    """What a file stores of these values, or of others where gguf-py cannot write the type; and what that means."""
    if type in ("TQ1_0", "TQ2_0", "I2_S"):
        scale = np.float16(0.04).astype(np.float32)
        values = rng.integers(-1, 2, values.shape).astype(np.float32) * scale
    if type == "I2_S":
        return i2_s(values), values
    if type in SIZES:
        return _own(rng, values.shape, type)
    known = Type[type]
    if type in RANDOM:
        weights, size = gguf.GGML_QUANT_SIZES[known]
        data = rng.integers(0, 256, (values.shape[0], values.shape[1] // weights, size), dtype=np.uint8)
        _put_halves(rng, data, RANDOM[type])
        if type == "NVFP4":  # scales: from 2^-6 to 2^-4
            data[:, :, :4] = rng.integers(8, 24, (*data.shape[:2], 4))
        data = data.reshape(values.shape[0], -1)
    else:
        data = gguf.quants.quantize(values, known)
    return data, gguf.quants.dequantize(data, known).astype(np.float32)


def _put_halves(rng: np.random.Generator, data: np.ndarray, halves: dict[int, float]) -> None:
    for at, size in halves.items():
        data[:, :, at : at + 2] = (size * rng.uniform(0.5, 1.5, (*data.shape[:2], 1))).astype("<f2").view(np.uint8)


def _own(rng: np.random.Generator, shape: tuple[int, ...], type: str) -> tuple[np.ndarray, np.ndarray]:
    """Types that gguf-py does not know. Most are a float16, then codes from the lowest bits on."""
    weights, size, _ = SIZES[type]
    if type.startswith("STQ1_0"):
        return _sherry(rng, (shape[0], shape[1] // weights, size))
    data = rng.integers(0, 256, (shape[0], shape[1] // weights, size), dtype=np.uint8)
    _put_halves(rng, data, RANDOM[type.partition(" ")[0]])
    if type == "PTQ1_0":
        return _ptq1_0(rng, data, shape)
    scale = data[:, :, :2].copy().view("<f2").astype(np.float32)
    bits = np.unpackbits(data[:, :, 2:], axis=2, bitorder="little").astype(np.float32)
    codes = 2 * bits - 1 if type == "Q1_0" else bits[:, :, 0::2] + 2 * bits[:, :, 1::2] - 1
    return data.reshape(shape[0], -1), (codes * scale).reshape(shape)


def _sherry(rng: np.random.Generator, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """STQ1_0, number by number."""
    data = rng.integers(0, 256, shape, dtype=np.uint8)
    data[:, :, 40:] = np.frombuffer(np.float16(0.04).tobytes(), np.uint8)
    values = np.empty((*shape[:2], 256), np.float32)
    for row, block in np.ndindex(shape[:2]):
        b = data[row, block]
        for g in range(64):
            slot, sign = b[g // 2] >> 4 * (g % 2) & 15, b[32 + g // 8] >> g % 8 & 1
            for lane in range(4):
                code = (SHERRY[sign * 16 + slot] >> 2 * lane & 3) - 1
                values[row, block, g // 16 * 64 + lane * 16 + g % 16] = code * np.float32(np.float16(0.04))
    return data.reshape(shape[0], -1), values.reshape(shape[0], -1)


def _ptq1_0(rng: np.random.Generator, data: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Ternary digits, five in a byte, then a float16. Weight by weight, as PrismML's kernels find them."""
    digits = rng.integers(0, 3, (*data.shape[:2], 128))
    number = np.zeros((*data.shape[:2], 26), np.int64)
    for e in range(128):  # first come the first digits of sixteen bytes, ...; in the last two bytes there are four
        byte, place = (
            (e % 16, e // 16) if e < 80 else (16 + e % 8, e // 8 - 10) if e < 120 else (24 + e % 2, e // 2 - 60)
        )
        number[:, :, byte] += digits[:, :, e] * 3 ** (4 - place)
    data[:, :, :26] = -(-number * 256 // 243)
    scale = data[:, :, 26:].copy().view("<f2").astype(np.float32)
    return data.reshape(shape[0], -1), ((digits - 1) * scale).reshape(shape).astype(np.float32)


def plain(type: str) -> str:
    """The format of ours that is called as the type is."""
    plain = {"Q4_0": "q4g32", "Q5_0": "q5g32", "Q5_1": "q5g32s32m", "Q2_K": "q2g16s256m", "MXFP4": "mxfp4"}
    return plain.get(type) or (f"q{type[1]}g32s256m" if type.endswith("_K") else type)


def i2_s(values: np.ndarray) -> np.ndarray:
    """bitnet.cpp's ternary bytes: of 128 weights, number j in byte j % 32, its bits from 6 - 2 * (j // 32) on."""
    scale = np.abs(values).max()
    codes = (np.rint(values / scale) + 1).astype(np.uint8).reshape(-1, 4, 32)
    data = codes[:, 0] << 6 | codes[:, 1] << 4 | codes[:, 2] << 2 | codes[:, 3]
    return np.concatenate([data.reshape(-1), np.array([scale], "<f4").view(np.uint8), np.zeros(28, np.uint8)])
