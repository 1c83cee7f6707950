"""LinearSVC on more rows than the engine has memory for: passes over blocks of rows, which are never copied.

The problem is that of `deepfeat.svm.newton` with the squared hinge loss, and so is the method, but no matrix as large
as the features is made: features are scaled by scaling coefficients, and each Newton system is solved nearly, by
conjugate gradients, of which every step is one pass over the rows (Keerthi and DeCoste 2005, A modified finite Newton
method for fast solution of large scale linear SVMs, JMLR 6). The preconditioner is the Hessian that there would be if
all rows of a fold were active to the same degree. It is the same for all classes and values of C but for a factor, and
needs only the eigenvectors of the fold's products of columns, which one pass makes for all folds. All folds and classes
share every pass, each from its solution for the value of C before.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from deepfeat.svm.resources import in_threads

#: Rows of a block; sums over a block are in the precision of the features, sums of blocks in float64.
BLOCK = 2048

#: Newton steps end when the duality gap is below this part of the objective, or does not fall any more.
TOLERANCE = {np.dtype(np.float64): 1e-10, np.dtype(np.float32): 1e-8}

#: Newton steps at one value of C, and steps without a smaller gap, at most.
_MAX_STEPS, _PATIENCE = 50, 3

#: A Newton system is solved to this part of its right side, with so many passes at most.
_FORCING, _MAX_PASSES = 0.05, 40

#: Shortest part of a step that is tried; and the part of the objective that is rounding, in units of it.
_SHORTEST, _ROUNDING = 1e-3, 8

#: Blocks with fewer active rows than this part leave the others out.
_FEW = 0.5


class Scaled(NamedTuple):
    """Scaling and products of the training rows of one fold.

    Attributes
    ----------
    n : int
        Training rows.
    offset, mean, variance, scale : ndarray of shape (d,), float64
        The offset is the mean of rows as they are read, which are shifted. Scale is 1 for a constant column, as in
        scikit-learn's StandardScaler.
    spectrum : ndarray of shape (d + 1,), float64
    basis : ndarray of shape (d + 1, d + 1), float64
        Mean of x xᵀ over scaled rows x that end in a one: eigenvalues, and eigenvectors in columns.
    """

    n: int
    offset: np.ndarray
    mean: np.ndarray
    variance: np.ndarray
    scale: np.ndarray
    spectrum: np.ndarray
    basis: np.ndarray


class Solution(NamedTuple):
    """Solutions of m problems.

    Attributes
    ----------
    coef : ndarray of shape (m, d + 1), float64
        Of scaled features, and the intercept.
    decision : ndarray of shape (n, m), of the type of the features
        Decision values of all rows.
    gap : ndarray of shape (m,), float64
        Duality gap over objective.
    steps : ndarray of shape (m,), int
    """

    coef: np.ndarray
    decision: np.ndarray
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


class Stream:
    """Rows that are read in blocks, by several threads.

    Parameters
    ----------
    X : ndarray of shape (n, d), float32 or float64
        In memory or mapped from a file.
    codes : ndarray of shape (n,), int
        Class of each row.
    train : ndarray of shape (n, n_folds), bool
        Training rows of each fold.
    n_threads : int
    """

    def __init__(self, X: np.ndarray, codes: np.ndarray, train: np.ndarray, n_threads: int) -> None:
        self._X, self._codes, self._train, self._n_threads = X, codes, train, n_threads
        self._dtype = np.dtype(np.float64 if X.dtype == np.float64 else np.float32)
        self._rounding = _ROUNDING * float(np.finfo(self._dtype.type).eps)
        # Near the mean of every fold, so that nothing is lost where a feature varies little about a large value.
        self._shift = np.asarray(X[np.flatnonzero(train.any(axis=1))[:BLOCK]], self._dtype).mean(axis=0)
        self.folds = self._scale_folds()
        self._offset, self._scale = (np.array([getattr(f, name) for f in self.folds]) for name in ("offset", "scale"))

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
        point, decision = self._evaluate(columns, C, start.copy())
        steps, waited = np.zeros(len(start), int), np.zeros(len(start), int)
        for _ in range(_MAX_STEPS):
            live = np.flatnonzero((point.gap > TOLERANCE[self._dtype]) & (waited < _PATIENCE))
            if not len(live):
                break
            here = _Point(*(part[live] for part in point))
            found, values = self._step(columns.take(live), C, here, decision[:, live])
            steps[live] += 1
            waited[live] = np.where(found.gap < 0.5 * here.gap, 0, waited[live] + 1)
            falls = found.objective < here.objective * (1 - self._rounding)
            better = falls | (found.gap < here.gap)
            for old, new in zip(point, found, strict=True):
                old[live[better]] = new[better]
            decision[:, live[better]] = values[:, better]
            # What is no better is rounding.
            waited[live[~better]] = _PATIENCE
        return Solution(point.coef, decision, point.gap, steps)

    def _step(self, columns: Columns, C: float, here: _Point, decision: np.ndarray) -> tuple[_Point, np.ndarray]:
        """Go one Newton step, or the half, a quarter and so on of it where the objective would rise."""
        direction = self._newton_direction(columns, C, here, decision)
        length = np.ones(len(direction))
        while True:
            found, values = self._evaluate(columns, C, here.coef + length[:, None] * direction)
            rises = found.objective > here.objective * (1 + self._rounding)
            if not rises.any() or length.min() < _SHORTEST:
                return found, values
            length[rises] /= 2

    def _newton_direction(self, columns: Columns, C: float, here: _Point, decision: np.ndarray) -> np.ndarray:
        """Solve the Newton systems nearly, by preconditioned conjugate gradients that share their passes."""
        solve = self._preconditioner(columns, C, decision)
        x, r = np.zeros_like(here.gradient), -here.gradient
        z = solve(r)
        q, product = z.copy(), (r * z).sum(axis=1)
        goal = _FORCING**2 * product
        for _ in range(_MAX_PASSES):
            going = product > goal
            if not going.any():
                break
            image = q + self._multiply(columns, C, q, decision)
            with np.errstate(invalid="ignore", divide="ignore"):
                length = np.where(going, product / (q * image).sum(axis=1), 0)[:, None]
            x += length * q
            r -= length * image
            z = solve(r)
            before, product = product, np.where(going, (r * z).sum(axis=1), product)
            q = np.where(going[:, None], z + (product / before)[:, None] * q, q)
        return x

    def _preconditioner(self, columns: Columns, C: float, decision: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        weight = 2 * C * self._sweep(partial(self._active_weight, columns, decision))[0]

        def solve(r: np.ndarray) -> np.ndarray:
            z = np.empty_like(r)
            for fold in np.unique(columns.fold):
                mine, known = columns.fold == fold, self.folds[fold]
                z[mine] = (r[mine] @ known.basis) / (1 + weight[mine, None] * known.spectrum) @ known.basis.T
            return z

        return solve

    # Passes over the rows.

    def _evaluate(self, columns: Columns, C: float, coef: np.ndarray) -> tuple[_Point, np.ndarray]:
        decision = np.empty((len(self._X), len(coef)), self._dtype)
        work = partial(self._losses, columns, *self._unscaled(columns, coef), decision)
        sums, total, linear, squares = self._sweep(work)
        v = 2 * C * self._scaled(columns, sums, total)
        quadratic = 0.5 * (coef * coef).sum(axis=1)
        objective = quadratic + C * squares
        bound = 2 * C * linear - 0.5 * (v * v).sum(axis=1) - C * squares
        return _Point(coef, coef - v, objective, (objective - bound) / objective), decision

    def _losses(
        self, columns: Columns, coef: np.ndarray, intercept: np.ndarray, decision: np.ndarray, part: slice
    ) -> tuple[np.ndarray, ...]:
        rows, (signs, costs) = self._rows(part), self._of_rows(columns, part)
        f = rows @ coef.T + intercept
        decision[part] = f
        excess = np.maximum(1 - signs * f, 0)
        costs *= excess
        signs *= costs
        return signs.T @ rows, *(np.sum(part, axis=0, dtype=np.float64) for part in (signs, costs, costs * excess))

    def _multiply(self, columns: Columns, C: float, q: np.ndarray, decision: np.ndarray) -> np.ndarray:
        """Products of the Hessians, less the identity, with one vector each."""
        work = partial(self._curvature, columns, *self._unscaled(columns, q), decision)
        return 2 * C * self._scaled(columns, *self._sweep(work))

    def _curvature(
        self, columns: Columns, coef: np.ndarray, intercept: np.ndarray, decision: np.ndarray, part: slice
    ) -> tuple[np.ndarray, ...]:
        rows, (signs, costs) = self._rows(part), self._of_rows(columns, part)
        costs *= signs * decision[part] < 1
        some = costs.any(axis=1)
        if some.mean() < _FEW:
            rows, costs = rows[some], costs[some]
        costs *= rows @ coef.T + intercept
        return costs.T @ rows, costs.sum(axis=0, dtype=np.float64)

    def _active_weight(self, columns: Columns, decision: np.ndarray, part: slice) -> tuple[np.ndarray, ...]:
        signs, costs = self._of_rows(columns, part)
        return (costs.sum(axis=0, where=signs * decision[part] < 1),)

    def _sweep(self, work: Callable[[slice], tuple[np.ndarray, ...]]) -> list[np.ndarray]:
        """Sum what a function makes of each block of rows, in float64."""
        starts = np.array_split(np.arange(0, len(self._X), BLOCK), self._n_threads)

        def run(some: np.ndarray) -> list[np.ndarray]:
            sums: list[np.ndarray] = []
            for start in some:
                parts = [np.asarray(p, np.float64) for p in work(slice(start, start + BLOCK))]
                sums = [s + p for s, p in zip(sums, parts, strict=True)] if sums else parts
            return sums

        found = in_threads((partial(run, some) for some in starts if len(some)), self._n_threads)
        return [np.sum(parts, axis=0) for parts in zip(*found, strict=True)]

    def _rows(self, part: slice) -> np.ndarray:
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
        raw = coef[:, :-1] / self._scale[columns.fold]
        intercept = coef[:, -1] - (raw * self._offset[columns.fold]).sum(axis=1)
        return raw.astype(self._dtype), intercept.astype(self._dtype)

    def _scaled(self, columns: Columns, sums: np.ndarray, total: np.ndarray) -> np.ndarray:
        """Weighted sums of scaled rows, from those of the rows as they are and the sums of the weights."""
        return np.column_stack(
            [(sums - total[:, None] * self._offset[columns.fold]) / self._scale[columns.fold], total]
        )

    def _scale_folds(self) -> list[Scaled]:
        """Scaling and products for each fold, from those of the rows that are in the same folds."""
        patterns, pattern = np.unique(self._train, axis=0, return_inverse=True)
        width, lock = self._X.shape[1] + 1, threading.Lock()
        sums = np.zeros((len(patterns), width, width))

        def add(part: slice) -> tuple[np.ndarray, ...]:
            here = pattern.ravel()[part]
            rows = np.column_stack([self._rows(part), np.ones(len(here), self._dtype)])
            for number in np.unique(here):
                some = rows[here == number]
                moment = some.T @ some
                with lock:
                    sums[number] += moment
            return ()

        self._sweep(add)
        moments = (sums[within].sum(axis=0) for within in patterns.T)
        return in_threads((partial(_describe, moment, self._shift) for moment in moments), self._n_threads)


def _describe(moment: np.ndarray, shift: np.ndarray) -> Scaled:
    """Scaling and scaled products from those of rows that are shifted and end in a one."""
    n = round(moment[-1, -1])
    off = moment[:-1, -1] / n
    mean = off + shift
    centred = moment[:-1, :-1] - n * np.outer(off, off)
    variance = np.maximum(centred.diagonal() / n, 0)
    constant = np.sqrt(variance) <= 10 * np.finfo(np.float32).eps * np.abs(mean)
    scale = np.where(constant, 1.0, np.sqrt(variance))
    scaled = np.zeros_like(moment)
    scaled[:-1, :-1] = centred / np.outer(scale, scale)
    scaled[-1, -1] = n
    return Scaled(n, off, mean, variance, scale, *np.linalg.eigh(scaled / n))


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
