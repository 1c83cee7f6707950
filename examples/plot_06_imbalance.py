"""
Imbalance and thresholds
========================

One spot in seven is a melanoma. Whoever calls every spot harmless is right six times out of seven and of no use. What
helps: weights for the rare class, metrics that are not fooled, and an operating point that is chosen by what it is for.
"""

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import deepfeat
from deepfeat.demo import write_spots

folder = Path(tempfile.mkdtemp())
write_spots(folder, n_lesions=160)
table = deepfeat.read_csv(folder / "labels.csv", folder / "images", group="lesion")
store = deepfeat.extract(table, "EfficientNetLite0", folder / "features.h5", progress=False)
print((table.label == "melanoma").value_counts().rename({True: "melanoma", False: "other"}).to_string())

# %%
# Class weights
# -------------
#
# ``positive`` sets one class against all others. ``class_weight="balanced"``, the default, lets the rare class count as
# much as the rest. What is seen: weights move the classifier along its curve, to more melanomas that are found and more
# false alarms. AUROC, which does not depend on where one stands on the curve, stays.

options = {"positive": "melanoma", "test": None, "param_grid": {"C": [1e-4]}}
weighted = deepfeat.fit_svm(store, **options)
plain = deepfeat.fit_svm(store, class_weight=None, **options)
shown = ["accuracy", "balanced_accuracy", "recall", "specificity", "auroc"]
pd.DataFrame({"balanced": weighted.metrics.value[shown], "none": plain.metrics.value[shown]}).round(3)

# %%
# A wish
# ------
#
# "Find nine melanomas in ten" is a wish for a recall. The threshold that grants it with the fewest false alarms is
# chosen on out-of-fold decision values, each fold judged by the threshold of the others, so that the recall that is
# reported is not the one that was wished, but what came of it.

wished = deepfeat.fit_svm(store, threshold="recall>=0.9", calibrate=True, **options)
print(f"threshold {wished.threshold:.3f} on the decision value")
wished.metrics.loc[["recall", "specificity", "precision"]].round(3)

# %%
# Where the images lie
# --------------------
#
# Decision values of all images, none of which was in the training of the classifier that judged it.

decision = wished.predictions["melanoma"]
is_melanoma = wished.predictions["label"] == "melanoma"
figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.4), layout="constrained")
bins = np.linspace(*np.percentile(decision, [0, 98]), 36)
left.hist(decision[~is_melanoma], bins, color="#9bb8d0", label="other")
left.hist(decision[is_melanoma], bins, color="#b3432b", alpha=0.85, label="melanoma")
left.axvline(0, color="0.3", linestyle=":", label="0")
left.axvline(wished.threshold, color="0.1", label="recall ≥ 0.9")
left.set(xlabel="decision value", ylabel="images")
left.legend(frameon=False)

# Precision has a step wherever a threshold passes an image.
order = np.argsort(-decision.to_numpy())
found = np.cumsum(is_melanoma.to_numpy()[order])
right.step(found / is_melanoma.sum(), found / np.arange(1, len(found) + 1), color="#1f5a8c", where="post")
for fit, name, marker in ((weighted, "at 0", "o"), (wished, "recall ≥ 0.9", "s")):
    value = fit.metrics.value
    right.plot(value["recall"], value["precision"], marker, color="#b3432b", label=name)
right.axhline(is_melanoma.mean(), color="0.5", linestyle=":", label="chance")
right.set(xlabel="recall", ylabel="precision", ylim=(0, 1.03))
right.legend(frameon=False, loc="center left")
for axes in (left, right):
    axes.spines[["top", "right"]].set_visible(False)
plt.show()

# %%
# Probabilities
# -------------
#
# Decision values of a weighted SVM are no probabilities: they favour the rare class on purpose. ``calibrate=True``
# adds some that are, for the mixture of classes in these images. Their mean is near the share of melanomas.

chance = wished.predictions["probability melanoma"]
print(f"mean probability {chance.mean():.3f}, share of melanomas {is_melanoma.mean():.3f}")
wished.metrics.loc[["brier", "calibration_error"]].round(3)
