"""Which feature blocks to join, chosen by cross-validation on the training rows."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pandas as pd

from deepfeat.errors import UsageError
from deepfeat.svm.samples import Samples
from deepfeat.svm.search import Search

_TOP = re.compile(r"top-([1-9]\d*)")

#: More blocks than this have too many subsets.
_MOST = 10

SearchRows = Callable[[Samples], Search]


def is_choice(backbones: Any) -> bool:
    """Whether the blocks are to be chosen, by "top-N" or "all-subsets"."""
    return isinstance(backbones, str) and (backbones == "all-subsets" or _TOP.fullmatch(backbones) is not None)


def choose_blocks(samples: Samples, backbones: str, search: SearchRows) -> tuple[Samples, Search, pd.DataFrame]:
    """Search on several sets of blocks.

    Parameters
    ----------
    samples : Samples
        All rows.
    backbones : str
        "top-N": the N blocks that score best alone, joined. "all-subsets": the set that scores best.
    search : callable
        Of samples.

    Returns
    -------
    samples : Samples
        With the chosen blocks alone.
    found : Search
    tried : pandas.DataFrame
        One row for each set that was tried, in the order of their scores: blocks, mean, std, best parameters.
    """
    names, tried = list(samples.blocks), []

    def run(sets: Iterable[Sequence[str]]) -> list[tuple[Samples, Search]]:
        outcomes = []
        for chosen in sets:
            part = samples.select(chosen)
            outcomes.append((part, search(part)))
            tried.append(_describe(chosen, outcomes[-1][1]))
        return outcomes

    if backbones == "all-subsets":
        if len(names) > _MOST:
            msg = f"{len(names)} blocks have {2 ** len(names) - 1:,} subsets: name at most {_MOST}, or use 'top-3'"
            raise UsageError(msg)
        sets = itertools.chain.from_iterable(itertools.combinations(names, r) for r in range(len(names), 0, -1))
        best = max(run(sets), key=lambda outcome: outcome[1].cv_results["mean"].max())
    else:
        count = int(_TOP.fullmatch(backbones)[1])  # type: ignore[index]
        if count > len(names):
            msg = f"backbones is {backbones!r}, and there are {len(names)} blocks: use at most 'top-{len(names)}'"
            raise UsageError(msg)
        alone = run([name] for name in names)
        order = sorted(range(len(names)), key=lambda i: -alone[i][1].cv_results["mean"].max())[:count]
        best = alone[order[0]] if count == 1 else run([[names[i] for i in sorted(order)]])[0]
    table = pd.DataFrame(tried).sort_values("mean", ascending=False, kind="stable", ignore_index=True)
    return *best, table


def _describe(blocks: Sequence[str], found: Search) -> dict[str, Any]:
    best = found.cv_results.loc[found.cv_results["rank"].idxmin()]
    return {"blocks": " + ".join(blocks), "mean": best["mean"], "std": best["std"], "best_params": found.best_params}
