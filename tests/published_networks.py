"""The networks of 2012 as their authors described them, and an interpreter of the descriptions.

The interpreter imports nothing from ``alexnet``, and no torch: it computes logits and gradients in
float64 NumPy, layer by layer, by the rules of cuda-convnet. Tests compare the code with it.

Source of the layers: github.com/computerhistory/AlexNet-Source-Code, ``layers/layers-145.cfg``,
``layers-145-half.cfg``, ``layers-146-2012-2011.cfg``, ``layers-147.cfg`` and ``layers-148.cfg``,
with ``scale``, ``pow`` and ``minDiv`` of the normalizations from the ``layer-params`` files of the
same numbers. There is one row for each layer: its name, its type, its inputs, and the values that
change its function. Sizes of outputs follow from ``layer.py``: convolutions and pools round up.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Array = NDArray[np.float64]
Parameters = tuple[Array, Array]
"""Weights and biases of a layer. The weights' axis 1 has the inputs in the order of the row."""
Backward = Callable[[Array], tuple[Array, Parameters | None]]
"""The gradient of a layer's output → the gradients of its input and of its parameters."""


def edit(network: str, *changes: tuple[str, str]) -> str:
    """A description in which each pattern, which must occur, is replaced."""
    for pattern, replacement in changes:
        network, count = re.subn(pattern, replacement, network, flags=re.MULTILINE)
        assert count, pattern
    return network


NET_145 = """
conv1a conv data filters=48 filterSize=11 stride=4 padding=0 initW=.01
conv1b conv data filters=48 filterSize=11 stride=4 padding=0 initW=.01
rnorm1a cmrnorm conv1a size=5 scale=.0001 pow=.75 minDiv=2
rnorm1b cmrnorm conv1b size=5 scale=.0001 pow=.75 minDiv=2
pool1a pool rnorm1a sizeX=3 stride=2 neuron=relu
pool1b pool rnorm1b sizeX=3 stride=2 neuron=relu
conv2a conv pool1a filters=128 filterSize=5 stride=1 padding=2 initW=.01 initB=1 neuron=relu
conv2b conv pool1b filters=128 filterSize=5 stride=1 padding=2 initW=.01 initB=1 neuron=relu
rnorm2a cmrnorm conv2a size=5 scale=.0001 pow=.75 minDiv=2
rnorm2b cmrnorm conv2b size=5 scale=.0001 pow=.75 minDiv=2
cnorm2a rnorm rnorm2a size=5 scale=.001 pow=.75
cnorm2b rnorm rnorm2b size=5 scale=.001 pow=.75
pool2a pool cnorm2a sizeX=3 stride=2
pool2b pool cnorm2b sizeX=3 stride=2
conv3a conv pool2a,pool2b filters=192 filterSize=3 stride=1 padding=1 initW=.03 neuron=relu
conv3b conv pool2a,pool2b filters=192 filterSize=3 stride=1 padding=1 initW=.03 neuron=relu
conv4a conv conv3a filters=192 filterSize=3 stride=1 padding=1 initW=.03 initB=1 neuron=relu
conv4b conv conv3b filters=192 filterSize=3 stride=1 padding=1 initW=.03 initB=1 neuron=relu
conv5a conv conv4a filters=128 filterSize=3 stride=1 padding=1 initW=.03 initB=1
conv5b conv conv4b filters=128 filterSize=3 stride=1 padding=1 initW=.03 initB=1
pool3a pool conv5a sizeX=3 stride=2 neuron=relu
pool3b pool conv5b sizeX=3 stride=2 neuron=relu
fc2048a fc pool3a,pool3b outputs=2048 initW=.01 initB=1 neuron=relu
fc2048b fc pool3a,pool3b outputs=2048 initW=.01 initB=1 neuron=relu
hs1a hs fc2048a keep=.5
hs1b hs fc2048b keep=.5
fc2048ba fc hs1a,hs1b outputs=2048 initW=.01 initB=1 neuron=relu
fc2048bb fc hs1b,hs1a outputs=2048 initW=.01 initB=1 neuron=relu
hs2a hs fc2048ba keep=.5
hs2b hs fc2048bb keep=.5
fc1000 fc hs2a,hs2b outputs=1000 initW=.01
"""

NET_145_HALF = """
conv1a conv data filters=48 filterSize=11 stride=4 padding=0 initW=.01
rnorm1a cmrnorm conv1a size=5 scale=.0001 pow=.75 minDiv=2
pool1a pool rnorm1a sizeX=3 stride=2 neuron=relu
conv2a conv pool1a filters=128 filterSize=5 stride=1 padding=2 initW=.01 initB=1 neuron=relu
rnorm2a cmrnorm conv2a size=5 scale=.0001 pow=.75 minDiv=2
cnorm2a rnorm rnorm2a size=5 scale=.001 pow=.75
pool2a pool cnorm2a sizeX=3 stride=2
conv3a conv pool2a filters=192 filterSize=3 stride=1 padding=1 initW=.03 neuron=relu
conv4a conv conv3a filters=192 filterSize=3 stride=1 padding=1 initW=.03 initB=1 neuron=relu
conv5a conv conv4a filters=256 filterSize=3 stride=1 padding=1 initW=.03 initB=1
pool3a pool conv5a sizeX=3 stride=2 neuron=relu
fc4096a fc pool3a outputs=4096 initW=.01 initB=1 neuron=relu
hs1a hs fc4096a keep=.5
fc4096ba fc hs1a outputs=4096 initW=.01 initB=1 neuron=relu
hs2a hs fc4096ba keep=.5
fc1000 fc hs2a outputs=1000 initW=.01
"""
"""One tower."""

NET_146 = edit(
    NET_145,
    (
        "^fc2048a .*$",
        "conv6a conv pool3a,pool3b filters=128 filterSize=3 stride=1 padding=1 initW=.03 initB=1"
        " neuron=relu\n"
        "conv6b conv pool3b,pool3a filters=128 filterSize=3 stride=1 padding=1 initW=.03 initB=1"
        " neuron=relu\n"
        "\\g<0>",
    ),
    (r"^(fc2048[ab] fc) pool3a,pool3b", r"\1 conv6a,conv6b"),
)
"""A sixth convolution: the paper's "1 CNN*"."""

NET_147 = edit(
    NET_145,
    ("sizeX=3", "sizeX=2"),
    ("^(conv2.*) padding=2", r"\1 padding=1"),
    ("^(conv5.*) padding=1", r"\1 padding=0"),
)
"""Pooling windows that do not overlap. Sizes: 55, 28, 26, 13, 11, 6."""

NET_148 = edit(NET_145, (r"^[rc]norm.*\n", ""), ("rnorm1", "conv1"), ("cnorm2", "conv2"))
"""No normalization."""

PAPER = edit(
    NET_145,
    ("^(conv1.*)$", r"\1 neuron=relu"),
    ("^(pool1.*) neuron=relu", r"\1"),
    (r"^cnorm.*\n", ""),
    ("cnorm2", "rnorm2"),
    ("scale=.0001", "scale=.0005"),
    ("initW=.03", "initW=.01"),
)
"""The text (Krizhevsky, Sutskever and Hinton, 2012) in the same notation: section 3.5 applies ReLU
to the output of every layer before it is normalized, section 3.3 does not divide alpha by n."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One row of a description."""

    name: str
    kind: str
    inputs: tuple[str, ...]
    numbers: Mapping[str, float]
    relu: bool


@dataclass(frozen=True, slots=True)
class Results:
    """What a network computes for some images."""

    logits: Array
    gradients: Mapping[str, Parameters]
    """Of the mean cross-entropy, by layer."""
    sizes: Mapping[str, int]
    """Width of the maps of each convolution and pool."""


def read(network: str) -> list[Layer]:
    """The layers of a description, in the order in which they are computed."""
    layers = []
    for row in network.split("\n"):
        if row:
            name, kind, inputs, *values = row.split()
            relu = "neuron=relu" in values
            pairs = (value.split("=") for value in values if value != "neuron=relu")
            numbers = {key: float(number) for key, number in pairs}
            layers.append(Layer(name, kind, tuple(inputs.split(",")), numbers, relu))
    return layers


def run(
    layers: Sequence[Layer],
    parameters: Mapping[str, Parameters],
    images: Array,
    labels: Sequence[int],
) -> Results:
    """Logits and gradients in evaluation mode; ``images`` are (N, 3, 224, 224), mean subtracted."""
    outputs, backwards = {"data": images}, {}
    for layer in layers:
        x = np.concatenate([outputs[name] for name in layer.inputs], axis=1)
        y, backwards[layer.name] = _apply(layer, x, parameters.get(layer.name))
        outputs[layer.name] = np.maximum(y, 0) if layer.relu else y
    logits = outputs[layers[-1].name]
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    grads = {name: np.zeros_like(output) for name, output in outputs.items()}
    grads[layers[-1].name] = (probabilities - np.eye(logits.shape[1])[list(labels)]) / len(labels)
    gradients = {}
    for layer in reversed(layers):
        grad = grads[layer.name] * (outputs[layer.name] > 0) if layer.relu else grads[layer.name]
        of_input, of_parameters = backwards[layer.name](grad)
        if of_parameters is not None:
            gradients[layer.name] = of_parameters
        ends = np.cumsum([outputs[name].shape[1] for name in layer.inputs])
        for name, part in zip(layer.inputs, np.split(of_input, ends[:-1], axis=1), strict=True):
            grads[name] += part
    sizes = {name: output.shape[2] for name, output in outputs.items() if output.ndim == 4}
    return Results(logits, gradients, sizes)


def _apply(layer: Layer, x: Array, parameters: Parameters | None) -> tuple[Array, Backward]:
    """A layer's output before its neuron, and its derivative."""
    value = {key: int(number) for key, number in layer.numbers.items()}
    if layer.kind == "conv":
        assert parameters is not None
        assert parameters[0].shape == (value["filters"], x.shape[1], *[value["filterSize"]] * 2)
        return _conv(x, *parameters, value["stride"], value["padding"])
    if layer.kind == "pool":
        return _pool(x, value["sizeX"], value["stride"])
    if layer.kind == "fc":
        assert parameters is not None
        return _fc(x, *parameters)
    if layer.kind == "hs":
        keep = layer.numbers["keep"]
        return x * keep, lambda grad: (grad * keep, None)
    axes = {"cmrnorm": (1,), "rnorm": (2, 3)}[layer.kind]
    return _norm(x, axes, value["size"], layer.numbers)


def _conv(x: Array, w: Array, b: Array, stride: int, padding: int) -> tuple[Array, Backward]:
    (count, channels, size, _), (filters, _, side, _) = x.shape, w.shape
    outputs = 1 + ceil((2 * padding + size - side) / stride)
    inside = slice(padding, padding + size)
    padded = np.zeros((count, channels, *[(outputs - 1) * stride + side] * 2))
    padded[:, :, inside, inside] = x
    windows = sliding_window_view(padded, (side, side), axis=(2, 3))[:, :, ::stride, ::stride]
    columns = windows.transpose(1, 4, 5, 0, 2, 3).reshape(w[0].size, -1)
    y = w.reshape(filters, -1) @ columns + b[:, None]

    def backward(grad: Array) -> tuple[Array, Parameters]:
        rows = grad.transpose(1, 0, 2, 3).reshape(filters, -1)
        spread = w.reshape(filters, -1).T @ rows
        spread = spread.reshape(channels, side, side, count, outputs, outputs)
        of_padded = np.zeros_like(padded)
        for top, left in np.ndindex(side, side):
            part = spread[:, top, left].transpose(1, 0, 2, 3)
            _window(of_padded, top, left, outputs, stride)[...] += part
        of_weights = (rows @ columns.T).reshape(w.shape)
        return of_padded[:, :, inside, inside], (of_weights, rows.sum(axis=1))

    return y.reshape(filters, count, outputs, outputs).transpose(1, 0, 2, 3), backward


def _fc(x: Array, w: Array, b: Array) -> tuple[Array, Backward]:
    flat = x.reshape(len(x), -1)
    return flat @ w.T + b, lambda grad: (
        (grad @ w).reshape(x.shape),
        (grad.T @ flat, grad.sum(axis=0)),
    )


def _pool(x: Array, side: int, stride: int) -> tuple[Array, Backward]:
    """The maximum; a window that extends over the border has fewer values."""
    outputs = 1 + ceil((x.shape[2] - side) / stride)
    size = (outputs - 1) * stride + side
    padded = np.full((*x.shape[:2], size, size), -np.inf)
    padded[:, :, : x.shape[2], : x.shape[3]] = x
    parts = [(*at, outputs, stride) for at in np.ndindex(side, side)]
    y: Array = np.max([_window(padded, *part) for part in parts], axis=0)

    def backward(grad: Array) -> tuple[Array, None]:
        of_padded = np.zeros_like(padded)
        for part in parts:
            _window(of_padded, *part)[...] += grad * (_window(padded, *part) == y)
        return of_padded[:, :, : x.shape[2], : x.shape[3]], None

    return y, backward


def _window(x: Array, top: int, left: int, outputs: int, stride: int) -> Array:
    """The values at one position of all windows, (N, C, outputs, outputs), not a copy."""
    length = (outputs - 1) * stride + 1
    return x[:, :, top : top + length : stride, left : left + length : stride]


def _norm(
    x: Array, axes: tuple[int, ...], size: int, numbers: Mapping[str, float]
) -> tuple[Array, Backward]:
    """x / (minDiv + scale / (number of terms) · Σ x²) ^ pow."""
    scale, power = numbers["scale"] / size ** len(axes), numbers["pow"]
    d = numbers.get("minDiv", 1.0) + scale * _sums(x**2, axes, size)
    y = x * d**-power
    return y, lambda grad: (
        grad * d**-power - 2 * power * scale * x * _sums(grad * y / d, axes, size),
        None,
    )


def _sums(x: Array, axes: tuple[int, ...], size: int) -> Array:
    for axis in axes:
        widths = [(size // 2, size // 2) if axis == other else (0, 0) for other in range(4)]
        x = sliding_window_view(np.pad(x, widths), size, axis).sum(axis=-1)
    return x
