"""LinearSVC for all folds and classes at once, by passes over rows that all of them share.

The problem is that of `deepfeat.svm.newton` with the squared hinge loss, and so is the method, but no matrix is made
for a problem: features are scaled by scaling coefficients, and each Newton system is solved nearly, by
conjugate gradients, of which every step is one pass over the rows (Keerthi and DeCoste 2005, A modified finite Newton
method for fast solution of large scale linear SVMs, JMLR 6). The preconditioner is the Hessian that there would be if
all rows of all folds were active to the same degree: one matrix for all problems, which is factorised for each
order of magnitude of C. All folds and classes share every pass, each from its solution for the value of C before.

That serves rows for which the engine has no memory, since they are read in blocks and never copied; and values of C so
small that the preconditioner is a good one, whatever the number of rows.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from deepfeat.svm.cholesky import Factor
from deepfeat.svm.systems import factorise, scaled

#: Rows of a block; sums over a block are in the precision of the features, sums of blocks in float64.
BLOCK = 512

#: Newton steps end when the duality gap is below this part of the objective, or does not fall any more.
TOLERANCE = {np.dtype(np.float64): 1e-10, np.dtype(np.float32): 2e-8}

#: Newton steps at one value of C, and steps without progress, at most. Progress is half of the gap, or an objective
#: that falls by this part: far from the solution the gap may rise.
_MAX_STEPS, _PATIENCE, _PROGRESS = 50, 3, 1e-3

#: A gap that may be rounding.
_SMALL = 1e-5

#: A Newton system is solved to this part of its right side, with so many passes at most.
_FORCING, _MAX_PASSES = 0.05, 80

#: Shortest part of a step that is tried; and the part of the objective that is rounding, in units of it.
_SHORTEST, _ROUNDING = 1e-3, 8

#: Rounding of a sum of n squares and of the square of a sum, in units of n times their mean.
_EQUAL = 4

#: Blocks with fewer active rows than this part leave the others out.
_FEW = 0.5

#: Rounding of a factor, relative to its smallest eigenvalue, above which it is made in float64.
_ROUGH = 0.1

#: Vectors, as a part of the coefficients, after which an inverse is made: it takes as long as it has not saved by then.
_OFTEN = 0.5


class Scaled(NamedTuple):
    """Scaling of the training rows of one fold.

    Attributes
    ----------
    n : int
        Training rows.
    offset, mean, variance, scale : ndarray of shape (d,), float64
        The offset is the mean of rows as they are read, which are shifted and have a unit. Scale is 1 for a constant
        column, as in scikit-learn's StandardScaler.
    constant : ndarray of shape (d,), bool
    """

    n: int
    offset: np.ndarray
    mean: np.ndarray
    variance: np.ndarray
    scale: np.ndarray
    constant: np.ndarray


class Solution(NamedTuple):
    """Solutions of m problems for one value of C.

    Attributes
    ----------
    C : float
    coef : ndarray of shape (m, d + 1), float64
        Of scaled features, and the intercept.
    decision : ndarray of shape (n, m), of the type of the features
        Decision values of all rows.
    active : ndarray of shape (n, m), bool
        Whether each row is a training row with a loss.
    gap : ndarray of shape (m,), float64
        Duality gap over objective.
    steps : ndarray of shape (m,), int
    """

    C: float
    coef: np.ndarray
    decision: np.ndarray
    active: np.ndarray
    gap: np.ndarray
    steps: np.ndarray


class Columns(NamedTuple):
    """Problems that share passes: one for each fold and class.

    Attributes
    ----------
    fold : ndarray of shape (m,), int
    signs, costs : ndarray of shape (m, n_classes), float64
        Of rows of each class: 1 or -1, and the weight of their loss at C = 1.
    """

    fold: np.ndarray
    signs: np.ndarray
    costs: np.ndarray

    def take(self, some: np.ndarray) -> Columns:
        """Return some of the problems."""
        return Columns(self.fold[some], self.signs[some], self.costs[some])


class _Point(NamedTuple):
    """Coefficients with what a pass tells of them; each array has one row or value per problem."""

    coef: np.ndarray
    gradient: np.ndarray
    objective: np.ndarray
    gap: np.ndarray
    #: Sum of the costs of the active rows.
    active: np.ndarray


class _Rows(NamedTuple):
    """What a pass tells of every row: decision values, and the costs of those that are active; of shape (n, m)."""

    decision: np.ndarray
    weights: np.ndarray


class Stream:
    """Rows that are read in blocks, by several threads.

    Parameters
    ----------
    X : ndarray of shape (n, d), float32 or float64
        In memory or mapped from a file.
    codes : ndarray of shape (n,), int
        Class of each row.
    train : ndarray of shape (n, n_folds), float32
        How many times each row is a training row of each fold.
    n_threads : int
    keep : callable, optional
        Where there is memory for a copy of the rows, which saves time in every pass: a function that makes its
        products of columns, of shape (d, d). All rows are training rows then.
    """

    def __init__(
        self,
        X: np.ndarray,
        codes: np.ndarray,
        train: np.ndarray,
        n_threads: int,
        *,
        keep: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> None:
        self._X, self._codes, self._train, self._n_threads = X, codes, train, n_threads
        self._dtype = np.dtype(np.float64 if X.dtype == np.float64 else np.float32)
        self._rounding = _ROUNDING * float(np.finfo(self._dtype.type).eps)
        # Near the mean of the folds, so that nothing is lost where a feature varies little about a large value.
        self._shift = np.asarray(X[np.flatnonzero(train.any(axis=1))[:BLOCK]], self._dtype).mean(axis=0)
        self._unit = np.ones(X.shape[1], self._dtype)
        self._kept: np.ndarray | None = None
        with self._threads():
            if keep is not None:
                self._keep_rows(self._scale_folds()[1])
            self.folds, everything = self._scale_folds()
            mean = self._mean_product(everything) if keep is None else self._mean_kept_product(keep, everything)
            self._curvature = _Curvature(mean)
        self._offset = np.array([fold.offset for fold in self.folds])
        # Of a constant column nothing is left when it is centred, whatever rows of other folds have in it.
        self._inverse = np.array([np.where(fold.constant, 0, self._unit / fold.scale) for fold in self.folds])

    def solve(self, columns: Columns, C: float, start: np.ndarray) -> Solution:
        """Solve all problems for one value of C.

        Parameters
        ----------
        columns : Columns
        C : float
        start : ndarray of shape (m, d + 1), float64
            Coefficients of scaled features, and the intercept.

        Returns
        -------
        Solution
        """
        with self._threads():
            return self._solve(columns, C, start)

    def step(self, columns: Columns, C: float, start: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Go one Newton step towards the solutions for a value of C; parameters as of `solve`.

        Returns
        -------
        coef : ndarray of shape (m, d + 1), float64
        active : ndarray of shape (n, m), bool
            As of `Solution`.
        """
        with self._threads():
            here, rows = self._evaluate(columns, C, start)
            found, rows = self._step(columns, C, here, rows.weights)
            return found.coef, rows.weights > 0

    def _solve(self, columns: Columns, C: float, start: np.ndarray) -> Solution:
        point, rows = self._evaluate(columns, C, start.copy())
        steps, waited = np.zeros(len(start), int), np.zeros(len(start), int)
        for _ in range(_MAX_STEPS):
            live = np.flatnonzero((point.gap > TOLERANCE[self._dtype]) & (waited < _PATIENCE))
            if not len(live):
                break
            here = _Point(*(part[live] for part in point))
            found, values = self._step(columns.take(live), C, here, rows.weights[:, live])
            steps[live] += 1
            progress = (found.gap < 0.5 * here.gap) | (found.objective < here.objective * (1 - _PROGRESS))
            waited[live] = np.where(progress, 0, waited[live] + 1)
            falls = found.objective < here.objective * (1 - self._rounding)
            level = found.objective <= here.objective * (1 + self._rounding)
            # Where the gap is small, what is no better is rounding; elsewhere it leads on.
            better = falls | (found.gap < here.gap) | (level & (here.gap > _SMALL))
            for old, new in zip(point, found, strict=True):
                old[live[better]] = new[better]
            for old, new in zip(rows, values, strict=True):
                old[:, live[better]] = new[:, better]
            waited[live[~better]] = _PATIENCE
        coef = point.coef * np.column_stack([self._inverse[columns.fold] > 0, np.ones(len(steps))])
        return Solution(C, coef, rows.decision, rows.weights > 0, point.gap, steps)

    def _step(self, columns: Columns, C: float, here: _Point, weights: np.ndarray) -> tuple[_Point, _Rows]:
        """Go one Newton step, or the half, a quarter and so on of it where the objective would rise."""
        direction = self._newton_direction(columns, C, here, weights)
        length = np.ones(len(direction))
        while True:
            found, values = self._evaluate(columns, C, here.coef + length[:, None] * direction)
            rises = found.objective > here.objective * (1 + self._rounding)
            if not rises.any() or length.min() < _SHORTEST:
                return found, values
            length[rises] /= 2

    def _newton_direction(self, columns: Columns, C: float, here: _Point, weights: np.ndarray) -> np.ndarray:
        """Solve the Newton systems nearly, by preconditioned conjugate gradients that share their passes."""
        x, where = np.zeros_like(here.gradient), np.arange(len(here.gradient))
        # One matrix for all: a scale of its own for each problem saves next to no pass.
        scale = 2 * C * float(here.active.max())
        r = -here.gradient
        q = self._precondition(scale, r)
        product = (r * q).sum(axis=1)
        goal = _FORCING**2 * product
        for _ in range(_MAX_PASSES):
            going = product > goal
            if not going.any():
                break
            if not going.all():
                columns, weights, where = columns.take(going), weights[:, going], where[going]
                r, q, product, goal = (part[going] for part in (r, q, product, goal))
            image = q + self._multiply(columns, C, q, weights)
            length = (product / (q * image).sum(axis=1))[:, None]
            x[where] += length * q
            r -= length * image
            z = self._precondition(scale, r)
            before, product = product, (r * z).sum(axis=1)
            q = z + (product / before)[:, None] * q
        return x

    def _precondition(self, scale: float, r: np.ndarray) -> np.ndarray:
        return self._curvature.inverse(scale, self._n_threads).multiply(r, self._n_threads, self._map)

    # Passes over the rows.

    def _evaluate(self, columns: Columns, C: float, coef: np.ndarray) -> tuple[_Point, _Rows]:
        rows = _Rows(*(np.empty((len(self._X), len(coef)), self._dtype) for _ in _Rows._fields))
        work = partial(self._losses, columns, *self._unscaled(columns, coef), rows)
        sums, total, linear, squares, active = self._sweep(work)
        v = 2 * C * self._scaled(columns, sums, total)
        quadratic = 0.5 * (coef * coef).sum(axis=1)
        objective = quadratic + C * squares
        bound = 2 * C * linear - 0.5 * (v * v).sum(axis=1) - C * squares
        return _Point(coef, coef - v, objective, (objective - bound) / objective, active), rows

    def _losses(
        self, columns: Columns, coef: np.ndarray, intercept: np.ndarray, found: _Rows, part: slice
    ) -> tuple[np.ndarray, ...]:
        rows, (signs, costs) = self._rows(part), self._of_rows(columns, part)
        f = rows @ coef.T + intercept
        found.decision[part] = f
        excess = np.maximum(1 - signs * f, 0)
        found.weights[part] = np.where(excess > 0, costs, 0)
        costs *= excess
        signs *= costs
        sums = (signs, costs, costs * excess, found.weights[part])
        return signs.T @ rows, *(np.sum(each, axis=0, dtype=np.float64) for each in sums)

    def _multiply(self, columns: Columns, C: float, q: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Products of the Hessians, less the identity, with one vector each."""
        work = partial(self._products, *self._unscaled(columns, q), weights)
        return 2 * C * self._scaled(columns, *self._sweep(work))

    def _products(
        self, coef: np.ndarray, intercept: np.ndarray, weights: np.ndarray, part: slice
    ) -> tuple[np.ndarray, ...]:
        rows, costs = self._rows(part), weights[part]
        some = costs.any(axis=1)
        if some.mean() < _FEW:
            rows, costs = rows[some], costs[some]
        values = rows @ coef.T
        values += intercept
        values *= costs
        return values.T @ rows, values.sum(axis=0, dtype=np.float64)

    def _sweep(self, work: Callable[[slice], tuple[np.ndarray, ...]]) -> list[np.ndarray]:
        """Sum what a function makes of each block of rows, in float64."""
        n_blocks = self._n_threads * math.ceil(len(self._X) / (BLOCK * self._n_threads))
        blocks = _parts(len(self._X), n_blocks)

        def run(some: Sequence[slice]) -> list[np.ndarray]:
            sums: list[np.ndarray] = []
            for block in some:
                parts = [np.asarray(p, np.float64) for p in work(block)]
                sums = [s + p for s, p in zip(sums, parts, strict=True)] if sums else parts
            return sums

        shares = [blocks[first :: self._n_threads] for first in range(self._n_threads)]
        found = self._map(run, [share for share in shares if share])
        return [np.sum(parts, axis=0) for parts in zip(*found, strict=True)]

    def _map(self, function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        """Call a function of each item, in threads where there are several."""
        return [function(items[0])] if len(items) == 1 else list(self._pool.map(function, items))

    @contextmanager
    def _threads(self) -> Iterator[None]:
        with threadpool_limits(1, "blas"), ThreadPoolExecutor(self._n_threads) as self._pool:
            yield

    @property
    def rows(self) -> np.ndarray:
        """The rows that are kept, scaled together."""
        assert self._kept is not None
        return self._kept

    def centred(self, fold: int) -> tuple[np.ndarray, float]:
        """Products of the kept rows with the centre of a fold, of shape (n,), and of the centre with itself."""
        centre = self.folds[fold].offset
        return self.rows @ centre.astype(self._dtype), float(centre @ centre)

    @property
    def mean_product(self) -> np.ndarray:
        """Mean of x xᵀ over all training rows x, scaled together and ending in a one; of shape (d + 1, d + 1)."""
        return self._curvature.mean

    def _keep_rows(self, scaling: Scaled) -> None:
        self._unit = scaling.scale.astype(self._dtype)
        kept = np.empty(self._X.shape, self._dtype)
        self._sweep(lambda part: (np.divide(self._rows(part), self._unit, out=kept[part])[:0],))
        self._kept = kept

    def _rows(self, part: slice) -> np.ndarray:
        if self._kept is not None:
            kept: np.ndarray = self._kept[part]
            return kept
        rows: np.ndarray = np.subtract(self._X[part], self._shift, dtype=self._dtype)
        return rows

    def _of_rows(self, columns: Columns, part: slice) -> tuple[np.ndarray, np.ndarray]:
        """Signs and costs of a block's rows in each problem, of shape (n_rows, m)."""
        codes = self._codes[part]
        costs = columns.costs.T.astype(self._dtype)[codes] * self._train[part][:, columns.fold]
        return columns.signs.T.astype(self._dtype)[codes], costs

    # Scaling.

    def _unscaled(self, columns: Columns, coef: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Coefficients of the features as they are, and intercepts, from those of scaled features."""
        raw = coef[:, :-1] * self._inverse[columns.fold]
        intercept = coef[:, -1] - (raw * self._offset[columns.fold]).sum(axis=1)
        return raw.astype(self._dtype), intercept.astype(self._dtype)

    def _scaled(self, columns: Columns, sums: np.ndarray, total: np.ndarray) -> np.ndarray:
        """Weighted sums of scaled rows, from those of the rows as they are and the sums of the weights."""
        centred = sums - total[:, None] * self._offset[columns.fold]
        return np.column_stack([centred * self._inverse[columns.fold], total])

    def _scale_folds(self) -> tuple[list[Scaled], Scaled]:
        """Scaling for each fold, and for all of their rows together."""
        within = np.column_stack([self._train, self._train.any(axis=1)])

        def add(part: slice) -> tuple[np.ndarray, ...]:
            rows, inside = self._rows(part).astype(np.float64), within[part].T.astype(np.float64)
            return inside.sum(axis=1), inside @ rows, inside @ (rows * rows)

        counts, sums, squares = self._sweep(add)
        parts = zip(counts, sums, squares, strict=True)
        *folds, everything = (_describe(*part, self._shift, self._unit) for part in parts)
        return folds, everything

    def _mean_product(self, scaling: Scaled) -> np.ndarray:
        """Compute `mean_product` from rows that are not kept."""
        d, lock = self._X.shape[1], threading.Lock()
        mean = np.zeros((d + 1, d + 1))

        def add(part: slice) -> tuple[np.ndarray, ...]:
            rows = self._rows(part)[self._train[part].any(axis=1)]
            rows = ((rows - scaling.offset) / scaling.scale).astype(self._dtype)
            product = rows.T @ rows
            with lock:
                mean[:d, :d] += product / scaling.n
            return ()

        self._sweep(add)
        mean[d, d] = 1
        return mean

    def _mean_kept_product(self, products: Callable[[np.ndarray], np.ndarray], scaling: Scaled) -> np.ndarray:
        """Compute `mean_product` from products of the kept rows."""
        with threadpool_limits(self._n_threads, "blas"):
            product = products(self.rows)
        scale = scaling.scale / self._unit
        centre, d = scaling.offset / scale, len(scale)
        mean = np.zeros((d + 1, d + 1))
        # Some rows at a time, since each matrix has as many numbers as there are features squared.
        for part in _parts(d, math.ceil(d / BLOCK)):
            rows = product[part] / (scaling.n * scale)
            rows /= scale[part, None]
            mean[part, :d] = rows - np.outer(centre[part], centre)
        mean[d, d] = 1
        return mean


class _Curvature:
    """I + scale * mean product.

    Parameters
    ----------
    mean : ndarray of shape (p, p), float64
    """

    def __init__(self, mean: np.ndarray) -> None:
        self.mean, self._single = mean, mean.astype(np.float32)
        self._largest = max(float(np.abs(row).sum()) for row in mean)
        self._made: tuple[int, _Inverse] | None = None

    def inverse(self, scale: float, n_threads: int) -> _Inverse:
        """Return the inverse for a power of two near the scale; the last one is kept."""
        power = round(math.log2(max(scale, np.finfo(float).tiny)))
        if self._made is None or self._made[0] != power:
            rough = 2.0**power * self._largest * float(np.finfo(np.float32).eps) > _ROUGH
            with threadpool_limits(n_threads, "blas"):
                factor = factorise(partial(scaled, self.mean if rough else self._single, 2.0**power), 1.0)
            self._made = power, _Inverse(factor)
        return self._made[1]


class _Inverse:
    """The inverse of a matrix: by its factor, until it has been multiplied with so often that making it pays.

    A product with it takes half to three quarters of the time of a solve, and making it several times that of a factor.
    """

    def __init__(self, factor: Factor) -> None:
        self._factor: Factor | None = factor
        self._matrix, self._count = np.empty((0, 0), factor.dtype), 0

    def multiply(self, vectors: np.ndarray, n_threads: int, run: Callable[..., Any]) -> np.ndarray:
        """Multiply with vectors, of shape (m, p), in threads: by a function that calls a function of each item."""
        m, p = vectors.shape
        self._count += m
        if self._factor is not None and self._count > _OFTEN * p:
            with threadpool_limits(n_threads, "blas"):
                # The factor is of no use any more.
                self._matrix, self._factor = self._factor.inverse(), None
        factor, matrix = self._factor, self._matrix
        products, vectors = np.empty_like(vectors), vectors.astype(matrix.dtype)

        def work(part: slice) -> None:
            if factor is None:
                products[:, part] = vectors @ matrix[:, part]
            else:
                products[part] = factor.solve(vectors[part])

        run(work, _parts(p if factor is None else m, n_threads))
        return products


def _parts(n: int, number: int) -> list[slice]:
    """Cut n things into so many parts of like size, or into n of one where there are fewer."""
    edges = np.linspace(0, n, number + 1).astype(int)
    return [slice(*pair) for pair in itertools.pairwise(edges) if pair[0] < pair[1]]


def _describe(n: float, sums: np.ndarray, squares: np.ndarray, shift: np.ndarray, unit: np.ndarray) -> Scaled:
    """Scaling from the number, sums and sums of squares of rows that are shifted, and in some unit."""
    off, unit, eps = sums / n, unit.astype(np.float64), np.finfo(np.float64).eps
    mean = off * unit + shift
    variance = np.maximum(squares / n - off * off, 0) * unit**2
    # What rounding leaves of a constant: of these sums, where the shift is not that of the fold's rows since others
    # differ; and of the rows themselves, as in scikit-learn.
    constant = variance <= _EQUAL * eps * squares * unit**2 + (n * mean * eps) ** 2
    return Scaled(round(n), off, mean, variance, np.where(constant, 1.0, np.sqrt(variance)), constant)


def make_columns(signs: np.ndarray, costs: Sequence[np.ndarray]) -> Columns:
    """Problems of all folds and classes.

    Parameters
    ----------
    signs : ndarray of shape (n_classes, k)
        Of a row of each class in each of k problems.
    costs : sequence of ndarray of shape (n_classes, k)
        For each fold.
    """
    k = signs.shape[1]
    return Columns(
        np.repeat(np.arange(len(costs)), k),
        np.tile(signs.T, (len(costs), 1)),
        np.concatenate([each.T for each in costs]),
    )
