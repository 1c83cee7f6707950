from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

PATH = Path(__file__).parents[1] / "examples" / "isic2019.py"


@pytest.fixture(scope="module")
def isic2019():
    spec = importlib.util.spec_from_file_location("isic2019", PATH)
    module = importlib.util.module_from_spec(spec)
    # Its dataclasses look their module up.
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "isic2019", module)
        spec.loader.exec_module(module)
        yield module


def metrics(accuracy, balanced, f1):
    columns = ["accuracy", "precision", "recall", "F1", "balanced accuracy", "AUROC of melanoma"]
    return pd.Series([accuracy, 0.5, 0.25, f1, balanced, 0.9], columns)


def test_every_number_of_the_paper_is_in_the_tables(isic2019):
    papers = {row.paper for name in "AB" for row in isic2019.rows_of(name, isic2019.QUICK)} - {""}
    accuracies = {float(paper.split()[0]) for paper in papers}
    assert accuracies == {70.8, 63, 75, 77.3, 77.6, 84, 88, 85.2, 86.3}


def test_paper_random_and_grouped_stand_side_by_side_and_reasons_where_there_is_nothing(isic2019):
    found = {row.name: dict.fromkeys(isic2019.SPLITS, "no weights") for row in isic2019.rows_of("B", isic2019.QUICK)}
    found["MobileNetV2, fine-tuned"] = {"random": metrics(0.8, 0.7, 0.6), "grouped": metrics(0.75, 0.7, 0.6)}
    rows = {row["network"]: row for row in isic2019.compare("B", found, isic2019.QUICK)}
    assert rows["MobileNetV2, fine-tuned"] == {
        "network": "MobileNetV2, fine-tuned",
        "paper": "84 (0.5, 0.6)",
        "random": "80.0 (0.50, 0.25)",
        "grouped": "75.0 (0.50, 0.25)",
    }
    assert rows["InceptionV3, fine-tuned"]["grouped"] == "left out: no weights"
    lines = isic2019.markdown(list(rows.values())).splitlines()
    assert lines[0] == "| network | paper | random | grouped |"
    assert len(lines) == 2 + len(rows)
    assert [row["split"] for row in isic2019.all_metrics(found)] == ["random", "grouped"]


@pytest.mark.parametrize(("average", "said"), [(0.71, "yes"), (0.7, "no"), (0.6, "no")])
def test_verdict_compares_with_the_best_single_network(isic2019, average, said):
    def both(*values):
        return dict.fromkeys(isic2019.SPLITS, metrics(*values))

    found = {
        "one": both(0.9, 0.6, 0.3),
        "two": both(0.5, 0.7, 0.2),
        "three": dict.fromkeys(isic2019.SPLITS, "no weights"),
        "average of class scores": both(0.9, 0.9, 0.9),
        isic2019.AVERAGE: both(0.9, average, 0.25),
    }
    rows = isic2019.verdict(found)
    assert [row["above"] for row in rows[:2]] == [said, "no"]
    assert [row["best single network"] for row in rows[:2]] == ["0.700 (two)", "0.300 (one)"]


def test_split_at_random_parts_lesions_and_the_grouped_one_does_not(isic2019, tmp_path, monkeypatch):
    rows = []
    for number in range(60):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (2, 2), (number or 1, 0, 0)).save(path)
        rows.append((str(number), str(path), "AB"[number // 3 % 2], f"lesion {number // 3}", None))
    columns = ["image_id", "path", "label", "group", "split"]
    table = isic2019.draw(pd.DataFrame(rows, columns=columns, dtype=object), None)
    assert table["image_id"].tolist() == [str(number) for number in range(60) if number != 1]
    monkeypatch.setattr(isic2019, "LEAST", 5)
    few = isic2019.draw(table, 21)
    assert few["label"].value_counts().to_dict() == {"A": 10, "B": 10}
    assert few["group"].value_counts().value_counts().loc[3] >= 5
    parted = {}
    for split in isic2019.SPLITS:
        made = isic2019.make_split(table, split)
        parted[split] = made.assign(lesion=table["group"]).groupby("lesion")["split"].nunique().max() > 1
        assert 10 <= (made["split"] == "test").sum() <= 14
    assert parted == {"random": True, "grouped": False}
