"""
New images, and where a decision comes from
===========================================

A classifier goes into one file, which runs no code when it is loaded. On new images it gives labels, and shows which
places of an image its decision value is the sum of.
"""

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

import deepfeat
from deepfeat.demo import write_spots

folder = Path(tempfile.mkdtemp())
write_spots(folder, n_lesions=100)
table = deepfeat.read_csv(folder / "labels.csv", folder / "images", group="lesion")
store = deepfeat.extract(table, "EfficientNetLite0", folder / "features.h5", progress=False)
result = deepfeat.fit_svm(store, test=0.2, param_grid={"C": [1e-4, 1e-3]}, calibrate=True)
result.save(folder / "spots.deepfeat")

# %%
# Labels
# ------
#
# New images, of a seed that nobody has trained on. The way from a file to features is that of the fit.

write_spots(folder / "new", n_lesions=20, seed=7)
classifier = deepfeat.load(folder / "spots.deepfeat")
new = deepfeat.read_csv(folder / "new" / "labels.csv", folder / "new" / "images", group="lesion")
found = classifier.predict(new)
found.head(4).round(3)

# %%
# Places
# ------
#
# The features are means over the positions of the last feature map, and a linear classifier adds them up: its
# decision value *is* a sum over positions, plus a constant. Red speaks for melanoma, blue against it; each map has a
# scale of its own, and its sum above it.

one_each = new.drop_duplicates("group")
paths = [*one_each.path[one_each.label == "melanoma"][:3], *one_each.path[one_each.label == "nevus"][:1]]
maps = [classifier.explain(path, "melanoma") for path in paths]

figure, axes = plt.subplots(2, len(paths), figsize=(8, 4), layout="constrained")
for path, map_, (above, below) in zip(paths, maps, axes.T, strict=True):
    above.imshow(Image.open(path))
    strongest = np.abs(map_.total).max()
    below.imshow(map_.total, cmap="RdBu_r", vmin=-strongest, vmax=strongest)
    below.set_title(f"sum {map_.total.sum():+.2f}", fontsize=9)
    above.set_axis_off()
    below.set_axis_off()
plt.show()

# %%
# The sum is exact, not a heuristic:

for path, map_ in zip(paths, maps, strict=True):
    value = classifier.decision_function([path])[0][classifier.classes.index("melanoma")]
    print(f"{Path(path).name}: decision value {value:+.4f}, sum of the map {map_.total.sum():+.4f}")

# %%
# A map says which places the classifier used, not that it was right to. Look for rulers, hairs and corners.
