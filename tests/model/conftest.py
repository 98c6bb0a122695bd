"""A small random network, and speech-like sounds to feed it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.audio import load_audio
from model.checkpoint import Checkpoint, load_checkpoint
from model.recognizer import Recognizer
from tests.random_checkpoint import SHIPPED, make_random_checkpoint
from training.manifest import read_manifest

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def random_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a checkpoint with random weights."""
    return make_random_checkpoint(tmp_path_factory.mktemp("checkpoint") / "random")


@pytest.fixture
def random_checkpoint(random_folder: Path) -> Checkpoint:
    """That checkpoint, loaded."""
    return load_checkpoint(random_folder)


@pytest.fixture(scope="session")
def sound() -> Callable[[float, int], Tensor]:
    """`sound(seconds, seed)`: tones that come and go, with a little noise."""

    def make(seconds: float, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        n = round(seconds * 16_000)
        time = torch.arange(n) / 16_000
        pitches = 100 + 900 * torch.rand(4, generator=generator)
        tones = torch.stack([torch.sin(2 * torch.pi * p * time) for p in pitches]).sum(0)
        gate = (
            torch.sin(2 * torch.pi * (2 + torch.rand(1, generator=generator)) * time) > 0
        ).float()
        return 0.1 * tones * gate + 0.01 * torch.randn(n, generator=generator)

    return make


FIXTURES = Path(__file__).parents[1] / "fixtures" / "manifest.jsonl"


@pytest.fixture(scope="session")
def shipped_recognizer() -> Recognizer:
    """The shipped checkpoint in float32, which gives the same numbers on every machine."""
    return Recognizer.load(SHIPPED, device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def speech() -> list[Tensor]:
    """The fixture clips."""
    return [load_audio(u.audio_filepath) for u in read_manifest(FIXTURES)[0]]


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """What is said in them."""
    return [u.text for u in read_manifest(FIXTURES)[0]]
