"""Products of feature blocks: computed once, and summed for every set of blocks.

The Gram matrix of blocks side by side is the sum of theirs, and so is the matrix of squared distances. What is
computed is kept, under a digest of the rows it was computed from, for other candidates, class weights, sets of blocks
and later fits, as long as all of it fits into a bound; what was used the longest ago goes first.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np

Product = Callable[[np.ndarray, np.ndarray], np.ndarray]

#: Rows of which the digest takes a copy at once.
_AT_ONCE = 512


class Products:
    """Products of blocks that are kept while they fit into a bound.

    Parameters
    ----------
    limit : float
        Bytes.

    Attributes
    ----------
    computed : int
        How many products were computed, not found.
    """

    def __init__(self, limit: float) -> None:
        self.limit, self.computed = limit, 0
        self._kept: OrderedDict[tuple[str, ...], np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def gram(self, left: Sequence[Block], right: Sequence[Block]) -> np.ndarray:
        """Return the inner products of rows, of shape (n_left, n_right), float64, summed over blocks."""
        return self._sum(_gram, left, right)

    def distances(self, left: Sequence[Block], right: Sequence[Block]) -> np.ndarray:
        """Return the squared distances between rows, of shape (n_left, n_right), summed over blocks."""
        return self._sum(_distances, left, right)

    def moment(self, blocks: Sequence[Block]) -> np.ndarray:
        """Return the products of columns, of shape (p, p), for the blocks side by side."""
        numbers = range(len(blocks))
        upper = {(i, j): self._get(_moment, blocks[i], blocks[j]) for i in numbers for j in numbers if i <= j}
        return np.block([[upper[i, j] if i <= j else upper[j, i].T for j in numbers] for i in numbers])

    def _sum(self, product: Product, left: Sequence[Block], right: Sequence[Block]) -> np.ndarray:
        parts = [self._get(product, a, b) for a, b in zip(left, right, strict=True)]
        return parts[0] if len(parts) == 1 else np.sum(parts, axis=0)

    def _get(self, product: Product, left: Block, right: Block) -> np.ndarray:
        key = (product.__name__, left.digest, right.digest)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        # Threads compute beside one another.
        made = product(left.rows, right.rows)
        with self._lock:
            self.computed += 1
            self._kept[key] = made
            while self._kept and sum(kept.nbytes for kept in self._kept.values()) > self.limit:
                self._kept.popitem(last=False)
        return made


class Block:
    """Rows of one feature block, and a digest of them.

    Parameters
    ----------
    rows : ndarray of shape (n, d)
    """

    def __init__(self, rows: np.ndarray) -> None:
        # Part of the columns of an array is not copied: products are as fast, and new memory takes longer.
        self.rows, self.digest = rows, _digest(rows)


def split_columns(X: np.ndarray, widths: Sequence[int]) -> list[Block]:
    """Cut blocks that lie side by side; one block where the widths do not add up to the columns."""
    if sum(widths) != X.shape[1]:
        return [Block(X)]
    return [Block(part) for part in np.split(X, np.cumsum(widths)[:-1], axis=1)]


def _moment(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return np.asarray(left.T @ right)


def _gram(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    left = left.astype(np.float64)
    return np.asarray(left @ (left if right is left else right.astype(np.float64)).T)


def _distances(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """|a - b|² = |a|² + |b|² - 2 a·b; not below 0 from rounding."""
    squares = np.einsum("ij,ij->i", left, left)[:, None] + np.einsum("ij,ij->i", right, right)
    squares -= 2 * (left @ right.T)
    return np.asarray(np.maximum(squares, 0, out=squares))


def _digest(rows: np.ndarray) -> str:
    digest = hashlib.sha256(repr((rows.shape, rows.dtype.str)).encode())
    for start in range(0, len(rows), _AT_ONCE):
        digest.update(np.ascontiguousarray(rows[start : start + _AT_ONCE]).data)
    return digest.hexdigest()
