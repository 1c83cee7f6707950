"""
First steps
===========

Two calls: ``extract`` runs a network over image files, once, and keeps the features in one HDF5 file; ``fit_svm``
chooses, fits and scores a support vector machine on them, as often as you like.
"""

# %%
# Images on disk
# --------------
#
# The images are scikit-learn's handwritten digits, written as PNG files into one folder per class. A table with one
# row per image is all that deepfeat wants to know of them; here it is read from the folders.

import tempfile
import time
from pathlib import Path

import matplotlib.pyplot as plt

import deepfeat
from deepfeat.demo import write_digits

folder = Path(tempfile.mkdtemp())
write_digits(folder / "digits")
table = deepfeat.read_folder(folder / "digits").groupby("label").head(60)
table.groupby("label").first()[["image_id"]]

# %%
# Stage 1: features, once
# -----------------------
#
# EfficientNetLite0 comes with ImageNet weights. Its last feature map, averaged over positions, is 1,280 numbers for
# each image.

store = deepfeat.extract(table, "EfficientNetLite0", folder / "features.h5", progress=False)
store.blocks[["name", "dim", "done", "missing", "failed"]]

# %%
# The second time nothing is left to do: rows are found by the image's content and by everything that decides the
# numbers.

start = time.perf_counter()
store = deepfeat.extract(table, "EfficientNetLite0", folder / "features.h5", progress=False)
print(f"{time.perf_counter() - start:.2f} s for {store.n_images} images that are done")

# %%
# Stage 2: a classifier
# ---------------------
#
# A fifth of the images is held out. C is chosen by cross-validation on the others, and the held-out images score the
# choice, with 95 % intervals.

result = deepfeat.fit_svm(store, test=0.2, param_grid={"C": [1e-4, 1e-3, 1e-2, 1e-1]})
print(result.summary())

# %%
# What is seen: digits are told apart by a network that was trained on photographs. What is confused looks alike.

figure, axes = plt.subplots(figsize=(5, 4.4), layout="constrained")
image = axes.imshow(result.confusion, cmap="Blues")
axes.set(xlabel="predicted", ylabel="true class", xticks=range(10), yticks=range(10))
for row, counts in enumerate(result.confusion.to_numpy()):
    for column, count in enumerate(counts[counts > 0]):
        place = (counts > 0).nonzero()[0][column]
        axes.text(place, row, count, ha="center", va="center", color="white" if count > 5 else "black")
plt.show()

# %%
# ``result.pipeline`` is a fitted scikit-learn pipeline, ``result.predictions`` has one row per image, and
# ``result.report("report.html")`` writes a page about all of it.

result.predictions.head()
