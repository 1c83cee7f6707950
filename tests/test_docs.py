from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FAULTS = re.findall(r"\| (test_\w+\.py)::(test_\w+) \|", (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8"))
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def test_the_fault_table_has_more_than_thirty_rows():
    assert len(FAULTS) > 30


@pytest.mark.parametrize(("file", "name"), FAULTS)
def test_fault_is_shown_by_a_test_that_exists(file, name):
    assert f"def {name}(" in (ROOT / "tests" / file).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target
