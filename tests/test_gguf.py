"""GGUF files: every tensor type, architecture and layout against gguf-py, transformers and llama.cpp."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from lutra.models.loaders import open_checkpoint
from lutra.runtime.errors import CorruptModelError, LutraError, ModelNotFoundError, UnsupportedModelError
from lutra.runtime.formats import to_float32
from lutra.runtime.model import Model
from lutra.tools import bench_peers, peer_gguf
from lutra.tools.convert import convert

STORIES = Path(__file__).parents[2] / "shared" / "assets" / "weights" / "stories260K"
IDS = [1, 5, 9, 42, 77, 3]
PEER_PYTHON = os.environ.get("LUTRA_PEER_PYTHON", sys.executable)  # one with llama-cpp-python
DENSE = ["F32", "F16", "BF16"]
QUANTIZED = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "TQ1_0", "TQ2_0", "MXFP4"]
QUANTIZED += ["NVFP4", "IQ4_NL", "IQ4_XS"]
OWN = ["Q1_0", "Q2_0", "Q2_0 wide", "STQ1_0", "STQ1_0 early", "I2_S", "PQ2_0", "PTQ1_0"]


@pytest.fixture(scope="module")
def files() -> ModuleType:
    """The module of recipes; importing it takes the real libraries, and seconds."""
    for library in ("torch", "transformers", "accelerate", "gguf", "scipy"):
        pytest.importorskip(library)
    import gguf_files

    return gguf_files


@pytest.fixture
def llama_cpp(tmp_path) -> Callable[[Path, list[int]], np.ndarray]:
    """llama.cpp's logits of a file: float32 [ids, vocabulary]."""
    try:
        bench_peers.installed(PEER_PYTHON)
    except LutraError as error:
        pytest.skip(f"{error} (LUTRA_PEER_PYTHON can name another)")

    def logits(path: Path, ids: list[int]) -> np.ndarray:
        child, out = Path(__file__).with_name("llama_logits.py"), tmp_path / "logits.npy"
        subprocess.run([PEER_PYTHON, child, path, out, *map(str, ids)], check=True, capture_output=True)
        return np.load(out)

    return logits


def agrees(path: Path, reference: Any, most: float = 0.03) -> set[str]:
    """Check every tensor against the reference's, exactly, and the logits; the formats that were found."""
    import gguf_files
    import torch

    with open_checkpoint(path) as checkpoint:
        neighbours = checkpoint.config.get("rope_interleaved", False)
        for name, parameter in reference.state_dict().items():
            if name in checkpoint:
                expected = gguf_files.as_stored(name, parameter.numpy(), reference.config, neighbours)
                expected = expected.reshape(checkpoint.shape(name))
                off = 1e-6 if name.endswith("A_log") else 0  # of which the file has the power
                np.testing.assert_allclose(to_float32(checkpoint.tensor(name)), expected, off, err_msg=name)
                part = to_float32(checkpoint.unread(name)[3:21])
                np.testing.assert_allclose(part, expected[3:21], off, err_msg=name)
        found = {checkpoint.dtype(name) for name in checkpoint.names() if len(checkpoint.shape(name)) == 2}
    with torch.no_grad():
        expected = reference(torch.tensor([IDS])).logits[0].numpy()
    with Model.load(path) as m:
        got = m.session().logits(IDS)
        assert tiny.relative(got, tiny.numpy_logits(m, IDS)) < 0.02  # a code of an activation can round otherwise
    assert tiny.relative(got, expected) < most
    return found


FORMATS = {
    "F16": "F16",
    "Q8_0": "q8g32",
    "Q4_1": "q4g32s32m",
    "Q3_K": "q4g16s256",
    "Q6_K": "q6g16s256",
    "IQ4_NL": "iq4g32",
    "IQ4_XS": "iq4g32s256",
    "NVFP4": "nvfp4",
    "TQ1_0": "ternary",
    "TQ2_0": "ternary",
    "I2_S": "ternary",
    "STQ1_0": "ternary",
    "STQ1_0 early": "ternary",
    "Q2_0": "q2g64",
    "Q2_0 wide": "q2g128",
    "PQ2_0": "q2g128",
    "PTQ1_0": "q2g128",
    "Q1_0": "b1g128",
}


@pytest.mark.parametrize("type", [*DENSE, *QUANTIZED, *OWN])
def test_types(type, tmp_path, files):
    arch = "bitnet" if type == "I2_S" else "qwen2"
    model = files.write(tmp_path / "x.gguf", files.model(arch, hidden_act="silu"), [type])
    most = 0.06 if type == "I2_S" else 0.03  # one scale for all activations of a token
    assert agrees(tmp_path / "x.gguf", model, most) <= {FORMATS.get(type) or files.plain(type)}


MIXTURE = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=256, head_dim=64, norm_topk_prob=True)
GEMMA = dict(head_dim=64, sliding_window=5, tie_word_embeddings=True)
HYBRID = dict(
    head_dim=64,
    layer_types=["linear_attention", "full_attention"],
    linear_num_key_heads=2,
    linear_num_value_heads=4,
    linear_key_head_dim=64,
    linear_value_head_dim=64,
    rope_parameters=dict(rope_type="default", rope_theta=1e4, partial_rotary_factor=0.5, mrope_section=[6, 5, 5]),
    initializer_range=0.1,
)
MIXED = ["Q6_K", "Q4_K", "Q4_0", "Q8_0", "F16", "Q5_K"]
EXAONE = dict(head_dim=64, num_key_value_heads=2)
GRANITE = dict(embedding_multiplier=6.0, residual_multiplier=0.5, logits_scaling=3.0)
SHARED = MIXTURE | dict(head_dim=64, shared_expert_intermediate_size=512, initializer_range=0.1)
NEXT = SHARED | HYBRID | dict(rope_parameters=dict(rope_type="default", rope_theta=1e4, partial_rotary_factor=0.5))
GRANITE_MOE = GRANITE | dict(
    attention_multiplier=0.1, num_local_experts=4, num_experts_per_tok=2, initializer_range=0.1
)
LFM2 = dict(layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False, initializer_range=0.1)
LATENT = dict(
    num_key_value_heads=4,
    kv_lora_rank=256,
    q_lora_rank=256,
    qk_nope_head_dim=64,
    qk_rope_head_dim=32,
    v_head_dim=64,
    n_routed_experts=4,
    num_experts_per_tok=2,
    n_shared_experts=2,
    moe_intermediate_size=256,
    first_k_dense_replace=1,
    initializer_range=0.1,
)
DEEPSEEK_YARN = dict(
    rope_type="yarn",
    rope_theta=1e4,
    factor=8.0,
    mscale=0.707,
    mscale_all_dim=0.707,
    original_max_position_embeddings=64,
)
CHOSEN = dict(
    n_routed_experts=4,
    num_experts_per_tok=2,
    n_shared_experts=1,
    moe_intermediate_size=256,
    first_k_dense_replace=1,
    norm_topk_prob=True,
    routed_scaling_factor=1.5,
    initializer_range=0.1,
)
GROUPS = dict(n_routed_experts=8, n_group=4, topk_group=2)
UNGROUPED = dict(n_group=1, topk_group=1)
LFM2MOE = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=256, num_dense_layers=1)
ERNIE_MOE = dict(
    head_dim=64,
    moe_num_experts=4,
    moe_k=2,
    moe_num_shared_experts=2,
    moe_intermediate_size=256,
    num_hidden_layers=3,
    initializer_range=0.1,
)
HUNYUAN_MOE = dict(head_dim=64, num_experts=4, moe_topk=2, initializer_range=0.1)
LITE = LATENT | CHOSEN
GPT_OSS = dict(head_dim=64, num_local_experts=4, num_experts_per_tok=2, sliding_window=3, initializer_range=0.1)
GEMMA4 = dict(
    head_dim=64,
    global_head_dim=128,
    hidden_size_per_layer_input=256,
    vocab_size_per_layer_input=128,
    layer_types=["sliding_attention", "full_attention"] * 2,
    num_hidden_layers=4,
    num_kv_shared_layers=2,
    initializer_range=0.06,
)
GEMMA4_MOE = GEMMA4 | dict(
    hidden_size_per_layer_input=0,
    num_kv_shared_layers=0,
    attention_k_eq_v=True,
    num_global_key_value_heads=1,
    enable_moe_block=True,
    num_experts=4,
    top_k_experts=2,
    moe_intermediate_size=256,
)
MAMBA = dict(mamba_n_heads=8, mamba_d_head=64, mamba_n_groups=2, mamba_d_state=64, initializer_range=0.06)
GRANITE4 = (
    GRANITE
    | MAMBA
    | dict(attention_multiplier=0.1, num_local_experts=0, shared_intermediate_size=512)
    | dict(layer_types=["linear_attention", "full_attention"])
)
FALCON_H1 = MAMBA | dict(mamba_d_ssm=512, head_dim=64)
NEMOTRON_H = dict(
    layers_block_type=["linear_attention", "full_attention", "mlp"],
    num_hidden_layers=3,
    head_dim=64,
    mamba_num_heads=8,
    mamba_head_dim=64,
    n_groups=2,
    ssm_state_size=64,
    time_step_min=1e-9,
    initializer_range=0.06,
)
ARCHS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "gemma4": ("gemma4_text", GEMMA4 | dict(sliding_window=5, use_double_wide_mlp=True), {}),
    "gemma4, of experts": ("gemma4_text", GEMMA4_MOE | dict(sliding_window=5), {}),
    "granitehybrid": ("granitemoehybrid", GRANITE4, {}),
    "falcon-h1": ("falcon_h1", FALCON_H1, {}),
    "nemotron_h": ("nemotron_h", NEMOTRON_H, {}),
    "gemma2": ("gemma2", GEMMA | dict(query_pre_attn_scalar=64), dict(keys={"gemma2.attention.sliding_window": 5})),
    "gemma2, other caps": (
        "gemma2",
        GEMMA | dict(query_pre_attn_scalar=64, attn_logit_softcapping=3.0, final_logit_softcapping=0.5),
        dict(
            keys={
                "gemma2.attention.sliding_window": 5,
                "gemma2.attn_logit_softcapping": 3.0,
                "gemma2.final_logit_softcapping": 0.5,
            }
        ),
    ),
    "gemma3": (
        "gemma3_text",
        GEMMA | dict(query_pre_attn_scalar=64, num_hidden_layers=7),
        dict(keys={"gemma3.attention.sliding_window": 5}),
    ),
    "granite": ("granite", GRANITE | dict(attention_multiplier=0.1), {}),
    # transformers lacks MiniCPM, which scales the same things: but its files do not speak of scores.
    "minicpm": ("granite", GRANITE | dict(attention_multiplier=0.125), dict(arch="minicpm")),
    "gpt-oss, of experts": ("gpt_oss", GPT_OSS, {}),
    "gemma": ("gemma", dict(head_dim=64, tie_word_embeddings=True), {}),
    "glm4": ("glm4", dict(head_dim=64), {}),
    "mixtral, of experts": ("mixtral", dict(num_local_experts=4, num_experts_per_tok=2), {}),
    "hunyuan": ("hunyuan_v1_dense", dict(head_dim=128), {}),
    "olmo2": ("olmo2", {}, {}),
    "exaone4": ("exaone4", EXAONE | dict(sliding_window=None, layer_types=["full_attention"] * 2), {}),
    "exaone4, windows": (
        "exaone4",
        EXAONE | dict(sliding_window=5, layer_types=["sliding_attention", "full_attention"]),
        dict(keys={"exaone4.attention.sliding_window": 5, "exaone4.attention.sliding_window_pattern": [True, False]}),
    ),
    "olmo3": (
        "olmo3",
        dict(sliding_window=5, num_hidden_layers=5, rope_parameters=dict(rope_type="default", rope_theta=1e4)),
        dict(keys={"olmo2.attention.sliding_window": 5}),
    ),
    "seed_oss": ("seed_oss", dict(head_dim=64, attention_bias=True), {}),
    "command-r": ("cohere", dict(logit_scale=0.25, use_qk_norm=True), {}),
    "cohere2": ("cohere2", dict(num_hidden_layers=4, sliding_window=3), {}),
    "arcee": ("arcee", {}, {}),
    "starcoder2": ("starcoder2", {}, {}),
    "nemotron": ("nemotron", dict(head_dim=64), {}),
    "stablelm": ("stablelm", {}, {}),
    "stablelm, parallel": ("stablelm", dict(use_parallel_residual=True, use_qkv_bias=True), {}),
    "ernie4_5": ("ernie4_5", dict(head_dim=64), {}),
    "granite, of experts": ("granitemoe", GRANITE_MOE, {}),
    "lfm2": ("lfm2", LFM2, {}),
    "deepseek2, of experts": ("deepseek_v2", LATENT | dict(q_lora_rank=None, routed_scaling_factor=2.0), {}),
    "deepseek2, of experts, newer": (
        "deepseek_v2",
        LATENT | dict(max_position_embeddings=512, rope_parameters=DEEPSEEK_YARN),
        dict(newer=True),
    ),
    "deepseek3, of experts": ("deepseek_v3", LATENT | CHOSEN | GROUPS, {}),
    "deepseek3, of experts, newer": (
        "deepseek_v3",
        LATENT | CHOSEN | UNGROUPED | dict(q_lora_rank=None, norm_topk_prob=False),
        dict(newer=True),
    ),
    "glm4moe, of experts": ("glm4_moe", CHOSEN | dict(head_dim=64, use_qk_norm=True), {}),
    "glm4moe lite, of experts": ("glm4_moe_lite", LITE, dict(newer=True)),
    "lfm2moe, of experts": ("lfm2_moe", LFM2 | LFM2MOE, {}),
    "ernie4_5-moe, of experts": ("ernie4_5_moe", ERNIE_MOE, {}),
    "hunyuan-moe, of experts": ("hunyuan_v1_moe", HUNYUAN_MOE, {}),
    "dots1, of experts": ("dots1", CHOSEN | dict(head_dim=64), {}),
    "internlm2": ("llama", {}, dict(arch="internlm2")),
    "exaone": ("llama", {}, dict(arch="exaone")),
    "qwen3vl": ("qwen3", dict(head_dim=128), dict(arch="qwen3vl")),
    "smollm3": ("smollm3", dict(num_hidden_layers=5), {}),
    "llama": ("llama", dict(tie_word_embeddings=True), {}),
    "llama, heads of 32": ("llama", dict(head_dim=32, num_attention_heads=8), {}),
    "mistral3": (
        "ministral3",
        dict(
            head_dim=64,
            rope_parameters=dict(
                **dict(rope_type="yarn", rope_theta=1e4, factor=4.0, original_max_position_embeddings=32),
                **dict(mscale=1.0, mscale_all_dim=0.5, llama_4_scaling_beta=0.1),
            ),
        ),
        dict(
            keys={
                "mistral3.rope.scaling.type": "yarn",
                "mistral3.rope.scaling.factor": 4.0,
                "mistral3.rope.scaling.original_context_length": 32,
                "mistral3.rope.scaling.yarn_log_multiplier": 0.5,
                "mistral3.attention.temperature_scale": 0.1,
            }
        ),
    ),
    "qwen2": ("qwen2", {}, {}),
    "qwen3": ("qwen3", dict(head_dim=128), {}),
    "qwen3 of experts": ("qwen3_moe", MIXTURE, {}),
    "qwen2 of experts": ("qwen2_moe", SHARED | dict(norm_topk_prob=False), {}),
    "qwen35 of experts": ("qwen3_5_moe_text", SHARED | HYBRID, {}),
    "qwen35 of experts, newer": ("qwen3_5_moe_text", SHARED | HYBRID, dict(newer=True)),
    "qwen3next, of experts": ("qwen3_next", NEXT, {}),
    "qwen3next, of experts, newer": ("qwen3_next", NEXT, dict(newer=True)),
    "olmoe, of experts": ("olmoe", dict(num_experts=4, num_experts_per_tok=2), {}),
    "phi3": ("phi3", dict(rope_parameters=dict(rope_type="default", rope_theta=1e4, partial_rotary_factor=0.5)), {}),
    "qwen35": ("qwen3_5_text", HYBRID, {}),
    "qwen35, a key for every value": ("qwen3_5_text", HYBRID | dict(linear_num_key_heads=4), {}),
    "bitnet, 2023": ("bitnet", dict(hidden_act="silu"), {}),
    "bitnet, 2024": ("bitnet", {}, dict(arch="bitnet-25")),
    "bitnet, 2025": ("bitnet", dict(tie_word_embeddings=False), dict(arch="bitnet-b1.58")),
}


@pytest.mark.parametrize("name", ARCHS)
def test_architectures(name, tmp_path, files):
    arch, config, options = ARCHS[name]
    types = ["TQ2_0", "F32", "I2_S", "TQ1_0"] if arch == "bitnet" else MIXED
    model = files.write(tmp_path / "x.gguf", files.model(arch, **config), types, **options)
    # Random models make much of how activations are rounded, and other experts give other answers.
    agrees(tmp_path / "x.gguf", model, 1.0 if "experts" in name else 0.15)
    exact = files.write(tmp_path / "y.gguf", files.model(arch, **config), DENSE, **options)
    agrees(tmp_path / "y.gguf", exact, 1e-4)


LLAMA_CPP: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "gemma4": ("gemma4_text", GEMMA4 | dict(sliding_window=512, use_double_wide_mlp=True), ["F16", "Q8_0"]),
    "gemma4, of experts": ("gemma4_text", GEMMA4_MOE | dict(sliding_window=512), ["F16"]),
    "granitehybrid": ("granitemoehybrid", GRANITE4, ["F16", "Q8_0"]),
    "falcon-h1": ("falcon_h1", FALCON_H1, ["F16", "Q8_0"]),
    "nemotron_h": ("nemotron_h", NEMOTRON_H, ["F16", "Q8_0"]),
    "gemma2": ("gemma2", GEMMA | dict(sliding_window=512, query_pre_attn_scalar=64), MIXED),
    "gemma3": ("gemma3_text", GEMMA | dict(sliding_window=512, num_hidden_layers=7), ["F16", "Q8_0"]),
    "granite": ("granite", GRANITE | dict(attention_multiplier=0.1), MIXED),
    "minicpm": ("granite", GRANITE | dict(attention_multiplier=0.125), MIXED),
    "gpt-oss": ("gpt_oss", GPT_OSS, ["MXFP4", "Q8_0", "F16"]),
    "gemma": ("gemma", dict(head_dim=64, tie_word_embeddings=True), MIXED),
    "glm4": ("glm4", dict(head_dim=64), MIXED),
    "mixtral": ("mixtral", dict(num_local_experts=4, num_experts_per_tok=2), ["F16"]),
    "hunyuan": ("hunyuan_v1_dense", dict(head_dim=64), MIXED),
    "olmo2": ("olmo2", dict(num_key_value_heads=4), MIXED),
    "exaone4": ("exaone4", EXAONE | dict(sliding_window=None, layer_types=["full_attention"] * 2), DENSE),
    "seed_oss": ("seed_oss", dict(head_dim=64, attention_bias=True), MIXED),
    "command-r": ("cohere", dict(logit_scale=0.25), MIXED),
    "cohere2": ("cohere2", dict(num_hidden_layers=4, sliding_window=3), MIXED),
    "arcee": ("arcee", {}, MIXED),
    "starcoder2": ("starcoder2", {}, MIXED),
    "nemotron": ("nemotron", dict(head_dim=64), MIXED),
    "stablelm": ("stablelm", {}, MIXED),
    "ernie4_5": ("ernie4_5", dict(head_dim=64), MIXED),
    "granitemoe": ("granitemoe", GRANITE_MOE, ["F16"]),
    # All experts chosen: what rounds otherwise cannot choose others, and a matrix misread still shows.
    "granitemoe, all": ("granitemoe", GRANITE_MOE | dict(num_experts_per_tok=4), ["Q4_K", "Q6_K", "Q5_K"]),
    "lfm2": ("lfm2", LFM2, ["F16", "Q8_0"]),
    "deepseek2": (
        "deepseek_v2",
        LATENT | dict(max_position_embeddings=512, rope_parameters=DEEPSEEK_YARN),
        ["F16"],
    ),
    "deepseek3": ("deepseek_v3", LATENT | CHOSEN | GROUPS, ["F16"]),
    "glm4moe": ("glm4_moe", CHOSEN | dict(head_dim=64, use_qk_norm=True), ["F16"]),
    "glm4moe lite": ("glm4_moe_lite", LITE, ["F16"]),
    "lfm2moe": ("lfm2_moe", LFM2 | LFM2MOE, ["F16"]),
    "ernie4_5-moe": ("ernie4_5_moe", ERNIE_MOE, ["F16"]),
    "hunyuan-moe": ("hunyuan_v1_moe", HUNYUAN_MOE, ["F16"]),
    "dots1": ("dots1", CHOSEN | dict(head_dim=64, num_key_value_heads=4), ["F16"]),
    "internlm2": ("llama", {}, MIXED),
    "exaone": ("llama", {}, MIXED),
    "qwen2vl": ("qwen2", {}, MIXED),
    "qwen3vl": ("qwen3", dict(head_dim=128), MIXED),
    "qwen3vlmoe": ("qwen3_moe", MIXTURE, ["F16"]),
    "smollm3": ("smollm3", dict(num_hidden_layers=5), MIXED),
    "llama": ("llama", {}, MIXED),
    "qwen2": ("qwen2", {}, ["Q3_K", "Q5_0", "Q5_1", "Q4_1", "Q2_K"]),
    "qwen3": ("qwen3", dict(head_dim=128), ["Q1_0", "Q2_0", "MXFP4"]),
    "iq4": ("llama", {}, ["IQ4_XS", "IQ4_NL"]),
    "olmoe": ("olmoe", dict(num_experts=4, num_experts_per_tok=2, num_key_value_heads=4), ["F16"]),
    "qwen3 of experts": ("qwen3_moe", MIXTURE, ["Q8_0", "Q4_K", "F16"]),
    "qwen2 of experts": ("qwen2_moe", SHARED | dict(norm_topk_prob=False), ["F16", "Q8_0"]),
    "qwen35 of experts": ("qwen3_5_moe_text", SHARED | HYBRID, ["F16"]),
    "qwen3next": ("qwen3_next", NEXT, ["F16"]),
    "phi3": ("phi3", {}, ["Q8_0", "BF16"]),
    "qwen35": ("qwen3_5_text", HYBRID, ["F16", "Q8_0"]),
    "bitnet": ("bitnet", dict(hidden_act="silu", tie_word_embeddings=True), ["F16", "TQ1_0", "TQ2_0"]),
}


OTHER_NAMES = ("minicpm", "internlm2", "exaone", "qwen2vl", "qwen3vl", "qwen3vlmoe")  # than their models'


@pytest.mark.parametrize("name", LLAMA_CPP)
def test_logits_of_llama_cpp(name, tmp_path, files, llama_cpp):
    arch, config, types = LLAMA_CPP[name]
    options: dict[str, Any] = {"arch": name} if name in OTHER_NAMES else {}
    if "vl" in name:
        options["keys"] = {f"{name}.rope.dimension_sections": [24, 20, 20, 0]}
    files.write(tmp_path / "x.gguf", files.model(arch, **config), types, **options)
    expected = llama_cpp(tmp_path / "x.gguf", IDS)
    with Model.load(tmp_path / "x.gguf") as m:
        assert tiny.relative(m.session().logits(IDS), expected) < 0.05  # it quantizes activations its own way


def test_gates_and_ups_of_experts_in_different_types(tmp_path, files):
    """As mixed quantizations have them: packed, they are the same to the last bit."""
    files.write(tmp_path / "x.gguf", files.model("qwen3_moe", **MIXTURE), ["Q4_K", "Q6_K", "F16"])
    convert(tmp_path / "x.gguf", tmp_path / "packed")
    found = set()
    with Model.load(tmp_path / "x.gguf") as m, Model.load(tmp_path / "packed") as packed:
        np.testing.assert_array_equal(packed.session().logits(IDS), m.session().logits(IDS))
        for i in range(2):
            found.add(m.weights[f"layers.{i}.experts_gate_up"].format)
    assert any("rows-256:q4g32s256m+256:q6g16s256" in format for format in found), found


@pytest.mark.parametrize("type", ["F32", "F16", "Q8_0"])
def test_a_real_model_tells_the_same_story(type, tmp_path, files, llama_cpp):
    """64 tokens, the likeliest each, of stories260K and its tokenizer: those of its own file, and of llama.cpp."""
    if not STORIES.exists():
        pytest.skip("stories260K is not there")
    files.stories(tmp_path / "x.gguf", STORIES, type)
    with Model.load(tmp_path / "x.gguf", kv_type="f32") as m, Model.load(STORIES) as original:
        prompt = m.tokenizer.encode("Once upon a time, there was")
        assert prompt == original.tokenizer.encode("Once upon a time, there was")
        ids = greedy(m, prompt, 64)
        if type == "F32":
            assert ids == greedy(original, prompt, 64)
    likeliest = llama_cpp(tmp_path / "x.gguf", prompt + ids).argmax(axis=1)
    assert likeliest[len(prompt) - 1 : -1].tolist() == ids


def greedy(model: Model, prompt: list[int], n: int) -> list[int]:
    session, ids = model.session(), list(prompt)
    while len(ids) < len(prompt) + n:
        ids.append(int(session.feed(ids[len(session.tokens) :]).argmax()))
    return ids[len(prompt) :]


def test_split_files_are_one_model(tmp_path, files):
    model = files.write(tmp_path / "x.gguf", files.model("qwen2"), MIXED, split=7)
    parts = sorted(tmp_path.glob("*.gguf"))
    assert len(parts) > 2
    agrees(parts[1], model)
    agrees(tmp_path, model)
    for source in (parts[1], tmp_path):
        assert convert(source, None).source_nbytes == sum(part.stat().st_size for part in parts)
    parts[1].rename(tmp_path / "other")
    with pytest.raises(ModelNotFoundError, match=f"lacks 1 of the {len(parts)} files"):
        open_checkpoint(tmp_path)
    (tmp_path / "other").rename(parts[1])
    parts[0].rename(tmp_path / "other")
    parts[1].rename(parts[0])
    (tmp_path / "other").rename(parts[1])
    with pytest.raises(CorruptModelError, match="says it is file 1 of"):
        open_checkpoint(tmp_path)


def test_rope_factors_scale_the_frequencies(tmp_path, files):
    """What llama3's scaling becomes in a file: a tensor of factors."""
    scaling = dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)
    model = files.model("llama", rope_parameters=dict(rope_type="llama3", rope_theta=1e4, **scaling))
    plain = 1e4 ** -(np.arange(0, 64, 2) / 64)
    factors = (plain / model.model.rotary_emb.inv_freq.numpy()).astype(np.float32)
    assert factors.max() > 7
    files.write(tmp_path / "x.gguf", model, ["F32"], tensors={"rope_freqs.weight": factors})
    agrees(tmp_path / "x.gguf", model, 1e-4)


def test_layers_that_guess_further_tokens_are_not_read(tmp_path, files):
    kinds = ["linear_attention", "full_attention", "linear_attention"]
    model = files.model("qwen3_5_text", **HYBRID | dict(layer_types=kinds, num_hidden_layers=3))
    guess = {"blk.2.nextn.eh_proj.weight": np.zeros((256, 512), np.float32)}
    keys = {"qwen35.nextn_predict_layers": 1}
    files.write(tmp_path / "x.gguf", model, ["F32"], keys=keys, tensors=guess)
    del model.model.layers[2]
    model.config.num_hidden_layers = 2
    agrees(tmp_path / "x.gguf", model, 1e-4)
    with open_checkpoint(tmp_path / "x.gguf") as checkpoint:
        assert any("guess" in note for note in checkpoint.notes)


def test_scales_beside_bitnets_matrices(tmp_path, files):
    """Which multiply what the matrix gives."""
    import torch

    model = files.model("bitnet", hidden_act="silu")
    scales = {"blk.0.attn_q.scale": np.array([0.5], np.float32), "blk.1.ffn_down.scale": np.array([3], np.float32)}
    files.write(tmp_path / "x.gguf", model, ["I2_S", "F32"], tensors=scales)
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.weight *= 0.5
        model.model.layers[1].mlp.down_proj.weight *= 3
    agrees(tmp_path / "x.gguf", model, 0.06)


ROTATIONS = {
    "qwen35": ("qwen3_5_text", HYBRID | dict(linear_num_value_heads=6), dict(block=128)),
    "qwen35, tied": ("qwen3_5_text", HYBRID | dict(tie_word_embeddings=True), dict(block=64)),
    "qwen35, heads tiled": ("qwen3_5_text", HYBRID, dict(block=32, grouped=False)),
    "qwen35, no signs": ("qwen3_5_text", HYBRID, dict(block=256, explicit=False)),
    "llama": ("llama", {}, dict(block=256)),
}


@pytest.mark.parametrize("name", ROTATIONS)
def test_matrices_behind_a_rotation(name, tmp_path, files):
    """As a dense model in transformers, whose matrices are M H diag(s)."""
    import torch

    arch, config, rotation = ROTATIONS[name]
    for types, most in (["F32"], 1e-4), (["PQ2_0", "PTQ1_0"], 0.1):
        rotated = files.Rotation(**rotation)
        model = files.model(arch, **config)
        files.write(tmp_path / "x.gguf", model, types, rotation=rotated)
        with torch.no_grad():
            expected = model(torch.tensor([IDS])).logits[0].numpy()
        with Model.load(tmp_path / "x.gguf") as m:
            got = m.session().logits(IDS)
            assert tiny.relative(got, tiny.numpy_logits(m, IDS)) < 0.02
            stored = {weight.format for weight in m.weights.values() if hasattr(weight, "format")}
        assert f"rotated{rotated.block}-{'f32' if types == ['F32'] else 'q2g128'}" in stored
        assert tiny.relative(got, expected) < most
    convert(tmp_path / "x.gguf", tmp_path / "packed")
    with Model.load(tmp_path / "packed") as m:
        np.testing.assert_array_equal(m.session().logits(IDS), got)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"prism.hadamard.version": 2}, UnsupportedModelError, "version 2"),
        ({"prism.hadamard.transform": "sequency"}, UnsupportedModelError, "transform 'sequency'"),
        ({"prism.hadamard.axis": "output"}, UnsupportedModelError, "axis 'output'"),
        ({"prism.hadamard.block_size": 48}, UnsupportedModelError, "block_size 48"),
        ({"prism.hadamard.sign_mode": "random"}, UnsupportedModelError, "sign_mode 'random'"),
        ({"prism.hadamard.seed": 1}, UnsupportedModelError, "prism.hadamard.seed"),
        ({"prism.codec": "x"}, UnsupportedModelError, "prism.codec"),
        ({"prism.hadamard.weight_names": ["blk.9.ffn_up.weight"]}, CorruptModelError, "blk.9.ffn_up.weight"),
        ({"prism.hadamard.weight_names": ["blk.0.attn_norm.weight"]}, CorruptModelError, "blk.0.attn_norm.weight"),
        ({"prism.hadamard.weight_names": 3}, CorruptModelError, "no list of names"),
        ({"prism.hadamard.sign_widths": [256]}, CorruptModelError, "do not make up"),
        ({"prism.hadamard.sign_widths": [768]}, CorruptModelError, "lacks the 256 columns"),
        ({"prism.hadamard.sign_values": [2] * 768}, CorruptModelError, "not 1 and -1"),
        ({"prism.hadamard.sign_widths": [200, 568]}, CorruptModelError, "blocks of 128"),
    ],
)
def test_rotations_that_are_refused(change, error, said, tmp_path, files, monkeypatch):
    keys = files.Rotation.keys
    monkeypatch.setattr(files.Rotation, "keys", lambda self: keys(self) | change)
    model = files.model("llama", num_hidden_layers=1)
    files.write(tmp_path / "x.gguf", model, ["F16"], rotation=files.Rotation(128))
    with pytest.raises(error, match=re.escape(said)):
        Model.load(tmp_path / "x.gguf")


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("prism.hadamard.version", 1, "prism.hadamard.transform"),
        ("general.type", "adapter", "holds an adapter"),
        ("general.type", "mmproj", "another model"),
        ("qwen2.expert_count", 8, "qwen2.expert_count = 8"),
        ("qwen2.logit_scale", 0.5, "qwen2.logit_scale = 0.5"),
        ("qwen2.rope.scaling.type", "dynamic", "rope.scaling.type 'dynamic'"),
        ("qwen2.hidden_activation", "mish", "no activation 'mish'"),
        ("qwen2.rope.scaling.factor", "8", "rope.scaling.factor is '8'"),
        ("qwen2.block_count", 2**30, "make 1,073,741,824 layers"),
    ],
)
def test_keys_that_are_refused(key, value, said, tmp_path, files):
    files.write(tmp_path / "x.gguf", files.model("qwen2", num_hidden_layers=1), ["F16"], keys={key: value})
    with pytest.raises(LutraError, match=re.escape(said)):
        Model.load(tmp_path / "x.gguf")


# --- without the real libraries: files of random blocks ---------------------------------------------

BITNET = dict(
    model_type="bitnet",
    hidden_size=256,
    intermediate_size=256,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=80,
    max_position_embeddings=64,
)


def synthetic(path: Path, type: str, **config: Any) -> bytes:
    with path.open("wb") as f:
        peer_gguf.plan("tiny", BITNET | config, type).write(f)
    return path.read_bytes()


def read_all(path: Path) -> None:
    with open_checkpoint(path) as checkpoint:
        for name in checkpoint.names():
            checkpoint.tensor(name)


@pytest.mark.parametrize("type", peer_gguf.PEERS)
def test_what_the_bench_writes_for_llama_cpp_runs_here(type, tmp_path):
    synthetic(tmp_path / "x.gguf", type, model_type="llama", num_key_value_heads=4)
    with Model.load(tmp_path / "x.gguf") as m:
        got = m.session().logits(IDS)
        assert np.isfinite(got).all()
        assert got.any()
        assert tiny.relative(got, tiny.numpy_logits(m, IDS)) < 0.02
    convert(tmp_path / "x.gguf", tmp_path / "packed")
    with Model.load(tmp_path / "packed") as m:
        np.testing.assert_array_equal(m.session().logits(IDS), got)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (lambda b: b[:-100], CorruptModelError, "takes .* bytes, there are"),
        (lambda b: b[:700], CorruptModelError, "ends .* bytes too early"),
        (lambda b: b[:3] + b"E" + b[4:], UnsupportedModelError, "neither a Hugging Face"),
        (lambda b: b[:4] + b"\1" + b[5:], UnsupportedModelError, "GGUF version 1"),
        (lambda b: b[:4] + b"\0\0\0\3" + b[8:], UnsupportedModelError, "big-endian"),
        (lambda b: b[:15] + b"\1" + b[16:], CorruptModelError, "claims .* tensors"),
        (lambda b: b.replace(b"bitnet", b"mamba2"), UnsupportedModelError, "architecture 'mamba2'"),
        (lambda b: b.replace(b"ffn_norm", b"ffn_nnnn"), UnsupportedModelError, "no tensor"),
        (lambda b: b.replace(b"token_embd", b"token_type"), LutraError, "vocab_size|token_type"),
        (lambda b: b.replace(b"general.name", b"prism.hadama"), UnsupportedModelError, "prism.hadama"),
        (lambda b: b.replace(b"\x23\0\0\0", b"\x26\0\0\0"), UnsupportedModelError, "ggml's type TL1"),
        (lambda b: b.replace(b"\x23\0\0\0", b"\x16\0\0\0"), UnsupportedModelError, "ggml's type IQ2_S"),
    ],
)
def test_files_that_are_refused(change, error, said, tmp_path):
    data = synthetic(tmp_path / "x.gguf", "TQ2_0")
    Model.load(tmp_path / "x.gguf").close()
    (tmp_path / "x.gguf").write_bytes(change(data))
    with pytest.raises(error, match=said):
        Model.load(tmp_path / "x.gguf")


def test_other_types_under_a_known_number_are_refused(tmp_path):
    """Tencent's Q2_0C has 65 bytes where Q1_0 has 36: without a look at the sizes, its bits would be read as signs."""
    data = synthetic(tmp_path / "x.gguf", "TQ2_0")
    (tmp_path / "x.gguf").write_bytes(data.replace(b"\x23\0\0\0", b"\x29\0\0\0"))
    with pytest.raises(UnsupportedModelError, match=r"ggml's type 41, but not that of llama\.cpp's Q1_0"):
        Model.load(tmp_path / "x.gguf")


@given(
    flips=st.lists(st.tuples(st.integers(0, 2300), st.integers(0, 255)), min_size=1, max_size=4),
    length=st.none() | st.integers(0, 60_000),
    type=st.sampled_from(["TQ2_0", "Q4_0", "Q2_K", "IQ4_XS", "F16"]),
)
@settings(max_examples=150, deadline=None)
def test_damaged_files_end_in_named_errors(flips, length, type, tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / "x.gguf"
    data = bytearray(synthetic(path, type))
    for at, byte in flips:
        data[at] = byte
    path.write_bytes(data[:length])
    tracemalloc.start()
    try:
        read_all(path)
    except LutraError:
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < (4 << 20) + 16 * len(data)
