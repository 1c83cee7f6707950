"""Both result tables of "Skin Lesion Classification using Deep Learning" on ISIC 2019, with deepfeat's parts.

Set A has all classes; set B melanoma against the rest. Every network is trained and scored twice: on a split at
random, as in the paper, and on one that keeps the images of a lesion together. DATA is the folder of ISIC 2019 with
ISIC_2019_Training_Input, ISIC_2019_Training_GroundTruth.csv and ISIC_2019_Training_Metadata.csv:

    python examples/isic2019.py DATA --work isic2019 --table isic2019.md

With --quick, fewer and smaller images and few epochs. When it was stopped, the same command goes on: trainings and
features are kept in the folder --work, and only the SVMs, which take seconds, are fitted again.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import deepfeat
from deepfeat.evaluation import evaluate

MELANOMA = "MEL"
SPLITS = ("random", "grouped")
GRID = {"C": [1e-5, 1e-4, 1e-3, 1e-2]}
#: The networks that are fine-tuned to melanoma, and averaged.
TUNED = ("MobileNetV2", "EfficientNetLite0", "InceptionV3")
#: Images of each class, at the least, where some are drawn.
LEAST = 60
#: Width of the embedding that they share.
EMBEDDING_DIM = 32

NO_ALEXNET = "nobody has published weights that deepfeat could load"
NO_WEIGHTS = "no ImageNet weights on this machine"


@dataclass(frozen=True)
class Scale:
    """How large an experiment is.

    Attributes
    ----------
    images : dict of str to int
        Greatest number of images of set A and of set B.
    input_size : dict of str to int
        Edge of the images in pixels, where it is not the network's own.
    scratch, tuned : dict
        Arguments of `deepfeat.finetune` for networks from scratch and with trained weights.
    tune_vgg : bool
        Whether VGG16 is fine-tuned, or frozen with an SVM.
    """

    images: dict[str, int]
    input_size: dict[str, int]
    scratch: dict[str, Any]
    tuned: dict[str, Any]
    tune_vgg: bool


FULL = Scale(
    images={},
    input_size={},
    scratch={"unfreeze": 1.0, "head_epochs": 0, "epochs": 50, "learning_rate": 1e-3, "batch_size": 64},
    tuned={"unfreeze": 0.5, "head_epochs": 3, "epochs": 50, "batch_size": 64},
    tune_vgg=True,
)
QUICK = Scale(
    images={"A": 600, "B": 2500},
    input_size={
        **dict.fromkeys(("AlexNet", *TUNED), 96),
        **dict.fromkeys(("DeepCNN", "DeepCNNGrouped", "DeepCNNMultiSize", "VGG16"), 64),
    },
    scratch={"unfreeze": 1.0, "head_epochs": 0, "epochs": 3, "learning_rate": 1e-3, "batch_size": 16},
    tuned={"unfreeze": 0.3, "head_epochs": 1, "epochs": 3, "learning_rate": 3e-4, "batch_size": 32},
    tune_vgg=False,
)


class Experiment:
    """One set of classes on one split: its table, networks and features.

    Parameters
    ----------
    name : {"A", "B"}
    split : {"random", "grouped"}
    table : pandas.DataFrame
        All images, with lesions as groups.
    scale : Scale
    weights : dict of str to str
        Files of weights by network.
    work : Path
    """

    def __init__(
        self, name: str, split: str, table: pd.DataFrame, scale: Scale, weights: dict[str, str], work: Path
    ) -> None:
        self.name, self.split, self.scale, self.weights = name, split, scale, weights
        self.positive = MELANOMA if name == "B" else None
        self.folder = work / f"{name}-{split}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.table = make_split(draw(table, scale.images.get(name)), split)

    @cached_property
    def truth(self) -> pd.Series:
        """Labels of the test images, by image id."""
        test = self.table[self.table["split"] == "test"].set_index("image_id")["label"]
        return test if self.positive is None else test.where(test == self.positive, f"not {self.positive}")

    def backbone(self, network: str, **options: Any) -> deepfeat.Backbone:
        """A network with its trained weights, in the experiment's image size."""
        options = {"weights": self.weights.get(network, "imagenet"), **options}
        return deepfeat.Backbone(network, input_size=self.scale.input_size.get(network), **options)

    def train(self, network: str, file: str, **settings: Any) -> deepfeat.Backbone:
        """Train from scratch."""
        backbone = self.backbone(network, weights=None)
        options = {**self.scale.scratch, "positive": self.positive, **settings}
        return deepfeat.finetune(self.table, backbone, self.folder / f"{file}.keras", **options)

    def tune(self, network: str) -> deepfeat.Backbone:
        """Fine-tune from trained weights, into the shared space in set B."""
        shared = {"embedding_dim": EMBEDDING_DIM} if self.name == "B" else {}
        options = {**self.scale.tuned, **shared, "positive": self.positive}
        return deepfeat.finetune(self.table, self.backbone(network), self.folder / f"{network}-tuned.keras", **options)

    def scores(self, network: deepfeat.Backbone) -> pd.DataFrame:
        """Class probabilities of the test images, by image id."""
        layer = deepfeat.load_backbone(self.folder / f"{network.name}.keras", layer="scores")
        test = self.table[self.table["split"] == "test"].reset_index(drop=True)
        store = deepfeat.extract(test, layer, self.folder / "scores.h5")
        ids = store.ready(f"{network.name}:scores")
        columns = network.classes
        return pd.DataFrame(store.features(f"{network.name}:scores", ids), index=ids, columns=columns)

    def score(self, *networks: deepfeat.Backbone) -> pd.Series:
        """Metrics of the average of the networks' class probabilities."""
        mean = sum(self.scores(network) for network in networks) / len(networks)
        classes = list(mean.columns)
        found = evaluate(
            self.truth[mean.index].tolist(), mean.idxmax(axis=1).tolist(), mean.to_numpy(), classes, self.positive
        )
        return describe(found.metrics["value"], found.per_class)

    def fit(self, networks: list[deepfeat.Backbone], **options: Any) -> pd.Series:
        """Metrics of an SVM on embeddings."""
        store = deepfeat.extract(self.table, networks, self.folder / "features.h5")
        names = [network.name for network in networks]
        found = deepfeat.fit_svm(store, backbones=names, positive=self.positive, param_grid=GRID, **options)
        for note in found.warnings:
            print(f"note: {self.folder.name}: {note}", flush=True)
        return describe(found.metrics["value"], found.per_class)


def describe(metrics: pd.Series, per_class: pd.DataFrame) -> pd.Series:
    """The metrics of a row: of melanoma in set B, over all classes in set A."""
    binary = "f1" in metrics.index
    names = ("precision", "recall", "f1") if binary else ("precision_macro", "recall_macro", "f1_macro")
    values = [metrics["accuracy"], *metrics[list(names)], metrics["balanced_accuracy"]]
    columns = ["accuracy", "precision", "recall", "F1", "balanced accuracy", "AUROC of melanoma"]
    return pd.Series([*values, per_class.loc[MELANOMA, "auroc"]], columns)


Measure = Callable[[Experiment], "pd.Series | str"]


@dataclass(frozen=True)
class Row:
    """One line of a result table.

    Attributes
    ----------
    name : str
    paper : str
        What the paper reports: accuracy in percent, and precision and recall of melanoma where it has them.
    measure : callable
        From an `Experiment` to metrics, or to the reason why there are none.
    """

    name: str
    paper: str
    measure: Measure


def from_scratch(network: str, **settings: Any) -> Measure:
    return lambda experiment: experiment.score(experiment.train(network, network, **settings))


def tuned(network: str) -> Measure:
    def measure(experiment: Experiment) -> pd.Series | str:
        return experiment.score(experiment.tune(network)) if at_hand(experiment, network) else NO_WEIGHTS

    return measure


def tuned_with_svm(network: str) -> Measure:
    def measure(experiment: Experiment) -> pd.Series | str:
        return experiment.fit([experiment.tune(network)]) if at_hand(experiment, network) else NO_WEIGHTS

    return measure


def frozen(network: str) -> Measure:
    def measure(experiment: Experiment) -> pd.Series | str:
        return experiment.fit([experiment.backbone(network)]) if at_hand(experiment, network) else NO_WEIGHTS

    return measure


def vgg(experiment: Experiment) -> pd.Series | str:
    return (tuned if experiment.scale.tune_vgg else frozen)("VGG16")(experiment)


def all_tuned(experiment: Experiment) -> list[deepfeat.Backbone]:
    return [experiment.tune(network) for network in TUNED if at_hand(experiment, network)]


def at_hand(experiment: Experiment, network: str) -> bool:
    """Whether there are weights; the full run lets Keras download them."""
    here = network in experiment.weights or deepfeat.list_backbones().loc[network, "offline"]
    return bool(here) or experiment.scale is FULL


def rows_of(name: str, scale: Scale) -> list[Row]:
    """The lines of a table, in the order of the paper."""
    vgg_name = "VGG16, fine-tuned" if scale.tune_vgg else "VGG16, frozen + SVM"
    if name == "A":
        return [
            Row("CNN (DeepCNN)", "70.8", from_scratch("DeepCNN")),
            Row("CNN, grouped convolutions", "", from_scratch("DeepCNNGrouped")),
            Row("CNN, filters of several sizes", "", from_scratch("DeepCNNMultiSize")),
            Row(vgg_name, "63", vgg),
            Row("AlexNet", "75", from_scratch("AlexNet", learning_rate=1e-4)),
            Row("AlexNet, fine-tuned", "77.3", lambda _: NO_ALEXNET),
        ]
    return [
        Row("MobileNetV2, frozen + SVM", "77.6 (0.4, 0.3)", frozen("MobileNetV2")),
        Row("MobileNetV2, fine-tuned", "84 (0.5, 0.6)", tuned("MobileNetV2")),
        Row("EfficientNetLite0, fine-tuned", "", tuned("EfficientNetLite0")),
        Row("InceptionV3, fine-tuned", "88 (0.5, 0.4)", tuned("InceptionV3")),
        Row("MobileNetV2, fine-tuned + SVM", "", tuned_with_svm("MobileNetV2")),
        Row("EfficientNetLite0, fine-tuned + SVM", "", tuned_with_svm("EfficientNetLite0")),
        Row("average of class scores", "85.2 (0.5, 0.5)", lambda experiment: experiment.score(*all_tuned(experiment))),
        Row(AVERAGE, "86.3 (0.8, 0.6)", lambda experiment: experiment.fit(all_tuned(experiment), fusion="average")),
    ]


AVERAGE = "average of embeddings + SVM"


def draw(table: pd.DataFrame, most: int | None, seed: int = 0) -> pd.DataFrame:
    """Some of the labelled images, about ``most``, each content once, since a split at random parts copies.

    Lesions are drawn whole, and classes keep their shares, but for rare ones, of which there are `LEAST` images.
    """
    table = table[table["label"].notna()]
    if most is not None and most < len(table):
        lesions = table["group"].fillna(table["image_id"])
        place = {
            name: number for number, name in enumerate(pd.Series(lesions.unique()).sample(frac=1, random_state=seed))
        }
        table = table.iloc[np.argsort(lesions.map(place), kind="stable")]
        quota = (table["label"].value_counts() * most // len(table)).clip(lower=LEAST)
        table = table[table.groupby("label").cumcount() < table["label"].map(quota)].sort_index()
    contents = table["path"].map(lambda path: hashlib.sha256(Path(path).read_bytes()).digest())
    return table[~contents.duplicated()].reset_index(drop=True)


def make_split(table: pd.DataFrame, split: str) -> pd.DataFrame:
    """80:20, at random or with lesions whole."""
    return deepfeat.split_table(table if split == "grouped" else table.assign(group=None), 0.2)


def measure_rows(name: str, experiments: dict[str, Experiment], scale: Scale) -> dict[str, dict[str, pd.Series | str]]:
    """For each row and split, metrics or a reason."""
    found: dict[str, dict[str, pd.Series | str]] = {}
    for row in rows_of(name, scale):
        found[row.name] = {}
        for split, experiment in experiments.items():
            start = time.perf_counter()
            found[row.name][split] = row.measure(experiment)
            print(f"\n{name} {split} {row.name}: {time.perf_counter() - start:.0f} s", flush=True)
    return found


def compare(name: str, found: dict[str, dict[str, pd.Series | str]], scale: Scale) -> list[dict[str, str]]:
    """The paper's number, that of the random split, and that of the grouped split."""

    def shown(value: pd.Series | str) -> str:
        if isinstance(value, str):
            return f"left out: {value}"
        accuracy = f"{100 * value['accuracy']:.1f}"
        return accuracy if name == "A" else f"{accuracy} ({value['precision']:.2f}, {value['recall']:.2f})"

    return [
        {"network": row.name, "paper": row.paper or "–", **{s: shown(found[row.name][s]) for s in SPLITS}}
        for row in rows_of(name, scale)
    ]


def all_metrics(found: dict[str, dict[str, pd.Series | str]]) -> list[dict[str, str]]:
    """One line for each row and split that was measured."""
    return [
        {"network": name, "split": split, **{metric: f"{number:.3f}" for metric, number in value.items()}}
        for name, values in found.items()
        for split, value in values.items()
        if not isinstance(value, str)
    ]


def time_training(experiment: Experiment) -> list[dict[str, str]]:
    """Seconds of an epoch, and how far the same number of epochs leads, with trained weights and without."""
    same = {name: experiment.scale.tuned[name] for name in ("epochs", "batch_size")}
    made = {
        "ImageNet weights, last layers learn": experiment.tune("MobileNetV2"),
        "from scratch": experiment.train("MobileNetV2", "MobileNetV2-scratch", embedding_dim=EMBEDDING_DIM, **same),
    }
    rows = []
    for name, network in made.items():
        history = network.history
        seconds = history[history["phase"] == "finetune"]["seconds"]
        rows.append(
            {
                "MobileNetV2": name,
                "s per epoch": f"{seconds.median():.1f}",
                "epochs": str(len(history)),
                "s in all": f"{history['seconds'].sum():.0f}",
                "best validation balanced accuracy": f"{history['val_balanced_accuracy'].max():.3f}",
            }
        )
    return rows


def verdict(found: dict[str, dict[str, pd.Series | str]]) -> list[dict[str, str]]:
    """Whether the average with an SVM is above every single network."""
    rows = []
    for split in SPLITS:
        measured = {name: values[split] for name, values in found.items() if not isinstance(values[split], str)}
        for metric in ("balanced accuracy", "F1"):
            singles = {name: value[metric] for name, value in measured.items() if not name.startswith("average")}
            best = max(singles, key=singles.__getitem__)
            average = measured[AVERAGE][metric]
            rows.append(
                {
                    "split": split,
                    "metric": f"{metric} of melanoma" if metric == "F1" else metric,
                    AVERAGE: f"{average:.3f}",
                    "best single network": f"{singles[best]:.3f} ({best})",
                    "above": "yes" if average > singles[best] else "no",
                }
            )
    return rows


def markdown(rows: list[dict[str, str]]) -> str:
    header = list(rows[0])
    lines = ["| " + " | ".join(header) + " |", "| " + " | ".join("---" for _ in header) + " |"]
    return "\n".join(lines + ["| " + " | ".join(row[name] for name in header) + " |" for row in rows])


def report(sections: list[tuple[str, str]], about: str) -> str:
    parts = ["# ISIC 2019: the paper's tables", about]
    for title, text in sections:
        parts += [f"## {title}", text]
    return "\n\n".join([*parts, ""])


def describe_run(experiments: dict[str, dict[str, Experiment]], seconds: float) -> str:
    counts = []
    for name, of_split in experiments.items():
        table = of_split["grouped"].table
        n_test = int((table["split"] == "test").sum())
        n_melanoma = int(((table["split"] == "test") & (table["label"] == MELANOMA)).sum())
        groups = table["group"].nunique()
        counts.append(
            f"Set {name}: {len(table)} images of {groups} lesions; of the grouped split {n_test} are for the test, "
            f"with {n_melanoma} melanomas."
        )
    machine = f"{len(os.sched_getaffinity(0))} cores, {platform.machine()}, Python {platform.python_version()}"
    return " ".join([*counts, f"{seconds:.0f} s on {machine}."])


def run(table: pd.DataFrame, scale: Scale, weights: dict[str, str], work: Path) -> Iterator[str]:
    """Measure every row of both tables; after each part, describe in Markdown what there is."""
    start = time.perf_counter()
    experiments = {
        name: {split: Experiment(name, split, table, scale, weights, work) for split in SPLITS} for name in "BA"
    }
    b = measure_rows("B", experiments["B"], scale)
    sections = [
        ("Set B: melanoma, accuracy in percent (precision, recall of melanoma)", markdown(compare("B", b, scale))),
        ("Set B, all metrics (precision, recall and F1 of melanoma)", markdown(all_metrics(b))),
        ("The average against the best single network", markdown(verdict(b))),
    ]
    yield report(sections, describe_run(experiments, time.perf_counter() - start))
    times = time_training(experiments["B"]["grouped"])
    sections += [("Time to train with and without ImageNet weights", markdown(times))]
    yield report(sections, describe_run(experiments, time.perf_counter() - start))
    a = measure_rows("A", experiments["A"], scale)
    sections += [
        ("Set A: all classes, accuracy in percent", markdown(compare("A", a, scale))),
        ("Set A, all metrics (precision, recall and F1 are means over classes)", markdown(all_metrics(a))),
    ]
    yield report(sections, describe_run(experiments, time.perf_counter() - start))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of ISIC 2019")
    parser.add_argument("--images", type=Path, help="folder of images (default: DATA/ISIC_2019_Training_Input)")
    parser.add_argument("--weights", action="append", default=[], metavar="NETWORK=FILE", help="may be repeated")
    parser.add_argument("--work", type=Path, default=Path("isic2019"), help="folder for networks and features")
    parser.add_argument("--table", type=Path, help="write the report here instead of printing it")
    parser.add_argument("--quick", action="store_true", help="small images and few epochs: ten minutes on two cores")
    arguments = parser.parse_args()
    images = arguments.images or arguments.data / "ISIC_2019_Training_Input"
    truth = arguments.data / "ISIC_2019_Training_GroundTruth.csv"
    table = deepfeat.read_isic(images, truth, arguments.data / "ISIC_2019_Training_Metadata.csv")
    weights = dict(text.split("=", 1) for text in arguments.weights)
    work = arguments.work / ("quick" if arguments.quick else "full")
    for text in run(table, QUICK if arguments.quick else FULL, weights, work):
        if arguments.table:
            arguments.table.write_text(text, encoding="utf-8")
    if not arguments.table:
        print(text)


if __name__ == "__main__":
    main()
