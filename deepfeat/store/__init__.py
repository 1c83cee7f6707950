"""The feature store: one HDF5 file with an image table and blocks of features.

HDF5 describes where things are; rows are read through a memory map and
written in place. See docs/store-format.md for the layout and
docs/reliability.md for what happens when things go wrong.
"""

from deepfeat.store.layout import DONE, FAILED, MISSING, RECORD, Block, block_key, canonical_json
from deepfeat.store.reading import FeatureStore, open_features
from deepfeat.store.writing import StoreWriter, verify_features

__all__ = [
    "DONE",
    "FAILED",
    "MISSING",
    "RECORD",
    "Block",
    "FeatureStore",
    "StoreWriter",
    "block_key",
    "canonical_json",
    "open_features",
    "verify_features",
]
