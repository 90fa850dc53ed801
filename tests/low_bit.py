"""Recipes for tiny checkpoints of the low-bit kinds, packed here by their published rules, not by our readers.

Each writes a Llama with random weights into ``folder``, quantized, and returns the plain transformers Llama that holds
the very weights that the quantized ones stand for.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from checkpoints import SHAPE, Tensors, randomized
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from lutra.runtime.formats import nf4

Quantizer = Callable[[np.ndarray, np.random.Generator], tuple[np.ndarray, dict[str, np.ndarray]]]
"""float32 [out, in] to the weights it stands for and its tensors by ending."""


def quantized(
    folder: Path,
    quantize: Quantizer,
    settings: dict[str, Any] | None = None,
    *,
    head: bool = False,
    write: Callable[[Tensors, Path], None] | None = None,
    **config: Any,
) -> PreTrainedModel:
    """A Llama whose projections, and head if asked for, ``quantize`` has stored. settings: added to config.json."""
    model = randomized(LlamaForCausalLM, LlamaConfig(**{**SHAPE, **config}), seed=0)
    rng, tensors = np.random.default_rng(0), {}
    for name, tensor in model.state_dict().items():
        if not name.endswith("_proj.weight") and not (head and name == "lm_head.weight"):
            tensors[name] = tensor.clone()
            continue
        dense, parts = quantize(tensor.numpy(), rng)
        tensor.copy_(torch.from_numpy(np.ascontiguousarray(dense)))
        for ending, part in parts.items():
            stored = part if isinstance(part, torch.Tensor) else torch.from_numpy(np.ascontiguousarray(part))
            tensors[name.removesuffix("weight") + ending] = stored
    model.config.save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **(settings or {})}))
    (write or _safetensors)(tensors, folder)
    return model


def _safetensors(tensors: Tensors, folder: Path) -> None:
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def stream(codes: np.ndarray, bits: int) -> np.ndarray:
    """int32 [rows, n * bits / 32]: each row's codes as one stream of bits, lowest first."""
    planes = codes.astype(np.int64)[:, :, None] >> np.arange(bits) & 1
    packed = np.packbits(planes.astype(np.uint8).reshape(len(codes), -1), axis=1, bitorder="little")
    packed = np.pad(packed, [(0, 0), (0, -packed.shape[1] % 4)])
    return packed.view("<i4")


def tens(codes: np.ndarray) -> np.ndarray:
    """int32 [rows, n / 10]: ten codes of 3 bits to a word."""
    padded = np.pad(codes.astype(np.int64), [(0, 0), (0, -codes.shape[1] % 10)]).reshape(len(codes), -1, 10)
    return (padded << 3 * np.arange(10)).sum(axis=2).astype("<i4")


def rounded(
    w: np.ndarray, bits: int, group: int, sym: bool, order: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Codes [out, in], float16 scales and zeros [out, groups], every column's group, and the weights they stand for."""
    rows, cols = w.shape
    index = np.arange(cols) // (group if group > 0 else cols)
    if order is not None:
        index[order] = index.copy()
    top, scales, zeros = (1 << bits) - 1, [], []
    for g in range(index.max() + 1):
        low, high = np.minimum(w[:, index == g].min(axis=1), 0), np.maximum(w[:, index == g].max(axis=1), 0)
        if sym:
            low, high = np.minimum(low, -high), np.maximum(high, -low)
        scales.append(((high - low) / top).astype(np.float16))
        zeros.append(np.full(rows, 1 << bits - 1) if sym else np.rint(-low / scales[-1]))
    scale, zero = np.stack(scales, 1), np.clip(np.stack(zeros, 1), 0, top)
    codes = np.clip(np.rint(w / scale[:, index].astype(np.float32)) + zero[:, index], 0, top).astype(int)
    dense = (codes - zero[:, index]).astype(np.float32) * scale[:, index].astype(np.float32)
    return codes, scale, zero.astype(int), index, dense


def gptq(
    bits: int = 4,
    group: int = 32,
    *,
    second: bool = False,
    sym: bool = False,
    ordered: bool = False,
    spaced: bool = False,
    index: bool = True,
) -> Quantizer:
    """GPTQ's tensors. second: zeros as they are. ordered: desc_act. spaced: EfficientQAT's ten 3-bit codes a word."""

    def quantize(w: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        order = rng.permutation(w.shape[1]) if ordered else None
        codes, scale, zero, of, dense = rounded(w, bits, group, sym, order)
        if not second:
            zero = np.maximum(zero, 1)  # what quantizers of the first convention promise
            dense = (codes - zero[:, of]).astype(np.float32) * scale[:, of].astype(np.float32)
        pack = tens if spaced else lambda x: stream(x, bits)
        parts = {
            "qweight": pack(codes).T,
            "qzeros": pack(zero.T if second else zero.T - 1),
            "scales": scale.T,
            "g_idx": of.astype(np.int32),
        }
        return dense, parts if index else {k: v for k, v in parts.items() if k != "g_idx"}

    return quantize


def gptq_settings(bits: int = 4, group: int = 32, **more: Any) -> dict[str, Any]:
    """The configuration that goes with such tensors."""
    return {"quantization_config": {"quant_method": "gptq", "bits": bits, "group_size": group, **more}}


def fbi(w: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """FBI-LLM's latent weights with a scale and an offset per column."""
    offset = w.mean(axis=0, keepdims=True) + 0.1 * np.abs(w).mean()
    scale = np.abs(w - offset).mean(axis=0, keepdims=True)
    return scale * np.sign(w) + offset, {"weight": w.copy(), "wscale": scale, "wbias": offset}


def onebit(w: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """OneBit's signs, a bit for each that is minus, between two vectors."""
    signs = np.where(w < 0, -1, 1).astype(np.float32)
    columns, rows = (rng.uniform(0.2, 0.6, n).astype(np.float32) for n in w.shape[::-1])
    packed = np.packbits(signs < 0, axis=1, bitorder="little").view(np.int8)
    return rows[:, None] * signs * columns, {"weight": packed, "input_factor": columns, "weight_scale": rows}


def onebit_llama(folder: Path) -> PreTrainedModel:
    """OneBit's Llama: each projection's outputs go through a layer norm without weights."""
    model = quantized(folder, onebit, {"model_type": "bitllama", "architectures": ["BitLlamaForCausalLMInf"]})
    for name, module in model.named_modules():
        if name.endswith("_proj"):
            module.register_forward_hook(lambda _, __, y: torch.nn.functional.layer_norm(y, y.shape[-1:]))
    return model


def zeroed(quantize: Quantizer) -> Quantizer:
    """The same of weights some of which are exactly 0."""

    def first_zeroed(w: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        w = w.copy()
        w[1, :3] = 0
        return quantize(w, rng)

    return first_zeroed


def torch_bin(tensors: Tensors, folder: Path) -> None:
    """As training code saves: one pickle, the tensors of a model's state with its metadata."""
    torch.save(OrderedDict(tensors), folder / "pytorch_model.bin")


def torch_shards(tensors: Tensors, folder: Path) -> None:
    """The same in two files with an index."""
    names = sorted(tensors)
    files = {f"pytorch_model-0000{i + 1}-of-00002.bin": names[i::2] for i in range(2)}
    for file, own in files.items():
        torch.save({name: tensors[name] for name in own}, folder / file)
    index = {"weight_map": {name: file for file, own in files.items() for name in own}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def littlebit(rank: int = 40, products: int = 2, latent: bool = False) -> Quantizer:
    """LittleBit's factors, random: of one rank, in one or two products; packed, or as the floats they are signs of."""

    def quantize(w: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, Any]]:
        rows, cols = w.shape
        dense, parts = np.zeros(w.shape, np.float32), {}
        for mark in ("", "_R")[:products]:
            u, v = rng.standard_normal((rows, rank)).astype("f4"), rng.standard_normal((rank, cols)).astype("f4")
            u[0, 0] = 0  # a sign of +1
            scales = {
                name: torch.from_numpy((rng.standard_normal((1, n)) * 0.2).astype("f4")).bfloat16()
                for name, n in [("u1", rows), ("u2", rank), ("v1", rank), ("v2", cols)]
            }
            s = {name: scale.float().numpy() for name, scale in scales.items()}
            signs = np.where(u < 0, -1, 1) * (s["u2"] * s["v1"]) @ np.where(v < 0, -1, 1)
            dense += s["u1"].T * signs * s["v2"]
            parts |= {f"{name}{mark}": scale for name, scale in scales.items()}
            for name, factor in (("U", u), ("V", v)):
                if latent:
                    parts[f"{name}{mark}"] = factor
                    continue
                parts[f"{name}{mark}_packed"] = stream(factor < 0, 1)
                parts[f"{name}{mark}_shape"] = np.array(factor.shape)
        return dense, parts | {"_split_dim_final": np.array(rank), "_eff_bit_target": torch.tensor(0.5).bfloat16()}

    return quantize


def paretoq(bits: int) -> Quantizer:
    """ParetoQ's latent weights and clip values. bits: its w_bits, 0 for ternary."""

    def quantize(w: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        width = 2.0 if bits < 3 else 6.0 / (1 << bits)
        alpha = (np.abs(w).mean(axis=1, keepdims=True) * width).astype(np.float32)
        alpha[0] = -1  # is floored
        parts, a = {"weight": w.copy(), "weight_clip_val": alpha.copy()}, np.maximum(alpha, 1e-5)
        inside = np.clip(w / a, -0.99, 0.99)
        if bits == 0:
            dense = np.rint(inside * 1.5) / 1.5 * a
        elif bits == 1:
            dense = np.sign(w) * a
        elif bits == 2:
            dense = (np.rint(inside * 2 - 0.5) + 0.5) / 2 * a
        else:
            dense = np.clip(np.rint(w / a), -(1 << bits - 1), (1 << bits - 1) - 1) * a
        return dense.astype(np.float32), parts

    return quantize


def few_levels(group: int, binary: bool, dtype: torch.dtype) -> Quantizer:
    """Dense weights of one magnitude per group (0: per row), and zeros if not binary."""

    def quantize(w: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, Any]]:
        rows, cols = w.shape
        scale = torch.rand(rows, -(-cols // group) if group else 1, generator=torch.Generator().manual_seed(rows)) + 0.5
        spread = (scale * 0.04).to(dtype).float().numpy()[:, np.arange(cols) // (group or cols)]
        dense = spread * (np.where(w < 0, -1, 1) if binary else np.clip(np.rint(w * 40), -1, 1)).astype(np.float32)
        return dense, {"weight": torch.from_numpy(dense).to(dtype)}

    return quantize


def awq(group: int = 32) -> Quantizer:
    """AWQ's tensors in the layout gemm."""
    order = [0, 2, 4, 6, 1, 3, 5, 7]

    def pack(codes: np.ndarray) -> np.ndarray:
        eights = codes.astype(np.int64).reshape(len(codes), -1, 8)
        return sum(eights[:, :, output] << 4 * nibble for nibble, output in enumerate(order)).astype("<u4").view("<i4")

    def quantize(w: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        codes, scale, zero, _, dense = rounded(w, 4, group, sym=False)
        return dense, {"qweight": pack(codes.T), "qzeros": pack(zero.T), "scales": scale.T}

    return quantize


def compressed(bits: int = 4, group: int = 32, *, sym: bool = True, ordered: bool = False) -> Quantizer:
    """compressed-tensors' parts in the format pack-quantized."""

    def quantize(w: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        order = rng.permutation(w.shape[1]) if ordered else None
        codes, scale, zero, index, dense = rounded(w, bits, group, sym, order)
        parts = {"weight_packed": stream(codes, bits), "weight_scale": scale, "weight_shape": np.array(w.shape)}
        if not sym:
            parts["weight_zero_point"] = stream(zero.T, bits).T
        if ordered:
            parts["weight_g_idx"] = index.astype(np.int32)
        return dense, parts

    return quantize


def compressed_settings(group: int = 32, **more: Any) -> dict[str, Any]:
    """The configuration that goes with them."""
    groups = {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4, "group_size": group, **more}}}
    said = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": groups}
    return {"quantization_config": said}


def float8(
    block: tuple[int, int] | None = (32, 48),
    *,
    ending: str = "weight_scale_inv",
    powers: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Quantizer:
    """Weights as torch's float8_e4m3fn. block: rows and columns that share a scale, 0: all of them; None: one number.

    powers: scales are powers of two, as DeepSeek's later releases have them.
    """

    def quantize(w: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, Any]]:
        (rows, cols), (tall, wide) = w.shape, block or (0, 0)
        tall, wide = tall or rows, wide or cols
        up, left = -(-rows // tall), -(-cols // wide)
        padded = np.zeros((up * tall, left * wide), np.float32)
        padded[:rows, :cols] = np.abs(w)
        scale = torch.from_numpy(padded.reshape(up, tall, left, wide).max(axis=(1, 3)) / 448)
        scale = (torch.exp2(torch.ceil(torch.log2(scale))) if powers else scale).to(dtype)
        each = scale.float().repeat_interleave(tall, 0).repeat_interleave(wide, 1)[:rows, :cols]
        codes = (torch.from_numpy(w) / each).clamp(-448, 448).to(torch.float8_e4m3fn)
        parts = {"weight": codes, ending: scale if block else scale.reshape(())}
        return (codes.float() * each).numpy(), parts | {"input_scale": torch.ones(1)}

    return quantize


def int8(group: int = -1, *, sym: bool = True) -> Quantizer:
    """compressed-tensors' parts in the format int-quantized."""

    def quantize(w: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        codes, scale, zero, _, dense = rounded(w, 8, group, sym)
        parts = {"weight": (codes - 128).astype(np.int8), "weight_scale": scale}
        return dense, parts if sym else parts | {"weight_zero_point": (zero - 128).astype(np.int8)}

    return quantize


def bitsandbytes4(nested: bool = True, dtype: torch.dtype = torch.bfloat16, stored: str = "u1") -> Quantizer:
    """bitsandbytes' parts for NF4. nested: factors are codes. stored: the type that its bytes go by."""

    def quantize(w: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, Any]]:
        values, flat = np.array(nf4.VALUES, np.float32), w.reshape(-1, 64)
        absmax = np.abs(flat).max(axis=1).astype(np.float32)
        state = {"quant_type": "nf4", "blocksize": 64, "dtype": str(dtype).removeprefix("torch."), "shape": w.shape}
        parts: dict[str, Any] = {"weight.quant_map": values, "weight.absmax": absmax}
        if nested:
            table, larger = np.sort(rng.uniform(-1, 1, 256)).astype(np.float32), np.full(-(-len(absmax) // 256), 0.05)
            larger = larger.astype(np.float32)
            codes = np.abs((absmax[:, None] - np.float32(0.1)) / np.float32(0.05) - table).argmin(axis=1)
            absmax = table[codes] * np.repeat(larger, 256)[: len(codes)] + np.float32(0.1)
            state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": float(np.float32(0.1))}
            parts |= {"weight.absmax": codes.astype(np.uint8), "weight.nested_absmax": larger}
            parts |= {"weight.nested_quant_map": table}
        found = np.abs((flat / absmax[:, None])[:, :, None] - values).argmin(axis=2)
        dense = torch.from_numpy(values[found] * absmax[:, None]).to(dtype).float().numpy().reshape(w.shape)
        packed = (found.reshape(-1, 2) << np.array([4, 0])).sum(axis=1).astype(np.uint8).view(stored).reshape(-1, 1)
        said = np.frombuffer(json.dumps(state).encode(), np.uint8)
        return dense, parts | {"weight": packed, "weight.quant_state.bitsandbytes__nf4": said.copy()}

    return quantize


def bitsandbytes8() -> Quantizer:
    """bitsandbytes' parts for LLM.int8()."""

    def quantize(w: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        largest = np.abs(w).max(axis=1).astype(np.float32)
        codes = np.rint(w / largest[:, None] * 127).astype(np.int8)
        dense = codes * (largest / np.float32(127))[:, None]
        return dense, {"weight": codes, "SCB": largest, "weight_format": np.zeros((), np.uint8)}

    return quantize


def planes(count: int = 3, group: int = 32, offset: bool = True) -> Quantizer:
    """LUT-GEMM's binary-coded weights, random, in its kernels' layout."""

    def quantize(w: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        rows, cols = w.shape
        signs = rng.integers(0, 2, (count, rows, cols))
        alpha = rng.uniform(0.01, 0.05, (count, rows, cols // group)).astype(np.float16)
        bias = (rng.standard_normal((rows, cols // group)) * 0.01).astype(np.float16)
        wide = np.repeat(alpha, group, axis=2).astype(np.float32)
        dense = ((2 * signs - 1) * wide).sum(axis=0).astype(np.float32)
        words = stream(signs.reshape(-1, cols), 1).reshape(count, rows, -1)
        parts = {"bW": words.transpose(2, 0, 1), "alpha": alpha.transpose(2, 0, 1)}
        if offset:
            dense += np.repeat(bias, group, axis=1)
            parts["q_bias"] = bias.T
        return dense, parts

    return quantize


def dual(group: int = 32) -> Quantizer:
    """DB-LLM's two planes of 0 and 1."""

    def quantize(w: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        step = (np.abs(w).reshape(len(w), -1, group).max(axis=2) / 2).astype(np.float16)
        alphas = [2 * step, -step]
        first, second = (np.repeat(alpha, group, axis=1).astype(np.float32) for alpha in alphas)
        b1 = w - (first + second) / 2 >= 0
        b2 = -(w - first * b1 - second / 2) >= 0
        parts = {"wb1": stream(b1, 1), "wb2": stream(b2, 1), "alpha1": alphas[0], "alpha2": alphas[1]}
        return first * b1 + second * b2, parts

    return quantize
