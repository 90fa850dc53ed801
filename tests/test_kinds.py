"""Checkpoints of the low-bit kinds: read to the last bit, run as what they stand for, and refused when damaged."""

from __future__ import annotations

import contextlib
import io
import json
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from lutra.models.loaders import open_checkpoint
from lutra.models.loaders.safetensors import SafetensorsFile, write_safetensors
from lutra.models.loaders.tensor import dtype_name
from lutra.models.loaders.torch_zip import TorchFile
from lutra.models.loaders.words import unpack_words
from lutra.runtime.errors import CorruptModelError, LutraError, UnsupportedModelError
from lutra.runtime.formats import to_float32
from lutra.runtime.model import Model
from lutra.tools.convert import convert

IDS = [1, 5, 9, 42, 77, 3, 3, 127, 0, 64, 11, 12, 13]
# Matrices of these formats meet activations of 8 bits: each is off by up to 1/254 of its group's largest, which moves
# the logits of these models by 0.1 to 1.7 percent of the largest. The weights themselves are compared exactly, and the
# plan with our own forward(), which rounds activations alike.
ROUNDED = 0.03


@pytest.fixture(scope="module")
def low_bit() -> ModuleType:
    """The module of recipes; importing it takes the real libraries, and seconds."""
    for library in ("torch", "transformers", "safetensors", "accelerate"):
        pytest.importorskip(library)
    import low_bit

    return low_bit


def agrees(folder: Path, reference: Any, kind: str, exact: bool = True, most: float = ROUNDED) -> set[str]:
    """Check every matrix against the reference's, the logits, and a conversion's; the formats it found."""
    import torch

    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.kind == kind
        for name, parameter in reference.state_dict().items():
            ours = to_float32(checkpoint.tensor(name))
            theirs = parameter.numpy()
            most_off = 0 if exact else 1e-6 * np.abs(theirs).max()  # sums and products in another order
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=most_off, err_msg=name)
            np.testing.assert_array_equal(to_float32(checkpoint.unread(name)[3:21]), ours[3:21], err_msg=name)
        found = {checkpoint.dtype(name) for name in checkpoint.names() if name.endswith("_proj.weight")}
    with torch.no_grad():
        expected = reference(torch.tensor([IDS])).logits[0].numpy()
    with Model.load(folder) as m:
        got = m.session().logits(IDS)
        assert tiny.relative(got, tiny.numpy_logits(m, IDS)) < 5e-3
    assert tiny.relative(got, expected) < most
    convert(folder, folder / "packed")
    with Model.load(folder / "packed") as m:
        np.testing.assert_array_equal(m.session().logits(IDS), got)
    return found


def damaged(folder: Path, change: Any) -> None:
    """Rewrite model.safetensors after ``change`` has had its arrays by name."""
    file = SafetensorsFile(folder / "model.safetensors")
    arrays = {name: entry.read() for name, entry in file.entries.items()}
    bits = {name: entry.dtype for name, entry in file.entries.items() if entry.dtype == "F8_E4M3"}  # numpy has none
    arrays = {name: a.copy() for name, a in arrays.items()}  # type: ignore[union-attr]
    file.close()
    change(arrays)
    (folder / "model.safetensors").unlink()
    write_safetensors(
        folder / "model.safetensors", [(n, bits.get(n) or dtype_name(a), a.shape, a) for n, a in arrays.items()]
    )


def read_all(folder: Path) -> None:
    with open_checkpoint(folder) as checkpoint:
        for name in checkpoint.names():
            checkpoint.tensor(name)


@given(st.sampled_from([1, 2, 3, 4, 8]), st.integers(1, 3), st.integers(1, 70), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_words_are_streams_of_codes(bits, rows, count, seed):
    codes = np.random.default_rng(seed).integers(0, 1 << bits, (rows, count))
    planes = codes[:, :, None] >> np.arange(bits) & 1
    packed = np.packbits(planes.reshape(rows, -1).astype(np.uint8), axis=1, bitorder="little")
    words = np.pad(packed, [(0, 0), (0, -packed.shape[1] % 12)]).view("<i4")
    np.testing.assert_array_equal(unpack_words(words, bits, count), codes)
    with pytest.raises(ValueError, match="words do not hold"):
        unpack_words(words, bits, words.shape[1] * 32 // bits + 1)


# --- GPTQ -------------------------------------------------------------------------------------------

GPTQ = {
    "4 bits, first": (dict(bits=4), {}, {"q4g32z"}),
    "4 bits, second": (dict(bits=4, second=True), {"checkpoint_format": "gptq_v2"}, {"q4g32z"}),
    "4 bits, symmetric": (dict(bits=4, sym=True), {"sym": True}, {"q4g32"}),
    "2 bits": (dict(bits=2, group=64, second=True), {"checkpoint_format": "gptq_v2"}, {"q2g64z", "q2z"}),
    "3 bits": (dict(bits=3, group=-1, index=False), {}, {"q3z"}),
    "8 bits": (dict(bits=8), {}, {"q8g32z"}),
    "8 bits, symmetric": (dict(bits=8, sym=True, group=-1), {}, {"q8z"}),
    "in order": (dict(bits=4, ordered=True), {"desc_act": True}, {"ordered-q4g32z"}),
    "8 bits in order": (dict(bits=8, ordered=True, sym=True), {"desc_act": True}, {"ordered-q8g32"}),
}


@pytest.mark.parametrize("name", GPTQ)
def test_gptq(name, tmp_path, low_bit):
    how, more, formats = GPTQ[name]
    said = low_bit.gptq_settings(how["bits"], how.get("group", 32), **more)
    reference = low_bit.quantized(tmp_path, low_bit.gptq(**how), said, head=name == "in order")
    assert agrees(tmp_path, reference, "gptq") == formats


@pytest.mark.parametrize("name", ["4 bits, first", "2 bits", "3 bits", "8 bits", "in order"])
def test_gptqmodel_reads_the_same_weights(name, tmp_path, low_bit):
    """The recipes against the library that writes such files: else both sides of test_gptq could be wrong alike."""
    pytest.importorskip("gptqmodel", reason="the oracle of GPTQ's files")
    import torch
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    from gptqmodel.utils.model import convert_gptq_v1_to_v2_format_module

    how, _, _ = GPTQ[name]
    group = how.get("group", 32)
    reference = low_bit.quantized(tmp_path, low_bit.gptq(**how), low_bit.gptq_settings())
    file, stem = SafetensorsFile(tmp_path / "model.safetensors"), "model.layers.0.mlp.down_proj"
    layer = TorchLinear(
        bits=how["bits"], group_size=group, desc_act="ordered" in how, sym=False, in_features=160, out_features=64
    )
    for part in ("qweight", "qzeros", "scales", "g_idx"):
        if f"{stem}.{part}" in file.entries:
            setattr(layer, part, torch.from_numpy(np.array(file.entries[f"{stem}.{part}"].read())))
    if not how.get("second"):
        convert_gptq_v1_to_v2_format_module(layer, bits=how["bits"], pack_dtype=torch.int32)
    layer.post_init()
    theirs = layer.dequantize_weight().T.float().numpy()
    ours = reference.state_dict()[f"{stem}.weight"].numpy()
    np.testing.assert_allclose(theirs, ours, rtol=1e-3)  # it multiplies in float16


@pytest.mark.parametrize("packing", ["auto_round:auto_gptq", "auto_round", "auto_round:auto_awq"])
def test_auto_round(packing, tmp_path, low_bit):
    """In GPTQ's layout, with both of its conventions, or in AWQ's."""
    said = {"quant_method": "auto-round", "packing_format": packing, "bits": 4, "group_size": 32, "sym": False}
    awq = packing.endswith("awq")
    quantize = low_bit.awq() if awq else low_bit.gptq(second=packing == "auto_round")
    reference = low_bit.quantized(tmp_path, quantize, {"quantization_config": said})
    assert agrees(tmp_path, reference, "awq" if awq else "gptq") == {"q4g32z"}


def test_efficientqat_without_a_word_of_configuration(tmp_path, low_bit):
    reference = low_bit.quantized(tmp_path, low_bit.gptq(3, 32, second=True, spaced=True))
    assert agrees(tmp_path, reference, "gptq") == {"q3g32z"}


def test_gptq_of_old_keeps_its_configuration_in_a_file_of_its_own(tmp_path, low_bit):
    reference = low_bit.quantized(tmp_path, low_bit.gptq(4, 64))
    said = {"bits": 4, "group_size": 64, "desc_act": False}
    (tmp_path / "quantize_config.json").write_text(json.dumps(said))
    assert agrees(tmp_path, reference, "gptq") == {"q4g64z", "q4z"}


def test_matrices_of_one_gptq_model_may_differ(tmp_path, low_bit):
    """GPTQModel's ``dynamic``: other bits for some matrices; q, k and v of different formats make one weight."""
    four, eight, widths = low_bit.gptq(4), low_bit.gptq(8), []

    def quantize(w: Any, rng: Any) -> Any:
        widths.append(w.shape)
        return (eight if len(widths) % 7 == 3 else four)(w, rng)

    said = low_bit.gptq_settings(dynamic={r"+:.*\.v_proj": {"bits": 8}})
    assert agrees(tmp_path, low_bit.quantized(tmp_path, quantize, said), "gptq") == {"q4g32z", "q8g32z"}


Q = "model.layers.0.self_attn.q_proj"


def put(name: str, at: Any, value: Any) -> Any:
    def change(arrays: Any) -> None:
        arrays[f"{Q}.{name}"][at] = value

    return change


def cut(name: str) -> Any:
    def change(arrays: Any) -> None:
        arrays[f"{Q}.{name}"] = np.ascontiguousarray(arrays[f"{Q}.{name}"][:-1])

    return change


def drop(name: str) -> Any:
    def change(arrays: Any) -> None:
        del arrays[f"{Q}.{name}"]

    return change


@pytest.mark.parametrize(
    "change",
    [
        *[drop(name) for name in ("qweight", "qzeros", "scales")],
        *[cut(name) for name in ("qweight", "qzeros", "scales", "g_idx")],
        put("scales", 0, np.nan),
        put("scales", 0, np.inf),
        put("g_idx", 0, -1),
        put("g_idx", 0, 99),
        put("g_idx", 0, 1),
        put("g_idx", slice(None), 0),
    ],
)
def test_damaged_gptq_is_refused(tmp_path, low_bit, change):
    low_bit.quantized(tmp_path, low_bit.gptq(), low_bit.gptq_settings())
    damaged(tmp_path, change)
    with pytest.raises((CorruptModelError, UnsupportedModelError)):
        Model.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"checkpoint_format": "gptq_p"}, UnsupportedModelError, "gptq_p"),
        ({"checkpoint_format": "marlin"}, UnsupportedModelError, "marlin"),
        ({"bits": 3}, CorruptModelError, "3"),
        ({"group_size": 24}, None, ""),
    ],
)
def test_gptq_configurations(tmp_path, low_bit, change, error, says):
    low_bit.quantized(tmp_path, low_bit.gptq(), low_bit.gptq_settings(**change))
    if error is None:  # groups that the shapes tell
        return read_all(tmp_path)
    with pytest.raises(error, match=says):
        open_checkpoint(tmp_path)


# --- FBI-LLM, and PyTorch's files -------------------------------------------------------------------


@pytest.mark.parametrize("write", ["_safetensors", "torch_bin", "torch_shards"])
def test_fbi_llm(write, tmp_path, low_bit):
    reference = low_bit.quantized(tmp_path, low_bit.fbi, write=getattr(low_bit, write))
    assert agrees(tmp_path, reference, "fbi-llm", exact=False) == {"fbi"}


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (drop("wbias"), CorruptModelError, "wbias"),
        (drop("weight"), CorruptModelError, "weight"),
        (put("wscale", (0, 3), np.nan), CorruptModelError, "finite"),
        (put("wbias", (0, 3), np.inf), CorruptModelError, "finite"),
        (put("weight", (0, 3), np.nan), CorruptModelError, "not numbers"),
        (lambda a: a.update({f"{Q}.wscale": np.ones((64, 1), np.float32)}), UnsupportedModelError, "not one for each"),
    ],
)
def test_damaged_fbi_llm_is_refused(tmp_path, low_bit, change, error, says):
    low_bit.quantized(tmp_path, low_bit.fbi)
    damaged(tmp_path, change)
    with pytest.raises(error, match=says):
        read_all(tmp_path)


def test_onebit(tmp_path, low_bit):
    """Its norms make much of how activations are rounded: so the same weights as floats are run, too."""
    reference = low_bit.onebit_llama(tmp_path)
    assert agrees(tmp_path, reference, "onebit", exact=False, most=0.06) == {"onebit"}
    floats = {name: (tensor.numpy(), "F32") for name, tensor in reference.state_dict().items()}
    write_safetensors(tmp_path / "model.safetensors", [(n, t, a.shape, a) for n, (a, t) in floats.items()])
    with Model.load(tmp_path) as m, low_bit.torch.no_grad():
        expected = reference(low_bit.torch.tensor([IDS])).logits[0].numpy()
        assert tiny.relative(m.session().logits(IDS), expected) < 1e-4


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (drop("weight_scale"), CorruptModelError, "no weight_scale"),
        (drop("weight"), CorruptModelError, "no weight"),
        (put("input_factor", 3, np.nan), CorruptModelError, "finite"),
        (lambda a: a.update({f"{Q}.weight_scale": np.ones(63, np.float32)}), CorruptModelError, "scales for a matrix"),
        (lambda a: a.update({f"{Q}.weight": np.ones((64, 64), np.float32)}), UnsupportedModelError, "latent"),
    ],
)
def test_damaged_onebit_is_refused(tmp_path, low_bit, change, error, says):
    low_bit.onebit_llama(tmp_path)
    damaged(tmp_path, change)
    with pytest.raises(error, match=says):
        read_all(tmp_path)


@pytest.mark.parametrize(("kind", "format"), [("fbi-llm", "fbi-q2"), ("paretoq", "q2")])
def test_latent_weights_of_exactly_zero_stay_zero(kind, format, tmp_path, low_bit):
    recipe = {"fbi-llm": low_bit.fbi, "paretoq": low_bit.paretoq(1)}[kind]
    reference = low_bit.quantized(tmp_path, low_bit.zeroed(recipe), {"w_bits": 1})
    assert agrees(tmp_path, reference, kind, exact=False) == {format}


GROUPS = {
    "gptq 16": ("gptq", lambda b: (b.gptq(4, 16), b.gptq_settings(4, 16))),
    "gptq 24": ("gptq", lambda b: (b.gptq(3, 24, ordered=True), b.gptq_settings(3, 24, desc_act=True))),
    "awq 16": ("awq", lambda b: (b.awq(16), {"quantization_config": {"quant_method": "awq", "group_size": 16}})),
    "planes 16": ("bcq", lambda b: (b.planes(3, 16), {})),
}


@pytest.mark.parametrize("name", GROUPS)
def test_groups_that_no_format_has_are_kept_as_floats(name, tmp_path, low_bit):
    kind, recipe = GROUPS[name]
    quantize, settings = recipe(low_bit)
    reference = low_bit.quantized(tmp_path, quantize, settings)
    assert agrees(tmp_path, reference, kind) == {"F32"}


def test_torch_files_hold_what_torch_put_there(tmp_path, low_bit):
    import torch

    rng = torch.Generator().manual_seed(0)
    types = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32, torch.int16]
    tensors = {str(t): torch.randn(3, 5, generator=rng).mul(9).to(t) for t in [*types, torch.int8, torch.uint8]}
    base = torch.randn(6, 8, generator=rng)
    tensors |= {"turned": base.T, "part": base[2:4, 1:7], "one": torch.tensor(3.0), "none": torch.zeros(0, 4)}
    tensors |= {"shared": base, "bool": base > 0, "parameter": torch.nn.Parameter(base[1])}
    torch.save(tensors, tmp_path / "x.bin")
    file = TorchFile(tmp_path / "x.bin")
    for name, tensor in tensors.items():
        assert file.entries[name].shape == tuple(tensor.shape)
        array = file.entries[name].read()
        np.testing.assert_array_equal(to_float32(array), tensor.detach().float().numpy(), err_msg=name)
    file.close()


class Evil:
    def __reduce__(self) -> Any:
        return exec, ("raise SystemExit('ran')",)


@pytest.mark.parametrize(
    ("value", "error", "says"),
    [
        ({"a": Evil()}, UnsupportedModelError, "exec"),
        ({"a": 1}, CorruptModelError, "'a' is no tensor"),
        ([1, 2], CorruptModelError, "no table"),
        ({"a": {1, 2}}, UnsupportedModelError, "set"),
    ],
)
def test_pickles_that_want_more_than_tensors_are_refused(tmp_path, low_bit, value, error, says):
    import torch

    torch.save(value, tmp_path / "x.bin")
    with pytest.raises(error, match=says):
        TorchFile(tmp_path / "x.bin")


@pytest.mark.parametrize(
    ("how", "says"),
    [
        (dict(compression=zipfile.ZIP_DEFLATED), "not stored"),
        (dict(without="data.pkl"), "no data.pkl"),
        (dict(without="data/0"), "storage"),
        (dict(cut="data/0"), "storage"),
    ],
)
def test_torch_archives_must_be_whole_and_plain(tmp_path, low_bit, how, says):
    import torch

    torch.save({"a": torch.ones(4, 4)}, tmp_path / "x.bin")
    with zipfile.ZipFile(tmp_path / "x.bin") as old:
        records = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(tmp_path / "y.bin", "w", how.get("compression", zipfile.ZIP_STORED)) as new:
        for name, data in records.items():
            if not name.endswith(how.get("without", "-")):
                new.writestr(name, data[:-4] if name.endswith(how.get("cut", "-")) else data)
    with pytest.raises(CorruptModelError, match=says):
        TorchFile(tmp_path / "y.bin")


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_any_torch_file_opens_or_is_refused(tmp_path_factory, data):
    torch = pytest.importorskip("torch")
    path = tmp_path_factory.getbasetemp() / "fuzzed.bin"
    whole = io.BytesIO()
    torch.save({"a": torch.ones(2, 3), "b": torch.zeros(4, dtype=torch.bfloat16)}, whole)
    content = bytearray(whole.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] = data.draw(st.integers(0, 255))
    path.unlink(missing_ok=True)
    path.write_bytes(content[: data.draw(st.sampled_from([len(content)] * 4 + [len(content) // 2]))])
    try:
        file = TorchFile(path)
    except LutraError:
        return
    for entry in file.entries.values():
        assert entry.read().shape == entry.shape


# --- LittleBit --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "format"),
    [
        (dict(), "littlebit2r40"),
        (dict(products=1, rank=8), "littlebit1r8"),
        (dict(rank=32, latent=True), "littlebit2r32"),
    ],
)
def test_littlebit(how, format, tmp_path, low_bit):
    said = {"quant_func": "STEBinary", "eff_bit": 0.5, "kv_factor": 1.0}
    reference = low_bit.quantized(tmp_path, low_bit.littlebit(**how), said)
    assert agrees(tmp_path, reference, "littlebit", exact=False) == {format}


def test_littlebit_ranks_may_differ_and_biases_stay(tmp_path, low_bit):
    """kv_factor: k and v have ranks of their own beside q's."""
    wide, narrow = low_bit.littlebit(40), low_bit.littlebit(16)
    reference = low_bit.quantized(
        tmp_path,
        lambda w, rng: (narrow if len(w) == 32 else wide)(w, rng),
        attention_bias=True,
    )
    assert agrees(tmp_path, reference, "littlebit", exact=False) == {"littlebit2r40", "littlebit2r16"}


@pytest.mark.parametrize(
    "change",
    [
        *[drop(name) for name in ("U_packed", "V_shape", "u1_R", "v2", "U_R_packed")],
        *[cut(name) for name in ("U_packed", "V_packed", "U_shape", "V_R_packed", "u2")],
        put("U_shape", 1, 39),
        put("V_shape", 0, 1 << 62),
        put("v1", 0, 0x7FC0),
    ],
)
def test_damaged_littlebit_is_refused(tmp_path, low_bit, change):
    low_bit.quantized(tmp_path, low_bit.littlebit())
    damaged(tmp_path, change)
    with pytest.raises((CorruptModelError, UnsupportedModelError)):
        Model.load(tmp_path)


# --- ParetoQ, and dense checkpoints of few levels ---------------------------------------------------


@pytest.mark.parametrize(("bits", "format"), [(0, "q2"), (1, "b1"), (2, "q2"), (3, "q3"), (4, "q4")])
def test_paretoq(bits, format, tmp_path, low_bit):
    reference = low_bit.quantized(tmp_path, low_bit.paretoq(bits), {"w_bits": bits})
    assert agrees(tmp_path, reference, "paretoq", exact=False) == {format}


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (drop("weight"), CorruptModelError),
        (cut("weight_clip_val"), CorruptModelError),
        (put("weight_clip_val", 1, np.inf), CorruptModelError),
        (put("weight", (2, 2), np.nan), CorruptModelError),
        (None, UnsupportedModelError),
    ],
)
def test_damaged_paretoq_is_refused(tmp_path, low_bit, change, error):
    low_bit.quantized(tmp_path, low_bit.paretoq(3), {"w_bits": 3} if change else {"w_bits": 1.58})
    damaged(tmp_path, change or (lambda arrays: None))
    with pytest.raises(error):
        read_all(tmp_path)


@pytest.mark.parametrize(
    ("group", "binary", "dtype", "formats"),
    [
        (0, False, "float16", {"q2"}),
        (64, False, "bfloat16", {"q2", "q2g64"}),  # in 64 columns a group is a row
        (32, True, "float16", {"b1g32"}),
        (0, True, "bfloat16", {"b1"}),
    ],
)
def test_few_levels(group, binary, dtype, formats, tmp_path, low_bit):
    import torch

    quantize = low_bit.few_levels(group, binary, getattr(torch, dtype))
    reference = low_bit.quantized(tmp_path, quantize, head=True)
    assert agrees(tmp_path, reference, "few-level") == formats


@pytest.mark.parametrize("value", [0.03, np.nan, np.inf, 0.0])
def test_one_other_value_makes_a_matrix_dense(tmp_path, low_bit, value):
    import torch

    low_bit.quantized(tmp_path, low_bit.few_levels(0, True, torch.float32))
    damaged(tmp_path, put("weight", (17, 33), value))
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.dtype(f"{Q}.weight") == ("q2" if value == 0 else "F32")
        assert checkpoint.dtype(f"{Q.replace('q_proj', 'k_proj')}.weight") == "b1"


# --- AWQ, compressed-tensors, binary planes ---------------------------------------------------------


def test_awq(tmp_path, low_bit):
    said = {"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}}
    assert agrees(tmp_path, low_bit.quantized(tmp_path, low_bit.awq(), said), "awq") == {"q4g32z"}


def test_gptqmodel_unpacks_awq_alike(low_bit):
    packing = pytest.importorskip("gptqmodel.quantization.awq.utils.packing_utils", reason="the oracle of AWQ's files")
    import torch

    w = np.random.default_rng(0).standard_normal((64, 96)).astype(np.float32)
    dense, parts = low_bit.awq()(w, np.random.default_rng(0))
    parts = {name: torch.from_numpy(np.ascontiguousarray(part)) for name, part in parts.items()}
    theirs = packing.dequantize_gemm(**parts, bits=4, group_size=32)
    np.testing.assert_allclose(theirs.float().numpy().T, dense, rtol=1e-3, atol=1e-6)  # it multiplies in float16


COMPRESSED = {
    "4 bits": (dict(), {"q4g32"}),
    "4 bits, asymmetric": (dict(sym=False, group=64), {"q4g64z", "q4z"}),
    "8 bits, by rows": (dict(bits=8, group=-1), {"q8z"}),
    "3 bits": (dict(bits=3), {"q3g32"}),
    "in order": (dict(sym=False, ordered=True), {"ordered-q4g32z"}),
}


@pytest.mark.parametrize("name", COMPRESSED)
def test_compressed_tensors(name, tmp_path, low_bit):
    how, formats = COMPRESSED[name]
    reference = low_bit.quantized(
        tmp_path, low_bit.compressed(**how), low_bit.compressed_settings(how.get("group", 32))
    )
    assert agrees(tmp_path, reference, "compressed-tensors") == formats


FP8 = {
    "blocks": (dict(), {"quant_method": "fp8", "weight_block_size": [32, 48]}, {"F32"}),
    "powers of two": (dict(powers=True), {"quant_method": "fp8", "weight_block_size": [32, 48]}, {"BF16"}),
    "one scale": (dict(block=None, dtype="bfloat16"), {"quant_method": "fp8", "weight_block_size": None}, {"f8"}),
    "rows": (dict(block=(1, 0), ending="weight_scale"), {"quant_method": "fbgemm_fp8"}, {"f8"}),
    "wide blocks": (dict(block=(128, 128)), {"quant_method": "fp8", "weight_block_size": [128, 128]}, {"f8g128", "f8"}),
    "ModelOpt": (dict(block=None, ending="weight_scale"), {"quant_method": "modelopt", "quant_algo": "FP8"}, {"f8"}),
    "compressed": (
        dict(block=(1, 0), ending="weight_scale"),
        {
            "quant_method": "compressed-tensors",
            "format": "float-quantized",
            "config_groups": {"group_0": {"input_activations": {"num_bits": 8}, "weights": {"num_bits": 8}}},
        },
        {"f8"},
    ),
}


@pytest.mark.parametrize("name", FP8)
def test_float8(name, tmp_path, low_bit):
    how, said, formats = FP8[name]
    how = how | {"dtype": getattr(low_bit.torch, how.get("dtype", "float32"))}
    reference = low_bit.quantized(tmp_path, low_bit.float8(**how), {"quantization_config": said})
    kind = {"compressed": "compressed-tensors", "ModelOpt": "modelopt"}.get(name, "fp8")
    assert agrees(tmp_path, reference, kind, most=1e-4) == formats
    with open_checkpoint(tmp_path) as checkpoint:
        assert any("activations are not rounded" in note for note in checkpoint.notes)


def test_float8_without_scales(tmp_path, low_bit):
    def cast(w, rng):
        codes = low_bit.torch.from_numpy(w).to(low_bit.torch.float8_e4m3fn)
        return codes.float().numpy(), {"weight": codes}

    assert agrees(tmp_path, low_bit.quantized(tmp_path, cast), "dense", most=1e-4) == {"f8"}


@pytest.mark.parametrize(
    ("how", "part", "code"),
    [("blocks", "q", 0x7F), ("rows", "q", 0xFF), ("one scale", "o", 0x7F), ("wide blocks", "o", 0xFF)],
)
def test_float8_that_is_no_number_is_refused(how, part, code, tmp_path, low_bit):
    """q is joined with others, o used where it lies."""
    options, said, _ = FP8[how]
    options = options | {"dtype": low_bit.torch.float32}
    low_bit.quantized(tmp_path, low_bit.float8(**options), {"quantization_config": said})
    name = f"model.layers.1.self_attn.{part}_proj.weight"
    damaged(tmp_path, lambda arrays: arrays[name].__setitem__((-1, -1), code))
    with pytest.raises(CorruptModelError, match=f"{name}' has values that are not finite"):
        Model.load(tmp_path)


def test_float8_without_a_scale_that_is_no_number_is_refused(tmp_path, low_bit):
    low_bit.quantized(
        tmp_path, lambda w, _: (w, {"weight": low_bit.torch.from_numpy(w).to(low_bit.torch.float8_e4m3fn)})
    )
    damaged(tmp_path, put("weight", (0, 0), 0x7F))
    with pytest.raises(CorruptModelError, match="not finite"):
        Model.load(tmp_path)


@pytest.mark.parametrize(("how", "format"), [(dict(), "q8z"), (dict(sym=False, group=32), "q8g32z")])
def test_int8(how, format, tmp_path, low_bit):
    groups = {"group_0": {"input_activations": {"num_bits": 8}, "weights": {"group_size": how.get("group")}}}
    said = {"quant_method": "compressed-tensors", "format": "int-quantized", "config_groups": groups}
    reference = low_bit.quantized(tmp_path, low_bit.int8(**how), {"quantization_config": said})
    assert agrees(tmp_path, reference, "compressed-tensors") == {format}


BITSANDBYTES = {
    "nested": (dict(), "BF16"),
    "plain": (dict(nested=False, dtype="float16"), "F16"),
    "floats": (dict(dtype="float32", stored="f4"), "F32"),
}


@pytest.mark.parametrize("name", BITSANDBYTES)
def test_bitsandbytes_of_four_bits(name, tmp_path, low_bit):
    how, format = BITSANDBYTES[name]
    how = how | {"dtype": getattr(low_bit.torch, how.get("dtype", "bfloat16"))}
    said = {"quantization_config": {"quant_method": "bitsandbytes"}}
    reference = low_bit.quantized(tmp_path, low_bit.bitsandbytes4(**how), said)
    assert agrees(tmp_path, reference, "bitsandbytes", most=1e-3) == {format}


def test_bitsandbytes_of_eight_bits(tmp_path, low_bit):
    said = {"quantization_config": {"quant_method": "bitsandbytes"}}
    reference = low_bit.quantized(tmp_path, low_bit.bitsandbytes8(), said)
    assert agrees(tmp_path, reference, "bitsandbytes") == {"q8z"}


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_bitsandbytes_itself_means_the_same(kind, tmp_path, low_bit):
    functional = pytest.importorskip("bitsandbytes.functional", reason="the oracle of its files")

    def quantize(w, rng):
        values = low_bit.torch.from_numpy(w).bfloat16()
        packed, state = functional.quantize_4bit(values, quant_type=kind, compress_statistics=True)
        parts = {f"weight.{name}": tensor for name, tensor in state.as_dict(packed=True).items()}
        dense = functional.dequantize_4bit(packed, state).float().numpy()
        return dense, parts | {"weight": packed}

    said = {"quantization_config": {"quant_method": "bitsandbytes"}}
    # Its own CPU kernel misreads rows that are no whole blocks.
    reference = low_bit.quantized(tmp_path, quantize, said, hidden_size=128, intermediate_size=192)
    assert agrees(tmp_path, reference, "bitsandbytes", most=1e-3) == {"BF16"}


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_compressed_tensors_packs_alike(bits, low_bit):
    helpers = pytest.importorskip(
        "compressed_tensors.compressors.pack_quantized.helpers", reason="the oracle of its files"
    )
    import torch

    codes = np.random.default_rng(0).integers(0, 1 << bits, (5, 96))
    theirs = helpers.pack_to_int32(torch.from_numpy(codes - (1 << bits - 1)).to(torch.int8), bits)
    np.testing.assert_array_equal(low_bit.stream(codes, bits), theirs.numpy())


def four_bit_floats(kind: str) -> Any:
    """Random codes and scales, and what compressed-tensors makes of them."""
    fp4 = pytest.importorskip("compressed_tensors.compressors.nvfp4.helpers", reason="the oracle of its files")
    import torch
    from compressed_tensors.compressors.mx_utils import decompress_mx_scale
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import dequantize

    def quantize(w, rng):
        rows, cols = w.shape
        packed = torch.from_numpy(rng.integers(0, 256, (rows, cols // 2)).astype(np.uint8))
        parts, group = {"weight_packed": packed}, 32 if kind == "mxfp4" else 16
        args = dict(num_bits=4, type="float", strategy="group", group_size=group)
        whole = None
        if kind == "mxfp4":
            parts["weight_scale"] = torch.from_numpy(rng.integers(116, 122, (rows, cols // 32)).astype(np.uint8))
            scale = decompress_mx_scale(parts["weight_scale"]).float()
        else:
            drawn = torch.from_numpy(rng.uniform(1, 400, (rows, cols // 16)))
            parts["weight_scale"] = drawn.to(torch.float8_e4m3fn)
            parts["weight_global_scale"] = whole = torch.tensor([12345.678])
            scale, args["strategy"] = parts["weight_scale"].float(), "tensor_group"
        codes = fp4.unpack_fp4_from_uint8(packed, rows, cols, dtype=torch.float32)
        dense = dequantize(codes, scale, args=QuantizationArgs(**args), global_scale=whole, dtype=torch.float32)
        return dense.numpy(), parts

    return quantize


FP4_SIZES = dict(hidden_size=128, intermediate_size=192)


def fp4_settings(kind: str) -> dict[str, Any]:
    return {"quantization_config": {"quant_method": "compressed-tensors", "format": f"{kind}-pack-quantized"}}


@pytest.mark.parametrize(("kind", "format"), [("mxfp4", "mxfp4"), ("nvfp4", "nvfp4")])
def test_compressed_floats_of_four_bits(kind, format, tmp_path, low_bit):
    reference = low_bit.quantized(tmp_path, four_bit_floats(kind), fp4_settings(kind), **FP4_SIZES)
    assert agrees(tmp_path, reference, "compressed-tensors", exact=kind == "mxfp4") == {format}


@pytest.mark.parametrize("older", [False, True])
def test_modelopts_floats_of_four_bits(older, tmp_path, low_bit):
    def quantize(w, rng):
        dense, parts = four_bit_floats("nvfp4")(w, rng)
        whole = (1 / parts["weight_global_scale"]).reshape(())
        return dense, {
            "weight": parts["weight_packed"],
            "weight_scale": parts["weight_scale"],
            "weight_scale_2": whole,
            "input_scale": low_bit.torch.ones(()),
        }

    said = {"quant_algo": "NVFP4", "group_size": 16}
    settings = {} if older else {"quantization_config": {"quant_method": "modelopt", **said}}
    reference = low_bit.quantized(tmp_path, quantize, settings, **FP4_SIZES)
    if older:
        (tmp_path / "hf_quant_config.json").write_text(json.dumps({"quantization": said}))
    assert agrees(tmp_path, reference, "modelopt", exact=False) == {"nvfp4"}
    damaged(tmp_path, put("weight_scale", 0, 127))
    with pytest.raises(CorruptModelError, match="not finite"):
        Model.load(tmp_path)


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        *[(kind, cut(name)) for kind in ("mxfp4", "nvfp4") for name in ("weight_packed", "weight_scale")],
        *[("nvfp4", drop("weight_global_scale")), ("nvfp4", put("weight_global_scale", 0, 0))],
        ("nvfp4", put("weight_scale", 0, 255)),
        ("mxfp4", put("weight_scale", 0, 255)),
    ],
)
def test_damaged_floats_of_four_bits_are_refused(tmp_path, low_bit, kind, change):
    low_bit.quantized(tmp_path, four_bit_floats(kind), fp4_settings(kind), **FP4_SIZES)
    damaged(tmp_path, change)
    with pytest.raises(CorruptModelError):
        Model.load(tmp_path)


def hqq(low_bit: ModuleType, bits: int, axis: int = 1) -> Any:
    """The library's own matrices, as it saves them."""
    library = pytest.importorskip("hqq.core.quantize", reason="what writes its files")

    def quantize(w, rng):
        (rows, cols), torch = w.shape, low_bit.torch
        linear = torch.nn.Linear(cols, rows, bias=False)
        linear.weight.data = torch.from_numpy(w.copy())
        said = library.BaseQuantizeConfig(nbits=bits, group_size=64, axis=axis)
        state = library.HQQLinear(linear, said, compute_dtype=torch.float16, device="cpu").state_dict()
        packing = "".join(map(chr, state["packing"].tolist()))
        codes = library.Quantizer.unpack[packing](state["W_q"].data, dtype=torch.uint8)[: rows * cols // 64]
        dense = (codes.float() - state["zero"].float()) * state["scale"].float()
        parts = {name: tensor.data.clone() for name, tensor in state.items() if isinstance(tensor, torch.Tensor)}
        return dense.reshape(w.shape).numpy(), parts

    return quantize


HQQ = {"quantization_config": {"quant_method": "hqq"}}


@pytest.mark.parametrize(
    ("bits", "format"), [(1, "b1g64z"), (2, "q2g64z"), (3, "q3g64z"), (4, "q4g64z"), (8, "q8g64z")]
)
def test_hqq(bits, format, tmp_path, low_bit):
    reference = low_bit.quantized(tmp_path, hqq(low_bit, bits), HQQ, **FP4_SIZES)
    assert agrees(tmp_path, reference, "hqq") == {format}


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (put("axis", (), 0), UnsupportedModelError, "axis 0"),
        (put("packing", 0, 57), UnsupportedModelError, "9bit_u8"),
        (put("group_size", (), 7), CorruptModelError, "no sound description"),
        (cut("W_q"), CorruptModelError, "rows of W_q"),
        (cut("scale"), CorruptModelError, "scales"),
        (drop("zero"), CorruptModelError, "no zero"),
        (drop("shape"), UnsupportedModelError, "does not hold"),
        (put("zero", 0, np.inf), CorruptModelError, "not finite"),
    ],
)
def test_damaged_hqq_is_refused(change, error, says, tmp_path, low_bit):
    low_bit.quantized(tmp_path, hqq(low_bit, 4), HQQ, **FP4_SIZES)
    damaged(tmp_path, change)
    with pytest.raises(error, match=says):
        Model.load(tmp_path)


@pytest.mark.parametrize(
    ("recipe", "how", "kind", "format"),
    [
        ("planes", dict(), "bcq", "bcq3g32z"),
        ("planes", dict(count=2, offset=False), "bcq", "bcq2g32"),
        ("dual", dict(), "db-llm", "dbg32"),
    ],
)
def test_binary_planes(recipe, how, kind, format, tmp_path, low_bit):
    reference = low_bit.quantized(tmp_path, getattr(low_bit, recipe)(**how))
    assert agrees(tmp_path, reference, kind, exact=False) == {format}


@pytest.mark.parametrize(
    ("recipe", "change"),
    [
        *[("planes", drop(name)) for name in ("alpha",)],
        *[("planes", cut(name)) for name in ("alpha", "q_bias", "bW")],
        ("planes", put("alpha", 0, np.nan)),
        *[("dual", drop(name)) for name in ("wb2", "alpha1")],
        *[("dual", cut(name)) for name in ("wb1", "alpha2")],
        ("dual", put("alpha2", 0, np.inf)),
        *[("compressed", drop(name)) for name in ("weight_scale", "weight_shape")],
        *[("compressed", cut(name)) for name in ("weight_packed", "weight_scale", "weight_shape")],
        ("compressed", put("weight_shape", 1, 1 << 60)),
        ("compressed", put("weight_scale", 0, np.nan)),
        *[("int8", cut(name)) for name in ("weight", "weight_scale")],
        *[("bitsandbytes4", drop(f"weight.{name}")) for name in ("absmax", "quant_map", "nested_quant_map")],
        *[("bitsandbytes4", cut(f"weight.{name}")) for name in ("absmax", "quant_map", "nested_absmax")],
        *[("bitsandbytes4", cut(name)) for name in ("weight", "weight.quant_state.bitsandbytes__nf4")],
        *[("bitsandbytes8", cut(name)) for name in ("weight", "SCB")],
        ("int8", put("weight_scale", 0, np.nan)),
        *[("awq", drop(name)) for name in ("qzeros", "scales")],
        *[("awq", cut(name)) for name in ("qweight", "qzeros", "scales")],
    ],
)
def test_other_damaged_parts_are_refused(tmp_path, low_bit, recipe, change):
    said = {
        "compressed": low_bit.compressed_settings(),
        "int8": {"quantization_config": {"quant_method": "compressed-tensors", "format": "int-quantized"}},
        "bitsandbytes4": {"quantization_config": {"quant_method": "bitsandbytes"}},
        "bitsandbytes8": {"quantization_config": {"quant_method": "bitsandbytes"}},
        "awq": {"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 32}},
    }
    low_bit.quantized(tmp_path, getattr(low_bit, recipe)(), said.get(recipe))
    damaged(tmp_path, change)
    with pytest.raises((CorruptModelError, UnsupportedModelError)):
        Model.load(tmp_path)


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ({"quant_method": "awq", "version": "gemv"}, "gemv"),
        ({"quant_method": "compressed-tensors", "format": "mxfp8-quantized"}, "mxfp8"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "ModelOpt's 'NVFP4'"),
        ({"quant_method": "bitsandbytes"}, "bitsandbytes"),
        ({"quant_method": "hqq"}, "HQQ"),
        ({"quant_method": "auto-round", "packing_format": "auto_round:fp8_static"}, "auto-round"),
    ],
)
def test_other_layouts_are_refused_by_name(tmp_path, low_bit, said, says):
    low_bit.quantized(tmp_path, low_bit.awq(), {"quantization_config": said})
    with pytest.raises(UnsupportedModelError, match=says) as caught:
        open_checkpoint(tmp_path)
    assert caught.value.hint


words = st.sampled_from(["gptq", "gptq_v2", "gemm"])
anything = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | words,
    lambda some: st.lists(some, max_size=2) | st.dictionaries(st.sampled_from(["weights", "a"]), some, max_size=2),
    max_leaves=4,
)
KEYS = ["bits", "group_size", "format", "checkpoint_format", "desc_act", "dynamic", "config_groups", "w_bits"]
PARTS = [
    *["qweight", "qzeros", "scales", "g_idx", "weight_packed", "weight_scale", "weight_shape", "weight"],
    *[
        "W_q",
        "scale",
        "zero",
        "shape",
        "nbits",
        "axis",
        "packing",
        "group_size",
        "weight_scale_2",
        "weight_global_scale",
    ],
    *["wscale", "wbias", "weight_clip_val", "u1", "u2", "v1", "v2", "U_packed", "V", "bW", "alpha", "wb1", "wb2"],
]
SHAPES = st.lists(st.integers(1, 40), min_size=1, max_size=3)


@given(
    st.sampled_from(["gptq", "awq", "compressed-tensors", "hqq", "modelopt", "fp8", None]),
    st.dictionaries(st.sampled_from(KEYS), anything),
    st.dictionaries(
        st.sampled_from(PARTS),
        st.tuples(st.sampled_from(["i4", "f2", "f4", "i8", "u1"]), SHAPES),
        max_size=6,
    ),
)
@settings(max_examples=150, deadline=None)
def test_any_parts_and_settings_are_read_or_refused(tmp_path_factory, method, said, parts):
    folder = tmp_path_factory.getbasetemp() / "kinds"
    folder.mkdir(exist_ok=True)
    config = {"model_type": "llama", **said}
    if method:
        config["quantization_config"] = {"quant_method": method, **said, "format": said.get("format", "pack-quantized")}
    (folder / "config.json").write_text(json.dumps(config))
    arrays = {f"q.{name}": np.ones(shape, dtype) for name, (dtype, shape) in parts.items()}
    (folder / "model.safetensors").unlink(missing_ok=True)
    write_safetensors(folder / "model.safetensors", [(n, dtype_name(a), a.shape, a) for n, a in arrays.items()])
    with contextlib.suppress(LutraError):
        read_all(folder)


# --- MXFP4, as gpt-oss has it


def changed_tensors(folder: Path, change: Any) -> None:
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


MLP = "model.layers.1.mlp.experts"


def test_mxfp4(tmp_path, low_bit):
    """As transformers decodes it."""
    import checkpoints
    import torch

    reference = checkpoints.gpt_oss(tmp_path, packed=True)
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.kind == "mxfp4"
        for i, layer in enumerate(reference.model.layers):
            theirs = layer.mlp.experts
            for name, due in {
                "gate_proj.weight": theirs.gate_up_proj[4, :, 0::2].T,
                "up_proj.weight": theirs.gate_up_proj[4, :, 1::2].T,
                "down_proj.weight": theirs.down_proj[4].T,
                "up_proj.bias": theirs.gate_up_proj_bias[4, 1::2],
            }.items():
                name = f"model.layers.{i}.mlp.experts.4.{name}"
                assert checkpoint.dtype(name) == ("F32" if name.endswith("bias") else "mxfp4")
                np.testing.assert_array_equal(to_float32(checkpoint.tensor(name)), due.detach().numpy(), name)
    with torch.no_grad():
        expected = reference(torch.tensor([IDS])).logits[0].numpy()
    convert(tmp_path, tmp_path / "packed")
    with Model.load(tmp_path) as m, Model.load(tmp_path / "packed") as packed:
        got = m.session().logits(IDS)
        np.testing.assert_array_equal(packed.session().logits(IDS), got)
    off = np.abs(got - expected).max(axis=1) / np.abs(expected).max()
    assert np.median(off) < ROUNDED  # of a token: rounding can tip which experts one chooses


def test_mxfp4_of_scales_that_float16_lacks(tmp_path, low_bit):
    """Blocks of zeros may have any; others make all experts' matrices floats."""
    import checkpoints

    checkpoints.gpt_oss(tmp_path, packed=True, num_hidden_layers=2)

    def zeros(tensors: Any) -> None:
        tensors[f"{MLP}.down_proj_blocks"][3, 5, 1] = 0x80
        tensors[f"{MLP}.down_proj_scales"][3, 5, 1] = 0

    def small(tensors: Any) -> None:
        tensors[f"{MLP}.down_proj_blocks"][3, 5, 1] = 0x12
        tensors[f"{MLP}.down_proj_scales"][3, 5, 1] = 60

    for change, format, value in ((zeros, "mxfp4", 0), (small, "F32", 2.0**-67)):
        changed_tensors(tmp_path, change)
        with open_checkpoint(tmp_path) as checkpoint:
            matrix = f"{MLP}.3.down_proj.weight"
            assert checkpoint.dtype(matrix) == checkpoint.dtype(f"{MLP}.0.down_proj.weight") == format
            assert to_float32(checkpoint.tensor(matrix))[5, 32] == value
        with Model.load(tmp_path) as m:
            assert np.isfinite(m.session().logits(IDS)).all()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.pop(f"{MLP}.down_proj_scales"), "blocks and no scales"),
        (lambda t: t.pop(f"{MLP}.down_proj_blocks"), "scales and no blocks"),
        (lambda t: t.update({f"{MLP}.down_proj_blocks": t[f"{MLP}.down_proj_blocks"][:, :-1]}), "scales"),
        (lambda t: t.update({f"{MLP}.down_proj_blocks": np.zeros((7, 0, 2, 16), np.uint8)}), "has the shape"),
        (lambda t: t[f"{MLP}.down_proj_scales"].fill(255), "no numbers"),
        (lambda t: t.update({f"{MLP}.gate_up_proj_bias": t[f"{MLP}.gate_up_proj_bias"][:, 1:]}), "as many others"),
        (lambda t: t.update({f"{MLP}.gate_up_proj_bias": t[f"{MLP}.gate_up_proj_bias"][1:]}), "some have none"),
    ],
)
def test_damaged_mxfp4_is_refused(tmp_path, low_bit, change, says):
    import checkpoints

    checkpoints.gpt_oss(tmp_path, packed=True)
    changed_tensors(tmp_path, change)
    with pytest.raises(CorruptModelError, match=says):
        Model.load(tmp_path)
