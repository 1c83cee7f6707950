"""deepfeat: extract image features once, run support vector machines on them in seconds.

Public names are resolved on first use (PEP 562), so that a script which only
fits classifiers never pays for importing Keras and TensorFlow.
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
    from deepfeat.activations import feature_maps, plot_activation_maps, plot_feature_maps
    from deepfeat.backbones import (
        Backbone,
        Preprocessing,
        list_backbones,
        load_backbone,
        register_backbone,
    )
    from deepfeat.benchmarking import benchmark
    from deepfeat.comparison import compare
    from deepfeat.datasets import read_csv, read_folder, read_isic, split_table
    from deepfeat.duplicates import find_duplicates
    from deepfeat.errors import (
        BackboneError,
        BundleError,
        ClusterError,
        DamageError,
        DataError,
        DataWarning,
        DeepfeatError,
        ImageError,
        LockedError,
        StoreError,
        UsageError,
    )
    from deepfeat.extraction import extract
    from deepfeat.ledger import Ledger, open_ledger
    from deepfeat.plots import plot_history, plot_similarity
    from deepfeat.prediction import Classifier, explain_images, load
    from deepfeat.similarity import linear_cka
    from deepfeat.store import FeatureStore, open_features, verify_features
    from deepfeat.svm import SVMResult, fit_svm
    from deepfeat.training import finetune, finetune_folds
    from deepfeat.transfer import import_features, merge_features, read_features
    from deepfeat.verification import verify_sample


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        msg = f"module 'deepfeat' has no attribute {name!r}"
        raise AttributeError(msg)
    value = getattr(importlib.import_module(f"deepfeat.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
