"""LittleBit's factors (Lee et al. 2025) without training: a truncated SVD, turned so that signs keep most of it.

W ~ U V by SVD. Any rotation R leaves the product as it is, U R R^T V; joint iterative quantization (ITQ: Gong &
Lazebnik 2011; of U and V at once in LittleBit-2) turns both until their elements are as alike in size as they get.
Then Dual-SVID: the signs are the binary factors, and rank-one approximations of |U| and |V| give the scales of their
rows and columns. A second such product takes what the first leaves over.

As it comes from here the model is a start for training: the paper's figures are those after it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lutra.runtime.formats import Coded, Factored
from lutra.runtime.formats._chained import Chained

TURNS = 20  # of ITQ
POWER = 4  # iterations of the randomized SVD (Halko et al. 2011), with so many directions more than are kept:
SPARE = 16
DEGREE = 3


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
    if rank + SPARE >= min(w.shape):
        u, s, v = np.linalg.svd(w, full_matrices=False)
    else:
        basis = w @ rng.standard_normal((w.shape[1], rank + SPARE), np.float32)
        for _ in range(POWER):
            basis = w @ (w.T @ np.linalg.qr(basis)[0])
        basis = np.linalg.qr(basis)[0]
        u, s, v = np.linalg.svd(basis.T @ w, full_matrices=False)
        u = basis @ u
    half = np.sqrt(s[:rank])
    return u[:, :rank] * half, half[:, None] * v[:rank]


def _rotated(u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """U R and R^T V for the rotation R that brings both nearest to their signs."""
    both = np.concatenate([u, v.T])
    turn = np.linalg.qr(rng.standard_normal((u.shape[1], u.shape[1]), np.float32))[0]
    for _ in range(TURNS):
        signs = np.where(both @ turn < 0, np.float32(-1), np.float32(1))
        p, _, q = np.linalg.svd(signs.T @ both)
        turn = (p @ q).T
    return u @ turn, turn.T @ v


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
