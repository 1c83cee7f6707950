from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import deepfeat

PACKAGE = Path(deepfeat.__file__).parent
STAGE_1 = (
    "deepfeat.backbones",
    "deepfeat.runtimes",
    "deepfeat.computation",
    "deepfeat.distributed",
    "deepfeat.extraction",
    "deepfeat.benchmarking",
    "deepfeat.training",
    "deepfeat.activations",
    "deepfeat.prediction",
)
STAGE_2 = (
    "deepfeat.cluster",
    "deepfeat.store",
    "deepfeat.fusion",
    "deepfeat.splits",
    "deepfeat.svm",
    "deepfeat.evaluation",
    "deepfeat.curves",
    "deepfeat.plots",
    "deepfeat.duplicates",
    "deepfeat.similarity",
    "deepfeat.comparison",
    "deepfeat.ledger",
    "deepfeat.report",
    "deepfeat.archives",
    "deepfeat.bundle",
    "deepfeat.estimators",
    "deepfeat.explanation",
)


def module_name(path: Path) -> str:
    parts = ("deepfeat", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def under_type_checking(tree: ast.AST) -> set[ast.AST]:
    guarded = [n for n in ast.walk(tree) if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    return {inner for node in guarded for inner in ast.walk(node)}


def imports(path: Path) -> set[str]:
    """Modules of deepfeat that a module imports, at its top or inside a function."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = under_type_checking(tree)
    found = set()
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            named = {f"{node.module}.{alias.name}" for alias in node.names}
            # Modules are imported from their package as such; any other name needs the package's contents page.
            found |= named if named <= set(MODULES) else {node.module}
    return {name for name in found if name in MODULES and name != "deepfeat"}


GRAPH = {name: imports(path) for name, path in MODULES.items()}


def reachable(name: str) -> set[str]:
    seen, front = set(), [name]
    while front:
        for target in GRAPH[front.pop()] - seen:
            seen.add(target)
            front.append(target)
    return seen


@pytest.mark.parametrize("name", MODULES)
def test_module_is_in_no_import_circle(name):
    circle = {other for other in reachable(name) if name in reachable(other)}
    assert not circle


@pytest.mark.parametrize("name", [m for m in MODULES if m.startswith(STAGE_2)])
def test_stage_2_never_reaches_stage_1(name):
    assert not {m for m in reachable(name) if m.startswith(STAGE_1)}


def test_no_module_is_named_like_a_public_function():
    assert not {f"deepfeat.{name}" for name in deepfeat.__all__} & set(MODULES)


@pytest.mark.parametrize("name", deepfeat.__all__)
def test_public_name_resolves_and_is_listed(name):
    assert getattr(deepfeat, name) is not None
    assert name in dir(deepfeat)


@pytest.mark.parametrize("name", [n for n in deepfeat.__all__ if n != "__version__"])
def test_public_name_has_a_docstring(name):
    assert len(getattr(deepfeat, name).__doc__) >= 40


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'deepfeat' has no attribute 'fit_svn'"):
        _ = deepfeat.fit_svn


@pytest.mark.parametrize("statement", ["deepfeat.fit_svm", "deepfeat.open_features", "deepfeat.list_backbones()"])
def test_stage_2_leaves_keras_and_tensorflow_alone(statement):
    code = f"import sys, deepfeat; {statement}; print(sorted({{'keras', 'tensorflow'}} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
