from __future__ import annotations

import os
import signal
import time

import joblib
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import balanced_accuracy_score, make_scorer

import deepfeat
from deepfeat import cli
from deepfeat.errors import ClusterError, UsageError
from deepfeat.svm import crew, search

dask_distributed = pytest.importorskip("distributed", reason="NO CLUSTER TESTS: the package distributed is missing")

long = pytest.mark.skipif("DEEPFEAT_CLUSTER" not in os.environ, reason="workers start anew: make test-cluster")


@pytest.fixture(scope="module")
def cache(tmp_path_factory, make_spec, make_table, build_store):
    """Two blocks of 90 images of three classes."""
    generator = np.random.default_rng(0)
    labels = [f"c{i % 3}" for i in range(90)]
    table = make_table(90, label=labels, group=[f"g{i // 6}-{i % 3}" for i in range(90)])
    centres = generator.normal(size=(3, 12))
    blocks = [
        (make_spec(name), (centres[np.arange(90) % 3, :width] + 1.5 * generator.normal(size=(90, width))).astype("f4"))
        for name, width in [("NetA", 12), ("NetB", 5)]
    ]
    return build_store(tmp_path_factory.mktemp("crew") / "features.h5", table, blocks).path


def accuracy(y, predicted):
    return balanced_accuracy_score(y, predicted)


CASES = {
    "linear": {},
    "weights": {"class_weight": ["balanced", None], "param_grid": {"C": [1e-3, 1e-1, 1e-2]}},
    "binary": {"positive": "c1", "threshold": "f1", "calibrate": True},
    "rbf": {"kernel": "rbf", "class_weight": [None, "balanced"]},
    "wider": {"param_grid": "auto"},
    "subsets": {"backbones": "all-subsets", "param_grid": {"C": [1e-2, 1.0]}},
    "late": {"fusion": "late"},
    "scorer": {"scoring": make_scorer(accuracy), "param_grid": {"C": [1e-2]}},
    "nested": {"nested": True, "param_grid": {"C": [1e-3, 1e-2]}},
    "sklearn": {"engine": "sklearn", "param_grid": {"C": [1e-3, 1e-2]}},
}


def fit(cache, **options):
    return deepfeat.fit_svm(cache, **{"cv": 3, "ledger": False, "test": 0.2, **options})


def assert_equal_results(here, there):
    assert there.best_params == here.best_params
    pd.testing.assert_frame_equal(there.cv_results, here.cv_results, rtol=1e-6)
    pd.testing.assert_frame_equal(there.metrics, here.metrics, rtol=1e-6)
    pd.testing.assert_frame_equal(there.predictions, here.predictions, rtol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_workers_find_what_one_process_does(cache, client, case):
    here, there = fit(cache, **CASES[case]), fit(cache, client=client, **CASES[case])
    assert_equal_results(here, there)
    if case == "nested":
        pd.testing.assert_frame_equal(there.nested, here.nested, rtol=1e-6)
        pd.testing.assert_frame_equal(there.nested_choices, here.nested_choices, rtol=1e-6)


def test_joblibs_client_is_taken(cache, client, monkeypatch):
    called, call = [], crew.Crew.call
    monkeypatch.setattr(crew.Crew, "call", lambda self, *given: called.append(self.client) or call(self, *given))
    here = fit(cache)
    assert not called
    with joblib.parallel_config("dask", client=client):
        there = fit(cache)
    assert called == [client]
    assert "client" not in there.provenance["settings"]
    assert_equal_results(here, there)


def test_folds_and_candidates_are_spread_and_features_sent_once(cache, client, monkeypatch):
    sent, scatter = [], client.scatter
    monkeypatch.setattr(client, "scatter", lambda data, **options: sent.append(options) or scatter(data, **options))
    spread, submit = [], client.submit
    monkeypatch.setattr(client, "submit", lambda *given, **options: spread.append(given) or submit(*given, **options))
    fit(cache, client=client, kernel="rbf", backbones="all-subsets", param_grid={"C": [1, 10], "gamma": [0.01, 0.1]})
    assert sent == [{"broadcast": True}]
    assert sum(given[0] is crew._call for given in spread) == 3 * 3 * 2  # sets of blocks, folds, values of gamma


def test_independent_candidates_are_those_that_differ_in_more_than_one_value():
    grid = [{"C": C, "gamma": g, "class_weight": w} for g in (1, 2) for w in (None, "balanced") for C in (1, 2)]
    assert search._independent(grid) == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert search._independent([{"C": 1, "class_weight": {"a": 2}}, {"C": 2, "class_weight": {"a": 2}}]) == [[0, 1]]


@long
def test_killed_worker_costs_its_folds_alone(cache, client):
    def slow_accuracy(y, predicted):
        time.sleep(0.05)
        return accuracy(y, predicted)

    pid = next(iter(client.run(os.getpid).values()))
    killing = client.submit(lambda: None)
    killing.add_done_callback(lambda _: os.kill(pid, signal.SIGKILL))
    options = {"scoring": make_scorer(slow_accuracy), "param_grid": {"C": [1e-3, 1e-2]}}
    assert_equal_results(fit(cache, **options), fit(cache, client=client, **options))
    client.wait_for_workers(2)


@long
def test_fold_that_ends_every_worker_is_one_sentence(cache, cluster, client, monkeypatch):
    monkeypatch.setattr(cluster.scheduler, "allowed_failures", 0)

    def end(y, predicted):
        os._exit(1)

    with pytest.raises(ClusterError, match=r"fold ended 1 worker\(s\).*so fit again"):
        fit(cache, client=client, scoring=make_scorer(end))
    client.wait_for_workers(2)


@long
def test_samples_that_died_with_their_workers_are_one_sentence(cache, client, monkeypatch):
    scatter = client.scatter

    def lose(data, **options):
        held, workers = scatter(data, **options), client.run(os.getpid)
        for pid in workers.values():
            os.kill(pid, signal.SIGKILL)
        while set(workers) & set(client.nthreads()):
            time.sleep(0.02)
        return held

    monkeypatch.setattr(client, "scatter", lose)
    with pytest.raises(ClusterError, match=r"^the workers that held the samples died, mostly .*so fit again$"):
        fit(cache, client=client)
    client.wait_for_workers(2)


def test_worker_with_another_deepfeat_is_refused(cache, client, monkeypatch):
    monkeypatch.setattr(crew, "__version__", "99.0")
    with pytest.raises(ClusterError, match=r"^worker tcp://.* and the caller 99\.0: install one version everywhere$"):
        fit(cache, client=client)


def test_late_worker_with_another_deepfeat_is_refused(cache, client, monkeypatch):
    monkeypatch.setattr(crew, "ask_worker", lambda *given: None)  # as if a worker with ours had been there first
    monkeypatch.setattr(crew, "__version__", "99.0")
    with pytest.raises(ClusterError, match=r"and the caller 99\.0: install one version everywhere"):
        fit(cache, client=client)


def test_cluster_that_grows_with_its_tasks_starts_from_none(cache, caplog):
    options = {"n_workers": 0, "processes": False, "dashboard_address": ":0"}
    with dask_distributed.LocalCluster(**options) as short, dask_distributed.Client(short) as client:
        # One that stays once it is there.
        short.adapt(minimum=0, maximum=1, interval="100ms", wait_count=10**6)
        there = fit(cache, client=client)
    assert caplog.text.count("the cluster has no workers: waiting for one") == 1
    assert_equal_results(fit(cache), there)


def test_command_line_takes_a_scheduler(cache, cluster, capsys):
    command = ["fit", str(cache), "--test", "0.2", "--cv", "3", "--no-ledger"]
    assert cli.main(command) == 0
    here = capsys.readouterr().out
    assert cli.main([*command, "--scheduler", cluster.scheduler_address]) == 0
    assert capsys.readouterr().out == here


def test_what_is_no_client_is_refused(cache):
    with pytest.raises(UsageError, match=r"client is 3: pass a distributed\.Client"):
        fit(cache, client=3)
