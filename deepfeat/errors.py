"""Exceptions and warnings that callers may want to catch."""


class DeepfeatError(Exception):
    """Base of every error that deepfeat raises on purpose.

    Examples
    --------
    >>> import deepfeat
    >>> try:
    ...     deepfeat.open_features("nowhere.h5")
    ... except deepfeat.DeepfeatError as error:
    ...     print(error)
    there is no feature store 'nowhere.h5': make one with deepfeat.extract or `deepfeat extract`
    """


class UsageError(DeepfeatError, ValueError):
    """An argument is not one of those allowed.

    Examples
    --------
    >>> import deepfeat
    >>> deepfeat.Backbone("VGG61")
    Traceback (most recent call last):
    deepfeat.errors.UsageError: there is no backbone 'VGG61': did you mean VGG19 or VGG16?
    """


class DataError(DeepfeatError, ValueError):
    """A table, its labels, groups or splits do not allow what was asked for.

    Examples
    --------
    >>> import deepfeat
    >>> deepfeat.fit_svm("skin.h5", labels={"NV": "MEL"})
    Traceback (most recent call last):
    deepfeat.errors.DataError: ...
    """


class ImageError(DeepfeatError):
    """One image file cannot be turned into pixels; the message is the reason.

    Examples
    --------
    >>> import deepfeat
    >>> deepfeat.load("skin.deepfeat").explain("labels.csv")
    Traceback (most recent call last):
    deepfeat.errors.ImageError: labels.csv: ...
    """


class BackboneError(DeepfeatError):
    """A network cannot be built or its weights cannot be found or loaded.

    Examples
    --------
    >>> import deepfeat
    >>> deepfeat.Backbone("AlexNet").build()
    Traceback (most recent call last):
    deepfeat.errors.BackboneError: there are no published ImageNet weights of AlexNet: pass weights=None ...
    """


class StoreError(DeepfeatError):
    """A file is not a feature store, or does not hold what was asked for.

    Examples
    --------
    >>> import deepfeat
    >>> deepfeat.open_features("skin.h5").features("VGG16")
    Traceback (most recent call last):
    deepfeat.errors.StoreError: skin.h5 has no block 'VGG16': its blocks are 'EfficientNetLite0', 'colour'
    """


class DamageError(StoreError):
    """A feature store's content does not match its own checksums or description.

    Examples
    --------
    >>> import deepfeat
    >>> from pathlib import Path
    >>> content = bytearray(Path("skin.h5").read_bytes())
    >>> content[-1] ^= 1
    >>> _ = Path("skin.h5").write_bytes(content)
    >>> deepfeat.open_features("skin.h5").features("colour")
    Traceback (most recent call last):
    deepfeat.errors.DamageError: skin.h5 is damaged: ...
    """


class LockedError(StoreError):
    """Another process is writing the feature store; the message names it.

    Examples
    --------
    >>> import deepfeat
    >>> from deepfeat.store import StoreWriter
    >>> with StoreWriter("skin.h5"):
    ...     deepfeat.extract("photos", "EfficientNetLite0", "skin.h5", progress=False)
    Traceback (most recent call last):
    deepfeat.errors.LockedError: ...
    """


class ClusterError(DeepfeatError):
    """The workers of a cluster, or the connection to it, are not there, or were lost in the middle of the work.

    Examples
    --------
    >>> from deepfeat.cluster import connect
    >>> connect("nowhere://")
    Traceback (most recent call last):
    deepfeat.errors.ClusterError: no Dask scheduler answers at 'nowhere://': ...
    """


class BundleError(DeepfeatError):
    """A file is not a classifier that deepfeat wrote, or holds something that no classifier needs.

    Examples
    --------
    >>> import deepfeat
    >>> deepfeat.load("labels.csv")
    Traceback (most recent call last):
    deepfeat.errors.BundleError: ...
    """


class DataWarning(UserWarning):
    """Something in the data deserves a look, and deepfeat went on.

    Examples
    --------
    >>> import deepfeat
    >>> import warnings
    >>> from pathlib import Path
    >>> Path("photos/notes.txt").touch()
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("error", deepfeat.DataWarning)  # as errors, for a script that must stop
    ...     deepfeat.read_folder("photos")
    Traceback (most recent call last):
    deepfeat.errors.DataWarning: 1 file(s) without an image ending left out ('notes.txt')
    """
