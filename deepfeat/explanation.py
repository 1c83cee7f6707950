"""Which positions of an image speak for a class, from the feature maps behind pooled features.

Features that are averages over the positions of a map, and a classifier that is affine in them, make the decision value
a sum over positions [1]_: nothing has to be approximated. For another kernel, positions are left out of the average.

References
----------
.. [1] Zhou et al. (2016), Learning deep features for discriminative localization, CVPR, equation 2; here with the
   weights of a support vector machine over several networks.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from sklearn.pipeline import Pipeline
from sklearn.svm import SVC, LinearSVC

from deepfeat.errors import UsageError
from deepfeat.evaluation import class_scores
from deepfeat.images import CROP, CROPS, TURNS
from deepfeat.plots import draw_explanation

#: Rows in which a classifier is asked at once.
_ROWS = 256


@dataclass(frozen=True, repr=False)
class Explanation:
    """Where in an image a classifier's decision value for one class comes from.

    Attributes
    ----------
    path : str
    label : label
        The class that is explained.
    decision : float
        Decision value of the class.
    method : {"activation", "occlusion"}
        "activation": the decision value, split exactly. "occlusion": by how much the decision value falls when a
        position is left out of the average.
    total : ndarray of shape (height, width), float64
        All blocks and views together, upright over the picture; for "activation" its sum is the decision value.
    maps : dict of str to ndarray of shape (height, width), float64
        The same for each block alone, all its views together. For "activation" the sum of all maps and ``constant`` is
        the decision value.
    constant : float
        What belongs to no position: the decision value for features of zero. In ``total`` it is spread evenly. 0 for
        "occlusion".
    picture : ndarray of shape (height, width, 3), uint8
        The upright picture.
    """

    path: str
    label: Any
    decision: float
    method: str
    total: np.ndarray
    maps: dict[str, np.ndarray]
    constant: float
    picture: np.ndarray

    def __repr__(self) -> str:
        return f"<Explanation of {self.label} for {self.path}: decision value {self.decision:.3f}, by {self.method}>"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Draw the maps over the picture, and write them to a file.

        Red speaks for the class more than the mean of the map does, and blue less; after "occlusion", red is where
        the decision value falls, and blue where it rises.

        Parameters
        ----------
        path : path
            Its ending decides the format: .png, .svg or .pdf.

        Raises
        ------
        UsageError
            If matplotlib is not installed.
        """
        named = {f"{self.label}: {self.decision:.2f}": self.total, **(self.maps if len(self.maps) > 1 else {})}
        # The constant belongs to no block, and would make all of one red and all of another blue.
        shift = {title: values.mean() if self.method == "activation" else 0 for title, values in named.items()}
        draw_explanation(self.picture, {title: values - shift[title] for title, values in named.items()}, path)


class Maps(NamedTuple):
    """Feature maps of one block for one view of one image.

    Attributes
    ----------
    block : str
    view : str
        One of `deepfeat.images.VIEWS`.
    values : ndarray of shape (height, width, channels)
    pooling : str or None
    resize : str
        How the picture became the network's input, see `deepfeat.resizing.resize_image`.
    aspect : float
        Width over height of the network's input.
    """

    block: str
    view: str
    values: np.ndarray
    pooling: str | None
    resize: str
    aspect: float


def split_decision(
    pipeline: Pipeline, maps: Sequence[Maps], column: int, shape: tuple[int, int]
) -> tuple[str, np.ndarray, dict[str, np.ndarray], float]:
    """Split a decision value over the positions of a picture.

    Parameters
    ----------
    pipeline : Pipeline
        Fitted on the pooled maps side by side, in their order.
    maps : sequence of Maps
    column : int
        Which decision value; with two classes, 0 is that of the first with its sign turned.
    shape : tuple of int
        Height and width of the upright picture.

    Returns
    -------
    method, total, maps, constant
        As in `Explanation`.

    Raises
    ------
    UsageError
        If a block has no maps, or a pooling that has no share for each position.
    """
    affine = is_affine(pipeline)
    _refuse_others(maps, ("avg", "flatten") if affine else ("avg",))
    parts = [_Part(m, *_placements(m, shape)) for m in maps]
    grid = _finest([part.upright.shape[:2] for part in parts])
    if not affine:
        return "occlusion", *_occlude(pipeline, parts, column, grid), 0.0
    weights, constant = affine_coefficients(pipeline, sum(part.width for part in parts), column)
    by_block: dict[str, np.ndarray] = {}
    start = 0
    for part in parts:
        share = part.contributions(weights[start : start + part.width])
        by_block.setdefault(part.maps.block, np.zeros(grid))
        by_block[part.maps.block] += part.place(share, grid)
        start += part.width
    total = np.sum(list(by_block.values()), axis=0) + constant / np.prod(grid)
    return "activation", total, by_block, constant


def is_affine(pipeline: Pipeline) -> bool:
    """Whether decision values are affine in the features: one SVM for each class, or for two, with a linear kernel."""
    svm = _find_svm(pipeline)
    return isinstance(svm, LinearSVC) or (svm.kernel == "linear" and len(svm.classes_) == 2)


def affine_coefficients(pipeline: Pipeline, width: int, column: int) -> tuple[np.ndarray, float]:
    """Read the coefficients of an affine classifier from its values at zero and at the unit vectors.

    Whatever scaling, fusion and views are in the pipeline, they are in the coefficients.

    Returns
    -------
    weights : ndarray of shape (width,)
    constant : float
    """

    def decide(X: np.ndarray) -> np.ndarray:
        return class_scores(pipeline.decision_function(X))[:, column]

    constant = float(decide(np.zeros((1, width)))[0])
    weights = np.empty(width)
    for start in range(0, width, _ROWS):
        stop = min(start + _ROWS, width)
        units = np.zeros((stop - start, width))
        units[np.arange(stop - start), np.arange(start, stop)] = 1
        weights[start:stop] = decide(units) - constant
    return weights, constant


class _Part:
    """The maps of one block and view, and where they are in the picture."""

    def __init__(self, maps: Maps, rows: tuple[float, float], columns: tuple[float, float]) -> None:
        self.maps, self._rows, self._columns = maps, rows, columns
        self.upright = _turn_back(maps.values.astype(np.float64), maps.view)
        height, self.n_columns, channels = maps.values.shape
        self.positions = height * self.n_columns
        self.width = channels * (self.positions if maps.pooling == "flatten" else 1)

    def contributions(self, weights: np.ndarray) -> np.ndarray:
        """What each position adds to the decision value, upright."""
        values = self.maps.values.astype(np.float64)
        if self.maps.pooling == "flatten":
            return _turn_back((values * weights.reshape(values.shape)).sum(axis=-1), self.maps.view)
        return _turn_back(values @ weights / self.positions, self.maps.view)

    def place(self, values: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
        """Share out the values of positions to the cells of a grid over the picture; their sum stays."""
        return np.asarray(self.overlap(0, grid) @ values @ self.overlap(1, grid).T)

    def overlap(self, axis: int, grid: tuple[int, int]) -> np.ndarray:
        return overlap(self.upright.shape[axis], grid[axis], *(self._rows, self._columns)[axis])

    def without(self, cells: np.ndarray) -> np.ndarray:
        """Averages over what is left of the positions when a part of each is left out, of shape (n, width)."""
        kept = 1 - cells.reshape(len(cells), -1)
        flat = self.upright.reshape(self.positions, -1)
        return np.asarray(kept @ flat / np.maximum(kept.sum(axis=1, keepdims=True), 1e-12))


def overlap(n_source: int, n_target: int, low: float, high: float) -> np.ndarray:
    """Which share of each of the source's cells lies in each of the target's cells, along one axis.

    Parameters
    ----------
    n_source, n_target : int
    low, high : float
        Where the source's ends are in the target, whose ends are 0 and 1. What lies outside counts to the outermost
        cell.

    Returns
    -------
    ndarray of shape (n_target, n_source)
        Each column sums to 1.
    """
    edges = np.linspace(low, high, n_source + 1)
    inner = np.linspace(0, 1, n_target + 1)
    inner[0], inner[-1] = min(0.0, low) - 1, max(1.0, high) + 1
    top = np.minimum(edges[1:], inner[1:, np.newaxis])
    bottom = np.maximum(edges[:-1], inner[:-1, np.newaxis])
    return np.asarray(np.clip(top - bottom, 0, None) / (edges[1:] - edges[:-1]))


def _occlude(
    pipeline: Pipeline, parts: Sequence[_Part], column: int, grid: tuple[int, int]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """By how much the decision value falls without each cell of the grid, for all blocks and for each alone."""
    pooled = [part.without(np.zeros((1, part.positions))) for part in parts]
    left = [part.without(_cells(part, grid)) for part in parts]
    n_cells = grid[0] * grid[1]

    def decide(features: Sequence[np.ndarray]) -> np.ndarray:
        return class_scores(pipeline.decision_function(np.hstack(features)))[:, column]

    whole = decide(pooled)

    def fall(occluded: Sequence[bool]) -> np.ndarray:
        pairs = zip(left, pooled, occluded, strict=True)
        rows = [inside if chosen else np.repeat(outside, n_cells, axis=0) for inside, outside, chosen in pairs]
        return np.asarray((whole - decide(rows)).reshape(grid))

    names = dict.fromkeys(part.maps.block for part in parts)
    return fall([True] * len(parts)), {name: fall([p.maps.block == name for p in parts]) for name in names}


def _cells(part: _Part, grid: tuple[int, int]) -> np.ndarray:
    """Which share of each position lies in each cell of the grid, of shape (cells, positions)."""
    shares = np.einsum("ai,bj->abij", part.overlap(0, grid), part.overlap(1, grid))
    return np.asarray(shares.reshape(grid[0] * grid[1], part.positions))


def _refuse_others(maps: Sequence[Maps], poolings: tuple[str, ...]) -> None:
    for m in maps:
        if m.values.ndim != 3:
            msg = (
                f"{m.block} is a layer of shape {m.values.shape} without positions, which cannot be explained: extract "
                "a layer that has feature maps, with pooling 'avg'"
            )
            raise UsageError(msg)
        if m.pooling not in poolings:
            allowed = " or ".join(map(repr, poolings))
            msg = f"{m.block} has the pooling {m.pooling!r}, which has no share for each position: use {allowed}"
            raise UsageError(msg)


def _find_svm(estimator: Any) -> Any:
    """The SVM inside a pipeline; the first, where there is one for each block."""
    while not isinstance(estimator, LinearSVC | SVC):
        if isinstance(estimator, Pipeline):
            estimator = estimator.steps[-1][1]
        else:
            estimator = estimator.estimators_[0] if hasattr(estimator, "estimators_") else estimator.estimator_
    return estimator


def _finest(shapes: Sequence[tuple[int, ...]]) -> tuple[int, int]:
    return max(shape[0] for shape in shapes), max(shape[1] for shape in shapes)


def _turn_back(values: np.ndarray, view: str) -> np.ndarray:
    """Bring the map of a mirrored or turned picture back to the upright one."""
    turned: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "hflip": np.fliplr,
        "vflip": np.flipud,
        "rot90": lambda v: np.rot90(v, -1),
        "rot180": lambda v: np.rot90(v, 2),
        "rot270": np.rot90,
    }
    return turned[view](values) if view in TURNS else values


def _placements(maps: Maps, shape: tuple[int, int]) -> tuple[tuple[float, float], tuple[float, float]]:
    """Where the ends of an upright map are in the upright picture, as parts of its height and width."""
    sideways = maps.view in ("rot90", "rot270")
    aspect = shape[1] / shape[0]
    wanted = 1 / maps.aspect if sideways else maps.aspect
    limit = {"crop": min, "pad": max}.get(maps.resize)
    high = wide = 1.0
    if limit is not None:
        high, wide = limit(1.0, aspect / wanted), limit(1.0, wanted / aspect)
    rows, columns = ((1 - high) / 2, (1 + high) / 2), ((1 - wide) / 2, (1 + wide) / 2)
    if maps.view not in CROPS:
        return rows, columns
    left, top = (part * (1 - CROP) for part in CROPS[maps.view])
    return (top + CROP * rows[0], top + CROP * rows[1]), (left + CROP * columns[0], left + CROP * columns[1])
