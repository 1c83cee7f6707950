"""
Reading a store in pandas
=========================

The features are yours: as arrays without a copy, as a data frame, as Parquet, and without deepfeat at all, since the
file is plain HDF5.
"""

import tempfile
from pathlib import Path

import h5py
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

import deepfeat
from deepfeat.demo import write_spots

folder = Path(tempfile.mkdtemp())
write_spots(folder, n_lesions=120)
table = deepfeat.read_csv(folder / "labels.csv", folder / "images", group="lesion")
deepfeat.extract(table, "EfficientNetLite0", folder / "features.h5", progress=False)

# %%
# Which row is which image
# ------------------------
#
# A store opens in milliseconds. ``table`` has one row per image; ``features`` has its rows in the same order, or in
# the order of the ids that are asked for.

store = deepfeat.open_features(folder / "features.h5")
X = store.features("EfficientNetLite0")
print(X.shape, X.dtype, "writeable" if X.flags.writeable else "a read-only view of the file")
store.table.drop(columns="path").head(3)

# %%
# As a data frame
# ---------------
#
# Indexed by image, a column for each feature; joined with whatever else is known of the images. ``to_parquet`` and
# ``to_npz`` write the same into files.

frame = store.to_frame()
frame.iloc[:3, :6]

# %%
# Questions to the features
# -------------------------
#
# Are two images of one lesion nearer to each other than to other lesions? Cosines of standardised features, for pairs
# within and across lesions.

standard = StandardScaler().fit_transform(X)
standard /= np.linalg.norm(standard, axis=1, keepdims=True)
cosines = standard @ standard.T
group = store.table["group"].to_numpy()
label = store.table["label"].to_numpy()
above = np.triu(np.ones_like(cosines, bool), 1)
pairs = {
    "one lesion": group[:, None] == group,
    "one kind, two lesions": (group[:, None] != group) & (label[:, None] == label),
    "two kinds": label[:, None] != label,
}
pd.Series({name: cosines[which & above].mean() for name, which in pairs.items()}, name="mean cosine").round(3)

# %%
# A map by the first two principal components; images of one lesion are joined by a line.

places = pd.DataFrame(PCA(2).fit_transform(standard), columns=["x", "y"]).assign(label=label, group=group)
figure, axes = plt.subplots(figsize=(6.5, 4.4), layout="constrained")
for _, lesion in places.groupby("group"):
    axes.plot(lesion.x, lesion.y, color="0.75", linewidth=0.6, zorder=0)
for colour, (kind, spots) in zip(("#c98a2b", "#b3432b", "#1f5a8c"), places.groupby("label"), strict=True):
    axes.scatter(spots.x, spots.y, s=14, color=colour, label=kind)
axes.legend(frameon=False)
axes.set(xlabel="first component", ylabel="second component", xticks=[], yticks=[])
axes.spines[["top", "right"]].set_visible(False)
plt.show()

# %%
# Without deepfeat
# ----------------
#
# The format is specified, and any language with HDF5 reads it. Each block says in its attributes what decided its
# numbers.

with h5py.File(folder / "features.h5") as file:
    key, block = next(iter(file["blocks"].items()))
    print("block", key)
    print("spec ", block.attrs["spec"])
    records = block["segments/000000/records"][:]
    features = block["segments/000000/features"][:]
print("rows that are done:", (records["state"] == 1).sum(), "of", len(records))
print("the same numbers: ", np.array_equal(features, X))
