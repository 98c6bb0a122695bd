"""Labels that a model finds unlikely stand first, and can be dropped from the manifest."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.random_checkpoint import SHIPPED, make_random_checkpoint
from training.check_labels import main
from training.manifest import read_manifest

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "tests" / "fixtures" / "manifest.jsonl"
DROPPING = (
    """grep -o '"audio_filepath": "[^"]*"' wrong.jsonl """
    "| grep -vFf - train.written.jsonl > train.kept.jsonl"
)


def manifest_with(folder: Path, **texts: str) -> Path:
    """The fixtures' manifest with other texts for the clips that are named."""
    entries = [json.loads(line) for line in FIXTURES.open()]
    for entry in entries:
        stem = Path(entry["audio_filepath"]).stem
        entry["text"] = texts.get(stem, entry["text"])
        path = FIXTURES.parent / entry["audio_filepath"]
        entry["audio_filepath"] = Path(os.path.relpath(path, folder)).as_posix()
    manifest = folder / "train.written.jsonl"
    manifest.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return manifest


def test_a_wrong_label_stands_first_and_right_ones_are_not_doubted(tmp_path: Path) -> None:
    manifest = manifest_with(tmp_path, question="could you tell me which ticket I have to buy")
    output = tmp_path / "doubtful.jsonl"
    words = f"--checkpoint {SHIPPED} --manifest {manifest} --output {output}"
    assert main(words.split()) == 0
    worst, *others = [json.loads(line) for line in output.open()]
    assert worst["text"] == "could you tell me which ticket I have to buy"
    assert worst["doubt"] > 20
    assert "platform" in worst["heard"]
    assert worst["wer"] > 0.3
    assert [entry["doubt"] for entry in others] == sorted(
        (e["doubt"] for e in others), reverse=True
    )
    for entry in others:
        assert entry["doubt"] < 3
        assert entry["cross_entropy"] < worst["cross_entropy"]
        assert entry["ctc_loss"] < worst["ctc_loss"]

    (tmp_path / "wrong.jsonl").write_text(json.dumps(worst) + "\n")
    subprocess.run(DROPPING, shell=True, check=True, cwd=tmp_path)
    kept, everything = (
        {utterance.audio_filepath for utterance in read_manifest(path)[0]}
        for path in (tmp_path / "train.kept.jsonl", manifest)
    )
    assert everything - kept == {FIXTURES.parent / "question.m4a"}
    assert DROPPING in (ROOT / "docs" / "training.md").read_text()


def test_a_label_that_cannot_fit_into_its_audio_is_doubted_too(tmp_path: Path) -> None:
    manifest = manifest_with(tmp_path, short="please stop the recording now " * 40, news="1984")
    output = tmp_path / "doubtful.jsonl"
    checkpoint = make_random_checkpoint(tmp_path / "random")
    words = f"--checkpoint {checkpoint} --manifest {manifest} --output {output}"
    assert main(words.split()) == 0
    found = {Path(e["audio_filepath"]).stem: e for e in map(json.loads, output.open())}
    assert found["short"]["ctc_loss"] is None
    assert found["news"]["ctc_loss"] > 0


def test_what_cannot_be_used_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = manifest_with(tmp_path)
    (tmp_path / "noise.wav").write_bytes(b"RIFF")
    bad = {"audio_filepath": "noise.wav", "duration": 1.0, "text": "noise"}
    with manifest.open("a") as file:
        file.write(json.dumps(bad) + "\nnothing\n")
    checkpoint = make_random_checkpoint(tmp_path / "random")
    words = f"--checkpoint {checkpoint} --manifest {manifest} --output {tmp_path / 'out.jsonl'}"
    assert main(words.split()) == 0
    told = capsys.readouterr()
    assert "noise.wav is left out: " in told.err
    assert "line 8 is left out: not JSON" in told.err
    assert "out.jsonl: 6 utterances, the most doubtful first" in told.out


def test_a_missing_checkpoint_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = f"--checkpoint {tmp_path} --manifest {FIXTURES} --output {tmp_path / 'out.jsonl'}"
    assert main(words.split()) == 1
    assert "check_labels: " in capsys.readouterr().err
