"""Support vector machines on cached features: data, search, result."""

from deepfeat.svm.experiment import fit_svm
from deepfeat.svm.result import SVMResult

__all__ = ["SVMResult", "fit_svm"]
