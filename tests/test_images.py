from __future__ import annotations

import hashlib
import io
import os
import struct
import threading
import time
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from deepfeat import images
from deepfeat.errors import ImageError, UsageError
from deepfeat.images import (
    VIEWS,
    FileStamp,
    Preparation,
    decodable_formats,
    decode_image,
    load_image,
    prepare_image,
    read_bytes,
    show_view,
    stamp_file,
    stream_images,
)
from deepfeat.resizing import RESIZE_POLICIES, resize_image

ORIENTATION = 0x0112


def noise(height, width, channels=3, seed=0):
    shape = (height, width, channels)[: 3 if channels > 1 else 2]
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def smooth(height, width):
    """A picture that JPEG keeps to within a few grey levels, and that no flip or turn maps to itself."""
    y, x = np.mgrid[:height, :width]
    return np.stack([255 * x / width, 255 * y / height, 255 * x * y / (width * height)], axis=2).astype(np.uint8)


def encode(picture, file_format="PNG", **options):
    picture = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    file = io.BytesIO()
    picture.save(file, file_format, **options)
    return file.getvalue()


def exif_of(orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif.tobytes()


def decoded(data):
    picture = decode_image(data)
    assert picture.mode == "RGB"
    return np.asarray(picture)


def grey(*levels):
    """A picture of one row."""
    return np.repeat(np.array([levels], np.uint8)[..., None], 3, axis=2)


# --------------------------------------------------------------------------------------------- formats and modes


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "TIFF", "PPM", "WEBP", "JPEG2000"])
def test_decode_image_of_a_lossless_format(file_format):
    if file_format not in decodable_formats():
        pytest.skip(f"Pillow was built without {file_format}")
    options = {"WEBP": {"lossless": True}}.get(file_format, {})
    picture = noise(9, 14)
    np.testing.assert_array_equal(decoded(encode(picture, file_format, **options)), picture)


@pytest.mark.parametrize(
    ("file_format", "options"),
    [
        ("JPEG", {"quality": 95}),
        ("JPEG", {"quality": 95, "progressive": True}),
        ("JPEG", {"quality": 95, "subsampling": 0, "optimize": True}),
        ("WEBP", {"quality": 95}),
    ],
)
def test_decode_image_of_a_lossy_format(file_format, options):
    picture = smooth(40, 60)
    np.testing.assert_allclose(decoded(encode(picture, file_format, **options)).astype(int), picture, atol=12)


def test_decode_image_of_a_progressive_jpeg_equals_the_baseline_one():
    picture = smooth(40, 60)
    baseline, progressive = (encode(picture, "JPEG", progressive=p) for p in (False, True))
    assert baseline != progressive
    np.testing.assert_array_equal(decoded(progressive), decoded(baseline))


def palette_picture():
    picture = Image.new("P", (3, 1))
    picture.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    picture.putdata([0, 1, 2])
    return picture


RED_BLUE = np.array([[[255, 0, 0], [0, 0, 255]]], np.uint8)
HALF_CLEAR = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 0, 0, 51]]], np.uint8)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(encode(Image.fromarray(np.array([[False, True]]))), grey(0, 255), id="1"),
        pytest.param(encode(np.array([[0, 7, 255]], np.uint8)), grey(0, 7, 255), id="L"),
        pytest.param(b"P5 3 1 255\n\0\7\xff", grey(0, 7, 255), id="L, PGM"),
        pytest.param(encode(np.array([[[7, 255], [7, 0], [0, 51]]], np.uint8)), grey(7, 255, 204), id="LA"),
        pytest.param(encode(palette_picture()), [[[10, 20, 30], [40, 50, 60], [70, 80, 90]]], id="P"),
        pytest.param(
            encode(palette_picture(), transparency=1), [[[10, 20, 30], [255] * 3, [70, 80, 90]]], id="P, clear colour"
        ),
        pytest.param(
            encode(palette_picture(), transparency=b"\xff\x00\x33"),
            [[[10, 20, 30], [255] * 3, [218, 220, 222]]],
            id="P, alpha table",
        ),
        pytest.param(
            encode(palette_picture(), "GIF", transparency=2), [[[10, 20, 30], [40, 50, 60], [255] * 3]], id="P, GIF"
        ),
        pytest.param(encode(RED_BLUE), RED_BLUE, id="RGB"),
        pytest.param(
            encode(Image.fromarray(RED_BLUE), transparency=(255, 0, 0)),
            [[[255] * 3, [0, 0, 255]]],
            id="RGB, clear colour",
        ),
        pytest.param(encode(HALF_CLEAR), [[[10, 20, 30], [255] * 3, [204] * 3]], id="RGBA"),
        pytest.param(encode(HALF_CLEAR, "TIFF"), [[[10, 20, 30], [255] * 3, [204] * 3]], id="RGBA, TIFF"),
        pytest.param(
            encode(HALF_CLEAR, "WEBP", lossless=True, exact=True),
            [[[10, 20, 30], [255] * 3, [204] * 3]],
            id="RGBA, WebP",
        ),
    ],
)
def test_decode_image_of_every_mode(data, expected):
    np.testing.assert_array_equal(decoded(data), expected)


@pytest.mark.parametrize(
    ("cmyk", "rgb"),
    [
        ((0, 255, 255, 0), (255, 0, 0)),
        ((255, 255, 0, 0), (0, 0, 255)),
        ((0, 0, 0, 255), (0, 0, 0)),
        ((0, 0, 0, 0), (255, 255, 255)),
    ],
)
def test_decode_image_of_a_cmyk_jpeg(cmyk, rgb):
    data = encode(Image.new("CMYK", (16, 16), cmyk), "JPEG", quality=95)
    assert Image.open(io.BytesIO(data)).mode == "CMYK"
    np.testing.assert_allclose(decoded(data).astype(int), np.broadcast_to(rgb, (16, 16, 3)), atol=6)


SIXTEEN = np.array([[0, 128, 129, 257, 32768, 65535]], np.uint16)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(encode(SIXTEEN), id="PNG"),
        pytest.param(encode(SIXTEEN, "TIFF"), id="TIFF"),
        pytest.param(
            encode(Image.frombytes("I;16B", (6, 1), SIXTEEN.astype(">u2").tobytes()), "TIFF"), id="TIFF, big-endian"
        ),
        pytest.param(b"P5 6 1 65535\n" + SIXTEEN.astype(">u2").tobytes(), id="PGM"),
        pytest.param(b"P2 6 1 65535\n0 128 129 257 32768 65535\n", id="PGM as text"),
    ],
)
def test_decode_image_of_16_bits_scales_to_8(data):
    np.testing.assert_array_equal(decoded(data), grey(0, 0, 1, 1, 128, 255))


def test_decode_image_of_a_10_bit_pgm_uses_the_whole_range():
    data = b"P5 3 1 1023\n" + np.array([0, 512, 1023], ">u2").tobytes()
    np.testing.assert_array_equal(decoded(data), grey(0, 128, 255))


@pytest.mark.parametrize("mode", ["I", "F"])
def test_decode_image_of_32_bits_is_refused_with_the_reason(mode):
    data = encode(Image.new(mode, (2, 2)), "TIFF")
    message = rf"^32-bit pixels \(mode {mode}\) have no defined range; convert the file to 8 or 16 bits$"
    with pytest.raises(ImageError, match=message):
        decode_image(data)


@pytest.mark.parametrize(
    ("file_format", "options"), [("GIF", {}), ("WEBP", {"lossless": True}), ("TIFF", {}), ("PNG", {})]
)
def test_decode_image_of_several_frames_takes_the_first(file_format, options):
    frames = [Image.new("RGB", (4, 3), colour) for colour in ("red", "lime", "blue")]
    data = encode(frames[0], file_format, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    np.testing.assert_array_equal(decoded(data), np.full((3, 4, 3), (255, 0, 0)))


def as_stored(upright, orientation):
    """What a camera writes, after the EXIF 2.3 table of where row 0 and column 0 belong."""
    return {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: upright[:, ::-1].swapaxes(0, 1),
        7: upright[::-1, ::-1].swapaxes(0, 1),
        8: upright[::-1].swapaxes(0, 1),
    }[orientation]


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_decode_image_turns_the_picture_upright(orientation, file_format):
    upright = smooth(32, 48)
    stored = np.ascontiguousarray(as_stored(upright, orientation))
    options = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}}.get(file_format, {})
    picture = decoded(encode(stored, file_format, exif=exif_of(orientation), **options))
    assert picture.shape == (32, 48, 3)
    np.testing.assert_allclose(picture.astype(int), upright, atol=12 if file_format == "JPEG" else 0)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_decode_image_ignores_an_orientation_that_does_not_exist(orientation):
    picture = noise(5, 8)
    np.testing.assert_array_equal(decoded(encode(picture, exif=exif_of(orientation))), picture)


def test_decode_image_turns_a_16_bit_picture_upright():
    data = encode(np.array([[0, 257, 65535]], np.uint16), exif=exif_of(6))
    np.testing.assert_array_equal(decoded(data), grey(0, 1, 255).swapaxes(0, 1))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0garbage garbage", b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12"])
def test_decode_image_survives_damaged_exif(exif):
    picture = smooth(16, 24)
    np.testing.assert_allclose(decoded(encode(picture, "JPEG", quality=95, exif=exif)).astype(int), picture, atol=15)
    np.testing.assert_array_equal(decoded(encode(picture, "PNG", exif=exif)), picture)
    marked = encode(picture, "JPEG", quality=95, exif=exif, dpi=(300, 300))
    np.testing.assert_allclose(decoded(marked).astype(int), picture, atol=15)


# ----------------------------------------------------------------------------------------------- kinds of TIFF


def tiff(tags, strips, order="<", *, compress=False, big=False):
    """A TIFF of 8 x 6 pixels, written by hand; ``tags`` are lists of numbers, ``strips`` arrays or bytes."""
    strips = [strip if isinstance(strip, bytes) else strip.tobytes() for strip in strips]
    strips = [zlib.compress(strip) for strip in strips] if compress else strips
    sizes = [len(strip) for strip in strips]
    tags = {256: [8], 257: [6], 259: [8 if compress else 1], 278: [6], 279: sizes, **tags}
    word, count, entry = ("Q", "Q", 20) if big else ("I", "H", 12)
    room = struct.calcsize(word)
    at = (16 if big else 8) + struct.calcsize(order + count) + entry * (len(tags) + 1) + room
    tags[273] = [0] * len(strips)
    long = {tag: struct.calcsize(f"{order}{len(values)}I") for tag, values in tags.items() if 4 * len(values) > room}
    at += sum(long.values())
    tags[273] = [at + sum(sizes[:n]) for n in range(len(strips))]
    at -= sum(long.values())
    entries, beside = b"", b""
    for tag, values in sorted(tags.items()):
        content = struct.pack(f"{order}{len(values)}I", *values)
        if tag in long:
            content, beside = struct.pack(order + word, at + len(beside)), beside + content
        entries += struct.pack(order + "HH" + word, tag, 4, len(values)) + content.ljust(room, b"\0")
    mark = {"<": b"II", ">": b"MM"}[order]
    head = struct.pack(order + "HHHQ", 43, 8, 0, 16) if big else struct.pack(order + "HI", 42, 8)
    return b"".join([mark, head, struct.pack(order + count, len(tags)), entries, bytes(room), beside, *strips])


COLOURS = np.random.default_rng(1).integers(0, 256, (6, 8, 3))
LEVELS = COLOURS[..., :1]
U16, U16B = np.dtype("<u2"), np.dtype(">u2")
SIXTEENFOLD = (COLOURS * 257).astype(U16)
GREY16 = SIXTEENFOLD[..., 0]
PLANES = [np.moveaxis(SIXTEENFOLD, 2, 0)[n] for n in range(3)]
OPAQUE = np.full((6, 8), 255, np.uint8)


def bits_of(bits, photometric, samples=1, **others):
    """Tags of the kind of pixels."""
    names = {"extra": 338, "format": 339, "planes": 284, "colours": 320}
    return {258: [bits] * samples, 262: [photometric], 277: [samples], **{names[k]: v for k, v in others.items()}}


CANNOT = "channels in separate planes cannot be read; save the file with one plane"


@pytest.mark.parametrize("compress", [False, True], ids=["raw", "deflate"])
@pytest.mark.parametrize(
    ("tags", "pixels", "reason"),
    [
        pytest.param(
            bits_of(12, 1),
            [b"\xff" * 72],
            "12-bit pixels cannot be read; convert the file to unsigned 8 or 16 bits",
            id="12",
        ),
        pytest.param(
            bits_of(8, 1, format=[2]),
            [LEVELS.astype(np.int8)],
            "signed pixels have no defined range; convert the file to unsigned 8 or 16 bits",
            id="signed 8",
        ),
        pytest.param(
            bits_of(16, 1, format=[2]),
            [GREY16],
            "signed pixels have no defined range; convert the file to unsigned 8 or 16 bits",
            id="signed 16",
        ),
        pytest.param(
            bits_of(16, 0),
            [GREY16],
            "16-bit grey with white as zero cannot be read; convert it to black as zero",
            id="16, white is zero",
        ),
        pytest.param(bits_of(8, 1, 2, extra=[2], planes=[2]), [LEVELS.astype("u1"), OPAQUE], CANNOT, id="LA, planes"),
        pytest.param(
            bits_of(8, 3, 2, extra=[2], planes=[2], colours=list(range(0, 768 * 64, 64))),
            [LEVELS.astype("u1"), OPAQUE],
            CANNOT,
            id="PA, planes",
        ),
    ],
)
def test_decode_image_refuses_a_tiff_whose_pixels_would_be_wrong(tags, pixels, reason, compress):
    assert len(reason) <= 80, "a store keeps as many characters of a reason"
    with pytest.raises(ImageError) as raised:
        decode_image(tiff(tags, pixels, compress=compress))
    assert str(raised.value) == reason


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("tags", "n_planes"),
    [
        (bits_of(16, 2, 3, planes=[2]), 3),
        (bits_of(16, 2, 4, planes=[2], extra=[2]), 4),
        (bits_of(16, 5, 4, planes=[2]), 4),
    ],
    ids=["RGB", "RGBA", "CMYK"],
)
def test_decode_image_refuses_16_bit_planes_that_are_not_compressed(tags, n_planes, order):
    planes = [GREY16.astype(order + "u2")] * n_planes
    with pytest.raises(ImageError, match=f"^{CANNOT}$"):
        decode_image(tiff(tags, planes, order))


@pytest.mark.parametrize(
    ("tags", "pixels", "expected"),
    [
        pytest.param(bits_of(1, 1), [np.packbits(LEVELS[..., 0] > 127, axis=1)], 255 * (LEVELS > 127), id="1"),
        pytest.param(
            bits_of(1, 0), [np.packbits(LEVELS[..., 0] > 127, axis=1)], 255 * (LEVELS <= 127), id="1, white is zero"
        ),
        pytest.param(
            bits_of(4, 1),
            [(LEVELS[:, ::2, 0] & 0xF0 | LEVELS[:, 1::2, 0] >> 4).astype("u1")],
            LEVELS // 16 * 17,
            id="4",
        ),
        pytest.param(bits_of(8, 1), [LEVELS.astype("u1")], LEVELS, id="8"),
        pytest.param(bits_of(8, 0), [LEVELS.astype("u1")], 255 - LEVELS, id="8, white is zero"),
        pytest.param(bits_of(8, 2, 3), [COLOURS.astype("u1")], COLOURS, id="RGB"),
        pytest.param(
            bits_of(8, 2, 3, planes=[2]), list(np.moveaxis(COLOURS, 2, 0).astype("u1")), COLOURS, id="RGB, planes"
        ),
        pytest.param(
            bits_of(8, 5, 4),
            [np.concatenate([255 - COLOURS, 0 * LEVELS], axis=2).astype("u1")],
            COLOURS,
            id="CMYK",
        ),
        pytest.param(
            bits_of(8, 3, colours=[257 * (n % 256) ^ 0x5555 for n in range(768)]),
            [LEVELS.astype("u1")],
            LEVELS ^ 0x55,
            id="P",
        ),
        pytest.param(bits_of(16, 1), [GREY16], LEVELS, id="16"),
        pytest.param(bits_of(16, 1, format=[1]), [GREY16], LEVELS, id="16, said to be unsigned"),
        pytest.param(bits_of(16, 2, 3), [SIXTEENFOLD], COLOURS, id="RGB of 16"),
    ],
)
@pytest.mark.parametrize("big", [False, True], ids=["TIFF", "BigTIFF"])
@pytest.mark.parametrize("compress", [False, True], ids=["raw", "deflate"])
def test_decode_image_of_an_ordinary_tiff(tags, pixels, expected, compress, big):
    found = decoded(tiff(tags, pixels, compress=compress, big=big))
    np.testing.assert_array_equal(found, np.broadcast_to(expected, (6, 8, 3)))


def test_decode_image_of_16_bit_planes_that_are_compressed():
    data = tiff(bits_of(16, 2, 3, planes=[2]), list(np.moveaxis(SIXTEENFOLD, 2, 0)), compress=True)
    np.testing.assert_array_equal(decoded(data), COLOURS)


def test_decode_image_of_a_jpeg_in_a_tiff():
    picture = smooth(40, 60)
    found = decoded(encode(picture, "TIFF", compression="jpeg", quality=95))
    np.testing.assert_allclose(found.astype(int), picture, atol=12)


# ------------------------------------------------------------------------------------------------------- failures

JPEG, PNG = encode(noise(50, 50), "JPEG"), encode(noise(50, 50))
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.mark.parametrize("kept", [1, 3, 20, 100, 300, len(JPEG) // 2, len(JPEG) - 20, len(JPEG) - 2, len(JPEG) - 1])
def test_decode_image_of_a_truncated_jpeg(kept):
    with pytest.raises(ImageError, match=r"^cut off: .+|^damaged: .+|^not an image of a known format$"):
        decode_image(JPEG[:kept])


def with_thumbnail(jpeg):
    """A JPEG with another one, end mark and all, in its header, as cameras write it."""
    thumbnail = b"Exif\0\0" + encode(noise(8, 8), "JPEG")
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(thumbnail)) + thumbnail + jpeg[2:]


def zero_from(data, part):
    """A file whose space was set aside and only filled in part, as a broken download leaves it."""
    kept = int(len(data) * part)
    return data[:kept] + bytes(len(data) - kept)


LARGE = encode(smooth(400, 600), "JPEG")
PROGRESSIVE = encode(smooth(400, 600), "JPEG", progressive=True)
TWO_IN_ONE = encode(smooth(400, 600), "MPO", save_all=True, append_images=[Image.fromarray(noise(9, 9))])
JPEGS = [
    pytest.param(LARGE, id="baseline"),
    pytest.param(PROGRESSIVE, id="progressive"),
    pytest.param(with_thumbnail(LARGE), id="thumbnail"),
    pytest.param(TWO_IN_ONE, id="MPO"),
    pytest.param(LARGE[:2] + b"\xff\xff\xff" + LARGE[3:], id="filled markers"),
    pytest.param(LARGE[:20] + b"junk" + LARGE[20:], id="junk before a marker"),
]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("at_least", [None, 64])
@pytest.mark.parametrize("part", [0.5, 0.8])
@pytest.mark.parametrize("data", JPEGS)
def test_decode_image_of_a_jpeg_whose_end_is_zeros_is_refused(data, part, at_least):
    with pytest.raises(ImageError, match=r"^cut off: the JPEG has no end mark \(FF D9\)$"):
        decode_image(zero_from(data, part), at_least)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("tail", [b"", bytes(5000), b"a film\xff\xda\xff"], ids=["nothing", "zeros", "a film"])
@pytest.mark.parametrize("data", JPEGS)
def test_decode_image_of_a_whole_jpeg_whatever_follows_its_end(data, tail):
    expected = PROGRESSIVE if data == PROGRESSIVE else LARGE
    np.testing.assert_array_equal(decoded(data + tail), np.asarray(Image.open(io.BytesIO(expected))))


@pytest.mark.parametrize("kept", [1, 7, 8, 20, 33, 40, 100, len(PNG) // 2, len(PNG) - 100])
def test_decode_image_of_a_truncated_png(kept):
    with pytest.raises(ImageError, match=r"^damaged: .+|^not an image of a known format$"):
        decode_image(PNG[:kept])


@pytest.mark.parametrize("kept", [len(PNG) - 12, len(PNG) - 1])
def test_decode_image_of_a_png_that_lacks_only_its_end_mark_is_whole(kept):
    np.testing.assert_array_equal(decoded(PNG[:kept]), noise(50, 50))


@pytest.mark.parametrize(
    "data",
    [b"not an image", b"\xff\xd8\xff", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%PDF-1.7\n", EPS, b"\0" * 1000],
    ids=["text", "JPEG mark", "SVG", "PDF", "EPS", "zeros"],
)
def test_decode_image_of_something_else(data):
    with pytest.raises(ImageError, match=r"^not an image of a known format$"):
        decode_image(data)


@pytest.mark.parametrize("data", [PNG, PNG[:3000], JPEG, JPEG[:1000]], ids=["PNG", "cut PNG", "JPEG", "cut JPEG"])
def test_decode_image_does_not_go_on_while_pillow_fills_up_what_is_cut_off(monkeypatch, data):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(UsageError, match=r"^PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set, .*: set it to False in"):
        decode_image(data)


def test_decodable_formats_hold_no_format_that_starts_another_program():
    assert {"JPEG", "PNG", "BMP", "GIF", "TIFF", "PPM"} <= set(decodable_formats())
    assert not {"EPS", "WMF", "PDF", "PSD", "ICO"} & set(decodable_formats())


def test_decode_image_of_a_decompression_bomb(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ImageError, match=r"^too many pixels$"):
        decode_image(encode(noise(15, 14)))
    with pytest.warns(Image.DecompressionBombWarning):
        np.testing.assert_array_equal(decoded(encode(noise(14, 14))), noise(14, 14))
    np.testing.assert_array_equal(decoded(encode(noise(10, 10))), noise(10, 10))


@pytest.mark.parametrize(
    ("error", "reason"), [(IndexError(), "damaged: IndexError"), (OSError("odd bits"), "damaged: odd bits")]
)
def test_decode_image_gives_a_reason_for_any_failure(monkeypatch, error, reason):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(ImageError, match=f"^{reason}$"):
        decode_image(b"x")


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300))
def test_decode_image_of_random_bytes_raises_only_image_errors(data):
    with pytest.raises(ImageError):
        decode_image(data)


VALID = [
    encode(noise(9, 7), file_format, **options)
    for file_format, options in [
        ("PNG", {}), ("JPEG", {}), ("GIF", {}), ("BMP", {}), ("TIFF", {}), ("WEBP", {}), ("PPM", {}), ("JPEG2000", {}),
        ("TIFF", {"compression": "tiff_lzw"}), ("JPEG", {"exif": exif_of(6), "progressive": True}),
    ]
]  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(VALID), st.data())
def test_decode_image_of_a_damaged_file_gives_a_picture_or_an_image_error(valid, data):
    damaged = bytearray(valid)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    damaged = bytes(damaged[: data.draw(st.integers(1, len(damaged)))])
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)  # a flipped bit of the size must not fill the memory
        reason = None
        try:
            mode = decode_image(damaged).mode
        except ImageError as error:
            reason = str(error)
    assert mode == "RGB" if reason is None else reason


# ------------------------------------------------------------------------------------------- files, one and many


def test_load_image_gives_stamp_digest_and_pixels(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encode(noise(20, 30)))
    loaded = load_image(7, str(path), [Preparation((5, 6), "squash")])
    assert loaded.row == 7
    assert loaded.reason is None
    assert loaded.digest == hashlib.sha256(path.read_bytes()).digest()
    assert loaded.stamp == FileStamp(path.stat().st_size, path.stat().st_mtime_ns) == stamp_file(str(path))
    np.testing.assert_array_equal(
        loaded.pixels[Preparation((5, 6), "squash")], resize_image(Image.fromarray(noise(20, 30)), (5, 6), "squash")
    )


def test_stamp_file_changes_with_the_file(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"x")
    os.utime(path, ns=(1, 2_000_000_001))
    assert stamp_file(str(path)) == FileStamp(1, 2_000_000_001)
    path.write_bytes(b"xy")
    assert stamp_file(str(path)) != FileStamp(1, 2_000_000_001)
    assert stamp_file(str(tmp_path / "gone")) is None


@pytest.mark.parametrize(
    ("time_ns", "kept"),
    [(10_413_792_000 * 10**9, 2**63 - 1), (-(10_413_792_000 * 10**9), -(2**63)), (2**63 - 1, 2**63 - 1), (-1, -1)],
)
def test_stamp_file_of_a_time_beyond_int64(monkeypatch, time_ns, kept):
    # Few file systems keep such times.
    status = type("Status", (), {"st_size": 7, "st_mtime_ns": time_ns})
    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", lambda _: status)
        stamp = stamp_file("a.png")
    assert stamp == FileStamp(7, kept)
    np.testing.assert_array_equal(np.array([stamp.mtime_ns], np.int64), [kept])


@pytest.fixture
def slide(tmp_path):
    """A file of 3 GiB that takes no space."""
    path = tmp_path / "slide.tif"
    with path.open("wb") as file:
        file.write(b"II*\0")
        file.truncate(3 << 30)
    return path


def test_load_image_of_a_file_that_is_too_large_does_not_read_it(slide, monkeypatch):
    def refuse(*_):
        raise OSError(5, "opened")

    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", refuse)
        loaded = load_image(0, str(slide), [Preparation((5, 5), "crop")])
    assert loaded.reason == "file of 3 GiB is too large: an image may have 1 GiB"
    assert (loaded.stamp.size, loaded.digest, loaded.pixels) == (3 << 30, None, {})


def test_read_bytes_of_as_many_as_allowed_and_one_more(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MAX_FILE_BYTES", 10)
    (tmp_path / "a").write_bytes(b"x" * 10)
    (tmp_path / "b").write_bytes(b"x" * 11)
    assert read_bytes(str(tmp_path / "a")) == b"x" * 10
    with pytest.raises(ImageError, match="is too large"):
        read_bytes(str(tmp_path / "b"))


def test_load_image_for_which_there_is_no_memory(tmp_path, monkeypatch):
    def fail(*_):
        raise MemoryError

    (tmp_path / "a.png").write_bytes(PNG)
    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", fail)
        loaded = load_image(0, str(tmp_path / "a.png"), [Preparation((5, 5), "crop")])
    assert loaded.reason == "not enough memory to read the file"


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "empty file"), (b"just text\n", "not an image of a known format"), (EPS, "not an image of a known format")],
)
def test_load_image_of_a_bad_file(tmp_path, content, reason):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    loaded = load_image(3, str(path), [Preparation((5, 5), "pad")])
    assert (loaded.row, loaded.pixels, loaded.reason) == (3, {}, reason)
    assert loaded.stamp.size == len(content)
    assert loaded.digest == (hashlib.sha256(content).digest() if content else None)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("gone.jpg", "file not found"),
        ("no/such/folder.jpg", "file not found"),
        ("n" * 300, "unreadable: File name too long"),
        ("null\0.jpg", "not a file name: embedded null byte"),
        ("lone\ud800.jpg", "not a file name: 'utf-8' codec can't encode"),
    ],
)
def test_load_image_without_a_file(tmp_path, name, reason):
    loaded = load_image(0, str(tmp_path / name), [Preparation((5, 5), "crop")])
    assert (loaded.stamp, loaded.digest, loaded.pixels) == (None, None, {})
    assert loaded.reason.startswith(reason)


def test_load_image_of_a_folder(tmp_path):
    loaded = load_image(0, str(tmp_path), [Preparation((5, 5), "crop")])
    assert loaded.pixels == {}
    assert loaded.reason == "not a regular file"


def test_load_image_of_a_broken_link(tmp_path):
    (tmp_path / "a.jpg").symlink_to(tmp_path / "gone")
    assert load_image(0, str(tmp_path / "a.jpg"), [Preparation((5, 5), "crop")]).reason == "file not found"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read every file")
def test_load_image_without_permission(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(PNG)
    path.chmod(0)
    assert load_image(0, str(path), [Preparation((5, 5), "crop")]).reason == "unreadable: Permission denied"


def test_load_image_reports_what_the_system_said(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    path = tmp_path / "a.png"
    path.write_bytes(PNG)
    monkeypatch.setattr("builtins.open", refuse)
    assert load_image(0, str(path), [Preparation((5, 5), "crop")]).reason == "unreadable: Permission denied"


@pytest.fixture
def folder(tmp_path):
    """Twelve files by row number: every fourth is missing or damaged."""
    paths = {}
    for row in range(12):
        path = tmp_path / f"{row}.png"
        if row % 4 == 1:
            path.write_bytes(encode(noise(30, 40, seed=row))[:200])
        elif row % 4 != 3:
            path.write_bytes(encode(noise(30, 40, seed=row)))
        paths[100 - row] = str(path)
    return paths


def wanted(paths, size, policy):
    return [(row, path, [Preparation(size, policy)]) for row, path in paths.items()]


def test_stream_images_keeps_the_order_and_reports_failures(folder):
    loaded = list(stream_images(wanted(folder, (8, 8), "squash"), workers=3, ahead=5))
    assert [item.row for item in loaded] == list(folder)
    expected = [None, "damaged: image file is truncated", None, "file not found"] * 3
    assert [item.reason for item in loaded] == expected
    for number, item in enumerate(loaded):
        assert (not item.pixels) == (item.reason is not None)
        for pixels in item.pixels.values():
            picture = Image.fromarray(noise(30, 40, seed=number))
            np.testing.assert_array_equal(pixels, resize_image(picture, (8, 8), "squash"))


@pytest.mark.parametrize("ahead", [1, 2, 100])
@pytest.mark.parametrize("policy", RESIZE_POLICIES)
def test_stream_images_gives_the_same_for_any_number_of_workers(folder, policy, ahead):
    one, four = (list(stream_images(wanted(folder, (9, 7), policy), workers=w, ahead=ahead)) for w in (1, 4))
    assert [(i.row, i.stamp, i.digest, i.reason) for i in one] == [(i.row, i.stamp, i.digest, i.reason) for i in four]
    for a, b in zip(one, four, strict=True):
        assert a.pixels.keys() == b.pixels.keys()
        for key, pixels in a.pixels.items():
            np.testing.assert_array_equal(pixels, b.pixels[key])


def test_stream_images_of_nothing():
    assert list(stream_images(wanted({}, (8, 8), "squash"), workers=2, ahead=4)) == []


@pytest.fixture
def loads(monkeypatch):
    """Replaces the loading of files; lists the rows whose loading has begun. Early rows take longest."""
    begun, lock = [], threading.Lock()

    def load(row, path, preparations):
        with lock:
            begun.append(row)
        time.sleep(0.005 if row % 3 == 0 else 0)
        return images.LoadedImage(row, None, None, {}, path)

    monkeypatch.setattr(images, "load_image", load)
    return begun


@pytest.mark.parametrize(("workers", "ahead"), [(1, 1), (4, 1), (2, 3), (4, 8), (8, 4)])
def test_stream_images_bounds_the_images_in_flight(loads, workers, ahead):
    paths = {row: str(row) for row in range(40)}
    for number, item in enumerate(stream_images(wanted(paths, (1, 1), "pad"), workers=workers, ahead=ahead)):
        time.sleep(0.001)
        assert item.row == number
        assert len(loads) <= number + ahead
    assert sorted(loads) == list(paths)


def test_stream_images_loads_ahead_while_the_caller_works(loads):
    stream = stream_images(wanted({row: str(row) for row in range(40)}, (1, 1), "pad"), workers=2, ahead=6)
    next(stream)
    deadline = time.monotonic() + 5
    while len(loads) < 6 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert len(loads) == 6
    stream.close()


def test_stream_images_closed_early_stops_its_threads(loads):
    before = threading.active_count()
    stream = stream_images(wanted({row: str(row) for row in range(10_000)}, (1, 1), "pad"), workers=2, ahead=50)
    assert [next(stream).row, next(stream).row] == [0, 1]
    closer = threading.Thread(target=stream.close, daemon=True)
    closer.start()
    closer.join(timeout=10)
    assert not closer.is_alive()
    assert threading.active_count() == before
    assert len(loads) <= 52
    with pytest.raises(StopIteration):
        next(stream)


def test_stream_images_never_begun_starts_no_thread(loads):
    before = threading.active_count()
    stream_images(wanted({0: "a"}, (1, 1), "pad"), workers=2, ahead=2).close()
    assert threading.active_count() == before
    assert loads == []


def test_stream_images_passes_on_an_error_that_is_not_about_the_file(monkeypatch):
    def load(*_):
        raise MemoryError

    monkeypatch.setattr(images, "load_image", load)
    with pytest.raises(MemoryError):
        list(stream_images(wanted({0: "a", 1: "b"}, (1, 1), "pad"), workers=2, ahead=2))


def test_stream_images_ends_where_pillow_fills_up_what_is_cut_off(folder, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    stream = stream_images(wanted(folder, (8, 8), "squash"), workers=2, ahead=4)
    with pytest.raises(UsageError, match="LOAD_TRUNCATED_IMAGES"):
        next(stream)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_load_image_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    assert load_image(0, str(tmp_path / "pipe.jpg"), [Preparation((8, 8), "squash")]).reason == "not a regular file"


def test_every_view_is_what_numpy_makes_of_the_pixels():
    picture = noise(12, 12)
    shown = {view: np.asarray(show_view(Image.fromarray(picture), view)) for view in VIEWS[:6]}
    expected = {
        "original": picture,
        "hflip": picture[:, ::-1],
        "vflip": picture[::-1],
        "rot90": np.rot90(picture),
        "rot180": np.rot90(picture, 2),
        "rot270": np.rot90(picture, 3),
    }
    assert shown.keys() == expected.keys()
    for view, pixels in expected.items():
        np.testing.assert_array_equal(shown[view], pixels)


@pytest.mark.parametrize(
    ("view", "rows", "columns"),
    [
        ("center", slice(1, 9), slice(2, 18)),
        ("top_left", slice(0, 8), slice(0, 16)),
        ("top_right", slice(0, 8), slice(4, 20)),
        ("bottom_left", slice(2, 10), slice(0, 16)),
        ("bottom_right", slice(2, 10), slice(4, 20)),
    ],
)
def test_crop_views_keep_four_fifths_of_each_side(view, rows, columns):
    picture = noise(10, 20)
    np.testing.assert_array_equal(np.asarray(show_view(Image.fromarray(picture), view)), picture[rows, columns])


def photograph(height, width, **options):
    """A JPEG with edges and gradients, as decoders see them."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / (7 + 3 * c) + y / 23) + ((x // 40 + y // 60) % 2) for c in range(3)]
    grey = np.stack(waves, axis=-1)
    return encode(np.uint8(np.clip((grey + 1) * 85, 0, 255)), "JPEG", quality=90, **options)


@pytest.mark.parametrize(
    ("height", "width", "at_least", "size"),
    [
        (1000, 1200, 448, (600, 500)),
        (895, 1200, 448, (1200, 895)),
        (2000, 1800, 448, (450, 500)),
        (3600, 3600, 448, (450, 450)),
        (450, 600, 448, (600, 450)),
        (7, 9, 1, (3, 2)),
    ],
)
def test_large_jpegs_are_decoded_at_a_fraction(height, width, at_least, size):
    assert decode_image(photograph(height, width), at_least).size == size


def test_other_formats_are_decoded_whole():
    assert decode_image(encode(noise(1000, 1000)), 100).size == (1000, 1000)


@pytest.mark.parametrize("shape", [(1024, 1024), (1500, 2000), (2400, 2300)])
def test_scaled_decoding_differs_little_from_plain_pillow(shape):
    data = photograph(*shape)
    (pixels,) = prepare_image(data, [Preparation((224, 224), "squash")]).values()
    plain = np.asarray(Image.open(io.BytesIO(data)).convert("RGB").resize((224, 224), Image.Resampling.BILINEAR))
    difference = np.abs(pixels.astype(int) - plain)
    assert difference.mean() < 1.0
    assert difference.max() <= 32


def test_pixels_do_not_depend_on_what_else_is_prepared():
    data = photograph(1024, 1024)
    preparations = [
        Preparation((size, size), "squash", view) for size in (64, 224, 299) for view in ("original", "center")
    ]
    together = prepare_image(data, preparations)
    for preparation in preparations:
        np.testing.assert_array_equal(together[preparation], prepare_image(data, [preparation])[preparation])


def test_image_is_decoded_once_for_one_size(monkeypatch):
    decoded = []
    original = images.decode_image

    def count(*arguments):
        decoded.append(arguments)
        return original(*arguments)

    monkeypatch.setattr(images, "decode_image", count)
    prepare_image(PNG, [Preparation((8, 8), policy, view) for policy in RESIZE_POLICIES for view in VIEWS[:6]])
    assert len(decoded) == 1
