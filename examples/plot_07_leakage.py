"""
A leak, shown
=============

Several images of one lesion are nearly one image. If some of them train a classifier and others score it, it is asked
what it was told. Here the labels are drawn by lot, so that there is nothing to learn and an honest score is one half.
"""

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import deepfeat
from deepfeat.demo import write_spots

folder = Path(tempfile.mkdtemp())
write_spots(folder, n_lesions=120)
table = deepfeat.read_csv(folder / "labels.csv", folder / "images", group="lesion")

# %%
# Labels by lot
# -------------
#
# Each lesion gets "A" or "B" at random; its images share it, as images of a lesion do.

rng = np.random.default_rng(0)
lesions = table["group"].unique()
lot = dict(zip(lesions, rng.choice(["A", "B"], len(lesions)), strict=True))
table["label"] = table["group"].map(lot)
store = deepfeat.extract(table, "EfficientNetLite0", folder / "features.h5", progress=False)
print(f"{len(table)} images of {len(lesions)} lesions")

# %%
# Three protocols
# ---------------
#
# The first forgets the groups: plain arrays have none. The second keeps the images of a lesion in one fold, which
# deepfeat does wherever it knows of groups. The third also chooses C anew in each fold, so that no image that is
# scored had a say in anything.

grid = {"C": [1e-4, 1e-3, 1e-2]}
naive = deepfeat.fit_svm((store.features("EfficientNetLite0"), table["label"]), test=None, param_grid=grid)
grouped = deepfeat.fit_svm(store, test=None, param_grid=grid)
nested = deepfeat.fit_svm(store, test=None, nested=True, param_grid=grid)
fits = {"images at random": naive, "lesions whole, best C": grouped, "lesions whole, nested": nested}

figure, axes = plt.subplots(figsize=(7, 2.8), layout="constrained")
for place, fit in enumerate(fits.values()):
    score = fit.metrics.loc["balanced_accuracy"]
    colour = "#1f5a8c" if place else "#b3432b"
    axes.hlines(-place, score["low"], score["high"], color=colour, linewidth=5, alpha=0.4)
    axes.plot(score["value"], -place, "o", color=colour)
    axes.annotate(f"{score['value']:.2f}", (score["value"], -place), (0, 8), textcoords="offset points", ha="center")
axes.axvline(0.5, color="0.4", linestyle=":")
axes.set_yticks([0, -1, -2], fits)
axes.set(xlabel="balanced accuracy, 95 % interval; there is nothing to learn", xlim=(0.3, 1), ylim=(-2.5, 0.7))
axes.spines[["top", "right", "left"]].set_visible(False)
plt.show()

# %%
# What is seen: with the images of a lesion on both sides, a score far above chance is made of nothing, and its
# interval excludes the truth, since images that are drawn one by one count the same lesion several times. With
# lesions whole the interval holds one half.
#
# The network was not fine-tuned, the scaling was fitted on training rows alone, and cross-validation was done by the
# book: the split is the whole of the leak. It needs a column with the lesion or patient, and that is all that
# deepfeat asks for: ``group=``.
