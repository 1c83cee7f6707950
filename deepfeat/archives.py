"""Archives from strangers: zip files, skops files and files of weights, looked at before they are believed."""

from __future__ import annotations

import io
import json
import math
import os
import re
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

#: Bytes of a file by its name in an archive.
Members = dict[str, bytes]

#: Members of an archive, and bytes of one of JSON, that are read at most.
_MOST_MEMBERS, _LONGEST_JSON = 4096, 64 << 20

#: Every type that a classifier of deepfeat is made of, by what builds it.
_TYPES = {
    "ObjectNode": frozenset(
        {
            "deepfeat.fusion.AlignedAverage",
            "deepfeat.fusion.BlockAverage",
            "deepfeat.fusion.LateFusionClassifier",
            "deepfeat.fusion.ViewsClassifier",
            "deepfeat.svm.calibration.DecisionValues",
            "sklearn.calibration.CalibratedClassifierCV",
            "sklearn.calibration._CalibratedClassifier",
            "sklearn.calibration._SigmoidCalibration",
            "sklearn.calibration._TemperatureScaling",
            "sklearn.frozen._frozen.FrozenEstimator",
            "sklearn.isotonic.IsotonicRegression",
            "sklearn.model_selection._split.KFold",
            "sklearn.pipeline.Pipeline",
            "sklearn.preprocessing._data.StandardScaler",
            "sklearn.svm._classes.LinearSVC",
            "sklearn.svm._classes.SVC",
        }
    ),
    "NdArrayNode": frozenset(f"numpy.{name}" for name in ("ndarray", "float64", "float32", "int64", "int32", "bool")),
    "DictNode": frozenset({"builtins.dict"}),
    "ListNode": frozenset({"builtins.list"}),
    "TupleNode": frozenset({"builtins.tuple"}),
    "JsonNode": frozenset({"builtins.str"}),
    "TypeNode": frozenset({"builtins.str", "builtins.bool", "builtins.int", "builtins.float", "numpy.str_"}),
}

#: What a Keras network is made of, by modules and names. None of it holds code or reads files, as a Lambda layer or
#: the vocabulary of a lookup would.
_KERAS_TYPES = tuple(
    (re.compile(module), re.compile(names))
    for module, names in (
        (
            r"keras\.layers|keras\.src\.layers\..*",
            r"(Separable|Depthwise)?Conv[123]D(Transpose)?|(Global)?(Max|Average)Pooling[123]D|(Ein\w*)?Dense|InputLayer"
            r"|\w*Normalization|Activation|ReLU|LeakyReLU|PReLU|ELU|Softmax|\w*Dropout[123]?D?|GaussianNoise|Add|Subtract"
            r"|Multiply|Average|Maximum|Minimum|Concatenate|Dot|Flatten|Reshape|Permute|RepeatVector|Identity|Rescaling"
            r"|Resizing|CenterCrop|Random\w+|(ZeroPadding|Cropping|UpSampling)[123]D|\w*Attention|Embedding",
        ),
        (r"keras\.(initializers|regularizers|constraints|dtype_policies)", r"[A-Z]\w*"),
        (r"keras\.src\.ops\.\w+", r"[A-Z]\w*"),
        (r"keras(\.models|\.src\.models\.\w+)?", r"Functional|Sequential|Model|DTypePolicy"),
        (r"keras\.src\.applications\.convnext", r"LayerScale|StochasticDepth"),
        (r"deepfeat\.backbones\.response_normalisation", r"LocalResponseNormalization"),
        (r"", r"__(keras_tensor|tensor|tuple|numpy)__"),
    )
)


class AuditError(Exception):
    """Something in an archive that it must not hold; the message says what."""


def read_members(source: Path | io.BytesIO, allowed: Callable[[str], bool]) -> Members:
    """Read a zip archive whose members are known by name.

    Parameters
    ----------
    source : path or file
    allowed : callable
        Tells whether a member may have a name.

    Returns
    -------
    dict of str to bytes

    Raises
    ------
    AuditError
        If it is no zip archive, or has members that are not allowed, twice the same, compressed, encrypted, or larger
        in sum than the file.
    """
    size = source.stat().st_size if isinstance(source, Path) else len(source.getbuffer())
    try:
        with zipfile.ZipFile(source) as archive:
            infos = archive.infolist()
            _check_infos(infos, allowed, size)
            return {info.filename: archive.read(info) for info in infos}
    except zipfile.BadZipFile as error:
        msg = f"it is not a whole zip archive ({error})"
        raise AuditError(msg) from error
    except (RuntimeError, NotImplementedError, EOFError, struct.error) as error:
        msg = f"it is a zip archive that cannot be read ({error})"
        raise AuditError(msg) from error


def _check_infos(infos: list[zipfile.ZipInfo], allowed: Callable[[str], bool], size: int) -> None:
    if len(infos) > _MOST_MEMBERS:
        msg = f"it has {len(infos)} members, and at most {_MOST_MEMBERS} are read"
        raise AuditError(msg)
    names = [info.orig_filename for info in infos]
    for info in infos:
        name = info.orig_filename
        if names.count(name) > 1:
            msg = f"it has two members {name!r}"
            raise AuditError(msg)
        if not allowed(name) or info.filename != name:
            msg = f"it has a member {name!r}, which does not belong into it"
            raise AuditError(msg)
        if info.flag_bits & 1:
            msg = f"its member {name!r} is encrypted"
            raise AuditError(msg)
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            msg = f"its member {name!r} is compressed, and could swell: members are read as they are stored"
            raise AuditError(msg)
    if sum(info.file_size for info in infos) > size:
        raise AuditError("its members are larger together than the file")


def parse_json(data: bytes, name: str) -> Any:
    """Parse JSON strictly: UTF-8, no name twice, no number that is not finite."""
    if len(data) > _LONGEST_JSON:
        msg = f"{name!r} is longer than {_LONGEST_JSON >> 20} MB"
        raise AuditError(msg)

    def refuse(text: str) -> Any:
        msg = f"{name!r} has the number {text}"
        raise AuditError(msg)

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            msg = f"{name!r} says something twice"
            raise AuditError(msg)
        return found

    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=once, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        msg = f"{name!r} is not JSON ({str(error)[:100]})"
        raise AuditError(msg) from error


def audit_schema(data: bytes, name: str, protocol: int) -> list[str]:
    """Look at every node of a skops file, and at every array, before skops does.

    Parameters
    ----------
    data : bytes
        The skops file.
    name : str
    protocol : int
        Of skops, the only one that is read.

    Returns
    -------
    list of str
        Types in it that skops would not trust by itself.

    Raises
    ------
    AuditError
        For a type that no classifier of deepfeat has, another protocol, a pickle, or an array that is not what its
        header says.
    """
    members = read_members(io.BytesIO(data), lambda member: member == "schema.json" or _is_array(member))
    if "schema.json" not in members:
        msg = f"{name!r} was not written by skops"
        raise AuditError(msg)
    schema = parse_json(members["schema.json"], name)
    if not isinstance(schema, dict) or schema.get("protocol") != protocol or type(schema["protocol"]) is not int:
        found = schema.get("protocol") if isinstance(schema, dict) else None
        msg = f"{name!r} is of skops protocol {found!r}, and {protocol} is read"
        raise AuditError(msg)
    used = {_audit_node(node, members, name) for node in _nodes(schema)}
    for member in members:
        if member != "schema.json":
            _audit_array(members[member], member)
    return sorted(used & _TYPES["ObjectNode"])


def _is_array(member: str) -> bool:
    stem, ending = os.path.splitext(member)
    return ending == ".npy" and stem.isascii() and stem.replace("-", "").isalnum()


def _nodes(schema: Any) -> Iterator[dict[str, Any]]:
    """Every node of a schema; without recursion, which a deep one would exhaust."""
    front = [schema]
    while front:
        value = front.pop()
        if isinstance(value, dict):
            if "__loader__" in value or "__class__" in value or "__module__" in value:
                yield value
            front.extend(value.values())
        elif isinstance(value, list):
            front.extend(value)


def _audit_node(node: dict[str, Any], members: Members, name: str) -> str:
    loader, kind = node.get("__loader__"), f"{node.get('__module__')}.{node.get('__class__')}"
    if not isinstance(loader, str) or loader not in _TYPES:
        msg = f"{name!r} would build something by {loader!r} ({kind}), which no classifier needs"
        raise AuditError(msg)
    if kind not in _TYPES[loader]:
        msg = f"{name!r} would build a {kind}, and no classifier of deepfeat has one"
        raise AuditError(msg)
    if loader == "NdArrayNode" and (node.get("type") != "numpy" or node.get("file") not in members):
        msg = f"{name!r} has an array that is not in the file, or is one of objects"
        raise AuditError(msg)
    if loader == "JsonNode" and not isinstance(node.get("content"), str):
        msg = f"{name!r} has a value that is not JSON"
        raise AuditError(msg)
    return kind


def _audit_array(data: bytes, name: str) -> None:
    """Compare an array's header with its bytes, since NumPy makes room for what the header says."""
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        if version != (1, 0):
            msg = f"version {version} of the format"
            raise ValueError(msg)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
        msg = f"the array {name!r} cannot be read ({str(error)[:100]})"
        raise AuditError(msg) from error
    if dtype.hasobject or dtype.kind not in "fiubU":
        msg = f"the array {name!r} is of type {dtype}, which could hold a pickle: numbers and text are read"
        raise AuditError(msg)
    if math.prod(shape) * dtype.itemsize != len(data) - file.tell():
        msg = f"the array {name!r} has another size than its header says"
        raise AuditError(msg)
    if dtype.kind == "f" and not np.isfinite(np.frombuffer(data, dtype, offset=file.tell())).all():
        msg = f"the array {name!r} has values that are not finite"
        raise AuditError(msg)


def audit_keras(data: bytes, name: str) -> None:
    """Look through a ``.keras`` file for layers that hold code, and for files that it would read.

    Raises
    ------
    AuditError
        For a layer that is not one of Keras' own, one that can hold code, or another damage.
    """
    known = ("config.json", "metadata.json", "model.weights.h5")
    members = read_members(io.BytesIO(data), lambda member: member in known)
    if set(members) != set(known):
        msg = f"{name!r} is not a .keras file"
        raise AuditError(msg)
    for node in _configs(parse_json(members["config.json"], name)):
        module, kind = str(node.get("module") or ""), str(node["class_name"])
        registered = node.get("registered_name") in (None, kind, f"deepfeat>{kind}")
        if not registered or not any(m.fullmatch(module) and k.fullmatch(kind) for m, k in _KERAS_TYPES):
            msg = f"{name!r} has a {module}.{kind}, and only layers are read that can hold no code"
            raise AuditError(msg)
    audit_weights(members["model.weights.h5"], name)


def _configs(config: Any) -> Iterator[dict[str, Any]]:
    front = [config]
    while front:
        value = front.pop()
        if isinstance(value, dict):
            if "class_name" in value:
                yield value
            front.extend(value.values())
        elif isinstance(value, list):
            front.extend(value)


def audit_weights(data: bytes, name: str) -> None:
    """Look through an HDF5 file of weights for links out of it.

    Raises
    ------
    AuditError
        If it is not HDF5, or would read another file.
    """
    import h5py

    try:
        with h5py.File(io.BytesIO(data), "r") as file:
            _audit_group(file, name)
    except OSError as error:
        msg = f"{name!r} is not HDF5 ({str(error)[:100]})"
        raise AuditError(msg) from error


def _audit_group(file: Any, name: str) -> None:
    import h5py

    front, seen = [file], set()
    while front:
        group = front.pop()
        for key in group:
            if not isinstance(group.get(key, getlink=True), h5py.HardLink):
                msg = f"{name!r} has a link at {key!r}, which may lead to another file"
                raise AuditError(msg)
            item = group[key]
            if isinstance(item, h5py.Group):
                if item.id.__hash__() not in seen:
                    seen.add(item.id.__hash__())
                    front.append(item)
            elif not isinstance(item, h5py.Dataset) or item.external or item.is_virtual:
                msg = f"{name!r} has data at {key!r} that lie in another file"
                raise AuditError(msg)
