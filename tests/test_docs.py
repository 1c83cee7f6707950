from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import deepfeat

ROOT = Path(__file__).parents[1]
FAULTS = re.findall(r"\| (test_\w+\.py)::(test_\w+) \|", (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8"))
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def test_the_fault_table_has_more_than_thirty_rows():
    assert len(FAULTS) > 30


def test_the_rows_of_the_fault_table_are_numbered_one_after_the_other():
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    assert [int(n) for n in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)] == list(range(1, len(FAULTS) + 1))


@pytest.mark.parametrize(("file", "name"), FAULTS)
def test_fault_is_shown_by_a_test_that_exists(file, name):
    assert f"def {name}(" in (ROOT / "tests" / file).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_every_public_name_is_in_the_reference():
    page = (ROOT / "docs" / "reference" / "api.md").read_text(encoding="utf-8")
    listed = re.findall(r"^   (\w+)$", page, re.MULTILINE)
    assert sorted(listed) == sorted(set(deepfeat.__all__) - {"__version__"})
    assert "`deepfeat.__version__`" in page


@pytest.mark.parametrize("example", sorted(ROOT.glob("examples/plot_*.py")), ids=lambda path: path.stem)
def test_example_parses_and_names_what_exists(example):
    tree = ast.parse(example.read_text(encoding="utf-8"))
    assert re.match(r"\n.+\n=+\n\n.+", ast.get_docstring(tree, clean=False))
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "deepfeat"
    }
    assert used
    assert used <= set(deepfeat.__all__)
