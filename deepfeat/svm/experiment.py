"""fit_svm: from cached features to a chosen, fitted and scored classifier."""

from __future__ import annotations

import difflib
import os
import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from numbers import Integral, Real
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import get_scorer_names

from deepfeat.errors import DataError, UsageError
from deepfeat.evaluation import evaluate_predictions
from deepfeat.fusion import FUSIONS, VIEW_RULES
from deepfeat.interruption import interruptible
from deepfeat.ledger import check_ledger, record_fit
from deepfeat.operating_points import Wish, read_wish
from deepfeat.splits import Fold, hold_out, make_folds
from deepfeat.svm.calibration import METHODS
from deepfeat.svm.crew import Crew, joblib_client
from deepfeat.svm.guard import describe_seen, refuse_seen
from deepfeat.svm.procedure import Learned, Outcome, Procedure
from deepfeat.svm.record import describe_fit
from deepfeat.svm.result import SVMResult
from deepfeat.svm.samples import Grouping, Samples, binarise, load_samples
from deepfeat.svm.search import (
    CLASSIFIERS,
    LOSSES,
    PARAMETERS,
    Search,
    check_class_weights,
    converged,
    make_svm,
    refuse_scorer,
)
from deepfeat.svm.selection import is_choice

#: What does the work: the engine for the kind of SVM, or scikit-learn.
ENGINES = ("auto", "sklearn")


@interruptible("nothing was recorded, the features are as they were, and the same call begins again")
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
    ungrouped: str = "own",
    duplicates: pd.DataFrame | None = None,
    test: str | float | None = "split",
    cv: Any = 5,
    nested: bool = False,
    calibrate: bool | str = False,
    threshold: str | float | None = None,
    scoring: Any = "balanced_accuracy",
    engine: str = "auto",
    refit: str = "auto",
    max_memory: float | None = None,
    n_jobs: int | None = None,
    seed: int = 0,
    ledger: bool | str | os.PathLike[str] = True,
    client: Any = None,
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
    ungrouped : {"own", "drop", "raise"}
        What becomes of images without a group: each is a group of its own, which is safe only if no other image is of
        its patient or lesion; they are left out; or they are an error.
    duplicates : pandas.DataFrame, optional
        Pairs of images that stay together as if they were of one group: the table of `deepfeat.find_duplicates`, or
        those of its rows that a look at the images has confirmed.
    test : "split", float or None
        The stored test rows where there are any; a share of the images to hold out; or
        no test, and the out-of-fold predictions are scored.
    cv : int, splitter, or iterable of (train, test)
        Folds for choosing parameters; stratified, and grouped where images have groups.
    nested : bool
        Also repeat the whole choice, of parameters, blocks, calibration and threshold, on the training part of each
        fold, and score it on the rest (Varma and Simon 2006): an estimate that no choice has made optimistic, at the
        cost of as many searches as there are folds. Without test images it is the result's ``metrics``.
    calibrate : {False, True, "sigmoid", "isotonic", "temperature"}
        Whether decision values also become probabilities, fitted on out-of-fold decision values; True is "sigmoid".
        "temperature" serves several classes of like size, see the page on statistics.
    threshold : str or float, optional
        With ``positive``: the decision value from which on images are positive, or a wish by which it is chosen on the
        out-of-fold decision values: "recall>=0.9", "specificity>=0.9", "precision>=0.5", "f1", "balanced_accuracy" or
        "accuracy"; see `deepfeat.operating_points.choose_threshold`.
    scoring : str or callable
        A scorer of scikit-learn. One that is named is asked about decision values and predictions alone: those that
        need probabilities cannot score an SVM, and "f1" and the like need ``positive``.
    engine : {"auto", "sklearn"}
        "auto" solves the same problems exactly, all candidates of a fold together: LinearSVC by Newton's method along
        the path of C, SVC by libsvm on kernels that are computed once. "sklearn" fits each candidate on each
        fold with scikit-learn.
    refit : {"auto", "sklearn"}
        What fits the final pipeline on all training rows: the engine, or scikit-learn.
    max_memory : float, optional
        Bytes that the engine may use for what it computes, beside the features; half of the machine's memory if None.
        Where they do not suffice, LinearSVC reads rows in blocks, see docs/scaling.md; anything else is refused.
    n_jobs : int, optional
        Threads, each with one BLAS thread; with None or -1 one per core, or fewer where memory would not suffice. With
        ``engine="sklearn"``, processes, as in joblib.
    seed : int
        Of splits, folds and LinearSVC.
    ledger : bool or path
        Where the fit is recorded, see `deepfeat.open_ledger`: beside the store, not at all, or in this folder. Plain
        arrays are recorded only where a folder is given.
    client : distributed.Client, optional
        The workers of its cluster take folds and candidates, one to a thread; see docs/scaling.md. If None, that of
        ``joblib.parallel_config("dask")`` where it is set.

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
    ClusterError
        If the connection to the cluster is lost, or a fold ends one worker after the other.

    Notes
    -----
    The cross-validated score of the chosen parameters is optimistic, since they
    were chosen by it; so are the out-of-fold metrics, slightly. A test is not, and a nested estimate is not.

    References
    ----------
    Varma and Simon (2006), Bias in error estimation when using cross-validation for model selection, BMC
    Bioinformatics 7:91.

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
    settings = {name: value for name, value in locals().items() if name not in ("features", "client")}
    started = time.perf_counter()
    _check_choices(
        fusion=(fusion, FUSIONS),
        views=(views, VIEW_RULES),
        kernel=(kernel, tuple(PARAMETERS)),
        loss=(loss, LOSSES),
        classifier=(classifier, CLASSIFIERS),
        engine=(engine, ENGINES),
        refit=(refit, ENGINES),
        calibrate=(calibrate, (False, True, *METHODS)),
    )
    _check_scoring(scoring)
    _check_numbers(max_memory, n_jobs)
    check_ledger(ledger)
    wish = _read_threshold(threshold, positive)
    svm = make_svm(kernel, loss, classifier, seed)
    grouping, named = Grouping(ungrouped, duplicates), None if is_choice(backbones) else backbones
    samples = load_samples(features, named, labels, views=views is not None, grouping=grouping)
    _refuse_average(samples, fusion)
    _refuse_lacking_original(samples, views)
    if positive is not None:
        samples = binarise(samples, positive)
    classes = np.unique(samples.target).tolist() if positive is None else [f"not {positive}", positive]
    _refuse_names_of_columns(classes)
    train, held_out = _train_and_test(samples, test, seed)
    y = samples.target[train]
    folds = make_folds(y, samples.sets[train], cv, seed)
    inner = _inner_folds(samples, train, folds, cv, seed, scoring) if nested else []
    tested = train[np.unique(np.concatenate([rows for _, rows in folds]))]
    if len(held_out):
        refuse_seen(samples, held_out)
    if nested or not len(held_out):
        refuse_seen(samples, tested)
    refuse_scorer(scoring, y, folds)
    weights = _by_target(class_weight, classes, positive)
    check_class_weights(weights if isinstance(weights, list | tuple) else [weights], np.unique(y).tolist())
    client = joblib_client() if client is None else client
    procedure = Procedure(
        svm=svm,
        kernel=kernel,
        fusion=fusion,
        views=views,
        backbones=backbones,
        param_grid=param_grid,
        class_weight=weights,
        scoring=scoring,
        engine=engine,
        refit=refit,
        max_memory=max_memory,
        n_jobs=n_jobs,
        calibrate=calibrate if isinstance(calibrate, str) else "sigmoid" if calibrate else None,
        threshold=wish,
        crew=None if client is None else Crew(client, samples),
    )
    learned = procedure.learn(samples, train, folds)
    outcome, estimate = learned.out_of_fold, None
    if nested:
        outcome, choices = _repeat_in_folds(procedure, samples, train, folds, inner)
    tables = [_predictions(learned.samples, train, outcome, classes, positive)]
    if len(held_out):
        tables.append(_predictions(samples, held_out, learned.predict(held_out, "test"), classes, positive))
    predictions = pd.concat(tables)
    if nested:
        plain = _predictions(learned.samples, train, learned.out_of_fold, classes, positive)
        estimate = _with_optimism(predictions, plain, classes, positive)
    evaluated_on = "test" if len(held_out) else "nested" if nested else "out-of-fold"
    evaluation = evaluate_predictions(predictions, classes, positive, evaluated_on)
    result = SVMResult(
        pipeline=learned.search.pipeline,
        best_params=_name_classes(learned.search.best_params, classes),
        cv_results=_name_classes(learned.search.cv_results, classes),
        metrics=evaluation.metrics,
        per_class=evaluation.per_class,
        confusion=evaluation.confusion,
        predictions=predictions,
        classes=classes,
        positive=positive,
        blocks=learned.samples.blocks,
        views=samples.views,
        evaluated_on=evaluated_on,
        scoring=str(scoring),
        subsets=_name_classes(learned.tried, classes),
        nested=estimate,
        nested_choices=_name_classes(choices, classes) if nested else None,
        calibrator=learned.calibrator,
        threshold=learned.threshold,
        wish=str(wish) if isinstance(wish, Wish) else None,
        engine=learned.search.engine,
        warnings=[*samples.notes, *describe_seen(samples, train), *_doubts(learned.search)],
        provenance=describe_fit(samples, learned.samples.blocks, train, folds, settings, time.perf_counter() - started),
    )
    record_fit(result, ledger)
    return result


def _inner_folds(
    samples: Samples, train: np.ndarray, folds: Sequence[Fold], cv: Any, seed: int, scoring: Any
) -> list[list[Fold]]:
    """Folds of the training part of each fold."""
    if not (isinstance(cv, Integral) or hasattr(cv, "split")):
        raise UsageError("nested=True makes folds of the training part of each fold: pass cv as a number or a splitter")
    found = []
    for number, (rows, _) in enumerate(folds):
        y = samples.target[train[rows]]
        try:
            found.append(make_folds(y, samples.sets[train[rows]], cv, seed))
            refuse_scorer(scoring, y, found[-1])
        except DataError as error:
            msg = f"nested=True makes folds of the training part of fold {number}, in which {error}"
            raise DataError(msg) from error
    return found


def _repeat_in_folds(
    procedure: Procedure, samples: Samples, train: np.ndarray, folds: Sequence[Fold], inner: Sequence[list[Fold]]
) -> tuple[Outcome, pd.DataFrame]:
    """Learn on the training part of each fold and predict its test part."""
    n_classes = len(np.unique(samples.target))
    predicted = np.zeros(len(train), samples.target.dtype)
    decision = np.full((len(train), n_classes), np.nan)
    chances = None if procedure.calibrate is None else decision.copy()
    fold = np.full(len(train), -1, object)
    choices = []
    items = [
        (train[rows], train[others], number, folds_of_rows)
        for number, ((rows, others), folds_of_rows) in enumerate(zip(folds, inner, strict=True))
    ]
    if procedure.crew is None:
        parts = [_learn_and_predict(procedure, samples, *item) for item in items]
    else:
        alone = replace(procedure, crew=None, n_jobs=1)
        parts = procedure.crew.call(partial(_learn_and_predict, alone), items)
    for (found, choice), (_, outer) in zip(parts, folds, strict=True):
        predicted[outer], decision[outer], fold[outer] = found.predicted, found.decision, found.fold
        if chances is not None:
            chances[outer] = found.probabilities
        choices.append(choice)
    return Outcome(predicted, decision, chances, fold), pd.DataFrame(choices).rename_axis("fold")


def _learn_and_predict(
    procedure: Procedure, samples: Samples, rows: np.ndarray, others: np.ndarray, number: int, folds: list[Fold]
) -> tuple[Outcome, dict[str, Any]]:
    """Learn on some rows and predict others: what they say, and what was chosen."""
    learned = procedure.learn(samples, rows, folds)
    return learned.predict(others, number), _describe_choice(learned)


def _describe_choice(learned: Learned) -> dict[str, Any]:
    best = learned.search.cv_results.loc[learned.search.cv_results["rank"].idxmin()]
    return {
        **learned.search.best_params,
        "blocks": " + ".join(learned.samples.blocks),
        "threshold": learned.threshold,
        "inner_score": best["mean"],
        "converged": best["converged"],
    }


def _with_optimism(predictions: pd.DataFrame, plain: pd.DataFrame, classes: list[Any], positive: Any) -> pd.DataFrame:
    """Metrics of the nested predictions beside those of the plain ones."""
    table = evaluate_predictions(predictions, classes, positive, "nested").metrics
    # Within folds, as the nested ones: like is to be compared with like.
    table["plain"] = evaluate_predictions(plain, classes, positive, "nested", n_resamples=0).metrics["value"]
    table["optimism"] = table["plain"] - table["value"]
    return table


def _read_threshold(threshold: Any, positive: Any) -> Wish | float | None:
    if not isinstance(threshold, Hashable):
        msg = f"threshold is of type {type(threshold).__name__}: use one decision value, or a wish such as 'f1'"
        raise UsageError(msg)
    wish = read_wish(threshold)
    if wish is not None and positive is None:
        msg = f"threshold is {threshold!r}, which needs one class to be the positive one: pass positive="
        raise UsageError(msg)
    return wish


def _refuse_average(samples: Samples, fusion: str) -> None:
    if fusion == "average" and not samples.averageable:
        msg = (
            f"fusion='average' is not defined for {' and '.join(samples.blocks)}, "
            "which are different embedding spaces: use 'concat', 'late', or 'aligned'"
        )
        raise UsageError(msg)


def _check_choices(**choices: tuple[Any, Sequence[Any]]) -> None:
    for name, (value, allowed) in choices.items():
        if not isinstance(value, Hashable) or value not in allowed:
            msg = f"{name} is {value!r}: use one of {', '.join(map(repr, allowed))}"
            raise UsageError(msg)


def _check_scoring(scoring: Any) -> None:
    if not (scoring is None or isinstance(scoring, str) or callable(scoring)):
        msg = f"scoring is {scoring!r}: use the name of one scorer of scikit-learn, or a callable"
        raise UsageError(msg)
    known = get_scorer_names()
    if isinstance(scoring, str) and scoring not in known:
        near = difflib.get_close_matches(scoring, known, 3) or ["balanced_accuracy", "f1_macro", "matthews_corrcoef"]
        msg = f"scoring is {scoring!r}: use a scorer of scikit-learn such as {', '.join(map(repr, near))}"
        raise UsageError(msg)


def _refuse_lacking_original(samples: Samples, views: str | None) -> None:
    if views == "augment" and samples.views[0] != "original":
        msg = (
            f"views='augment' scores the image itself, and there are only its views {', '.join(samples.views)}: take "
            "'original' along, or pass views='vote' or 'average'"
        )
        raise UsageError(msg)


def _check_numbers(max_memory: Any, n_jobs: Any) -> None:
    for name, value, kind, wanted in (
        ("max_memory", max_memory, Real, "a number"),
        ("n_jobs", n_jobs, Integral, "a whole number"),
    ):
        if not (value is None or (isinstance(value, kind) and not isinstance(value, bool))):
            msg = f"{name} is {value!r}: use {wanted}, or None"
            raise UsageError(msg)


def _refuse_names_of_columns(classes: list[Any]) -> None:
    # The last three are of the predictions of new images, and the others of those with calibration.
    columns = {"label", "predicted", "group", "fold", "path", "failure", "image_id"}
    taken = [name for name in classes if name in columns | {f"probability {other}" for other in classes}]
    if taken:
        msg = f"a class is called {taken[0]!r}, as is a column of the predictions: rename it, {{old: new}} as labels="
        raise DataError(msg)


def _train_and_test(samples: Samples, test: Any, seed: int) -> tuple[np.ndarray, np.ndarray]:
    everything = np.arange(len(samples.y))
    if test is None:
        return everything, everything[:0]
    if isinstance(test, float | np.floating):
        return hold_out(samples.target, samples.sets.tolist(), float(test), seed)
    if not isinstance(test, str) or test != "split":
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
    strange = sorted(set(samples.target[held_out].tolist()) - set(samples.target[train].tolist()), key=str)
    if strange:
        msg = (
            f"the stored split has images of the class {strange[0]!r} in the test alone: make another with "
            "deepfeat.split_table, pass test=0.2 or test=None, or leave the class out by labels="
        )
        raise DataError(msg)
    return train, held_out


def _by_target(class_weight: Any, classes: list[Any], positive: str | None) -> Any:
    """Translate the names of the two classes of a one-against-the-rest problem to False and True."""
    if positive is None:
        return class_weight
    if isinstance(class_weight, list | tuple):
        return [_by_target(weight, classes, positive) for weight in class_weight]
    if isinstance(class_weight, Mapping):
        names = dict(zip(classes, (False, True), strict=True))
        check_class_weights([class_weight], classes)
        return {names[label]: weight for label, weight in class_weight.items()}
    return class_weight


def _name_classes(found: Any, classes: list[Any]) -> Any:
    """Put the names of the classes for the False and True of class weights, in parameters or in tables of them."""
    if isinstance(found, Mapping):
        named = {False: classes[0], True: classes[-1]}
        return {
            named[bool(key)] if isinstance(key, bool | np.bool_) else key: _name_classes(value, classes)
            for key, value in found.items()
        }
    if isinstance(found, pd.DataFrame):
        columns = [column for column in ("class_weight", "best_params") if column in found]
        named_columns = {c: [_name_classes(value, classes) for value in found[c]] for c in columns}
        return found.assign(**{c: pd.Series(values, found.index, object) for c, values in named_columns.items()})
    return found


def _predictions(
    samples: Samples, rows: np.ndarray, outcome: Outcome, classes: list[Any], positive: str | None
) -> pd.DataFrame:
    labels, predicted = samples.y[rows], outcome.predicted.astype(object)
    if positive is not None:
        names = np.array(classes, object)
        labels, predicted = names[labels.astype(int)], names[predicted.astype(int)]
    predicted[outcome.fold == -1] = None
    table = pd.DataFrame(
        {"label": labels, "predicted": predicted},
        index=pd.Index(samples.ids[rows], dtype=object, name="image_id"),
        dtype=object,
    )
    table[classes] = outcome.decision
    if outcome.probabilities is not None:
        table[[f"probability {name}" for name in classes]] = outcome.probabilities
    table["group"] = samples.sets[rows]
    table["fold"] = outcome.fold
    return table


def _doubts(found: Search) -> list[str]:
    cv_results = found.cv_results
    best = cv_results.loc[cv_results["rank"].idxmin()]
    doubts = [f"the best {name} is at the edge of its grid: widen it" for name in best["at_edge"]]
    if not best["converged"]:
        doubts.append("the chosen SVM did not converge: its numbers may change with more iterations or a smaller C")
    if not converged(found.pipeline):
        doubts.append("the final fit did not converge: its decision values are not those of the optimum")
    unsettled = int((~cv_results["converged"]).sum())
    if unsettled:
        doubts.append(f"{unsettled} of {len(cv_results)} candidates did not converge, see cv_results")
    return doubts
