"""A network of one column as an ONNX file, for programs without torch.

Its input ``crops`` are (N, 224, 224, 3) uint8 RGB crops, for any N. Its outputs are ``logits`` and
``probabilities``, (N, classes) float32. The mean image is in the file.
"""

import warnings

import torch
from torch import Tensor, nn

from alexnet.errors import UserError, one_line
from alexnet.model.grouped import GroupedAlexNet


class _Outputs(nn.Module):
    def __init__(self, column: GroupedAlexNet) -> None:
        super().__init__()
        self.column = column

    def forward(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.column(crops.permute(0, 3, 1, 2).float())
        return logits, logits.softmax(dim=1)


def to_onnx(column: GroupedAlexNet, path: str) -> torch.onnx.ONNXProgram:
    """A network for evaluation; ``save`` writes it as one file.

    Args:
        column: the network.
        path: of the file, for a message.

    Raises:
        UserError: the packages that torch needs for it are not installed.
    """
    example = torch.zeros(2, 224, 224, 3, dtype=torch.uint8)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Of torch, about its own code.
            program = torch.onnx.export(
                _Outputs(column).eval(),
                (example,),
                dynamo=True,
                dynamic_shapes={"crops": {0: torch.export.Dim("images")}},
                input_names=["crops"],
                output_names=["logits", "probabilities"],
                verbose=False,
            )
    except ImportError as error:
        raise UserError(
            f"{path}: an ONNX file needs the packages onnx and onnxscript ({one_line(error)}); "
            "install this project with the extra onnx"
        ) from error
    assert program is not None
    return program
