"""Starting what runs networks, and ending it: without noise, and in less time."""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from typing import Any


class _Floatx:
    """Keras' floatx, which is that of all threads: float32 from the first that wants it to the last."""

    def __init__(self) -> None:
        self._lock, self._wanted, self._before = threading.Lock(), 0, ""

    def __enter__(self) -> None:
        from keras import config

        with self._lock:
            if not self._wanted:
                self._before = config.floatx()
                config.set_floatx("float32")
            self._wanted += 1

    def __exit__(self, *_: object) -> None:
        from keras import config

        with self._lock:
            self._wanted -= 1
            if not self._wanted:
                config.set_floatx(self._before)


_FLOAT32 = _Floatx()

#: Held while OpenVINO is imported.
_LOADING = threading.Lock()


@contextlib.contextmanager
def paused_collection() -> Iterator[None]:
    """Keep Python's garbage collector from running.

    Importing TensorFlow and building a network make a million objects that stay, and the collector looks at
    them again and again, for a fifth of the time.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextlib.contextmanager
def quiet_start() -> Iterator[None]:
    """Hold back what TensorFlow writes to standard error while it starts, unless it fails.

    Its C++ side reports compiler flags and absent GPUs there before any log level counts.
    """
    try:
        stderr = os.dup(2)
    except OSError:  # no standard error, as under a windowed interpreter
        yield
        return
    with tempfile.TemporaryFile() as sink:
        os.dup2(sink.fileno(), 2)
        try:
            yield
        except Exception:
            os.dup2(stderr, 2)
            sink.seek(0)
            os.write(2, sink.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


@contextlib.contextmanager
def single_precision() -> Iterator[None]:
    """Have Keras make networks in float32, whatever it is set to: the key of features says in which they computed."""
    from keras import config

    with _FLOAT32:
        policy = config.dtype_policy()
        config.set_dtype_policy("float32")
        try:
            yield
        finally:
            config.set_dtype_policy(policy)


def load_openvino() -> Any:
    """Import OpenVINO without its telemetry, which tells a server of each import unless the user has opted out."""
    name = "openvino_telemetry"
    with _LOADING:
        hides = not {name, "openvino"} & set(sys.modules)
        if hides:
            # OpenVINO has a stand-in of its own for where this package is not to be had.
            sys.modules[name] = None  # type: ignore[assignment]
        try:
            import openvino
        finally:
            if hides:
                del sys.modules[name]
    return openvino


def start_keras() -> None:
    """Import Keras and have its backend look for devices, without noise and in less time."""
    # TensorFlow tells of what it does well later, too; its errors stay.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with contextlib.nullcontext() if "tensorflow" in sys.modules else quiet_start(), paused_collection():
        from keras import ops

        ops.zeros(1)
    # Else Python would look at TensorFlow's million objects once more when it ends, for a second.
    atexit.register(gc.freeze)
