"""The mean of checkpoints."""

import subprocess
import sys

import torch

from model.checkpoint import load_checkpoint
from tests.random_checkpoint import make_random_checkpoint


def test_each_weight_is_the_mean(tmp_path):
    folders = [make_random_checkpoint(tmp_path / str(seed), seed) for seed in range(3)]
    command = [sys.executable, "-m", "training.average", *folders, "--output", tmp_path / "mean"]
    subprocess.run(command, check=True)
    states = [load_checkpoint(folder).network.state_dict() for folder in folders]
    for name, value in load_checkpoint(tmp_path / "mean").network.state_dict().items():
        expected = torch.stack([state[name] for state in states]).mean(0)
        assert torch.allclose(value, expected, atol=1e-3), name
