"""Features from one place to another: merging stores, and features made elsewhere."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd

from deepfeat.datasets import COLUMNS, check_table, read_delimited
from deepfeat.errors import DataError, DataWarning, ImageError, StoreError, UsageError
from deepfeat.images import read_bytes, stamp_file
from deepfeat.store import DONE, FAILED, MISSING, RECORD, Block, FeatureStore, StoreWriter, block_key, open_features
from deepfeat.store.layout import IMPORTED, NO_STAMP, is_imported

#: Rows copied at a time.
_COPIED_AT_ONCE = 4096

#: Data sets of a file that a message names.
_NAMED_AT_MOST = 10


def merge_features(sources: Sequence[str | os.PathLike[str]], target: str | os.PathLike[str]) -> FeatureStore:
    """Merge feature stores into one.

    Images are the same if they have the same id, and blocks if they have the
    same key. What only one store has is copied; what several have
    must agree.

    Parameters
    ----------
    sources : sequence of path
        Stores, which stay as they are.
    target : path
        A new store, or one to merge into.

    Returns
    -------
    FeatureStore
        The target, opened for reading.

    Raises
    ------
    StoreError
        If stores disagree on the label, group or split of an image, or on the
        content that features were computed from, or hold different features
        for equal content, or features of another shape; the conflicts are named and nothing is
        written. Two runs of one network differ by rounding, which is no conflict
        if all values agree to 1e-4 of the largest.
    UsageError
        If there is no source, the sources are one path and no sequence of them, or the target is one of them.

    Examples
    --------
    >>> import deepfeat
    >>> photos = deepfeat.read_folder("photos")
    >>> for name, part in photos.groupby("label"):
    ...     store = deepfeat.import_features(part[["image_id"]].map(len), part, f"{name}.h5", name="length")
    >>> deepfeat.merge_features(["MEL.h5", "NV.h5"], "all.h5").n_images
    24
    """
    if isinstance(sources, str | bytes | os.PathLike):
        msg = f"sources is one path, {os.fspath(sources)!r}: pass a list of paths, as in [{os.fspath(sources)!r}]"
        raise UsageError(msg)
    if not sources:
        raise UsageError("there are no stores to merge")
    stores = [open_features(path) for path in sources]
    if any(os.path.exists(target) and os.path.samefile(store.path, target) for store in stores):
        msg = f"{os.fspath(target)} is both a source and the target: give the target another name"
        raise UsageError(msg)
    known = [open_features(target)] if os.path.exists(target) else []
    table = _merge_tables([*known, *stores])
    _refuse_conflicts([*known, *stores])
    with StoreWriter(target) as writer:
        writer.add_images(table)
        for store in stores:
            for block in store.structure.blocks:
                _copy_block(store, block, writer)
    return open_features(target)


def import_features(
    features: np.ndarray | Mapping[str, np.ndarray],
    table: pd.DataFrame,
    cache: str | os.PathLike[str],
    *,
    name: str | None = None,
) -> FeatureStore:
    """Put features that were made elsewhere into a store, so that `fit_svm` takes them.

    Parameters
    ----------
    features : ndarray of shape (n, dim), or mapping of name to such
        Of any dtype of real numbers, which is stored as float32; in the order of the table's rows.
    table : pandas.DataFrame
        With ``image_id`` and, where known, path, label, group and split. Where it has no path, that of the store stays.
    cache : path
        Made if it does not exist.
    name : str, optional
        Name of the block, for a single array.

    Returns
    -------
    FeatureStore

    Raises
    ------
    UsageError
        If a name is missing, or an array is not (n, dim) with a row for each of the table.
    DataError
        If values are not finite, or the table is not usable.

    Warns
    -----
    DataWarning
        If the store has images, and none of the table is among them.

    Notes
    -----
    Blocks are joined only where they saw the same contents of an image, and the
    features themselves do not tell which contents they are of. The digest that
    their rows get is that of the file where ``path`` of the table names one that can
    be read. Otherwise the caller's word is taken that the features are of the image
    that the store has under this id: the digest is the one that its other blocks
    have, where it is exactly one, so that all can be joined; else that of the
    file that the store knows, and, where this cannot be read either, that of the id. When
    a file has changed and is extracted again, imported features stay those of the old content, and are not
    joined any more until they are imported again. The key of a block holds the digest of its values.

    Examples
    --------
    >>> import numpy as np
    >>> import pandas as pd
    >>> import deepfeat
    >>> table = pd.DataFrame({"image_id": ["a", "b"], "label": ["x", "y"]})
    >>> store = deepfeat.import_features(np.eye(2), table, "mine.h5", name="mine")
    >>> store.features("mine")
    array([[1., 0.],
           [0., 1.]], dtype=float32)
    """
    arrays = dict(features) if isinstance(features, Mapping) else {"": features}
    if name is not None and len(arrays) == 1:
        arrays = dict(zip([name], arrays.values(), strict=True))
    if "" in arrays:
        raise UsageError("the features need a name: pass name=")
    pathless = _lacks_path(table)
    table = check_table(_name_files_by_ids(table, pathless))
    checked = {block: _check_features(block, values, table) for block, values in arrays.items()}
    specs = {block: _imported_spec(block, values, table) for block, values in checked.items()}
    with StoreWriter(cache) as writer:
        _warn_of_strangers(table, writer.store)
        _warn_of_namesakes(specs.values(), writer.store)
        table = _keep_paths(table, pathless, writer.store)
        rows = writer.add_images(table).tolist()
        seen = _seen_by_blocks(writer.store, without={block_key(spec) for spec in specs.values()})
        records = _records_of_contents(table, pathless, seen[rows])
        for block_name, values in checked.items():
            block = writer.add_block(specs[block_name], values.shape[1:], {})
            for part in _parts(len(rows)):
                writer.write(block, rows[part], values[part], records[part])
    return open_features(cache)


def read_features(
    file: str | os.PathLike[str],
    csv: str | os.PathLike[str],
    *,
    dataset: str | None = None,
    image: str = "image",
    label: str | None = None,
    group: str | None = None,
) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """Read features that were made elsewhere, and the ids and labels of their rows, for `import_features`.

    Parameters
    ----------
    file : path
        A ``.npy`` file of shape (n, dim), or an HDF5 file.
    csv : path
        Delimited text with a header line and one row for each row of the features, in their order.
    dataset : str, optional
        Name of the data set in an HDF5 file, which needs one.
    image, label, group : str
        Columns of the CSV.

    Returns
    -------
    table : pandas.DataFrame
    features : dict of str to ndarray of shape (n, dim)
        One array under the name of the file, with the dtype that it has there.

    Raises
    ------
    UsageError
        If the file is neither, or a column or data set is not there; the data sets that are there are named.

    Examples
    --------
    >>> import numpy as np
    >>> import deepfeat
    >>> np.save("vit.npy", np.zeros((24, 5), np.float32))
    >>> table, features = deepfeat.read_features("vit.npy", "labels.csv", label="label", group="patient")
    >>> store = deepfeat.import_features(features, table, "vit.h5")
    >>> store.features("vit").shape
    (24, 5)
    """
    path = Path(file)
    rows = read_delimited(csv, [c for c in (image, label, group) if c is not None])
    table = pd.DataFrame({"image_id": rows[image]})
    for name, column in (("label", label), ("group", group)):
        if column is not None:
            table[name] = rows[column]
    try:
        if path.suffix == ".npy":
            return table, {path.stem: np.load(path, allow_pickle=False)}
        with h5py.File(path, "r", locking=False) as source:
            return table, {path.stem: _find_dataset(source, dataset)[()]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        msg = f"cannot read features from {path}{f', data set {dataset!r}' if dataset else ''}: {error}"
        raise UsageError(msg) from error


def _find_dataset(source: h5py.File, name: str | None) -> h5py.Dataset:
    found = source.get(name) if name else None
    if isinstance(found, h5py.Dataset):
        return found
    known: list[str] = []
    source.visititems(lambda path, item: known.append(repr(path)) if isinstance(item, h5py.Dataset) else None)
    if not known:
        raise UsageError("the file has no data set")
    more = f" and {len(known) - _NAMED_AT_MOST} more" if len(known) > _NAMED_AT_MOST else ""
    wrong = ("it is a group; " if isinstance(found, h5py.Group) else "it is not there; ") if name else ""
    msg = f"{wrong}name one of the file's data sets as dataset (--dataset): {', '.join(known[:_NAMED_AT_MOST])}{more}"
    raise UsageError(msg)


def _check_features(name: str, values: Any, table: pd.DataFrame) -> np.ndarray:
    values = np.asarray(values)
    if values.ndim != 2 or len(values) != len(table) or values.shape[1] == 0 or values.dtype.kind not in "fiu":
        wanted = f"({len(table)}, dim)"
        msg = f"features {name!r} are {values.dtype} of shape {values.shape}: use numbers of shape {wanted}"
        raise UsageError(msg)
    values = values.astype(np.float32)
    wrong = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(wrong):
        first = table["image_id"][wrong[0]]
        msg = f"features {name!r} of {len(wrong)} image(s) are not finite float32 (first: {first!r})"
        raise DataError(msg)
    return np.asarray(values)


def _imported_spec(name: str, values: np.ndarray, table: pd.DataFrame) -> dict[str, Any]:
    digest = hashlib.sha256(repr(values.shape).encode())
    for image_id, row in zip(table["image_id"], values, strict=True):
        digest.update(image_id.encode("utf-8", "surrogateescape") + b"\0")
        digest.update(row.astype("<f4").data)
    return {"backbone": name, "weights": f"{IMPORTED}{digest.hexdigest()}", "layer": None, "pooling": None}


def _lacks_path(table: pd.DataFrame) -> np.ndarray:
    """Which rows name no file."""
    if "path" not in table:
        return np.ones(len(table), bool)
    return np.array([pd.isna(path) or not str(path).strip() for path in table["path"]], bool)


def _name_files_by_ids(table: pd.DataFrame, pathless: np.ndarray) -> pd.DataFrame:
    """Let the id stand for the path where there is none; a table without ids is left to its check."""
    if "image_id" not in table or not pathless.any():
        return table
    ids = table["image_id"].to_numpy(object)
    paths = np.where(pathless, ids, table["path"].to_numpy(object)) if "path" in table else ids
    return table.assign(path=pd.Series(paths, table.index, object))


def _keep_paths(table: pd.DataFrame, pathless: np.ndarray, store: FeatureStore) -> pd.DataFrame:
    """Take the store's path of each image of which the table has none."""
    known = dict(zip(store.table["image_id"], store.table["path"], strict=True))
    rows = zip(table["image_id"], table["path"], pathless, strict=True)
    paths = [known.get(image_id, path) if lacks else path for image_id, path, lacks in rows]
    return table.assign(path=pd.Series(paths, table.index, object))


def _warn_of_strangers(table: pd.DataFrame, store: FeatureStore) -> None:
    """Say that all rows of the table are new to a store that has images; it may know the same ones by other ids."""
    known = store.table["image_id"].tolist()
    if known and set(known).isdisjoint(table["image_id"]):
        msg = (
            f"no image id of the table is in {store.path}: {table['image_id'][0]!r} is one of the table, {known[0]!r} "
            f"one of the store, which gets {len(table)} new image(s): where they are the same images, give them the "
            "same ids"
        )
        warnings.warn(msg, DataWarning, stacklevel=3)


def _warn_of_namesakes(specs: Iterable[Mapping[str, Any]], store: FeatureStore) -> None:
    """Say that other features were imported under the same name, which stay in the store."""
    names, keys = {spec["backbone"] for spec in specs}, {block_key(spec) for spec in specs}
    for block in store.structure.blocks:
        if is_imported(block.spec) and block.spec["backbone"] in names and block.key not in keys:
            msg = (
                f"{store.path} has other features that were imported as {block.name!r} ({block.key[:8]}), and keeps "
                "them: give each its own name, or name the block that is meant by its key"
            )
            warnings.warn(msg, DataWarning, stacklevel=3)


def _seen_by_blocks(store: FeatureStore, without: Collection[str]) -> np.ndarray:
    """What the blocks have seen of each image's file.

    Parameters
    ----------
    store : FeatureStore
    without : collection of str
        Keys of blocks that do not count.

    Returns
    -------
    ndarray of shape (n_images,), dtype `RECORD`
        Records of which size, mtime_ns and digest are of the file; missing where no content is known, or several.
    """
    of_ids = np.stack([_digest_id(image_id) for image_id in store.table["image_id"]])
    seen, several = np.zeros(store.n_images, RECORD), np.zeros(store.n_images, bool)
    for block in store.structure.blocks:
        if block.key in without:
            continue
        records = store.records(block.key)
        # The digest of an id says that the content was not known.
        knows = (records["state"] == DONE) & (records["digest"] != of_ids).any(axis=1)
        first = knows & (seen["state"] == MISSING)
        several |= knows & ~first & (records["digest"] != seen["digest"]).any(axis=1)
        seen[first] = records[first]
    seen[several] = np.zeros((), RECORD)
    return seen


def _records_of_contents(table: pd.DataFrame, pathless: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Records of the contents that features are said to be of, see the notes of `import_features`."""
    records, known = seen.copy(), seen["state"] == DONE
    ids, paths = table["image_id"].to_numpy(object), table["path"].to_numpy(object)
    for row in np.flatnonzero(~(pathless & known)):
        try:
            content, stamp = read_bytes(paths[row]), stamp_file(paths[row])
        except ImageError:
            if not known[row]:
                records["digest"][row] = _digest_id(ids[row])
            continue
        records["digest"][row] = np.frombuffer(hashlib.sha256(content).digest(), np.uint8)
        records["size"][row], records["mtime_ns"][row] = (stamp.size, stamp.mtime_ns) if stamp else (0, 0)
    return records


def _digest_id(image_id: str) -> np.ndarray:
    """What stands for the digest of a content that is not known."""
    return np.frombuffer(hashlib.sha256(image_id.encode("utf-8", "surrogateescape")).digest(), np.uint8)


def _merge_tables(stores: Sequence[FeatureStore]) -> pd.DataFrame:
    """One row per image id; labels, groups and splits must not contradict each other."""
    rows = pd.concat([store.table for store in stores], ignore_index=True)
    for column in COLUMNS[2:]:
        known = rows[rows[column].notna()]
        values = known.groupby("image_id")[column].nunique()
        wrong = values.index[values > 1].tolist()
        if wrong:
            found = known[known["image_id"] == wrong[0]][column].unique().tolist()
            msg = (
                f"the stores disagree on the {column} of {len(wrong)} image(s) (first: {wrong[0]!r} has {found}): "
                "extract with one table into each of them before merging"
            )
            raise StoreError(msg)
    return rows.groupby("image_id", sort=False, as_index=False).first()[list(COLUMNS)]


def _refuse_conflicts(stores: Sequence[FeatureStore]) -> None:
    """Compare the blocks that several stores have, row by row."""
    for number, store in enumerate(stores):
        for block in store.structure.blocks:
            for other in stores[number + 1 :]:
                if other.has_block(block.key):
                    _compare(store, other, block.key)


def _compare(first: FeatureStore, second: FeatureStore, key: str) -> None:
    name, *shapes = first.find(key).name, first.find(key).shape, second.find(key).shape
    if shapes[0] != shapes[1]:
        msg = (
            f"{first.path} and {second.path} hold {name} features of shapes {shapes[0]} and {shapes[1]} under one "
            "description: register one of the networks under another name, and extract again"
        )
        raise StoreError(msg)
    others = set(_done_ids(second, key))
    shared = [image_id for image_id in _done_ids(first, key) if image_id in others]
    a, b = (store.records(key)[store.positions(shared)] for store in (first, second))
    changed = [shared[i] for i in np.flatnonzero((a["digest"] != b["digest"]).any(axis=1))]
    if changed:
        msg = (
            f"{first.path} and {second.path} computed {name} from different contents of {len(changed)} image(s) "
            f"(first: {changed[0]!r}): extract these again in one of them"
        )
        raise StoreError(msg)
    for part in _parts(len(shared)):
        x, y = (store.features(key, shared[part]).reshape(len(shared[part]), -1) for store in (first, second))
        wrong = np.abs(x - y).max(axis=1) > 1e-4 * max(np.abs(x).max(), np.abs(y).max())
        if wrong.any():
            msg = (
                f"{first.path} and {second.path} hold different {name} features of {int(wrong.sum())} image(s) "
                f"of equal content (first: {shared[part][wrong.argmax()]!r}): run `deepfeat store verify --sample 32`"
            )
            raise StoreError(msg)


def _done_ids(store: FeatureStore, key: str) -> list[str]:
    return list(store.table["image_id"].to_numpy(object)[store.records(key)["state"] == DONE])


def _copy_block(store: FeatureStore, block: Block, writer: StoreWriter) -> None:
    """Copy the rows of a block that the target lacks, failed ones included."""
    copied = writer.add_block(block.spec, block.shape, block.versions, store.trained_on(block.key))
    records = store.records(block.key)
    ids = store.table["image_id"].to_numpy(object)
    targets = writer.store.positions(ids)
    paths = [table["path"].to_numpy(object) for table in (store.table, writer.store.table)]
    elsewhere = paths[0] != paths[1][targets]
    # Known by size and time, the file of the target's path might seem to be that of the source's.
    records["size"][elsewhere] = records["mtime_ns"][elsewhere] = NO_STAMP
    present = writer.store.records(block.key)["state"][targets]
    done = np.flatnonzero((records["state"] == DONE) & (present != DONE))
    failed = np.flatnonzero((records["state"] == FAILED) & (present == MISSING))
    for part in _parts(len(done)):
        rows = done[part]
        writer.write(copied, targets[rows].tolist(), store.features(block.key, ids[rows]), records[rows])
    if len(failed):
        writer.write_records(copied, targets[failed].tolist(), records[failed])


def _parts(count: int) -> list[slice]:
    return [slice(start, start + _COPIED_AT_ONCE) for start in range(0, count, _COPIED_AT_ONCE)]
