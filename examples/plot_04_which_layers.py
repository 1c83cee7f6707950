"""
Which layers
============

The last layer of a network knows what its training was about. For images of another kind an earlier layer may serve
as well, with fewer numbers. Several layers come from one pass over the images.
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
# What the layers see
# -------------------
#
# Layers have the names that Keras gives them; `feature_maps` lists the last one of each size. `plot_activation_maps`
# draws a picture like this one into a file.

spot = table[table.label == "melanoma"].path.iloc[0]
maps = deepfeat.feature_maps(spot, "EfficientNetLite0")
figure, axes = plt.subplots(1, len(maps), figsize=(8, 2.1), layout="constrained")
for place, (name, values) in zip(axes, maps.items(), strict=True):
    place.imshow(np.linalg.norm(values, axis=-1), cmap="magma")
    place.set_title(f"{name}\n{' x '.join(map(str, values.shape))}", fontsize=8)
    place.set_axis_off()
plt.show()

# %%
# One pass, seven blocks
# ----------------------
#
# The last layer of each stage, averaged over positions. Each is a block of its own in the store, under its true name.

layers = ["block0_project_bn", "block2_add", "block4_add", "block7_add", "block10_add", "block14_add", "head_relu"]
backbone = deepfeat.Backbone("EfficientNetLite0", layer=layers)
store = deepfeat.extract(table, backbone, folder / "features.h5", progress=False)
store.blocks[["name", "dim", "done"]]

# %%
# A score for each
# ----------------
#
# The folds are the same for all, with lesions whole, and so are the resamples that the intervals come from.

names = [f"EfficientNetLite0:{layer}" for layer in layers]
widths = store.blocks.set_index("name")["dim"][names]
grid = {"C": [1e-3, 1e-2, 1e-1]}
fits = {name: deepfeat.fit_svm(store, backbones=name, test=None, param_grid=grid) for name in names}
scores = np.array([fit.metrics.loc["balanced_accuracy", ["value", "low", "high"]] for fit in fits.values()], float)

figure, axes = plt.subplots(figsize=(7, 3.4), layout="constrained")
axes.fill_between(range(len(layers)), scores[:, 1], scores[:, 2], color="#9bb8d0", alpha=0.5, label="95 % interval")
axes.plot(scores[:, 0], "o-", color="#1f5a8c", label="out-of-fold")
axes.axhline(1 / 3, color="0.5", linestyle=":", label="chance")
axes.set_xticks(range(len(layers)), [f"{layer}\n{width}" for layer, width in zip(layers, widths, strict=True)])
axes.tick_params(axis="x", labelsize=7)
axes.set(ylabel="balanced accuracy", ylim=(0.3, 1))
axes.legend(frameon=False, loc="lower right")
axes.spines[["top", "right"]].set_visible(False)
plt.show()

# %%
# What is seen: the first layers know least, and a middle layer with a tenth of the numbers does as well here as the
# last. Layers differ less than lines in a table suggest: `compare` says which differences are more than chance.

compared = deepfeat.compare(
    {"middle": fits["EfficientNetLite0:block10_add"], "last": fits["EfficientNetLite0:head_relu"]}
)
print(compared["sentence"][0])
