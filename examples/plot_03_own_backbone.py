"""
Your own backbone in ten lines
==============================

A backbone is a function from an input shape to a Keras network. Here it is a bank of Gabor filters, which looks for
stripes of several widths and directions and has nothing to learn: a baseline from the time before deep learning, in
the same store and on the same folds as a network that was trained on ImageNet.
"""

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import deepfeat
from deepfeat.demo import write_spots

# %%
# The filters
# -----------
#
# Four widths in six directions: a wave within a bell, of 25 x 25 pixels.

y, x = np.mgrid[-12:13, -12:13]
filters = np.stack(
    [
        np.exp(-(x**2 + y**2) / (0.5 * wave**2)) * np.cos(2 * np.pi / wave * (np.cos(angle) * x + np.sin(angle) * y))
        for wave in (4, 6, 9, 13)
        for angle in np.arange(6) * np.pi / 6
    ],
    axis=-1,
)
filters -= filters.mean(axis=(0, 1))
filters /= np.abs(filters).sum(axis=(0, 1))

figure, axes = plt.subplots(4, 6, figsize=(6, 4), layout="constrained")
for place, pixels in zip(axes.flat, np.moveaxis(filters, -1, 0), strict=True):
    place.imshow(pixels, cmap="gray")
    place.set_axis_off()
plt.show()

# %%
# The ten lines
# -------------
#
# ``build`` takes preprocessed images and returns feature maps; ``preprocess="tf"`` says that pixels go from -1 to 1.
# Decoding, resizing, pooling, storing and the key of the features are deepfeat's.


def build_gabor(input_shape):
    import keras

    bank = keras.layers.Conv2D(
        filters.shape[-1],
        filters.shape[:2],
        use_bias=False,
        kernel_initializer=keras.initializers.Constant(filters[:, :, None, :]),
    )
    images = keras.Input(input_shape)
    return keras.Model(images, keras.ops.abs(bank(keras.ops.mean(images, axis=-1, keepdims=True))))


deepfeat.register_backbone("Gabor", build_gabor, input_size=96, preprocess="tf")

# %%
# In one store with others
# ------------------------
#
# From here on it is a backbone like any other, on the same images and in the same file.

folder = Path(tempfile.mkdtemp())
write_spots(folder, n_lesions=120)
table = deepfeat.read_csv(folder / "labels.csv", folder / "images", group="lesion")
store = deepfeat.extract(table, ["Gabor", "EfficientNetLite0"], folder / "features.h5", progress=False)
store.blocks[["name", "dim", "done"]]

# %%
# Is it any good? `compare` fits each block alone, and both joined, on the same folds, and draws whole lesions for the
# intervals of the differences.

grid = {"C": [1e-4, 1e-3, 1e-2, 1e-1]}
compared = deepfeat.compare(store, test=None, param_grid=grid)
for sentence in compared["sentence"]:
    print("-", sentence)

# %%
# What is seen: 24 numbers that nobody trained are well above chance, which is one third, since drawn keratoses are
# mottled and nevi are not; the 1,280 of a trained network score higher. Where an interval reaches across 0 no
# difference is shown, which is not to say that there is none: 120 lesions are few.

figure, axes = plt.subplots(figsize=(6.5, 2.4), layout="constrained")
places = np.arange(len(compared))[::-1]
axes.axvline(0, color="0.6", linewidth=1)
axes.hlines(places, compared["low"], compared["high"], color="#9bb8d0", linewidth=5)
axes.plot(compared["difference"], places, "o", color="#1f5a8c")
axes.set_yticks(places, [f"{row.a}\nless {row.b}" for row in compared.itertuples()])
axes.set(xlabel="difference of balanced accuracy, 95 % interval", ylim=(-0.6, len(compared) - 0.4))
axes.spines[["top", "right", "left"]].set_visible(False)
plt.show()

# %%
# A ``.keras`` or ``.onnx`` file needs no function: `load_backbone` takes it.
