"""Every architecture: its plan against its own numpy forward(), and both against transformers."""

import itertools
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import tiny

from lutra import native
from lutra.models import deepseek_v2, lfm2, ministral3
from lutra.runtime import formats
from lutra.runtime.cache import KV_TYPES
from lutra.runtime.errors import CorruptModelError, UnsupportedModelError
from lutra.runtime.formats import Packed
from lutra.runtime.model import Model, architecture

IDS = [1, 5, 9, 42, 77, 3, 3, 127, 0, 64, 11, 12, 13]
ARCHITECTURES = tiny.architectures()
EVERY = 3  # an architecture meets every third format, and a format every third architecture; llama meets all


def name_of(value):
    return value.__name__.rpartition(".")[2] if isinstance(value, ModuleType) else str(value)


CASES = [
    (arch, format)
    for (i, arch), (j, format) in itertools.product(enumerate(ARCHITECTURES), enumerate(formats.names()))
    if (i + j) % EVERY == 0 or name_of(arch) == "llama"
]
CACHED = [
    (*case, kv)
    for n, case in enumerate(CASES)
    for kv in (KV_TYPES if name_of(case[0]) == "llama" else [list(KV_TYPES)[n % len(KV_TYPES)]])
]


@pytest.mark.parametrize(("arch", "format"), CASES, ids=name_of)
def test_plan_computes_what_forward_says(arch, format):
    with tiny.model(arch, format, head=tiny.head_format(format)) as m:
        got, expected = m.session().logits(IDS), tiny.numpy_logits(m, IDS)
    # A group's sum is a float: another rounding of it can tip the next matrix's int8 activations by a step. So it is in
    # the links of formats without kernels of their own.
    codec = formats.codec(format)
    tips = bool(codec.ACT_GROUP) or not codec.KERNEL
    assert tiny.relative(got, expected) < (3e-2 if tips else 1e-5)
    off = np.abs(got - expected).max(axis=1) / np.abs(expected).max()  # of a row, and by attention of rows behind it
    assert np.median(off) < 5e-3 or off[0] < 1e-5
    assert (got.argmax(1) == expected.argmax(1)).all()


@pytest.mark.parametrize(("arch", "format", "kv_type"), CACHED, ids=name_of)
def test_a_token_gets_the_same_bits_alone_and_in_a_batch(arch, format, kv_type):
    with tiny.model(arch, format, kv_type=kv_type) as m:
        whole, alone = m.session().logits(IDS), m.session()
        for token, expected in zip(IDS, whole, strict=True):
            np.testing.assert_array_equal(alone.feed([token]), expected)


@pytest.mark.parametrize("arch", ARCHITECTURES, ids=lambda a: a.__name__)
def test_one_row_of_logits_is_the_last_of_all(arch):
    with tiny.model(arch) as m:
        session, expected = m.session(), m.session().logits(IDS)
        np.testing.assert_array_equal(session.feed(IDS[:9]), expected[8])
        np.testing.assert_array_equal(session.feed(IDS[9:]), expected[12])


@pytest.mark.parametrize("arch", ARCHITECTURES, ids=lambda a: a.__name__)
def test_threads_and_cpu_levels_do_not_change_a_bit(arch):
    with tiny.model(arch, threads=1) as m:
        expected = m.session().logits(IDS)
        levels = ["scalar", *native.cpu_features()]
        for level, threads in itertools.product(levels, (1, 2, 5)):
            engine = native.Engine(threads, native.feature_mask(level))
            with Model(m.arch, m.config, m.weights, engine=engine) as other:
                np.testing.assert_array_equal(other.session().logits(IDS), expected, err_msg=f"{level}, {threads}")


@pytest.mark.parametrize(("kv_type", "most"), [("f32", 1e-5), ("f16", 1e-3), ("q8", 1e-2), ("q4", 0.1)])
def test_plan_and_forward_store_the_same_cache(kv_type, most):
    """But for numbers so close to the middle of two codes that they are rounded to either."""
    with tiny.model(ARCHITECTURES[0], "f32", kv_type=kv_type) as m:
        assert tiny.relative(m.session().logits(IDS), tiny.numpy_logits(m, IDS)) < most


@pytest.mark.parametrize(("kv_type", "most"), [("f16", 2e-3), ("q8", 0.05), ("q4", 0.5)])
def test_smaller_caches_are_close(kv_type, most):
    arch = ARCHITECTURES[0]
    with tiny.model(arch, "f32") as m, tiny.model(arch, "f32", kv_type=kv_type) as other:
        assert 0 < tiny.relative(other.session().logits(IDS), m.session().logits(IDS)) < most
        with pytest.raises(ValueError, match="kv_type is one of f32"):
            Model(m.arch, m.config, m.weights, kv_type="q9", engine=m.engine)


def test_unknown_architecture_is_refused_by_name():
    for name in ("mamba", "blocks", "no.such", "", None, 3, "__init__", "loaders"):
        with pytest.raises(UnsupportedModelError, match=repr(name) if name else "type"):
            architecture({"model_type": name})


@pytest.mark.parametrize("arch", ARCHITECTURES, ids=lambda a: a.__name__)
def test_every_weight_must_have_the_shape_the_configuration_says(arch):
    with tiny.model(arch) as m:
        last = next(role for role in m.weights if role.endswith(("down", "mixer_out")))
        norm = next(role for role in ("layers.0.attn_norm", "layers.0.attn_out_norm") if role in m.weights)
        first = next(role for role in m.weights if role.endswith(("qkv", "kv_a")))
        for role in {"embed", first, norm, last}:
            wrong = m.weights[role]
            if isinstance(wrong, Packed):
                *_, rows, cols = wrong.shape
                wrong = formats.pack(np.zeros((rows + 1, cols), np.float32), "f32")
            else:
                wrong = wrong[:-1]
            with pytest.raises(CorruptModelError, match=role):
                Model(arch, m.config, m.weights | {role: wrong})
        with pytest.raises(CorruptModelError, match="norm is missing"):
            Model(arch, m.config, {role: w for role, w in m.weights.items() if role != "norm"})


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"hidden_act": "mish"}, UnsupportedModelError),
        ({"rope_scaling": {"rope_type": "spiral"}}, UnsupportedModelError),
        ({"rope_scaling": {"rope_type": "yarn"}}, CorruptModelError),
        ({"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0]}}, CorruptModelError),
        ({"sliding_window": -1}, CorruptModelError),
        ({"sliding_window": 5, "max_window_layers": "1"}, CorruptModelError),
        ({"sliding_window": 5, "sliding_window_pattern": 0}, CorruptModelError),
        ({"sliding_window": 5, "layer_types": ["sliding_attention"]}, CorruptModelError),
        ({"layer_types": ["full_attention", "sliding_attention"]}, CorruptModelError),
        ({"layer_types": ["full_attention", "linear_attention"]}, UnsupportedModelError),
        *[({"partial_rotary_factor": share}, CorruptModelError) for share in (1.5, 0, 0.01, 0.2, "all")],
        (
            {
                "rope_scaling": {"rope_type": "longrope", "short_factor": [1.0] * 8},
                "original_max_position_embeddings": -5,
            },
            CorruptModelError,
        ),
        ({"num_hidden_layers": 0}, CorruptModelError),
        ({"num_hidden_layers": 10**9}, UnsupportedModelError),
        ({"hidden_size": -64}, CorruptModelError),
        ({"hidden_size": 1 << 40}, CorruptModelError),
        ({"hidden_size": "64"}, CorruptModelError),
        ({"hidden_size": None}, CorruptModelError),
        *[({"num_attention_heads": heads}, CorruptModelError) for heads in (3, 0, "4")],
        ({"num_key_value_heads": True}, CorruptModelError),
        ({"vocab_size": None}, CorruptModelError),
    ],
)
def test_configurations_that_make_no_model(change, error):
    with pytest.raises(error):
        ARCHITECTURES[0].Config.read(ARCHITECTURES[0].TINY | change)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"topk_method": "noaux_tc"}, UnsupportedModelError),
        ({"scoring_func": "tanh"}, UnsupportedModelError),
        ({"moe_layer_freq": 2}, UnsupportedModelError),
        ({"topk_method": "group_limited_greedy", "n_group": 4}, CorruptModelError),
        ({"topk_method": "group_limited_greedy", "n_group": 3, "topk_group": 1}, CorruptModelError),
        ({"v_head_dim": 40}, UnsupportedModelError),
        ({"kv_lora_rank": 0}, CorruptModelError),
        ({"qk_rope_head_dim": 7}, CorruptModelError),
    ],
)
def test_configurations_that_make_no_deepseek(change, error):
    with pytest.raises(error):
        deepseek_v2.Config.read(deepseek_v2.TINY | change)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"conv_bias": True}, UnsupportedModelError),
        ({"layer_types": None}, CorruptModelError),
        ({"layer_types": ["conv", 3, "conv"]}, CorruptModelError),
        ({"conv_L_cache": 0}, CorruptModelError),
        ({"block_auto_adjust_ff_dim": True, "block_multiple_of": 0}, CorruptModelError),
    ],
)
def test_configurations_that_make_no_lfm2(change, error):
    with pytest.raises(error):
        lfm2.Config.read(lfm2.TINY | change)


# ---- against transformers


def _recipes():
    checkpoints = pytest.importorskip("checkpoints", reason="needs torch and transformers")
    import torch

    c = checkpoints
    return {
        "llama-f32": lambda f: c.dense_llama(f),
        "llama-bf16": lambda f: c.dense_llama(f, torch.bfloat16),
        "llama-f16": lambda f: c.dense_llama(f, torch.float16),
        "llama-tied": lambda f: c.dense_llama(f, tie_word_embeddings=True),
        "llama-mha": lambda f: c.dense_llama(f, num_key_value_heads=4),
        "llama-sharded": lambda f: c.dense_llama(f, shard_size="60KB"),
        "llama-head-dim": lambda f: c.dense_llama(f, head_dim=24),
        "llama-bias": lambda f: c.dense_llama(f, attention_bias=True, mlp_bias=True),
        "llama3-rope": lambda f: c.dense_llama(
            f,
            rope_parameters={
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        ),
        "linear-rope": lambda f: c.dense_llama(
            f, rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
        ),
        "dynamic-rope": lambda f: c.dense_llama(
            f,
            max_position_embeddings=16,
            rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
        ),
        "bitnet-online": lambda f: c.bitnet_online(f),
        "bitnet-packed": lambda f: c.bitnet_packed(f),
        "bitnet-unpacked": lambda f: c.bitnet_unpacked(f),
        "llama-bitlinear": lambda f: c.llama_bitlinear(f),
        "1bitllm": lambda f: c.one_bit_llm(f),
        "yarn-rope": lambda f: c.dense_llama(
            f,
            max_position_embeddings=256,
            rope_parameters={
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        ),
        "qwen2": lambda f: c.dense(f, "Qwen2"),
        "qwen2-tied-bf16": lambda f: c.dense(f, "Qwen2", torch.bfloat16, tie_word_embeddings=True),
        "qwen3": lambda f: c.dense(f, "Qwen3", head_dim=24),
        "qwen3-bias": lambda f: c.dense(f, "Qwen3", attention_bias=True, tie_word_embeddings=True),
        "mistral": lambda f: c.dense(f, "Mistral", sliding_window=None),
        "mistral-window": lambda f: c.dense(f, "Mistral", sliding_window=5),
        "qwen2-window": lambda f: c.dense(
            f, "Qwen2", use_sliding_window=True, sliding_window=7, max_window_layers=1, num_hidden_layers=3
        ),
        "phi3-window": lambda f: c.dense(f, "Phi3", sliding_window=3),
        "gemma2": lambda f: c.gemma(f, "Gemma2", sliding_window=5, query_pre_attn_scalar=20),
        "gemma2-bf16": lambda f: c.gemma(
            f, "Gemma2", torch.bfloat16, head_dim=24, sliding_window=1, attn_logit_softcapping=0.5
        ),
        "gemma2-uncapped": lambda f: c.gemma(f, "Gemma2", attn_logit_softcapping=None, final_logit_softcapping=None),
        "gemma3": lambda f: c.gemma(f, "Gemma3", sliding_window=5, num_hidden_layers=7),
        "gemma3-untied": lambda f: c.gemma(
            f,
            "Gemma3",
            num_key_value_heads=1,
            head_dim=18,
            attention_bias=True,
            sliding_window=4,
            layer_types=["full_attention", "sliding_attention"],
            tie_word_embeddings=False,
            final_logit_softcapping=0.5,
            rope_parameters={
                "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 5e3},
            },
        ),
        "olmoe": lambda f: c.mixture(f, "Olmoe"),
        "opt": lambda f: c.opt(f),
        "opt-350m": lambda f: c.opt(f, torch.float16, do_layer_norm_before=False, word_embed_proj_dim=40),
        "opt-untied": lambda f: c.opt(
            f, tie_word_embeddings=False, enable_bias=False, num_hidden_layers=3, _remove_final_layer_norm=True
        ),
        "qwen3-moe": lambda f: c.mixture(f, "Qwen3Moe"),
        "qwen3-moe-mixed-bf16": lambda f: c.mixture(
            f,
            "Qwen3Moe",
            torch.bfloat16,
            num_hidden_layers=5,
            decoder_sparse_step=2,
            mlp_only_layers=[3],
            norm_topk_prob=True,
            head_dim=24,
            moe_intermediate_size=36,
            num_experts=40,
        ),
        "gemma3-with-images": lambda f: c.gemma_with_images(f),
        "gemma3-as-4": lambda f: c.gemma_of_transformers_4(f),
        "gemma4": lambda f: c.gemma4(f),
        "gemma4-mixture": lambda f: c.gemma4(
            f,
            num_kv_shared_layers=0,
            hidden_size_per_layer_input=0,
            attention_k_eq_v=True,
            num_global_key_value_heads=1,
            enable_moe_block=True,
            num_experts=7,
            top_k_experts=3,
            moe_intermediate_size=40,
            final_logit_softcapping=0.5,
        ),
        "gemma4-untied-bf16": lambda f: c.gemma4(
            f,
            dtype=torch.bfloat16,
            layer_types=None,
            num_hidden_layers=8,
            num_kv_shared_layers=1,
            use_double_wide_mlp=True,
            num_key_value_heads=1,
            tie_word_embeddings=False,
            rope_parameters={
                "full_attention": {"rope_type": "default", "rope_theta": 1e5},
                "sliding_attention": {"rope_type": "default", "rope_theta": 5e3},
            },
        ),
        "gemma4-unified": lambda f: c.gemma4(
            f, "Gemma4Unified", attention_k_eq_v=True, num_global_key_value_heads=1, global_head_dim=40
        ),
        "gemma4-with-images": lambda f: c.gemma4_with_images(f),
        "qwen2-vl": lambda f: c.with_images(f, "Qwen2VL", flat=True),
        "qwen3-vl": lambda f: c.with_images(f, "Qwen3VL"),
        "smolvlm": lambda f: c.with_images(f, "SmolVLM"),
        "llama-said-to-be-tied": lambda f: c.said_to_be_tied(f),
        "llama-wrapped": lambda f: c.renamed(f, lambda name: f"_orig_mod.{name}"),
        "llama-body": lambda f: c.renamed(f, lambda name: name.removeprefix("model."), tie_word_embeddings=True),
        "qwen3.5": lambda f: c.hybrid(f),
        "qwen3.5-tied-bf16": lambda f: c.hybrid(
            f, torch.bfloat16, tie_word_embeddings=True, linear_num_key_heads=4, linear_value_head_dim=16
        ),
        "qwen3.5-wide": lambda f: c.hybrid(
            f,
            layer_types=None,
            num_hidden_layers=5,
            linear_num_key_heads=1,
            linear_num_value_heads=6,
            linear_key_head_dim=10,
            linear_conv_kernel_dim=3,
            attention_bias=True,
        ),
        "qwen3.5-with-images": lambda f: c.hybrid_with_images(f),
        "phi3": lambda f: c.dense(f, "Phi3"),
        "phi3-partial": lambda f: c.dense(f, "Phi3", hidden_size=128, partial_rotary_factor=0.75),
        "phi3-longrope": lambda f: c.dense(
            f,
            "Phi3",
            max_position_embeddings=256,
            original_max_position_embeddings=64,
            rope_parameters={
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "short_factor": [1 + i / 10 for i in range(8)],
                "long_factor": [2.0 + i for i in range(8)],
            },
        ),
        "minicpm": lambda f: c.minicpm(f),
        "granite": lambda f: c.dense(
            f,
            "Granite",
            embedding_multiplier=12.0,
            residual_multiplier=0.22,
            attention_multiplier=0.1,
            logits_scaling=4.0,
            attention_bias=True,
        ),
        "smollm3": lambda f: c.dense(f, "SmolLM3", num_hidden_layers=5, tie_word_embeddings=True),
        "smollm3-listed": lambda f: c.dense(
            f, "SmolLM3", no_rope_layers=[0, 1], use_sliding_window=True, sliding_window=5
        ),
        "hunyuan": lambda f: c.dense(f, "HunYuanDenseV1", head_dim=24),
        "hunyuan-alpha": lambda f: c.dense(
            f,
            "HunYuanDenseV1",
            head_dim=16,
            rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "alpha": 1000.0, "factor": 1.0},
        ),
        "olmo2": lambda f: c.dense(f, "Olmo2"),
        "olmo3": lambda f: c.dense(
            f,
            "Olmo3",
            num_hidden_layers=5,
            sliding_window=5,
            rope_parameters={
                "full_attention": {
                    "rope_type": "yarn",
                    "rope_theta": 5e5,
                    "factor": 8.0,
                    "original_max_position_embeddings": 16,
                },
                "sliding_attention": {"rope_type": "default", "rope_theta": 5e5},
            },
        ),
        "exaone4": lambda f: c.dense(f, "Exaone4", num_hidden_layers=5, sliding_window=5, sliding_window_pattern=4),
        "exaone4-small": lambda f: c.dense(f, "Exaone4", layer_types=["full_attention"] * 2, sliding_window=None),
        "ministral": lambda f: c.dense(
            f, "Ministral", head_dim=16, sliding_window=5, layer_types=["sliding_attention", "full_attention"]
        ),
        "mistral3-with-images": lambda f: c.mistral_with_images(f),
        "ministral3": lambda f: c.dense(
            f,
            "Ministral3",
            max_position_embeddings=512,
            rope_parameters=ministral3.TINY["rope_scaling"] | {"rope_theta": 1e6},
        ),
        "gemma": lambda f: c.gemma(f, "Gemma", head_dim=24),
        "glm": lambda f: c.dense(f, "Glm", head_dim=16, attention_bias=True),
        "glm4": lambda f: c.dense(f, "Glm4", head_dim=16, attention_bias=True),
        "mixtral": lambda f: c.mixture(f, "Mixtral"),
        "qwen2-moe": lambda f: c.mixture(f, "Qwen2Moe", **c.SHARED),
        "qwen2-moe-mixed-bf16": lambda f: c.mixture(
            f,
            "Qwen2Moe",
            torch.bfloat16,
            **c.SHARED,
            num_hidden_layers=5,
            decoder_sparse_step=2,
            mlp_only_layers=[3],
            norm_topk_prob=True,
            tie_word_embeddings=True,
        ),
        "qwen3.5-moe": lambda f: c.hybrid(f, name="Qwen3_5Moe", **c.SHARED),
        "qwen3.5-moe-stacked": lambda f: c.stacked(f, c.hybrid(f, name="Qwen3_5Moe", **c.SHARED)),
        "qwen3-next": lambda f: c.hybrid(f, name="Qwen3Next", **c.SHARED),
        "qwen3-next-mixed": lambda f: c.hybrid(
            f,
            name="Qwen3Next",
            **c.SHARED,
            mlp_only_layers=[1],
            linear_num_value_heads=6,
            norm_topk_prob=False,
            tie_word_embeddings=True,
        ),
        "gpt-oss": lambda f: c.gpt_oss(f, num_hidden_layers=3),
        "gpt-oss-tied-bf16": lambda f: c.gpt_oss(
            f, torch.bfloat16, tie_word_embeddings=True, num_key_value_heads=1, intermediate_size=36
        ),
        "cohere": lambda f: c.dense(f, "Cohere"),
        "cohere-norms-bf16": lambda f: c.dense(
            f, "Cohere", torch.bfloat16, use_qk_norm=True, attention_bias=True, tie_word_embeddings=False
        ),
        "cohere2": lambda f: c.dense(f, "Cohere2", num_hidden_layers=5, sliding_window=5),
        "cohere2-listed": lambda f: c.dense(
            f,
            "Cohere2",
            sliding_window=3,
            num_key_value_heads=1,
            layer_types=["full_attention", "sliding_attention"],
        ),
        "arcee": lambda f: c.dense(f, "Arcee"),
        "arcee-bias-bf16": lambda f: c.dense(
            f, "Arcee", torch.bfloat16, mlp_bias=True, attention_bias=True, head_dim=24, tie_word_embeddings=True
        ),
        "starcoder2": lambda f: c.dense(f, "Starcoder2"),
        "starcoder2-window-bf16": lambda f: c.dense(
            f, "Starcoder2", torch.bfloat16, use_bias=False, sliding_window=5, tie_word_embeddings=False
        ),
        "nemotron": lambda f: c.dense(f, "Nemotron", head_dim=24),
        "nemotron-bias-bf16": lambda f: c.dense(f, "Nemotron", torch.bfloat16, mlp_bias=True, attention_bias=True),
        "stablelm": lambda f: c.dense(f, "StableLm", tie_word_embeddings=True),
        "stablelm-parallel-bf16": lambda f: c.dense(
            f, "StableLm", torch.bfloat16, use_parallel_residual=True, qk_layernorm=True, use_qkv_bias=True
        ),
        "ernie4.5": lambda f: c.dense(f, "Ernie4_5"),
        "ernie4.5-bias": lambda f: c.dense(f, "Ernie4_5", use_bias=True, head_dim=24, tie_word_embeddings=False),
        "granite-moe": lambda f: c.dense(f, "GraniteMoe", **c.GRANITE),
        "granite-moe-tied-bf16": lambda f: c.dense(
            f, "GraniteMoe", torch.bfloat16, **c.GRANITE | dict(num_experts_per_tok=1, tie_word_embeddings=True)
        ),
        "granite4": lambda f: c.with_mamba(f, "GraniteMoeHybrid", **c.GRANITE4),
        "granite4-mixture-bf16": lambda f: c.with_mamba(
            f,
            "GraniteMoeHybrid",
            torch.bfloat16,
            **c.GRANITE4
            | dict(num_local_experts=6, num_experts_per_tok=3, position_embedding_type="rope", mamba_n_groups=1),
            tie_word_embeddings=True,
            mamba_d_conv=3,
            mamba_proj_bias=True,
            time_step_limit=[0.3, 0.9],
        ),
        "falcon-h1": lambda f: c.with_mamba(f, "FalconH1", **c.FALCON),
        "falcon-h1-normed-bf16": lambda f: c.with_mamba(
            f,
            "FalconH1",
            torch.bfloat16,
            **c.FALCON,
            mamba_rms_norm=True,
            mamba_conv_bias=False,
            projectors_bias=True,
            attention_bias=True,
            mlp_bias=True,
            tie_word_embeddings=True,
        ),
        "falcon-h1-gated": lambda f: c.with_mamba(
            f, "FalconH1", **c.FALCON, mamba_rms_norm=True, mamba_norm_before_gate=False
        ),
        "nemotron-h": lambda f: c.with_mamba(f, "NemotronH", **c.NEMOTRON),
        "nemotron-h-bias-bf16": lambda f: c.with_mamba(
            f, "NemotronH", torch.bfloat16, **c.NEMOTRON | dict(n_groups=1), use_bias=True, mlp_bias=True
        ),
        "lfm2": lambda f: c.dense(
            f, "Lfm2", initializer_range=0.1, num_hidden_layers=3, layer_types=["conv", "full_attention", "conv"]
        ),
        "lfm2-untied-bf16": lambda f: c.dense(
            f,
            "Lfm2",
            torch.bfloat16,
            initializer_range=0.1,
            num_hidden_layers=5,
            full_attn_idxs=[0, 2],
            conv_L_cache=4,
            block_auto_adjust_ff_dim=False,
            tie_word_embeddings=False,
        ),
        "deepseek-v2": lambda f: c.dense(f, "DeepseekV2", **c.LATENT),
        "deepseek-v2-yarn-bf16": lambda f: c.dense(
            f,
            "DeepseekV2",
            torch.bfloat16,
            **c.LATENT
            | dict(
                q_lora_rank=None,
                v_head_dim=24,
                tie_word_embeddings=True,
                max_position_embeddings=512,
                rope_parameters={
                    "rope_type": "yarn",
                    "rope_theta": 10000.0,
                    "factor": 8.0,
                    "mscale": 0.707,
                    "mscale_all_dim": 0.707,
                    "original_max_position_embeddings": 64,
                },
            ),
        ),
        "deepseek-v2-groups": lambda f: c.dense(
            f, "DeepseekV2", **c.LATENT | c.GROUPS | dict(topk_method="group_limited_greedy")
        ),
        "deepseek-v3": lambda f: c.dense(f, "DeepseekV3", **c.LATENT | c.GROUPS),
        "deepseek-v3-guessing-bf16": lambda f: c.guessing(
            f,
            c.dense(
                f,
                "DeepseekV3",
                torch.bfloat16,
                **c.LATENT | dict(q_lora_rank=None, n_group=1, topk_group=1, norm_topk_prob=False, v_head_dim=24),
            ),
        ),
        "glm4-moe": lambda f: c.dense(f, "Glm4Moe", **c.CHOSEN, attention_bias=True),
        "glm4-moe-norms-bf16": lambda f: c.guessing(
            f, c.dense(f, "Glm4Moe", torch.bfloat16, **c.CHOSEN | c.GROUPS, use_qk_norm=True, head_dim=24)
        ),
        "glm4-moe-lite": lambda f: c.dense(f, "Glm4MoeLite", **c.LATENT | dict(v_head_dim=24)),
        "dots1": lambda f: c.dense(f, "Dots1", **c.CHOSEN, norm_topk_prob=True),
        "dots1-tied-bf16": lambda f: c.dense(
            f, "Dots1", torch.bfloat16, **c.CHOSEN | dict(n_shared_experts=1, tie_word_embeddings=True, head_dim=24)
        ),
        "lfm2-moe": lambda f: c.dense(f, "Lfm2Moe", **c.LFM2_MOE),
        "lfm2-moe-untied-bf16": lambda f: c.dense(
            f,
            "Lfm2Moe",
            torch.bfloat16,
            **c.LFM2_MOE | dict(use_expert_bias=False, routed_scaling_factor=1.5, tie_word_embeddings=False),
        ),
        "ernie4.5-moe": lambda f: c.dense(f, "Ernie4_5_Moe", **c.ERNIE_MOE),
        "ernie4.5-moe-mixed-bf16": lambda f: c.dense(
            f,
            "Ernie4_5_Moe",
            torch.bfloat16,
            **c.ERNIE_MOE | dict(num_hidden_layers=5, moe_layer_interval=2, use_bias=True, tie_word_embeddings=False),
        ),
        "hunyuan-moe": lambda f: c.dense(
            f, "HunYuanMoEV1", num_experts=6, moe_topk=3, head_dim=16, initializer_range=0.1
        ),
        "hunyuan-moe-tied-bf16": lambda f: c.dense(
            f,
            "HunYuanMoEV1",
            torch.bfloat16,
            num_experts=5,
            moe_topk=[2, 2],
            head_dim=24,
            initializer_range=0.1,
            tie_word_embeddings=True,
        ),
        "granite-moe-shared": lambda f: c.dense(f, "GraniteMoeShared", **c.GRANITE, shared_intermediate_size=72),
        "granite-moe-shared-none": lambda f: c.dense(f, "GraniteMoeShared", **c.GRANITE, shared_intermediate_size=0),
        "gpt-neox": lambda f: c.plain(f, "GPTNeoX"),
        "gpt-neox-in-turn-bf16": lambda f: c.plain(
            f, "GPTNeoX", torch.bfloat16, use_parallel_residual=False, attention_bias=False, hidden_act="gelu_new"
        ),
        "phi": lambda f: c.dense(f, "Phi"),
        "phi-mha-bf16": lambda f: c.dense(f, "Phi", torch.bfloat16, num_key_value_heads=4),
        "falcon": lambda f: c.plain(f, "Falcon"),
        "falcon-40b": lambda f: c.plain(
            f, "Falcon", new_decoder_architecture=True, num_kv_heads=2, ffn_hidden_size=160, tie_word_embeddings=False
        ),
        "falcon-one-norm-bf16": lambda f: c.plain(
            f,
            "Falcon",
            torch.bfloat16,
            new_decoder_architecture=True,
            num_kv_heads=1,
            num_ln_in_parallel_attn=1,
            bias=True,
        ),
        "falcon-in-turn": lambda f: c.plain(f, "Falcon", parallel_attn=False, multi_query=False, bias=True),
        "internlm3": lambda f: c.called(f, "internlm3", head_dim=24, attention_bias=True, mlp_bias=True),
        "helium": lambda f: c.dense(f, "Helium", head_dim=16),
        "cwm": lambda f: c.dense(f, "Cwm", head_dim=24, num_hidden_layers=5, sliding_window=5),
        "youtu": lambda f: c.dense(f, "Youtu", **c.YOUTU),
        "youtu-untied-bf16": lambda f: c.dense(
            f, "Youtu", torch.bfloat16, **c.YOUTU | dict(q_lora_rank=None, tie_word_embeddings=False)
        ),
        "qwen2.5-vl": lambda f: c.with_images(f, "Qwen2_5_VL"),
        "qwen2.5-vl-flat": lambda f: c.with_images(f, "Qwen2_5_VL", flat=True),
        "seed-oss": lambda f: c.dense(f, "SeedOss", attention_bias=True, head_dim=24),
    }


NAMES = [
    *["llama-f32", "llama-bf16", "llama-f16", "llama-tied", "llama-mha", "llama-sharded", "llama-head-dim"],
    *["llama-bias", "llama3-rope", "linear-rope", "dynamic-rope"],
    *["yarn-rope", "qwen2", "qwen2-tied-bf16", "qwen3", "qwen3-bias", "mistral", "mistral-window"],
    *["qwen2-window", "phi3-window", "gemma2", "gemma2-bf16", "gemma2-uncapped"],
    *["gemma3", "gemma3-untied", "gemma3-as-4", "gemma3-with-images", "qwen3-moe", "qwen3-moe-mixed-bf16"],
    *["gemma4", "gemma4-mixture", "gemma4-untied-bf16", "gemma4-unified", "gemma4-with-images"],
    *["olmoe", "opt", "opt-350m", "opt-untied", "qwen2-vl", "qwen3-vl", "smolvlm"],
    *["llama-said-to-be-tied", "llama-wrapped", "llama-body"],
    *["qwen3.5", "qwen3.5-tied-bf16", "qwen3.5-wide", "qwen3.5-with-images"],
    *["phi3", "phi3-partial", "phi3-longrope", "minicpm"],
    *["granite", "smollm3", "smollm3-listed", "hunyuan", "hunyuan-alpha", "olmo2", "olmo3", "exaone4", "exaone4-small"],
    *["gemma", "glm", "glm4", "mixtral", "gpt-oss", "gpt-oss-tied-bf16"],
    *["cohere", "cohere-norms-bf16", "cohere2", "cohere2-listed", "arcee", "arcee-bias-bf16"],
    *["starcoder2", "starcoder2-window-bf16", "nemotron", "nemotron-bias-bf16", "stablelm", "stablelm-parallel-bf16"],
    *["ernie4.5", "ernie4.5-bias", "granite-moe", "granite-moe-tied-bf16", "lfm2", "lfm2-untied-bf16"],
    *["granite4", "granite4-mixture-bf16", "falcon-h1", "falcon-h1-normed-bf16", "falcon-h1-gated"],
    *["nemotron-h", "nemotron-h-bias-bf16"],
    *["deepseek-v2", "deepseek-v2-yarn-bf16", "qwen2.5-vl", "qwen2.5-vl-flat"],
    *["lfm2-moe", "lfm2-moe-untied-bf16", "ernie4.5-moe", "ernie4.5-moe-mixed-bf16"],
    *["hunyuan-moe", "hunyuan-moe-tied-bf16", "granite-moe-shared", "granite-moe-shared-none"],
    *["gpt-neox", "gpt-neox-in-turn-bf16", "phi", "phi-mha-bf16"],
    *["falcon", "falcon-40b", "falcon-one-norm-bf16", "falcon-in-turn"],
    *["internlm3", "helium", "cwm", "youtu", "youtu-untied-bf16"],
    *["deepseek-v2-groups", "deepseek-v3", "deepseek-v3-guessing-bf16"],
    *["glm4-moe", "glm4-moe-norms-bf16", "glm4-moe-lite", "dots1", "dots1-tied-bf16"],
    *["qwen2-moe", "qwen2-moe-mixed-bf16", "qwen3.5-moe", "qwen3.5-moe-stacked", "qwen3-next", "qwen3-next-mixed"],
    *["ministral", "ministral3", "mistral3-with-images", "seed-oss"],
    *["bitnet-online", "bitnet-packed", "bitnet-unpacked", "llama-bitlinear", "1bitllm"],
]


@pytest.mark.parametrize("name", NAMES)
def test_logits_equal_those_of_transformers(name, tmp_path):
    """To 1e-4 of the largest logit: sums run in another order. The plan is held to 1e-5 of our own numpy."""
    reference = _recipes()[name](tmp_path)
    import torch

    with torch.no_grad():
        expected = reference(torch.tensor([IDS])).logits[0].float().numpy()
    with Model.load(tmp_path) as m:
        got = m.session().logits(IDS)
        assert tiny.relative(got, tiny.numpy_logits(m, IDS)) < 1e-5
    assert tiny.relative(got, expected) < 1e-4
    assert (got.argmax(1) == expected.argmax(1)).all()


GREEDY = [
    "qwen2",
    "qwen3",
    "mistral-window",
    "phi3-longrope",
    "minicpm",
    "olmo3",
    "gemma2",
    "gemma3",
    "gemma4",
    "qwen3-moe",
    "opt",
    "opt-350m",
    "gpt-oss",
    "qwen3-next",
    "granite4",
    "falcon-h1",
    "nemotron-h",
    "lfm2",
    "deepseek-v2",
    "qwen3.5",
    "qwen3.5-wide",
]


@pytest.mark.parametrize("name", GREEDY)
def test_greedy_tokens_are_those_of_transformers(name, tmp_path):
    reference = _recipes()[name](tmp_path)
    import torch

    with Model.load(tmp_path) as m:
        session = m.session()
        logits, ids = session.feed(IDS), list(IDS)
        for _ in range(48):
            ids.append(int(logits.argmax()))
            logits = session.feed(ids[-1:])
    with torch.no_grad():
        expected = reference(torch.tensor([ids[:-1]])).logits[0].argmax(1)
    assert ids[len(IDS) :] == expected[len(IDS) - 1 :].tolist()


@pytest.mark.parametrize("name", ["stories260K", "babyllama-tok105"])
def test_real_models_write_what_transformers_writes(name):
    """64 tokens, the likeliest each, after what begins a text."""
    folder = Path(__file__).parents[2] / "shared" / "assets" / "weights" / name
    if not folder.exists():
        pytest.skip(f"{name} is not there")
    for library in ("torch", "transformers", "accelerate"):
        pytest.importorskip(library, reason="the reference")
    import checkpoints
    import torch

    with Model.load(folder) as m:
        session, ids = m.session(), m.tokenizer.encode("Once upon a time")
        begun, logits = len(ids), session.feed(ids)
        for _ in range(64):
            ids.append(int(logits.argmax()))
            logits = session.feed(ids[-1:])
    with torch.no_grad():
        expected = checkpoints.told(folder)(torch.tensor([ids[:-1]])).logits[0].argmax(1)
    assert ids[begun:] == expected[begun - 1 :].tolist()
