"""
A folder of your own
====================

Image sets from a clinic are never tidy: several images per lesion, a label file beside the images, a file that cannot
be read. deepfeat says what it finds, counts it, and goes on with the rest.
"""

# %%
# A label file and groups
# -----------------------
#
# The spots are drawn by deepfeat, as awkward as skin lesions are: unequal classes, one to four images of each lesion.
# The column ``lesion`` becomes the group, and images of one group will never be on two sides of a split.

import tempfile
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
from PIL import Image

import deepfeat
from deepfeat.demo import write_spots

folder = Path(tempfile.mkdtemp())
write_spots(folder, n_lesions=60)
print((folder / "labels.csv").read_text()[:110], "…", sep="")

table = deepfeat.read_csv(folder / "labels.csv", folder / "images", group="lesion")
table.groupby("label").agg(images=("image_id", "size"), lesions=("group", "nunique"))

# %%
# A lesion of each kind, a row for each: turned, moved, lit differently, and the same lesion.

several = table[table.groupby("group")["image_id"].transform("size") >= 3]
lesions = [kind[kind.group == kind.group.iloc[0]] for _, kind in several.groupby("label")]
figure, axes = plt.subplots(3, 4, figsize=(6, 4.8), layout="constrained")
for line, rows in zip(axes, lesions, strict=True):
    line[0].set_ylabel(f"{rows.label.iloc[0]}\n{rows.group.iloc[0]}")
    for place in line:
        place.set(xticks=[], yticks=[], frame_on=False)
    for place, path in zip(line, rows.path, strict=False):
        place.imshow(Image.open(path))
plt.show()

# %%
# Files and rows that do not match
# --------------------------------
#
# A file is damaged, and another has no row in the label file. Neither is dropped silently, and neither stops the
# work: reading warns of the one, and extraction records the other as failed, with the reason.

(folder / "images" / "spot0003.png").write_bytes(b"half an imag")
Image.new("RGB", (64, 64), "tan").save(folder / "images" / "holiday.png")

with warnings.catch_warnings(record=True) as heard:
    warnings.simplefilter("always", deepfeat.DataWarning)
    table = deepfeat.read_csv(folder / "labels.csv", folder / "images", group="lesion")
    store = deepfeat.extract(table, "EfficientNetLite0", folder / "features.h5", progress=False)
for warning in heard:
    print("-", warning.message)

# %%
# Nobody gets zeros for a failed image: asking for its features is an error, and ``fit_svm`` leaves it out and says
# so.

store.failures

# %%
# When something changes
# ----------------------
#
# The damaged file is replaced. The next call looks at sizes and times of the files, computes that one image and
# nothing else.

lesion = table[table.image_id == "spot0004.png"].iloc[0]
Image.open(lesion.path).rotate(90).save(folder / "images" / "spot0003.png")
store = deepfeat.extract(table, "EfficientNetLite0", folder / "features.h5", progress=False)
store.blocks[["name", "dim", "done", "missing", "failed"]]

# %%
# On the command line
# -------------------
#
# .. code-block:: bash
#
#     deepfeat extract images --csv labels.csv --group-column lesion --backbone EfficientNetLite0 --cache features.h5
#     deepfeat fit features.h5 --test 0.2
#
# Classes in sub-folders need no label file (`read_folder`), and the layout of the ISIC challenges is known
# (`read_isic`).
