"""The native library's packing against the formats' layouts, spelled out in numpy; and in pieces of any size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from lutra import native
from lutra.models import llama
from lutra.models.loaders.checkpoint import Checkpoint, Entry
from lutra.models.loaders.words import unpack_words
from lutra.models.weights import pack_roles, plan_roles, tensors_of
from lutra.runtime import formats
from lutra.runtime.formats import Coded, Unread, _blocks, q8

LAYOUTS = [(1, 32), (2, 32), (2, 16), (3, 32), (4, 32), (4, 16), (5, 32), (6, 32), (6, 16), (8, 32)]


def padded(codes: np.ndarray, cols: int, with_: int = 0) -> np.ndarray:
    """In blocks of 16 rows and groups of so many columns, in steps of four: [blocks, 16, groups, steps, 4]."""
    rows = -(-codes.shape[0] // 16) * 16
    whole = np.full((rows, -(-codes.shape[1] // cols) * cols), with_, np.int64)
    whole[: codes.shape[0], : codes.shape[1]] = codes
    return whole.reshape(rows // 16, 16, -1, cols // 4, 4)


def laid_out(codes: np.ndarray, bits: int, chunk: int) -> np.ndarray:
    """_uniform.py's layout, vector by vector."""
    steps, vectors = padded(codes, chunk), []
    low = 4 if bits >= 4 else 2 if bits >= 2 else 1
    for width, shift in [(low, 0), (bits - low, low)] if bits > low else [(low, 0)]:
        field, each = steps >> shift & (1 << width) - 1, 8 // width
        for first in range(0, chunk // 4, each):
            vectors.append(sum(field[:, :, :, first + f] << width * f for f in range(each)))
    return np.stack(vectors, axis=1).transpose(0, 3, 1, 2, 4).reshape(len(steps), -1).astype(np.uint8)


@pytest.mark.parametrize(("bits", "chunk"), LAYOUTS)
@pytest.mark.parametrize(("rows", "cols", "signed"), [(1, 1, False), (16, 64, False), (35, 77, True), (16, 33, True)])
def test_codes_lie_as_their_layout_says(bits, chunk, rows, cols, signed):
    codes = np.random.default_rng(bits).integers(0, 1 << bits, (rows, cols))
    data = np.full((-(-rows // 16), -(-cols // chunk) * bits * chunk * 2), 99, np.uint8)
    add = 1 << bits - 1 if signed else 0
    native.pack_codes((codes - add).astype(np.uint8), bits, chunk, add, data)
    np.testing.assert_array_equal(data, laid_out(codes, bits, chunk))
    if bits < 8:
        codes[-1, -1] = 1 << bits
        with pytest.raises(ValueError, match="do not hold"):
            native.pack_codes((codes - add).astype(np.uint8), bits, chunk, add, data)


@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (16, 40), (35, 77)])
def test_trits_lie_as_their_layout_says(rows, cols):
    codes = np.random.default_rng(rows).integers(-1, 2, (rows, cols)).astype(np.int8)
    data = np.empty((-(-rows // 16), -(-cols // 20) * 64), np.uint8)
    native.pack_trits(codes, data)
    m = sum(padded(codes, 20)[:, :, :, d] * 3 ** (4 - d) for d in range(5))
    expected = 128 + np.floor_divide(2 * 256 * m + 243, 2 * 243)  # rounded
    np.testing.assert_array_equal(data, expected.transpose(0, 2, 1, 3).reshape(data.shape).astype(np.uint8))
    for wrong in (2, -2, 127, -128):
        codes[-1, -1] = wrong
        with pytest.raises(ValueError, match="not ternary"):
            native.pack_trits(codes, data)


@pytest.mark.parametrize(("bits", "chunk"), [(0, 32), (7, 32), (9, 32), (1, 16), (5, 16), (4, 64)])
def test_layouts_that_there_are_not(bits, chunk):
    with pytest.raises(ValueError, match="hold"):
        native.pack_codes(np.zeros((1, 1), np.uint8), bits, chunk, 0, np.empty((1, bits * chunk * 2), np.uint8))


def test_nothing_is_packed_where_it_has_no_room():
    codes = np.zeros((17, 33), np.uint8)
    for data in (np.empty((2, 255), np.uint8), np.empty((2, 512), np.uint8)[:, ::2], np.empty((2, 256), np.int8)):
        with pytest.raises(ValueError, match="in place of"):
            native.pack_codes(codes, 2, 32, 0, data)
    with pytest.raises(ValueError, match="in place of"):
        native.pack_trits(codes.view(np.int8), np.empty((1, 128), np.uint8))


def taken(blocks: np.ndarray, fields: list[native.Field]) -> np.ndarray:
    """Fields of bits one by one."""
    codes = 0
    for f in fields:
        runs = blocks[:, f.begin : f.begin + f.count].astype(np.int64).reshape(len(blocks), -1, 1, f.run)
        shifts = np.arange(0, 8, f.width).reshape(-1, 1)
        codes = codes | (runs >> shifts & (1 << f.width) - 1).reshape(len(blocks), -1) << f.shift
    return np.asarray(codes, np.uint8)


@given(
    st.sampled_from([1, 8, 16, 24, 32, 64]),
    st.sampled_from([1, 2, 4, 8]),
    st.integers(1, 5),
    st.booleans(),
    st.integers(0, 9),
)
@settings(max_examples=80, deadline=None)
def test_fields_of_blocks(run, width, runs, more, seed):
    fields = [native.Field(3, run * runs, width, 0, run)]
    end, columns = 3 + run * runs, run * runs * 8 // width
    if more and width < 8 and columns % 8 == 0:  # a bit more for every code
        fields.append(native.Field(end, columns // 8, 1, width, 1))
        end += columns // 8
    blocks = np.random.default_rng(seed).integers(0, 256, (3, end + 2)).astype(np.uint8)
    np.testing.assert_array_equal(native.unpack_fields(blocks, fields), taken(blocks, fields))


@pytest.mark.parametrize(
    "fields",
    [
        [(0, 9, 4, 0, 1)],  # beyond the block
        [(-1, 4, 4, 0, 1)],
        [(0, 4, 3, 0, 1)],
        [(0, 4, 4, 5, 1)],
        [(0, 8, 4, 0, 4)],
        [(0, 8, 4, 0, 16)],  # no whole run
        [(0, 4, 4, 0, 1), (4, 4, 1, 4, 1)],  # another number of codes
    ],
)
def test_fields_that_blocks_cannot_have(fields):
    with pytest.raises(ValueError, match="do not have"):
        native.unpack_fields(np.zeros((2, 8), np.uint8), [native.Field(*f) for f in fields])


@pytest.mark.parametrize("rows", [1, 16, 37])
@pytest.mark.parametrize(
    ("fields", "chunk", "middle", "n"),
    [
        ([(2, 16, 4, 0, 16)], 32, 0, 1),
        ([(2, 32, 8, 0, 32)], 32, 0, 67),  # more columns than are unpacked together
        ([(0, 128, 4, 0, 64), (128, 64, 2, 4, 32)], 16, 32, 5),
        ([(0, 64, 2, 0, 32), (64, 32, 1, 2, 32)], 16, 0, 4),
        ([(1, 8, 4, 0, 1)], 32, 0, 6),  # a chunk of two blocks
    ],
)
def test_codes_packed_where_they_lie(fields, chunk, middle, n, rows):
    """The same bytes as of an array of them."""
    fields = tuple(native.Field(*f) for f in fields)
    bits = {3: 4}.get(sum(f.width for f in fields), sum(f.width for f in fields))
    nbytes = max(f.begin + f.count for f in fields) + 2
    blocks = np.random.default_rng(n).integers(0, 256, (rows, n, nbytes)).astype(np.uint8)
    codes = native.InBlocks(blocks, fields, middle)
    array = (taken(blocks.reshape(-1, nbytes), fields).reshape(codes.shape).astype(int) - middle).astype(np.uint8)
    np.testing.assert_array_equal(np.asarray(codes), array)
    shape = (-(-rows // 16), -(-codes.shape[1] // chunk) * bits * chunk * 2)
    found, expected = np.full(shape, 77, np.uint8), np.zeros(shape, np.uint8)
    native.pack_codes(codes, bits, chunk, middle, found)
    native.pack_codes(array, bits, chunk, middle, expected)
    np.testing.assert_array_equal(found, expected)


def test_codes_in_blocks_that_cannot_be_packed():
    blocks, data = np.full((3, 2, 18), 255, np.uint8), np.zeros((1, 2 * 32 * 2 * 3), np.uint8)
    with pytest.raises(ValueError, match="do not hold"):
        native.pack_codes(native.InBlocks(blocks, (native.Field(2, 16, 4, 0, 16),)), 3, 32, 0, data)
    with pytest.raises(ValueError, match="without"):
        native.pack_codes(native.InBlocks(blocks, (native.Field(4, 16, 4, 0, 16),)), 3, 32, 0, data)


@pytest.mark.parametrize(("bits", "count"), [(2, 48), (3, 96), (4, 40), (8, 20)])
@pytest.mark.parametrize("rows", [1, 16, 37])
def test_codes_down_columns(bits, count, rows):
    """As GPTQ has them: the same as of rows that are made of the columns, whose streams are spelled out elsewhere."""
    words = np.random.default_rng(bits).integers(-(2**31), 2**31, (count * bits // 32, rows + 5)).astype(np.int32)
    some = words[:, 2 : rows + 2]
    found = native.unpack_columns(some, bits, count)
    np.testing.assert_array_equal(found, unpack_words(np.ascontiguousarray(some.T), bits, count))
    np.testing.assert_array_equal(found, unpack_words(some.T, bits, count))


@pytest.mark.parametrize(
    ("words", "bits", "count"),
    [
        (np.zeros((3, 5), np.int32), 4, 25),  # more than there are
        (np.zeros((3, 5), np.int32), 4, 23),
        (np.zeros((2, 5), np.int32), 5, 12),
        (np.zeros((3, 5), np.int32), 6, 16),
        (np.zeros((3, 5), np.int32).T, 4, 40),
        (np.zeros((3, 5), np.int16), 4, 24),
    ],
)
def test_columns_that_hold_no_such_codes(words, bits, count):
    with pytest.raises(ValueError, match="codes of"):
        native.unpack_columns(words, bits, count)


def test_every_bfloat16():
    bits = np.arange(1 << 16, dtype=np.uint16)
    found = native.widen_bf16(bits.reshape(256, 256)[:, ::-1])
    due = (bits.astype(np.uint32) << 16).reshape(256, 256)[:, ::-1]
    np.testing.assert_array_equal(found.view(np.uint32), due)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
@pytest.mark.parametrize(("rows", "cols", "group"), [(1, 1, 1), (5, 70, 32), (3, 64, 64), (2, 33, 40)])
def test_codes_become_floats(dtype, rows, cols, group):
    rng = np.random.default_rng(cols)
    codes = rng.integers(0, 256, (rows, cols)).astype(dtype)
    scale, zero = rng.standard_normal((2, rows, -(-cols // group))).astype(np.float32)
    wide = np.arange(cols) // group
    due = (codes.astype(np.float32) - zero[:, wide]) * scale[:, wide]
    np.testing.assert_array_equal(native.decode(codes, scale, zero, group), due)
    with pytest.raises(ValueError, match="grids"):
        native.decode(codes, scale[:, 1:], zero, group)


@pytest.mark.parametrize("n", [0, 1, 15, 16, 100_003])
def test_squares(n):
    a, b = np.random.default_rng(n).standard_normal((2, n)).astype(np.float32)
    due = (((a.astype(np.float64) - b) ** 2).sum(), (a.astype(np.float64) ** 2).sum())
    np.testing.assert_allclose(native.squares(a, b), due, rtol=1e-6)


@pytest.mark.parametrize(("n_values", "group"), [(1, 5), (8, 64), (16, 32), (16, 33)])
def test_nearest_values(n_values, group):
    rng = np.random.default_rng(n_values)
    x, scale = rng.standard_normal((9, group)).astype(np.float32), rng.random(9).astype(np.float32)
    values, code = np.sort(rng.standard_normal(n_values)).astype(np.float32), rng.permutation(n_values)
    scale[3] = x[3] = 0
    codes, error = native.nearest(x, scale, values, code.astype(np.uint8))
    lost = np.abs(x[..., None] / np.where(scale == 0, 1, scale)[:, None, None] - values)
    place = np.argsort(code)[codes]
    np.testing.assert_allclose(np.take_along_axis(lost, place[..., None], 2)[..., 0], lost.min(axis=2), atol=1e-6)
    np.testing.assert_allclose(error, ((values[place] * scale[:, None] - x) ** 2).sum(axis=1), rtol=1e-5, atol=1e-7)


def test_too_many_values():
    with pytest.raises(ValueError, match="17 values"):
        native.nearest(np.zeros((1, 4)), np.ones(1), np.arange(17.0), np.arange(17))


@pytest.mark.parametrize("format", formats.names())
def test_pieces_make_the_same_bytes(format, monkeypatch):
    def packed() -> list[bytes]:
        weight = tiny._random(np.random.default_rng(1), format, (75, 96))
        return [part.tobytes() for part in weight.parts.values()]

    whole = packed()
    for module in (_blocks, q8):
        monkeypatch.setattr(module, "AT_ONCE", 1)
    assert packed() == whole


def test_matrices_are_joined_as_they_are_read(monkeypatch):
    """Rows of q, k and v by pieces of 16, which straddle them: the same as of arrays that are there at once."""
    config = llama.Config.read(llama.TINY)
    rng, entries = np.random.default_rng(2), {}
    shapes = {p.format(i): s for p, s in llama.shapes(config).items() for i in range(config.layers)}
    for role, shape in shapes.items():
        pattern = next(p for p in llama.NAMES if role in {p.format(i) for i in range(config.layers)})
        stems = [stem.format(*role.split(".")[1:2]) for stem in llama.NAMES[pattern]]
        for stem, rows in zip(stems, np.array_split(np.arange(shape[0]), len(stems)), strict=True):
            entries[f"{stem}.weight"] = entry(rng, (len(rows), *shape[1:]))
    read = {name: Entry(e.dtype, e.shape, e.read) for name, e in entries.items()}
    monkeypatch.setattr(_blocks, "AT_ONCE", 1)
    found = []
    for some in (entries, read):
        checkpoint = Checkpoint(Path("x"), "dense", dict(llama.TINY), some, ())
        planned = plan_roles(checkpoint, llama.NAMES, config.layers)
        parts = [tensors_of(role, weight) for role, weight in pack_roles(checkpoint, planned)]
        found.append([(name, array.tobytes()) for each in parts for name, array in each.items()])
    assert found[0] == found[1]


def entry(rng: np.random.Generator, shape: tuple[int, ...]) -> Entry:
    """A tensor of 4-bit codes, or a vector."""
    if len(shape) == 1:
        vector = rng.standard_normal(shape).astype(np.float32)
        return Entry("F32", shape, lambda: vector)
    groups = (shape[0], -(-shape[1] // 32))
    matrix = Coded(
        rng.integers(0, 16, shape).astype(np.uint8),
        rng.random(groups).astype(np.float16),
        np.full(groups, 8, np.float32),
        32,
    )
    return Entry("q4g32", shape, lambda: matrix, lambda: lambda begin, end: matrix[begin:end])


def test_an_unread_matrix_is_read_for_what_is_asked():
    asked = []

    def read(begin: int, end: int) -> np.ndarray:
        asked.append((begin, end))
        return np.full((end - begin, 2), begin, np.float32)

    matrix = Unread((9, 2), read)
    assert matrix[4:100].shape == (5, 2)
    assert formats.to_float32(matrix).shape == (9, 2)
    assert asked == [(4, 9), (0, 9)]


@pytest.mark.parametrize("n", [0, 1, 15, 100_003])
def test_magnitude(n):
    x = np.random.default_rng(n).standard_normal(n).astype(np.float32)
    assert native.magnitude(x) == pytest.approx(np.abs(x).sum(dtype=np.float64), rel=1e-12)


def test_signs():
    x = np.array([[-np.inf, -0.6, -0.5, -1e-45], [-0.0, 0.0, np.nan, 0.50001]], np.float32)
    np.testing.assert_array_equal(native.signs(x), [[-1, -1, -1, -1], [0, 0, 0, 1]])
    np.testing.assert_array_equal(native.signs(x, beyond=0.5), [[-1, -1, 0, 0], [0, 0, 0, 1]])


def test_levels():
    rows = [[0.5, -0.5, 0.5, 2, 0], [0, 0, 0, -3, -3], [1, 1.5, 1, np.nan, np.nan], [0, -0.0, 2, np.inf, 0]]
    largest, levels = native.levels(np.array(rows, np.float32), 3)
    np.testing.assert_array_equal(largest, [[0.5, 2], [0, 3], [1.5, np.nan], [2, np.inf]])
    more, ternary, binary = native.MORE, native.TERNARY, native.BINARY
    assert levels.tolist() == [[binary, ternary], [binary, binary], [more, binary], [ternary, ternary]]
