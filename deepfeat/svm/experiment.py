"""fit_svm: from cached features to a chosen, fitted and scored classifier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from sklearn.svm import SVC, LinearSVC

from deepfeat.errors import DataError, UsageError
from deepfeat.evaluation import class_scores, evaluate
from deepfeat.fusion import FUSIONS, VIEW_RULES
from deepfeat.splits import hold_out, make_folds
from deepfeat.svm.guard import describe_seen, refuse_seen
from deepfeat.svm.resources import Resources, check_memory, take_products
from deepfeat.svm.result import SVMResult
from deepfeat.svm.samples import Samples, binarise, load_samples
from deepfeat.svm.search import (
    CLASSIFIERS,
    LOSSES,
    PARAMETERS,
    Search,
    check_class_weights,
    exact_search,
    grid_search,
    make_grid,
    make_pipeline,
    make_svm,
)
from deepfeat.svm.selection import choose_blocks, is_choice

#: What does the work: the engine for the kind of SVM, or scikit-learn.
ENGINES = ("auto", "sklearn")
_ENGINE_NAMES = {LinearSVC: "newton", SVC: "libsvm on kept kernels"}


def fit_svm(
    features: Any,
    *,
    backbones: str | Sequence[str] | None = None,
    fusion: str = "concat",
    views: str | None = "average",
    kernel: str = "linear",
    loss: str = "squared_hinge",
    classifier: str = "auto",
    param_grid: Mapping[str, Sequence[Any]] | str | None = None,
    class_weight: Any = "balanced",
    positive: str | None = None,
    labels: pd.Series | Mapping[str, str | None] | None = None,
    test: str | float | None = "split",
    cv: Any = 5,
    scoring: Any = "balanced_accuracy",
    engine: str = "auto",
    refit: str = "auto",
    max_memory: float | None = None,
    n_jobs: int | None = None,
    seed: int = 0,
) -> SVMResult:
    """Choose, fit and score a support vector machine on cached features.

    The parameters are chosen by cross-validation on the training rows. Images
    of one group, and images equal byte for byte, are never on two sides of any
    split; scaling and fusion are fitted on training rows alone.

    Parameters
    ----------
    features : path, FeatureStore, or tuple
        A feature store, or plain arrays as (X, y) or (X, y, groups).
    backbones : str or list of str, optional
        Blocks of the store by name or key; all if None, without the class scores of fine-tuned networks. "skin@folds"
        puts together what `deepfeat.finetune_folds` made, skin@fold0 and so on, if it was given an embedding_dim: each
        image has the features of the first network that has not seen it; None does so, too. "top-N", such as
        "top-2", joins the N blocks that are the best alone, and "all-subsets" takes the best of all sets of blocks;
        both by cross-validation on the training rows.
    fusion : {"concat", "average", "aligned", "late"}
        Blocks side by side; their mean, for blocks of one embedding space; their
        mean after alignment, see `deepfeat.fusion.AlignedAverage`; or the mean of
        the decision values of one SVM per block.
    views : {"average", "augment", "vote", None}
        Where the store has several views of the images: average each image's embeddings;
        train on all views and score the image itself; or train on all views and average their
        decision values. The views of an image are never on two sides of a split. With None,
        the images themselves alone, and any block that is named.
    kernel : {"linear", "rbf"}
    loss : {"squared_hinge", "hinge"}
        Of LinearSVC; SVC has the hinge loss.
    classifier : {"auto", "LinearSVC", "SVC"}
        LinearSVC (one against the rest) for the linear kernel and SVC (one against one) for the rbf
        kernel with "auto".
    param_grid : mapping or "auto", optional
        Values of "C" and, for the rbf kernel, "gamma"; see `deepfeat.svm.search.make_grid`
        for the default. "auto" widens the default as long as the best value is at its edge.
    class_weight : "balanced", None, mapping of label to weight, or a list of these
        A list is searched.
    positive : str, optional
        Classify this label against all others.
    labels : pandas.Series or mapping, optional
        Instead of the stored labels: by image id, or {old: new}, where None removes a class.
    test : "split", float or None
        The stored test rows where there are any; a share of the images to hold out; or
        no test, and the out-of-fold predictions are scored.
    cv : int, splitter, or iterable of (train, test)
        Folds for choosing parameters; stratified, and grouped where images have groups.
    scoring : str or callable
        Any scorer of scikit-learn.
    engine : {"auto", "sklearn"}
        "auto" solves the same problems exactly, all candidates of a fold together: LinearSVC by Newton's method along
        the path of C, SVC by libsvm on kernels that are computed once. "sklearn" fits each candidate on each
        fold with scikit-learn.
    refit : {"auto", "sklearn"}
        What fits the final pipeline on all training rows: the engine, or scikit-learn.
    max_memory : float, optional
        Bytes that the engine may use for what it computes; half of the machine's memory if None.
    n_jobs : int, optional
        Threads, as in joblib, each with one BLAS thread. One with all BLAS threads if None.
    seed : int
        Of splits, folds and LinearSVC.

    Returns
    -------
    SVMResult

    Raises
    ------
    UsageError
        For an argument that is not allowed.
    DataError
        If labels, groups or splits do not allow the fit: one class only, fewer
        groups of a class than folds, a group in both train and test; or if a network was fine-tuned on images
        that are to be scored, or on others of their groups, and if folds that are put together are of
        different embedding spaces.
    StoreError
        If a store cannot be read or lacks a block.

    Notes
    -----
    The cross-validated score of the chosen parameters is optimistic, since they
    were chosen by it; so are the out-of-fold metrics, slightly. A test is not.

    Examples
    --------
    >>> import deepfeat
    >>> from sklearn.datasets import load_wine
    >>> result = deepfeat.fit_svm(load_wine(return_X_y=True), test=0.25, param_grid={"C": [0.0001, 0.1]})
    >>> result.best_params["C"]
    0.1
    >>> bool(result.metrics.value["accuracy"] > 0.9)
    True
    """
    _check_choices(
        fusion=(fusion, FUSIONS),
        views=(views, VIEW_RULES),
        kernel=(kernel, tuple(PARAMETERS)),
        loss=(loss, LOSSES),
        classifier=(classifier, CLASSIFIERS),
        engine=(engine, ENGINES),
        refit=(refit, ENGINES),
    )
    svm = make_svm(kernel, loss, classifier, seed)
    samples = load_samples(features, None if is_choice(backbones) else backbones, labels, views=views is not None)
    if fusion == "average" and not samples.averageable:
        msg = (
            f"fusion='average' is not defined for {' and '.join(samples.blocks)}, "
            "which are different embedding spaces: use 'concat', 'late', or 'aligned'"
        )
        raise UsageError(msg)
    classes: list[Any] = sorted(set(samples.y), key=str)
    if positive is not None:
        samples, classes = binarise(samples, positive), [f"not {positive}", positive]
    train, held_out = _train_and_test(samples, test, seed)
    X, y = samples.X[train], _plain(samples.y)[train]
    folds = make_folds(y, samples.sets[train], cv, seed)
    refuse_seen(samples, held_out if len(held_out) else train[np.unique(np.concatenate([rows for _, rows in folds]))])
    weights = _by_target(class_weight, classes, positive)
    check_class_weights(weights if isinstance(weights, list | tuple) else [weights], np.unique(y).tolist())

    def search(chosen: Samples, rows: np.ndarray) -> Search:
        widths = list(chosen.blocks.values())
        grid = make_grid(kernel, param_grid, weights, sum(widths))
        pipeline = make_pipeline(svm, fusion, widths, len(chosen.views), views)
        if engine == "sklearn":
            return grid_search(pipeline, grid, rows, y, folds, scoring, n_jobs)
        use = Resources(take_products(max_memory), widths, n_jobs)
        extend = isinstance(param_grid, str)
        return exact_search(pipeline, grid, rows, y, folds, scoring, use, extend=extend, refit=refit)

    if engine != "sklearn":
        stacked = len(samples.views) if views in ("augment", "vote") else 1
        columns = X.shape[1] // len(samples.views)
        check_memory(svm, len(y) * stacked, columns, X.dtype.itemsize, max_memory)
    tried = None
    if isinstance(backbones, str) and is_choice(backbones):
        samples, found, tried = choose_blocks(samples, backbones, train, search)
    else:
        found = search(samples, X)
    fitted = found.pipeline
    predictions = _predictions(samples, train, found.out_of_fold, classes, positive)
    if len(held_out):
        values = class_scores(fitted.decision_function(samples.X[held_out]))
        tested = fitted.predict(samples.X[held_out]), values, np.full(len(held_out), "test", object)
        predictions = pd.concat([predictions, _predictions(samples, held_out, tested, classes, positive)])
    evaluated_on = "test" if len(held_out) else "out-of-fold"
    scored = predictions[predictions["fold"] == "test"] if len(held_out) else predictions[predictions["fold"] != -1]
    evaluation = evaluate(
        scored["label"].tolist(), scored["predicted"].tolist(), scored[classes].to_numpy(float), classes, positive
    )
    return SVMResult(
        pipeline=fitted,
        best_params=found.best_params,
        cv_results=found.cv_results,
        metrics=evaluation.metrics,
        per_class=evaluation.per_class,
        confusion=evaluation.confusion,
        predictions=predictions,
        classes=classes,
        blocks=samples.blocks,
        views=samples.views,
        evaluated_on=evaluated_on,
        scoring=str(scoring),
        subsets=tried,
        engine="sklearn" if engine == "sklearn" else _ENGINE_NAMES[type(svm)],
        warnings=[*samples.notes, *describe_seen(samples, train), *_doubts(found.cv_results)],
    )


def _check_choices(**choices: tuple[Any, Sequence[Any]]) -> None:
    for name, (value, allowed) in choices.items():
        if value not in allowed:
            msg = f"{name} is {value!r}: use one of {', '.join(map(repr, allowed))}"
            raise UsageError(msg)


def _train_and_test(samples: Samples, test: Any, seed: int) -> tuple[np.ndarray, np.ndarray]:
    everything = np.arange(len(samples.y))
    if test is None:
        return everything, everything[:0]
    if isinstance(test, float):
        return hold_out(_plain(samples.y), samples.sets.tolist(), test, seed)
    if test != "split":
        msg = f"test is {test!r}: use 'split', a share such as 0.2, or None"
        raise UsageError(msg)
    in_test = samples.split == "test"
    train, held_out = everything[~in_test], everything[in_test]
    shared = np.intersect1d(samples.sets[train], samples.sets[held_out])
    if len(shared):
        first = samples.ids[held_out][np.isin(samples.sets[held_out], shared)][0]
        msg = (
            f"{len(shared)} group(s) of images are in both train and test of the stored split (first: {first!r} and "
            "others of its group or content): make a split with deepfeat.split_table, or pass test=0.2 or test=None"
        )
        raise DataError(msg)
    if len(held_out) and not len(train):
        raise DataError("all images are test images in the stored split: pass test=0.2 or test=None")
    return train, held_out


def _plain(y: np.ndarray) -> np.ndarray:
    """Labels in an array of their own type, as scikit-learn wants them."""
    return np.array(y.tolist())


def _by_target(class_weight: Any, classes: list[Any], positive: str | None) -> Any:
    """Translate the names of the two classes of a one-against-the-rest problem to False and True."""
    if positive is None:
        return class_weight
    if isinstance(class_weight, list | tuple):
        return [_by_target(weight, classes, positive) for weight in class_weight]
    if isinstance(class_weight, Mapping):
        names = dict(zip(classes, (False, True), strict=True))
        return {names.get(label, label): weight for label, weight in class_weight.items()}
    return class_weight


def _predictions(
    samples: Samples, rows: np.ndarray, outcome: tuple[np.ndarray, ...], classes: list[Any], positive: str | None
) -> pd.DataFrame:
    predicted, decision, fold = outcome
    labels = samples.y[rows]
    if positive is not None:
        labels, predicted = (
            np.array(classes, object)[labels.astype(int)],
            np.array(classes, object)[predicted.astype(int)],
        )
    table = pd.DataFrame(
        {"label": labels, "predicted": predicted},
        index=pd.Index(samples.ids[rows], dtype=object, name="image_id"),
        dtype=object,
    )
    table[classes] = decision
    table["fold"] = fold.astype(object)
    return table


def _doubts(cv_results: pd.DataFrame) -> list[str]:
    best = cv_results.loc[cv_results["rank"].idxmin()]
    doubts = [f"the best {name} is at the edge of its grid: widen it" for name in best["at_edge"]]
    if not best["converged"]:
        doubts.append("the chosen SVM did not converge: its numbers may change with more iterations or a smaller C")
    unsettled = int((~cv_results["converged"]).sum())
    if unsettled:
        doubts.append(f"{unsettled} of {len(cv_results)} candidates did not converge, see cv_results")
    return doubts
