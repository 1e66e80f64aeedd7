"""The authors' checkpoints: written here as their program pickles them, and read."""

import os
import pickle
import re
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from factories import random_inputs, relative_error
from hypothesis import given, settings
from hypothesis import strategies as st
from published_networks import NET_145, NET_145_HALF, NET_146, Layer, Parameters, edit, read, run

from alexnet.errors import UserError
from alexnet.model.towers import AlexNet
from alexnet.recipes import SOURCE145, Recipe, ablate
from alexnet.variants import with_conv6
from alexnet.weights.cuda_convnet import read_cuda_convnet
from alexnet.weights.read import fit, read_file

HIDDEN, CLASSES = 48, 5
CONV6 = with_conv6(SOURCE145, pretrained=True)


class Python2Pickler(pickle._Pickler):
    """Text and bytes as Python 2 writes them: without telling them apart."""

    def save_text(self, value: str | bytes) -> None:
        content = value if isinstance(value, bytes) else value.encode("latin1")
        self.write(b"T" + struct.pack("<i", len(content)) + content)  # type: ignore[attr-defined]

    handlers: ClassVar[Any] = {str: save_text, bytes: save_text}
    dispatch = pickle._Pickler.dispatch | handlers


def python2(value: object, path: Path) -> bytes:
    with path.open("wb") as file:
        Python2Pickler(file, 2).dump(value)
    return path.read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def python3(protocol: int) -> Callable[[object, Path], bytes]:
    return lambda value, _: pickle.dumps(value, protocol)


def random_parameters(layers: Sequence[Layer]) -> dict[str, Parameters]:
    """Of each layer with weights, as the interpreter has them: float32 values in float64."""
    random = np.random.default_rng(3)
    channels: dict[str, int] = {"data": 3}
    found: dict[str, Parameters] = {}
    for layer in layers:
        inputs = sum(channels[name] for name in layer.inputs)
        outputs = int(layer.numbers.get("filters", layer.numbers.get("outputs", 0)))
        if layer.kind == "fc":
            outputs = {1000: CLASSES}.get(outputs, HIDDEN * outputs // 4096)
            inputs *= 36 if layer.inputs[0].startswith(("pool3", "conv6")) else 1
        if outputs:
            side = int(layer.numbers.get("filterSize", 1))
            shape = (outputs, inputs, side, side) if layer.kind == "conv" else (outputs, inputs)
            std = (2 / (inputs * side * side)) ** 0.5
            weights, biases = random.normal(0, std, shape), random.normal(0, 1, outputs)
            found[layer.name] = tuple(v.astype(np.float32).astype(float) for v in (weights, biases))  # type: ignore[assignment]
        channels[layer.name] = outputs or channels[layer.inputs[0]]
    return found


def model_state(
    layers: Sequence[Layer], parameters: dict[str, Parameters], *, as_list: bool = False
) -> dict[str, Any]:
    """A checkpoint: a matrix for each input, (input channels and positions, outputs)."""
    state: dict[str, dict[str, Any]] = {}
    for layer in layers:
        values: dict[str, Any] = {"name": layer.name, "type": layer.kind}
        values["inputs"] = list(layer.inputs)
        if layer.name in parameters:
            weights, biases = parameters[layer.name]
            parts = np.split(weights, len(layer.inputs), axis=1)
            matrices = [part.reshape(len(part), -1).T.astype(np.float32) for part in parts]
            order: Any = "F" if layer.kind == "fc" else "C"
            values["weights"] = [np.require(m, requirements=order) for m in matrices]
            values["weightsInc"] = [np.zeros_like(m) for m in matrices]
            values["biases"] = biases.astype(np.float32).reshape(-1, 1)
            values["filterSize"] = [int(layer.numbers.get("filterSize", 0))] * len(matrices)
            values["epsW"] = [np.float32(0.01)]
        state[layer.name] = values
    return {"model_state": {"layers": list(state.values()) if as_list else state, "epoch": 90}}


WRITERS = {"python 2": python2, "protocol 2": python3(2), "protocol 4": python3(4)}


@pytest.fixture
def options_module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The program's module with a class whose objects are in each checkpoint."""
    module = ModuleType("options")
    exec("class OptionsParser:\n    pass\n", module.__dict__)
    monkeypatch.setitem(sys.modules, "options", module)
    return module


@pytest.mark.parametrize(
    ("writer", "network", "recipe", "as_list"),
    [
        pytest.param("python 2", NET_145, SOURCE145, False, id="145"),
        pytest.param("protocol 2", NET_145_HALF, ablate(SOURCE145, towers=1), True, id="half"),
        pytest.param("protocol 4", NET_146, CONV6, False, id="146"),
    ],
)
def test_the_network_computes_what_its_description_does(
    writer: str,
    network: str,
    recipe: Recipe,
    as_list: bool,
    options_module: ModuleType,
    tmp_path: Path,
) -> None:
    layers = read(network)
    parameters = random_parameters(layers)
    checkpoint = model_state(layers, parameters, as_list=as_list)
    checkpoint["op"] = options_module.OptionsParser()
    checkpoint["op"].options = {"gpu": options_module.OptionsParser}
    content = WRITERS[writer](checkpoint, tmp_path / "90.1")
    recipe = replace(recipe, hidden=HIDDEN)
    fitted = fit("90.1", read_file("90.1", content), recipe, CLASSES)
    assert fitted.drawn == ()
    ours = AlexNet(recipe, CLASSES).double().eval()
    ours.load_state_dict({name: tensor.double() for name, tensor in fitted.weights.items()})
    crops = random_inputs(1, dtype=torch.float64)
    with torch.no_grad():
        logits = ours(crops)
    expected = run(layers, parameters, crops.numpy(), [0]).logits
    assert relative_error(logits, torch.from_numpy(expected)) < 1e-12


class Call:
    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def test_a_hostile_pickle_is_one_line_and_executes_nothing(tmp_path: Path) -> None:
    proof = tmp_path / "executed"
    calls = [
        Call(os.system, f"touch {proof}"),
        Call(eval, f"open({str(proof)!r}, 'w')"),
        Call(exec, f"open({str(proof)!r}, 'w')"),
        Call(subprocess.call, ["touch", str(proof)]),
        Call(Path.touch, proof),
        Call(np.load, str(proof)),
        Call(getattr, proof, "touch"),
    ]
    for protocol in (0, 2, 4):
        for call in calls:
            for value in (call, {"model_state": {"layers": {"conv1a": call}}}):
                content = pickle.dumps(value, protocol)
                with pytest.raises(UserError) as caught:
                    read_cuda_convnet("90.1", content)
                assert re.fullmatch(
                    r"90\.1: it names [\w.]+, which no checkpoint needs; nothing of it was "
                    r"executed",
                    str(caught.value),
                )
    assert not proof.exists()


def test_a_pickle_that_reserves_much_memory_reserves_none() -> None:
    # The number of a slot, of which all slots below would be reserved: 32 GB.
    with pytest.raises(UserError):
        read_cuda_convnet("90.1", b"\x80\x02Nr\xff\xff\xff\x7f.")
    with pytest.raises(UserError):
        read_cuda_convnet("90.1", b"\x80\x04\x8d" + struct.pack("<Q", 2**40) + b"text.")


def test_truncated_and_other_pickles_are_one_line(tmp_path: Path) -> None:
    layers = read(edit(NET_145_HALF, ("filters=48", "filters=2")))[:1]
    parameters = {"conv1a": (np.zeros((2, 3, 11, 11)), np.zeros(2))}
    state = model_state(layers, parameters)
    content = python2(state, tmp_path / "90.1")
    assert list(read_cuda_convnet("90.1", content).tensors) == ["conv1.weight", "conv1.bias"]
    for end in range(1, len(content)):
        with pytest.raises(UserError, match=r"^90\.1: [^\n]*$"):
            read_cuda_convnet("90.1", content[:end])
    with_integers = {"name": "conv1a", "weights": [np.arange(3)]}
    others: list[Any] = [
        {"state": 1},
        [1, 2],
        {"model_state": {"layers": {}}},
        {"model_state": {"layers": {"conv1a": {}}}},
        {"model_state": {"layers": {"conv1a": with_integers}}},
    ]
    for other in others:
        with pytest.raises(UserError, match=r"^90\.1: not a checkpoint of [^\n]*$"):
            read_cuda_convnet("90.1", pickle.dumps(other, 2))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60))
def test_any_pickle_is_one_line(content: bytes) -> None:
    with pytest.raises(UserError, match=r"^90\.1: [^\n]*$"):
        read_cuda_convnet("90.1", b"\x80" + content)
