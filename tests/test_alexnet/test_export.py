"""The exported one-column network against the towers, in training and in evaluation."""

import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from factories import narrow_network, relative_error
from safetensors.torch import load_file, save_file
from torch import Tensor

from alexnet import export
from alexnet.diagnostics.equivalence import he_init
from alexnet.errors import UserError
from alexnet.later_recipes import TORCHVISION
from alexnet.model.classifier import CropClassifier
from alexnet.model.dropout import Dropout
from alexnet.model.grouped import GroupedAlexNet
from alexnet.model.placement import to_grouped
from alexnet.model.towers import AlexNet
from alexnet.recipes import PAPER, SOURCE145, Recipe, ablate
from alexnet.training.checkpoint import TrainState, save_checkpoint, take_snapshot
from alexnet.training.optimizer import build_optimizer
from alexnet.variants import with_conv6
from alexnet.weights.torchvision import read_torchvision

MEAN = 255 * torch.rand((3, 224, 224), generator=torch.Generator().manual_seed(3))
RECIPES_TO_EXPORT = [
    pytest.param(PAPER, id="paper", marks=pytest.mark.slow),
    pytest.param(SOURCE145, id="source145"),
    pytest.param(ablate(SOURCE145, towers=1), id="one tower"),
    pytest.param(with_conv6(SOURCE145, pretrained=True), id="conv6", marks=pytest.mark.slow),
    pytest.param(TORCHVISION, id="torchvision"),
    pytest.param(ablate(PAPER, normalization=False), id="no normalization", marks=pytest.mark.slow),
    pytest.param(
        ablate(SOURCE145, overlapping_pooling=False),
        id="no overlapping pooling",
        marks=pytest.mark.slow,
    ),
]


def save_network(recipe: Recipe, folder: Path) -> AlexNet:
    """A narrow network with weights of ``he_init``, and its checkpoint in a folder."""
    network = narrow_network(recipe)
    he_init(network)
    optimizer = build_optimizer(network, recipe)
    save_checkpoint(str(folder), take_snapshot(network, optimizer, TrainState(step=1), MEAN))
    return network


def crops() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("recipe", RECIPES_TO_EXPORT)
def test_the_column_equals_the_towers(tmp_path: Path, recipe: Recipe) -> None:
    network = save_network(recipe, tmp_path).double().eval()
    path = str(tmp_path / "column.safetensors")
    export.write(str(tmp_path), path)
    column = export.read(path).double()
    assert not column.training
    with torch.no_grad():
        expected = network(crops() - MEAN.double())
        logits = column(crops())
    assert relative_error(expected[:1], expected[1:]) > 0.01, "the logits depend on the image"
    assert relative_error(logits, expected) < 1e-12
    # The class of the registered model, in single precision.
    classifier = CropClassifier(network.float(), MEAN)
    probabilities = classifier(crops().permute(0, 2, 3, 1))
    torch.testing.assert_close(column.float()(crops()).softmax(1), probabilities)


class FixedDropout(torch.nn.Module):
    """Dropout that always sets every third unit to zero, and multiplies the others by ``scale``."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor, _: Tensor | None = None) -> Tensor:
        return x * (torch.arange(x.shape[1]) % 3 > 0) * self.scale


def test_dropout_in_training_is_equivalent(tmp_path: Path) -> None:
    network = save_network(PAPER, tmp_path).double()
    path = str(tmp_path / "column.safetensors")
    export.write(str(tmp_path), path)
    column = export.read(path).double()
    assert isinstance(column.dropout6, torch.nn.Dropout)
    assert (column.dropout6.p, column.dropout7.p) == (0.5, 0.5)
    # Torch's dropout doubles the units that it keeps. That of 2012 does not.
    for name in ("dropout6", "dropout7"):
        setattr(column, name, FixedDropout(2.0))
    for tower in network.towers:
        assert isinstance(tower.dropout, Dropout)
        tower.dropout = FixedDropout(1.0)
    network.eval()
    with torch.no_grad():
        assert relative_error(column(crops()), network(crops() - MEAN.double())) < 1e-12


def test_the_contents_of_the_file(tmp_path: Path) -> None:
    network = save_network(SOURCE145, tmp_path)
    path = tmp_path / "column.safetensors"
    export.write(str(tmp_path), str(path))
    state = load_file(path)
    assert torch.equal(state["centre.mean"], MEAN)
    assert state["conv1.weight"].shape == (96, 3, 11, 11)
    assert state["conv2.weight"].shape == (256, 48, 5, 5)
    assert torch.equal(state["fc8.weight"], network.fc8.weight / 2)
    assert torch.equal(state["fc8.bias"], network.fc8.bias)
    names = [name for name, _ in GroupedAlexNet(asdict(network.recipe), 4).named_parameters()]
    assert sorted(state) == sorted([*names, "centre.mean"])


def test_number_of_parameters() -> None:
    with torch.device("meta"):
        column = GroupedAlexNet(asdict(PAPER), 1000)
    assert sum(p.numel() for p in column.parameters()) == 60_965_224


def test_the_column_has_finite_gradients(tmp_path: Path) -> None:
    save_network(SOURCE145, tmp_path)
    path = str(tmp_path / "column.safetensors")
    export.write(str(tmp_path), path)
    column = export.read(path).train()
    loss = F.cross_entropy(column(crops()), torch.tensor([0, 3]))
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in column.parameters())


def test_averaged_weights_are_exported_if_there_are_any(tmp_path: Path) -> None:
    network = narrow_network(PAPER)
    average = {name: torch.full_like(p, 0.25) for name, p in network.named_parameters()}
    optimizer = build_optimizer(network, PAPER)
    save_checkpoint(str(tmp_path), take_snapshot(network, optimizer, TrainState(), MEAN, average))
    path = tmp_path / "column.safetensors"
    export.write(str(tmp_path), str(path))
    assert torch.equal(load_file(path)["conv3.weight"], torch.full((384, 256, 3, 3), 0.25))


def test_the_command(tmp_path: Path) -> None:
    save_network(PAPER, tmp_path)
    path = tmp_path / "column.safetensors"
    export.main([str(tmp_path), str(path)])
    assert len(export.read(str(path)).fc8.weight) == 4


@pytest.mark.slow
def test_the_command_in_a_process(tmp_path: Path) -> None:
    save_network(PAPER, tmp_path)
    path = tmp_path / "column.safetensors"
    command = [sys.executable, "-m", "alexnet.export", str(tmp_path), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(export.read(str(path)).fc8.weight) == 4


@pytest.mark.parametrize("missing", ["model.safetensors", "mean.safetensors"])
def test_the_error_names_the_damaged_file(
    tmp_path: Path, missing: str, capsys: pytest.CaptureFixture[str]
) -> None:
    save_network(PAPER, tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(SystemExit) as caught:
        export.main([str(tmp_path), str(tmp_path / "column.safetensors")])
    assert caught.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith(f"python -m alexnet.export: {tmp_path}/{missing}: ")
    assert message.count("\n") == 1
    assert not (tmp_path / "column.safetensors").exists()


def test_other_files_and_missing_folders_are_errors(tmp_path: Path) -> None:
    save_network(PAPER, tmp_path)
    (tmp_path / "text").write_text("no")
    for name in ("text", "missing", "velocity.safetensors", "model.safetensors"):
        with pytest.raises(UserError, match=r"not a file of alexnet\.export"):
            export.read(str(tmp_path / name))
    with pytest.raises(UserError, match="can't be written"):
        export.write(str(tmp_path), str(tmp_path / "no" / "folder.safetensors"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe", [SOURCE145, pytest.param(PAPER, marks=pytest.mark.long)], ids=lambda one: one.name
)
def test_an_onnx_file_computes_the_same_for_any_number_of_crops(
    tmp_path: Path, recipe: Recipe
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    network = save_network(recipe, tmp_path).eval()
    path = tmp_path / "network.onnx"
    export.main([str(tmp_path), str(path)])
    assert not list(tmp_path.glob("network.onnx.*"))
    session = onnxruntime.InferenceSession(str(path))
    classifier = CropClassifier(network, MEAN)
    for images in (crops(), crops()[:1], torch.cat([crops(), crops().flip(3)])):
        rows = images.permute(0, 2, 3, 1).contiguous()
        logits, probabilities = map(torch.from_numpy, session.run(None, {"crops": rows.numpy()}))
        with torch.no_grad():
            expected = network(images - MEAN)
            torch.testing.assert_close(probabilities, classifier(rows), rtol=0, atol=1e-5)
        assert relative_error(logits, expected) < 1e-5


def test_without_the_packages_for_onnx_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def without_package(*_: object, **__: object) -> None:
        raise ModuleNotFoundError("No module named 'onnxscript'")

    monkeypatch.setattr(torch.onnx, "export", without_package)
    save_network(PAPER, tmp_path)
    path = tmp_path / "network.onnx"
    with pytest.raises(SystemExit) as caught:
        export.main([str(tmp_path), str(path)])
    message = capsys.readouterr().err
    assert (caught.value.code, message.count("\n")) == (2, 1)
    assert "install this project with the extra onnx" in message
    assert not path.exists()


def test_torchvisions_network_is_written_for_torchvision(tmp_path: Path) -> None:
    models = pytest.importorskip("torchvision.models")
    network = save_network(TORCHVISION, tmp_path).double().eval()
    path = tmp_path / "network.pth"
    mean = torch.tensor([0.485, 0.456, 0.406]).reshape(3, 1, 1)
    constant = (255 * mean).expand(3, 224, 224).contiguous()
    save_file({"mean": constant}, tmp_path / "mean.safetensors")
    export.write(str(tmp_path), str(path))
    theirs = models.alexnet()
    for index, sizes in ((1, (9216, 48)), (4, (48, 48)), (6, (48, 4))):
        theirs.classifier[index] = torch.nn.Linear(*sizes)
    theirs.load_state_dict(torch.load(path, weights_only=True))
    weights = read_torchvision(str(path), path.read_bytes())
    normalized = (crops() / 255 - mean) / torch.tensor([0.229, 0.224, 0.225]).reshape(3, 1, 1)
    with torch.no_grad():
        expected = network(crops() - 255 * mean.double())
        assert relative_error(theirs.double().eval()(normalized.double()), expected) < 1e-6
    for name, tensor in to_grouped(network.state_dict()).items():
        assert relative_error(weights.tensors[name], tensor) < 1e-6, name


def test_what_a_file_can_not_have_is_one_line(tmp_path: Path) -> None:
    save_network(SOURCE145, tmp_path)
    with pytest.raises(UserError, match=r"network\.pth: torchvision's alexnet has other layers"):
        export.write(str(tmp_path), str(tmp_path / "network.pth"))
    with pytest.raises(UserError, match=r"ends with \.safetensors, \.onnx or \.pth"):
        export.write(str(tmp_path), str(tmp_path / "network.bin"))
