"""Nobody scores a classifier on images that the network behind its features was fine-tuned on."""

from __future__ import annotations

import numpy as np

from deepfeat.errors import DataError
from deepfeat.svm.samples import Samples


def refuse_seen(samples: Samples, scored: np.ndarray) -> None:
    """Refuse rows to be scored that a block's network has seen, or others of their set.

    Raises
    ------
    DataError
        With the numbers of images and groups, the first image, and the ways out.
    """
    for name, seen in samples.seen.items():
        rows = scored[seen[scored]]
        if not len(rows):
            continue
        overlap = (
            f"{len(rows)} of the {len(scored)} images to be scored, in {len(np.unique(samples.sets[rows]))} group(s), "
            f"are images that {name} was fine-tuned on, or of their groups (first: {samples.ids[rows[0]]!r}), so that "
            "the score would say nothing of new images: "
        )
        if name in samples.folds:
            raise DataError(overlap + "extract all networks that deepfeat.finetune_folds made, or drop these images")
        way_out = (
            "pass test='split' with the split that finetune was given (`deepfeat finetune --test` keeps it in a .csv "
            "file for `deepfeat extract --csv`), or use deepfeat.finetune_folds with "
        )
        raise DataError(overlap + way_out + "embedding_dim, and backbones='NAME@folds' for its networks NAME@fold0, …")


def describe_seen(samples: Samples, train: np.ndarray) -> list[str]:
    """What the reader of a score should know of training rows that the networks have seen."""
    notes = []
    for name, seen in samples.seen.items():
        count = int(seen[train].sum())
        if count:
            notes.append(
                f"{name} was fine-tuned on {count} of the {len(train)} training images, whose embeddings are therefore "
                "too easy: the cross-validated score is optimistic, and the parameters chosen by it may not be the best"
            )
    if samples.folds:
        notes.append(
            f"of {' and '.join(samples.folds)} each image has the features of the network that is new to it; in "
            "cross-validation the networks of the other images have seen it, as in stacking"
        )
    return notes
