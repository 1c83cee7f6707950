from __future__ import annotations

import hashlib
import importlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import cluster_caller
import numpy as np
import pytest
from PIL import Image
from small_network import small_cnn

import deepfeat
from deepfeat import cli, cluster, computation, distributed, extraction
from deepfeat.backbones.network import PREPROCESSINGS, Network
from deepfeat.cluster import clear_failures, connect
from deepfeat.distributed import compute_shards, resolve_on_worker
from deepfeat.errors import BackboneError, ClusterError, DataWarning, ImageError, UsageError
from deepfeat.images import LoadedImage

dask_distributed = pytest.importorskip("distributed", reason="NO CLUSTER TESTS: the package distributed is missing")

long = pytest.mark.skipif("DEEPFEAT_CLUSTER" not in os.environ, reason="workers start anew: make test-cluster")


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(distributed, "SHARD", 4)


def save_pictures(folder, count, size=(20, 24), start=0):
    folder.mkdir(parents=True)
    for number in range(start, start + count):
        pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03d}.png")


@pytest.fixture
def folder(tmp_path):
    save_pictures(tmp_path / "photos" / "a", 30)
    return tmp_path / "photos"


def extract(folder, cache, backbones=None, **options):
    chosen = small_cnn() if backbones is None else backbones
    return deepfeat.extract(folder, chosen, cache, **{"progress": False, **options})


def assert_equal_stores(one, other):
    assert one.table.equals(other.table)
    pd_columns = ["name", "key", "done", "missing", "failed"]
    assert one.blocks[pd_columns].equals(other.blocks[pd_columns])
    for key in one.blocks["key"]:
        np.testing.assert_array_equal(one.records(key)["digest"], other.records(key)["digest"])
        ready = one.ready(key)
        np.testing.assert_allclose(one.features(key, ready), other.features(key, ready), rtol=1e-5, atol=1e-6)


CASES = {
    "one": {},
    "float16": {"dtype": "float16"},
    "batches": {"batch_size": 3},
    "views": {"views": ["original", "hflip"]},
    "several": {"backbones": [small_cnn(layer=["first", "second"]), small_cnn(pooling="max", input_size=24)]},
}


@pytest.mark.parametrize("case", CASES)
def test_workers_compute_what_one_process_does(folder, tmp_path, client, small_shards, case):
    here = extract(folder, tmp_path / "here.h5", **CASES[case])
    there = extract(folder, tmp_path / "there.h5", client=client, **CASES[case])
    assert_equal_stores(here, there)
    assert there.blocks["versions"].tolist() == here.blocks["versions"].tolist()


def test_second_run_hands_out_nothing(folder, tmp_path, client, monkeypatch):
    cache = tmp_path / "features.h5"
    extract(folder, cache, client=client)
    before = cache.read_bytes()
    monkeypatch.setattr(distributed, "_compute_shard", None)
    extract(folder, cache, client=client)
    assert cache.read_bytes() == before


def test_only_missing_rows_are_handed_out(folder, tmp_path, client, caplog):
    cache = tmp_path / "features.h5"
    extract(folder, cache, client=client)
    save_pictures(folder / "b", 1, start=50)
    (folder / "b" / "copy.png").write_bytes((folder / "a" / "003.png").read_bytes())
    os.utime(folder / "a" / "005.png", ns=(1, 1))
    (folder / "a" / "006.png").write_bytes(b"no image")
    caplog.set_level("INFO", "deepfeat")
    with pytest.warns(DataWarning) as warned:
        there = extract(folder, cache, client=client)
    assert "SmallCNN: 28 done before, 1 touched but unchanged, 1 copied, 1 computed, 1 failed" in caplog.text
    assert "1 of 32 images failed" in str(warned[0].message)
    with pytest.warns(DataWarning):
        here = extract(folder, tmp_path / "here.h5")
    assert_equal_stores(here, there)


def test_exchanged_files_are_computed_again(folder, tmp_path, client):
    cache = tmp_path / "features.h5"
    before = extract(folder, cache, client=client).features("SmallCNN").copy()
    one, other = folder / "a" / "000.png", folder / "a" / "001.png"
    contents = one.read_bytes(), other.read_bytes()
    other.write_bytes(contents[0])
    one.write_bytes(contents[1])
    after = extract(folder, cache, client=client).features("SmallCNN")
    np.testing.assert_array_equal(after[[1, 0]], before[:2])


def test_on_error_raise_names_the_image(folder, tmp_path, client):
    (folder / "a" / "007.png").write_bytes(b"no")
    with pytest.raises(ImageError, match=r"007\.png: not an image"):
        extract(folder, tmp_path / "features.h5", client=client, on_error="raise")


@pytest.mark.skipif(sys.platform != "linux", reason="/proc shows each process a folder of its own")
def test_files_that_workers_do_not_find_are_failures_with_the_reason(
    folder, tmp_path, client, small_shards, monkeypatch
):
    monkeypatch.chdir(folder)
    with pytest.warns(DataWarning) as warned:
        store = deepfeat.extract("/proc/self/cwd", small_cnn(), tmp_path / "f.h5", client=client, progress=False)
    said = [str(warning.message) for warning in warned]
    assert len(said) == 2  # once, and the report at the end
    assert said[0].startswith("workers do not find files that are here")
    assert store.blocks["failed"].tolist() == [30]
    assert store.failures["reason"].str.startswith("file not found on tcp://").all()
    monkeypatch.undo()


@pytest.fixture
def copies(folder, tmp_path, client, monkeypatch):
    """Copies of the photos, which workers find under the paths where this process finds the photos."""
    if sys.platform != "linux":
        pytest.skip("/proc shows each process a folder of its own")
    shutil.copytree(folder, tmp_path / "copies", copy_function=shutil.copyfile)
    before = client.run(os.getcwd)
    client.run(os.chdir, str(tmp_path / "copies"))
    monkeypatch.chdir(folder)
    yield tmp_path / "copies"
    for address, path in before.items():
        client.run(os.chdir, path, workers=[address])


def test_equal_copies_on_the_workers_settle_after_one_call(copies, tmp_path, client, monkeypatch):
    store = extract("/proc/self/cwd", tmp_path / "features.h5", client=client)
    assert store.blocks["done"].tolist() == [30]
    monkeypatch.setattr(distributed, "_compute_shard", None)
    extract("/proc/self/cwd", tmp_path / "features.h5", client=client)


def test_other_files_on_the_workers_are_failures_until_they_are_the_same(
    copies, folder, tmp_path, client, small_shards
):
    larger, other = copies / "a" / "003.png", copies / "a" / "009.png"
    larger.write_bytes(larger.read_bytes() + b"more")
    other.write_bytes(other.read_bytes()[:-1] + b"?")
    with pytest.warns(DataWarning) as warned:
        store = extract("/proc/self/cwd", tmp_path / "features.h5", client=client)
    said = [str(warning.message) for warning in warned]
    assert len(said) == 2  # once, and the report at the end
    assert said[0].startswith("workers find other files than are here: they need the images under the same paths")
    assert store.blocks[["done", "failed"]].to_numpy().tolist() == [[28, 2]]
    reasons = dict(zip(store.failures["image_id"], store.failures["reason"], strict=True))
    size = larger.stat().st_size
    assert reasons["a/003.png"].startswith(f"another file ({size} bytes, here {size - 4}) on tcp://")
    assert reasons["a/009.png"].startswith("other contents than here on tcp://")
    for name in ("003.png", "009.png"):
        shutil.copyfile(folder / "a" / name, copies / "a" / name)
    there = extract("/proc/self/cwd", tmp_path / "features.h5", client=client)
    assert_equal_stores(extract("/proc/self/cwd", tmp_path / "here.h5"), there)


HERE = b"contents"
SEEN = {
    "same": ({}, {}, None),
    "other size": (
        {"size": 9},
        {"reason": "another file (9 bytes, here 8) on w", "stamp": None, "digest": None},
        "other",
    ),
    "other time": ({"mtime_ns": 2}, {"stamp": "here"}, None),
    "other contents": (
        {"mtime_ns": 2, "data": b"Contents"},
        {"reason": "other contents than here on w", "stamp": None, "digest": None},
        "other",
    ),
    "unreadable": ({"mtime_ns": 2, "data": None, "reason": "unreadable"}, {}, None),
    "damaged": ({"mtime_ns": 2, "reason": "damaged"}, {"stamp": "here"}, None),
    "not found": ({"size": None, "data": None, "reason": "file not found"}, {"reason": "file not found on w"}, "find"),
}


@pytest.mark.parametrize("case", SEEN)
@pytest.mark.parametrize("is_here", [True, False])
def test_what_a_worker_saw_is_held_against_the_file_here(tmp_path, case, is_here):
    path = tmp_path / "a.png"
    path.write_bytes(HERE)
    here, (seen, expected, warned) = distributed.stamp_file(path), SEEN[case]
    seen = {"size": here.size, "mtime_ns": here.mtime_ns, "data": HERE, "reason": None, **seen}
    stamp = None if seen["size"] is None else replace(here, size=seen["size"], mtime_ns=seen["mtime_ns"])
    digest = None if seen["data"] is None else hashlib.sha256(seen["data"]).digest()
    image = LoadedImage(0, stamp, digest, {}, seen["reason"])
    if not is_here:
        path.unlink()
        expected, warned = {"reason": expected["reason"]} if stamp is None else {}, None
    checked, doubt = distributed._check_file(image, str(path), "w")
    assert checked == replace(image, **{**expected, **({"stamp": here} if expected.get("stamp") else {})})
    assert doubt is None if warned is None else warned in doubt


def test_file_that_cannot_be_read_here_is_taken_as_the_worker_saw_it(tmp_path):
    stamp = distributed.stamp_file(tmp_path)
    image = LoadedImage(0, replace(stamp, mtime_ns=2), b"digest", {}, None)
    assert distributed._check_file(image, str(tmp_path), "w") == (image, None)


def test_relative_paths_are_those_of_the_caller(folder, tmp_path, client, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert extract("photos", "features.h5", client=client).blocks["done"].tolist() == [30]


def test_killed_worker_costs_its_shards_alone(folder, tmp_path, client, small_shards, monkeypatch):
    here = extract(folder, tmp_path / "here.h5")
    pids, stored = list(client.run(os.getpid).values()), []
    store = extraction._Run.store

    def kill_once(self, images, *others):
        stored.extend(image.row for image in images)
        outcome = store(self, images, *others)
        if pids:
            os.kill(pids.pop(), signal.SIGKILL)
            pids.clear()
        return outcome

    monkeypatch.setattr(extraction._Run, "store", kill_once)
    there = extract(folder, tmp_path / "there.h5", client=client)
    assert sorted(stored) == list(range(30))  # none twice
    assert_equal_stores(here, there)
    client.wait_for_workers(2)


class LoadedBy:
    """Code of a user's that does something when a worker loads it."""

    def __init__(self, function, *arguments):
        self.way = function, arguments

    def __reduce__(self):
        return self.way


def backbone_with(code):
    network = Network("Mine", code, (16, 16), PREPROCESSINGS["tf"], code, lambda shape: None, lambda: True)
    return deepfeat.Backbone("Mine", weights=None, network=network)


@long
def test_images_that_end_every_worker_are_one_sentence(folder, tmp_path, cluster, client, monkeypatch):
    monkeypatch.setattr(cluster.scheduler, "allowed_failures", 0)
    named = r"images \(\S+000\.png to \S+029\.png\) ended 1 worker\(s\), the last one tcp://.*what is stored stays"
    with pytest.raises(ClusterError, match=named):
        extract(folder, tmp_path / "features.h5", backbone_with(LoadedBy(os._exit, 1)), client=client)
    client.wait_for_workers(2)


class Future:
    def __init__(self, error=None):
        self.status = "error" if error else "pending"
        self.exception = lambda: error


def test_all_shards_that_were_on_dead_workers_are_named():
    killed = [Future(dask_distributed.KilledWorker("task", None, 3)) for _ in range(2)]
    futures = [killed[0], Future(), Future(ValueError()), killed[1]]
    rows = [computation.Wanted(row, f"/{row}.png", {}) for row in range(8)]
    handed = {future: distributed.Shard(rows[2 * n : 2 * n + 2]) for n, future in enumerate(futures)}
    assert distributed._name_killers(handed) == "shard of images (/0.png to /1.png, or /6.png to /7.png)"


def test_backbone_that_workers_cannot_load_is_one_sentence(folder, tmp_path, client):
    mine = backbone_with(LoadedBy(importlib.import_module, "not_there"))
    with pytest.raises(BackboneError, match=r"cannot load Mine: No module named 'not_there'\. Install the module"):
        extract(folder, tmp_path / "features.h5", mine, client=client)


def test_backbone_that_cannot_be_sent_is_one_sentence(folder, tmp_path, client):
    with pytest.raises(BackboneError, match="cannot be sent to the workers"):
        extract(folder, tmp_path / "features.h5", backbone_with(threading.Lock()), client=client)


def test_worker_with_other_weights_is_refused(folder, tmp_path, client, monkeypatch):
    monkeypatch.setattr(deepfeat.Backbone, "weights_digest", lambda self: "sha256:" + "0" * 64)
    with pytest.raises(BackboneError, match="would compute other features of SmallCNN: its weights are random:0"):
        extract(folder, tmp_path / "features.h5", client=client)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc shows each process a folder of its own")
def test_worker_without_the_file_of_weights_is_one_sentence(folder, tmp_path, client, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.weights.h5").write_bytes(b"weights")
    backbone = deepfeat.Backbone("SmallCNN", "/proc/self/cwd/mine.weights.h5", network=small_cnn().network)
    with pytest.raises(
        BackboneError, match=r"cannot read the weights of SmallCNN .*needs the file under the same path"
    ):
        extract(folder, tmp_path / "features.h5", backbone, client=client)


def test_worker_with_another_deepfeat_is_refused(folder, tmp_path, client, monkeypatch):
    monkeypatch.setattr(distributed, "__version__", "99.0")
    with pytest.raises(ClusterError, match=r"and the caller 99\.0: install one version"):
        extract(folder, tmp_path / "features.h5", small_cnn(seed=5), client=client)


@pytest.mark.parametrize("client", ["tcp://127.0.0.1:1", 3])
def test_what_is_no_client_is_refused(folder, tmp_path, client):
    with pytest.raises(UsageError, match=r"pass a distributed\.Client"):
        extract(folder, tmp_path / "features.h5", client=client)


def test_options_are_checked_by_the_workers(folder, tmp_path, client):
    with pytest.raises(UsageError, match="precision is 'float8'"):
        extract(folder, tmp_path / "features.h5", client=client, precision="float8")


def test_lost_scheduler_leaves_a_resumable_store(folder, tmp_path, small_shards, monkeypatch):
    cache, store = tmp_path / "features.h5", extraction._Run.store
    here = extract(folder, tmp_path / "here.h5")
    options = {"n_workers": 1, "processes": False, "dashboard_address": ":0"}
    with dask_distributed.LocalCluster(**options) as short, dask_distributed.Client(short) as client:

        def close_after(self, *given):
            outcome = store(self, *given)
            short.close()
            return outcome

        monkeypatch.setattr(extraction._Run, "store", close_after)
        with pytest.raises(ClusterError, match="the connection to the cluster was lost"):
            extract(folder, cache, client=client)
    monkeypatch.undo()
    assert 0 < deepfeat.open_features(cache).blocks["done"][0] < 30
    assert_equal_stores(here, extract(folder, cache))


class Rescue(logging.Handler):
    """Starts a worker when it is said that there is none."""

    def __init__(self, cluster):
        super().__init__()
        self.cluster = cluster

    def emit(self, record):
        if "the cluster has no workers: waiting for one" in record.getMessage():
            self.cluster.scale(1)


def test_cluster_without_workers_is_waited_for_and_said(folder, tmp_path, small_shards, monkeypatch, caplog):
    monkeypatch.setattr(cluster, "_LOOK", 0.1)
    here, store = extract(folder, tmp_path / "here.h5"), extraction._Run.store
    options = {"n_workers": 1, "threads_per_worker": 1, "processes": False, "dashboard_address": ":0"}
    with dask_distributed.LocalCluster(**options) as short, dask_distributed.Client(short) as client:

        def leave_after(self, *given):
            monkeypatch.setattr(extraction._Run, "store", store)
            short.scale(0)
            while client.nthreads():
                time.sleep(0.02)
            return store(self, *given)

        monkeypatch.setattr(extraction._Run, "store", leave_after)
        rescue = Rescue(short)
        logging.getLogger("deepfeat").addHandler(rescue)
        try:
            there = extract(folder, tmp_path / "there.h5", client=client)
        finally:
            logging.getLogger("deepfeat").removeHandler(rescue)
    assert caplog.text.count("no workers") == 1
    assert_equal_stores(here, there)


@pytest.mark.parametrize(
    ("threads", "times"),
    [([1, 0, 1, 0, 1], 0), ([0, 0, 1, 1], 1), ([1, 0, 0, 0, 0, 0], 1), ([0, 0, 1, 0, 0], 2), ([0], 0)],
)
def test_workers_that_are_gone_for_a_moment_are_not_missed(caplog, threads, times):
    left = [{"worker": 1} if n else {} for n in threads]
    is_over = SimpleNamespace(wait=lambda seconds: not left)
    cluster._look_for_workers(SimpleNamespace(nthreads=lambda: left.pop(0)), is_over)
    assert caplog.text.count("the cluster has no workers: waiting for one") == times


LARGE = small_cnn(pooling=None, input_size=cluster_caller.SIZE)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Images with 40 kB of features each, and these features as this process computes them."""
    folder = tmp_path_factory.mktemp("large")
    save_pictures(folder / "photos", 20, (64, 64))
    for number in range(20, 900):
        os.link(folder / "photos" / f"{number % 20:03d}.png", folder / "photos" / f"{number:03d}.png")
    with pytest.warns(DataWarning, match="equal byte for byte"):
        here = extract(folder / "photos", folder / "here.h5", LARGE)
    return folder / "photos", here


def start_caller(cluster, large, cache):
    program = [sys.executable, cluster_caller.__file__, cluster.scheduler_address, str(large), str(cache)]
    return subprocess.Popen(program, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONWARNINGS": "ignore"})


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells the memory")
def test_memory_of_the_caller_is_bounded(large, tmp_path, cluster):
    photos, here = large
    process = start_caller(cluster, photos, tmp_path / "features.h5")
    taken = int(process.communicate(timeout=120)[0].splitlines()[-1])
    store = deepfeat.open_features(tmp_path / "features.h5")
    assert_equal_stores(here, store)
    n_bytes = 900 * 4 * store.structure.blocks[0].dim
    assert n_bytes > 2**25
    assert taken < n_bytes / 3


def test_killed_caller_leaves_a_resumable_store(large, tmp_path, cluster, client):
    (photos, here), cache = large, tmp_path / "features.h5"
    process = start_caller(cluster, photos, cache)
    for _ in range(8):
        process.stdout.readline()
    process.kill()
    process.communicate()
    done = deepfeat.open_features(cache).blocks["done"][0]
    assert 0 < done < 900
    with pytest.warns(DataWarning, match="equal byte for byte"):
        assert_equal_stores(here, extract(photos, cache, LARGE, client=client))


@pytest.mark.parametrize(
    ("n_bytes", "seconds", "sizes"),
    [
        (1, 0.5, [8, 8]),  # 4 seconds at 2 images a second
        (1, 0.01, [64, 128]),  # no more than twice as many at once
        (1, 100.0, [4, 4]),  # one batch
        (100, 0.01, [8, 8]),  # a thousand bytes, in whole batches
        (400, 0.01, [2, 2]),
        (5000, 0.01, [1, 1]),
        (0, 0.01, [32, 32]),  # no network was needed
    ],
)
def test_shards_are_of_seconds_and_bytes(monkeypatch, n_bytes, seconds, sizes):
    monkeypatch.setattr(distributed, "SHARD_BYTES", 1000)
    shards = distributed._Shards([computation.Wanted(row, "a", {}) for row in range(1000)], 4)
    assert [len(shard.items) for shard in shards.take(2)] == [32, 32]
    output = computation.Output([0], [np.zeros((1, n_bytes), np.uint8)]) if n_bytes else None
    part = computation.Computed([None], [output, None], [None, None])
    found = []
    for _ in sizes:
        shards.learn(distributed.ComputedShard([part], seconds, (), "nowhere"))
        found += [len(shard.items) for shard in shards.take(1)]
    assert found == sizes


def test_nothing_wanted_needs_no_worker():
    job = computation.Job(small_cnn(), "random:0", ("original",), "auto", "float32", "float32", "auto")
    assert list(compute_shards(None, computation.Plan([job], [set()], [False]), [])) == []


def test_command_line_takes_a_scheduler(folder, tmp_path, cluster, capsys, monkeypatch):
    monkeypatch.setattr(cli.options, "_backbone", lambda text, arguments: small_cnn())
    command = ["extract", str(folder), "--backbone", "SmallCNN", "--cache", str(tmp_path / "features.h5"), "--quiet"]
    assert cli.main([*command, "--scheduler", cluster.scheduler_address]) == 0
    assert "30" in capsys.readouterr().out
    assert cli.main([*command, "--scheduler", "nowhere://"]) == 1
    assert "no Dask scheduler answers at 'nowhere://'" in capsys.readouterr().err


def test_missing_package_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(UsageError, match=r"pip install 'deepfeat\[dask\]'"):
        connect("tcp://127.0.0.1:8786")


def test_an_error_of_the_work_itself_is_not_taken_for_a_lost_connection():
    with pytest.raises(RuntimeError, match="mine"), clear_failures(SimpleNamespace(status="running"), "task", "again"):
        raise RuntimeError("mine")


def test_workers_without_deepfeat_are_named(caplog):
    def fail():
        raise ImportError("No module named 'deepfeat'")

    nobody = SimpleNamespace(
        status="running", nthreads=dict, submit=lambda *a, **o: SimpleNamespace(result=fail), asynchronous=False
    )
    with pytest.raises(ClusterError, match=r"workers cannot import deepfeat .*: install deepfeat"):
        resolve_on_worker(nobody, "auto", "auto")
    assert "the cluster has no workers: waiting for one" in caplog.text
