"""A checkpoint comes back exactly, or says what is wrong with it."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.checkpoint import CheckpointError, ModelConfig, load_checkpoint, save_checkpoint
from model.confidence import Calibration, Calibrations


@pytest.fixture
def folder(random_folder, tmp_path):
    return shutil.copytree(random_folder, tmp_path / "copy")


def test_round_trip_is_exact(random_checkpoint, tmp_path):
    save_checkpoint(tmp_path / "a", random_checkpoint, "# card\n", provenance={"by": "test"})
    again = load_checkpoint(tmp_path / "a")
    for name, value in random_checkpoint.network.state_dict().items():
        assert torch.equal(again.network.state_dict()[name], value), name
    assert again.config.dimensions == random_checkpoint.config.dimensions
    assert again.config.provenance == {"by": "test"}
    save_checkpoint(tmp_path / "b", again, "# card\n")
    for name in ("model.safetensors", "config.json", "tokenizer.json", "MODEL_CARD.md"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_a_calibration_travels_until_the_weights_are_others(random_checkpoint, tmp_path):
    fitted = Calibrations(accurate=Calibration(0.5, -1.0))
    random_checkpoint.config = replace(random_checkpoint.config, calibration=fitted)
    save_checkpoint(tmp_path / "a", random_checkpoint, "")
    again = load_checkpoint(tmp_path / "a")
    assert again.config.calibration == fitted
    save_checkpoint(tmp_path / "b", again, "", provenance={"trained": "further"})
    assert load_checkpoint(tmp_path / "b").config.calibration == Calibrations()


def test_a_file_from_before_there_were_calibrations_has_none(random_checkpoint):
    values = json.loads(random_checkpoint.config.to_json())
    del values["calibration"]
    assert ModelConfig.from_json(json.dumps(values)) == random_checkpoint.config


def test_int8_is_within_half_a_step_and_comes_back_exactly_the_second_time(
    random_checkpoint, tmp_path
):
    save_checkpoint(tmp_path / "a", random_checkpoint, "", dtype=torch.int8)
    again = load_checkpoint(tmp_path / "a")
    for name, value in random_checkpoint.network.state_dict().items():
        step = value.abs().flatten(1).amax(1, keepdim=True) / 127 if value.ndim > 1 else 1e-3
        error = (again.network.state_dict()[name] - value).abs().flatten(int(value.ndim > 1))
        assert bool((error <= 0.75 * torch.as_tensor(step)).all()), name
    save_checkpoint(tmp_path / "b", again, "", dtype=torch.int8)
    files = [tmp_path / name / "model.safetensors" for name in "ab"]
    assert files[0].read_bytes() == files[1].read_bytes()
    save_checkpoint(tmp_path / "c", again, "")
    halves = tmp_path / "c" / "model.safetensors"
    assert files[0].stat().st_size < 0.7 * halves.stat().st_size  # names and vectors are as large


def test_an_ngram_goes_along_when_a_checkpoint_is_saved_elsewhere_or_in_place(
    random_checkpoint, tmp_path
):
    ngram = tmp_path / "mine.arpa.xz"
    ngram.write_bytes(b"words")
    random_checkpoint.language_model = ngram
    save_checkpoint(tmp_path / "a", random_checkpoint, "")
    again = load_checkpoint(tmp_path / "a")
    assert again.language_model == tmp_path / "a" / "language_model.arpa.xz"
    save_checkpoint(tmp_path / "a", again, "")
    assert load_checkpoint(tmp_path / "a").language_model.read_bytes() == b"words"


def test_refuses_int8_weights_whose_scales_do_not_fit(random_checkpoint, tmp_path):
    save_checkpoint(tmp_path / "c", random_checkpoint, "", dtype=torch.int8)
    path = tmp_path / "c" / "model.safetensors"
    tensors = load_file(path)
    tensors["ctc.output.weight.scales"] = tensors["ctc.output.weight.scales"][:-1].clone()
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=r"ctc.output.weight .* one scale for each row"):
        load_checkpoint(tmp_path / "c")


def test_replaces_an_older_one_and_leaves_nothing_beside_it(random_checkpoint, tmp_path):
    for card in ("old", "new"):
        save_checkpoint(tmp_path / "c", random_checkpoint, card)
    assert (tmp_path / "c" / "MODEL_CARD.md").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def test_files_can_be_read_by_another_user(random_folder):
    assert all(p.stat().st_mode & 0o044 == 0o044 for p in random_folder.iterdir())


def test_refuses_to_save_what_is_not_finite(random_checkpoint, tmp_path):
    with torch.no_grad():
        random_checkpoint.network.encoder.conv1.bias[0] = 70_000.0  # beyond float16
    with pytest.raises(CheckpointError, match="encoder.conv1.bias has values that are not finite"):
        save_checkpoint(tmp_path / "c", random_checkpoint, "")
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_names_a_missing_file(folder, name):
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f"has no {name}"):
        load_checkpoint(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("kept", [0, 7, 1000])
def test_names_a_cut_file(folder, name, kept):
    path = folder / name
    path.write_bytes(path.read_bytes()[: min(kept, path.stat().st_size - 2)])
    with pytest.raises(CheckpointError, match=name):
        load_checkpoint(folder)


def test_names_a_foreign_weights_file(folder):
    save_file({"other": torch.zeros(3)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="unknown \\['other'\\]"):
        load_checkpoint(folder)


def test_names_a_weight_of_another_shape(folder):
    state = load_file(folder / "model.safetensors")
    state["ctc.output.bias"] = torch.zeros(30)
    save_file(state, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"ctc.output.bias has shape \(30,\)"):
        load_checkpoint(folder)


def test_names_a_weight_that_is_not_a_number(folder):
    state = load_file(folder / "model.safetensors")
    state["ctc.output.bias"][3] = torch.nan
    save_file(state, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="ctc.output.bias has values that are not finite"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, '"format": 1'),
        ({"surprise": 1}, "surprise"),
        ({"characters": "abc"}, "characters"),
        ({"language": "de"}, "language is 'de'"),
        ({"dimensions": {}}, "missing"),
        ({"calibration": []}, "config.json"),
        ({"calibration": {"slow": None}}, "slow"),
        ({"calibration": {"fast": {"slope": 1.0}}}, "offset"),
        ({"calibration": {"fast": {"slope": 0, "offset": 0}}}, "slope is 0"),
        ({"calibration": {"fast": {"slope": 1, "offset": "0"}}}, "offset is '0'"),
    ],
)
def test_names_a_wrong_setting(folder, change, message):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder)
