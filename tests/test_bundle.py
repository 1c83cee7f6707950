from __future__ import annotations

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from dataclasses import replace

import h5py
import numpy as np
import pytest
import skops.io
from sklearn.base import clone
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

import deepfeat
from deepfeat import archives, bundle
from deepfeat.archives import AuditError, audit_weights
from deepfeat.bundle import DESCRIPTION, PIPELINE, _digest, _sha256, read_bundle
from deepfeat.estimators import check_estimators

RAN = "DEEPFEAT_TEST_CODE_RAN"


class Bomb:
    """A pickle of it runs code when it is loaded."""

    def __reduce__(self):
        return (os.putenv, (RAN, "1"))


@pytest.fixture(scope="module")
def store(tmp_path_factory, build_store, make_table, make_spec):
    labels = [("A", "B", "C")[i % 3] for i in range(60)]
    rng = np.random.default_rng(0)
    features = rng.normal(size=(60, 6)).astype(np.float32)
    features[:, 0] += np.array([0, 2, 4])[np.arange(60) % 3]
    blocks = [(make_spec("NetA"), features), (make_spec("NetB"), rng.normal(size=(60, 4)).astype(np.float32))]
    return build_store(tmp_path_factory.mktemp("store") / "f.h5", make_table(60, label=labels), blocks)


@pytest.fixture(scope="module")
def results(store):
    fit = {"test": None, "cv": 3}
    return {
        "linear": deepfeat.fit_svm(store, param_grid={"C": [0.1]}, calibrate=True, **fit),
        "rbf": deepfeat.fit_svm(store, kernel="rbf", param_grid={"C": [1.0], "gamma": [0.1]}, **fit),
    }


@pytest.fixture(scope="module")
def saved(results, tmp_path_factory):
    """The members of sound files by the kernel of their SVM."""
    members = {}
    for kernel, result in results.items():
        path = tmp_path_factory.mktemp("saved") / "a.deepfeat"
        result.save(path)
        with zipfile.ZipFile(path) as archive:
            members[kernel] = {name: archive.read(name) for name in archive.namelist()}
    return members


def zipped(members, compression=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def sealed(members, /, **changes):
    """Members with the digests of what they are now: what a forger with this source at hand would write."""
    record = {**json.loads(members[DESCRIPTION]), **changes}
    if "members" not in changes:
        others = {name: data for name, data in members.items() if name != DESCRIPTION}
        record["members"] = {name: {"size": len(data), "sha256": _sha256(data)} for name, data in others.items()}
    record["digest"] = _digest(record)
    return {**members, DESCRIPTION: json.dumps(record).encode()}


def describe(**changes):
    return lambda members: zipped(sealed(members, **changes))


def edit_record(change):
    """Change the description itself, without new digests."""

    def make(members):
        record = json.loads(members[DESCRIPTION])
        change(record)
        return zipped({**members, DESCRIPTION: json.dumps(record).encode()})

    return make


def edit_text(data):
    return lambda members: zipped({**members, DESCRIPTION: data})


def add(name, data, seal=True):
    def make(members):
        more = {**members, name: data}
        return zipped(sealed(more) if seal else more)

    return make


def inner(change):
    """Change the members of the skops file of the pipeline."""

    def make(members):
        with zipfile.ZipFile(io.BytesIO(members[PIPELINE])) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        changed = change(parts)
        return zipped(sealed({**members, PIPELINE: changed if isinstance(changed, bytes) else zipped(changed)}))

    return make


def schema(change):
    def edit(parts):
        tree = json.loads(parts["schema.json"])
        return {**parts, "schema.json": json.dumps(change(tree) or tree).encode()}

    return inner(edit)


def first_array(data):
    def edit(parts):
        name = next(name for name in parts if name.endswith(".npy"))
        return {**parts, name: data}

    return inner(edit)


def nodes(tree):
    if isinstance(tree, dict):
        if "__loader__" in tree:
            yield tree
        for value in tree.values():
            yield from nodes(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from nodes(value)


def replace_svm(**changes):
    def change(tree):
        node = next(n for n in nodes(tree) if n["__class__"] in ("LinearSVC", "SVC"))
        node.update(changes)

    return schema(change)


def attribute(name, value):
    """Give an attribute of the SVM, or of the pipeline, another value."""

    def change(tree):
        holder = next(n for n in nodes(tree) if n["__loader__"] == "DictNode" and name in n["content"])
        text = {"__class__": "str", "__module__": "builtins", "__loader__": "JsonNode", "is_json": True}
        holder["content"][name] = {**text, "content": json.dumps(value)}

    return schema(change)


def array_attribute(name, array):
    def edit(parts):
        tree = json.loads(parts["schema.json"])
        holder = next(n for n in nodes(tree) if n["__loader__"] == "DictNode" and name in n["content"])
        return {**parts, holder["content"][name]["file"]: npy(array)}

    return inner(edit)


def npy(array, version=None, allow_pickle=False):
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, version, allow_pickle)
    return buffer.getvalue()


def npy_header(shape, descr="<f8", data=b""):
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": descr, "fortran_order": False, "shape": shape})
    return buffer.getvalue() + data


def function_node(module, name):
    return {"__class__": name, "__module__": module, "__loader__": "FunctionNode", "__id__": 1}


def instead(node):
    return schema(lambda tree: {**node, "protocol": 2, "_skops_version": tree["_skops_version"]})


def reduced(module, name):
    node = {"__class__": name, "__module__": module, "__loader__": "ConstructorFromReduceNode"}
    text = {"__class__": "str", "__module__": "builtins", "__loader__": "JsonNode", "content": '"true"'}
    return instead({**node, "content": {**text, "is_json": True}})


def twice(members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in members:
            archive.writestr(name, members[name])
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr(PIPELINE, members[PIPELINE])
    return buffer.getvalue()


def directory_of(data):
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return archive.start_dir


def encrypted(members):
    data = bytearray(zipped(members))
    data[directory_of(data) + 8] |= 1
    return bytes(data)


def later_zip(members):
    """The directory says that a later version of the format is needed."""
    data = bytearray(zipped(members))
    data[directory_of(data) + 6] = 99
    return bytes(data)


def lonely_array(tree):
    next(node for node in nodes(tree) if node["__loader__"] == "NdArrayNode")["file"] = "missing.npy"


def text_that_is_a_number(tree):
    next(node for node in nodes(tree) if node["__loader__"] == "JsonNode")["content"] = 1


def claiming(size):
    """The directory says that the first member is larger than the file."""

    def make(members):
        data = bytearray(zipped(members))
        place = directory_of(data) + 20
        data[place : place + 8] = struct.pack("<II", size, size)
        return bytes(data)

    return make


def keras_file(class_name="Dense", module="keras.layers", weights=None, compression=zipfile.ZIP_STORED, **members):
    layer = {"module": module, "class_name": class_name, "config": {"name": "x"}, "registered_name": None}
    config = {"module": "keras", "class_name": "Functional", "config": {"name": "net", "layers": [layer]}}
    weights = hdf5(lambda file: file.create_dataset("vars/0", data=[1.0])) if weights is None else weights
    parts = {"config.json": json.dumps(config).encode(), "metadata.json": b"{}", "model.weights.h5": weights}
    return zipped({**parts, **members}, compression)


def hdf5(fill):
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        fill(file)
    return buffer.getvalue()


def weights(data, ending=".keras"):
    return add(f"weights/{_sha256(data)}{ending}", data)


def external_link(file):
    file["secret"] = h5py.ExternalLink("/etc/passwd", "/")


def external_data(file):
    file.create_dataset("secret", (4,), "u1", external=[("/etc/passwd", 0, 4)])


def lies_of_size(record):
    record["members"][PIPELINE]["size"] += 1


def lies_of_digest(record):
    record["members"][PIPELINE]["sha256"] = "0" * 64


def other_threshold(record):
    record["threshold"] = 0.5


def other_block(members):
    blocks = json.loads(members[DESCRIPTION])["blocks"]
    blocks[0]["spec"]["resize"] = "crop"
    return zipped(sealed(members, blocks=blocks))


def larger_images(members):
    blocks = json.loads(members[DESCRIPTION])["blocks"]
    blocks[0]["spec"]["input_size"] = [100_000, 100_000]
    blocks[0]["key"] = deepfeat.store.block_key(blocks[0]["spec"])
    return zipped(sealed(members, blocks=blocks))


def wider_block(members):
    blocks = json.loads(members[DESCRIPTION])["blocks"]
    blocks[0]["dim"] += 1
    return zipped(sealed(members, blocks=blocks))


def without_pipeline(members):
    return zipped(sealed({name: data for name, data in members.items() if name != PIPELINE}))


def cut(members):
    data = zipped(members)
    return data[: len(data) // 2]


def flipped(members):
    data = bytearray(zipped(members))
    data[data.index(b"\x93NUMPY") + 200] ^= 1
    return bytes(data)


def cycle(tree):
    tree["content"]["content"]["steps"]["content"][0]["__id__"] = tree["__id__"]


HOSTILE = {
    "an empty file": (lambda members: b"", "not a whole zip archive"),
    "a pickle": (lambda members: pickle.dumps(Bomb()), "not a whole zip archive"),
    "half of a file": (cut, "not a whole zip archive"),
    "a flipped bit": (flipped, "not a whole zip archive|another content"),
    "a zip archive of something else": (lambda members: zipped({"a.txt": b"a"}), "'a.txt', which does not belong"),
    "an empty archive": (lambda members: zipped({}), "has no deepfeat.json"),
    "a pickle as a member": (add("model.pkl", pickle.dumps(Bomb())), "'model.pkl', which does not belong"),
    "a joblib file as a member": (add("pipeline.joblib", b""), "'pipeline.joblib', which does not belong"),
    "a member above the folder": (add("../../evil.py", b""), "'../../evil.py', which does not belong"),
    "a member at the root": (add("/etc/cron.d/evil", b""), "which does not belong"),
    "a member by a drive's letter": (add("C:\\evil.dll", b""), "which does not belong"),
    "weights above the folder": (add(f"weights/../{'0' * 64}.keras", b""), "which does not belong"),
    "weights with a zero in their name": (add(f"weights/{'0' * 64}.keras\0.py", b""), "does not belong|not named"),
    "a member twice": (twice, "two members 'pipeline.skops'"),
    "a compressed bomb": (
        lambda members: zipped({**members, PIPELINE: bytes(10**8)}, zipfile.ZIP_DEFLATED),
        "is compressed",
    ),
    "a compressed bomb in the skops file": (
        inner(lambda parts: zipped({**parts, "1.npy": bytes(10**8)}, zipfile.ZIP_DEFLATED)),
        "is compressed",
    ),
    "a member larger than the file": (claiming(2**31), "larger together than the file|not a whole zip"),
    "an encrypted member": (encrypted, "is encrypted"),
    "a zip archive of a later version": (later_zip, "that cannot be read (zip file version"),
    "a thousand members": (
        lambda members: zipped(members | {f"{i}": b"" for i in range(5000)}),
        "at most 4096 are read",
    ),
    "an edited digest of a member": (edit_record(lies_of_digest), "the digest is another"),
    "an edited size of a member": (edit_record(lies_of_size), "the digest is another"),
    "an edited threshold": (edit_record(other_threshold), "the digest is another"),
    "a digest of another member": (
        describe(members={PIPELINE: {"size": 1, "sha256": "0" * 64}, "calibrator.skops": {}}),
        "has another content",
    ),
    "a member that is not described": (add("calibrator.skops", b"", seal=False), "has another content|two members"),
    "no pipeline": (without_pipeline, "it has no pipeline"),
    "a block that is not its key's": (other_block, "block 'NetA' does not match its key"),
    "a block of images as large as a house": (larger_images, "another size than 1 to 4096 pixels"),
    "a block that is wider": (wider_block, "takes other features than its blocks have"),
    "a view more": (describe(views=["original", "hflip"]), "takes other features than its blocks have"),
    "a threshold without a positive class": (describe(threshold=0.5), "no positive class for it"),
    "classes that are lists": (describe(classes=[[1], [2], [3]]), "neither text nor numbers"),
    "no views": (describe(views=[]), "names no blocks or no views"),
    "no blocks": (describe(blocks=[]), "names no blocks or no views"),
    "a block without a width": (describe(blocks=[{"name": "NetA"}]), "without a name or width"),
    "a newer version": (describe(format_version=2), "format version 2, and this deepfeat reads 1"),
    "a version that equals": (describe(format_version=True), "format version True"),
    "another format": (describe(format="something"), "not of a deepfeat classifier"),
    "something that is not known": (describe(on_load="os.system('x')"), "'on_load', which is not known"),
    "classes that are none": (describe(classes=[]), "classes are none"),
    "classes that are fewer": (describe(classes=["A", "B"]), "decision value for each"),
    "classes in another order": (describe(classes=["C", "B", "A"]), "decision value for each"),
    "a threshold that is text": (describe(threshold="0.5"), "lacks a proper 'threshold'"),
    "a threshold that is no number": (edit_text(b'{"threshold": NaN}'), "has the number NaN"),
    "a description that is not UTF-8": (edit_text(b"\xff\xfe{}"), "is not JSON"),
    "a description that is deep": (edit_text(b"[" * 10**5), "is not JSON"),
    "a description that says something twice": (edit_text(b'{"format": 1, "format": 2}'), "says something twice"),
    "another protocol": (schema(lambda tree: {**tree, "protocol": 1}), "skops protocol 1, and 2 is read"),
    "no protocol": (schema(lambda tree: {**tree, "protocol": None}), "skops protocol None"),
    "an estimator instead of the pipeline": (
        lambda members: zipped(sealed({**members, PIPELINE: skops.io.dumps(StandardScaler())})),
        "is something else",
    ),
    "an array that is not there": (schema(lonely_array), "an array that is not in the file"),
    "a value that is not text": (schema(text_that_is_a_number), "a value that is not JSON"),
    "a function": (instead(function_node("os", "system")), "'FunctionNode' (os.system)"),
    "a function that skops trusts": (instead(function_node("numpy", "add")), "'FunctionNode' (numpy.add)"),
    "a call by reduce": (reduced("subprocess", "Popen"), "'ConstructorFromReduceNode' (subprocess.Popen)"),
    "a method": (replace_svm(__loader__="MethodNode"), "'MethodNode'"),
    "a loader that does not exist": (replace_svm(__loader__="EvilNode"), "'EvilNode'"),
    "a loader that is a list": (replace_svm(__loader__=["ObjectNode"]), "which no classifier needs"),
    "an estimator that skops trusts": (
        replace_svm(__class__="FunctionTransformer", __module__="sklearn.preprocessing._function_transformer"),
        "FunctionTransformer, and no classifier of deepfeat has one",
    ),
    "a type of the standard library": (replace_svm(__class__="Popen", __module__="subprocess"), "subprocess.Popen"),
    "a type by another module": (replace_svm(__module__="sklearn.svm"), "sklearn.svm.LinearSVC"),
    "a dictionary that is another type": (
        schema(lambda tree: tree["content"].update(__class__="Popen", __module__="subprocess")),
        "subprocess.Popen",
    ),
    "an object that holds itself": (schema(cycle), "cannot be read|does not work|is something else"),
    "no schema": (inner(lambda parts: {"1.npy": npy(np.zeros(3))}), "was not written by skops"),
    "a pickle inside the skops file": (
        inner(lambda parts: {**parts, "model.pkl": pickle.dumps(Bomb())}),
        "'model.pkl', which does not belong",
    ),
    "a pickle inside an array": (
        first_array(npy(np.array([Bomb()], object), allow_pickle=True)),
        "could hold a pickle",
    ),
    "a pickle instead of an array": (first_array(pickle.dumps(Bomb())), "cannot be read"),
    "an array that would fill the memory": (first_array(npy_header((10**13,))), "another size than its header says"),
    "an array with a negative size": (first_array(npy_header((-1,), data=bytes(8))), "another size|cannot be read"),
    "an array of a later version": (first_array(npy(np.zeros(3), version=(2, 0))), "version (2, 0) of the format"),
    "an array whose header is code": (
        first_array(b"\x93NUMPY\x01\x00\x76\x00" + b"__import__('os').putenv('A', '1')".ljust(118)),
        "cannot be read",
    ),
    "a memory of the pipeline": (attribute("memory", "/tmp/evil"), "would write into a folder"),
    "a method that is text": (attribute("coef_", "text"), "does not work"),
    "coefficients that are fewer": (array_attribute("coef_", np.zeros((3, 2))), "does not work"),
    "coefficients that are not finite": (
        array_attribute("coef_", np.full((3, 10), np.nan)),
        "values that are not finite",
    ),
    "weights with another digest": (add(f"weights/{'0' * 64}.keras", b""), "another digest than their name"),
    "weights that are no network": (weights(b"PK"), "not a whole zip archive"),
    "a network that is a bomb": (
        weights(keras_file(weights=bytes(10**8), compression=zipfile.ZIP_DEFLATED)),
        "is compressed",
    ),
    "a network without weights": (weights(zipped({"config.json": b"{}"})), "is not a .keras file"),
    "weights that are not HDF5": (weights(b"no", ".weights.h5"), "is not HDF5"),
    "a manifest that is a list": (weights(b"[]", ".json"), "does not describe a network"),
    "a Lambda layer": (weights(keras_file("Lambda")), "keras.layers.Lambda"),
    "a layer of another module": (weights(keras_file("system", "os")), "os.system"),
    "a layer that reads a file": (weights(keras_file("StringLookup")), "keras.layers.StringLookup"),
    "a switch of Keras": (weights(keras_file("enable_unsafe_deserialization", "keras.config")), "keras.config.enable"),
    "a function of Keras": (weights(keras_file("get_file", "keras.utils")), "keras.utils.get_file"),
    "a saved model in a layer": (weights(keras_file("TFSMLayer")), "TFSMLayer"),
    "a member beside the network": (weights(keras_file(**{"assets/x.py": b""})), "'assets/x.py', which does not"),
    "weights that link to a file": (weights(hdf5(external_link), ".weights.h5"), "has a link at 'secret'"),
    "weights whose data are in a file": (weights(hdf5(external_data), ".weights.h5"), "lie in another file"),
    "a network whose weights link to a file": (weights(keras_file(weights=hdf5(external_link))), "has a link"),
}

#: Of an SVM that libsvm evaluates, which trusts its arrays.
HOSTILE_RBF = {
    "counts of support vectors that lie": (array_attribute("_n_support", np.array([10**6, 1, 1], np.int32)), "fit"),
    "counts that are negative": (array_attribute("_n_support", np.array([-5, 5, 0], np.int32)), "fit"),
    "support vectors that are fewer": (array_attribute("support_vectors_", np.zeros((1, 10))), "fit"),
    "support vectors that are narrower": (array_attribute("support_vectors_", np.zeros((1, 1))), "fit"),
    "dual coefficients that are fewer": (array_attribute("_dual_coef_", np.zeros((2, 1))), "fit"),
    "intercepts that are fewer": (array_attribute("_intercept_", np.zeros(1)), "fit"),
    "a gamma that is text": (attribute("_gamma", "text"), "lacks a part"),
    "another kernel": (attribute("kernel", "precomputed"), "fit"),
    "sparse vectors": (attribute("_sparse", True), "fit"),
}


def refuse(data, tmp_path, message):
    path = tmp_path / "evil.deepfeat"
    path.write_bytes(data)
    with pytest.raises(deepfeat.BundleError) as caught:
        read_bundle(path)
    assert re_search(message, str(caught.value)), str(caught.value)
    assert str(caught.value).startswith(f"{path} is not loaded: ")
    assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["evil.deepfeat"]


def re_search(alternatives, text):
    return any(part in text for part in alternatives.split("|"))


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_file_is_refused_with_a_sentence(case, saved, tmp_path):
    make, message = HOSTILE[case]
    refuse(make(saved["linear"]), tmp_path, message)


@pytest.mark.parametrize("case", HOSTILE_RBF)
def test_hostile_support_vectors_are_refused(case, saved, tmp_path):
    make, message = HOSTILE_RBF[case]
    refuse(make(saved["rbf"]), tmp_path, message)


@pytest.mark.parametrize(("module", "limit"), [(archives, "_LONGEST_JSON"), (bundle, "_LONGEST")])
def test_descriptions_without_end_are_not_parsed(module, limit, saved, tmp_path, monkeypatch):
    monkeypatch.setattr(module, limit, 1)
    refuse(zipped(saved["linear"]), tmp_path, "is longer than 0 MB")


def test_calibrator_that_gives_no_probability_is_refused():
    X, y = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32), np.repeat(["a", "b"], 30)
    result = deepfeat.fit_svm((X, y, None), param_grid={"C": [1.0]}, cv=3, calibrate="sigmoid")
    check_estimators(result.pipeline, result.calibrator, 3, ["a", "b"], None)
    result.calibrator.calibrated_classifiers_[0].calibrators[0].a_ = np.nan
    with pytest.raises(AuditError, match="does not give a probability for each of its classes"):
        check_estimators(result.pipeline, result.calibrator, 3, ["a", "b"], None)


def test_weights_may_have_a_group_under_two_names():
    def fill(file):
        file["twice"] = file.create_group("once")
        file["once/x"] = [1.0]

    audit_weights(hdf5(fill), "a.weights.h5")


def test_a_case_would_run_code_if_it_were_unpickled():
    code = f"import os, pickle, sys; pickle.loads({pickle.dumps(0)!r}); print(os.environ.get({RAN!r}))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "None"
    assert Bomb().__reduce__()[0] is os.putenv


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_sealed_again_a_sound_file_is_read(kernel, saved, tmp_path, results, store):
    """What the hostile cases begin with is not refused for itself."""
    path = tmp_path / "a.deepfeat"
    path.write_bytes(zipped(sealed(saved[kernel])))
    X = np.concatenate([store.features("NetA"), store.features("NetB")], axis=1)
    bundle = read_bundle(path)
    np.testing.assert_array_equal(bundle.pipeline.decision_function(X), results[kernel].pipeline.decision_function(X))


GIVEN = {
    "calibrated": {"calibrate": "isotonic"},
    "by temperature": {"calibrate": "temperature"},
    "positive with a threshold": {"positive": "A", "threshold": "recall>=0.9", "calibrate": True},
    "late": {"fusion": "late"},
    "aligned": {"fusion": "aligned"},
    "rbf of two": {"kernel": "rbf", "positive": "B"},
    "SVC": {"classifier": "SVC"},
    "class weights": {"class_weight": {"A": 2.0, "B": 1.0, "C": 1.0}},
    "one block": {"backbones": "NetA"},
    "nested": {"nested": True},
    "scikit-learn": {"engine": "sklearn"},
}


@pytest.mark.parametrize("case", GIVEN)
def test_what_is_saved_comes_back(case, store, tmp_path):
    given = GIVEN[case]
    grid = {"C": [0.1], **({"gamma": [0.1]} if "kernel" in given else {})}
    result = deepfeat.fit_svm(store, test=None, cv=3, param_grid=grid, **given)
    path = tmp_path / "a.deepfeat"
    result.save(path)
    bundle = read_bundle(path)
    X = np.concatenate([store.features(name) for name in result.blocks], axis=1)
    np.testing.assert_array_equal(bundle.pipeline.decision_function(X), result.pipeline.decision_function(X))
    np.testing.assert_array_equal(bundle.pipeline.predict(X), result.pipeline.predict(X))
    assert (bundle.classes, bundle.positive) == (result.classes, result.positive)
    assert bundle.threshold == result.threshold
    assert bundle.description["metrics"]["accuracy"]["value"] == result.metrics["value"]["accuracy"]
    assert [block["name"] for block in bundle.blocks] == list(result.blocks)
    assert (bundle.calibrator is None) == (result.calibrator is None)


@pytest.fixture(scope="module")
def views_store(tmp_path_factory, build_store, make_table, make_spec):
    rng = np.random.default_rng(1)
    code = np.arange(60) % 3
    blocks = [
        (make_spec(name, view=view), (code[:, None] + rng.normal(size=(60, 4))).astype(np.float32))
        for name in ("NetA", "NetB")
        for view in ("original", "hflip")
    ]
    table = make_table(60, label=[("A", "B", "C")[i] for i in code])
    return build_store(tmp_path_factory.mktemp("views") / "f.h5", table, blocks)


@pytest.mark.parametrize("svm", [{"kernel": "rbf"}, {"classifier": "SVC"}, {}], ids=["rbf", "linear SVC", "LinearSVC"])
@pytest.mark.parametrize("engine", ["auto", "sklearn"])
@pytest.mark.parametrize(
    "parts",
    [
        {"fusion": "late"},
        {"views": "augment"},
        {"views": "vote"},
        {"views": "vote", "fusion": "late"},
        {"views": "augment", "fusion": "aligned"},
    ],
    ids=lambda parts: " ".join(parts.values()),
)
def test_svms_inside_of_another_classifier_come_back(svm, engine, parts, views_store, tmp_path):
    grid = {"C": [1.0], **({"gamma": [0.1]} if "kernel" in svm else {})}
    result = deepfeat.fit_svm(
        views_store, test=None, cv=3, param_grid=grid, engine=engine, ledger=False, **svm, **parts
    )
    path = tmp_path / "a.deepfeat"
    result.save(path)
    X = np.random.default_rng(2).normal(size=(20, 16)).astype(np.float32)
    found = read_bundle(path).pipeline
    np.testing.assert_array_equal(found.decision_function(X), result.pipeline.decision_function(X))


def test_support_vectors_inside_of_late_fusion_are_checked_and_its_template_is_not(views_store):
    given = {"test": None, "cv": 3, "param_grid": {"C": [1.0], "gamma": [0.1]}, "ledger": False}
    result = deepfeat.fit_svm(views_store, kernel="rbf", fusion="late", views=None, **given)
    late = result.pipeline[-1]
    assert not hasattr(late.estimator[-1], "support_")
    check_estimators(result.pipeline, None, 8, result.classes, None)
    late.estimators_[1][-1]._n_support = np.array([10**6, 1, 1], np.int32)
    with pytest.raises(AuditError, match="the parts of its SVM do not fit one another"):
        check_estimators(result.pipeline, None, 8, result.classes, None)


def test_svm_that_was_not_fitted_is_refused(results):
    pipeline = clone(results["rbf"].pipeline).set_params(svm=results["rbf"].pipeline[-1])
    for name in set(vars(pipeline[-1])) - set(vars(SVC())):
        delattr(pipeline[-1], name)
    with pytest.raises(AuditError, match="does not work"):
        check_estimators(pipeline, None, 10, ["A", "B", "C"], None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ["C", "B", "A"]}, "does not give a finite decision value for each of its classes"),
        ({"classes": []}, "its classes are none"),
        ({"threshold": 0.5}, "there is no positive class for it"),
    ],
)
def test_file_that_could_not_be_loaded_is_not_saved(results, tmp_path, changes, message):
    path = tmp_path / "a.deepfeat"
    path.write_bytes(b"old")
    with pytest.raises(
        deepfeat.BundleError, match=rf"a\.deepfeat is not saved, since it could not be loaded: .*{message}"
    ):
        replace(results["linear"], **changes).save(path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_folder_that_is_not_there_is_named(results, tmp_path):
    with pytest.raises(deepfeat.UsageError, match=r"cannot write .*: there is no folder '.*nowhere'"):
        results["linear"].save(tmp_path / "nowhere" / "a.deepfeat")


@pytest.mark.parametrize("engine", ["auto", "sklearn"])
def test_class_weights_of_numpy_come_back(engine, tmp_path):
    X, y = np.random.default_rng(0).normal(size=(60, 3)), np.arange(60) % 2
    weights = dict(zip(np.unique(y), np.array([2, 1]), strict=True))
    options = {"test": None, "param_grid": {"C": [0.1]}, "engine": engine}
    result = deepfeat.fit_svm((X, y), class_weight=[weights, None], **options)
    result.save(tmp_path / "a.deepfeat")
    found = read_bundle(tmp_path / "a.deepfeat")
    np.testing.assert_array_equal(found.pipeline.decision_function(X), result.pipeline.decision_function(X))
    assert {type(key) for key in result.cv_results["class_weight"][0]} == {int}
    same = deepfeat.fit_svm((X, y), class_weight=[{0: 2, 1: 1}, None], **options)
    np.testing.assert_array_equal(same.pipeline[-1].coef_, result.pipeline[-1].coef_)


def test_nothing_of_images_or_folders_is_in_the_file(results, tmp_path, store):
    path = tmp_path / "a.deepfeat"
    results["linear"].save(path)
    data = path.read_bytes()
    assert b"img00" not in data
    assert str(store.path.parent).encode() not in data
    assert store.path.name.encode() in data


def test_plain_arrays_can_be_saved(tmp_path):
    X, y = np.random.default_rng(0).normal(size=(40, 3)), np.repeat([0, 1], 20)
    result = deepfeat.fit_svm((X, y), test=None, param_grid={"C": [0.1]})
    result.save(tmp_path / "a.deepfeat")
    classifier = deepfeat.load(tmp_path / "a.deepfeat")
    np.testing.assert_array_equal(classifier.pipeline.predict(X), result.pipeline.predict(X))
    with pytest.raises(deepfeat.BackboneError, match="'X' were not made by a network of deepfeat"):
        classifier.predict([__file__])


def test_a_failed_save_leaves_the_old_file(results, tmp_path, monkeypatch):
    path = tmp_path / "a.deepfeat"
    path.write_bytes(b"old")

    def fail(*args):
        raise OSError("no space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "writestr", fail)
    with pytest.raises(OSError, match="no space"):
        results["linear"].save(path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.onnx", b"", "is not a .keras or .weights.h5 file"),
        ("a.weights.h5", b"", "weights that no block was computed with"),
        ("missing.keras", None, r"there is no file '.*missing\.keras': name the weights"),
    ],
)
def test_weights_that_do_not_belong_are_refused_in_saving(results, tmp_path, name, data, message):
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(deepfeat.UsageError, match=message):
        results["linear"].save(tmp_path / "a.deepfeat", weights=tmp_path / name)


def test_network_that_would_not_be_loaded_is_not_saved(tmp_path):
    data = keras_file("Lambda")
    (tmp_path / "mine.keras").write_bytes(data)
    blocks = [{"name": "mine", "spec": {"weights": f"sha256:{_sha256(data)}"}}]
    with pytest.raises(deepfeat.UsageError, match=r"keras.layers.Lambda.*: save without these weights"):
        bundle._weights_members([tmp_path / "mine.keras"], blocks)


def keras_network(folder, *, trained, manifest=None):
    """A file of a network, its block, and what is beside it; WEIGHTS stands for the digest of the file."""
    file = folder / "mine.keras"
    file.write_bytes(keras_file("Dense"))
    digest = f"sha256:{_sha256(file.read_bytes())}"
    if manifest is not None:
        file.with_suffix(".json").write_text(manifest.replace("WEIGHTS", digest))
    return file, [{"name": "mine", "spec": {"weights": digest}, "trained": trained}]


def test_only_the_manifest_of_a_fine_tuned_network_travels_along(tmp_path):
    manifest = '{"weights": "WEIGHTS"}'
    for trained, endings in ((True, ["json", "keras"]), (False, ["keras"])):
        file, blocks = keras_network(tmp_path, trained=trained, manifest=manifest)
        assert sorted(name.rsplit(".")[-1] for name in bundle._weights_members([file], blocks)) == endings


@pytest.mark.parametrize("manifest", [None, "no JSON", "[1]", '{"my": "log"}', '{"weights": "sha256:0"}'])
def test_fine_tuned_network_without_its_manifest_is_not_saved(tmp_path, manifest):
    file, blocks = keras_network(tmp_path, trained=True, manifest=manifest)
    with pytest.raises(deepfeat.UsageError, match=r"mine\.keras was fine-tuned, and its manifest mine\.json is not"):
        bundle._weights_members([file], blocks)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(deepfeat.BundleError, match=r"there is no file '.*a\.deepfeat'"):
        deepfeat.load(tmp_path / "a.deepfeat")


def test_reading_a_file_needs_no_keras(results, tmp_path):
    results["linear"].save(tmp_path / "a.deepfeat")
    code = f"import sys, deepfeat.bundle as b; b.read_bundle({str(tmp_path / 'a.deepfeat')!r}); "
    code += "print(sorted({'keras', 'tensorflow'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
