"""Pictures of results; needs the extra plot."""

from __future__ import annotations

import os
from typing import Any

import pandas as pd

from deepfeat.errors import UsageError


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
    figure, axes = _new_figure()
    errors = [scored["score"] - scored["low"], scored["high"] - scored["score"]]
    axes.errorbar(scored["both"], scored["score"], yerr=errors, fmt="o", color="#1f5a8c", ecolor="#9bb8d0", capsize=3)
    for name, row in scored.iterrows():
        axes.annotate(str(name), (row["both"], row["score"]), xytext=(7, 4), textcoords="offset points")
    axes.set(xscale="log", xlabel="images per second, files to features", ylabel="balanced accuracy, 95 % interval")
    axes.grid(alpha=0.3, which="both")
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.25)
    figure.savefig(path)


def _new_figure() -> tuple[Any, Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError("plots need the package matplotlib: run `pip install 'deepfeat[plot]'`") from error
    figure = Figure(figsize=(7, 4.5), dpi=150, layout="constrained")
    return figure, figure.subplots()
