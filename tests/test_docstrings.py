"""Every public name says what it takes, gives and raises, and shows it in an example that runs."""

from __future__ import annotations

import builtins
import doctest
import functools
import inspect

import pytest
from numpydoc.docscrape import NumpyDocString

import deepfeat

#: Public callables that take arguments and have nothing to refuse.
REFUSE_NOTHING = {
    "Backbone.specs",
    "FeatureStore.has_block",
}


def members(name, value):
    """A public name, and the public methods and properties of a class."""
    yield name, value
    if not inspect.isclass(value):
        return
    for own, member in vars(value).items():
        if own.startswith("_"):
            continue
        if isinstance(member, property | functools.cached_property):
            yield f"{name}.{own}", member
        elif callable(member) or isinstance(member, classmethod | staticmethod):
            yield f"{name}.{own}", getattr(value, own)


NAMES = [name for name in deepfeat.__all__ if name != "__version__"]
PUBLIC = {path: value for name in NAMES for path, value in members(name, getattr(deepfeat, name))}
PROPERTIES = {n: v for n, v in PUBLIC.items() if isinstance(v, property | functools.cached_property)}
ERRORS = {n: v for n, v in PUBLIC.items() if inspect.isclass(v) and issubclass(v, Exception)}
# Classes that callers only receive say what they have, those that callers make what they take.
RECEIVED = {"FeatureStore", "SVMResult", "Ledger"}
CALLABLES = {n: v for n, v in PUBLIC.items() if n not in {*PROPERTIES, *ERRORS, *RECEIVED}}


def parse(value):
    return NumpyDocString(inspect.getdoc(value) or "")


def documented(doc, section):
    """Names and types of a section; "mean, std" stands for two."""
    return {part.strip(): entry.type for entry in doc[section] for part in entry.name.split(",")}


def arguments(value):
    parameters = inspect.signature(value).parameters.values()
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    return [stars.get(p.kind, "") + p.name for p in parameters if p.name != "self"]


@pytest.mark.parametrize("name", CALLABLES)
def test_parameters_are_those_of_the_signature(name):
    doc = parse(CALLABLES[name])
    assert list(documented(doc, "Parameters")) == arguments(CALLABLES[name])


@pytest.mark.parametrize("name", CALLABLES)
def test_parameters_and_returns_have_types(name):
    doc = parse(CALLABLES[name])
    # What is "as in" another function may leave the type to it.
    untyped = [e.name for e in doc["Parameters"] if not e.type and not any("As " in t or "as " in t for t in e.desc)]
    assert [name for name in untyped if not name.startswith("*")] == []
    assert all(entry.type or entry.name for entry in doc["Returns"])


@pytest.mark.parametrize("name", [n for n in CALLABLES if not inspect.isclass(CALLABLES[n])])
def test_what_is_returned_is_described(name):
    returned = inspect.signature(CALLABLES[name]).return_annotation
    doc = parse(CALLABLES[name])
    assert bool(doc["Returns"] or doc["Yields"]) == (returned != "None")


@pytest.mark.parametrize("name", CALLABLES)
def test_arrays_have_shapes_and_types(name):
    doc = parse(CALLABLES[name])
    for entry in [*doc["Parameters"], *doc["Returns"], *doc["Attributes"]]:
        text = f"{entry.name} {entry.type} {' '.join(entry.desc)}"
        if "ndarray" in f"{entry.name} {entry.type}":
            assert "shape" in text, text
            assert any(kind in text for kind in ("float", "int", "bool", "str", "RECORD", "dtype")), text


@pytest.mark.parametrize("name", [n for n in CALLABLES if arguments(CALLABLES[n])])
def test_errors_are_named(name):
    raised = [entry.type for entry in parse(CALLABLES[name])["Raises"]]
    assert bool(raised) == (name not in REFUSE_NOTHING)
    for kinds in raised:
        for kind in kinds.split(", "):
            assert issubclass(getattr(deepfeat, kind, None) or getattr(builtins, kind), Exception)


@pytest.mark.parametrize("name", [n for n in PUBLIC if n not in PROPERTIES])
def test_an_example_runs(name):
    examples = doctest.DocTestParser().get_examples(inspect.getdoc(PUBLIC[name]) or "")
    running = [example for example in examples if doctest.SKIP not in example.options]
    assert any("import" not in example.source for example in running)
    assert len(running) == len(examples)


@pytest.mark.parametrize("name", PROPERTIES)
def test_a_property_says_what_it_is(name):
    assert len(inspect.getdoc(PROPERTIES[name]) or "") >= 20


def test_examples_are_found_and_not_a_few():
    found = {test.name for name in NAMES for test in doctest.DocTestFinder().find(getattr(deepfeat, name), name)}
    assert {name for name in PUBLIC if name not in PROPERTIES} <= found
