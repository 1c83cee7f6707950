"""What fit_svm hands back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd
from sklearn.pipeline import Pipeline


@dataclass(frozen=True, repr=False)
class SVMResult:
    """A fitted classifier and everything that is known of it.

    Attributes
    ----------
    pipeline : sklearn.pipeline.Pipeline
        Fitted on all training rows at the best parameters; it takes the blocks side by side.
    best_params : dict
        C, class_weight and, for the rbf kernel, gamma.
    cv_results : pandas.DataFrame
        One row per candidate: parameters, mean, std, each fold, converged, gap (largest duality gap over objective; NaN
        where the engine does not tell), at_edge, rank.
    metrics : pandas.DataFrame
        Indexed by metric, column ``value``; of the test rows where there are any, else of the out-of-fold predictions.
    per_class : pandas.DataFrame
        Indexed by class: precision, recall, f1, specificity, auroc, average_precision, support.
    confusion : pandas.DataFrame
        Rows are true classes, columns predicted ones.
    predictions : pandas.DataFrame
        Indexed by image id: label, predicted, one decision value per class, and the fold number or "test".
    classes : list
        With ``positive``, the two are "not <positive>" and <positive>, and the pipeline predicts False and True.
    blocks : dict of str to int
        Name and width of each feature block, in the order of the pipeline's columns.
    views : tuple of str
        The pipeline takes the blocks of the first view, then those of the second, and so on.
    evaluated_on : str
        "test" or "out-of-fold".
    scoring : str
        What was maximised to choose the parameters.
    engine : str
        What solved the problems: "newton", "libsvm on kept kernels" or "sklearn".
    warnings : list of str
        What a reader of the numbers should know.
    subsets : pandas.DataFrame or None
        Where blocks were chosen, one row for each set of blocks that was tried: blocks, mean, std, best_params.
    """

    pipeline: Pipeline
    best_params: dict[str, Any]
    cv_results: pd.DataFrame
    metrics: pd.DataFrame
    per_class: pd.DataFrame
    confusion: pd.DataFrame
    predictions: pd.DataFrame
    classes: list[Any]
    blocks: dict[str, int]
    views: tuple[str, ...]
    evaluated_on: str
    scoring: str
    engine: str
    warnings: list[str]
    subsets: pd.DataFrame | None = None

    def __repr__(self) -> str:
        return f"<SVMResult on {', '.join(self.blocks)}: {self._headline()}>"

    def summary(self) -> str:
        """Describe the result in a few lines of text."""
        best = self.cv_results.loc[self.cv_results["rank"].idxmin()]
        params = ", ".join(f"{name}={value!r}" for name, value in self.best_params.items())
        width = sum(self.blocks.values())
        lines = [
            f"features   {' + '.join(self.blocks)} ({width} columns{self._shown_views()})",
            f"chosen     {params}; {self.scoring} {best['mean']:.3f} ± {best['std']:.3f} in cross-validation",
            f"scores     on {self._evaluated_rows()} {self.evaluated_on} images",
            "",
            self.metrics.to_string(header=False, float_format="{:.3f}".format, index_names=False),
            "",
            self.per_class.to_string(float_format="{:.3f}".format),
        ]
        if self.subsets is not None:
            tried = self.subsets[["blocks", "mean", "std"]]
            lines += ["", "blocks tried", tried.to_string(index=False, float_format="{:.3f}".format)]
        return "\n".join([*lines, *(["", *(f"note: {note}" for note in self.warnings)] if self.warnings else [])])

    def _shown_views(self) -> str:
        return f", of the views {', '.join(self.views)}" if len(self.views) > 1 else ""

    def _evaluated_rows(self) -> int:
        tested = self.predictions["fold"] == "test"
        return int(tested.sum() if self.evaluated_on == "test" else (~tested).sum())

    def _headline(self) -> str:
        values = self.metrics["value"]
        return (
            f"accuracy {values['accuracy']:.3f}, balanced accuracy {values['balanced_accuracy']:.3f}, "
            f"{self.evaluated_on} ({self._evaluated_rows()} images)"
        )
