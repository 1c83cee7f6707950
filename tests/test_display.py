"""What notebooks show, and that no name of the data turns into markup there."""

from __future__ import annotations

from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

import deepfeat
from deepfeat.display import N_ROWS, draw_table

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "a & b < c",
    "\u202egnp.elom",
    "nu\0ll",
    "{{7*7}} $x$",
]


class Reader(HTMLParser):
    """Elements, attributes and text of a page."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_data(self, data):
        self.text += data + " "


def read(shown):
    page = shown._repr_html_()
    page.encode("utf-8")
    reader = Reader(page)
    assert set(reader.tags) <= {"div", "p", "bdi", "table", "thead", "tbody", "tr", "th", "td", "ul", "li"}
    assert reader.attributes == []
    return reader


@pytest.fixture
def make_store(tmp_path):
    def make(labels, name="NetA"):
        rng = np.random.default_rng(0)
        table = pd.DataFrame({"image_id": [f"{i:03d}" for i in range(len(labels))], "label": labels}, dtype=object)
        features = rng.normal(size=(len(labels), 3)) + pd.factorize(table["label"])[0][:, np.newaxis]
        return deepfeat.import_features(features, table, tmp_path / "store.h5", name=name)

    return make


def test_store_shows_its_blocks(make_store):
    reader = read(make_store(["a", "b"] * 5))
    assert "store.h5: 10 images" in reader.text
    assert reader.text.split()[-6:] == ["NetA", "3", "float32", "10", "0", "0"]


@pytest.mark.parametrize("text", HOSTILE)
def test_names_are_never_markup(make_store, text):
    store = make_store([text, "b"] * 10, text)
    read(store)
    result = deepfeat.fit_svm(store, cv=2, param_grid={"C": [0.1]}, positive=text)
    assert f" accuracy {result.metrics['value']['accuracy']:.3f} " in " ".join(read(result).text.split())
    read(deepfeat.open_ledger(store.path))


def test_result_shows_metrics_classes_and_warnings(make_store):
    result = deepfeat.fit_svm(make_store(["a", "b"] * 10), cv=2, param_grid={"C": [0.1]})
    reader = read(result)
    assert reader.tags.count("table") == 2
    assert f"{result.metrics['value']['auroc_macro']:.3f}" in reader.text
    assert "C=0.1" in reader.text
    assert reader.tags.count("li") == len(result.warnings)
    assert all(note in reader.text for note in result.warnings)


def test_ledger_shows_the_newest_fit_first(make_store):
    store = make_store(["a", "b"] * 10)
    for C in (0.1, 0.2):
        deepfeat.fit_svm(store, cv=2, param_grid={"C": [C]})
    text = read(deepfeat.open_ledger(store.path)).text
    assert "2 fits" in text
    assert text.index("C=0.2") < text.index("C=0.1")


def test_undecodable_bytes_of_a_file_name_are_shown_as_such():
    page = draw_table(pd.DataFrame({"path": pd.Series(["caf\udce9.png"], dtype=object)}), index=False)
    assert "caf?.png" in page


@pytest.mark.parametrize(("n_rows", "more"), [(0, None), (N_ROWS, None), (N_ROWS + 3, "3 more")])
def test_long_tables_are_cut(n_rows, more):
    page = draw_table(pd.DataFrame({"x": range(n_rows)}), index=False)
    assert page.count("<tr>") == min(n_rows, N_ROWS) + 1
    assert ("more" in page) == (more is not None)
    assert more is None or more in page
