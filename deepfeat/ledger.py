"""A record of every fit, which is only ever added to.

A ledger is a folder, and each fit is one file in it, written aside, synced and then given its name: two writers cannot
mix, on a network drive neither, and a kill leaves no half entry under an entry's name. An entry is a NumPy archive of
plain arrays, one of which is a text in JSON; nothing in it is ever unpickled.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import time
import uuid
import warnings
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from deepfeat.display import describe, draw_table
from deepfeat.errors import DataError, DataWarning, StoreError, UsageError
from deepfeat.evaluation import Evaluation, count_folds, evaluate_predictions, scored_rows
from deepfeat.operating_points import Wish, choose_threshold, read_wish
from deepfeat.store.journal import sync, sync_folder

if TYPE_CHECKING:
    from deepfeat.svm.result import SVMResult

_VERSION = 1

#: Seconds after which a draft counts as left behind.
_ABANDONED = 3600
_ARRAYS = ("image_id", "label", "predicted", "decision", "group", "fold")

#: What NumPy, zipfile and json raise for a file that is not as it was written.
_DAMAGE = (OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)

#: What stands for "test" among the numbers of folds; -1 is an image that no fold tested.
_TEST = -2


@dataclass(frozen=True, repr=False)
class Entry:
    """One fit of a ledger.

    Attributes
    ----------
    id : str
        Time, and eight characters that make it unique.
    record : dict
        What was fitted: blocks, best_params, threshold, wish, engine, scoring, metrics, warnings, provenance and so on.
    classes : list
    positive : label or None
        The class that was set against all others.
    evaluated_on : str
        "test", "nested" or "out-of-fold".
    predictions : pandas.DataFrame
        As that of `deepfeat.SVMResult`.
    """

    id: str
    record: dict[str, Any]
    classes: list[Any]
    positive: Any
    evaluated_on: str
    predictions: pd.DataFrame

    def __repr__(self) -> str:
        return f"<Entry {self.id}: {' + '.join(self.record['blocks'])}, {self.evaluated_on}>"

    @property
    def provenance(self) -> dict[str, Any]:
        """What the numbers came from, as that of `deepfeat.SVMResult`."""
        return dict(self.record["provenance"])


class Ledger:
    """The fits that were recorded in a folder.

    Attributes
    ----------
    path : pathlib.Path
    damaged : list of str
        Names of files that are no entries of a ledger, of damaged ones, and of drafts whose writer was killed; they are
        left out.
    table : pandas.DataFrame
        One row per fit, the oldest first, indexed by id: created, blocks, best_params, positive, threshold,
        evaluated_on, the value of each metric, low and high of the balanced accuracy, scored (equal where the same
        images were scored with the same labels in the same manner), n_scored (number of images that the metrics are
        of), n_images (of all images of the fit, those of training included), rows and folds (equal for equal images and
        folds), seconds, deepfeat.

    Examples
    --------
    >>> import deepfeat
    >>> result = deepfeat.fit_svm("skin.h5", cv=3)
    >>> ledger = deepfeat.open_ledger("skin.h5")
    >>> len(ledger), ledger.damaged
    (1, [])
    >>> ledger.table[["blocks", "evaluated_on", "n_scored", "n_images"]].values.tolist()
    [['EfficientNetLite0 + colour', 'out-of-fold', 24, 24]]
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.damaged: list[str] = _abandoned(self.path)
        self._records: dict[str, dict[str, Any]] = {}
        for file in sorted(self.path.glob("*.npz")):
            try:
                found = _read(file, ("fold",))
            except StoreError as error:
                self.damaged.append(file.name)
                warnings.warn(f"{error}; it is left out", DataWarning, stacklevel=3)
            else:
                n_scored = _count_scored(found["fold"], found["record"]["evaluated_on"])
                self._records[file.stem] = {**found["record"], "n_scored": n_scored}

    def __len__(self) -> int:
        return len(self._records)

    def __repr__(self) -> str:
        return f"<Ledger {str(self.path)!r}: {len(self)} fits>"

    def _repr_html_(self) -> str:
        columns = ["created", "blocks", "best_params", "positive", "evaluated_on", "balanced_accuracy"]
        newest = self.table.iloc[::-1].reindex(columns=columns)
        return describe(f"Ledger {self.path}: {len(self)} fits, the newest first", draw_table(newest))

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row per fit, the oldest first, indexed by id: blocks, best_params, metrics and so on."""
        rows = [_summarise(record) for record in self._records.values()]
        index = pd.Index(self._records, dtype=object, name="id")
        return pd.DataFrame(rows, index)

    def entry(self, name: str) -> Entry:
        """Read one fit with its predictions.

        Parameters
        ----------
        name : str
            Its id, or the beginning or end of it if that is of one fit alone.

        Returns
        -------
        deepfeat.ledger.Entry
            With record, classes, predictions and so on.

        Raises
        ------
        UsageError
            If no fit or several have it.
        StoreError
            If its file is damaged.

        Examples
        --------
        >>> import deepfeat
        >>> result = deepfeat.fit_svm("skin.h5", cv=3)
        >>> ledger = deepfeat.open_ledger("skin.h5")
        >>> entry = ledger.entry(ledger.table.index[-1])
        >>> entry.classes, entry.predictions.shape[0]
        (['MEL', 'NV'], 24)
        """
        fits = [known for known in self._records if known.startswith(name) or known.endswith(name)]
        if name not in self._records and len(fits) != 1:
            msg = f"{len(fits)} fits of {self.path} are named {name!r}: use one of the index of its table"
            raise UsageError(msg)
        found = name if name in self._records else fits[0]
        return _as_entry(found, _read(self.path / f"{found}.npz", _ARRAYS))

    def evaluate(
        self,
        entry: Entry | str,
        *,
        positive: Any = None,
        threshold: float | str | None = None,
        subset: Sequence[Any] | pd.Series | None = None,
        n_resamples: int = 1000,
        seed: int = 0,
    ) -> Evaluation:
        """Score a recorded fit again, for another operating point or for some of the images, without fitting.

        Parameters
        ----------
        entry : Entry or str
        positive : label, optional
            Set this class against all others by its decision value; that of the fit if None.
        threshold : float or str, optional
            Decision value from which on images are positive, or a wish, see `deepfeat.fit_svm`: chosen on the training
            images for a test, and otherwise for each fold on the other folds. The recorded predictions if None.
        subset : sequence of image ids or Series of bool by image id, optional
            Images to score, such as those of women; a threshold is chosen on all.
        n_resamples, seed : int
            Of the bootstrap, see `deepfeat.evaluation.evaluate`.

        Returns
        -------
        Evaluation

        Raises
        ------
        UsageError
            If the class is none of the fit, a threshold lacks a positive class, the subset is neither ids nor True and
            False, or a threshold is to be chosen for a nested fit: out of its folds it has decision values of
            classifiers with other parameters.
        DataError
            If no image is left to score, or no threshold grants the wish.

        Examples
        --------
        >>> import deepfeat
        >>> result = deepfeat.fit_svm("skin.h5", cv=3)
        >>> ledger = deepfeat.open_ledger("skin.h5")
        >>> best = ledger.table["balanced_accuracy"].idxmax()
        >>> again = ledger.evaluate(best, positive="MEL", threshold="recall>=0.9")
        >>> bool(again.metrics.loc["accuracy", "value"] > 0.5)
        True
        """
        entry = entry if isinstance(entry, Entry) else self.entry(entry)
        wish = read_wish(threshold)
        chosen = entry.positive if positive is None else positive
        if (chosen is None and wish is not None) or (chosen is not None and chosen not in entry.classes):
            msg = f"positive is {chosen!r}: use one of {', '.join(map(repr, entry.classes))}"
            raise UsageError(msg)
        if isinstance(wish, Wish) and entry.record["nested"] is not None:
            msg = (
                "the fit was nested, and what it recorded out of its folds is of classifiers with other parameters, on "
                "which no threshold can be chosen: pass the wish to fit_svm, or a number here"
            )
            raise UsageError(msg)
        table = _against_the_rest(entry, chosen) if positive is not None and positive != entry.positive else entry
        scored = scored_rows(table.predictions, entry.evaluated_on)
        predictions = table.predictions
        if wish is not None:
            scored = scored.assign(predicted=_decide(predictions, scored, table.classes, chosen, wish))
        n_folds = count_folds(scored)
        scored = scored[_among(scored.index, subset)]
        if scored.empty:
            raise DataError("none of the images to score is in the subset: pass ids, or a Series of bool by image id")
        return evaluate_predictions(
            scored, table.classes, chosen, table.evaluated_on, n_folds=n_folds, n_resamples=n_resamples, seed=seed
        )


def open_ledger(path: str | os.PathLike[str]) -> Ledger:
    """Open the record of the fits on a feature store.

    Parameters
    ----------
    path : path
        The feature store, beside which the ledger is, or the ledger's folder.

    Returns
    -------
    Ledger
        A snapshot.

    Raises
    ------
    StoreError
        If there is no ledger.

    Examples
    --------
    >>> import deepfeat
    >>> for C in (1e-5, 1e-3):
    ...     result = deepfeat.fit_svm("skin.h5", param_grid={"C": [C]}, positive="MEL", cv=3)
    >>> ledger = deepfeat.open_ledger("skin.h5")
    >>> ledger.table["best_params"].tolist()
    ['C=1e-05, class_weight=balanced', 'C=0.001, class_weight=balanced']
    """
    folder = Path(path) if Path(path).is_dir() else ledger_path(path)
    if not folder.is_dir():
        msg = f"there is no ledger {str(folder)!r}: deepfeat.fit_svm makes it with the first fit on a feature store"
        raise StoreError(msg)
    return Ledger(folder)


def ledger_path(store: str | os.PathLike[str]) -> Path:
    """Where the ledger of a store is: ``features.ledger`` beside ``features.h5``."""
    return Path(store).with_suffix(".ledger")


def check_ledger(ledger: object) -> None:
    """Refuse what is neither yes, no nor a folder.

    Raises
    ------
    UsageError
    """
    if not isinstance(ledger, bool | str | os.PathLike):
        msg = f"ledger is {ledger!r}: use True (beside the store), False, or the path of a folder"
        raise UsageError(msg)


def record_fit(result: SVMResult, ledger: bool | str | os.PathLike[str]) -> str | None:
    """Add a fit to a ledger.

    Parameters
    ----------
    result : SVMResult
    ledger : bool or path
        Beside the store that the features came from, not at all, or in this folder.

    Returns
    -------
    str or None
        Id of the entry; None where nothing was recorded. A folder that cannot be written is a warning, not an error:
        the fit may have taken hours.
    """
    store = result.provenance["store"]
    if ledger is False or (ledger is True and store is None):
        return None
    folder = ledger_path(store) if ledger is True else Path(ledger)
    name = f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{uuid.uuid4().hex[:8]}"
    content = io.BytesIO()
    np.savez_compressed(content, **_arrays(result))  # type: ignore[arg-type]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder, f"{name}.npz", content.getvalue())
    except OSError as error:
        msg = f"the fit was not recorded in {folder} ({error.strerror or error}): pass ledger=False or another folder"
        warnings.warn(msg, DataWarning, stacklevel=3)
        return None
    return name


def _write(folder: Path, name: str, content: bytes) -> None:
    draft = folder / f".{name}.draft"
    try:
        with open(draft, "wb") as file:
            file.write(content)
            sync(file)
        os.replace(draft, folder / name)
    finally:
        draft.unlink(missing_ok=True)
    sync_folder(folder)


def _abandoned(folder: Path) -> list[str]:
    """Drafts so old that whoever wrote them was killed."""
    drafts = []
    for draft in sorted(folder.glob(".*.draft")):
        # Another process may finish its draft at any moment.
        with contextlib.suppress(FileNotFoundError):
            if time.time() - draft.stat().st_mtime > _ABANDONED:
                drafts.append(draft.name)
    return drafts


def _record(result: SVMResult) -> dict[str, Any]:
    best = result.cv_results.loc[result.cv_results["rank"].idxmin()]
    columns = [name for name in result.predictions if str(name).startswith("probability ")]
    return {
        "version": _VERSION,
        "classes": [_plain(label) for label in result.classes],
        "positive": _plain(result.positive),
        "evaluated_on": result.evaluated_on,
        "blocks": result.blocks,
        "views": list(result.views),
        "best_params": _plain(result.best_params),
        "scoring": result.scoring,
        "cross_validated": {"mean": float(best["mean"]), "std": float(best["std"])},
        "threshold": result.threshold,
        "wish": result.wish,
        "engine": result.engine,
        "calibrated": bool(columns),
        "metrics": _plain(result.metrics.to_dict("index")),
        "nested": None if result.nested is None else _plain(result.nested.to_dict("index")),
        "scored": _digest_scored(result),
        "warnings": result.warnings,
        "provenance": result.provenance,
    }


def _digest_scored(result: SVMResult) -> str:
    rows = sorted(map(repr, scored_rows(result.predictions, result.evaluated_on)["label"].items()))
    text = "\n".join([result.evaluated_on, repr(result.classes), repr(result.positive), *rows])
    return hashlib.sha256(text.encode()).hexdigest()


def _arrays(result: SVMResult) -> dict[str, np.ndarray]:
    table, classes = result.predictions, result.classes
    columns = [*classes, *(f"probability {name}" for name in classes if f"probability {name}" in table)]
    return {
        "record": np.array(json.dumps(_record(result))),
        "image_id": np.array([str(name) for name in table.index]),
        "label": pd.Categorical(table["label"], classes).codes.astype(np.int16),
        "predicted": pd.Categorical(table["predicted"], classes).codes.astype(np.int16),
        "decision": table[columns].to_numpy(np.float64),
        "group": table["group"].to_numpy(np.int64),
        "fold": np.array([_TEST if fold == "test" else fold for fold in table["fold"]], np.int64),
    }


def _plain(value: Any) -> Any:
    """A value as JSON has it; NaN is null."""
    if isinstance(value, dict):
        return {str(name): _plain(inner) for name, inner in value.items()}
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, float) and np.isnan(value):
        return None
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _read(file: Path, names: Sequence[str]) -> dict[str, Any]:
    """Read an entry's record and some of its arrays, whose checksums are compared on the way."""
    try:
        with np.load(file, allow_pickle=False) as archive:
            record = json.loads(str(archive["record"]))
            version = record["version"]
            # Those of another version may be missing.
            found = {name: archive[name] for name in names if version == _VERSION}
    except _DAMAGE as error:
        msg = f"{file} is no entry of a ledger, or is damaged ({' '.join(str(error).split())})"
        raise StoreError(msg) from error
    if version != _VERSION:
        msg = f"{file} is an entry of version {version}, and this deepfeat reads version {_VERSION}: use a newer one"
        raise StoreError(msg)
    return {**found, "record": record}


def _as_entry(name: str, found: dict[str, Any]) -> Entry:
    record = found["record"]
    classes = record["classes"]
    # The last one is the prediction of what no fold tested, whose code is -1.
    names = np.array([*classes, None], object)
    index = pd.Index(found["image_id"].astype(object), name="image_id")
    sides = {"label": names[found["label"]], "predicted": names[found["predicted"]]}
    table = pd.DataFrame(sides, index=index, dtype=object)
    columns = [*classes, *(f"probability {label}" for label in classes if record["calibrated"])]
    table[columns] = found["decision"]
    table["group"] = found["group"]
    table["fold"] = ["test" if fold == _TEST else fold for fold in found["fold"].tolist()]
    return Entry(name, record, classes, record["positive"], record["evaluated_on"], table)


def _count_scored(folds: np.ndarray, evaluated_on: str) -> int:
    """Number of images that `deepfeat.evaluation.scored_rows` takes, from the numbers of folds of an entry."""
    return int((folds == _TEST if evaluated_on == "test" else folds >= 0).sum())


def _summarise(record: dict[str, Any]) -> dict[str, Any]:
    provenance, metrics = record["provenance"], record["metrics"]
    values = {name: metric["value"] for name, metric in metrics.items()}
    ends = {f"balanced_accuracy_{end}": metrics["balanced_accuracy"][end] for end in ("low", "high")}
    return {
        "created": provenance["created"],
        "blocks": " + ".join(record["blocks"]),
        "best_params": ", ".join(f"{name}={value}" for name, value in record["best_params"].items()),
        **{name: record[name] for name in ("positive", "threshold", "evaluated_on")},
        **values,
        **ends,
        **{name: record[name] for name in ("scored", "n_scored")},
        **{name: provenance[name] for name in ("n_images", "rows", "folds", "seconds", "deepfeat")},
    }


def _against_the_rest(entry: Entry, positive: Any) -> Entry:
    """The same fit as one of two classes, by the decision value of one."""
    table, rest = entry.predictions, f"not {positive}"
    names = {label: positive if label == positive else rest for label in entry.classes}
    sides = {name: table[name].map(names) for name in ("label", "predicted")}
    two = pd.DataFrame(sides, table.index, dtype=object)
    two[[rest, positive]] = np.column_stack([-table[positive], table[positive]])
    if f"probability {positive}" in table:
        chance = table[f"probability {positive}"]
        two[[f"probability {rest}", f"probability {positive}"]] = np.column_stack([1 - chance, chance])
    two[["group", "fold"]] = table[["group", "fold"]]
    return Entry(entry.id, entry.record, [rest, positive], positive, entry.evaluated_on, two)


def _decide(
    predictions: pd.DataFrame, scored: pd.DataFrame, classes: list[Any], positive: Any, wish: Wish | float
) -> np.ndarray:
    """Predict by a threshold that other images chose."""
    rest = next(label for label in classes if label != positive)
    accepted = np.empty(len(scored), bool)
    for fold in scored["fold"].unique():
        inside = (scored["fold"] == fold).to_numpy()
        others = predictions[(predictions["fold"] != fold) & (predictions["fold"] != -1)]
        threshold = wish
        if isinstance(wish, Wish):
            others = others[others["fold"] != "test"]
            truth = (others["label"] == positive).to_numpy()
            threshold = choose_threshold(truth, others[positive].to_numpy(float), wish)
        accepted[inside] = scored.loc[inside, positive] >= threshold
    # Of objects, since a label may be a number and the rest is text.
    decided: np.ndarray = np.array([rest, positive], object)[accepted.astype(int)]
    return decided


def _among(ids: pd.Index, subset: Sequence[Any] | pd.Series | None) -> np.ndarray:
    if subset is None:
        return np.ones(len(ids), bool)
    if isinstance(subset, pd.Series):
        if not pd.api.types.is_bool_dtype(subset) or subset.isna().any():
            msg = (
                f"subset is a Series of {subset.dtype} with {subset.isna().sum()} unknown: use True and False for each "
                "image id, as subset.fillna(False).astype(bool) has them, or a list of ids"
            )
            raise UsageError(msg)
        subset = subset.index[subset.to_numpy(bool)]
    return np.asarray(ids.isin([str(name) for name in subset]))
