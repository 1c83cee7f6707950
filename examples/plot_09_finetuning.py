"""
Fine-tuning without fooling oneself
===================================

A network that was trained on some of the images makes features of them that are too good. deepfeat knows which images
those are, and refuses to score them.
"""

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

import deepfeat
from deepfeat.demo import write_spots

folder = Path(tempfile.mkdtemp())
write_spots(folder, n_lesions=100)
table = deepfeat.read_csv(folder / "labels.csv", folder / "images", group="lesion")

# %%
# A test that training never sees
# -------------------------------
#
# The split is drawn before anything is trained, stratified, with lesions whole.

table = deepfeat.split_table(table, test_size=0.35)
table.groupby("split").agg(images=("image_id", "size"), lesions=("group", "nunique"))

# %%
# Training
# --------
#
# First a classifier on top of the frozen network, then the last tenth of its layers with it. Small images and few
# epochs, so that this page is built in a minute; the defaults train for longer.

small = deepfeat.Backbone("EfficientNetLite0", input_size=64)
settings = {"unfreeze": 0.3, "head_epochs": 2, "epochs": 3, "learning_rate": 3e-4, "progress": False}
tuned = deepfeat.finetune(table, small, folder / "spots.keras", **settings)

figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
axes.plot(tuned.history["epoch"], tuned.history["loss"], "o-", color="#9bb8d0", label="training")
axes.plot(tuned.history["epoch"], tuned.history["val_loss"], "o-", color="#1f5a8c", label="validation")
axes.set(xlabel="epoch", ylabel="loss")
axes.legend(frameon=False)
axes.spines[["top", "right"]].set_visible(False)
plt.show()

# %%
# Features, and a refusal
# -----------------------
#
# The tuned network is a backbone like any other. Scoring images that it has seen is refused, whatever the folds.

store = deepfeat.extract(table, [small, tuned], folder / "features.h5", progress=False)
print(f"{store.seen('spots').sum()} of {store.n_images} images were part of the training, or others of their lesions")
try:
    deepfeat.fit_svm(store, backbones="spots", test=None)
except deepfeat.DataError as error:
    print(error)

# %%
# On the test that it never read, frozen and tuned are compared. Training images may train the SVM; what that does to
# the choice of C is noted among the result's warnings.

options = {"test": "split", "param_grid": {"C": [1e-4, 1e-3, 1e-2]}}
frozen = deepfeat.fit_svm(store, backbones="EfficientNetLite0", **options)
learned = deepfeat.fit_svm(store, backbones="spots", **options)
for warning in learned.warnings:
    print("note:", warning)

scores = {"frozen": frozen, "fine-tuned": learned}
shown = ["balanced_accuracy", "f1_macro", "auroc_macro"]
pd.DataFrame({name: result.metrics.value[shown] for name, result in scores.items()}).round(3)

# %%
# Whether the difference is more than chance is a question to the same test images, by lesions:

print(deepfeat.compare(scores)["sentence"][0])

# %%
# What is seen: with some sixty lesions to learn from, a few epochs do not show a gain. More images, more layers and
# more epochs may; the two lines that compare stay the same.
