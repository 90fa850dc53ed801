"""LittleBit's factors (Lee et al. 2025) without training: a truncated SVD, turned so that signs keep most of it.

W ~ U V by SVD. Any rotation R leaves the product as it is, U R R^T V; joint iterative quantization (ITQ: Gong &
Lazebnik 2011; of U and V at once in LittleBit-2) turns both until their elements are as alike in size as they get.
Then Dual-SVID: the signs are the binary factors, and rank-one approximations of |U| and |V| give the scales of their
rows and columns. A second such product takes what the first leaves over.

Nearly all of it is products of matrices, which use all cores: subspaces of the Gram matrix of the shorter side instead
of a full SVD, Newton's iteration for rotations. A decomposition is taken of small matrices alone.

As it comes from here the model is a start for training: the paper's figures are those after it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lutra.runtime.formats import Coded, Factored
from lutra.runtime.formats._chained import Chained

TURNS = 12  # of ITQ
AHEAD = 0.9  # of a turn's step is gone once more before the next one: half as many turns, and fewer errors
POWER = 6  # iterations of the subspace (Halko et al. 2011), with so many directions more than are kept:
SPARE = 16
NEARLY = 0.1  # how far from orthogonal a rotation may be until the last turn
LEAST = 1e-30


def memory(rows: int, cols: int, codec: Chained) -> int:
    """Values, what is left of them and what is taken off, their Gram matrix."""
    return 16 * rows * cols + 4 * min(rows, cols) ** 2


def work(rows: int, cols: int, codec: Chained) -> float:
    """Multiplications, about."""
    total = 0.0
    for first, _ in codec.links(rows, cols):
        short, rank = min(rows, cols), min(first.rows, rows, cols)
        whole = rows * cols * (short / 2 + 4 * rank)
        total += whole + 2 * POWER * short * short * rank + TURNS * rank * rank * (2 * (rows + cols) + 30 * rank)
    return total


def fits(codec: Any) -> bool:
    """Sums of products of two binary matrices, with a scale per column of the first."""
    if not isinstance(codec, Chained):
        return False
    links = [[(link.format, link.scaled) for link in chain] for chain in codec.links(64, 64)]
    return all(chain == [("b1", True), ("b1", False)] for chain in links)


def quantize(values: np.ndarray, codec: Chained) -> Factored:
    """Factored, of ranks as the format has them for this shape."""
    rng = np.random.default_rng(0)
    left, chains = values.astype(np.float32), []
    for first, _ in codec.links(*values.shape):
        u, v = _rotated(*_factors(left, min(first.rows, *values.shape), rng), rng)
        u, v = _padded(u, v, first.rows)
        (u1, u2), (v1, v2) = _rank_one(np.abs(u)), _rank_one(np.abs(v))
        product = np.where(u < 0, -1, 1).astype(np.int8), np.where(v < 0, -1, 1).astype(np.int8)
        inner = np.float32(u2 * v1)
        chains.append(((v2, Coded(product[1], inner[:, None])), (None, Coded(product[0], u1[:, None]))))
        left = left - (product[0] * u1[:, None]) @ (product[1] * inner[:, None] * v2)
    return Factored(tuple(chains))


def _factors(w: np.ndarray, rank: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """U [rows, rank] and V [rank, cols], whose product is nearly the best of that rank, the singular values halved."""
    if len(w) > w.shape[1]:
        v, u = _factors(w.T, rank, rng)
        return u.T, v.T
    gram = w @ w.T
    basis = gram @ rng.standard_normal((len(w), min(rank + SPARE, len(w))), np.float32)
    for _ in range(POWER):
        basis = gram @ _conditioned(basis)
    basis = np.linalg.qr(basis)[0]
    inside = basis.T @ w
    wide = inside.astype(np.float64)  # so that even where there is nothing left, U and V are of a size
    squares, turn = np.linalg.eigh(wide @ wide.T)
    squares, turn = squares[::-1][:rank], turn[:, ::-1][:, :rank]
    half = np.maximum(squares, LEAST + 1e-14 * squares[0]) ** 0.25
    return basis @ (turn * half).astype(np.float32), (turn / half).T.astype(np.float32) @ inside


def _conditioned(basis: np.ndarray) -> np.ndarray:
    """The same space's columns, nearly orthogonal: by a shifted Cholesky factor (Fukaya et al. 2020)."""
    wide = basis.astype(np.float64)
    square = wide.T @ wide
    square[np.diag_indices_from(square)] += LEAST + 1e-13 * np.trace(square)
    return basis @ np.linalg.inv(np.linalg.cholesky(square)).T.astype(np.float32)


def _rotated(u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """U R and R^T V for the rotation R that brings both nearest to their signs."""
    both = np.concatenate([u, v.T])
    turn = ahead = np.linalg.qr(rng.standard_normal((u.shape[1], u.shape[1]), np.float32))[0]
    for left in reversed(range(TURNS)):
        before, found = turn, both.T @ np.where(both @ ahead < 0, np.float32(-1), np.float32(1))
        found += np.float32(LEAST + 1e-5 * np.linalg.norm(found)) * before  # where nothing tells, it stays
        turn = _orthogonal(found, NEARLY if left else 1e-5)
        ahead = turn + np.float32(AHEAD) * (turn - before)  # its signs are all that is asked for
    return u @ turn, turn.T @ v


def _orthogonal(x: np.ndarray, tolerance: float) -> np.ndarray:
    """The orthogonal matrix nearest to a square one, its polar factor: by Newton-Schulz iteration (Higham 2008)."""
    size = np.abs(x)
    x = x / min(np.linalg.norm(x), np.sqrt(size.sum(axis=0).max() * size.sum(axis=1).max()))  # no singular value > 1
    one = np.eye(len(x), dtype=np.float32)
    for _ in range(60):
        square = x.T @ x
        if np.abs(square - one).max() < tolerance:
            break
        x = np.float32(1.5) * x - np.float32(0.5) * (x @ square)
    return x


def _padded(u: np.ndarray, v: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Zeros, as further columns and rows, where a matrix has less rank than its format has room for."""
    more = rank - u.shape[1]
    return np.pad(u, ((0, 0), (0, more))), np.pad(v, ((0, more), (0, 0)))


def _rank_one(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """a, b >= 0 with x ~ a b^T, the best there are; x has no negative element. By power iteration."""
    b = np.full(x.shape[1], x.shape[1] ** -0.5, np.float32)
    for _ in range(30):
        a = x @ b
        a /= max(float(np.linalg.norm(a)), 1e-30)
        b = x.T @ a
        size = float(np.linalg.norm(b))
        b /= max(size, 1e-30)
    return a * np.float32(size**0.5), b * np.float32(size**0.5)
