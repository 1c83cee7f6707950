"""A fitted classifier in one file: what is in it, and how much of that is believed.

A bundle is a zip archive whose members are stored as they are, without compression: a description in JSON, the
pipeline and the calibrator as skops writes them, and files of weights. A file from a stranger is audited before
anything is built of it: `read_bundle` knows every type that a classifier of deepfeat can hold, and refuses all others.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.calibration import CalibratedClassifierCV
from sklearn.pipeline import Pipeline

from deepfeat.archives import AuditError, Members, audit_keras, audit_schema, audit_weights, parse_json, read_members
from deepfeat.errors import BundleError, UsageError
from deepfeat.estimators import check_estimators
from deepfeat.outputs import check_folder
from deepfeat.store import block_key

FORMAT, FORMAT_VERSION = "deepfeat classifier", 1

#: Protocol of skops that is written and read.
PROTOCOL = 2

DESCRIPTION, PIPELINE, CALIBRATOR, WEIGHTS = "deepfeat.json", "pipeline.skops", "calibrator.skops", "weights/"

#: Bytes of the description that are read at most.
_LONGEST = 64 << 20

#: Pixels of an edge of a network's input at most.
_LARGEST = 4096

#: What the description must hold, and of which type.
_FIELDS: dict[str, type | tuple[type, ...]] = {
    "deepfeat": str,
    "classes": list,
    "positive": (str, int, float, bool, type(None)),
    "threshold": (float, type(None)),
    "wish": (str, type(None)),
    "blocks": list,
    "views": list,
    "scoring": str,
    "evaluated_on": str,
    "engine": str,
    "best_params": dict,
    "metrics": dict,
    "per_class": dict,
    "warnings": list,
    "provenance": dict,
    "members": dict,
    "digest": str,
}


@dataclass(frozen=True)
class Bundle:
    """What a classifier is made of.

    Attributes
    ----------
    pipeline : sklearn.pipeline.Pipeline
    calibrator : CalibratedClassifierCV or None
    classes : list
    positive : label or None
    threshold : float or None
    blocks : list of dict
        Name, dim and, where the features are of a store, key, spec and trained; see ``provenance`` of a result.
    views : tuple of str
    description : dict
        Everything else that is known: metrics, per_class, best_params, provenance, warnings and so on.
    weights : dict of str to bytes
        Files of weights by their names, which are their SHA-256 and an ending.
    """

    pipeline: Pipeline
    calibrator: CalibratedClassifierCV | None
    classes: list[Any]
    positive: Any
    threshold: float | None
    blocks: list[dict[str, Any]]
    views: tuple[str, ...]
    description: dict[str, Any]
    weights: dict[str, bytes]


def describe_result(result: Any) -> dict[str, Any]:
    """Everything of a `deepfeat.SVMResult` that JSON can hold, apart from the rows of its images."""
    return {
        "deepfeat": result.provenance.get("deepfeat", ""),
        "classes": [_plain(label) for label in result.classes],
        "positive": _plain(result.positive),
        "threshold": result.threshold,
        "wish": result.wish,
        "blocks": _plain(result.provenance["blocks"]),
        "views": list(result.views),
        "scoring": result.scoring,
        "evaluated_on": result.evaluated_on,
        "engine": result.engine,
        "best_params": _plain(result.best_params),
        "metrics": _plain(result.metrics.to_dict("index")),
        "per_class": _plain(result.per_class.to_dict("index")),
        "warnings": list(result.warnings),
        # A path would tell strangers of the machine.
        "provenance": _plain({**result.provenance, "store": _file_name(result.provenance["store"])}),
    }


def bundle_of(result: Any) -> Bundle:
    """Take a `deepfeat.SVMResult` as what a file of it would hold."""
    description = describe_result(result)
    given = (result.pipeline, result.calibrator, list(result.classes), result.positive, result.threshold)
    return Bundle(*given, description["blocks"], tuple(result.views), description, {})


def write_bundle(result: Any, path: str | os.PathLike[str], weights: Any = ()) -> None:
    """Write a result into one file, whole or not at all.

    Parameters
    ----------
    result : SVMResult
    path : path
    weights : path or sequence of paths
        Files of weights that are to travel along: ``.keras`` or ``.weights.h5``.

    Raises
    ------
    UsageError
        If a file of weights is not one that the classifier needs, is of another type, or is that of a fine-tuned
        network without its manifest beside it; or if there is no folder for the file.
    BundleError
        If `read_bundle` would refuse the file.
    """
    from skops import io as skops_io

    target = Path(path)
    check_folder(target)
    members = {PIPELINE: skops_io.dumps(result.pipeline)}
    if result.calibrator is not None:
        members[CALIBRATOR] = skops_io.dumps(result.calibrator)
    description = describe_result(result)
    listed = [weights] if isinstance(weights, str | os.PathLike) else list(weights)
    members.update(_weights_members(listed, description["blocks"]))
    record = {"format": FORMAT, "format_version": FORMAT_VERSION, **description}
    record["members"] = {name: {"size": len(data), "sha256": _sha256(data)} for name, data in members.items()}
    record["digest"] = _digest(record)
    text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False)
    _refuse_unreadable(target, {DESCRIPTION: text.encode(), **members})
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with zipfile.ZipFile(beside, "w", zipfile.ZIP_STORED) as archive:
            archive.writestr(DESCRIPTION, text)
            for name, data in members.items():
                archive.writestr(name, data)
        os.replace(beside, target)
    finally:
        beside.unlink(missing_ok=True)


def _refuse_unreadable(target: Path, members: Members) -> None:
    """Refuse to write what would be refused in reading; weights were audited by themselves."""
    try:
        _read_classifier(members, _read_description(members))
    except AuditError as error:
        msg = f"{target} is not saved, since it could not be loaded: {' '.join(str(error).split())}"
        raise BundleError(msg) from error


def read_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Audit a file, and build the classifier in it if it holds nothing that a classifier does not.

    Raises
    ------
    BundleError
        If the file is not a bundle, is damaged, is of an unknown version, or holds anything else.
    """
    file = Path(path)
    try:
        return _read(file)
    except AuditError as error:
        msg = f"{file} is not loaded: {' '.join(str(error).split())}"
        raise BundleError(msg) from error
    except FileNotFoundError as error:
        msg = f"there is no file {os.fspath(path)!r}: give one that result.save wrote"
        raise BundleError(msg) from error
    # What zipfile, JSON, NumPy and skops raise on a file that was made to break them is without limit.
    except Exception as error:
        msg = f"{file} is not loaded: it cannot be read ({type(error).__name__}: {' '.join(str(error)[:200].split())})"
        raise BundleError(msg) from error


def _read(file: Path) -> Bundle:
    members = read_members(file, _is_member)
    record = _read_description(members)
    _check_members(members, record)
    weights = {name.removeprefix(WEIGHTS): members[name] for name in members if name.startswith(WEIGHTS)}
    for name, data in weights.items():
        _check_weights(name, data)
    pipeline, calibrator, blocks = _read_classifier(members, record)
    facts = {name: record[name] for name in _FIELDS if name not in ("members", "digest")}
    given = (pipeline, calibrator, record["classes"], record["positive"], record["threshold"])
    return Bundle(*given, blocks, tuple(record["views"]), facts, weights)


def _read_classifier(members: Members, record: Mapping[str, Any]) -> tuple[Any, Any, list[dict[str, Any]]]:
    """Pipeline, calibrator and blocks, which fit one another."""
    blocks = _check_blocks(record)
    pipeline = _build(members[PIPELINE], PIPELINE)
    calibrator = _build(members[CALIBRATOR], CALIBRATOR) if CALIBRATOR in members else None
    width = sum(block["dim"] for block in blocks) * len(record["views"])
    check_estimators(pipeline, calibrator, width, record["classes"], record["positive"])
    return pipeline, calibrator, blocks


def _is_member(name: str) -> bool:
    return name in (DESCRIPTION, PIPELINE, CALIBRATOR) or _is_weights(name)


def _is_weights(name: str) -> bool:
    stem, _, ending = name.removeprefix(WEIGHTS).partition(".")
    named = len(stem) == 64 and set(stem) <= set("0123456789abcdef")
    return name.startswith(WEIGHTS) and named and ending in ("keras", "json", "weights.h5")


def _read_description(members: Members) -> dict[str, Any]:
    if DESCRIPTION not in members:
        msg = f"it has no {DESCRIPTION}, so that it was not written by result.save"
        raise AuditError(msg)
    if len(members[DESCRIPTION]) > _LONGEST:
        msg = f"its {DESCRIPTION} is longer than {_LONGEST >> 20} MB"
        raise AuditError(msg)
    record = parse_json(members[DESCRIPTION], DESCRIPTION)
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        msg = f"its {DESCRIPTION} is not of a {FORMAT}"
        raise AuditError(msg)
    version = record.get("format_version")
    if type(version) is not int or version != FORMAT_VERSION:
        msg = (
            f"it is of format version {version!r}, and this deepfeat reads {FORMAT_VERSION}: update deepfeat, or save "
            "it again"
        )
        raise AuditError(msg)
    unknown = set(record) - set(_FIELDS) - {"format", "format_version"}
    if unknown:
        msg = f"its description says {min(unknown)!r}, which is not known here"
        raise AuditError(msg)
    for name, kind in _FIELDS.items():
        if name not in record or not isinstance(record[name], kind):
            msg = f"its description lacks a proper {name!r}"
            raise AuditError(msg)
    if record["digest"] != _digest(record):
        raise AuditError("its description is not the one that was written: the digest is another")
    if record["threshold"] is not None and (record["positive"] is None or not math.isfinite(record["threshold"])):
        raise AuditError("its threshold is not a finite number, or there is no positive class for it")
    return record


def _check_members(members: Members, record: Mapping[str, Any]) -> None:
    told = record["members"]
    found = set(members) - {DESCRIPTION}
    if set(told) != found:
        odd = min(set(told) ^ found)
        msg = f"{odd!r} is {'missing' if odd in told else 'not named in its description'}"
        raise AuditError(msg)
    if PIPELINE not in found:
        raise AuditError("it has no pipeline")
    for name in found:
        expected = {"size": len(members[name]), "sha256": _sha256(members[name])}
        if told[name] != expected:
            msg = f"{name!r} has another content than its description says: its size or digest is another"
            raise AuditError(msg)


def _check_weights(name: str, data: bytes) -> None:
    stem, _, ending = name.partition(".")
    if ending != "json" and _sha256(data) != stem:
        msg = f"the weights {name!r} have another digest than their name says"
        raise AuditError(msg)
    if ending == "keras":
        audit_keras(data, name)
    elif ending == "weights.h5":
        audit_weights(data, name)
    elif not isinstance(parse_json(data, name), dict):
        msg = f"{name!r} does not describe a network"
        raise AuditError(msg)


def _check_blocks(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = record["blocks"]
    views: list[str] = record["views"]
    if not views or not all(isinstance(view, str) for view in views) or not blocks:
        raise AuditError("its description names no blocks or no views")
    for block in blocks:
        known = isinstance(block, dict) and isinstance(block.get("name"), str)
        if not known or type(block.get("dim")) is not int or block["dim"] < 1:
            raise AuditError("its description has a block without a name or width")
        if "spec" in block and (not isinstance(block["spec"], dict) or block_key(block["spec"]) != block.get("key")):
            msg = f"the description of block {block['name']!r} does not match its key"
            raise AuditError(msg)
        if not _is_size(block.get("spec", {}).get("input_size", [1, 1])):
            msg = f"block {block['name']!r} is of images of another size than 1 to {_LARGEST} pixels"
            raise AuditError(msg)
    if not all(isinstance(label, str | int | float) for label in record["classes"]):
        raise AuditError("its classes are neither text nor numbers")
    if not record["classes"] or len(set(map(repr, record["classes"]))) != len(record["classes"]):
        raise AuditError("its classes are none, or not different")
    return blocks


def _is_size(size: Any) -> bool:
    """Whether a network's input is small enough for the memory of a machine."""
    numbers = isinstance(size, list) and len(size) == 2 and all(type(edge) is int for edge in size)
    return numbers and all(0 < edge <= _LARGEST for edge in size)


def _build(data: bytes, name: str) -> Any:
    """Build an object whose every node was audited."""
    from skops import io as skops_io

    trusted = audit_schema(data, name, PROTOCOL)
    return skops_io.loads(data, trusted=trusted)


def read_weights(file: Path, blocks: Sequence[Mapping[str, Any]]) -> dict[str, bytes]:
    """Members of a bundle: weights that some blocks were computed with, and the manifest of a fine-tuned network.

    Raises
    ------
    UsageError
        If the file is of another type, is not there, belongs to none of the blocks, or would be refused in reading, or
        if the manifest is not beside it.
    """
    ending = next((ending for ending in (".keras", ".weights.h5") if file.name.endswith(ending)), None)
    if ending is None:
        msg = f"weights {str(file)!r} is not a .keras or .weights.h5 file: others are named at deepfeat.load"
        raise UsageError(msg)
    if not file.is_file():
        msg = f"there is no file {str(file)!r}: name the weights with which the features were computed"
        raise UsageError(msg)
    needed = {block["spec"]["weights"]: block["name"] for block in blocks if "spec" in block}
    data = file.read_bytes()
    digest = _sha256(data)
    if f"sha256:{digest}" not in needed:
        msg = f"{file} has weights that no block was computed with: the blocks are {', '.join(needed.values())}"
        raise UsageError(msg)
    _audit_own(file.name, ending, data)
    members = {f"{WEIGHTS}{digest}{ending}": data}
    tuned = {block["spec"]["weights"] for block in blocks if block.get("trained")}
    if f"sha256:{digest}" in tuned:
        members[f"{WEIGHTS}{digest}.json"] = _read_manifest(file, f"sha256:{digest}")
    return members


def _read_manifest(network: Path, digest: str) -> bytes:
    """The manifest of a fine-tuned network, without which nobody can use it."""
    file = network.with_suffix(".json")
    try:
        data = file.read_bytes()
        belongs = parse_json(data, file.name)["weights"] == digest
    except (OSError, AuditError, KeyError, TypeError):
        belongs = False
    if not belongs:
        msg = (
            f"{network} was fine-tuned, and its manifest {file.name} is not beside it: put both into one folder, or "
            "save without these weights"
        )
        raise UsageError(msg)
    return data


def _weights_members(files: Iterable[Any], blocks: Sequence[Mapping[str, Any]]) -> dict[str, bytes]:
    """Files of weights by the names that they have in a bundle."""
    members: dict[str, bytes] = {}
    for file in files:
        members |= read_weights(Path(file), blocks)
    return members


def _audit_own(name: str, ending: str, data: bytes) -> None:
    """Refuse to write what would be refused in reading."""
    try:
        (audit_keras if ending == ".keras" else audit_weights)(data, name)
    except AuditError as error:
        msg = f"{error}: save without these weights, and pass the backbone to deepfeat.load"
        raise UsageError(msg) from error


def _file_name(path: str | None) -> str | None:
    return None if path is None else Path(path).name


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _digest(record: Mapping[str, Any]) -> str:
    told = {name: value for name, value in record.items() if name != "digest"}
    text = json.dumps(told, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return _sha256(text.encode("utf-8", "surrogatepass"))


def _plain(value: Any) -> Any:
    """A value as JSON has it; what is not a finite number becomes null."""
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and (pd.isna(value) or math.isinf(value)) else value
