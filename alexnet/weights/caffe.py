"""Caffe's ``bvlc_alexnet.caffemodel``, read without Caffe and without protobuf.

A caffemodel is a message of Protocol Buffers. Its format on the wire is a sequence of fields, each
with a number and a type; only the fields that hold layers, their names and their weights are read
(``caffe.proto`` of github.com/BVLC/caffe).

Caffe's network takes BGR crops of 227 pixels in the 0-255 range, minus a mean image. Here conv1's
input channels are put into the order RGB. The mean image is no part of the file: the data set's own
one is used. Crops have 224 pixels, and zeros at the right and below.
"""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from alexnet.errors import UserError
from alexnet.weights.one_column import OneColumn

LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_NET_LAYERS = {2: (4, 6), 100: (1, 7)}
"""Fields of ``NetParameter`` with layers, old and new: the fields of a layer's name and blobs."""
_DATA, _DOUBLE_DATA, _SHAPE, _DIMENSION = 5, 8, 7, 1
_OLD_SHAPE = (1, 2, 3, 4)
"""Fields of ``BlobProto``."""

Value = int | memoryview


def read_caffe(path: str, content: bytes) -> OneColumn:
    """Read a caffemodel.

    Raises:
        UserError: it is truncated or damaged, or of another network.
    """
    try:
        blobs = _blobs(memoryview(content))
    except (ValueError, IndexError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: not a file of torch or cuda-convnet, and not a whole caffemodel ({error})"
        ) from error
    tensors = {}
    for layer in LAYERS:
        if len(blobs.get(layer, [])) != 2:
            raise UserError(
                f"{path}: not Caffe's AlexNet: no layer {layer} with weights and biases"
            )
        weight, bias = blobs[layer]
        if layer.startswith("fc"):
            weight = weight.reshape(weight.shape[-2:])
        tensors[f"{layer}.weight"] = torch.from_numpy(weight.copy())
        tensors[f"{layer}.bias"] = torch.from_numpy(bias.reshape(-1).copy())
    if tensors["conv1.weight"].shape[1:] != (3, 11, 11):
        raise UserError(f"{path}: not Caffe's AlexNet: conv1 has {list(blobs['conv1'][0].shape)}")
    tensors["conv1.weight"] = tensors["conv1.weight"].flip(1)
    for layer in ("fc7", "fc8"):
        tensors[f"{layer}.weight"] *= 2  # Caffe's dropout scales units up in training.
    order = list(blobs)
    pool_first = "norm1" in order and order.index("pool1") < order.index("norm1")
    return OneColumn(
        kind="a caffemodel",
        tensors=tensors,
        recipe="caffe",
        differences=(
            "crops of 227 pixels instead of 224 and zeros",
            "sums of the normalization that extend over both towers' maps",
            *(("pooling before the normalization",) if pool_first else ()),
        ),
    )


def _blobs(net: memoryview) -> dict[str, list[NDArray[np.float32]]]:
    """The arrays of each layer, in the order of the file; most layers have none."""
    blobs: dict[str, list[NDArray[np.float32]]] = {}
    for number, layer in _fields(net):
        if number in _NET_LAYERS and isinstance(layer, memoryview):
            name_field, blob_field = _NET_LAYERS[number]
            name, arrays = "", []
            for field, value in _fields(layer):
                if isinstance(value, memoryview) and field == name_field:
                    name = bytes(value).decode()
                elif isinstance(value, memoryview) and field == blob_field:
                    arrays.append(_array(value))
            blobs[name] = arrays
    return blobs


def _array(blob: memoryview) -> NDArray[np.float32]:
    old_shape, shape, parts = dict.fromkeys(_OLD_SHAPE, 1), None, []
    for number, value in _fields(blob):
        if number in _OLD_SHAPE and isinstance(value, int):
            old_shape[number] = value
        elif isinstance(value, memoryview) and number == _SHAPE:
            shape = _dimensions(value)
        elif isinstance(value, memoryview) and number in (_DATA, _DOUBLE_DATA):
            kind = "<f4" if number == _DATA else "<f8"
            parts.append(np.frombuffer(value, kind).astype(np.float32))
    data = np.concatenate(parts) if parts else np.zeros(0, np.float32)
    return data.reshape(tuple(old_shape.values()) if shape is None else shape)


def _dimensions(shape: memoryview) -> tuple[int, ...]:
    found: list[int] = []
    for number, value in _fields(shape):
        if number == _DIMENSION and isinstance(value, int):
            found.append(value)
        elif number == _DIMENSION and isinstance(value, memoryview):
            position = 0
            while position < len(value):
                size, position = _varint(value, position)
                found.append(size)
    return tuple(found)


def _fields(message: memoryview) -> Iterator[tuple[int, Value]]:
    """The number and the value of each field: numbers as ``int``, all others as bytes.

    Raises:
        ValueError: a field extends over the end, or has a type that does not exist.
    """
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            value, position = _varint(message, position)
            yield number, value
            continue
        if kind == _BYTES:
            size, position = _varint(message, position)
        elif kind in (_FIXED64, _FIXED32):
            size = 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"a field of the unknown type {kind}")
        if number == 0 or position + size > len(message):
            raise ValueError(f"field {number} extends over the end")
        yield number, message[position : position + size]
        position += size


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """A number of 7 bits in each byte, the lowest first, and the position after it."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(message):
            break
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("a number without an end")
