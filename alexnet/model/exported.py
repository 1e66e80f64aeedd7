"""A classifier loaded from an export, in any precision; node by node for features and bfloat16.

An export is a graph with the names of the network's parameters. Running its nodes one by one costs
microseconds each, and gives access to what flows between them.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, fx, nn

from alexnet.errors import UserError
from alexnet.model.precision import Precision, set_tf32

Layer = Literal["fc6", "fc7"]

_NEXT_LAYER: Mapping[Layer, str] = {"fc6": "fc7", "fc7": "fc8"}
_MULTIPLYING = (torch.ops.aten.conv2d.default, torch.ops.aten.linear.default)


class Outputs(NamedTuple):
    """Probabilities (N, classes), and features (N, units) if a layer was given."""

    probabilities: Tensor
    features: Tensor | None


def as_function(
    model: nn.Module, name: str, layer: Layer | None, *, precision: Precision
) -> Callable[[Tensor], Outputs]:
    """A loaded classifier as a function of (N, 224, 224, 3) uint8 crops.

    Args:
        model: as ``torch.export`` and MLflow load it.
        name: for messages.
        layer: whose activations are wanted, as the next layer reads them.
        precision: of convolutions and matrix products.

    Raises:
        UserError: the model is no export, or has no such layer.
    """
    bf16 = precision == "bf16"
    if layer is None and not bf16:

        def run_whole(crops: Tensor) -> Outputs:
            set_tf32(precision)
            return Outputs(model(crops), None)

        return run_whole
    if not isinstance(model, fx.GraphModule):
        raise UserError(f"{name}: not an exported graph, so only its probabilities are available")
    node = None if layer is None else _input_of(_NEXT_LAYER[layer], model.graph)
    if layer is not None and node is None:
        raise UserError(f"{name}: has no layer {layer}")

    def run(crops: Tensor) -> Outputs:
        set_tf32(precision)
        interpreter = _Interpreter(model, node, bf16=bf16)
        return Outputs(cast(Tensor, interpreter.run(crops)), interpreter.features)

    return run


def _input_of(layer: str, graph: fx.Graph) -> fx.Node | None:
    """The node whose value a fully connected layer multiplies; both towers have the same."""
    for node in graph.nodes:
        if node.target is torch.ops.aten.linear.default and layer in str(node.args[1].target):
            return cast(fx.Node, node.args[0])
    return None


class _Interpreter(fx.Interpreter):
    def __init__(self, model: fx.GraphModule, features: fx.Node | None, *, bf16: bool) -> None:
        super().__init__(model)
        self.features: Tensor | None = None
        self._node, self._is_bf16 = features, bf16

    def run_node(self, n: fx.Node) -> Any:
        """The node's value."""
        value = super().run_node(n)
        if n is self._node:
            self.features = value
        return value

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The value of a node that calls a function."""
        if not self._is_bf16 or target not in _MULTIPLYING:
            return super().call_function(target, args, kwargs)
        halved = tuple(a.bfloat16() if isinstance(a, Tensor) else a for a in args)
        return super().call_function(target, halved, kwargs).float()
