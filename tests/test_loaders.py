"""Checkpoints: what the real libraries write is read to the last bit, and no file breaks us."""

from __future__ import annotations

import contextlib
import json
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lutra.models.loaders import Checkpoint, open_checkpoint
from lutra.models.loaders.safetensors import SafetensorsFile, write_safetensors
from lutra.models.loaders.tensor import DTYPES, dtype_name
from lutra.runtime.errors import (
    CorruptModelError,
    LutraError,
    ModelClosedError,
    ModelNotFoundError,
    UnsupportedModelError,
)
from lutra.runtime.formats import BF16, Coded, to_float32

WEIGHTS = Path(__file__).parents[2] / "shared" / "assets" / "weights"
Q_PROJ = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def recipes() -> ModuleType:
    """The module of tiny checkpoints; importing it takes the real libraries, and seconds."""
    for library in ("torch", "transformers", "safetensors", "accelerate"):
        pytest.importorskip(library)
    import checkpoints

    return checkpoints


def raw_safetensors(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def put(path: Path, content: bytes) -> None:
    """Write a fresh file: many times faster than truncating, which makes some systems flush."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def claim(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.fixture
def hf_folder(tmp_path: Path) -> Path:
    """The least directory that opens."""
    write_hf(tmp_path, {"model_type": "llama"}, {"model.norm.weight": np.ones(4, np.float32)})
    return tmp_path


def write_hf(folder: Path, config: object, tensors: dict[str, np.ndarray]) -> None:
    (folder / "config.json").write_text(json.dumps(config))
    write_safetensors(
        folder / "model.safetensors",
        [(name, dtype_name(array), array.shape, array) for name, array in tensors.items()],
    )


# --- safetensors: what is written is read, here and by the library -------------------------------


def sample_arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    arrays = {f"some.{name}": rng.integers(0, 2, (3, 5)).astype(dtype) for name, dtype in DTYPES.items()}
    arrays["some.BF16"] = np.arange(15, dtype=np.uint16).reshape(3, 5).view(BF16)
    arrays["scalar"] = np.array(7, np.int64)
    arrays["empty"] = np.empty((0, 4), np.float32)
    arrays["aligned"] = rng.standard_normal((4, 16)).astype(np.float32)
    arrays["transposed"] = rng.standard_normal((4, 16)).astype(np.float16).T
    arrays['näme "with" signs'] = np.zeros(1, np.uint8)
    return arrays


def test_written_file_comes_back_through_our_reader(tmp_path: Path) -> None:
    arrays, path = sample_arrays(), tmp_path / "x.safetensors"
    write_safetensors(path, [(n, dtype_name(a), a.shape, a) for n, a in arrays.items()], {"who": "lutra"})
    file = SafetensorsFile(path)
    assert file.metadata == {"who": "lutra"}
    assert file.entries.keys() == arrays.keys()
    for name, array in arrays.items():
        read = file.entries[name].read()
        assert (type(read), read.dtype) == (type(array), array.dtype)
        np.testing.assert_array_equal(read, array)


def test_written_file_comes_back_through_the_library(tmp_path: Path) -> None:
    library = pytest.importorskip("safetensors.numpy")
    arrays, path = sample_arrays(), tmp_path / "x.safetensors"
    del arrays["some.BF16"]  # numpy has no such type for the library to give
    write_safetensors(path, [(n, dtype_name(a), a.shape, a) for n, a in arrays.items()])
    loaded = library.load_file(path)
    assert loaded.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(loaded[name], array)


def test_library_written_file_is_read(tmp_path: Path) -> None:
    library = pytest.importorskip("safetensors.numpy")
    arrays = {name: a for name, a in sample_arrays().items() if name != "some.BF16"}
    arrays["transposed"] = np.ascontiguousarray(arrays["transposed"])
    library.save_file(arrays, tmp_path / "x.safetensors", {"format": "np"})
    file = SafetensorsFile(tmp_path / "x.safetensors")
    for name, array in arrays.items():
        np.testing.assert_array_equal(file.entries[name].read(), array)


def test_whole_cache_lines_are_aligned_and_not_copied(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_safetensors(
        path,
        [("odd", "U8", (3,), b"abc"), *((f"w{i}", "U8", (64,), bytes(64)) for i in range(3))],
    )
    content = path.read_bytes()
    (length,) = struct.unpack_from("<Q", content)
    assert (8 + length) % 64 == 0
    header = json.loads(content[8 : 8 + length])
    assert all(header[f"w{i}"]["data_offsets"][0] % 64 == 0 for i in range(3))
    view = SafetensorsFile(path).entries["w1"].read()
    assert view.ctypes.data % 64 == 0
    assert not view.flags.owndata
    assert not view.flags.writeable


def test_misaligned_tensor_is_copied_to_an_aligned_place(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    header = {"a": claim("U8", [1], [0, 1]), "b": claim("F32", [2], [1, 9])}
    path.write_bytes(raw_safetensors(header, b"\1" + np.array([2, 3], "<f4").tobytes()))
    read = SafetensorsFile(path).entries["b"].read()
    assert read.flags.aligned
    assert read.tolist() == [2, 3]


def test_writer_holds_one_tensor_at_a_time(tmp_path: Path) -> None:
    size = 1 << 20

    def part(i: int) -> Callable[[], np.ndarray]:
        return lambda: np.full(size, i, np.uint8)

    tracemalloc.start()
    write_safetensors(tmp_path / "x.safetensors", [(f"t{i}", "U8", (size,), part(i)) for i in range(16)])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * size
    entries = SafetensorsFile(tmp_path / "x.safetensors").entries
    assert [int(entries[f"t{i}"].read()[-1]) for i in range(16)] == list(range(16))


def test_writer_takes_a_tensor_in_pieces(tmp_path: Path) -> None:
    def pieces() -> Iterator[np.ndarray]:
        yield np.zeros((1, 4), np.int8)
        yield np.ones((2, 4), np.int8)

    write_safetensors(tmp_path / "x.safetensors", [("t", "I8", (3, 4), pieces)])
    read = SafetensorsFile(tmp_path / "x.safetensors").entries["t"].read()
    assert read.sum(axis=1).tolist() == [0, 4, 4]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, MemoryError])
def test_interrupted_write_leaves_the_old_file_alone(tmp_path: Path, error: type) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"old")

    def fail() -> bytes:
        raise error

    with pytest.raises(error):
        write_safetensors(path, [("a", "U8", (64,), bytes(64)), ("b", "U8", (1,), fail)])
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize(
    "tensors",
    [
        [("a", "U8", (4,), b"123")],
        [("a", "F32", (1,), np.zeros(1, np.int32))],
        [("a", "U8", (1,), b"1"), ("a", "U8", (1,), b"1")],
        [("__metadata__", "U8", (1,), b"1")],
        [("a", "F4", (1,), b"1")],
    ],
    ids=["short", "wrong type", "twice", "reserved", "unknown type"],
)
def test_writer_refuses_contradictions(tmp_path: Path, tensors: list[Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        write_safetensors(tmp_path / "x.safetensors", tensors, {"k": "v"})
    assert list(tmp_path.iterdir()) == []


def test_full_disk_is_noticed_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(LutraError, match="0 MB free and the file needs 5 MB"):
        write_safetensors(tmp_path / "x.safetensors", [("a", "U8", (5_000_000,), lambda: 1 / 0)])
    assert list(tmp_path.iterdir()) == []


def test_write_into_a_missing_folder_is_our_error(tmp_path: Path) -> None:
    with pytest.raises(LutraError, match="cannot be written"):
        write_safetensors(tmp_path / "no" / "x.safetensors", [])


# --- safetensors: damage -------------------------------------------------------------------------


def good_file() -> bytes:
    header = {
        "__metadata__": {"format": "pt"},
        "a": claim("F32", [2], [0, 8]),
        "b": claim("BF16", [2, 2], [8, 16]),
        "c": claim("U8", [3], [16, 19]),
    }
    return raw_safetensors(header, bytes(19))


def read_all(path: Path) -> None:
    for entry in SafetensorsFile(path).entries.values():
        entry.read()


def test_truncation_anywhere_is_reported_with_the_missing_bytes(tmp_path: Path) -> None:
    path, good = tmp_path / "x.safetensors", good_file()
    path.write_bytes(good)
    read_all(path)
    for size in range(len(good)):
        put(path, good[:size])
        with pytest.raises(CorruptModelError) as caught:
            read_all(path)
        if size > len(good) - 19:
            assert f"promises {len(good) - size} more bytes" in str(caught.value)


def test_no_flipped_bit_of_the_header_escapes_as_another_error(tmp_path: Path) -> None:
    path, good = tmp_path / "x.safetensors", bytearray(good_file())
    for bit in range(8 * (len(good) - 19)):
        good[bit // 8] ^= 1 << bit % 8
        put(path, good)
        with contextlib.suppress(LutraError):
            read_all(path)
        good[bit // 8] ^= 1 << bit % 8


BAD_HEADERS = {
    "not JSON": b"{nonsense",
    "not UTF-8": b"\xff\xfe{}",
    "NaN": b'{"a": NaN}',
    "a list": [],
    "nested": b"[" * 100_000,
    "nested in a claim": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "digits": b'{"a": ' + b"9" * 10_000 + b"}",
    "name twice": b'{"a":%b,"a":%b}' % ((json.dumps(claim()).encode(),) * 2),
    "claim is null": {"a": None},
    "claim is a list": {"a": [1]},
    "claim without shape": {"a": {"dtype": "F32", "data_offsets": [0, 8]}},
    "dtype is a number": {"a": claim(5)},
    "shape is a number": {"a": claim(shape=2)},
    "shape is negative": {"a": claim(shape=[-2, -1])},
    "shape is a fraction": {"a": claim(shape=[2.0])},
    "shape is true": {"a": claim(shape=[True, 2])},
    "shape is text": {"a": claim(shape=["2"])},
    "shape is huge": {"a": claim(shape=[2**62, 2**62])},
    "shape is huge and empty": {"a": claim(shape=[0, 2**62, 2**62], offsets=[0, 0])},
    "shape has many dimensions": {"a": claim(shape=[1] * 100 + [2])},
    "shape does not fit": {"a": claim(shape=[3])},
    "offsets are three": {"a": claim(offsets=[0, 8, 8])},
    "offsets are reversed": {"a": claim(offsets=[8, 0])},
    "offsets are negative": {"a": claim(offsets=[-8, 0])},
    "offsets are huge": {"a": claim("U8", [2**40], [0, 2**40])},
    "offsets are beyond 64 bits": {"a": claim("U8", [1], [2**70, 2**70 + 1])},
    "offsets are null": {"a": claim(offsets=None)},
    "hole at the start": {"a": claim("U8", [7], [1, 8])},
    "hole inside": {"a": claim("U8", [2], [0, 2]), "b": claim("U8", [4], [4, 8])},
    "overlap": {"a": claim("U8", [6], [0, 6]), "b": claim("U8", [4], [4, 8])},
    "same place twice": {"a": claim(), "b": claim()},
    "bytes left over": {"a": claim("U8", [4], [0, 4])},
    "no tensors, some data": {},
    "metadata is a list": {"__metadata__": [], "a": claim()},
    "metadata holds a number": {"__metadata__": {"k": 1}, "a": claim()},
}


@pytest.mark.parametrize("what", BAD_HEADERS)
def test_bad_header_is_corrupt_and_costs_no_memory(tmp_path: Path, what: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw_safetensors(BAD_HEADERS[what], bytes(8)))
    tracemalloc.start()
    try:
        with pytest.raises(CorruptModelError) as caught:
            read_all(path)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()
    assert len(str(caught.value)) < 600


def test_unknown_element_type_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw_safetensors({"a": claim("F8_E5M2", [8])}, bytes(8)))
    with pytest.raises(UnsupportedModelError, match="F8_E5M2"):
        SafetensorsFile(path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"\x00\x01", "only 2 bytes"),
        (struct.pack("<Q", 2**63) + b"{}", "is no safetensors file"),
        (struct.pack("<Q", 10**7) + b"{}", "is cut short"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git-lfs pointer"),
        (b"<!DOCTYPE html><html><body>Please log in</body></html>", "web page"),
    ],
)
def test_what_downloads_leave_behind_is_named(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(CorruptModelError, match=says) as caught:
        SafetensorsFile(path)
    assert caught.value.hint


JSON = st.sampled_from(
    [
        *(None, True, 0, -1, 2, 10**30, 10**400, 0.5, float("nan"), float("inf")),
        *("", "x", "\ud800", "(", "a*"),
        *([], [1], [0, 0], ["("], [[]], [None, "x"]),
        *({}, {"a": 1}, {"type": 1}, {"rope_theta": "x"}),
    ]
)
SIZES = st.sampled_from([0, 1, 2, 3, 4, 8, 2**31, 2**63, 2**64, -1])


@st.composite
def headers(draw: st.DrawFn) -> dict[str, Any]:
    """A sound header of up to four tensors, with up to two of its values replaced."""
    header: dict[str, Any] = {}
    end = 0
    for name in "abcd"[: draw(st.integers(0, 4))]:
        shape = draw(st.lists(st.integers(0, 3), max_size=2))
        begin, end = end, end + int(np.prod(shape))
        header[name] = claim(draw(st.sampled_from(["U8", "I8", "BOOL"])), shape, [begin, end])
    for name in draw(st.lists(st.sampled_from([*header, "__metadata__"]), max_size=2)):
        table, key = (header, name) if draw(st.booleans()) else (header.get(name), None)
        if isinstance(table, dict):
            key = key or draw(st.sampled_from(["dtype", "shape", "data_offsets"]))
            odd = st.lists(SIZES, max_size=3) | JSON | st.sampled_from([*DTYPES, "F8_E4M3", "f32"])
            table[key] = draw(odd)
    return header


@settings(max_examples=400, deadline=None, derandomize=True)
@given(header=headers(), excess=st.sampled_from([0, 0, 0, 1, -1]))
def test_we_take_the_headers_that_the_library_takes(
    tmp_path_factory: pytest.TempPathFactory, header: dict[str, Any], excess: int
) -> None:
    library = pytest.importorskip("safetensors")
    path = tmp_path_factory.getbasetemp() / "fuzzed.safetensors"
    ends = [c["data_offsets"][1] for c in header.values() if is_sound(c)]
    size = max([0, *ends]) + excess
    put(path, raw_safetensors(header, bytes(max(0, size))))
    try:
        read_all(path)
        ours: type | None = None
    except LutraError as error:
        ours = type(error)
    try:
        with library.safe_open(path, "np") as file:
            assert set(file.keys()) == set(header) - {"__metadata__"}
        theirs = True
    except library.SafetensorError:
        theirs = False
    assert (ours is None) <= theirs
    assert theirs <= (ours in (None, UnsupportedModelError))


def is_sound(claim: object) -> bool:
    """Whether a claim's range is such that a file can be made for it."""
    match claim:
        case {"data_offsets": [int(), int() as end]}:
            return 0 <= end < 99
    return False


# --- Hugging Face directories --------------------------------------------------------------------


def assert_same_weights(checkpoint: Checkpoint, model: Any) -> None:
    """Every tensor of transformers' model is in the checkpoint, bit for bit, and nothing else."""
    state = model.state_dict()
    if model.config.tie_word_embeddings:
        del state["lm_head.weight"]
    assert set(checkpoint.names()) == set(state)
    for name, tensor in state.items():
        assert checkpoint.shape(name) == tuple(tensor.shape)
        np.testing.assert_array_equal(to_float32(checkpoint.tensor(name)), tensor.numpy())


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_dense(recipes: ModuleType, tmp_path: Path, dtype: str) -> None:
    model = recipes.dense_llama(tmp_path, getattr(recipes.torch, dtype))
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.kind == "dense"
        assert checkpoint.config["torch_dtype"] == dtype
        assert checkpoint.dtype(Q_PROJ) == {"float32": "F32", "float16": "F16"}.get(dtype, "BF16")
        assert checkpoint.metadata == {"format": "pt"}
        assert checkpoint.tokenizer_files is None
        assert_same_weights(checkpoint, model)
        config = checkpoint.config
    assert config["num_key_value_heads"] == 2
    assert config["head_dim"] == 16
    assert config["tie_word_embeddings"] is False
    assert (config["rope_theta"], config["rope_scaling"]) == (10000.0, None)
    assert "rope_parameters" not in config
    assert "dtype" not in config


def test_dense_tied_and_multi_head(recipes: ModuleType, tmp_path: Path) -> None:
    model = recipes.dense_llama(tmp_path, tie_word_embeddings=True, num_key_value_heads=4)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.config["tie_word_embeddings"] is True
    assert_same_weights(checkpoint, model)


def test_dense_sharded(recipes: ModuleType, tmp_path: Path) -> None:
    model = recipes.dense_llama(tmp_path, shard_size="30KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    assert_same_weights(open_checkpoint(tmp_path), model)


def test_both_layouts_of_config_read_the_same(recipes: ModuleType, tmp_path: Path) -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    recipes.dense_llama(tmp_path, rope_parameters={"rope_theta": 5e5, **scaling})
    new = open_checkpoint(tmp_path).config
    recipes.as_transformers_4(tmp_path)
    old = open_checkpoint(tmp_path).config
    assert (new["rope_theta"], new["rope_scaling"]) == (5e5, scaling)
    assert {**old, "transformers_version": None} == {**new, "transformers_version": None}


def config_of(folder: Path, **config: Any) -> dict[str, Any]:
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    return open_checkpoint(folder).config


def test_defaults_where_config_is_silent(hf_folder: Path) -> None:
    config = config_of(hf_folder, num_attention_heads=4, hidden_size=64)
    assert config == {
        "model_type": "llama",
        "num_attention_heads": 4,
        "hidden_size": 64,
        "rope_scaling": None,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
    }


def test_other_spellings_of_rope(hf_folder: Path) -> None:
    config = config_of(
        hf_folder,
        rope_parameters={"rope_theta": 7.0, "rope_type": "default", "partial_rotary_factor": 0.5},
        rope_scaling={"rope_type": "linear", "factor": 2.0},
    )
    assert (config["rope_theta"], config["partial_rotary_factor"]) == (7.0, 0.5)
    assert config["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}
    config = config_of(hf_folder, rope_scaling={"type": "linear", "factor": 2.0})
    assert config["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}
    config = config_of(
        hf_folder,
        rope_parameters={
            "full_attention": {"rope_type": "default", "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    )
    assert (config["rope_theta"], config["rope_local_base_freq"]) == (1e6, 1e4)
    scaled = {"rope_type": "linear", "factor": 2.0}
    with pytest.raises(UnsupportedModelError, match="sliding layers, as 'linear'"):
        config_of(hf_folder, rope_parameters={"full_attention": {}, "sliding_attention": scaled})


@pytest.mark.parametrize(
    "config",
    [
        {"rope_theta": "big"},
        {"rope_theta": -1},
        {"rope_theta": float("nan")},
        {"rope_theta": True},
        {"rope_scaling": [1]},
        {"rope_parameters": 5},
        {"rope_parameters": {"full_attention": 5}},
        {"quantization_config": "bitnet"},
        {"model_type": None},
    ],
    ids=str,
)
def test_impossible_config_is_corrupt(hf_folder: Path, config: dict[str, Any]) -> None:
    with pytest.raises(CorruptModelError):
        config_of(hf_folder, **config)


CONFIG_KEYS = [
    "model_type",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "dtype",
    "torch_dtype",
    "num_attention_heads",
    "hidden_size",
    "head_dim",
    "tie_word_embeddings",
    "architectures",
    "weight_bits",
    "input_bits",
    "quantization_config",
    "lutra",
]
QUANTIZATION = st.fixed_dictionaries(
    {"quant_method": st.just("bitnet")},
    optional={key: JSON for key in ("linear_class", "quantization_mode", "modules_to_not_convert", "use_rms_norm")},
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(config=st.dictionaries(st.sampled_from(CONFIG_KEYS), JSON | QUANTIZATION))
def test_any_config_opens_or_is_refused(tmp_path_factory: pytest.TempPathFactory, config: dict[str, Any]) -> None:
    folder = tmp_path_factory.getbasetemp() / "fuzzed"
    if not folder.exists():
        folder.mkdir()
        write_hf(folder, {}, {Q_PROJ: np.ones((4, 4), np.float32)})
    put(folder / "config.json", json.dumps({"model_type": "llama", **config}).encode())
    try:
        checkpoint = open_checkpoint(folder)
        checkpoint.tensor(Q_PROJ)
    except LutraError:
        return
    assert checkpoint.kind == "lutra" or checkpoint.config.get("rope_theta", 1) > 0


@pytest.mark.parametrize("text", ["", "{", "[1]", "\x00", "[" * 100_000, '"text"'])
def test_damaged_config_is_corrupt(hf_folder: Path, text: str) -> None:
    (hf_folder / "config.json").write_text(text)
    with pytest.raises(CorruptModelError, match=r"config\.json"):
        open_checkpoint(hf_folder)


def test_missing_files_are_named(hf_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="there is no model at"):
        open_checkpoint(tmp_path / "nowhere")
    (hf_folder / "config.json").rename(hf_folder / "other.json")
    with pytest.raises(ModelNotFoundError, match=r"has no config\.json"):
        open_checkpoint(hf_folder)
    (hf_folder / "other.json").rename(hf_folder / "config.json")
    (hf_folder / "model.safetensors").unlink()
    with pytest.raises(ModelNotFoundError, match="has no weights"):
        open_checkpoint(hf_folder)


@pytest.mark.parametrize(
    "left",
    ["model.safetensors.part", ".cache/huggingface/download/abc.incomplete"],
)
def test_unfinished_download_is_in_the_hint(hf_folder: Path, left: str) -> None:
    weights = hf_folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])
    (hf_folder / left).parent.mkdir(parents=True, exist_ok=True)
    (hf_folder / left).touch()
    with pytest.raises(CorruptModelError, match="promises 5 more bytes") as caught:
        open_checkpoint(hf_folder)
    assert Path(left).name in (caught.value.hint or "")
    weights.unlink()
    with pytest.raises(ModelNotFoundError) as missing:
        open_checkpoint(hf_folder)
    assert Path(left).name in (missing.value.hint or "")


def test_unfinished_download_in_the_cache_is_in_the_hint(tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "snapshots" / "main", tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (snapshot / "config.json").write_text("{}")
    (blobs / "abc.incomplete").touch()
    with pytest.raises(ModelNotFoundError) as caught:
        open_checkpoint(snapshot)
    assert "abc.incomplete" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("weight_map", "says"),
    [
        ({}, "no weight_map"),
        ([], "no weight_map"),
        ({"a": "../secret.safetensors"}, "names"),
        ({"a": "/etc/x.safetensors"}, "names"),
        ({"a": "sub\\x.safetensors"}, "names"),
        ({"a": "C:x.safetensors"}, "names"),
        ({"a": "x.bin"}, "names"),
        ({"a": 5}, "names"),
        ({"a": "one.safetensors", "b": "two.safetensors"}, r"lacks 1 of its 2 .*two\.safetensors"),
        ({"a": "one.safetensors", "z": "one.safetensors"}, "lacks 'z'"),
    ],
)
def test_bad_index_is_corrupt(tmp_path: Path, weight_map: object, says: str) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    write_safetensors(tmp_path / "one.safetensors", [("a", "U8", (1,), b"1")])
    index = json.dumps({"metadata": {}, "weight_map": weight_map})
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CorruptModelError, match=says):
        open_checkpoint(tmp_path)


def test_closing(hf_folder: Path) -> None:
    with open_checkpoint(hf_folder) as checkpoint:
        kept = checkpoint.tensor("model.norm.weight")
    assert isinstance(kept, np.ndarray)
    assert kept.sum() == 4
    with pytest.raises(ModelClosedError):
        checkpoint.tensor("model.norm.weight")
    checkpoint.close()
    with pytest.raises(KeyError):
        checkpoint.tensor("no such tensor")


def test_a_directory_of_our_own_is_given_as_it_is(tmp_path: Path) -> None:
    config = {"model_type": "llama", "lutra": {"version": 1}, "rope_parameters": {}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    parts = [("q.codes", "U8", (2, 64), bytes(128)), ("q.scale", "F32", (2,), bytes(8))]
    write_safetensors(tmp_path / "model.safetensors", parts, {"lutra": "1"})
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.kind == "lutra"
    assert checkpoint.config == config
    assert checkpoint.metadata == {"lutra": "1"}
    assert checkpoint.names() == ["q.codes", "q.scale"]
    assert (checkpoint.dtype("q.codes"), checkpoint.shape("q.codes")) == ("U8", (2, 64))


# --- BitNet --------------------------------------------------------------------------------------


def effective_weights(model: Any) -> dict[str, tuple[bool, np.ndarray]]:
    """What transformers multiplies with: tensor name -> (is it a BitNet layer, the weights)."""
    import torch
    from transformers.integrations import bitnet

    found = {}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        ternary = isinstance(module, (bitnet.BitLinear, bitnet.AutoBitLinear))
        if isinstance(module, bitnet.BitLinear):
            weight = bitnet.unpack_weights(weight, torch.float32) / module.weight_scale
        elif ternary and module.online_quant:
            weight = bitnet.WeightQuant.apply(weight)
        elif ternary:
            weight = weight * module.weight_scale
        if weight is not None:
            found[f"{name}.weight"] = ternary, weight.detach().numpy()
    if model.config.tie_word_embeddings:
        del found["lm_head.weight"]
    return found


def assert_same_effect(checkpoint: Checkpoint, model: Any) -> None:
    expected = effective_weights(model)
    assert set(checkpoint.names()) == set(expected)
    for name, (ternary, weights) in expected.items():
        read = checkpoint.tensor(name)
        assert isinstance(read, Coded) == ternary == (checkpoint.dtype(name) == "ternary"), name
        assert checkpoint.shape(name) == weights.shape == read.shape
        if isinstance(read, Coded):
            assert (read.codes.dtype, read.scale.dtype) == (np.int8, np.float32)
            np.testing.assert_array_equal(read.codes, np.sign(weights))
        # torch sums a latent matrix's mean in an order of its own: one unit in the last place
        np.testing.assert_allclose(to_float32(read), weights, rtol=2e-7, atol=0)
        np.testing.assert_array_equal(to_float32(checkpoint.unread(name)[3:21]), to_float32(read)[3:21])


@pytest.mark.parametrize(
    ("recipe", "kind"),
    [
        ("bitnet_online", "bitnet"),
        ("bitnet_packed", "bitnet"),
        ("bitnet_unpacked", "bitnet"),
        ("llama_bitlinear", "bitnet"),
        ("one_bit_llm", "1bitllm"),
    ],
)
def test_bitnet(recipes: ModuleType, tmp_path: Path, recipe: str, kind: str) -> None:
    model = getattr(recipes, recipe)(tmp_path)
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.kind == kind
        assert_same_effect(checkpoint, model)
        assert checkpoint.config["model_type"] == model.config.model_type
        assert checkpoint.config["hidden_act"] == model.config.hidden_act
        assert checkpoint.config["tie_word_embeddings"] == model.config.tie_word_embeddings
        assert checkpoint.config["rms_norm_eps"] == model.config.rms_norm_eps
        theta = model.config.rope_parameters["rope_theta"]
        assert checkpoint.config["rope_theta"] == theta


def test_bitnet_latents_in_bfloat16(recipes: ModuleType, tmp_path: Path) -> None:
    model = recipes.bitnet_online(tmp_path, recipes.torch.bfloat16)
    assert_same_effect(open_checkpoint(tmp_path), model)


@pytest.mark.parametrize(
    "skipped",
    [
        ["model.layers.1", "lm_head"],
        ["o_proj", "lm_head"],
        [r"model\.layers\.\d+\.mlp", "lm_head"],
        ["model.layers.0.mlp.gate", "lm_head"],
        ["self_attn|down_proj", "lm_head"],
    ],
    ids=str,
)
def test_modules_to_not_convert(recipes: ModuleType, tmp_path: Path, skipped: list[str]) -> None:
    recipes.bitnet_online(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"]["modules_to_not_convert"] = skipped
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert_same_effect(open_checkpoint(tmp_path), recipes.reference(tmp_path))


def bitnet_folder(folder: Path, tensors: dict[str, np.ndarray], **quantization: Any) -> Checkpoint:
    quantization = {"quant_method": "bitnet", **quantization}
    write_hf(folder, {"model_type": "llama", "quantization_config": quantization}, tensors)
    return open_checkpoint(folder)


ONE = np.ones(1, np.float32)
PACKED = np.full((2, 8), 0b00_01_10_01, np.uint8)


def test_the_two_meanings_of_weight_scale(tmp_path: Path) -> None:
    stored = np.array([0x4040], np.uint16).view(BF16)  # 3.0
    tensors = {Q_PROJ: PACKED, f"{Q_PROJ}_scale": stored}
    divided = bitnet_folder(tmp_path, tensors).tensor(Q_PROJ)
    multiplied = bitnet_folder(tmp_path, tensors, linear_class="autobitlinear").tensor(Q_PROJ)
    assert isinstance(divided, Coded)
    assert isinstance(multiplied, Coded)
    assert set(divided.scale.flat) == {np.float32(1) / np.float32(3)}
    assert set(multiplied.scale.flat) == {np.float32(3)}
    # the lowest bits are the first quarter of the rows
    assert divided.codes[:, 0].tolist() == [0, 0, 1, 1, 0, 0, -1, -1]


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({Q_PROJ: PACKED | 3, f"{Q_PROJ}_scale": ONE}, "code 3"),
        ({Q_PROJ: PACKED}, "but no .*weight_scale"),
        ({Q_PROJ: PACKED, f"{Q_PROJ}_scale": np.ones(2, np.float32)}, "not one number"),
        ({Q_PROJ: PACKED, f"{Q_PROJ}_scale": ONE * 0}, "cannot be a scale"),
        ({Q_PROJ: PACKED, f"{Q_PROJ}_scale": ONE * np.nan}, "cannot be a scale"),
        ({Q_PROJ: PACKED, f"{Q_PROJ}_scale": -ONE}, "cannot be a scale"),
        ({Q_PROJ: PACKED[0], f"{Q_PROJ}_scale": ONE}, "is no matrix"),
        ({Q_PROJ: np.full((4, 4), 0.5, np.float32), f"{Q_PROJ}_scale": ONE}, "other values"),
        ({Q_PROJ: np.full((4, 4), np.nan, np.float32), f"{Q_PROJ}_scale": ONE}, "other values"),
        ({Q_PROJ: np.ones((4, 4), np.float32)}, "but no .*weight_scale"),
    ],
)
def test_damaged_bitnet_is_corrupt(tmp_path: Path, tensors: dict[str, np.ndarray], says: str) -> None:
    with pytest.raises(CorruptModelError, match=says):
        bitnet_folder(tmp_path, tensors).tensor(Q_PROJ)


ONLINE = {"linear_class": "autobitlinear", "quantization_mode": "online"}


@pytest.mark.parametrize("latent", [np.inf, np.nan])
def test_latents_that_are_not_finite_are_corrupt(tmp_path: Path, latent: float) -> None:
    checkpoint = bitnet_folder(tmp_path, {Q_PROJ: np.full((4, 4), latent, np.float32)}, **ONLINE)
    with pytest.raises(CorruptModelError, match="not finite"):
        checkpoint.tensor(Q_PROJ)


def test_latents_of_zero_and_of_many_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    latent = np.random.default_rng(0).standard_normal((37, 16)).astype(np.float32)
    latents = {Q_PROJ: latent, "model.layers.0.self_attn.k_proj.weight": latent * 0}
    checkpoint = bitnet_folder(tmp_path, latents, **ONLINE)
    whole = checkpoint.tensor(Q_PROJ)
    monkeypatch.setattr("lutra.models.loaders.latent.BLOCK", 40)
    blocks = checkpoint.tensor(Q_PROJ)
    assert isinstance(whole, Coded)
    assert isinstance(blocks, Coded)
    np.testing.assert_array_equal(whole.codes, blocks.codes)
    np.testing.assert_array_equal(whole.scale, blocks.scale)
    assert not to_float32(checkpoint.tensor("model.layers.0.self_attn.k_proj.weight")).any()


@pytest.mark.parametrize(
    ("quantization", "says"),
    [
        ({"use_rms_norm": True}, "use_rms_norm"),
        ({"linear_class": "newlinear"}, "newlinear"),
        ({"quantization_mode": "sideways"}, "sideways"),
    ],
)
def test_unknown_bitnet_is_unsupported(tmp_path: Path, quantization: dict[str, Any], says: str) -> None:
    with pytest.raises(UnsupportedModelError, match=says):
        bitnet_folder(tmp_path, {}, **quantization)


def test_one_bit_llm_with_other_bits_is_unsupported(hf_folder: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="2-bit weights and 8-bit"):
        config_of(hf_folder, weight_bits=2, input_bits=8)


# --- kinds that are refused ----------------------------------------------------------------------

ELSEWHERE = (
    "aqlm",
    "vptq",
    "spqr",
    "higgs",
    "exl2",
    "exl3",
    "fp_quant",
    "sinq",
    "torchao",
    "quanto",
    "bitblas",
    "quark",
)


@pytest.mark.parametrize(
    ("config", "tensor", "says"),
    [
        ({"quantization_config": {"quant_method": "awq"}}, "a", "awq"),
        ({"quantization_config": {"quant_method": "compressed-tensors"}}, "a", "compressed"),
        ({"quantization_config": {"bits": 4}}, "a", "quantized"),
        ({"quantization_config": {"quant_method": "gptq", "checkpoint_format": "marlin"}}, "a.qweight", "marlin"),
        *[({"quantization_config": {"quant_method": name}}, "a", name) for name in ELSEWHERE],
        ({}, "x.q_proj.Qidxs x.q_proj.SU x.q_proj.SV", "QuIP#"),
        ({}, "x.q_proj.q_weight x.q_proj.q_scale", "EXL2"),
        ({}, "x.q_proj.trellis x.q_proj.suh", "EXL3"),
        ({}, "x.q_proj.codebooks x.q_proj.codes", "AQLM"),
        ({}, "x.q_proj.centroids.weight x.q_proj.centroids", "VPTQ"),
        ({}, "x.q_proj.weight._data x.q_proj.weight._scale", "quanto"),
        ({}, "x.q_proj.weight:_data", "torchao"),
    ],
)
def test_other_encodings_are_refused_by_name(tmp_path: Path, config: dict[str, Any], tensor: str, says: str) -> None:
    tensors = {name: np.ones(2, np.float32) for name in tensor.split()}
    write_hf(tmp_path, {"model_type": "llama", **config}, tensors)
    with pytest.raises(UnsupportedModelError, match=says) as caught:
        open_checkpoint(tmp_path)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("model.pt", b"PK\x03\x04" + bytes(26) + b"model/data.pkl", "PyTorch"),
        ("model.zip", b"PK\x03\x04" + bytes(26) + b"model/config.json", "archive"),
        ("model.tar", b"config.json".ljust(257, b"\0") + b"ustar", "archive"),
        ("model.tar.gz", b"\x1f\x8b\x08", "archive"),
        ("consolidated.00.pth", b"\x80\x02\x8a", "PyTorch"),
    ],
)
def test_other_containers_are_refused_by_name(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UnsupportedModelError, match=says):
        open_checkpoint(tmp_path / name)
    with pytest.raises(UnsupportedModelError, match=says):  # a directory without config.json
        open_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UnsupportedModelError, match=says):
        open_checkpoint(tmp_path)


def test_adapters_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(raw_safetensors({}, b""))
    with pytest.raises(UnsupportedModelError, match="adapter") as caught:
        open_checkpoint(tmp_path)
    assert "merge" in (caught.value.hint or "")


def test_other_weight_files_are_named(hf_folder: Path) -> None:
    (hf_folder / "model.safetensors").rename(hf_folder / "consolidated.safetensors")
    with pytest.raises(UnsupportedModelError, match=r"consolidated\.safetensors"):
        open_checkpoint(hf_folder)


def test_a_body_without_an_output_matrix_is_refused(recipes: ModuleType, tmp_path: Path) -> None:
    """As embedding models and classifiers are saved: tying it to the embedding would make another model."""
    recipes.dense_llama(tmp_path).model.save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match="lm_head"):
        open_checkpoint(tmp_path)


def test_one_file_of_a_directory_is_answered_with_the_directory(hf_folder: Path) -> None:
    for name in ("model.safetensors", "config.json"):
        with pytest.raises(UnsupportedModelError) as caught:
            open_checkpoint(hf_folder / name)
        assert str(hf_folder) in (caught.value.hint or "")


def test_an_empty_directory_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="neither"):
        open_checkpoint(tmp_path)


# --- llama2.c ------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("tied", [True, False])
def test_llama2c(recipes: ModuleType, tmp_path: Path, version: int, tied: bool) -> None:
    path = tmp_path / "model.bin"
    model = recipes.llama2c(path, version=version, tie_word_embeddings=tied)
    checkpoint = open_checkpoint(path)
    config = checkpoint.config
    assert checkpoint.kind == "llama2c"
    assert config["rope_interleaved"] is True
    for key, value in recipes.SHAPE.items():
        assert config[key] == value
    assert (config["tie_word_embeddings"], config["rms_norm_eps"]) == (tied, 1e-5)
    for name, tensor in model.state_dict().items():
        if tied and name == "lm_head.weight":
            assert name not in checkpoint
            continue
        expected = tensor.numpy()
        for projection, heads in (("q_proj", 4), ("k_proj", 2)):
            if projection in name:
                expected = expected.reshape(heads, 2, 8, 64).swapaxes(1, 2).reshape(-1, 64)
        np.testing.assert_array_equal(to_float32(checkpoint.tensor(name)), expected)


def llama2c_bytes(**changed: int) -> bytes:
    """A version 0 file of zeros: dim 8, two heads, one layer."""
    sizes = dict(dim=8, hidden=12, layers=1, heads=2, kv_heads=1, vocab=10, seq=6) | changed
    weights = 10 * 8 + 8 + 64 + 32 + 32 + 64 + 8 + 3 * 96 + 8 + 2 * 6 * 2
    return struct.pack("<7i", *sizes.values()) + bytes(4 * weights)


@pytest.mark.parametrize(
    ("content", "error", "says"),
    [
        (llama2c_bytes()[:-100], CorruptModelError, "promises 100 more bytes"),
        (llama2c_bytes()[:28], CorruptModelError, "more bytes"),
        (llama2c_bytes() + b"1234", CorruptModelError, "4 bytes follow"),
        (llama2c_bytes(layers=2**23), CorruptModelError, "more bytes"),
        (llama2c_bytes(layers=-1), UnsupportedModelError, "does not start"),
        (llama2c_bytes(heads=3), UnsupportedModelError, "does not start"),
        (llama2c_bytes()[:20], UnsupportedModelError, "does not start"),
        (b"", CorruptModelError, "empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", CorruptModelError, "git-lfs"),
        (b"24ka" + bytes(4) + llama2c_bytes(), UnsupportedModelError, "does not start"),
        (
            struct.pack("<Ii7iB", 0x616B3432, 2, 8, 12, 1, 2, 1, 10, 6, 1).ljust(400, b"\0"),
            UnsupportedModelError,
            "version 2",
        ),
    ],
)
def test_damaged_llama2c(tmp_path: Path, content: bytes, error: type, says: str) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(llama2c_bytes())
    assert open_checkpoint(path).shape("model.layers.0.self_attn.k_proj.weight") == (4, 8)
    path.write_bytes(content)
    with pytest.raises(error, match=says):
        open_checkpoint(path)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(flips=st.lists(st.tuples(st.integers(0, 27), st.integers(0, 255)), min_size=1, max_size=4))
def test_any_llama2c_header_opens_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, flips: list[tuple[int, int]]
) -> None:
    content = bytearray(llama2c_bytes())
    for place, value in flips:
        content[place] = value
    path = tmp_path_factory.getbasetemp() / "fuzzed.bin"
    put(path, bytes(content))
    try:
        checkpoint = open_checkpoint(path)
    except LutraError:
        return
    for name in checkpoint.names():
        checkpoint.tensor(name)


def test_llama2c_folder_must_hold_one_model(tmp_path: Path) -> None:
    (tmp_path / "tok512.bin").write_bytes(b"\x07\0\0\0" + b"\0\0\x80\xbf\x05\0\0\0<unk>" * 9)
    (tmp_path / "one.bin").write_bytes(llama2c_bytes())
    (tmp_path / "tok10.model").write_bytes(b"ten")
    (tmp_path / "tok99.model").touch()
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.tokenizer_files is not None
    assert checkpoint.tokenizer_files() == {"tokenizer.model": b"ten"}
    (tmp_path / "two.bin").write_bytes(llama2c_bytes())
    with pytest.raises(UnsupportedModelError, match="holds 2 llama2"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(("folder", "vocabulary", "width"), [("stories260K", 512, 64), ("babyllama-tok105", 105, 128)])
def test_real_llama2c_models(folder: str, vocabulary: int, width: int) -> None:
    if not (WEIGHTS / folder).exists():
        pytest.skip(f"the shared assets hold no {folder} here")
    with open_checkpoint(WEIGHTS / folder) as checkpoint:
        embedding = checkpoint.tensor("model.embed_tokens.weight")
        assert embedding.shape == (vocabulary, width)
        assert checkpoint.tokenizer().vocab_size == vocabulary
        assert checkpoint.tokenizer().eos_ids == {1, 2}
        assert checkpoint.config["num_hidden_layers"] == 5
        for name in checkpoint.names():
            assert 0.001 < np.abs(to_float32(checkpoint.tensor(name))).mean() < 5, name
