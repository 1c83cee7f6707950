from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import PIL
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from deepfeat import resizing
from deepfeat.resizing import RESIZE_POLICIES, resize_image, resizer

needs_cykooz = pytest.mark.skipif(
    not resizing._has_cykooz(), reason="no cykooz-resizer for this platform and Pillow: its resizing is NOT tested"
)


@pytest.fixture(autouse=True, params=["pillow", pytest.param("cykooz-resizer", marks=needs_cykooz)])
def way(request, monkeypatch):
    """What resizes."""
    monkeypatch.setattr(resizing, "_has_cykooz", lambda: request.param != "pillow")
    return request.param


def noise(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def assert_near(pixels, picture, box, way):
    """Compare with Pillow's pixels of a part of a picture."""
    expected = picture.resize(pixels.shape[1::-1], Image.Resampling.BILINEAR, box)
    assert pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - np.asarray(expected)).max() <= (0 if way == "pillow" else 1)


# ------------------------------------------------------------------------------------------------------- pixels


@pytest.mark.parametrize("size", [(8, 8), (224, 224), (10, 30), (30, 10), (1, 1)])
@pytest.mark.parametrize("shape", [(50, 80), (80, 50), (8, 8), (1, 1), (450, 600), (600, 450)])
def test_resize_image_by_squash_is_pillows_antialiased_resize(shape, size, way):
    picture = Image.fromarray(noise(*shape))
    assert_near(resize_image(picture, size, "squash"), picture, (0, 0, *picture.size), way)


@pytest.mark.parametrize("shape", [(450, 600), (600, 450), (768, 1024), (1500, 1125)])
def test_few_values_of_photographs_differ_from_pillows(shape):
    picture = Image.fromarray(noise(*shape))
    # Across first, as all versions of Pillow did until 13.
    across = picture.resize((224, picture.height), Image.Resampling.BILINEAR)
    expected = np.asarray(across.resize((224, 224), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(resize_image(picture, (224, 224), "squash") - expected).mean() < 0.003


@pytest.mark.parametrize("policy", RESIZE_POLICIES)
def test_resize_image_is_antialiased(policy):
    stripes = np.zeros((100, 100, 3), np.uint8)
    stripes[:, ::2] = 255
    pixels = resize_image(Image.fromarray(stripes), (10, 10), policy)
    np.testing.assert_allclose(pixels.astype(float), 127.5, atol=8)


@pytest.mark.parametrize("policy", RESIZE_POLICIES)
def test_resize_image_of_the_right_size_keeps_every_pixel(policy):
    np.testing.assert_array_equal(resize_image(Image.fromarray(noise(20, 30)), (20, 30), policy), noise(20, 30))


def thirds(axis):
    """A red, a green and a blue square in a row (axis 1) or a column (axis 0)."""
    return Image.fromarray(
        np.concatenate([np.full((60, 60, 3), c, np.uint8) for c in ([255, 0, 0], [0, 255, 0], [0, 0, 255])], axis)
    )


@pytest.mark.parametrize("axis", [0, 1])
def test_resize_image_by_crop_keeps_the_centre(axis):
    pixels = resize_image(thirds(axis), (30, 30), "crop")
    np.testing.assert_array_equal(pixels[1:-1, 1:-1], np.full((28, 28, 3), (0, 255, 0)))
    assert pixels[..., 1].min() > 200  # the filter reaches past the cut by half a pixel of the result


@pytest.mark.parametrize("axis", [0, 1])
def test_resize_image_by_squash_keeps_everything(axis):
    pixels = resize_image(thirds(axis), (30, 30), "squash")
    along = np.moveaxis(pixels, axis, 0)[[2, 15, 27], 15]
    np.testing.assert_array_equal(along, np.diag([255] * 3))


@pytest.mark.parametrize("axis", [0, 1])
def test_resize_image_by_pad_adds_equal_black_bars(axis):
    pixels = np.moveaxis(resize_image(thirds(axis), (30, 30), "pad"), 1 - axis, 0)
    assert not pixels[:10].any()
    assert not pixels[20:].any()
    assert (pixels[10:20].max(axis=2) > 0).all()
    np.testing.assert_array_equal(pixels[15][[2, 15, 27]], np.diag([255] * 3))


@pytest.mark.parametrize("policy", RESIZE_POLICIES)
@pytest.mark.parametrize("shape", [(1, 5000), (5000, 1), (1, 1), (3, 2)])
def test_resize_image_of_a_very_thin_picture_keeps_something_of_it(shape, policy):
    pixels = resize_image(Image.new("RGB", shape, "white"), (24, 32), policy)
    assert pixels.shape == (24, 32, 3)
    assert pixels.max() == 255


@pytest.mark.parametrize(
    ("shape", "size", "box"),
    [
        ((50, 80), (30, 30), (15, 0, 65, 50)),
        ((80, 51), (20, 30), (0, 23, 51, 57)),
        ((333, 77), (24, 32), (0, 137.625, 77, 195.375)),
        ((60, 200), (90, 60), (80, 0, 120, 60)),
    ],
)
def test_resize_image_by_crop_takes_the_middle(shape, size, box, way):
    picture = Image.fromarray(noise(*shape))
    pixels = resize_image(picture, size, "crop")
    assert_near(pixels, picture, box, way)
    if way == "pillow":
        np.testing.assert_array_equal(pixels, ImageOps.fit(picture, size[::-1], Image.Resampling.BILINEAR))


SIDES = st.integers(1, 120)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(SIDES, SIDES, st.integers(1, 40), st.integers(1, 40), st.sampled_from(RESIZE_POLICIES))
def test_resize_image_for_any_sizes(height, width, new_height, new_width, policy):
    picture = Image.new("RGB", (width, height), (200, 100, 50))
    pixels = resize_image(picture, (new_height, new_width), policy)
    assert pixels.shape == (new_height, new_width, 3)
    assert pixels.dtype == np.uint8
    kept = pixels.any(axis=2)
    np.testing.assert_array_equal(pixels[kept], np.broadcast_to((200, 100, 50), (kept.sum(), 3)))
    if policy != "pad":
        assert kept.all()
    else:
        rows, columns = kept.any(axis=1), kept.any(axis=0)
        assert kept.sum() == rows.sum() * columns.sum()
        assert rows.all() or columns.all()


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(SIDES, SIDES, st.integers(4, 40), st.integers(4, 40))
def test_resize_image_by_pad_is_pillows_unless_thin(way, height, width, new_height, new_width):
    picture = Image.fromarray(noise(height, width))
    if min(new_width / width * height, new_height / height * width) < 1:
        return
    expected = ImageOps.pad(picture, (new_width, new_height), Image.Resampling.BILINEAR, color=(0, 0, 0))
    difference = resize_image(picture, (new_height, new_width), "pad").astype(int) - np.asarray(expected)
    assert np.abs(difference).max() <= (0 if way == "pillow" else 2)


# ------------------------------------------------------------------------------------------------ what resizes


def test_resizer_has_a_name_and_a_version(way):
    name, version = resizer().split()
    assert name == way
    assert version[0].isdigit()


@needs_cykooz
@pytest.mark.parametrize(
    ("version", "name"), [("12.3.1", "cykooz-resizer"), ("11.3.0", "pillow"), ("99.0.0", "pillow")]
)
def test_pictures_of_unknown_pillows_are_resized_by_pillow(monkeypatch, version, name):
    monkeypatch.undo()
    monkeypatch.setattr(PIL, "__version__", version)
    resizing._has_cykooz.cache_clear()
    try:
        assert resizer().split()[0] == name
    finally:
        resizing._has_cykooz.cache_clear()


@needs_cykooz
def test_pixels_are_the_same_on_any_processor(way, monkeypatch):
    import cykooz_resizer

    class Plain(cykooz_resizer.Resizer):
        def __init__(self):
            super().__init__()
            self.cpu_extensions = cykooz_resizer.CpuExtensions.none

    picture = Image.fromarray(noise(450, 600))
    expected = resize_image(picture, (224, 224), "squash")
    monkeypatch.setattr(cykooz_resizer, "Resizer", Plain)
    np.testing.assert_array_equal(resize_image(picture, (224, 224), "squash"), expected)


def test_threads_resize_side_by_side():
    pictures = [Image.fromarray(noise(300, 400 + i)) for i in range(16)]
    expected = [resize_image(picture, (64, 64), "squash") for picture in pictures]
    with ThreadPoolExecutor(4) as pool:
        for pixels, alone in zip(
            pool.map(lambda p: resize_image(p, (64, 64), "squash"), pictures), expected, strict=True
        ):
            np.testing.assert_array_equal(pixels, alone)


def test_a_tall_picture_is_not_widened_before_it_is_made_less_high(monkeypatch):
    between = []
    resize = resizing._resize_by_cykooz
    monkeypatch.setattr(resizing, "_resize_by_cykooz", lambda *a: between.append(a[1] * a[2]) or resize(*a))
    resize_image(Image.new("RGB", (3, 5000)), (224, 224), "squash")
    assert max(between, default=0) <= 224 * 224
