from __future__ import annotations

import errno
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import faults
import h5py
import numpy as np
import pytest

import deepfeat
from deepfeat.errors import DamageError, DeepfeatError, LockedError, StoreError
from deepfeat.store import DONE, RECORD, StoreWriter, block_key, lock, writing
from deepfeat.store.journal import journal_path
from deepfeat.store.layout import write_empty
from deepfeat.store.lock import Lock, Owner, lock_path, read_owner

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="these faults are made with fork, which is not here")

KEYS = [block_key(spec) for spec in faults.SPECS]
#: Longer under `make test-faults`.
KILLS = int(os.environ.get("DEEPFEAT_KILLS", "60"))
MUTATIONS = int(os.environ.get("DEEPFEAT_MUTATIONS", "400"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The store of uninterrupted work."""
    path = tmp_path_factory.mktemp("whole") / "features.h5"
    faults.work(path)
    return deepfeat.open_features(path)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "features.h5"


@pytest.fixture(scope="module")
def n_steps(tmp_path_factory):
    with faults.counting(faults.Steps(None)) as steps:
        faults.work(tmp_path_factory.mktemp("count") / "features.h5")
    return steps.taken


def assert_equal(store, whole):
    assert store.table.equals(whole.table)
    assert store.blocks["key"].tolist() == whole.blocks["key"].tolist()
    for key in KEYS:
        np.testing.assert_array_equal(store.records(key), whole.records(key))
        np.testing.assert_array_equal(store.features(key), whole.features(key))


def committed(store):
    """Batches that are done, after a check of every done row."""
    batches = set()
    for number, key in enumerate(KEYS):
        if store.has_block(key):
            done = np.flatnonzero(store.records(key)["state"] == DONE)
            ids = store.table["image_id"].to_numpy(object)[done]
            stored = store.features(key, ids)
            for row, values in zip(done, stored, strict=True):
                expected = faults.features(number, range(row, row + 1))[0]
                np.testing.assert_array_equal(values, expected.astype(["<f4", "<f2"][number]))
            batches |= {(number, int(start)) for start in done[:: faults.BATCH]}
    return batches


# Killed


def test_killed_at_random_moments_loses_at_most_the_batch_in_flight(tmp_path, whole, n_steps):
    """0 stores unreadable, 0 committed rows lost or changed, the resumed file equal to an uninterrupted one."""
    draw = random.Random(0)
    for number in range(KILLS):
        path = tmp_path / f"{number}.h5"
        told = faults.work_until_killed(path, draw.randrange(n_steps))
        if path.exists():
            done = committed(deepfeat.open_features(path))
            assert told <= done, "a finished batch was lost"
            assert len(done - told) <= 1
        else:
            assert not told
        faults.work(path)
        assert_equal(deepfeat.open_features(path), whole)
        assert [p.name for p in tmp_path.glob(f"*{number}.h5*")] == [path.name]
        path.unlink()


def test_killed_in_each_step_of_a_journal(tmp_path, whole, n_steps):
    """The first steps make the store and its first journal; every kind of step is among them."""
    for budget in [*range(0, 60, 7), *range(4000, 4200, 23)]:
        path = tmp_path / f"{budget}.h5"
        faults.work_until_killed(path, budget)
        faults.work(path)
        assert_equal(deepfeat.open_features(path), whole)


def test_killed_again_while_it_recovers(path, whole, n_steps):
    draw = random.Random(1)
    for _ in range(12):
        try:
            faults.work_until_killed(path, draw.randrange(2000, n_steps // 3))
        except AssertionError:
            break
    faults.work(path)
    assert_equal(deepfeat.open_features(path), whole)


def test_complete_journal_is_read_through_before_it_is_carried_out(path, whole):
    """A writer died between the journal and the file: readers see the new structure, the file is not touched."""
    faults.work(path)
    before = path.read_bytes()
    with StoreWriter(path) as writer:
        writer.add_images(faults.table(40).assign(label="new"))
    after = path.read_bytes()
    make_journal(path, before, after)
    assert set(deepfeat.open_features(path).table["label"]) == {"new"}
    assert path.read_bytes() == before
    with StoreWriter(path):
        pass
    assert path.read_bytes() == after
    assert not journal_path(path).exists()


@pytest.fixture
def change(path):
    """A file before and after a structural change."""
    with StoreWriter(path) as writer:
        writer.add_images(faults.table(24))
        block = writer.add_block(faults.SPECS[1], (33,), {})
        writer.write(block, range(4), faults.features(1, range(4)), faults.records(range(4)))
    before = path.read_bytes()
    with StoreWriter(path) as writer:
        writer.add_images(faults.table(40).assign(label="new"))
    return before, path.read_bytes()


def test_journal_that_was_partly_carried_out_is_carried_out(path, change):
    before, after = change
    for cut in [*range(0, len(after), len(after) // 20), len(after)]:
        make_journal(path, before, after)
        path.write_bytes(after[:cut] + before[cut:])
        with StoreWriter(path):
            pass
        assert path.read_bytes() == after


def test_journal_of_another_file_is_refused(path, change):
    """Somebody puts a backup in the place of a file whose last change is not carried out."""
    before, after = change
    for backup in (before[:4096].replace(b"OHDR", b"ohdr") + before[4096:], writing_alone(path.with_name("backup.h5"))):
        make_journal(path, before, after)
        path.write_bytes(backup)
        for opens in (deepfeat.open_features, lambda path: StoreWriter(path).__enter__()):
            with pytest.raises(
                StoreError, match=r"features\.h5\.journal is a change of another file than .*: remove it if"
            ):
                opens(path)
        assert path.read_bytes() == backup
    journal_path(path).unlink()
    assert deepfeat.open_features(path).n_images == 3


def writing_alone(path):
    with StoreWriter(path) as writer:
        writer.add_images(faults.table(3))
    return path.read_bytes()


def test_journal_of_a_store_that_was_deleted_is_not_carried_out_in_a_new_one(path, change):
    make_journal(path, *change)
    path.unlink()
    with StoreWriter(path) as writer:
        assert writer.store.n_images == 0
    assert not journal_path(path).exists()


def test_journal_of_an_earlier_version_is_carried_out(path, change, monkeypatch):
    """It does not say what the pages were before."""
    from deepfeat.store import journal

    monkeypatch.setattr(journal.Overlay, "before", lambda overlay: [])
    make_journal(path, *change)
    with StoreWriter(path):
        pass
    assert path.read_bytes() == change[1]


def test_journal_that_a_writer_carried_out_while_it_was_read_is_as_none(path, change, monkeypatch):
    from deepfeat.store import journal

    make_journal(path, *change)
    seen = [journal._read_journal(path), None, None]
    path.write_bytes(writing_alone(path.with_name("other.h5")))
    monkeypatch.setattr(journal, "_read_journal", lambda path: seen.pop(0))
    assert deepfeat.open_features(path).n_images == 3


def make_journal(path, before, after):
    from deepfeat.store import journal

    path.write_bytes(before)
    with open(path, "rb") as base:
        overlay = journal.Overlay(base)
        assert (overlay.readable(), overlay.writable(), overlay.seekable()) == (True, True, True)
        overlay.write(after)
        journal._write_journal(path, overlay)


@pytest.mark.parametrize("keep", [0, 10, 100, 5000, -1])
def test_incomplete_journal_is_as_none(path, whole, keep):
    faults.work(path)
    journal_path(path).write_bytes(b"deepfeat journal 1\n".ljust(9000, b"x")[:keep])
    assert_equal(deepfeat.open_features(path), whole)
    faults.work(path)
    assert not journal_path(path).exists()
    assert_equal(deepfeat.open_features(path), whole)


# Errors


def test_full_disk_at_random_moments_is_an_error_and_work_goes_on_later(tmp_path, whole, n_steps):
    draw = random.Random(2)
    for number in range(40):
        path = tmp_path / f"{number}.h5"
        budget = draw.randrange(n_steps)
        with faults.counting(faults.Steps(budget, error=True)), pytest.raises((OSError, StoreError), match="No space"):
            faults.work(path)
        if path.exists():
            committed(deepfeat.open_features(path))
        faults.work(path)
        assert_equal(deepfeat.open_features(path), whole)
        path.unlink()


def test_power_failure_that_kept_records_and_lost_their_features(path, whole, n_steps):
    """The worst order: records reached the disk, features since the last commit point did not."""
    faults.work_until_killed(path, n_steps * 2 // 3)
    store = deepfeat.open_features(path)
    done = sorted(committed(store))
    assert len(done) > 4
    block = store.find(KEYS[0])
    with open(path, "r+b") as file:
        for _, start in done[-3:]:
            file.seek(block.segments[0].features.offset + start * 700 * 4)
            file.write(bytes(faults.BATCH * 700 * 4))
    with pytest.raises(DamageError, match="12 row"):
        deepfeat.open_features(path).features(KEYS[0], store.ready(KEYS[0]))
    faults.work(path)
    assert_equal(deepfeat.open_features(path), whole)


def test_commit_that_fails_in_the_background_is_an_error(path, whole, monkeypatch):
    """A disk that cannot keep what it was given says so at a sync; nobody may go on as if nothing had happened."""

    def fail(file):
        raise OSError(errno.EIO, "Input/output error")

    StoreWriter(path).__enter__().__exit__()
    monkeypatch.setattr(writing, "COMMIT_BYTES", 1)
    monkeypatch.setattr(writing, "sync", fail)
    with pytest.raises(OSError, match="Input/output error"):
        faults.work(path)
    monkeypatch.undo()
    faults.work(path)
    assert_equal(deepfeat.open_features(path), whole)


def test_exception_in_the_middle_leaves_a_store_that_goes_on(path, whole):
    def stop_after_a_batch():
        with StoreWriter(path) as writer:
            writer.add_images(faults.table(24))
            block = writer.add_block(faults.SPECS[0], (700,), {"keras": "3"})
            writer.write(block, range(4), faults.features(0, range(4)), faults.records(range(4)))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        stop_after_a_batch()
    assert committed(deepfeat.open_features(path)) == {(0, 0)}
    faults.work(path)
    assert_equal(deepfeat.open_features(path), whole)


# Damage


def test_flipped_bit_is_found_named_repaired_and_computed_again(path, whole):
    faults.work(path)
    store = deepfeat.open_features(path)
    segment = store.find("NetA").segments[1]
    with open(path, "r+b") as file:
        file.seek(segment.features.offset + 2 * 2800 + 17)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 4]))
    fresh = deepfeat.open_features(path)
    others = [i for i in fresh.table["image_id"] if i != "image 026"]
    np.testing.assert_array_equal(fresh.features("NetA", others), whole.features("NetA", others))
    with pytest.raises(
        DamageError, match=r"1 row\(s\) of NetA .*\('image 026'\): run `deepfeat store verify --repair`"
    ):
        fresh.features("NetA")
    damaged = deepfeat.verify_features(path)
    assert damaged[["block", "image_id"]].to_numpy().tolist() == [["NetA", "image 026"]]
    assert len(deepfeat.verify_features(path, repair=True)) == 1
    repaired = deepfeat.open_features(path)
    assert repaired.blocks.set_index("name")["missing"].to_dict() == {"NetA": 1, "NetB:top": 0}
    assert deepfeat.verify_features(path).empty
    faults.work(path)
    assert_equal(deepfeat.open_features(path), whole)


@pytest.mark.parametrize("field", ["state", "digest", "checksum", "seal", "reason"])
def test_flipped_bit_in_a_record_is_found(path, whole, field):
    faults.work(path)
    segment = deepfeat.open_features(path).find("NetB").segments[0]
    with open(path, "r+b") as file:
        place = segment.records.offset + 5 * RECORD.itemsize + RECORD.fields[field][1]
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 2]))
    store = deepfeat.open_features(path)
    with pytest.raises(DamageError, match="'image 005'"):
        store.features("NetB")
    np.testing.assert_array_equal(store.features("NetA"), whole.features("NetA"))
    deepfeat.verify_features(path, repair=True)
    faults.work(path)
    assert_equal(deepfeat.open_features(path), whole)


def test_swapped_rows_with_their_records_are_found(path, whole):
    """Features and records moved together would be the wrong image's, with matching checksums."""
    faults.work(path)
    segment = deepfeat.open_features(path).find("NetA").segments[0]
    with open(path, "r+b") as file:
        for place, width in ((segment.features, 2800), (segment.records, RECORD.itemsize)):
            file.seek(place.offset)
            rows = file.read(2 * width)
            file.seek(place.offset)
            file.write(rows[width:] + rows[:width])
    with pytest.raises(DamageError, match="2 row"):
        deepfeat.open_features(path).features("NetA")


def mutate(data: bytes, draw: random.Random) -> bytes:
    kind = draw.choice(["flip", "flip", "flips", "cut", "swap", "zero", "noise", "insert"])
    changed = bytearray(data)
    at = draw.randrange(len(data))
    if kind == "flip":
        changed[at] ^= 1 << draw.randrange(8)
    elif kind == "flips":
        for _ in range(draw.randrange(2, 40)):
            changed[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    elif kind == "cut":
        del changed[at:]
    elif kind == "insert":
        changed[at:at] = draw.randbytes(draw.randrange(1, 64))
    elif kind == "swap":
        size = draw.choice([64, 512, 4096])
        a, b = (draw.randrange(len(data) // size) * size for _ in range(2))
        changed[a : a + size], changed[b : b + size] = data[b : b + size], data[a : a + size]
    else:
        length = draw.choice([8, 512, 4096])
        changed[at : at + length] = bytes(length) if kind == "zero" else draw.randbytes(length)
    return bytes(changed)


def read_everything(path: Path, whole, expected) -> str:
    """Read a mutated store; whatever it returns must be right."""
    try:
        store = deepfeat.open_features(path)
        table = store.table.set_index("image_id")
    except DeepfeatError:
        return "refused"
    assert table.equals(whole.table.set_index("image_id")) or not len(table)
    outcome = "right"
    for name in ("NetA", "NetB"):
        try:
            ready = store.ready(name)
            values = store.features(name, ready)
        except DeepfeatError:
            outcome = "refused"
            continue
        np.testing.assert_array_equal(values, expected[name].loc[ready])
    return outcome


def test_mutated_files_never_crash_and_never_give_a_wrong_row(path, whole):
    data = whole.path.read_bytes()
    expected = {name: whole.to_frame(name).iloc[:, 3:] for name in ("NetA", "NetB")}
    size = 100
    counts = {"right": 0, "refused": 0}
    for chunk in range(-(-MUTATIONS // size)):
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            try:
                outcomes = {"right": 0, "refused": 0}
                for number in range(size):
                    path.write_bytes(mutate(data, random.Random(f"{chunk} {number}")))
                    outcomes[read_everything(path, whole, expected)] += 1
                os.write(writer, json.dumps(outcomes).encode())
            except BaseException as error:
                os.write(writer, json.dumps({"problem": f"{chunk} {number}: {error!r}"[:4000]}).encode())
            finally:
                os._exit(0)
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            answer = pipe.read()
        _, status = os.waitpid(child, 0)
        assert not os.WIFSIGNALED(status), f"the interpreter crashed in chunk {chunk}"
        outcomes = json.loads(answer)
        assert "problem" not in outcomes, outcomes
        for outcome, count in outcomes.items():
            counts[outcome] += count
    assert min(counts.values()) > MUTATIONS / 50, counts


# Locks


def child_that_holds(path, end):
    """Fork a process that takes the lock; it lives until told, or dies at once."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            Lock(path).__enter__()
            os.write(writer, b"x")
            if end == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)
        finally:
            os._exit(0)
    os.read(reader, 1)
    os.close(reader)
    os.close(writer)
    return child


def test_second_writer_is_refused_and_told_who_the_first_is(path):
    faults.work(path)
    child = child_that_holds(path, "live")
    try:
        with (
            pytest.raises(LockedError, match=rf"being written by process {child} on .+ since 20\d\d-.*\.lock"),
            StoreWriter(path),
        ):
            pass
        assert deepfeat.open_features(path).n_images == 40
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_writer_in_the_same_process_is_refused(path):
    with StoreWriter(path), pytest.raises(LockedError, match=str(os.getpid())), StoreWriter(path):
        pass
    assert not lock_path(path).exists()


def test_lock_of_a_dead_process_is_free(path):
    child = child_that_holds(path, "kill")
    os.waitpid(child, 0)
    assert lock_path(path).exists()
    with Lock(path) as held:
        assert held.inherited
    assert not lock_path(path).exists()


def write_owner(path, **changes):
    owner = {
        "host": "elsewhere",
        "pid": 1,
        "started": "",
        "since": "2026-01-01T00:00:00+00:00",
        "token": "t",
        **changes,
    }
    lock_path(path).write_text(json.dumps(owner), encoding="utf-8")


def test_lock_of_a_process_id_that_is_used_again_is_free(path):
    with Lock(path):
        owner = asdict(read_owner(lock_path(path)))
    write_owner(path, **owner | {"started": "another boot 7"})
    with Lock(path) as held:
        assert held.inherited


@pytest.mark.parametrize("namespace", [{"namespace": "pid:[1]"}, {}], ids=["another", "of an earlier version"])
def test_lock_of_another_container_counts_while_it_gives_signs_of_life(path, namespace):
    """Its process ids are not those of this one, though both are on one host."""
    write_owner(path, host=socket.gethostname(), pid=2**22 + 1, **namespace)
    with pytest.raises(LockedError, match="being written by process"), Lock(path):
        pass
    silence(path)
    with Lock(path) as held:
        assert held.inherited


def silence(path):
    silent = time.time() - lock.SILENCE - 10
    os.utime(lock_path(path), (silent, silent))


def test_lock_of_another_machine_counts_while_it_gives_signs_of_life(path):
    write_owner(path)
    with pytest.raises(LockedError, match="process 1 on elsewhere since 2026-01-01"), Lock(path):
        pass
    silence(path)
    with Lock(path) as held:
        assert held.inherited


def test_lock_gives_signs_of_life(path, monkeypatch):
    monkeypatch.setattr(lock, "HEARTBEAT", 0.01)
    with Lock(path):
        os.utime(lock_path(path), (1, 1))
        deadline = time.monotonic() + 10
        while lock_path(path).stat().st_mtime < 100 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert lock_path(path).stat().st_mtime > 100


@pytest.mark.parametrize("content", [b"", b"\xff\xfe"])
def test_lock_that_nobody_can_read_counts_until_it_was_silent_for_long(path, content):
    """Without hard links, a lock is there before it says whose it is."""
    lock_path(path).write_bytes(content)
    with pytest.raises(LockedError, match="being written by a process that it does not name"), Lock(path):
        pass
    silence(path)
    with Lock(path) as held:
        assert held.inherited


def test_lock_that_was_just_made_is_not_taken_for_the_one_that_was_silent(path):
    """Another process removed that one first, and has not yet said whose the new one is."""
    lock_path(path).touch()
    Lock(path)._remove(None)
    assert lock_path(path).exists()


def test_lock_without_hard_links(path, monkeypatch):
    def refuse(*args):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with Lock(path):
        assert read_owner(lock_path(path)).pid == os.getpid()
        with pytest.raises(LockedError), Lock(path):
            pass
    assert not lock_path(path).exists()


def test_lock_of_another_user_counts(path, monkeypatch):
    def forbid(pid, signal):
        raise PermissionError

    with Lock(path):
        monkeypatch.setattr(os, "kill", forbid)
        with pytest.raises(LockedError), Lock(path):
            pass


def test_lock_where_nothing_can_be_written(path, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(StoreError, match="cannot be locked for writing: Read-only file system"), Lock(path):
        pass


def test_lock_that_its_owner_removed_meanwhile_is_free(path):
    Lock(path)._remove(None)
    with Lock(path) as held:
        assert not held.inherited


def test_lock_that_was_taken_over_is_left_to_its_new_owner(path):
    with Lock(path):
        other = replace(read_owner(lock_path(path)), token="another")
        lock_path(path).write_text(json.dumps(asdict(other)))
    assert read_owner(lock_path(path)) == other


def test_age_of_a_lock_where_nothing_can_be_written(path, monkeypatch):
    def fail(*_, **__):
        raise OSError

    lock_path(path).write_text("")
    os.utime(lock_path(path), (time.time() - 100, time.time() - 100))
    monkeypatch.setattr(Path, "touch", fail)
    assert 99 < lock._age(lock_path(path)) < 120
    lock_path(path).unlink()
    assert lock._age(lock_path(path)) == 0


def test_lock_taken_by_another_meanwhile_is_put_back(path):
    write_owner(path, token="new")
    stale = Owner("elsewhere", 1, "", "2026-01-01T00:00:00+00:00", "old")
    Lock(path)._remove(stale)
    assert read_owner(lock_path(path)).token == "new"


def test_only_one_of_many_gets_an_abandoned_lock(path):
    """Eight processes run for the lock of a dead one; never do two hold it."""
    write_owner(path)
    os.utime(lock_path(path), (1, 1))
    log = os.open(path.with_suffix(".log"), os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    children = []
    for _ in range(8):
        child = os.fork()
        if not child:
            try:
                for _ in range(20):
                    try:
                        with Lock(path):
                            os.write(log, b"(")
                            time.sleep(0.001)
                            os.write(log, b")")
                    except LockedError:
                        time.sleep(0.002)
            finally:
                os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    written = path.with_suffix(".log").read_text()
    assert len(written) >= 2
    assert written == "()" * (len(written) // 2)


def test_readers_meanwhile_see_committed_rows_only(path, whole):
    """Other processes read all the time while a store is made, grows and gets new blocks."""
    children = []
    for _ in range(2):
        child = os.fork()
        if not child:
            status = 1
            try:
                seen, deadline = 0, time.monotonic() + 60
                while seen < 20 and time.monotonic() < deadline:
                    if path.exists():
                        seen = max(seen, len(committed(deepfeat.open_features(path))))
                status = 0 if seen == 20 else 2
            finally:
                os._exit(status)
        children.append(child)
    for _ in range(2):
        faults.work(path)
        time.sleep(0.05)
    for child in children:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# Hostile files


def edit(path, change):
    with h5py.File(path, "r+", libver="v110") as file:
        change(file, file[f"blocks/{KEYS[0]}"])


def replaced(group, name, **options):
    data = group[name][()]
    del group[name]
    group.create_dataset(name, data=data, **options)


def external_link(file, block):
    del file["images/label"]
    file["images/label"] = h5py.ExternalLink("other.h5", "/images/label")


def external_link_to_features(file, block):
    del block["segments/000000/features"]
    block["segments/000000/features"] = h5py.ExternalLink("other.h5", "/x")


def soft_link(file, block):
    del file["images/label"]
    file["images/label"] = h5py.SoftLink("/images/group")


def virtual_source(file, block):
    layout = h5py.VirtualLayout((24, 700), "<f4")
    layout[:] = h5py.VirtualSource("other.h5", "x", (24, 700))
    del block["segments/000000/features"]
    block.create_virtual_dataset("segments/000000/features", layout)


def external_storage(file, block):
    del block["segments/000000/features"]
    block.create_dataset("segments/000000/features", (24, 700), "<f4", external=[("/etc/passwd", 0, 24 * 2800)])


def object_reference(file, block):
    block.attrs["shape"] = file["images"].ref


def variable_text(file, block):
    block.attrs["spec"] = "{}"


def absurd_count(file, block):
    file["images"].attrs["count"] = 10**15


def absurd_features(file, block):
    del block["segments/000000/features"]
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_LATE)
    block.create_dataset("segments/000000/features", (24, 700), "<f4", dcpl=properties)


def absurd_shape(file, block):
    block.attrs["shape"] = np.array([2**40], np.int64)


def negative_shape(file, block):
    block.attrs["shape"] = np.array([-700], np.int64)


def compressed(file, block):
    replaced(block["segments/000000"], "features", compression="gzip", compression_opts=9)


def other_type(file, block):
    replaced(block["segments/000000"], "features", dtype=">f8")


def text_under_another_name(file, block):
    file["images/label"].move("utf8", "x")


def segments_that_overlap(file, block):
    block["segments/000001"].attrs["start"] = 3


def segments_beyond_the_table(file, block):
    block.copy("segments/000001", "segments/000002")
    block["segments/000002"].attrs["start"] = 40


def group_instead_of_rows(file, block):
    del block["segments/000000/records"]
    block.create_group("segments/000000/records")


def rows_instead_of_group(file, block):
    del file["images"]
    file["images"] = np.arange(3)


def group_in_itself(file, block):
    del block["segments"]
    block["segments"] = block


def offsets_beyond_the_text(file, block):
    file["images/label/offsets"][-1] = 10**12


@pytest.mark.parametrize(
    "change",
    [
        external_link,
        external_link_to_features,
        soft_link,
        virtual_source,
        external_storage,
        object_reference,
        variable_text,
        absurd_count,
        absurd_features,
        absurd_shape,
        negative_shape,
        compressed,
        other_type,
        text_under_another_name,
        segments_that_overlap,
        segments_beyond_the_table,
        group_instead_of_rows,
        rows_instead_of_group,
        group_in_itself,
        offsets_beyond_the_text,
    ],
)
def test_hostile_file_is_refused_with_a_sentence(path, change):
    faults.work(path)
    edit(path, change)
    with pytest.raises(DamageError) as caught:
        _ = deepfeat.open_features(path).table
    assert str(caught.value).startswith(f"{path} is damaged: ")
    assert "\n" not in str(caught.value)


def test_claims_are_not_allocated(path):
    """A file that claims a petabyte is refused in the memory that a small store takes."""
    faults.work(path)
    edit(path, absurd_count)
    code = (
        "import resource, sys, deepfeat, deepfeat.store\n"
        "resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))\n"
        f"try: deepfeat.open_features({str(path)!r})\n"
        "except deepfeat.DamageError: print('refused')"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "refused\n"


def test_newer_format_is_refused_with_a_sentence(path):
    with h5py.File(path, "w", libver="v110") as file:
        write_empty(file)
        file.attrs["format_version"] = 7
    with pytest.raises(StoreError, match="has format version 7, and this deepfeat reads version 1: upgrade deepfeat"):
        deepfeat.open_features(path)
