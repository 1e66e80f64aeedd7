"""Caffe's network from its file: the tests write the bytes, and compute what Caffe computes."""

import struct
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from factories import relative_error
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from alexnet.errors import UserError
from alexnet.later_recipes import CAFFE
from alexnet.model.towers import AlexNet
from alexnet.weights.caffe import read_caffe
from alexnet.weights.read import fit, read_file

HIDDEN, CLASSES = 48, 5
RECIPE = replace(CAFFE, hidden=HIDDEN)
SHAPES = {
    "conv1": (96, 3, 11, 11),
    "conv2": (256, 48, 5, 5),
    "conv3": (384, 256, 3, 3),
    "conv4": (384, 192, 3, 3),
    "conv5": (256, 192, 3, 3),
    "fc6": (HIDDEN, 9216),
    "fc7": (HIDDEN, HIDDEN),
    "fc8": (CLASSES, HIDDEN),
}


def varint(number: int) -> bytes:
    low, rest = number & 0x7F, number >> 7
    return bytes([low | 0x80]) + varint(rest) if rest else bytes([low])


def field(number: int, value: int | bytes) -> bytes:
    """A field of a message: a number, or bytes."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def blob(tensor: Tensor, *, old: bool) -> bytes:
    """A ``BlobProto``, with the shape as four numbers or as a ``BlobShape``."""
    data = field(5, struct.pack(f"<{tensor.numel()}f", *tensor.flatten().tolist()))
    if not old:
        return field(7, field(1, b"".join(map(varint, tensor.shape)))) + data
    shape = (1, 1, 1, 1, *tensor.shape)[-4:]
    return b"".join(field(number, size) for number, size in enumerate(shape, 1)) + data


def caffemodel(layers: dict[str, list[Tensor]], *, old: bool) -> bytes:
    """A ``NetParameter`` with fields that a reader has to pass over."""
    name, blobs, layer = (4, 6, 2) if old else (1, 7, 100)
    content = field(1, b"AlexNet") + field(4, 10) + varint(9 << 3 | 5) + b"\0\0\x80?"
    for key, tensors in layers.items():
        inner = field(2, b"below") + field(3, key.encode()) + field(name, key.encode())
        inner += b"".join(field(blobs, blob(tensor, old=old)) for tensor in tensors)
        content += field(layer, inner)
    return content


@pytest.fixture(scope="module")
def tensors() -> dict[str, list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    found: dict[str, list[Tensor]] = {}
    for layer, shape in SHAPES.items():
        std = (2 / torch.Size(shape[1:]).numel()) ** 0.5
        weight = torch.empty(shape).normal_(0, std, generator=generator)
        found[layer] = [weight, torch.empty(shape[0]).normal_(0, 1, generator=generator)]
        if layer == "conv1":
            found |= {"relu1": [], "norm1": [], "pool1": []}
    return found


def caffes_logits(layers: dict[str, list[Tensor]], crops: Tensor) -> Tensor:
    """Of RGB crops minus the mean; normalization in each half of the maps, as documented."""

    def conv(x: Tensor, name: str, **options: int) -> Tensor:
        weight, bias = (tensor.double() for tensor in layers[name])
        return F.relu(F.conv2d(x, weight, bias, **options))

    def linear(x: Tensor, name: str) -> Tensor:
        weight, bias = (tensor.double() for tensor in layers[name])
        return F.linear(x, weight, bias)

    def norm(x: Tensor) -> Tensor:
        halves = [F.local_response_norm(half, 5, 1e-4, 0.75, 1.0) for half in x.chunk(2, dim=1)]
        return F.max_pool2d(torch.cat(halves, dim=1), 3, 2)

    bgr = F.pad(crops.flip(1), (0, 3, 0, 3))
    x = norm(conv(bgr, "conv1", stride=4))
    x = norm(conv(x, "conv2", padding=2, groups=2))
    x = conv(x, "conv3", padding=1)
    x = conv(x, "conv4", padding=1, groups=2)
    x = conv(x, "conv5", padding=1, groups=2)
    x = F.max_pool2d(x, 3, 2).flatten(1)
    return linear(F.relu(linear(F.relu(linear(x, "fc6")), "fc7")), "fc8")


@pytest.mark.parametrize("old", [True, False])
def test_the_network_computes_what_caffes_does(tensors: dict[str, list[Tensor]], old: bool) -> None:
    weights = read_file("net", caffemodel(tensors, old=old))
    fitted = fit("net", weights, RECIPE, CLASSES)
    assert (fitted.used, fitted.drawn, weights.mean) == (tuple(SHAPES), (), None)
    network = AlexNet(RECIPE, CLASSES).eval()
    network.load_state_dict(dict(fitted.weights))
    crops = torch.empty(2, 3, 224, 224, dtype=torch.float64).uniform_(
        -120, 130, generator=torch.Generator().manual_seed(1)
    )
    with torch.no_grad():
        logits = network.double()(crops)
    assert relative_error(logits, caffes_logits(tensors, crops)) < 1e-12


def test_the_other_order_of_layers_is_named(tensors: dict[str, list[Tensor]]) -> None:
    order = ["conv1", "pool1", "norm1", *list(SHAPES)[1:]]
    pool_first = caffemodel({name: tensors[name] for name in order}, old=True)
    assert "pooling before the normalization" in read_caffe("net", pool_first).differences
    as_alexnet = read_caffe("net", caffemodel(tensors, old=True)).differences
    assert "pooling before the normalization" not in as_alexnet


def test_a_truncated_caffemodel_is_one_line() -> None:
    layers = {name: [torch.zeros(2, 3), torch.zeros(2)] for name in SHAPES}
    for old in (True, False):
        content = caffemodel(layers, old=old)
        for end in range(1, len(content)):
            with pytest.raises(UserError, match=r"^net\.caffemodel: not [^\n]*$"):
                read_caffe("net.caffemodel", content[:end])


def test_a_wrong_size_and_another_network_are_one_line(tensors: dict[str, list[Tensor]]) -> None:
    content = caffemodel({"conv1": [torch.zeros(2, 3, 11, 11)]}, old=False)
    wrong = content.replace(varint(2) + varint(3), varint(2) + varint(4), 1)
    for bad in (wrong, caffemodel({"data": []}, old=False), b"GIF89a", b"\x00", b"\xff" * 40):
        with pytest.raises(UserError, match=r"^net: not [^\n]*$"):
            read_caffe("net", bad)
    weights = read_file("net", caffemodel(tensors, old=True))
    with pytest.raises(UserError, match=r"of another network .conv1's weights are 96x"):
        fit("net", weights, replace(RECIPE, towers=1), CLASSES)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_one_line(content: bytes) -> None:
    with pytest.raises(UserError, match=r"^net: [^\n]*$"):
        read_file("net", content)
