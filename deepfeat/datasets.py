"""Image folders and label files become one pandas table, one row per image.

A table has the columns ``image_id`` (unique str), ``path`` (str), ``label``,
``group`` (patient or lesion) and ``split`` (train, val or test); the last
three may be missing.
"""

from __future__ import annotations

import csv as csv_module
import hashlib
import io
import os
import re
import unicodedata
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd

from deepfeat.errors import DataError, DataWarning, ImageError, UsageError
from deepfeat.images import SUFFIXES, read_bytes, stamp_file

COLUMNS = ("image_id", "path", "label", "group", "split")

_WHOLE_AS_FLOAT = re.compile(r"-?\d+\.0+", re.ASCII)

SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}

_NOT_CLASSES = ("score_weight", "validation_weight")

_DELIMITERS = (",", ";", "\t", "|")


def read_folder(root: str | os.PathLike[str]) -> pd.DataFrame:
    """List an image folder with one sub-folder per class.

    Also understood are ``root/train/<class>/…`` with val and test beside
    train, and a flat folder of images, whose labels are then missing. Images
    may lie at any depth below their class. Hidden files are left out;
    symbolic links are followed.

    Parameters
    ----------
    root : path
        The folder.

    Returns
    -------
    pandas.DataFrame
        One row per image, sorted by ``image_id``, which is the path below
        ``root`` with forward slashes and its ending ("MEL/ISIC_0024310.jpg").

    Raises
    ------
    UsageError
        If ``root`` is not a folder.
    DataError
        If it holds no image, or other folders beside train, val or test with
        folders of their own.

    Warns
    -----
    DataWarning
        For names that differ only in folder or ending, files that are not
        images, sub-folders without images, and images outside any class.

    Examples
    --------
    >>> import deepfeat
    >>> table = deepfeat.read_folder("photos")
    >>> table[["image_id", "label"]].head(2)
            image_id label
    0  MEL/mel01.png   MEL
    1  MEL/mel02.png   MEL
    >>> table["label"].value_counts().to_dict()
    {'MEL': 12, 'NV': 12}
    """
    names, others = _list_images(root)
    if not names:
        found = f"{len(others)} other file(s)" if others else "nothing"
        msg = f"no images found in {os.fspath(root)!r}, only {found}: expected one sub-folder of images per class"
        raise DataError(msg)
    parts = [PurePosixPath(name).parts for name in names]
    inner = [p for p in parts if len(p) > 1]
    _refuse_mixed_layout(inner)
    split_layout = bool(inner) and all(p[0].lower() in SPLITS for p in inner)
    skip = 1 if split_layout else 0
    table = _table(
        names,
        [_join(root, name) for name in names],
        label=[p[skip] if len(p) > skip + 1 else None for p in parts],
        split=[SPLITS[p[0].lower()] if len(p) > 1 else None for p in parts] if split_layout else None,
    )
    _warn(others, "file(s) without an image ending left out")
    _warn(_empty_folders(root, parts, skip), "sub-folder(s) without any image")
    if table["label"].notna().any():
        _warn(table.image_id[table["label"].isna()], "image(s) outside any class folder, so without a label")
    _warn(_lookalikes(names), "image(s) with names that differ only in folder or ending")
    return check_table(table)


def read_csv(
    csv: str | os.PathLike[str],
    images: str | os.PathLike[str],
    image: str = "image",
    label: str | None = "label",
    group: str | None = None,
    split: str | None = None,
) -> pd.DataFrame:
    """Read labels from a delimited text file and find the images that it names.

    The delimiter may be a comma, semicolon, tab or bar; a byte order mark and
    any line ending are understood. Every value is kept as text ("NA" is a
    label, a blank is missing).

    Parameters
    ----------
    csv : path
        UTF-8 text with a header line.
    images : path
        Folder that holds the images, at any depth.
    image : str
        Column that names the image: a path below ``images`` or a bare file
        name, with or without its ending. It becomes ``image_id`` unchanged.
    label, group, split : str, optional
        Columns of the label, the group (patient, lesion) and the split.

    Returns
    -------
    pandas.DataFrame
        One row per image that has both a row and a file, in the file's order.

    Raises
    ------
    UsageError
        If a named column is not there.
    DataError
        For text that is not UTF-8 or not a table, blank or duplicate ids, a name that
        fits several files, a file that several rows name, an unknown split, or
        when no row has an image.

    Warns
    -----
    DataWarning
        For rows without an image, images without a row, missing labels, and
        groups with several labels.

    Examples
    --------
    >>> import deepfeat
    >>> table = deepfeat.read_csv("labels.csv", "photos", group="patient")
    >>> table[["image_id", "label", "group"]].head(3)
      image_id label group
    0    mel01   MEL   p00
    1    mel02   MEL   p00
    2    mel03   MEL   p01
    """
    rows = read_delimited(csv, [c for c in (image, label, group, split) if c is not None])
    return _locate(
        rows[image].tolist(),
        images,
        source=os.fspath(csv),
        label=rows[label].tolist() if label else None,
        group=rows[group].tolist() if group else None,
        split=_splits(rows[split].tolist()) if split else None,
    )


def read_isic(
    images: str | os.PathLike[str],
    ground_truth: str | os.PathLike[str],
    metadata: str | os.PathLike[str] | None = None,
) -> pd.DataFrame:
    """Read the ISIC 2018 and 2019 challenge layout.

    Parameters
    ----------
    images : path
        Folder of JPEG files named after the image column of the ground truth.
    ground_truth : path
        CSV with an ``image`` column and one 0/1 column per class; the weights of the
        challenge's test sets (score_weight, validation_weight) are not classes.
    metadata : path, optional
        CSV with ``image`` and ``lesion_id``; the latter becomes ``group``.

    Returns
    -------
    pandas.DataFrame
        One row per image that has both a row and a file.

    Raises
    ------
    DataError
        If a one-hot row does not hold exactly one 1 and otherwise 0, and as `read_csv`.

    Warns
    -----
    DataWarning
        As `read_csv`, and for images without metadata.

    References
    ----------
    Combalia et al. (2019), BCN20000, arXiv:1908.02288.

    Examples
    --------
    >>> import deepfeat
    >>> table = deepfeat.read_isic("photos", "truth.csv", "metadata.csv")
    >>> len(table), table["group"].nunique()
    (24, 12)
    """
    truth = read_delimited(ground_truth, ["image"])
    ids = truth["image"].tolist()
    labels = _from_one_hot(truth.drop(columns=["image", *_NOT_CLASSES], errors="ignore"), ids)
    groups = None
    if metadata is not None:
        details = read_delimited(metadata, ["image", "lesion_id"])
        _check_ids(details["image"], os.fspath(metadata))
        lesion = dict(zip(details["image"], details["lesion_id"], strict=True))
        _warn([i for i in ids if i not in lesion], "image(s) of the ground truth without a row in the metadata")
        groups = [lesion.get(i, "") for i in ids]
    return _locate(ids, images, source=os.fspath(ground_truth), label=labels, group=groups)


def split_table(table: pd.DataFrame, test_size: float = 0.2, seed: int = 0) -> pd.DataFrame:
    """Fill the ``split`` column with train and test: stratified by label, groups and equal files kept whole.

    Parameters
    ----------
    table : pandas.DataFrame
        As made by `read_folder`, `read_csv` or `read_isic`.
    test_size : float
        Share of the images for the test, between 0 and 1; with groups it is met
        to the nearest fraction with a denominator up to 20, or up to the number
        of groups of the largest class where that is smaller.
    seed : int
        Seed of the shuffling.

    Returns
    -------
    pandas.DataFrame
        A copy with ``split`` filled, and all else as it was. An image without
        a group is a group of its own, and with it all whose files are equal
        byte for byte; an image without a label stays without a split.

    Raises
    ------
    UsageError
        If ``test_size`` is not between 0 and 1.
    DataError
        If there is a split already, no label at all, one class only, or a
        class too small to be on both sides.

    Examples
    --------
    >>> import deepfeat
    >>> table = deepfeat.read_csv("labels.csv", "photos", group="patient")
    >>> table = deepfeat.split_table(table, test_size=0.25)
    >>> table["split"].value_counts().to_dict()
    {'train': 18, 'test': 6}
    """
    from deepfeat.splits import hold_out, merge_groups

    checked = check_table(table)
    if checked["split"].notna().any():
        msg = (
            f"the table already has a split for {checked['split'].notna().sum()} images: "
            "drop the column 'split' to make a new one"
        )
        raise DataError(msg)
    labelled = np.flatnonzero(checked["label"].notna())
    if not len(labelled):
        raise DataError("no image has a label, and a stratified split needs them")
    sets = merge_groups(checked["group"].tolist(), digest_repeated(checked["path"]))
    train, test = hold_out(checked["label"].to_numpy(object)[labelled], sets[labelled].tolist(), test_size, seed)
    split = np.full(len(checked), None, object)
    split[labelled[train]], split[labelled[test]] = "train", "test"
    return table.assign(split=split)


def digest_repeated(paths: Sequence[str]) -> list[bytes | None]:
    """SHA-256 of each file that may equal another, since their sizes do; None for all others, which are not read."""
    stamps = [stamp_file(path) for path in paths]
    sizes = Counter(stamp.size for stamp in stamps if stamp is not None)
    repeated = [stamp is not None and sizes[stamp.size] > 1 for stamp in stamps]
    return [_digest_file(path) if again else None for path, again in zip(paths, repeated, strict=True)]


def _digest_file(path: str) -> bytes | None:
    try:
        return hashlib.sha256(read_bytes(path)).digest()
    except ImageError:
        return None


def as_table(images: Any) -> pd.DataFrame:
    """Accept a table, a folder, one image file, or a list of image files."""
    if isinstance(images, pd.DataFrame):
        table = check_table(images)
        # From another working folder, relative ones would lead to other files.
        return table.assign(path=pd.Series(map(os.path.abspath, table["path"]), table.index, object))
    if isinstance(images, str | os.PathLike):
        path = os.fspath(images)
        return check_table(_table([path], [os.path.abspath(path)])) if os.path.isfile(path) else read_folder(path)
    if isinstance(images, Iterable):
        items = list(images)
        if not items:
            raise DataError("the list of images is empty")
        strange = [item for item in items if not isinstance(item, str | os.PathLike)]
        if strange:
            msg = f"the list of images holds a {type(strange[0]).__name__}: pass paths of image files"
            raise UsageError(msg)
        paths = [os.fspath(item) for item in items]
        return check_table(_table(paths, [os.path.abspath(p) for p in paths]))
    msg = f"images is a {type(images).__name__}: pass a table, a folder, or a list of paths"
    raise UsageError(msg)


def check_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table with all five columns, text or missing, or say what is wrong with it."""
    lacking = [c for c in ("image_id", "path") if c not in table.columns]
    if lacking:
        msg = f"the table has no column {lacking[0]!r}: it has {list(table.columns)}"
        raise DataError(msg)
    if table.empty:
        raise DataError("the table has no rows")
    columns = {c: _texts(table[c]) if c in table.columns else None for c in COLUMNS}
    for column in ("image_id", "path"):
        blank = [str(i) for i, value in enumerate(columns[column] or []) if value is None]
        if blank:
            msg = f"{_count(blank, f'row(s) of the table without {column}')}"
            raise DataError(msg)
    columns["split"] = _splits(columns["split"]) if columns["split"] else None
    checked = _table(columns["image_id"], columns["path"], columns["label"], columns["group"], columns["split"])  # type: ignore[arg-type]
    _check_ids(checked["image_id"], "the table")
    _warn_mixed_groups(checked)
    return checked


def _table(
    image_id: Sequence[str],
    path: Sequence[str],
    label: Sequence[str | None] | None = None,
    group: Sequence[str | None] | None = None,
    split: Sequence[str | None] | None = None,
) -> pd.DataFrame:
    missing = [None] * len(image_id)
    return pd.DataFrame(
        {
            "image_id": image_id,
            "path": path,
            "label": label or missing,
            "group": [_name_group(name) for name in group or missing],
            "split": split or missing,
        },
        # File names that are not UTF-8 do not fit into the text columns of Arrow.
        dtype=object,
    )


def _name_group(name: str | None) -> str | None:
    # As pandas writes 1 where another row has no group; a patient of two names would be in train and test.
    return name[: name.index(".")] if name and _WHOLE_AS_FLOAT.fullmatch(name) else name


def _texts(column: pd.Series) -> list[str | None]:
    return [None if pd.isna(v) or str(v).strip() == "" else _text(v) for v in column.tolist()]


def _text(value: Any) -> str:
    # Where one value is missing, pandas keeps whole numbers as floats: 1.0 here is 1 in another table. Floats that are
    # larger are not exact any more.
    if isinstance(value, float | np.floating) and float(value).is_integer() and abs(float(value)) < 2**53:
        return str(int(value))
    return str(value)


def _splits(values: Sequence[str | None]) -> list[str | None]:
    unknown = sorted({v for v in values if v and v.strip().lower() not in SPLITS})
    if unknown:
        msg = f"unknown split {unknown[0]!r}: use train, val or test"
        raise DataError(msg)
    return [SPLITS[v.strip().lower()] if v and v.strip() else None for v in values]


def _join(root: str | os.PathLike[str], name: str) -> str:
    return os.path.join(os.path.abspath(root), *PurePosixPath(name).parts)


def _list_images(root: str | os.PathLike[str]) -> tuple[list[str], list[str]]:
    """Return the images and the other files below a folder, relative and sorted."""
    if not os.path.isdir(root):
        state = "is not a folder" if os.path.exists(root) else "does not exist"
        msg = f"{os.fspath(root)!r} {state}: give the folder that holds the images"
        raise UsageError(msg)
    names = sorted(_walk(root))
    images = [n for n in names if PurePosixPath(n).suffix.lower() in SUFFIXES]
    kept = set(images)
    return images, [n for n in names if n not in kept]


def _walk(root: str | os.PathLike[str]) -> Iterator[str]:
    above: dict[str, frozenset[str]] = {os.fspath(root): frozenset()}
    for folder, subfolders, files in os.walk(root, onerror=_warn_unlisted, followlinks=True):
        seen = above.pop(folder) | {os.path.realpath(folder)}
        # A link to a folder above would be walked for ever.
        subfolders[:] = [
            s for s in subfolders if not s.startswith(".") and os.path.realpath(os.path.join(folder, s)) not in seen
        ]
        above.update((os.path.join(folder, s), seen) for s in subfolders)
        for file in files:
            if not file.startswith("."):
                yield Path(os.path.relpath(os.path.join(folder, file), root)).as_posix()


def _warn_unlisted(error: OSError) -> None:
    _warn([str(error.filename)], f"folder(s) left out, since listing failed with {error.strerror!r}")


def _empty_folders(root: str | os.PathLike[str], parts: Iterable[tuple[str, ...]], depth: int) -> list[str]:
    """Folders without images beside those with images, down to ``depth`` levels below the first."""
    used = {p[:level] for p in parts for level in range(1, len(p))}
    parents = [(), *sorted(p for p in used if len(p) <= depth)]
    return sorted(
        "/".join((*parent, entry.name))
        for parent in parents
        for entry in os.scandir(os.path.join(root, *parent))
        if entry.is_dir() and not entry.name.startswith(".") and (*parent, entry.name) not in used
    )


def _refuse_mixed_layout(parts: Sequence[tuple[str, ...]]) -> None:
    """Refuse folders beside those of a split, with which train and test would become classes."""
    splits = {p[0] for p in parts if p[0].lower() in SPLITS}
    others = sorted({p[0] for p in parts} - splits)
    if others and any(len(p) > 2 for p in parts if p[0] in splits):
        msg = (
            f"{_count(others, 'folder(s) that are not called train, val or test')} beside {min(splits)!r}, which has "
            "folders of its own: rename them, or move them elsewhere"
        )
        raise DataError(msg)


def _lookalikes(names: Sequence[str]) -> list[str]:
    stems = Counter(PurePosixPath(name).stem for name in names)
    return [name for name in names if stems[PurePosixPath(name).stem] > 1]


def read_delimited(path: str | os.PathLike[str], needed: Sequence[str]) -> pd.DataFrame:
    """Read a CSV file as text, with the delimiter under which the needed columns exist."""
    source, text = os.fspath(path), _read_text(path)
    try:
        headers = {d: next(_records(text, d), []) for d in _DELIMITERS}
        delimiter = max(_DELIMITERS, key=lambda d: (len(set(needed) & set(headers[d])), len(headers[d])))
        header = headers[delimiter]
        _check_header(header, needed, source)
        rows = [row for row in _records(text, delimiter, strict=True) if any(row)][1:]
    except csv_module.Error as error:
        msg = f"{source} cannot be read as a table: {error}"
        raise DataError(msg) from error
    width = len(header)
    ragged = [delimiter.join(row) for row in rows if any(row[width:])]
    if ragged:
        what = f"row(s) of {source} with more than {width} values"
        msg = f"{_count(ragged, what)}: quote values that hold {delimiter!r}"
        raise DataError(msg)
    table = pd.DataFrame([[*row[:width], *[""] * (width - len(row))] for row in rows], columns=header, dtype=object)
    return table.loc[:, [column != "" for column in header]]


def _records(text: str, delimiter: str, *, strict: bool = False) -> Iterator[list[str]]:
    records = csv_module.reader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True, strict=strict)
    return ([value.strip() for value in record] for record in records)


def _check_header(header: Sequence[str], needed: Sequence[str], source: str) -> None:
    for column in needed:
        if column not in header:
            msg = f"{source} has no column {column!r}: it has {header}"
            raise UsageError(msg)
        if header.count(column) > 1:
            msg = f"{source} has {header.count(column)} columns {column!r}: rename or remove all but one"
            raise DataError(msg)


def _read_text(path: str | os.PathLike[str]) -> str:
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        msg = f"cannot read {os.fspath(path)}: {error.strerror or error}"
        raise UsageError(msg) from error
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        tried = encoding.removesuffix("-sig").upper()
        msg = f"{os.fspath(path)} is not {tried} text (byte {error.start}): save it as UTF-8"
        raise DataError(msg) from error
    text = text.replace("\r\n", "\n").replace("\r", "\n").lstrip("\n")
    if not text.strip():
        msg = f"{os.fspath(path)} is empty: it needs a header line and a row for each image"
        raise DataError(msg)
    return text


def _locate(
    ids: list[str],
    images: str | os.PathLike[str],
    *,
    source: str,
    label: Sequence[str | None] | None,
    group: Sequence[str | None] | None = None,
    split: Sequence[str | None] | None = None,
) -> pd.DataFrame:
    """Find the file of every id, report what has no partner, and return the matched table."""
    _check_ids(pd.Series(ids), source)
    names, _ = _list_images(images)
    matches = _match(ids, names)
    several = [f"{i} ({', '.join(found[:3])})" for i, found in zip(ids, matches, strict=True) if len(found) > 1]
    if several:
        named = _count(several, "row(s) that fit several files")
        msg = f"{named}: give the path below {os.fspath(images)!r} with its ending"
        raise DataError(msg)
    paths = [_join(images, found[0]) if found else "" for found in matches]
    table = _table(ids, paths, label, group, split)
    found_rows = [bool(found) for found in matches]
    if not any(found_rows):
        msg = (
            f"none of the {len(ids)} rows of {source} has an image in {os.fspath(images)!r}: the first is {ids[0]!r}"
            if ids
            else f"{source} has a header and no rows: it needs a row for each image"
        )
        raise DataError(msg)
    used: dict[str, list[str]] = defaultdict(list)
    for i, found in zip(ids, matches, strict=True):
        if found:
            used[found[0]].append(i)
    shared = [f"{name} ({', '.join(rows[:3])})" for name, rows in used.items() if len(rows) > 1]
    if shared:
        msg = f"{_count(shared, f'image(s) that several rows of {source} name')}: keep one row for each"
        raise DataError(msg)
    _warn(
        [i for i, found in zip(ids, found_rows, strict=True) if not found],
        f"row(s) of {source} without an image left out",
    )
    _warn([n for n in names if n not in used], f"image(s) in {os.fspath(images)} without a row left out")
    table = check_table(table[found_rows].reset_index(drop=True))
    if label is not None:
        _warn(table.image_id[table["label"].isna()], "image(s) without a label")
    return table


def _match(ids: Sequence[str], names: Sequence[str]) -> list[list[str]]:
    """Files for each id: by relative path, path without ending, file name, bare name; first that fits."""
    keys: tuple[Callable[[PurePosixPath], PurePosixPath], ...] = (
        lambda name: name,
        lambda name: name.with_suffix(""),
        lambda name: PurePosixPath(name.name),
        lambda name: PurePosixPath(name.stem),
    )
    indices: list[dict[str, list[str]]] = [defaultdict(list) for _ in keys]
    for name in names:
        path = _comparable(name)
        for key, index in zip(keys, indices, strict=True):
            index[str(key(path))].append(name)
    wanted = [str(_comparable(i)) for i in ids]
    return [next((index[w] for index in indices if w in index), []) for w in wanted]


def _comparable(name: str) -> PurePosixPath:
    # File systems disagree on how an accented letter is composed and on the slash; labels follow neither.
    return PurePosixPath(unicodedata.normalize("NFC", name.replace("\\", "/")))


def _from_one_hot(columns: pd.DataFrame, ids: Sequence[str]) -> list[str | None]:
    values = columns.apply(pd.to_numeric, errors="coerce")
    valid = values.isin((0, 1)).all(axis=1) & (values.sum(axis=1) == 1)
    wrong = [i for i, ok in zip(ids, valid, strict=True) if not ok]
    if wrong:
        msg = f"{_count(wrong, 'one-hot row(s) that do not hold exactly one 1')}: correct the ground truth"
        raise DataError(msg)
    return values.idxmax(axis=1).tolist() if len(values) else []


def _check_ids(ids: pd.Series, source: str) -> None:
    blank = [f"row {number}" for number, i in enumerate(ids, 1) if i == ""]
    if blank:
        msg = f"{_count(blank, f'blank image name(s) in {source}')}: fill them in, or remove these rows"
        raise DataError(msg)
    duplicates = list(dict.fromkeys(ids[ids.duplicated()]))
    if duplicates:
        msg = f"{_count(duplicates, f'duplicate image id(s) in {source}')}: every image needs an id of its own"
        raise DataError(msg)


def _warn_mixed_groups(table: pd.DataFrame) -> None:
    known = table[table["group"].notna() & table["label"].notna()]
    if len(known):
        labels = known.groupby("group")["label"].nunique()
        _warn(labels[labels > 1].index, "group(s) with more than one label")


def _count(items: Iterable[str], what: str) -> str:
    items = list(items)
    shown = ", ".join(repr(i) if len(i) <= 120 else repr(i[:117] + "…") for i in items[:3])
    return f"{len(items)} {what} ({'first: ' if len(items) > 3 else ''}{shown})"


def _warn(items: Iterable[str], what: str) -> None:
    items = list(items)
    if items:
        warnings.warn(_count(items, what), DataWarning, stacklevel=3)


def relabel(table: pd.DataFrame, labels: pd.Series | Mapping[str, str | None]) -> pd.DataFrame:
    """Replace labels, by image id (a Series) or by old label (a mapping; None removes a class)."""
    if isinstance(labels, pd.Series):
        known = set(table["image_id"])
        unknown = [str(i) for i in labels.index if i not in known]
        if unknown:
            msg = f"{_count(unknown, 'label(s) for unknown images')}: index the Series by image_id"
            raise DataError(msg)
        _check_ids(labels.index.to_series(), "the labels")
        new = labels.reindex(table["image_id"]).tolist()
    elif isinstance(labels, Mapping):
        known = set(table["label"].dropna())
        unknown = [str(old) for old in labels if old not in known]
        if unknown:
            msg = f"labels names {unknown[0]!r}, which no image has: the labels are {sorted(known, key=str)}"
            raise DataError(msg)
        new = [None if pd.isna(old) else labels.get(old, old) for old in table["label"]]
    else:
        msg = f"labels is a {type(labels).__name__}: pass a Series by image id, or a mapping of old labels to new ones"
        raise UsageError(msg)
    renamed, old = pd.Series(new, dtype=object), table["label"].dropna().tolist()
    # Those of arrays may be numbers, and stay so where all are.
    are_numbers = bool(old) and not any(isinstance(label, str) for label in [*old, *new])
    return table.assign(label=renamed if are_numbers else _texts(renamed))
