"""What several test modules need."""

import gc
from collections.abc import Iterator
from pathlib import Path

import factories
import hypothesis
import pytest
import torch

from alexnet.shards.format import Manifest
from alexnet.shards.write import make_shard

# No test is timed: a machine with other work may take a second for what takes a hundredth alone.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """The networks here are too small for more, and other work may be running beside the tests."""
    torch.set_num_threads(1)


@pytest.fixture
def own_threads() -> Iterator[None]:
    """For a test that sets torch's number of threads: afterwards it is what it was."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def _nothing_stays_frozen() -> Iterator[None]:
    """Scripts and workers freeze what they hold; a library of the tests' own complains of that."""
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def raw_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 training and 12 validation images in the folders form; one of them is broken."""
    root = tmp_path_factory.mktemp("raw-images")
    factories.write_images(root)
    return root


@pytest.fixture(scope="session")
def dataset(raw_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """The same images as shards: 39 training rows in five row groups, 12 validation rows in two."""
    folder = tmp_path_factory.mktemp("shards")
    units = factories.plan(raw_images, folder)
    for unit in units:
        make_shard(unit)
    return factories.assemble(raw_images, folder, units)
