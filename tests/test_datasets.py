from __future__ import annotations

import csv
import hashlib
import os
import re
import sys
import tempfile
import unicodedata
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from deepfeat.datasets import COLUMNS, as_table, check_table, read_csv, read_folder, read_isic, relabel, split_table
from deepfeat.errors import DataError, DataWarning, UsageError
from deepfeat.images import SUFFIXES

SHARED = Path(os.environ.get("DEEPFEAT_DATA") or Path(__file__).parents[1].parent / "shared")
posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows allows neither these names nor links by default")


def make_files(root, *names):
    for name in names:
        path = Path(root, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return Path(root)


def make_csv(tmp_path, content, *names):
    """Write a label file beside a folder with these images; return both paths."""
    make_files(tmp_path / "images", *names)
    path = tmp_path / "labels.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path, tmp_path / "images"


def make_table(labels, groups=None, **columns):
    ids = [f"img{i}" for i in range(len(labels))]
    groups = [None] * len(labels) if groups is None else groups
    columns = {"image_id": ids, "path": [f"/x/{i}.jpg" for i in ids], "label": labels, "group": groups} | columns
    return pd.DataFrame(columns)


def values(table, column):
    """A column as a list, with every kind of missing value as None."""
    return [None if pd.isna(value) else value for value in table[column]]


def collected(function, *args, **options):
    """The result of a call and the texts of its warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = function(*args, **options)
    assert all(issubclass(w.category, DataWarning) for w in caught)
    return result, [str(w.message) for w in caught]


# ---------------------------------------------------------------------------------------------------- read_folder


def test_read_folder_with_class_folders(tmp_path):
    make_files(tmp_path, "NV/b.jpg", "MEL/c.png", "MEL/a.jpg")
    table = read_folder(tmp_path)
    assert list(table.columns) == list(COLUMNS)
    assert values(table, "image_id") == ["MEL/a.jpg", "MEL/c.png", "NV/b.jpg"]
    assert values(table, "label") == ["MEL", "MEL", "NV"]
    assert values(table, "group") == values(table, "split") == [None, None, None]
    assert values(table, "path") == [str(tmp_path / name) for name in ("MEL/a.jpg", "MEL/c.png", "NV/b.jpg")]


@pytest.mark.parametrize(
    ("names", "labels", "splits"),
    [
        pytest.param(["a.jpg", "b.jpg"], [None, None], [None, None], id="flat"),
        pytest.param(["MEL/2019/may/a.jpg", "NV/b.jpg"], ["MEL", "NV"], [None, None], id="nested deeper"),
        pytest.param(["train/MEL/a.jpg", "test/NV/b.jpg"], ["NV", "MEL"], ["test", "train"], id="split folders"),
        pytest.param(["Training/MEL/a.jpg", "VALID/NV/b.jpg"], ["MEL", "NV"], ["train", "val"], id="split aliases"),
        pytest.param(["test/MEL/x/y/a.jpg", "val/NV/b.jpg"], ["MEL", "NV"], ["test", "val"], id="split, nested"),
        pytest.param(["test/a.jpg", "train/b.jpg"], [None, None], ["test", "train"], id="split without classes"),
        pytest.param(["train/a.jpg", "NV/b.jpg"], ["NV", "train"], [None, None], id="train is a class here"),
    ],
)
def test_read_folder_understands_the_layout(tmp_path, names, labels, splits):
    table = read_folder(make_files(tmp_path, *names))
    assert values(table, "image_id") == sorted(names)
    assert values(table, "label") == labels
    assert values(table, "split") == splits


def test_read_folder_refuses_other_folders_beside_a_split_with_classes(tmp_path):
    make_files(tmp_path, "train/MEL/a.jpg", "test/MEL/b.jpg", "test/c.jpg", "holdout/MEL/d.jpg", "new/e.jpg", "f.jpg")
    message = (
        r"^2 folder\(s\) that are not called train, val or test \('holdout', 'new'\) beside 'test', which has folders "
        r"of its own: rename them, or move them elsewhere$"
    )
    with pytest.raises(DataError, match=message):
        read_folder(tmp_path)


@pytest.mark.parametrize("suffix", sorted(SUFFIXES))
def test_read_folder_knows_the_ending_in_either_case(tmp_path, suffix):
    make_files(tmp_path, f"MEL/a{suffix}", f"MEL/b{suffix.upper()}")
    assert values(read_folder(tmp_path), "image_id") == [f"MEL/a{suffix}", f"MEL/b{suffix.upper()}"]


def test_read_folder_leaves_out_hidden_files_and_folders(tmp_path):
    make_files(tmp_path, "MEL/a.jpg", "MEL/._a.jpg", ".DS_Store", ".thumbs/b.jpg", "MEL/.cache/c.jpg")
    assert values(read_folder(tmp_path), "image_id") == ["MEL/a.jpg"]


@posix
@pytest.mark.parametrize(
    "name",
    [
        "with  spaces.jpg",
        "Läsion ñ 皮膚 🙂.png",
        "n" * 251 + ".jpg",
        "a.b.c.jpg",
        'it\'s, "quoted"; 50%.jpg',
        "new\nline.jpg",
    ],
)
def test_read_folder_with_unusual_names(tmp_path, name):
    make_files(tmp_path, f"Klasse ä/{name}")
    table = read_folder(tmp_path)
    assert values(table, "image_id") == [f"Klasse ä/{name}"]
    assert values(table, "label") == ["Klasse ä"]
    assert os.path.isfile(table["path"][0])


def test_read_folder_accepts_a_relative_path(tmp_path, monkeypatch):
    make_files(tmp_path, "photos/MEL/a.jpg")
    monkeypatch.chdir(tmp_path)
    for root in ("photos", "photos/", Path("photos"), "./photos"):
        table = read_folder(root)
        assert values(table, "image_id") == ["MEL/a.jpg"]
        assert values(table, "path") == [str(tmp_path / "photos/MEL/a.jpg")]


@pytest.mark.parametrize(
    ("names", "warning"),
    [
        pytest.param(
            ["MEL/a.jpg", "notes.txt", "MEL/Thumbs.db"],
            "2 file(s) without an image ending left out ('MEL/Thumbs.db', 'notes.txt')",
            id="other files",
        ),
        pytest.param(
            ["MEL/a.jpg", *(f"{i}.txt" for i in range(5))],
            "5 file(s) without an image ending left out (first: '0.txt', '1.txt', '2.txt')",
            id="many other files",
        ),
        pytest.param(["MEL/a.jpg", "NV/.keep"], "1 sub-folder(s) without any image ('NV')", id="empty class"),
        pytest.param(
            ["train/MEL/a.jpg", "train/NV/.keep", "val/.keep"],
            "2 sub-folder(s) without any image ('train/NV', 'val')",
            id="empty class of a split",
        ),
        pytest.param(
            ["MEL/a.jpg", "b.jpg"], "1 image(s) outside any class folder, so without a label ('b.jpg')", id="outside"
        ),
        pytest.param(
            ["MEL/a.jpg", "MEL/a.png", "MEL/b.jpg"],
            "2 image(s) with names that differ only in folder or ending ('MEL/a.jpg', 'MEL/a.png')",
            id="same name, other ending",
        ),
        pytest.param(
            ["MEL/a.jpg", "NV/a.jpg", "NV/b.jpg"],
            "2 image(s) with names that differ only in folder or ending ('MEL/a.jpg', 'NV/a.jpg')",
            id="same name, other folder",
        ),
    ],
)
def test_read_folder_warns_once_about_what_deserves_a_look(tmp_path, names, warning):
    table, messages = collected(read_folder, make_files(tmp_path, *names))
    assert messages == [warning]
    assert values(table, "image_id") == sorted(n for n in names if n.endswith(("jpg", "png")))


def test_read_folder_that_is_missing(tmp_path):
    with pytest.raises(UsageError, match=r"nowhere' does not exist: give the folder that holds the images$"):
        read_folder(tmp_path / "nowhere")


def test_read_folder_that_is_a_file(tmp_path):
    make_files(tmp_path, "a.jpg")
    with pytest.raises(UsageError, match=r"a\.jpg' is not a folder: give the folder"):
        read_folder(tmp_path / "a.jpg")


@pytest.mark.parametrize(
    ("names", "found"),
    [([], "only nothing"), (["a.txt", "b/c.pdf"], "only 2 other file(s)"), ([".a.jpg"], "only nothing")],
)
def test_read_folder_without_images(tmp_path, names, found):
    message = re.escape(f"{found}: expected one sub-folder of images per class")
    with pytest.raises(DataError, match=f"^no images found in .*{message}$"):
        read_folder(make_files(tmp_path, *names))


def test_read_folder_reports_a_folder_that_cannot_be_listed(tmp_path, monkeypatch):
    make_files(tmp_path, "MEL/a.jpg", "MEL/private/b.jpg", "MEL/private/c.jpg")
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("private"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    table, messages = collected(read_folder, tmp_path)
    assert values(table, "image_id") == ["MEL/a.jpg"]
    assert messages == [
        f"1 folder(s) left out, since listing failed with 'Permission denied' ({str(tmp_path / 'MEL/private')!r})"
    ]


@posix
def test_read_folder_follows_symbolic_links(tmp_path):
    make_files(tmp_path, "elsewhere/a.jpg", "more/c.jpg", "photos/NV/b.jpg")
    (tmp_path / "photos/MEL").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "photos/NV/d.jpg").symlink_to(tmp_path / "more/c.jpg")
    table = read_folder(tmp_path / "photos")
    assert values(table, "image_id") == ["MEL/a.jpg", "NV/b.jpg", "NV/d.jpg"]
    assert values(table, "label") == ["MEL", "NV", "NV"]


@posix
@pytest.mark.parametrize("target", [".", "..", "../.."], ids=["itself", "its parent", "above the root"])
def test_read_folder_survives_a_link_loop(tmp_path, target):
    make_files(tmp_path, "photos/MEL/a.jpg")
    (tmp_path / "photos/MEL/loop").symlink_to(target, target_is_directory=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        ids = values(read_folder(tmp_path / "photos"), "image_id")
    assert ids[0] == "MEL/a.jpg"
    assert len(ids) <= 2  # from above the root, the picture is reached once more


@posix
def test_read_folder_survives_two_folders_that_link_to_each_other(tmp_path):
    make_files(tmp_path, "A/a.jpg", "B/b.jpg")
    (tmp_path / "A/to_b").symlink_to(tmp_path / "B", target_is_directory=True)
    (tmp_path / "B/to_a").symlink_to(tmp_path / "A", target_is_directory=True)
    with pytest.warns(DataWarning, match=r"4 image\(s\) with names that differ only in folder"):
        table = read_folder(tmp_path)
    assert values(table, "image_id") == ["A/a.jpg", "A/to_b/b.jpg", "B/b.jpg", "B/to_a/a.jpg"]


@posix
def test_read_folder_keeps_a_broken_link_as_a_row(tmp_path):
    make_files(tmp_path, "MEL/a.jpg")
    (tmp_path / "MEL/gone.jpg").symlink_to(tmp_path / "no such file")
    (tmp_path / "MEL/self.jpg").symlink_to(tmp_path / "MEL/self.jpg")
    assert values(read_folder(tmp_path), "image_id") == ["MEL/a.jpg", "MEL/gone.jpg", "MEL/self.jpg"]


# ------------------------------------------------------------------------------------------------------- read_csv

PLAIN = "image,label\na,MEL\nb,NV\n"


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(PLAIN, id="plain"),
        pytest.param(PLAIN.rstrip(), id="no newline at the end"),
        pytest.param(b"\xef\xbb\xbf" + PLAIN.encode(), id="byte order mark"),
        pytest.param(PLAIN.replace("\n", "\r\n"), id="CRLF"),
        pytest.param(PLAIN.replace("\n", "\r"), id="CR"),
        pytest.param(PLAIN.replace(",", ";"), id="semicolon"),
        pytest.param(PLAIN.replace(",", "\t"), id="tab"),
        pytest.param(PLAIN.replace(",", "|"), id="bar"),
        pytest.param(PLAIN.encode("utf-16"), id="UTF-16"),
        pytest.param(b"\xfe\xff" + PLAIN.encode("utf-16-be"), id="UTF-16 big-endian"),
        pytest.param('"image","label"\n"a","MEL"\n"b","NV"\n', id="quoted"),
        pytest.param('image, label\na, "MEL"\n b ,NV\n', id="blanks around values"),
        pytest.param("\n\nimage,label\na,MEL\n\nb,NV\n,\n\n", id="blank lines"),
        pytest.param("image,label\na,MEL,\nb,NV,\n", id="delimiter at the end of rows"),
        pytest.param(",image,label\n0,a,MEL\n1,b,NV\n", id="unnamed index"),
        pytest.param("label;site, in full;image\nMEL;arm;a\nNV;leg, left;b\n", id="another delimiter in the header"),
        pytest.param('label,"a\nnote",image\nMEL,x,a\nNV,"y\nz",b\n', id="newline within quotes"),
    ],
)
def test_read_csv_understands(tmp_path, content):
    table = read_csv(*make_csv(tmp_path, content, "a.jpg", "b.jpg"))
    assert list(table.columns) == list(COLUMNS)
    assert values(table, "image_id") == ["a", "b"]
    assert values(table, "label") == ["MEL", "NV"]
    assert values(table, "path") == [str(tmp_path / "images/a.jpg"), str(tmp_path / "images/b.jpg")]


def test_read_csv_keeps_the_order_of_the_file(tmp_path):
    table = read_csv(*make_csv(tmp_path, "image,label\nc,X\na,Y\nb,Z\n", "a.jpg", "b.jpg", "c.jpg"))
    assert values(table, "image_id") == ["c", "a", "b"]
    assert values(table, "label") == ["X", "Y", "Z"]
    assert [Path(p).name for p in table["path"]] == ["c.jpg", "a.jpg", "b.jpg"]


@pytest.mark.parametrize(
    "label", ["NA", "None", "nan", "null", "NULL", "N/A", "0", "1.0", "007", "True", "MEL, nodular", 'a "b"']
)
def test_read_csv_keeps_every_label_as_text(tmp_path, label):
    quoted = label.replace('"', '""')
    table = read_csv(*make_csv(tmp_path, f'image,label\na,"{quoted}"\n', "a.jpg"))
    assert values(table, "label") == [label]


def test_read_csv_takes_a_blank_for_a_missing_value(tmp_path):
    paths = make_csv(tmp_path, "image,label,lesion\na,,L1\nb,  ,\nc,NV\n", "a.jpg", "b.jpg", "c.jpg")
    with pytest.warns(DataWarning, match=r"^2 image\(s\) without a label \('a', 'b'\)$"):
        table = read_csv(*paths, group="lesion")
    assert values(table, "label") == [None, None, "NV"]
    assert values(table, "group") == ["L1", None, None]


def test_read_csv_without_a_label_column(tmp_path):
    table = read_csv(*make_csv(tmp_path, "file\na.jpg\n", "a.jpg"), image="file", label=None)
    assert values(table, "image_id") == ["a.jpg"]
    assert values(table, "label") == [None]


def test_read_csv_with_columns_named(tmp_path):
    text = "name,dx,patient,fold,age\na.jpg,mel,P1,train,50\nb.jpg,nv,P2,test,60\n"
    paths = make_csv(tmp_path, text, "a.jpg", "b.jpg")
    table = read_csv(*paths, image="name", label="dx", group="patient", split="fold")
    assert values(table, "label") == ["mel", "nv"]
    assert values(table, "group") == ["P1", "P2"]
    assert values(table, "split") == ["train", "test"]


@pytest.mark.parametrize(
    ("image_id", "name"),
    [
        pytest.param("a", "a.jpg", id="without ending"),
        pytest.param("a.jpg", "a.jpg", id="with ending"),
        pytest.param("a", "deep/er/a.png", id="without ending, in a sub-folder"),
        pytest.param("a.JPG", "x/a.JPG", id="with ending, in a sub-folder"),
        pytest.param("x/a", "x/a.jpg", id="folder, without ending"),
        pytest.param("x/a.jpg", "x/a.jpg", id="folder, with ending"),
        pytest.param("./x//a.jpg", "x/a.jpg", id="superfluous slashes"),
        pytest.param("x\\y\\a.jpg", "x/y/a.jpg", id="Windows path"),
        pytest.param(".\\x\\a", "x/a.jpg", id="Windows path without ending"),
        pytest.param("a.b.c", "a.b.c.jpg", id="dots in the name"),
        pytest.param("a.jpg", "a.jpg.png", id="two endings"),
        pytest.param("x y (1)", "x y (1).jpg", id="spaces"),
        pytest.param(
            unicodedata.normalize("NFC", "Läsión"), unicodedata.normalize("NFD", "Läsión.jpg"), id="NFC for NFD"
        ),
        pytest.param(
            unicodedata.normalize("NFD", "Läsión"), unicodedata.normalize("NFC", "Läsión.jpg"), id="NFD for NFC"
        ),
        pytest.param("n" * 251, "n" * 251 + ".jpg", id="255 bytes"),
        pytest.param("x\\a.jpg", "x\\a.jpg", id="backslash in the name", marks=posix),
    ],
)
def test_read_csv_finds_the_file_and_keeps_the_id(tmp_path, image_id, name):
    table = read_csv(*make_csv(tmp_path, f"image,label\n{image_id},MEL\n", name))
    assert values(table, "image_id") == [image_id]
    assert os.path.samefile(table["path"][0], tmp_path / "images" / name)


def test_read_csv_prefers_the_exact_path_over_a_bare_name(tmp_path):
    paths = make_csv(tmp_path, "image,label\na.jpg,MEL\nx/a.jpg,NV\n", "a.jpg", "x/a.jpg")
    table = read_csv(*paths)
    assert values(table, "path") == [str(tmp_path / "images/a.jpg"), str(tmp_path / "images/x/a.jpg")]


@pytest.mark.parametrize(
    ("content", "names", "message"),
    [
        pytest.param(
            "image,label\na,MEL\n",
            ["a.jpg", "a.png"],
            r"^1 row\(s\) that fit several files \('a \(a.jpg, a.png\)'\): give the path below '.*' with its ending$",
            id="ambiguous ending",
        ),
        pytest.param(
            "image,label\na.jpg,MEL\n",
            ["x/a.jpg", "y/a.jpg"],
            r"1 row\(s\) that fit several files \('a.jpg \(x/a.jpg, y/a.jpg\)'\)",
            id="ambiguous folder",
        ),
        pytest.param(
            "image,label\na,MEL\nb,NV\na,NV\n",
            ["a.jpg", "b.jpg"],
            r"^1 duplicate image id\(s\) in .*labels.csv \('a'\): every image needs an id of its own$",
            id="duplicate id",
        ),
        pytest.param(
            "image,label\na,MEL\n,NV\n ,NV\n",
            ["a.jpg"],
            r"^2 blank image name\(s\) in .*labels.csv \('row 2', 'row 3'\): fill them in, or remove these rows$",
            id="blank names",
        ),
        pytest.param(
            "image,label\na,MEL\na.jpg,NV\n",
            ["a.jpg"],
            r"^1 image\(s\) that several rows of .*labels.csv name \('a.jpg \(a, a.jpg\)'\): keep one row for each$",
            id="two ids for one file",
        ),
        pytest.param(
            "image,label\nx,MEL\ny,NV\n",
            ["a.jpg"],
            r"^none of the 2 rows of .* has an image in '.*images': the first is 'x'$",
            id="no row has an image",
        ),
        pytest.param(
            "image,label\n",
            ["a.jpg"],
            r"labels.csv has a header and no rows: it needs a row for each image$",
            id="header only",
        ),
        pytest.param("", ["a.jpg"], r"labels.csv is empty: it needs a header line", id="empty"),
        pytest.param(" \n\n", ["a.jpg"], r"labels.csv is empty: it needs a header line", id="blank"),
        pytest.param(
            "image,label\na,MEL,x\nb,NV\n",
            ["a.jpg", "b.jpg"],
            r"^1 row\(s\) of .*labels.csv with more than 2 values \('a,MEL,x'\): quote values that hold ','$",
            id="first row too long",
        ),
        pytest.param(
            "image;label\na;MEL\nb;NV;x;y\n",
            ["a.jpg", "b.jpg"],
            r"more than 2 values \('b;NV;x;y'\): quote values that hold ';'$",
            id="last row too long",
        ),
        pytest.param(
            'image,label\na,"MEL\nb,NV\n',
            ["a.jpg", "b.jpg"],
            r"labels.csv cannot be read as a table: unexpected end of data$",
            id="open quote",
        ),
        pytest.param(
            "x" * 200_000,
            ["a.jpg"],
            r"labels.csv cannot be read as a table: field larger than field limit",
            id="no table at all",
        ),
        pytest.param(
            "image,label,label\na,MEL,NV\n",
            ["a.jpg"],
            r"labels.csv has 2 columns 'label': rename or remove all but one$",
            id="column twice",
        ),
        pytest.param(
            "image,label\na,Läsion\n".encode("latin-1"),
            ["a.jpg"],
            r"labels.csv is not UTF-8 text \(byte 15\): save it as UTF-8$",
            id="latin-1",
        ),
        pytest.param(
            PLAIN.encode("utf-16")[:-1],
            ["a.jpg"],
            r"labels.csv is not UTF-16 text \(byte \d+\): save it as UTF-8$",
            id="half of UTF-16",
        ),
    ],
)
def test_read_csv_refuses(tmp_path, content, names, message):
    with pytest.raises(DataError, match=message):
        read_csv(*make_csv(tmp_path, content, *names))


def test_read_csv_reports_rows_and_images_without_a_partner(tmp_path):
    text = "image,label\n" + "".join(f"row{i},NV\n" for i in range(5)) + "a,MEL\n"
    paths = make_csv(tmp_path, text, "a.jpg", "b.jpg", "sub/c.png")
    table, messages = collected(read_csv, *paths)
    assert values(table, "image_id") == ["a"]
    assert messages == [
        f"5 row(s) of {paths[0]} without an image left out (first: 'row0', 'row1', 'row2')",
        f"2 image(s) in {paths[1]} without a row left out ('b.jpg', 'sub/c.png')",
    ]


def test_read_csv_reports_names_that_differ_only_in_ending(tmp_path):
    table, messages = collected(read_csv, *make_csv(tmp_path, "image,label\na.png,X\nb,Y\n", "a.jpg", "b.jpg"))
    assert values(table, "image_id") == ["b"]
    assert [m.split(" (")[-1] for m in messages] == ["'a.png')", "'a.jpg')"]


def test_read_csv_shortens_a_long_name_in_a_warning(tmp_path):
    long = "n" * 250
    _, messages = collected(read_csv, *make_csv(tmp_path, f"image,label\n{long},X\nb,Y\n", "b.jpg"))
    assert messages[0].endswith(f"without an image left out ('{'n' * 117}…')")


def test_read_csv_reports_groups_with_several_labels(tmp_path):
    paths = make_csv(tmp_path, "image,label,g\na,X,L1\nb,Y,L1\nc,Y,L2\n", "a.jpg", "b.jpg", "c.jpg")
    with pytest.warns(DataWarning, match=r"^1 group\(s\) with more than one label \('L1'\)$"):
        read_csv(*paths, group="g")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"has no column 'image': it has \['file', 'class'\]$"),
        ({"image": "file"}, r"has no column 'label': it has \['file', 'class'\]$"),
        ({"image": "file", "label": "class", "group": "lesion"}, r"has no column 'lesion': it has"),
        ({"image": "file", "label": "class", "split": "fold"}, r"has no column 'fold': it has"),
        ({"image": "File", "label": "class"}, r"has no column 'File': it has"),
    ],
)
def test_read_csv_names_a_missing_column(tmp_path, options, message):
    with pytest.raises(UsageError, match=message):
        read_csv(*make_csv(tmp_path, "file;class\na;X\n", "a.jpg"), **options)


def test_read_csv_that_is_missing(tmp_path):
    with pytest.raises(UsageError, match=r"^cannot read .*none.csv: No such file or directory$"):
        read_csv(tmp_path / "none.csv", tmp_path)


def test_read_csv_with_a_missing_image_folder(tmp_path):
    path, _ = make_csv(tmp_path, PLAIN)
    with pytest.raises(UsageError, match=r"nowhere' does not exist: give the folder"):
        read_csv(path, tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("value", "split"),
    [
        ("train", "train"),
        ("Training", "train"),
        ("val", "val"),
        ("valid", "val"),
        ("VALIDATION", "val"),
        ("test", "test"),
        (" Testing ", "test"),
        ("", None),
    ],
)
def test_read_csv_with_a_split_alias(tmp_path, value, split):
    table = read_csv(*make_csv(tmp_path, f"image,label,fold\na,X,{value}\n", "a.jpg"), split="fold")
    assert values(table, "split") == [split]


def test_read_csv_with_an_unknown_split(tmp_path):
    with pytest.raises(DataError, match=r"^unknown split 'holdout': use train, val or test$"):
        read_csv(*make_csv(tmp_path, "image,label,fold\na,X,holdout\n", "a.jpg"), split="fold")


FILE_NAMES = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cs",), exclude_characters='\0/\n\r<>:"\\|?*'),
    min_size=1,
    max_size=40,
).filter(lambda s: s == s.strip() and not s.startswith(".") and len(s.encode()) < 200)


@posix
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
@given(
    st.lists(FILE_NAMES, min_size=1, max_size=6, unique_by=lambda s: unicodedata.normalize("NFC", s)),
    st.booleans(),
    st.sampled_from([",", ";", "\t", "|"]),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)
def test_read_csv_reads_what_was_written_for_any_name(stems, with_ending, delimiter, newline, encoding):
    names = [f"{stem}.jpg" for stem in stems]
    ids = names if with_ending else stems
    # An id such as "a.jpg" may rightly mean the file "a.jpg.jpg" of another one.
    assume(with_ending or not {unicodedata.normalize("NFC", s) for s in stems} & set(names))
    with tempfile.TemporaryDirectory() as folder:
        make_files(f"{folder}/images", *names)
        with open(f"{folder}/labels.csv", "w", newline="", encoding=encoding) as file:
            writer = csv.writer(file, delimiter=delimiter, lineterminator=newline)
            writer.writerows([("image", "label"), *((i, f"label of {i}") for i in ids)])
        table = read_csv(f"{folder}/labels.csv", f"{folder}/images")
        assert values(table, "image_id") == ids
        assert values(table, "label") == [f"label of {i}" for i in ids]
        assert [os.path.relpath(p, f"{folder}/images") for p in table["path"]] == names


@posix
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
@given(st.lists(st.tuples(FILE_NAMES, FILE_NAMES), min_size=1, max_size=5, unique_by=lambda pair: pair[1]))
def test_read_folder_lists_every_file_for_any_name(pairs):
    assume(not {p[0].lower() for p in pairs} <= {"train", "training", "val", "valid", "validation", "test", "testing"})
    with tempfile.TemporaryDirectory() as folder:
        make_files(folder, *(f"{label}/{stem}.png" for label, stem in pairs))
        table = read_folder(folder)
    assert set(zip(table["image_id"], table["label"], strict=True)) == {(f"{a}/{b}.png", a) for a, b in pairs}


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200) | st.text(alphabet='image,label;"\n\t|a ', max_size=80).map(str.encode))
def test_read_csv_of_any_bytes_fails_only_as_documented(data):
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        try:
            table = read_csv(*make_csv(Path(folder), data, "a.jpg"), label=None)
        except (DataError, UsageError):
            return
        assert len(table) == 1


# ------------------------------------------------------------------------------------------------------ read_isic

TRUTH = "image,MEL,NV,UNK\na,1.0,0.0,0.0\nb,0.0,1.0,0.0\nc,0,1,0\n"
METADATA = "image,age_approx,lesion_id,sex\na,50,L1,male\nb,,L2,\nc,30,,female\n"


def make_isic(tmp_path, truth=TRUTH, metadata=METADATA, names=("a.jpg", "b.jpg", "c.jpg")):
    truth_path, images = make_csv(tmp_path, truth, *names)
    (tmp_path / "metadata.csv").write_text(metadata)
    return images, truth_path, tmp_path / "metadata.csv"


def test_read_isic_with_metadata(tmp_path):
    table = read_isic(*make_isic(tmp_path))
    assert values(table, "image_id") == ["a", "b", "c"]
    assert values(table, "label") == ["MEL", "NV", "NV"]
    assert values(table, "group") == ["L1", "L2", None]
    assert [Path(p).name for p in table["path"]] == ["a.jpg", "b.jpg", "c.jpg"]


def test_read_isic_without_metadata(tmp_path):
    images, truth, _ = make_isic(tmp_path)
    assert values(read_isic(images, truth), "group") == [None, None, None]


def test_read_isic_leaves_out_an_unnamed_index(tmp_path):
    truth = "\n".join(
        f"{i}{line}" for i, line in zip(["", "", 1, 2], [",image,MEL,NV", "7,a,1,0", ",b,0,1", ",c,0,1"], strict=True)
    )
    assert values(read_isic(*make_isic(tmp_path, truth)), "label") == ["MEL", "NV", "NV"]


@pytest.mark.parametrize(
    "row",
    ["b,0,0,0", "b,1,1,0", "b,0.5,0.5,0", "b,2,-1,0", "b,,1,0", "b,yes,no,no", "b,1", "b,nan,1,0", "b,inf,0,0"],
    ids=["none", "two", "shares", "sum is one", "blank", "words", "short", "nan", "inf"],
)
def test_read_isic_refuses_a_row_that_is_not_one_hot(tmp_path, row):
    paths = make_isic(tmp_path, f"image,MEL,NV,UNK\na,1,0,0\n{row}\nc,0,1,0\n")
    message = r"^1 one-hot row\(s\) that do not hold exactly one 1 \('b'\): correct the ground truth$"
    with pytest.raises(DataError, match=message):
        read_isic(*paths)


def test_read_isic_counts_the_rows_that_are_not_one_hot(tmp_path):
    truth = "image,MEL,NV\n" + "".join(f"i{k},1,1\n" for k in range(7))
    with pytest.raises(DataError, match=r"^7 one-hot row\(s\) .* \(first: 'i0', 'i1', 'i2'\)"):
        read_isic(*make_isic(tmp_path, truth))


def test_read_isic_with_an_image_that_is_not_in_the_truth(tmp_path):
    paths = make_isic(tmp_path, names=("a.jpg", "b.jpg", "c.jpg", "d.jpg"))
    with pytest.warns(DataWarning, match=r"^1 image\(s\) in .*images without a row left out \('d.jpg'\)$"):
        assert len(read_isic(*paths)) == 3


def test_read_isic_with_a_row_without_an_image(tmp_path):
    with pytest.warns(DataWarning, match=r"^2 row\(s\) of .*labels.csv without an image left out \('b', 'c'\)$"):
        table = read_isic(*make_isic(tmp_path, names=("a.jpg",)))
    assert values(table, "group") == ["L1"]


def test_read_isic_with_metadata_that_lack_rows(tmp_path):
    paths = make_isic(tmp_path, metadata="image,lesion_id\nb,L2\nelsewhere,L9\n")
    with pytest.warns(
        DataWarning, match=r"^2 image\(s\) of the ground truth without a row in the metadata \('a', 'c'\)$"
    ):
        table = read_isic(*paths)
    assert values(table, "group") == [None, "L2", None]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"truth": "name,MEL\na,1\n"}, UsageError, r"labels.csv has no column 'image': it has \['name', 'MEL'\]"),
        ({"metadata": "image,sex\na,f\n"}, UsageError, r"metadata.csv has no column 'lesion_id': it has"),
        (
            {"metadata": "image,lesion_id\na,L1\na,L2\n"},
            DataError,
            r"1 duplicate image id\(s\) in .*metadata.csv \('a'\)",
        ),
        ({"truth": TRUTH + "a,0,1,0\n"}, DataError, r"1 duplicate image id\(s\) in .*labels.csv \('a'\)"),
        ({"truth": "image,MEL,NV\n"}, DataError, r"has a header and no rows"),
        ({"truth": "image\na\n"}, DataError, r"1 one-hot row\(s\) that do not hold exactly one 1"),
        ({"names": ("x.jpg",)}, DataError, r"none of the 3 rows of .* has an image"),
    ],
)
def test_read_isic_refuses(tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        read_isic(*make_isic(tmp_path, **changes))


@pytest.mark.shared
def test_read_isic_on_the_published_files():
    files = [
        SHARED / "data/ham10000/images",
        SHARED / "data/isic2019/ISIC_2019_Training_GroundTruth.csv",
        SHARED / "data/isic2019/ISIC_2019_Training_Metadata.csv",
    ]
    absent = [str(f) for f in files if not f.exists()]
    if absent:
        pytest.skip(
            f"NOT TESTED on the real ISIC 2019 data: no {', '.join(absent)} (set DEEPFEAT_DATA, see CONTRIBUTING.md)"
        )
    table, messages = collected(read_isic, *files)
    assert len(table) == 10_015
    assert Counter(table["label"]) == {
        "NV": 6705, "MEL": 1113, "BKL": 1099, "BCC": 514, "SCC": 197, "VASC": 142, "AK": 130, "DF": 115,
    }  # fmt: skip
    assert table["group"].notna().all()
    assert table["group"].nunique() == 7470
    assert (table["group"].value_counts() > 1).sum() == 1956
    assert messages == [
        f"15316 row(s) of {files[1]} without an image left out (first: 'ISIC_0000000', 'ISIC_0000001', 'ISIC_0000002')"
    ]
    split = split_table(table, 0.2, seed=0)
    in_test = split["split"] == "test"
    assert not set(split["group"][in_test]) & set(split["group"][~in_test])
    for share in in_test.groupby(split["label"]).mean():
        assert share == pytest.approx(0.2, abs=0.03)


# ---------------------------------------------------------------------------------------------------- split_table


def test_split_table_is_stratified():
    split = split_table(make_table(["A"] * 60 + ["B"] * 30 + ["C"] * 10), 0.2)
    assert split.groupby(["label", "split"]).size().to_dict() == {
        ("A", "train"): 48,
        ("A", "test"): 12,
        ("B", "train"): 24,
        ("B", "test"): 6,
        ("C", "train"): 8,
        ("C", "test"): 2,
    }


@pytest.mark.parametrize("test_size", [0.1, 0.2, 0.25, 0.3, 0.5, 0.8])
def test_split_table_keeps_groups_whole(test_size):
    rng = np.random.default_rng(0)
    groups = np.sort(rng.integers(0, 120, 300))
    labels = np.where(groups % 3 == 0, "A", "B")
    split = split_table(make_table(labels.tolist(), [f"L{g}" for g in groups]), test_size)
    sides = split.groupby("group")["split"].nunique()
    assert sides.max() == 1
    for label in "AB":
        assert (split["split"][split["label"] == label] == "test").mean() == pytest.approx(test_size, abs=0.05)


def test_split_table_takes_an_image_without_a_group_for_a_group_of_its_own():
    labels = ["A", "B"] * 40
    groups = [f"L{i // 4}" if i < 40 else None for i in range(80)]
    with pytest.warns(DataWarning, match="10 group"):
        split = split_table(make_table(labels, groups), 0.25)
    assert split[:40].groupby("group")["split"].nunique().max() == 1
    assert set(split["split"][40:]) == {"train", "test"}


def test_split_table_leaves_images_without_a_label_without_a_split():
    table = make_table(["A", None, "B"] * 10)
    split = split_table(table, 0.5)
    assert split["split"].isna().tolist() == table["label"].isna().tolist()
    assert Counter(values(split, "split")) == {None: 10, "train": 10, "test": 10}


def test_split_table_leaves_the_table_and_everything_else_alone():
    table = make_table(["A", "B"] * 10)
    table.index = range(100, 120)
    before = table.copy()
    split = split_table(table)
    pd.testing.assert_frame_equal(table, before)
    for column in ("image_id", "path", "label", "group"):
        assert values(split, column) == values(table, column)


def test_split_table_keeps_columns_and_index():
    table = make_table(["A", "B"] * 10, age=range(20))
    table.index = pd.Index([f"row {i}" for i in range(20)])
    split = split_table(table)
    pd.testing.assert_frame_equal(split.drop(columns="split"), table)


@pytest.mark.parametrize("groups", [None, [f"L{i // 2}" for i in range(40)]], ids=["single", "grouped"])
def test_split_table_keeps_equal_files_on_one_side(groups, tmp_path):
    """All files are equally long, each equals one that is two before or after it, and the last four are not there."""
    contents = [f"{i // 4}{i % 2}" for i in range(40)]
    table = make_table([*"ABAB"] * 10, groups)
    table["path"] = [str(tmp_path / f"{i}.jpg") for i in range(40)]
    for path, content in zip(table["path"][:36], contents, strict=False):
        Path(path).write_text(content)
    table.loc[0, "label"] = None
    for seed in range(5):
        split, _ = collected(split_table, table, 0.25, seed)
        assert split[:36].groupby(contents[:36])["split"].nunique().max() == 1
        assert set(split["split"].dropna()) == {"train", "test"}


def test_split_table_reads_only_files_that_may_be_equal(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr("deepfeat.datasets.read_bytes", lambda path: read.append(Path(path).name) or path.encode())
    table = make_table([*"ABAB"])
    table["path"] = [str(tmp_path / name) for name in ("a", "bb", "cc", "gone")]
    for path in table["path"][:3]:
        Path(path).write_text(Path(path).name)
    split_table(table, 0.5)
    assert read == ["bb", "cc"]


@pytest.mark.parametrize("groups", [None, [f"L{i // 2}" for i in range(80)]], ids=["single", "grouped"])
def test_split_table_depends_on_the_seed_alone(groups):
    labels = [*"AABB"] * 20
    first, again, other = (values(split_table(make_table(labels, groups), seed=s), "split") for s in (0, 0, 1))
    assert first == again
    assert first != other


@pytest.mark.parametrize("test_size", [0, 1, -0.1, 1.5, 20, float("nan"), float("inf"), "0.2", None, True])
@pytest.mark.parametrize("groups", [None, ["L"] * 2 + [None] * 18], ids=["single", "grouped"])
def test_split_table_refuses_a_test_size(test_size, groups):
    with pytest.raises(UsageError, match=r"^test_size is .*: use a share between 0 and 1, such as 0.2$"):
        split_table(make_table([*"AABB"] * 5, groups), test_size)


@pytest.mark.parametrize(
    ("labels", "groups", "split", "message"),
    [
        pytest.param(
            "AABB",
            None,
            ["test", None, "train", None],
            r"^the table already has a split for 2 images: drop the column 'split' to make a new one$",
            id="split exists",
        ),
        pytest.param(
            [None] * 4, None, None, r"^no image has a label, and a stratified split needs them$", id="no label"
        ),
        pytest.param(
            "AAAA", None, None, r"^all 4 images are of the class 'A': a classifier needs two$", id="one class"
        ),
        pytest.param(
            "AAAAB",
            None,
            None,
            r"^every class needs at least 2 images or groups for a train and a test side, .* B \(1\); drop or merge",
            id="class of one image",
        ),
        pytest.param("AAAABBB", [*"abcdeee"], None, r"have fewer: B \(1\); drop or merge", id="class of one group"),
        pytest.param("ABCAB", None, None, r"have fewer: C \(1\)", id="third class too small"),
        pytest.param(
            "AABBCC",
            None,
            None,
            r"^test_size 0.2 of 6 images leaves 2 for the test and 4 to train, too few for 3 classes: use a share",
            id="share too small",
        ),
    ],
)
def test_split_table_refuses(labels, groups, split, message):
    columns = {} if split is None else {"split": split}
    with pytest.raises(DataError, match=message):
        split_table(make_table([*labels], groups, **columns), 0.2)


@pytest.mark.parametrize("test_size", [0.05, 0.15, 0.3, 0.95])
def test_split_table_of_few_groups_comes_as_near_as_it_can(test_size):
    split = split_table(make_table([*"AAAAAABBBBBB"], [f"L{i // 2}" for i in range(12)]), test_size)
    assert split.groupby("group")["split"].nunique().max() == 1
    assert split.groupby("split")["label"].nunique().to_dict() == {"train": 2, "test": 2}


# ------------------------------------------------------------------------------------ as_table, check_table, relabel


def test_as_table_of_a_table():
    table = as_table(make_table(["A", None]))
    assert list(table.columns) == list(COLUMNS)
    assert values(table, "label") == ["A", None]


def test_as_table_of_a_folder(tmp_path):
    make_files(tmp_path, "MEL/a.jpg")
    for folder in (tmp_path, str(tmp_path)):
        assert values(as_table(folder), "label") == ["MEL"]


def test_as_table_of_one_file(tmp_path, monkeypatch):
    make_files(tmp_path, "MEL/a.jpg")
    monkeypatch.chdir(tmp_path)
    for file in ("MEL/a.jpg", Path("MEL/a.jpg")):
        table = as_table(file)
        assert values(table, "image_id") == [os.path.join("MEL", "a.jpg")]
        assert values(table, "path") == [str(tmp_path / "MEL/a.jpg")]
        assert values(table, "label") == [None]


@pytest.mark.parametrize("kind", [list, tuple, iter, pd.Series, lambda paths: np.array(paths, dtype=object)])
def test_as_table_of_paths_in_their_order(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table = as_table(kind(["b.jpg", Path("x", "a.jpg"), "gone.jpg"]))
    assert values(table, "image_id") == ["b.jpg", os.path.join("x", "a.jpg"), "gone.jpg"]
    assert values(table, "path") == [str(tmp_path / name) for name in ("b.jpg", "x/a.jpg", "gone.jpg")]


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (5, UsageError, r"^images is a int: pass a table, a folder, or a list of paths$"),
        (None, UsageError, r"^images is a NoneType: pass"),
        ([], DataError, r"^the list of images is empty$"),
        (["a.jpg", 5], UsageError, r"^the list of images holds a int: pass paths of image files$"),
        ([b"a.jpg"], UsageError, r"holds a bytes"),
        (np.zeros((2, 4, 4, 3)), UsageError, r"holds a ndarray"),
        (["a.jpg", "a.jpg"], DataError, r"1 duplicate image id\(s\) in the table \('a.jpg'\)"),
        ("no such thing.jpg", UsageError, r"^'no such thing.jpg' does not exist"),
    ],
)
def test_as_table_refuses(images, error, message):
    with pytest.raises(error, match=message):
        as_table(images)


def test_check_table_fills_columns_and_turns_values_to_text():
    table = pd.DataFrame(
        {"image_id": [1, 2, 3, 4], "path": [Path("a"), "b", "c", "d"], "label": [0, "x", float("nan"), " "], "age": 5},
        index=[9, 9, 9, 9],
    )
    checked = check_table(table)
    assert list(checked.columns) == list(COLUMNS)
    assert list(checked.index) == [0, 1, 2, 3]
    assert values(checked, "image_id") == ["1", "2", "3", "4"]
    assert values(checked, "path") == ["a", "b", "c", "d"]
    assert values(checked, "label") == ["0", "x", None, None]
    assert values(checked, "group") == values(checked, "split") == [None] * 4


def test_check_table_writes_whole_numbers_alike_where_one_is_missing():
    whole, floats = make_table([1, 2], [7, 10**15]), make_table([1, 2, None], [7, 10**15, None])
    assert (floats["label"].dtype, floats["group"].dtype) == (float, float)
    for column in ("label", "group"):
        assert values(check_table(floats), column) == [*values(check_table(whole), column), None]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.0, "1"),
        (-0.0, "0"),
        (np.float32(3), "3"),
        (0.5, "0.5"),
        (2.0**53, "9007199254740992.0"),
        (1e300, "1e+300"),
        (float("inf"), "inf"),
        ("1.0", "1.0"),
        (True, "True"),
    ],
)
def test_check_table_writes_a_value_as(value, text):
    assert values(check_table(make_table(pd.Series([value], dtype=object))), "label") == [text]


def test_check_table_twice_is_once():
    once = check_table(make_table(["A", None], ["g", None], split=["Training", None]))
    pd.testing.assert_frame_equal(check_table(once), once)
    assert values(once, "split") == ["train", None]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"path": ["a"]}, r"^the table has no column 'image_id': it has \['path'\]$"),
        ({"image_id": ["a"]}, r"^the table has no column 'path': it has \['image_id'\]$"),
        ({"image_id": [], "path": []}, r"^the table has no rows$"),
        ({"image_id": ["a", None, " "], "path": [*"xyz"]}, r"^2 row\(s\) of the table without image_id \('1', '2'\)$"),
        ({"image_id": [*"ab"], "path": ["x", float("nan")]}, r"^1 row\(s\) of the table without path \('1'\)$"),
        (
            {"image_id": [*"aba"], "path": [*"xyz"]},
            r"^1 duplicate image id\(s\) in the table \('a'\): every image needs",
        ),
        ({"image_id": [1, "1"], "path": [*"xy"]}, r"1 duplicate image id\(s\) in the table \('1'\)"),
        ({"image_id": ["a"], "path": ["x"], "split": ["dev"]}, r"^unknown split 'dev': use train, val or test$"),
    ],
)
def test_check_table_refuses(columns, message):
    with pytest.raises(DataError, match=message):
        check_table(pd.DataFrame(columns))


def test_check_table_warns_about_groups_with_several_labels():
    labels = ["A", "B", "A", "A", "B", None, "A"]
    groups = ["g1", "g1", "g2", "g3", "g3", "g2", None]
    with pytest.warns(DataWarning, match=r"^2 group\(s\) with more than one label \('g1', 'g3'\)$"):
        check_table(make_table(labels, groups))


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ({}, ["A", "B", "C", None]),
        ({"A": "x"}, ["x", "B", "C", None]),
        ({"A": "B", "B": "A"}, ["B", "A", "C", None]),
        ({"A": "rest", "C": "rest"}, ["rest", "B", "rest", None]),
        ({"A": None, "B": float("nan"), "C": ""}, [None, None, None, None]),
        ({"A": 1}, ["1", "B", "C", None]),
        (pd.Series({"img3": "Z", "img1": "Y", "img0": "X", "img2": "W"}), ["X", "Y", "W", "Z"]),
        (pd.Series({"img1": "Y", "img2": None}, dtype=object), [None, "Y", None, None]),
    ],
)
def test_relabel(labels, expected):
    table = make_table(["A", "B", "C", None])
    assert values(relabel(table, labels), "label") == expected
    assert values(table, "label") == ["A", "B", "C", None]


def test_groups_have_one_name_however_a_file_is_read(tmp_path):
    """As pandas writes whole numbers where one is missing, and reads them again."""
    (tmp_path / "a.csv").write_text(
        "image,label,patient\nx,A,1.0\ny,B,\nz,B,12.0\nv,A,1.5\nw,A,007\n", encoding="utf-8"
    )
    for name in "xyzvw":
        (tmp_path / f"{name}.png").touch()
    text = read_csv(tmp_path / "a.csv", tmp_path, group="patient")
    assert dict(zip(text["image_id"], text["group"], strict=True)) == {
        "x": "1",
        "y": None,
        "z": "12",
        "v": "1.5",
        "w": "007",
    }
    numbers = text.assign(group=[1.0, None, 12.0, 1.5, "007"])
    assert values(check_table(numbers), "group") == values(text, "group")


@pytest.mark.parametrize("labels", [[0, 1], [0.0, 1.0, None]])
def test_labels_of_images_without_any_become_text(labels):
    table = make_table([None] * len(labels))
    series = pd.Series(labels, index=table["image_id"])
    assert values(relabel(table, series), "label") == ["0", "1", None][: len(labels)]


def test_relabel_of_labels_that_are_no_text():
    assert values(relabel(make_table([0, 1, 2]), {0: "no", 1: "yes"}), "label") == ["no", "yes", "2"]


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        ({"Z": "A"}, DataError, r"^labels names 'Z', which no image has: the labels are \['A', 'B'\]$"),
        (
            pd.Series({"img0": "A", "x": "B"}),
            DataError,
            r"^1 label\(s\) for unknown images \('x'\): index the Series by image_id$",
        ),
        (pd.Series(["A", "B"]), DataError, r"^2 label\(s\) for unknown images \('0', '1'\)"),
        (
            pd.Series(["A", "B"], index=["img0", "img0"]),
            DataError,
            r"^1 duplicate image id\(s\) in the labels \('img0'\)",
        ),
        (["A", "B"], UsageError, r"^labels is a list: pass a Series by image id, or a mapping"),
    ],
)
def test_relabel_refuses(labels, error, message):
    with pytest.raises(error, match=message):
        relabel(make_table(["A", "B"]), labels)


def test_relabel_is_quick_for_many_images():
    table = make_table([hashlib.md5(str(i).encode()).hexdigest()[0] for i in range(20_000)])
    new = pd.Series("X", index=table["image_id"])
    assert set(relabel(table, new)["label"]) == {"X"}


def test_read_folder_stray_image_beside_the_splits_has_neither_label_nor_split(tmp_path):
    make_files(tmp_path, "train/a/0.png", "train/b/1.png", "test/a/2.png", "stray.png")
    table, messages = collected(read_folder, tmp_path)
    table = table.set_index("image_id")
    assert table["split"].dropna().to_dict() == {
        "train/a/0.png": "train",
        "train/b/1.png": "train",
        "test/a/2.png": "test",
    }
    assert table["label"].dropna().to_dict() == {"train/a/0.png": "a", "train/b/1.png": "b", "test/a/2.png": "a"}
    assert any("'stray.png'" in message and "without a label" in message for message in messages)


def test_read_isic_ground_truth_of_a_test_set_has_weights_that_are_no_classes(tmp_path):
    make_files(tmp_path, "images/x.jpg", "images/y.jpg")
    truth = tmp_path / "truth.csv"
    truth.write_text(
        "image,MEL,NV,score_weight,validation_weight\nx,1.0,0.0,1.0,0\ny,0.0,1.0,0.0,1\n", encoding="utf-8"
    )
    assert read_isic(tmp_path / "images", truth)["label"].tolist() == ["MEL", "NV"]
