"""Recipes for tiny genuine checkpoints, made by the libraries that make the real ones.

Each writes into ``folder`` and returns the transformers model whose logits are the reference, in
float32 and eval mode. Importing this needs torch, transformers, safetensors and accelerate.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    BitNetConfig,
    BitNetForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)
from transformers.integrations.bitnet import pack_weights
from transformers.utils import logging

from lutra.models.loaders import open_checkpoint

# Decorated with torch.compile, BitNet's code would otherwise start a C++ compiler per function.
torch._dynamo.config.disable = True
logging.set_verbosity_error()
logging.disable_progress_bar()

Tensors = dict[str, torch.Tensor]

SHAPE = dict(
    vocab_size=128,
    hidden_size=64,
    intermediate_size=160,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
)


def dense(
    folder: Path,
    name: str,
    dtype: torch.dtype = torch.float32,
    *,
    without: Sequence[str] = (),
    shard_size: str = "1GB",
    seed: int = 0,
    **config: Any,
) -> PreTrainedModel:
    """A plain model of the architecture whose classes in transformers begin with ``name``, such as "Qwen3".

    Two key-value heads of four and an untied head unless ``config`` says more. without: what of SHAPE it does not know.
    """
    settings = {key: value for key, value in SHAPE.items() if key not in without} | {"pad_token_id": None, **config}
    made = getattr(transformers, f"{name}Config")(**settings)
    model = randomized(getattr(transformers, f"{name}ForCausalLM"), made, seed)
    model.to(dtype).save_pretrained(folder, max_shard_size=shard_size)
    return reference(folder)


def dense_llama(folder: Path, dtype: torch.dtype = torch.float32, **config: Any) -> PreTrainedModel:
    """A plain Llama."""
    return dense(folder, "Llama", dtype, **config)


def plain(folder: Path, name: str, dtype: torch.dtype = torch.float32, **config: Any) -> PreTrainedModel:
    """One whose configuration has no heads of keys. Matrices are large enough for what lies between."""
    return dense(folder, name, dtype, without=["num_key_value_heads"], initializer_range=0.1, **config)


def opt(folder: Path, dtype: torch.dtype = torch.float32, **config: Any) -> PreTrainedModel:
    """An OPT."""
    without = ("intermediate_size", "num_key_value_heads")
    return dense(folder, "OPT", dtype, without=without, ffn_dim=160, init_std=0.1, **config)


def mixture(folder: Path, name: str, dtype: torch.dtype = torch.float32, **config: Any) -> PreTrainedModel:
    """A mixture of experts; its router, too, decides."""
    settings = {"num_experts": 7, "num_experts_per_tok": 3, "moe_intermediate_size": 48, "eos_token_id": None, **config}
    return dense(folder, name, dtype, initializer_range=0.1, **settings)


def gpt_oss(
    folder: Path, dtype: torch.dtype = torch.float32, *, packed: bool = False, seed: int = 0, **config: Any
) -> PreTrainedModel:
    """gpt-oss, its sinks and all biases random. packed: experts in MXFP4, as released."""
    settings = {**SHAPE, "head_dim": 24, "num_local_experts": 7, "num_experts_per_tok": 3, "sliding_window": 5}
    settings |= {"initializer_range": 0.1, "pad_token_id": None, "swiglu_limit": 1.0, **config}
    model = randomized(transformers.GptOssForCausalLM, transformers.GptOssConfig(**settings), seed)
    for name, parameter in model.named_parameters():
        if name.endswith((".sinks", "_bias")):
            parameter.data.normal_()
    model.to(dtype).save_pretrained(folder)
    if not packed:
        return reference(folder)
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith((".gate_up_proj", ".down_proj"))]:
        count, cols, rows = tensors.pop(name).shape
        shape = (count, rows, cols // 32)
        tensors[f"{name}_blocks"] = torch.randint(0, 256, (*shape, 16), dtype=torch.uint8)
        tensors[f"{name}_scales"] = torch.randint(121, 124, shape, dtype=torch.uint8)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    path = folder / "config.json"
    quantization = {"quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["model.embed_tokens"]}}
    path.write_text(json.dumps(json.loads(path.read_text()) | quantization))
    plain = transformers.Mxfp4Config(dequantize=True)
    return AutoModelForCausalLM.from_pretrained(folder, quantization_config=plain, dtype=torch.float32).eval()


def gemma(
    folder: Path, name: str, dtype: torch.dtype = torch.float32, *, seed: int = 0, **config: Any
) -> PreTrainedModel:
    """ "Gemma", "Gemma2" or the text part of "Gemma3". Norms' weights begin with 0, and so here lie around it."""
    settings = {"head_dim": 16, "query_pre_attn_scalar": 16, "pad_token_id": None, **SHAPE, **config}
    if name == "Gemma3":
        classes = transformers.Gemma3ForCausalLM, transformers.Gemma3TextConfig
    else:
        classes = getattr(transformers, f"{name}ForCausalLM"), getattr(transformers, f"{name}Config")
    model = randomized(classes[0], classes[1](**settings), seed)
    for parameter_name, parameter in model.named_parameters():
        if "norm" in parameter_name:
            parameter.data -= 1
    model.to(dtype).save_pretrained(folder)
    return reference(folder)


GEMMA4 = dict(
    head_dim=16,
    global_head_dim=24,
    sliding_window=5,
    num_hidden_layers=6,
    layer_types=["sliding_attention", "sliding_attention", "full_attention"] * 2,
    num_kv_shared_layers=2,
    hidden_size_per_layer_input=12,
    vocab_size_per_layer_input=128,
    pad_token_id=None,
    initializer_range=0.06,
)


def gemma4(
    folder: Path, name: str = "Gemma4", dtype: torch.dtype = torch.float32, *, seed: int = 0, **config: Any
) -> PreTrainedModel:
    """Gemma 4's text part: a little of each of its ideas, unless ``config`` says more or less."""
    classes = (getattr(transformers, f"{name}{kind}") for kind in ("ForCausalLM", "TextConfig"))
    architecture, settings = classes
    model = randomized(architecture, settings(**{**SHAPE, **GEMMA4, **config}), seed)
    scaled(model)
    model.to(dtype).save_pretrained(folder)
    return reference(folder)


def scaled(model: PreTrainedModel) -> None:
    """Set Gemma 4's factors, which start as ones, to random numbers; those of queries and keys make up for a scale."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name.endswith(("layer_scalar", "router.scale", "per_expert_scale")):
            tensor.data.uniform_(0.5, 1.5)
        elif name.endswith(("q_norm.weight", "k_norm.weight")):
            tensor.data /= 2


def gemma4_with_images(folder: Path, *, seed: int = 0) -> PreTrainedModel:
    """Gemma 4 as released: a tower for images and one for sound, and tensors of layers that share others'."""
    tower = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    hearing = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "output_proj_dims": 48}
    config = transformers.Gemma4Config(
        text_config={**SHAPE, **GEMMA4, "pad_token_id": 0},
        vision_config={**tower, "num_key_value_heads": 2, "head_dim": 16, "position_embedding_size": 16},
        audio_config={**hearing, "subsampling_conv_channels": [8, 4]},
        image_token_id=126,
        audio_token_id=125,
        video_token_id=124,
    )
    model = randomized(transformers.Gemma4ForConditionalGeneration, config, seed)
    scaled(model)
    model.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    for i in (4, 5):
        for part in ("k_proj", "v_proj"):
            tensors[f"model.language_model.layers.{i}.self_attn.{part}.weight"] = torch.ones(32 + 16 * (i - 4), 64)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    path = folder / "config.json"
    settings = json.loads(path.read_text())
    del settings["text_config"]["per_layer_config"]
    settings["text_config"]["global_head_dim"] = 24
    path.write_text(json.dumps(settings))
    return model


def gemma_with_images(folder: Path, *, seed: int = 0) -> PreTrainedModel:
    """Gemma 3 as its larger releases: a tower for images beside a text model that is silent about most of itself."""
    text = {**SHAPE, "head_dim": 16, "sliding_window": 5}
    tower = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Gemma3Config(
        text_config=text,
        vision_config={**tower, "image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
        image_token_index=126,
    )
    model = randomized(transformers.Gemma3ForConditionalGeneration, config, seed)
    model.save_pretrained(folder)
    path = folder / "config.json"
    settings = json.loads(path.read_text())
    settings["text_config"] = {"model_type": "gemma3_text", **text}
    path.write_text(json.dumps(settings))
    return model


def mistral_with_images(folder: Path, *, seed: int = 0) -> PreTrainedModel:
    """Mistral Small 3 and Ministral 3 as released: a tower for images beside a text model."""
    text = transformers.Ministral3Config(**{**SHAPE, "head_dim": 24, "pad_token_id": None})
    tower = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Mistral3Config(
        text_config=text,
        vision_config=transformers.PixtralVisionConfig(**tower, image_size=28, patch_size=14),
        image_token_index=126,
    )
    model = randomized(transformers.Mistral3ForConditionalGeneration, config, seed)
    model.save_pretrained(folder)
    return model


def with_images(folder: Path, name: str, *, flat: bool = False, seed: int = 0) -> PreTrainedModel:
    """ "Qwen2VL", "Qwen2_5_VL", "Qwen3VL" or "SmolVLM". flat: the text's configuration and tensors are among the rest,
    as the first two are released."""
    tower = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}
    towers: dict[str, dict[str, Any]] = {
        "Qwen2VL": {"depth": 1, "embed_dim": 32, "hidden_size": 64, "num_heads": 2},
        "Qwen2_5_VL": {**tower, "depth": 1, "out_hidden_size": 64, "num_heads": 2, "fullatt_block_indexes": [0]},
        "Qwen3VL": {**tower, "depth": 1, "out_hidden_size": 64, "num_heads": 2, "deepstack_visual_indexes": [0]},
        "SmolVLM": {**tower, "image_size": 28, "patch_size": 14},
    }
    text = {**SHAPE, "head_dim": 16, "pad_token_id": None}
    text = text | {"model_type": "llama"} if name == "SmolVLM" else text | {"rope_parameters": rope}
    config = getattr(transformers, f"{name}Config")(text_config=text, vision_config=towers[name])
    model = randomized(getattr(transformers, f"{name}ForConditionalGeneration"), config, seed)
    model.save_pretrained(folder)
    if flat:
        tensors = load_file(folder / "model.safetensors")
        parts = {"model.language_model.": "model.", "model.visual.": "visual."}
        save_file({_replaced(key, parts): tensor for key, tensor in tensors.items()}, folder / "model.safetensors")
        path = folder / "config.json"
        settings = json.loads(path.read_text())
        theirs = settings.pop("text_config") | settings | {"rope_theta": 1e6}
        theirs["rope_scaling"] = {"type": "mrope", "mrope_section": theirs.pop("rope_parameters")["mrope_section"]}
        path.write_text(json.dumps(theirs))
    return model


def renamed(folder: Path, rename: Callable[[str], str], **config: Any) -> PreTrainedModel:
    """A plain Llama whose tensors have other names."""
    model = dense_llama(folder, **config)
    tensors = load_file(folder / "model.safetensors")
    save_file({rename(name): t for name, t in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    return model


def called(folder: Path, model_type: str, **config: Any) -> PreTrainedModel:
    """A Llama under another name, which transformers runs as a Llama, too."""
    model = dense_llama(folder, **config)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": model_type}))
    return model


def said_to_be_tied(folder: Path) -> PreTrainedModel:
    """A Llama with a head of its own, which its configuration denies."""
    dense_llama(folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tie_word_embeddings": True}))
    return reference(folder)


def gemma_of_transformers_4(folder: Path) -> PreTrainedModel:
    """Gemma 3 with the configuration of its releases: a pattern for windows, two thetas at the top level."""
    model = gemma(folder, "Gemma3", sliding_window=5, num_hidden_layers=6)
    path = folder / "config.json"
    settings = json.loads(path.read_text())
    del settings["layer_types"], settings["rope_parameters"], settings["tie_word_embeddings"]
    settings |= {"sliding_window_pattern": 6, "rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": None}
    path.write_text(json.dumps(settings))
    return model


def hybrid(
    folder: Path, dtype: torch.dtype = torch.float32, *, name: str = "Qwen3_5", seed: int = 0, **config: Any
) -> PreTrainedModel:
    """A Qwen3.5 without images, or another with its layers, its memories long enough to matter."""
    kind = "TextConfig" if name.startswith("Qwen3_5") else "Config"  # of these, the whole sees images
    settings = getattr(transformers, f"{name}{kind}")(**{**HYBRID, **config})
    model = randomized(getattr(transformers, f"{name}ForCausalLM"), settings, seed)
    remembering(model)
    model.to(dtype).save_pretrained(folder)
    return reference(folder)


def stacked(folder: Path, model: PreTrainedModel) -> PreTrainedModel:
    """The same with all experts' matrices in one tensor, as the model has them; Qwen3.5's releases do."""
    tensors = load_file(folder / "model.safetensors")
    tensors = {name: tensor for name, tensor in tensors.items() if ".experts." not in name}
    tensors |= {name: tensor for name, tensor in model.state_dict().items() if ".experts." in name}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return model


def hybrid_with_images(folder: Path, *, seed: int = 0) -> PreTrainedModel:
    """Qwen3.5 as released: a tower for images, and layers that guess further tokens, beside the text model."""
    tower = {"hidden_size": 32, "intermediate_size": 48, "depth": 1, "num_heads": 2, "out_hidden_size": 64}
    config = transformers.Qwen3_5Config(text_config=HYBRID, vision_config={**tower, "num_position_embeddings": 16})
    model = randomized(transformers.Qwen3_5ForConditionalGeneration, config, seed)
    remembering(model)
    model.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["mtp.fc.weight"] = torch.zeros(64, 128)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return model


def guessing(folder: Path, model: PreTrainedModel) -> PreTrainedModel:
    """The same with a layer behind the last one, for guessing a second token; releases of mixtures have one."""
    layers, tensors = model.config.num_hidden_layers, load_file(folder / "model.safetensors")
    own = {name: tensor for name, tensor in tensors.items() if name.startswith(f"model.layers.{layers - 1}.")}
    last, behind = f"layers.{layers - 1}.", f"layers.{layers}."
    tensors |= {name.replace(last, behind): torch.zeros_like(tensor) for name, tensor in own.items()}
    tensors[f"model.layers.{layers}.eh_proj.weight"] = torch.zeros(64, 128)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_nextn_predict_layers": 1}))
    return model


SHARED = dict(
    num_experts=7,
    num_experts_per_tok=3,
    moe_intermediate_size=48,
    shared_expert_intermediate_size=40,
    eos_token_id=None,
)
CHOSEN = dict(
    n_routed_experts=6,
    num_experts_per_tok=3,
    n_shared_experts=2,
    moe_intermediate_size=48,
    first_k_dense_replace=1,
    num_hidden_layers=3,
    routed_scaling_factor=1.5,
    initializer_range=0.1,
)
LATENT = CHOSEN | dict(
    num_key_value_heads=4,
    kv_lora_rank=40,
    q_lora_rank=24,
    qk_nope_head_dim=16,
    qk_rope_head_dim=8,
    v_head_dim=12,
    n_routed_experts=7,
    routed_scaling_factor=2.0,
)
LFM2_MOE = dict(
    num_experts=6,
    num_experts_per_tok=3,
    moe_intermediate_size=48,
    num_dense_layers=1,
    num_hidden_layers=3,
    layer_types=["conv", "full_attention", "conv"],
    initializer_range=0.1,
)
ERNIE_MOE = dict(
    moe_num_experts=6,
    moe_k=3,
    moe_num_shared_experts=2,
    moe_intermediate_size=48,
    num_hidden_layers=3,
    initializer_range=0.1,
)
YOUTU = {key: LATENT[key] for key in ("kv_lora_rank", "q_lora_rank", "v_head_dim", "initializer_range")} | dict(
    num_key_value_heads=4, qk_nope_head_dim=16, qk_rope_head_dim=8
)
GROUPS = dict(n_routed_experts=12, n_group=4, topk_group=2)
GRANITE = dict(
    embedding_multiplier=12.0,
    residual_multiplier=0.22,
    attention_multiplier=0.1,
    logits_scaling=4.0,
    num_local_experts=7,
    num_experts_per_tok=3,
    initializer_range=0.1,
)


HYBRID = dict(
    SHAPE,
    head_dim=32,
    layer_types=["linear_attention", "full_attention", "linear_attention"],
    num_hidden_layers=3,
    linear_num_key_heads=2,
    linear_num_value_heads=4,
    linear_key_head_dim=16,
    linear_value_head_dim=24,
    rope_parameters={
        "rope_type": "default",
        "rope_theta": 1e6,
        "partial_rotary_factor": 0.25,
        "mrope_section": [2, 1, 1],
        "mrope_interleaved": True,
    },
    pad_token_id=None,
    initializer_range=0.1,
)


MAMBA = dict(mamba_n_heads=8, mamba_d_head=16, mamba_n_groups=2, mamba_d_state=18)
GRANITE4 = MAMBA | dict(
    layer_types=["linear_attention", "full_attention", "linear_attention"],
    num_hidden_layers=3,
    shared_intermediate_size=72,
    embedding_multiplier=12.0,
    residual_multiplier=0.22,
    attention_multiplier=0.1,
    logits_scaling=4.0,
    num_local_experts=0,
)
FALCON = MAMBA | dict(
    mamba_d_ssm=128,
    embedding_multiplier=5.0,
    key_multiplier=0.5,
    attention_in_multiplier=1.5,
    attention_out_multiplier=0.9,
    ssm_in_multiplier=1.25,
    ssm_out_multiplier=0.25,
    lm_head_multiplier=0.1,
    mlp_multipliers=[0.9, 0.5],
    ssm_multipliers=[0.35, 0.25, 0.18, 0.5, 0.35],
)
NEMOTRON = dict(
    layers_block_type=["linear_attention", "full_attention", "mlp", "linear_attention"],
    num_hidden_layers=4,
    head_dim=24,
    mamba_num_heads=8,
    mamba_head_dim=16,
    n_groups=2,
    ssm_state_size=18,
)


def with_mamba(
    folder: Path, name: str, dtype: torch.dtype = torch.float32, *, seed: int = 0, **config: Any
) -> PreTrainedModel:
    """ "GraniteMoeHybrid", "FalconH1" or "NemotronH", its memories long enough to matter."""
    settings = getattr(transformers, f"{name}Config")(**{"pad_token_id": None, **SHAPE, **config})
    model = randomized(getattr(transformers, f"{name}ForCausalLM"), settings, seed)
    remembering(model)
    model.to(dtype).save_pretrained(folder)
    return reference(folder)


def remembering(model: PreTrainedModel) -> None:
    """Set what decides how long a random model remembers, and a Qwen3.5's norms, to what real ones might have."""
    qwen = model.config.model_type.startswith("qwen")
    for name, parameter in model.named_parameters():
        if qwen and name.endswith("norm.weight") and "linear_attn" not in name:
            parameter.data -= 1  # what is stored is the distance from 1
        elif name.endswith(".D"):
            parameter.data.normal_()
        elif name.endswith("A_log"):
            parameter.data.uniform_(-3, 1)
        elif name.endswith("dt_bias"):
            parameter.data.normal_(-1, 1)
        elif name.endswith("conv1d.weight"):
            parameter.data.normal_(0, 0.5)


def minicpm(folder: Path, *, seed: int = 0, **config: Any) -> PreTrainedModel:
    """MiniCPM, which transformers lacks; the reference is a Llama with the three factors in its weights."""
    factors = {"scale_emb": 12.0, "scale_depth": 1.4, "dim_model_base": 16}
    model = randomized(LlamaForCausalLM, LlamaConfig(**{**SHAPE, **config}), seed)
    model.save_pretrained(folder)
    path = folder / "config.json"
    settings = (
        json.loads(path.read_text()) | factors | {"model_type": "minicpm", "architectures": ["MiniCPMForCausalLM"]}
    )
    path.write_text(json.dumps(settings))
    model.model.embed_tokens.weight.data *= factors["scale_emb"]
    for layer in model.model.layers:
        for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
            linear.weight.data *= factors["scale_depth"] / len(model.model.layers) ** 0.5
    model.lm_head.weight.data *= factors["dim_model_base"] / SHAPE["hidden_size"]
    return model


def bitnet_online(folder: Path, dtype: torch.dtype = torch.float32, *, seed: int = 0, **config: Any) -> PreTrainedModel:
    """BitNet b1.58 2B-4T's architecture with latent weights, as its ``-bf16`` release."""
    model = _bitnet(seed, **config).to(dtype)
    _set_quantization(model, linear_class="autobitlinear", quantization_mode="online")
    model.save_pretrained(folder)
    return reference(folder)


def bitnet_packed(folder: Path, *, seed: int = 0, **config: Any) -> PreTrainedModel:
    """BitNet b1.58 2B-4T as released: packed, ``weight_scale`` in bfloat16, multiplying."""
    model = _bitnet(seed, **config)
    _set_quantization(model, linear_class="autobitlinear", quantization_mode="offline")
    return _save_ternary(folder, model, _packed, lambda mean: mean.bfloat16())


def bitnet_unpacked(folder: Path, *, seed: int = 0, **config: Any) -> PreTrainedModel:
    """The same with each code as a float of its own, which transformers does not cast."""
    model = _bitnet(seed, **config)
    _set_quantization(model, linear_class="autobitlinear", quantization_mode="offline")
    return _save_ternary(folder, model, torch.Tensor.float, lambda mean: mean)


def llama_bitlinear(folder: Path, *, seed: int = 1, **config: Any) -> PreTrainedModel:
    """Falcon3-1.58bit and Llama3-8B-1.58: a plain Llama, packed, ``weight_scale`` dividing."""
    model = randomized(LlamaForCausalLM, LlamaConfig(**{**SHAPE, **config}), seed)
    _set_quantization(model)
    return _save_ternary(folder, model, _packed, lambda mean: 1 / mean)


def one_bit_llm(folder: Path, *, seed: int = 0, **config: Any) -> PreTrainedModel:
    """1bitLLM's releases: latent weights of a BitNet that calls itself Llama and is tied."""
    work = folder / "reference"
    model = bitnet_online(work, seed=seed, hidden_act="silu", rope_theta=10000.0, **config)
    names = {"attn_sub_norm": "inner_attn_ln", "ffn_sub_norm": "ffn_layernorm"}
    tensors = load_file(work / "model.safetensors")
    save_file(
        {_replaced(name, names): tensor for name, tensor in tensors.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    settings = json.loads((work / "config.json").read_text())
    del settings["quantization_config"]
    settings.update(model_type="llama", architectures=["BitnetForCausalLM"], weight_bits=1, input_bits=8)
    (folder / "config.json").write_text(json.dumps(settings))
    as_transformers_4(folder)
    return model


def llama2c(path: Path, *, version: int = 0, seed: int = 0, **config: Any) -> PreTrainedModel:
    """A llama2.c .bin file of version 0 or 1; the reference has its rows in transformers' order."""
    shape = {**SHAPE, "rms_norm_eps": 1e-5, "tie_word_embeddings": True, **config}
    model = randomized(LlamaForCausalLM, LlamaConfig(**shape), seed)
    settings, state = model.config, model.state_dict()
    tied = settings.tie_word_embeddings
    sizes = [
        settings.hidden_size,
        settings.intermediate_size,
        settings.num_hidden_layers,
        settings.num_attention_heads,
        settings.num_key_value_heads,
        settings.vocab_size if tied or version else -settings.vocab_size,
        settings.max_position_embeddings,
    ]
    start = struct.pack("<7i", *sizes)
    if version:
        start = (struct.pack("<Ii", 0x616B3432, 1) + start + bytes([tied])).ljust(256, b"\0")
    parts = [tensor.numpy().tobytes() for tensor in _llama2c_order(settings, state, version)]
    path.write_bytes(start + b"".join(parts))
    return model


def told(path: Path) -> PreTrainedModel:
    """A llama2.c model on disk as transformers runs it, its rows in transformers' order."""
    with open_checkpoint(path) as checkpoint:
        c = checkpoint.config
        state = {name: torch.tensor(np.asarray(checkpoint.tensor(name))) for name in checkpoint.names()}
    heads = {"q_proj": c["num_attention_heads"], "k_proj": c["num_key_value_heads"]}
    for name, weight in state.items():
        if count := heads.get(name.split(".")[-2]):
            state[name] = weight.reshape(count, -1, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)
    ours = ("model_type", "rope_interleaved", "torch_dtype", "rope_scaling")
    model = LlamaForCausalLM(LlamaConfig(**{k: v for k, v in c.items() if k not in ours})).eval()
    model.load_state_dict(state, strict=False)
    model.tie_weights()
    return model


def as_transformers_4(folder: Path) -> None:
    """Rewrite config.json in the layout that transformers 4 wrote."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    config["torch_dtype"] = config.pop("dtype")
    config["transformers_version"] = "4.46.3"
    path.write_text(json.dumps(config))


def reference(folder: Path) -> PreTrainedModel:
    """What transformers makes of ``folder``, computing in float32."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def randomized(architecture: type, config: Any, seed: int) -> PreTrainedModel:
    """A model with random weights; norms and biases, too, which start as ones and zeros and would hide mistakes."""
    torch.manual_seed(seed)
    model = architecture(config).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data.uniform_(0.5, 1.5)
        elif name.endswith((".bias", "_bias", ".sinks")):
            parameter.data.normal_(0, 0.1)
    for name, buffer in model.named_buffers():
        if name.endswith(("_correction_bias", ".expert_bias")):
            buffer.normal_(0, 0.1)
    return model


def _bitnet(seed: int, **config: Any) -> PreTrainedModel:
    settings = {**SHAPE, "tie_word_embeddings": True, **config}
    return randomized(BitNetForCausalLM, BitNetConfig(**settings), seed)


def _set_quantization(model: PreTrainedModel, **settings: str) -> None:
    model.config.quantization_config = {"quant_method": "bitnet", **settings}


def _save_ternary(
    folder: Path,
    model: PreTrainedModel,
    store: Callable[[torch.Tensor], torch.Tensor],
    scale: Callable[[torch.Tensor], torch.Tensor],
) -> PreTrainedModel:
    """Save ``model`` with its projections ternarized: codes as ``store`` and means as ``scale``."""
    tensors: Tensors = {}
    for name, tensor in model.state_dict().items():
        if name.endswith("_proj.weight"):
            mean = tensor.abs().mean().clamp(min=1e-5)
            tensors[name] = store((tensor * (1 / mean)).round().clamp(-1, 1))
            tensors[f"{name}_scale"] = scale(mean).reshape(1)
        elif name != "lm_head.weight" or not model.config.tie_word_embeddings:
            tensors[name] = tensor
    model.config.save_pretrained(folder)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return reference(folder)


def _packed(codes: torch.Tensor) -> torch.Tensor:
    return pack_weights(codes.clone())  # it adds 1 to what it is given


def _replaced(name: str, table: dict[str, str]) -> str:
    for old, new in table.items():
        name = name.replace(old, new)
    return name


def _llama2c_order(config: Any, state: Tensors, version: int) -> list[torch.Tensor]:
    def layers(name: str, heads: int = 0) -> list[torch.Tensor]:
        found = [state[f"model.layers.{i}.{name}.weight"] for i in range(config.num_hidden_layers)]
        return [_interleaved(weight, heads) for weight in found] if heads else found

    attention = [
        *layers("self_attn.q_proj", config.num_attention_heads),
        *layers("self_attn.k_proj", config.num_key_value_heads),
        *layers("self_attn.v_proj"),
        *layers("self_attn.o_proj"),
    ]
    ffn = [*layers("mlp.gate_proj"), *layers("mlp.down_proj"), *layers("mlp.up_proj")]
    norms = layers("input_layernorm"), layers("post_attention_layernorm")
    last, embedding = state["model.norm.weight"], state["model.embed_tokens.weight"]
    head = [] if config.tie_word_embeddings else [state["lm_head.weight"]]
    if version:
        return [*norms[0], *norms[1], last, embedding, *attention, *ffn, *head]
    tables = torch.zeros(config.max_position_embeddings, config.head_dim)  # cos and sin: unread
    return [embedding, *norms[0], *attention, *norms[1], *ffn, last, tables, *head]


def _interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows in the order of RoPE over neighbours, from transformers' order of two halves."""
    halves = weight.reshape(heads, 2, -1, weight.shape[1])
    return halves.transpose(1, 2).reshape(weight.shape).contiguous()
