"""`python -m model`: what somebody types who only wants the text."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from model.__main__ import main
from model.hotwords import Hotword
from model.recognizer import BatchResult, Recognizer, TranscribeOptions
from training.scoring import Pair, score

FIXTURES = Path(__file__).parents[1] / "fixtures"
SHORT = FIXTURES / "short.wav"
SAID = "Please stop the recording now."


@pytest.fixture
def asked(
    shipped_recognizer: Recognizer, monkeypatch: pytest.MonkeyPatch
) -> list[TranscribeOptions]:
    """The options that reach the shipped recognizer, which stays loaded."""
    seen: list[TranscribeOptions] = []
    transcribe = Recognizer.transcribe

    def noted(
        self: Recognizer, waveforms: Sequence[Tensor], options: TranscribeOptions
    ) -> BatchResult:
        seen.append(options)
        return transcribe(self, waveforms, options)

    monkeypatch.setattr(Recognizer, "load", lambda *_, **__: shipped_recognizer)
    monkeypatch.setattr(Recognizer, "transcribe", noted)
    return seen


def wer(text: str) -> float:
    pair = Pair(id="short", reference=SAID, hypothesis=text, duration=2.0, speaker="am_puck")
    return score([pair]).wer.value


@pytest.mark.usefixtures("asked")
def test_texts_are_printed_and_a_bad_file_stops_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "notes.mp3"
    bad.write_text("no sound")
    assert main([str(bad), str(tmp_path / "gone.wav"), str(SHORT)]) == 1
    told = capsys.readouterr()
    assert wer(told.out) == 0
    first, second = told.err.splitlines()
    assert first.startswith(f"{bad}: ") and "gone.wav" in second


def test_what_was_asked_for_reaches_the_recognizer(asked: list[TranscribeOptions]) -> None:
    words = "Kubernetes, O'Farrell:2.5,"
    assert main([str(SHORT), "--mode", "fast", "--hotwords", words]) == 0
    assert main([str(SHORT), "--response-format", "srt"]) == 0
    fast, subtitles = asked
    assert fast.hotwords == (Hotword("Kubernetes"), Hotword("O'Farrell", 2.5))
    assert (fast.mode, fast.word_timestamps) == ("fast", False)
    assert (subtitles.mode, subtitles.word_timestamps) == ("accurate", True)


def test_a_fault_that_nobody_foresaw_stops_no_other_file(
    tmp_path: Path,
    asked: list[TranscribeOptions],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    transcribe = Recognizer.transcribe

    def fail_once(self: Recognizer, *given: Any) -> BatchResult:
        if not asked:
            asked.append(TranscribeOptions())
            raise RuntimeError("out of memory")
        return transcribe(self, *given)

    monkeypatch.setattr(Recognizer, "transcribe", fail_once)
    arguments = ["--output", str(tmp_path), "--response-format", "verbose_json"]
    assert main([str(FIXTURES / "command.webm"), str(SHORT), *arguments]) == 1
    told = capsys.readouterr().err
    assert "command.webm: Traceback" in told and "RuntimeError: out of memory" in told
    found = json.loads((tmp_path / "short.json").read_text())
    assert [word["word"] for word in found["words"]][:2] == ["Please", "stop"]
    assert os.listdir(tmp_path) == ["short.json"]


def test_a_second_run_does_what_is_left(
    tmp_path: Path, asked: list[TranscribeOptions], capsys: pytest.CaptureFixture[str]
) -> None:
    command = FIXTURES / "command.webm"
    texts = tmp_path / "new" / "texts"
    assert main([str(SHORT), "--output", str(texts)]) == 0
    (texts / "short.txt").write_text("Corrected by hand.")
    assert main([str(SHORT), str(command), "--output", str(texts)]) == 0
    assert (texts / "short.txt").read_text() == "Corrected by hand."
    assert "kitchen" in (texts / "command.txt").read_text()
    assert sorted(os.listdir(texts)) == ["command.txt", "short.txt"]
    assert len(asked) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert "short.txt is there already and was left as it is" in told.err


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["a/short.wav", "--output", "texts"], "would both be written to texts/short.txt"),
        (["--hotwords", "Gate:much"], "'much', the weight after the colon, is no number"),
        (["--output", __file__], "File exists"),
        (["--checkpoint", "nowhere"], "nowhere"),
        (["--mode", "fast", "--prompt", "Dear"], "are for --mode accurate"),
        (["--beam-size", "9"], "invalid choice: 9"),
    ],
)
def test_what_cannot_be_done_is_told_before_anything_is(
    more: list[str],
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main([str(SHORT), *more])
    assert ended.value.code == 2
    assert reason in capsys.readouterr().err
    assert os.listdir(tmp_path) == []
