"""A network small enough to be trained in a test; as a program, a training that a test may kill."""

from __future__ import annotations

import sys

import pandas as pd

import deepfeat
from deepfeat.backbones.network import PREPROCESSINGS, untrained

#: What the program trains with.
OPTIONS = {"unfreeze": 1.0, "head_epochs": 3, "epochs": 12, "patience": 50, "batch_size": 4, "progress": False}


def build(input_shape):
    import keras

    return keras.Sequential(
        [
            keras.Input(input_shape),
            keras.layers.Conv2D(8, 3, strides=2, activation="relu", name="first"),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.Conv2D(12, 3, activation="relu", name="second"),
        ],
        name="small",
    )


def small_cnn(**options):
    network = untrained("SmallCNN", build, 16, PREPROCESSINGS["tf"])
    return deepfeat.Backbone("SmallCNN", weights=None, network=network, **options)


if __name__ == "__main__":
    deepfeat.finetune(pd.read_csv(sys.argv[1], dtype=str), small_cnn(), sys.argv[2], **OPTIONS)
