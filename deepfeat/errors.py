"""Exceptions and warnings that callers may want to catch."""


class DeepfeatError(Exception):
    """Base of every error that deepfeat raises on purpose."""


class UsageError(DeepfeatError, ValueError):
    """An argument is not one of those allowed."""


class DataError(DeepfeatError, ValueError):
    """A table, its labels, groups or splits do not allow what was asked for."""


class ImageError(DeepfeatError):
    """One image file cannot be turned into pixels; the message is the reason."""


class BackboneError(DeepfeatError):
    """A network cannot be built or its weights cannot be found or loaded."""


class StoreError(DeepfeatError):
    """A file is not a feature store, or does not hold what was asked for."""


class DamageError(StoreError):
    """A feature store's content does not match its own checksums or description."""


class LockedError(StoreError):
    """Another process is writing the feature store; the message names it."""


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
    """A file is not a classifier that deepfeat wrote, or holds something that no classifier needs."""


class DataWarning(UserWarning):
    """Something in the data deserves a look, and deepfeat went on."""
