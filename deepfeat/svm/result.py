"""What fit_svm hands back."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd
from sklearn.calibration import CalibratedClassifierCV
from sklearn.pipeline import Pipeline

from deepfeat.bootstrap import PER_CLASS
from deepfeat.bundle import write_bundle
from deepfeat.display import describe, draw_notes, draw_table
from deepfeat.evaluation import scored_rows
from deepfeat.markup import shown_interval

if TYPE_CHECKING:
    from deepfeat.report.gallery import Explain


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
        Indexed by metric: value, and low and high, the ends of its 95 % interval; of the test rows where there are any,
        else of the nested predictions, else of the out-of-fold ones.
    per_class : pandas.DataFrame
        Indexed by class: precision, recall, f1, specificity, auroc, average_precision, support; and precision_low,
        precision_high and so on, the ends of the intervals.
    confusion : pandas.DataFrame
        Rows are true classes, columns predicted ones.
    predictions : pandas.DataFrame
        Indexed by image id: label, predicted, one decision value per class, with calibration one "probability CLASS"
        per class, the number of the group of images that stay together, and the fold number or "test". Those of
        training rows are out-of-fold or, with ``nested=True``, of the outer folds.
    classes : list
        With ``positive``, the two are "not <positive>" and <positive>, and the pipeline predicts False and True.
    positive : label or None
        The class that was set against all others.
    blocks : dict of str to int
        Name and width of each feature block, in the order of the pipeline's columns.
    views : tuple of str
        The pipeline takes the blocks of the first view, then those of the second, and so on.
    evaluated_on : str
        "test", "nested" or "out-of-fold".
    scoring : str
        What was maximised to choose the parameters.
    engine : str
        What solved the problems: "newton", "newton in blocks of rows", "libsvm on kept kernels" or "sklearn".
    warnings : list of str
        What a reader of the numbers should know.
    subsets : pandas.DataFrame or None
        Where blocks were chosen, one row for each set of blocks that was tried: blocks, mean, std, best_params.
    nested : pandas.DataFrame or None
        Indexed by metric: the nested estimate as value, low and high; plain, the out-of-fold metric at the chosen
        parameters; and optimism, the difference.
    nested_choices : pandas.DataFrame or None
        One row for each outer fold: what was chosen in it.
    calibrator : CalibratedClassifierCV or None
        From decision values to probabilities, see `deepfeat.svm.calibration.probabilities`.
    threshold : float or None
        With a threshold, the positive class is predicted from this decision value on, which the pipeline does not know.
    wish : str or None
        By which the threshold was chosen.
    provenance : dict
        What the numbers came from: versions, store, blocks, digests of rows, contents and folds, arguments, seconds.

    Examples
    --------
    >>> import deepfeat
    >>> result = deepfeat.fit_svm("skin.h5", backbones="EfficientNetLite0", cv=3)
    >>> result.evaluated_on, list(result.per_class.index)
    ('out-of-fold', ['MEL', 'NV'])
    >>> result.predictions[["label", "predicted"]].shape
    (24, 2)
    >>> result.pipeline.predict(deepfeat.open_features("skin.h5").features("EfficientNetLite0", ["mel01"])).shape
    (1,)
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
    positive: Any = None
    nested: pd.DataFrame | None = None
    nested_choices: pd.DataFrame | None = None
    calibrator: CalibratedClassifierCV | None = None
    threshold: float | None = None
    wish: str | None = None
    provenance: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"<SVMResult on {', '.join(self.blocks)}: {self._headline()}>"

    def _repr_html_(self) -> str:
        params = ", ".join(f"{name}={value!r}" for name, value in self.best_params.items())
        return describe(
            f"SVMResult on {' + '.join(self.blocks)}, {params}: {self._headline()}",
            draw_table(_with_intervals(self.metrics)),
            draw_table(self.per_class[[*PER_CLASS, "support"]]),
            draw_notes(self.warnings),
        )

    def save(self, path: str | os.PathLike[str], weights: str | os.PathLike[str] | Sequence[Any] = ()) -> None:
        """Write the classifier into one file, which `deepfeat.load` reads without running anything in it.

        In it are the pipeline, the calibrator, classes, threshold, metrics, provenance, the description of each
        block with the digest of its network's weights, and the weights that are named here. No image and no row of
        the predictions is.

        Parameters
        ----------
        path : path
            By custom "NAME.deepfeat". A file of this name is replaced.
        weights : path or list of paths
            ``.keras`` or ``.weights.h5`` files with which features were computed and that are to travel along; the
            manifest of a fine-tuned network goes with it, and with it the digests of its training images. Networks
            whose weights come from elsewhere, or are not named here, have to be on the machine that loads.

        Raises
        ------
        UsageError
            If a file holds weights that no block was computed with, or layers that may hold code; or if there is no
            folder for the file.
        BundleError
            If `deepfeat.load` would refuse the file: nothing is written then.

        Examples
        --------
        >>> import deepfeat
        >>> result = deepfeat.fit_svm("skin.h5", backbones="EfficientNetLite0", cv=3)
        >>> result.save("melanoma.deepfeat")
        >>> deepfeat.load("melanoma.deepfeat").classes
        ['MEL', 'NV']
        """
        write_bundle(self, path, weights)

    def summary(self) -> str:
        """Describe the result in a few lines of text.

        Returns
        -------
        str
            Features, what was chosen, metrics with their intervals, each class, and what a reader should know.

        Examples
        --------
        >>> import deepfeat
        >>> print(deepfeat.fit_svm("skin.h5", cv=3).summary())
        features   EfficientNetLite0 + colour (1286 columns)
        chosen     C=...
        """
        best = self.cv_results.loc[self.cv_results["rank"].idxmin()]
        params = ", ".join(f"{name}={value!r}" for name, value in self.best_params.items())
        width = sum(self.blocks.values())
        lines = [
            f"features   {' + '.join(self.blocks)} ({width} columns{self._shown_views()})",
            f"chosen     {params}; {self.scoring} {best['mean']:.3f} ± {best['std']:.3f} in cross-validation",
            f"scores     on {self._evaluated_rows()} {self.evaluated_on} images",
            "",
            *self._shown_threshold(),
            _with_intervals(self.metrics).to_string(header=False, index_names=False),
            "",
            self.per_class[[*PER_CLASS, "support"]].to_string(float_format="{:.3f}".format),
        ]
        if self.nested is not None:
            lines += ["", "nested estimate", *_shown_nested(self.nested)]
        if self.subsets is not None:
            tried = self.subsets[["blocks", "mean", "std"]]
            lines += ["", "blocks tried", tried.to_string(index=False, float_format="{:.3f}".format)]
        return "\n".join([*lines, *(["", *(f"note: {note}" for note in self.warnings)] if self.warnings else [])])

    def report(
        self,
        path: str | os.PathLike[str],
        images: Any = None,
        *,
        features: Any = None,
        explain: Explain | None = None,
        method: str = "tsne",
        n_points: int = 2000,
        n_errors: int = 24,
        title: str | None = None,
        seed: int = 0,
    ) -> None:
        """Write everything that is known of the result as one HTML page.

        The page needs no network and no other file. It holds pictures and names of the data set.

        Parameters
        ----------
        path : path
            File to write, such as "report.html".
        images : table, folder, list of paths, FeatureStore, or path of a store; optional
            Where the images are now, under their ids; where the feature store says if None. Only some are
            read: those of the map and of the gallery.
        features : path, FeatureStore, or tuple; optional
            For the map: the store, if it is elsewhere now, or the arrays that were given to `deepfeat.fit_svm`.
        explain : callable, optional
            Of the result, a list of paths, and a label: for each path an array of shape (height, width), the
            evidence for that label at each place, or an object with such an array as its attribute ``total``, as
            `deepfeat.explain_images` does, which loads the networks. It is asked for what was predicted of the images
            in the gallery.
        method : {"tsne", "pca"}
            How embeddings are placed on the map, see `deepfeat.report.projection.project`.
        n_points : int
            Images on the map at most; more are drawn from at random. Each has a thumbnail of 64 pixels, about
            2 kB.
        n_errors : int
            Images in the gallery at most, of 240 pixels.
        title : str, optional
            Blocks and task if None.
        seed : int
            Of the map.

        Raises
        ------
        UsageError
            For a method that is not known, a name that does not end in .html or .htm, or if there is no folder for the
            file.
        DataError
            If ``images`` has none of the images of the result.
        StoreError
            If ``features`` cannot be read, lacks a block or an image, or has images with other contents than those of
            the fit. Where ``features`` is None and the store is no longer as it was, the map is left out.

        Examples
        --------
        >>> import deepfeat
        >>> result = deepfeat.fit_svm("skin.h5", backbones="EfficientNetLite0", cv=3)
        >>> result.report("report.html", method="pca", n_errors=4)

        With ``explain=deepfeat.explain_images`` the errors have activation maps.
        """
        from deepfeat.report import write_report

        write_report(
            self,
            path,
            images,
            features=features,
            explain=explain,
            method=method,
            n_points=n_points,
            n_errors=n_errors,
            title=title,
            seed=seed,
        )

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw confusion matrix, ROC and precision-recall curves and, where calibrated, reliability, for a paper.

        Dots are operating points; bands and whiskers hold 95 % of a bootstrap of whole groups.

        Parameters
        ----------
        path : path
            Its ending decides the format: .png, .svg or .pdf.

        Raises
        ------
        UsageError
            If matplotlib is not installed, or the file's ending or folder is not to be had.

        Examples
        --------
        >>> import deepfeat
        >>> deepfeat.fit_svm("skin.h5", cv=3).plot("curves.png")
        """
        from deepfeat.plots import draw_result

        draw_result(self, path)

    def _shown_threshold(self) -> list[str]:
        if self.threshold is None:
            return []
        wished = f", chosen for {self.wish}" if self.wish else ""
        return [f"threshold  {self.threshold:.4g} on the decision value of {self.positive}{wished}", ""]

    def _shown_views(self) -> str:
        return f", of the views {', '.join(self.views)}" if len(self.views) > 1 else ""

    def _evaluated_rows(self) -> int:
        return len(scored_rows(self.predictions, self.evaluated_on))

    def _headline(self) -> str:
        values = self.metrics["value"]
        return (
            f"accuracy {values['accuracy']:.3f}, balanced accuracy {values['balanced_accuracy']:.3f}, "
            f"{self.evaluated_on} ({self._evaluated_rows()} images)"
        )


def _with_intervals(metrics: pd.DataFrame) -> pd.DataFrame:
    """Values and 95 % intervals as text."""
    shown = metrics[["value"]].map("{:.3f}".format)
    shown["95 % interval"] = [shown_interval(row.low, row.high) for row in metrics.itertuples()]
    return shown


def _shown_nested(nested: pd.DataFrame) -> list[str]:
    shown = _with_intervals(nested)
    shown["plain"] = nested["plain"].map("{:.3f}".format)
    shown["optimism"] = nested["optimism"].map("{:+.3f}".format)
    return str(shown.to_string(index_names=False)).split("\n")
