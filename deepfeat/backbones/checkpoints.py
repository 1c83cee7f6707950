"""PyTorch checkpoints read without PyTorch, and without running anything that they name.

The layout is that of `torch.save` before PyTorch 1.6: five pickles (magic
number, protocol, system information, the object, the storage keys) and then
the storages, each a 64-bit count and its raw values.
"""

from __future__ import annotations

import collections
import pickle
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from deepfeat.errors import BackboneError

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_STORAGES = {"FloatStorage": np.dtype("<f4"), "LongStorage": np.dtype("<i8")}


class _Storage:
    """A place for the values of a tensor, which follow the pickles in the file."""

    def __init__(self, dtype: np.dtype, size: int) -> None:
        self.dtype = dtype
        self.size = size
        self.values: np.ndarray | None = None


class _Tensor:
    """What the checkpoint says of a tensor."""

    def __init__(
        self, storage: _Storage, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *_: Any
    ) -> None:
        self.storage, self.offset, self.shape, self.stride = storage, offset, shape, stride

    def to_numpy(self) -> np.ndarray:
        values = self.storage.values
        assert values is not None
        last = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.stride, strict=True))
        if self.offset < 0 or min((0, *self.stride)) < 0 or last >= len(values):
            raise ValueError("a tensor reaches beyond its storage")
        strides = tuple(s * values.itemsize for s in self.stride)
        return np.lib.stride_tricks.as_strided(values[self.offset :], self.shape, strides, writeable=False)


class _TensorUnpickler(pickle.Unpickler):
    """Builds dictionaries of tensors and refuses every other type."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _Tensor
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        msg = f"it holds a {module}.{name}, and only tensors are allowed"
        raise pickle.UnpicklingError(msg)

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _, size, view = pid
        if kind != "storage" or view is not None or not isinstance(dtype, np.dtype):
            raise pickle.UnpicklingError("it holds something else than plain tensors")
        return self.storages.setdefault(key, _Storage(dtype, size))


def read_checkpoint(path: Path) -> dict[str, np.ndarray]:
    """Read the tensors of a PyTorch state dictionary.

    Parameters
    ----------
    path : pathlib.Path
        A file written by ``torch.save`` in the layout before PyTorch 1.6.

    Returns
    -------
    dict of str to ndarray
        Read-only arrays under their names in the checkpoint.

    Raises
    ------
    BackboneError
        If the file is damaged, has another layout, or holds anything but tensors.
    """
    try:
        with open(path, "rb") as file:
            return _read(file)
    # A damaged pickle may raise anything.
    except Exception as error:
        msg = f"{path} is not a checkpoint that can be read: {error}"
        raise BackboneError(msg) from error


def _read(file: BinaryIO) -> dict[str, np.ndarray]:
    magic, protocol, _ = (_TensorUnpickler(file).load() for _ in range(3))
    if (magic, protocol) != (_MAGIC, _PROTOCOL):
        raise ValueError("it does not begin as torch.save's files did before PyTorch 1.6")
    unpickler = _TensorUnpickler(file)
    tensors = unpickler.load()
    for key in _TensorUnpickler(file).load():
        storage = unpickler.storages[key]
        if int.from_bytes(file.read(8), "little") != storage.size:
            raise ValueError("a storage has another size than announced")
        data = file.read(storage.size * storage.dtype.itemsize)
        storage.values = np.frombuffer(data, storage.dtype, storage.size)
    return {name: tensor.to_numpy() for name, tensor in tensors.items() if isinstance(tensor, _Tensor)}
