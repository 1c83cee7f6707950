"""Transfer learning: a backbone becomes one that knows the classes, and on what it was trained."""

from deepfeat.training.finetuning import finetune, finetune_folds

__all__ = ["finetune", "finetune_folds"]
