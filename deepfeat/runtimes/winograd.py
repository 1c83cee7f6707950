"""Convolutions of 3 x 3 with a quarter of the multiplications, in an OpenVINO network.

Winograd's minimal filtering F(4 x 4, 3 x 3) of Lavin and Gray (2016), "Fast algorithms for convolutional neural
networks", arXiv 1509.09308, section 4: a tile of 4 x 4 pixels of the result is

    Y = A^T [(G g G^T) * (B^T d B)] A

of the 6 x 6 pixels d under it and the filter g, where * is element by element. Summed over channels, the products of
one element are a product of two matrices: 36 of them for 16 pixels, where the definition takes 9 for each pixel.
OpenVINO multiplies matrices at the speed of the processor, and has nothing of this kind for convolutions on x86.
"""

from __future__ import annotations

from typing import Any

import numpy as np

#: Sides of a tile of the result, and of the part of the image that it comes from.
_TILE, _PATCH = 4, 6

#: What the rule asks for: fewer channels do not pay for the transforms, whose time goes with n_in + n_out while the
#: products go with n_in * n_out; and of a smaller result there are too few tiles to fill a matrix. Measured:
#: docs/results/winograd.md.
CHANNELS, SIDE = 60, 14

_B = [
    [4, 0, -5, 0, 1, 0],
    [0, -4, -4, 1, 1, 0],
    [0, 4, -4, -1, 1, 0],
    [0, -2, -1, 2, 1, 0],
    [0, 2, -1, -2, 1, 0],
    [0, 4, 0, -5, 0, 1],
]
_G = np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24
_A = [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]

#: The transforms of rows and columns at once, for what is flattened row by row.
_IMAGE, _FILTER, _RESULT = (np.kron(matrix, matrix).astype(np.float32) for matrix in (_B, _G, _A))


def rewrite_convolutions(network: Any) -> int:
    """Put Winograd's algorithm in the place of the convolutions that become faster by it.

    Parameters
    ----------
    network : openvino.Model
        Of images of one size, in batches of any. Changed in place. For float32 alone: the transforms
        make rounding several times as large, too much for bfloat16.

    Returns
    -------
    int
        Number of convolutions that were replaced.
    """
    chosen = [node for node in network.get_ordered_ops() if _is_worth_it(node)]
    for node in chosen:
        result = _minimal_filtering(node).output(0)
        result.get_tensor().set_names(node.output(0).get_names())
        for target in node.output(0).get_target_inputs():
            target.replace_source_output(result)
    return len(chosen)


def _is_worth_it(node: Any) -> bool:
    """Whether this is a convolution of the kind, and large enough: a rule, lest features depend on a measurement."""
    if node.get_type_name() != "Convolution":
        return False
    filters, settings = node.input_value(1), node.get_attributes()
    if filters.get_node().get_type_name() != "Constant" or filters.get_element_type().to_string() != "f32":
        return False
    n_out, n_in, *kernel = filters.get_shape()
    sides = list(node.output(0).get_partial_shape())[2:]
    return (
        kernel == [3, 3]
        and settings["strides"] == settings["dilations"] == [1, 1]
        and n_in * n_out >= CHANNELS * (n_in + n_out)
        and all(side.is_static and side.get_length() >= SIDE for side in sides)
    )


def _minimal_filtering(convolution: Any) -> Any:
    from openvino import opset8 as ops

    filters = convolution.input_value(1).get_node().get_data()
    n_out, n_in = filters.shape[:2]
    height, width = _sides(convolution.output(0))
    rows, columns = -(-height // _TILE), -(-width // _TILE)

    patches = ops.reshape(_patches(convolution, rows, columns), [-1, _PATCH**2, n_in, rows * columns], False)
    # The tiles of all images side by side, so that filters are read once for all.
    patches = ops.reshape(ops.transpose(patches, [1, 2, 0, 3]), [_PATCH**2, -1], False)
    patches = ops.reshape(_multiply(_IMAGE, patches), [_PATCH**2, n_in, -1], False)
    products = ops.reshape(_multiply(transform_filters(filters), patches), [_PATCH**2, -1], False)
    tiles = ops.reshape(_multiply(_RESULT, products), [_TILE, _TILE, n_out, -1, rows, columns], False)
    result = ops.reshape(ops.transpose(tiles, [3, 2, 4, 0, 5, 1]), [-1, n_out, _TILE * rows, _TILE * columns], False)
    is_whole = height % _TILE == width % _TILE == 0
    return result if is_whole else ops.slice(result, [0, 0], [height, width], [1, 1], [2, 3])


def _patches(convolution: Any, rows: int, columns: int) -> Any:
    """The 6 x 6 pixels under each tile, element by element: shape (n, 36 * n_in, rows, columns)."""
    from openvino import opset8 as ops

    images = convolution.input_value(0)
    height, width = _sides(images)
    top, left = convolution.get_attributes()["pads_begin"]
    overlap = _PATCH - _TILE
    bottom, right = _TILE * rows + overlap - height - top, _TILE * columns + overlap - width - left
    sizes = [_PATCH, _PATCH], [_TILE, _TILE], [1, 1]
    # The usual case needs no copy of the images, which would take a twentieth of the convolution's time.
    if (top, bottom, left, right) == (1, 1, 1, 1):
        return ops.extract_image_patches(images, *sizes, "SAME_UPPER")
    padded = ops.pad(images, [0, 0, top, left], [0, 0, bottom, right], "constant", np.float32(0))
    return ops.extract_image_patches(padded, *sizes, "VALID")


def _sides(output: Any) -> tuple[int, int]:
    height, width = list(output.get_partial_shape())[2:]
    return height.get_length(), width.get_length()


def _multiply(constant: np.ndarray, values: Any) -> Any:
    from openvino import op, opset8

    # Not opset8.constant, which takes a hundred times as long for large arrays.
    return opset8.matmul(op.Constant(constant), values, False, False)


def transform_filters(filters: np.ndarray) -> np.ndarray:
    """G g G^T of filters g of shape (n_out, n_in, 3, 3): shape (36, n_out, n_in), float32."""
    transformed: np.ndarray = _FILTER @ filters.reshape(-1, 9).T
    return transformed.reshape(_PATCH**2, *filters.shape[:2])
