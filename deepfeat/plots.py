"""Pictures of results; needs the extra plot."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from deepfeat.curves import Scores, precision_recall, reliability, roc, shown_classes, take_scores
from deepfeat.errors import UsageError
from deepfeat.outputs import check_output

if TYPE_CHECKING:
    from deepfeat.svm import SVMResult

#: Endings of the files that plots are written to.
FORMATS = (".png", ".svg", ".pdf")

#: Titles of the panels of a result; the last where it is calibrated.
_PANELS = ("Confusion matrix", "ROC curve", "Precision–recall curve", "Reliability")


def plot_benchmark(table: pd.DataFrame, path: str | os.PathLike[str]) -> None:
    """Draw score against speed, a point for each backbone, and write it to a file.

    Parameters
    ----------
    table : pandas.DataFrame
        From `deepfeat.benchmark`, with scores.
    path : path
        Its ending decides the format: .png, .svg or .pdf.

    Raises
    ------
    UsageError
        If there is no score to draw, or matplotlib is not installed.
    """
    scored = table.dropna(subset=["score"])
    if scored.empty:
        raise UsageError("there are no scores to draw: benchmark images that have labels")
    figure = _new_figure((7, 4.5), path)
    axes = figure.subplots()
    errors = [scored["score"] - scored["low"], scored["high"] - scored["score"]]
    axes.errorbar(scored["both"], scored["score"], yerr=errors, fmt="o", color="#1f5a8c", ecolor="#9bb8d0", capsize=3)
    for name, row in scored.iterrows():
        axes.annotate(str(name), (row["both"], row["score"]), xytext=(7, 4), textcoords="offset points")
    axes.set(xscale="log", xlabel="images per second, files to features", ylabel="balanced accuracy, 95 % interval")
    axes.grid(alpha=0.3, which="both")
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.25)
    _label_speeds(axes.xaxis, *axes.get_xlim())
    figure.savefig(path)


def _label_speeds(axis: Any, low: float, high: float) -> None:
    """Write round numbers along a logarithmic axis; powers of ten alone are too few for speeds that are alike."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)) if high > 8 * low else MaxNLocator(5, steps=(1, 2, 5, 10)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def plot_similarity(table: pd.DataFrame, path: str | os.PathLike[str]) -> None:
    """Draw which blocks say the same as a heat map, and write it to a file.

    Parameters
    ----------
    table : pandas.DataFrame of shape (n_blocks, n_blocks)
        From `deepfeat.linear_cka`.
    path : path
        Its ending decides the format: .png, .svg or .pdf.

    Raises
    ------
    UsageError
        If there are no blocks to draw, or matplotlib is not installed.

    Examples
    --------
    >>> import deepfeat
    >>> deepfeat.plot_similarity(deepfeat.linear_cka("skin.h5"), "similarity.png")
    """
    if table.empty:
        raise UsageError("there are no blocks to draw: extract features first")
    side = 2.6 + 0.75 * len(table)
    figure = _new_figure((side + 0.6, side), path)
    axes = figure.subplots()
    image = axes.imshow(table.to_numpy(float), cmap="viridis", vmin=0, vmax=1)
    ticks = range(len(table))
    axes.set_xticks(ticks, [str(name) for name in table.columns], rotation=35, ha="right", rotation_mode="anchor")
    axes.set_yticks(ticks, [str(name) for name in table.index])
    for (row, column), value in np.ndenumerate(table.to_numpy(float)):
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", color="black" if value > 0.6 else "white")
    axes.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes, label="linear CKA", shrink=0.8)
    figure.savefig(path)


def plot_history(backbones: Any, path: str | os.PathLike[str]) -> None:
    """Draw loss and accuracy of each epoch of fine-tuning and write them to a file.

    Parameters
    ----------
    backbones : Backbone or list of Backbone
        From `deepfeat.finetune`.
    path : path
        Its ending decides the format: .png, .svg or .pdf.

    Raises
    ------
    UsageError
        If a backbone was not fine-tuned, or matplotlib is not installed.

    Examples
    --------
    >>> import deepfeat
    >>> mine = deepfeat.load_backbone("mine.keras", preprocess="tf")
    >>> skin = deepfeat.finetune("photos", mine, "skin.keras", head_epochs=2, epochs=0, progress=False)
    >>> deepfeat.plot_history(skin, "history.png")
    """
    listed = backbones if isinstance(backbones, list | tuple) else [backbones]
    without = [backbone.name for backbone in listed if backbone.history.empty]
    if without or not listed:
        msg = f"there is no history to draw of {without[0] if without else 'no backbones'}: pass those of finetune"
        raise UsageError(msg)
    figure = _new_figure((10, 4.2), path)
    left, right = figure.subplots(1, 2)
    for number, backbone in enumerate(listed):
        _draw_curves(left, backbone, "loss", "val_loss", f"C{number}")
        _draw_curves(right, backbone, "accuracy", "val_balanced_accuracy", f"C{number}")
    left.set(xlabel="epoch", ylabel="cross-entropy", ylim=(0, None))
    right.set(xlabel="epoch", ylabel="accuracy", ylim=(0, 1))
    for axes, solid in ((left, "validation"), (right, "validation, balanced over classes")):
        axes.plot([], [], color="grey", label=solid)
        axes.plot([], [], color="grey", linestyle="--", label="training")
        axes.plot([], [], color="grey", marker="o", linestyle="", label="weights that were kept")
        axes.plot([], [], color="grey", linestyle=":", label="layers unfrozen")
        axes.legend(fontsize=8, frameon=False)
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def _draw_curves(axes: Any, backbone: Any, training: str, validation: str, color: str) -> None:
    history = backbone.history.set_index("epoch")
    axes.plot(history[validation], color=color, label=backbone.name)
    axes.plot(history[training], color=color, linestyle="--", alpha=0.7)
    kept = history["val_loss"].idxmin()
    axes.plot(kept, history[validation][kept], "o", color=color)
    head = (history["phase"] == "head").sum()
    if 0 < head < len(history):
        axes.axvline(head + 0.5, color=color, linestyle=":", alpha=0.5)


def draw_result(result: SVMResult, path: str | os.PathLike[str]) -> None:
    """Draw confusion matrix, ROC curves, precision-recall curves and reliability; see `deepfeat.SVMResult.plot`."""
    scores = take_scores(result)
    calibrated = scores.probabilities is not None
    figure = _new_figure((11, 9) if calibrated else (15, 4.6), path)
    panels = figure.subplots(2, 2).flat if calibrated else figure.subplots(1, 3)
    _draw_confusion(panels[0], result.confusion)
    numbers = shown_classes(result, scores)
    each = result.per_class.reset_index(drop=True)
    _draw_bands(
        panels[1], scores, numbers, roc, ("1 − specificity", "recall"), (1 - each["specificity"], each["recall"])
    )
    panels[1].plot([0, 1], [0, 1], color="grey", linewidth=0.8, linestyle="--")
    points = (each["recall"], each["precision"])
    _draw_bands(panels[2], scores, numbers, precision_recall, ("recall", "precision"), points)
    for axes, title in zip(panels, _PANELS, strict=False):
        axes.set_title(title, fontsize=10)
    for text in panels[1].legend(fontsize=8, frameon=False, loc="lower right").get_texts():
        text.set_parse_math(False)
    if calibrated:
        _draw_reliability(panels[3], scores)
    figure.savefig(path)


def _draw_confusion(axes: Any, confusion: pd.DataFrame) -> None:
    counts = confusion.to_numpy()
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        color = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, f"{count:,}", ha="center", va="center", fontsize=8, color=color)
    names = [str(label) for label in confusion.index]
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", parse_math=False)
    axes.set_yticks(range(len(names)), names, parse_math=False)
    axes.set(xlabel="predicted", ylabel="true")


def _draw_bands(axes: Any, scores: Scores, numbers: Any, make: Any, names: tuple[str, str], points: Any) -> None:
    """Draw a curve for each class with its operating point, and with its band where it is alone."""
    for k in numbers:
        curve = make(scores, k)
        if curve is None:
            continue
        [line] = axes.plot(curve.x, curve.y, linewidth=1.4, label=str(scores.classes[k]))
        axes.plot(points[0][k], points[1][k], "o", color=line.get_color(), markersize=5)
        if len(numbers) == 1:
            axes.fill_between(curve.band_x, curve.low, curve.high, color=line.get_color(), alpha=0.2, linewidth=0)
    axes.set(xlabel=names[0], ylabel=names[1], xlim=(0, 1), ylim=(0, 1.01))
    _tidy(axes)


def _draw_reliability(axes: Any, scores: Scores) -> None:
    bins = reliability(scores)
    errors = np.maximum(0, [bins.observed - bins.low, bins.high - bins.observed])
    axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8, linestyle="--")
    axes.errorbar(bins.predicted, bins.observed, yerr=errors, fmt="o-", markersize=4, linewidth=1.2, elinewidth=0.8)
    axes.set(xlabel="predicted probability", ylabel="observed share", xlim=(0, 1), ylim=(0, 1.01))
    _tidy(axes)


def _tidy(axes: Any) -> None:
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def draw_feature_maps(
    pictures: Mapping[str, np.ndarray],
    maps: Mapping[str, Mapping[str, np.ndarray]],
    path: str | os.PathLike[str],
    channels: int,
) -> None:
    """Draw the most varied maps of each layer, networks side by side, and write them to a file.

    Parameters
    ----------
    pictures : mapping of str to ndarray of shape (height, width, 3), uint8
        What each network saw.
    maps : mapping of str to mapping of str to ndarray of shape (height, width, channels)
        Of each network and layer.
    path : path
    channels : int
        Maps of each layer.
    """
    n_rows = max(len(layers) for layers in maps.values())
    figure = _new_figure((1.25 * (channels + 0.4) * len(maps), 1.35 * (n_rows + 1) + 0.4), path)
    for part, (network, layers) in zip(np.atleast_1d(figure.subfigures(1, len(maps))), maps.items(), strict=True):
        part.suptitle(network, fontsize=10, weight="bold")
        grid = part.subplots(n_rows + 1, channels, squeeze=False)
        for axes in grid.flat:
            axes.axis("off")
        grid[0, 0].imshow(pictures[network])
        grid[0, 0].set_title("image", fontsize=7, loc="left")
        for row, (layer, values) in zip(grid[1:], layers.items(), strict=False):
            size = " x ".join(map(str, values.shape))
            row[0].set_title(f"{layer}  {size}", fontsize=7, loc="left")
            varied = np.argsort(values.std(axis=(0, 1)))[::-1][:channels]
            for axes, channel in zip(row, varied, strict=False):
                axes.imshow(values[..., channel], cmap="magma", interpolation="nearest")
    figure.savefig(path)


def draw_activation_maps(
    pictures: Mapping[str, np.ndarray], maps: Mapping[str, Mapping[str, np.ndarray]], path: str | os.PathLike[str]
) -> None:
    """Draw where each layer is active, over the picture, a row for each network, and write it to a file.

    Parameters
    ----------
    pictures, maps, path
        As in `draw_feature_maps`.
    """
    n_columns = 1 + max(len(layers) for layers in maps.values())
    figure = _new_figure((1.7 * n_columns, 2.05 * len(maps)), path)
    for row, (network, layers) in zip(figure.subplots(len(maps), n_columns, squeeze=False), maps.items(), strict=True):
        height, width = pictures[network].shape[:2]
        for axes in row:
            axes.axis("off")
        for axes in row[: 1 + len(layers)]:
            axes.imshow(pictures[network], extent=(0, width, height, 0))
        row[0].set_title(network, fontsize=9, weight="bold")
        for axes, (layer, values) in zip(row[1:], layers.items(), strict=False):
            energy = np.square(values).sum(axis=-1)
            # Padding makes the corners of some layers brighter than all the rest.
            low, high = np.percentile(energy, (2, 98))
            shown = np.clip((energy - low) / ((high - low) or 1), 0, 1)
            options = {"cmap": "inferno", "interpolation": "bilinear", "extent": (0, width, height, 0)}
            axes.imshow(shown, alpha=0.25 + 0.5 * shown, vmin=0, vmax=1, **options)
            axes.set_title(f"{layer}\n{values.shape[0]} x {values.shape[1]}", fontsize=7)
    figure.savefig(path)


def draw_explanation(picture: np.ndarray, maps: Mapping[str, np.ndarray], path: str | os.PathLike[str]) -> None:
    """Draw maps of what speaks for a class (red) and against it (blue) over a picture, and write them to a file.

    Parameters
    ----------
    picture : ndarray of shape (height, width, 3), uint8
    maps : mapping of str to ndarray of shape (height, width)
        By their titles; each has a scale of its own.
    path : path
    """
    height, width = picture.shape[:2]
    edge = 2.4
    figure = _new_figure((edge * (1 + len(maps)), edge * height / width + 0.35), path)
    shown = {"image": None, **maps}
    for axes, (title, values) in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown.items(), strict=True):
        axes.axis("off")
        axes.set_title(title, fontsize=8)
        axes.imshow(picture, extent=(0, width, height, 0))
        if values is None:
            continue
        largest = np.abs(values).max() or 1
        strength = np.abs(values) / largest
        options = {"cmap": "RdBu_r", "interpolation": "bilinear", "extent": (0, width, height, 0)}
        axes.imshow(values, alpha=0.15 + 0.5 * strength, vmin=-largest, vmax=largest, **options)
    figure.savefig(path)


def check_picture(path: str | os.PathLike[str]) -> None:
    """Refuse a file whose ending is no format of pictures, or whose folder is not there.

    Raises
    ------
    UsageError
    """
    check_output(path, FORMATS)


def _new_figure(size: tuple[float, float], path: str | os.PathLike[str]) -> Any:
    check_picture(path)
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError("plots need the package matplotlib: run `pip install 'deepfeat[plot]'`") from error
    return Figure(figsize=size, dpi=150, layout="constrained")
