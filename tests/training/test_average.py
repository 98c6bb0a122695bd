"""The mean of checkpoints."""

import json
import subprocess
import sys

import pytest
import torch

from model.checkpoint import CheckpointError, load_checkpoint
from tests.random_checkpoint import make_random_checkpoint
from training.average import average


def test_each_weight_is_the_mean(tmp_path):
    folders = [make_random_checkpoint(tmp_path / str(seed), seed) for seed in range(3)]
    command = [sys.executable, "-m", "training.average", *folders, "--output", tmp_path / "mean"]
    subprocess.run(command, check=True)
    states = [load_checkpoint(folder).network.state_dict() for folder in folders]
    for name, value in load_checkpoint(tmp_path / "mean").network.state_dict().items():
        expected = torch.stack([state[name] for state in states]).mean(0)
        assert torch.allclose(value, expected, atol=1e-3), name


def test_a_start_is_mixed_in_but_for_the_ctc_head(tmp_path):
    trained, start = (make_random_checkpoint(tmp_path / str(seed), seed) for seed in range(2))
    command = [sys.executable, "-m", "training.average", trained, "--output", tmp_path / "mixed"]
    subprocess.run([*command, "--start", start, "--start-share", "0.25"], check=True)
    states = [load_checkpoint(folder).network.state_dict() for folder in (trained, start)]
    mixed = load_checkpoint(tmp_path / "mixed")
    for name, value in mixed.network.state_dict().items():
        share = 0.0 if name.startswith("ctc.") else 0.25
        expected = (1 - share) * states[0][name] + share * states[1][name]
        assert torch.allclose(value, expected, atol=1e-3), name
    assert mixed.config.provenance["start of weight"] == ["1", 0.25]
    refused = subprocess.run(
        [*command, "--start", start, "--start-share", "1.5"], capture_output=True, text=True
    )
    assert refused.returncode == 2
    assert "the start's share is 1.5; it must be from 0 to 1" in refused.stderr


def test_what_means_other_things_by_its_numbers_has_no_mean(tmp_path):
    one, other = (make_random_checkpoint(tmp_path / str(seed), seed) for seed in range(2))
    config = json.loads((other / "config.json").read_text())
    letters = config["characters"]
    (other / "config.json").write_text(json.dumps(config | {"characters": letters[::-1]}))
    with pytest.raises(CheckpointError, match=r"1 has characters .* and .*0 "):
        average([one, other], tmp_path / "mean")
    average([one], tmp_path / "mixed", start=other)  # nothing is taken of the start's CTC head
    (other / "config.json").write_text(json.dumps(config | {"tail_seconds": 0.3}))
    with pytest.raises(CheckpointError, match=r"1 has tail_seconds 0.3 and .*0 0.5"):
        average([one], tmp_path / "mixed again", start=other)
