"""deepfeat: extract image features once, run support vector machines on them in seconds.

Public names are resolved on first use (PEP 562), so that a script which only
fits classifiers never pays for importing Keras and TensorFlow.

The examples in docstrings run in a folder with 24 pictures in ``photos``, one
sub-folder for each of two classes; their labels in ``labels.csv``; a small
Keras model, ``mine.keras``; features of the pictures in ``skin.h5``; and a
classifier fitted on these, ``skin.deepfeat``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "read_folder": "datasets",
    "read_csv": "datasets",
    "read_isic": "datasets",
    "split_table": "datasets",
    "extract": "extraction",
    "benchmark": "benchmarking",
    "Backbone": "backbones",
    "Preprocessing": "backbones",
    "register_backbone": "backbones",
    "load_backbone": "backbones",
    "list_backbones": "backbones",
    "finetune": "training",
    "finetune_folds": "training",
    "feature_maps": "activations",
    "plot_feature_maps": "activations",
    "plot_activation_maps": "activations",
    "plot_history": "plots",
    "open_features": "store",
    "FeatureStore": "store",
    "verify_features": "store",
    "find_duplicates": "duplicates",
    "merge_features": "transfer",
    "import_features": "transfer",
    "read_features": "transfer",
    "verify_sample": "verification",
    "fit_svm": "svm",
    "SVMResult": "svm",
    "compare": "comparison",
    "linear_cka": "similarity",
    "plot_similarity": "plots",
    "open_ledger": "ledger",
    "Ledger": "ledger",
    "load": "prediction",
    "Classifier": "prediction",
    "explain_images": "prediction",
    "DeepfeatError": "errors",
    "UsageError": "errors",
    "DataError": "errors",
    "ImageError": "errors",
    "BackboneError": "errors",
    "StoreError": "errors",
    "DamageError": "errors",
    "LockedError": "errors",
    "BundleError": "errors",
    "ClusterError": "errors",
    "DataWarning": "errors",
}

__all__ = [*_HOMES, "__version__"]

if TYPE_CHECKING:
    # Under their own names once more, which tells strict type checkers that they are handed on.
    from deepfeat.activations import feature_maps as feature_maps
    from deepfeat.activations import plot_activation_maps as plot_activation_maps
    from deepfeat.activations import plot_feature_maps as plot_feature_maps
    from deepfeat.backbones import Backbone as Backbone
    from deepfeat.backbones import Preprocessing as Preprocessing
    from deepfeat.backbones import list_backbones as list_backbones
    from deepfeat.backbones import load_backbone as load_backbone
    from deepfeat.backbones import register_backbone as register_backbone
    from deepfeat.benchmarking import benchmark as benchmark
    from deepfeat.comparison import compare as compare
    from deepfeat.datasets import read_csv as read_csv
    from deepfeat.datasets import read_folder as read_folder
    from deepfeat.datasets import read_isic as read_isic
    from deepfeat.datasets import split_table as split_table
    from deepfeat.duplicates import find_duplicates as find_duplicates
    from deepfeat.errors import BackboneError as BackboneError
    from deepfeat.errors import BundleError as BundleError
    from deepfeat.errors import ClusterError as ClusterError
    from deepfeat.errors import DamageError as DamageError
    from deepfeat.errors import DataError as DataError
    from deepfeat.errors import DataWarning as DataWarning
    from deepfeat.errors import DeepfeatError as DeepfeatError
    from deepfeat.errors import ImageError as ImageError
    from deepfeat.errors import LockedError as LockedError
    from deepfeat.errors import StoreError as StoreError
    from deepfeat.errors import UsageError as UsageError
    from deepfeat.extraction import extract as extract
    from deepfeat.ledger import Ledger as Ledger
    from deepfeat.ledger import open_ledger as open_ledger
    from deepfeat.plots import plot_history as plot_history
    from deepfeat.plots import plot_similarity as plot_similarity
    from deepfeat.prediction import Classifier as Classifier
    from deepfeat.prediction import explain_images as explain_images
    from deepfeat.prediction import load as load
    from deepfeat.similarity import linear_cka as linear_cka
    from deepfeat.store import FeatureStore as FeatureStore
    from deepfeat.store import open_features as open_features
    from deepfeat.store import verify_features as verify_features
    from deepfeat.svm import SVMResult as SVMResult
    from deepfeat.svm import fit_svm as fit_svm
    from deepfeat.training import finetune as finetune
    from deepfeat.training import finetune_folds as finetune_folds
    from deepfeat.transfer import import_features as import_features
    from deepfeat.transfer import merge_features as merge_features
    from deepfeat.transfer import read_features as read_features
    from deepfeat.verification import verify_sample as verify_sample


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        msg = f"module 'deepfeat' has no attribute {name!r}"
        raise AttributeError(msg)
    value = getattr(importlib.import_module(f"deepfeat.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
