"""Synthetic speech: what can be said, that nothing is lost, and that a recognizer understands it."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from model.audio import load_audio
from model.checkpoint import load_checkpoint
from model.recognizer import Recognizer
from tests.processes import started
from tests.random_checkpoint import SHIPPED
from training.manifest import read_manifest
from training.scoring import Pair, score
from training.spoken import UnspeakableError, spoken_text
from training.synthesize import SPEEDS, Clip, finish, main, plan
from training.voices import (
    MOST_PHONEMES,
    Synthesizer,
    Voice,
    VoiceError,
    packaged_voices,
    read_voices,
)

ANNA, BEN = (Voice(name, np.zeros((510, 256), np.float32)) for name in ("af_anna", "bm_ben"))


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("The harbor was quiet.", "the harbor was quiet"),
        ("“Don’t,” she said — ‘now’ — and left…", "don't she said now and left"),
        ("A well-kept café; naïve, isn't it?", "a well kept cafe naive isn't it"),
        ("wait--what (really)?", "wait what really"),
        ("rock-'n'-roll", "rock n roll"),
        ("ibuprofen", "ibuprofen"),
    ],
)
def test_the_text_is_what_is_said_in_the_characters_of_the_ctc_head(line: str, text: str) -> None:
    assert spoken_text(line) == text


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("Flight 714 costs $90.", "holds 7 1 4 $ 9 0, which"),
        ("fish & chips", "holds &, which"),
        ("half a ½ cup", "holds ½, which"),
        ("добрый day", "holds д о б р ы й, which"),
        ("…!", "holds no word"),
    ],
)
def test_what_could_be_read_in_several_ways_is_refused(line: str, reason: str) -> None:
    with pytest.raises(UnspeakableError, match=reason.replace("$", r"\$")):
        spoken_text(line)


def planned(tmp_path: Path, *lines: str, seed: int = 1) -> list[Clip]:
    (tmp_path / "words.txt").write_text("\n".join(lines))
    return plan(tmp_path / "words.txt", [ANNA, BEN], SPEEDS, seed, tmp_path)[0]


LINES = [f"Line {letter}." for letter in "abcdefghijklmnop"]


def test_a_line_is_said_the_same_way_wherever_it_stands(tmp_path: Path) -> None:
    before = {clip.written: clip.path for clip in planned(tmp_path, *LINES)}
    after = {clip.written: clip.path for clip in planned(tmp_path, "New.", *reversed(LINES))}
    assert before.items() < after.items()


def test_voices_speeds_and_loudness_vary_from_line_to_line_and_with_the_seed(
    tmp_path: Path,
) -> None:
    clips = planned(tmp_path, *LINES)
    assert {clip.voice for clip in clips} == {ANNA, BEN}
    assert {clip.speed for clip in clips} == set(SPEEDS)
    others = planned(tmp_path, *LINES, seed=2)
    assert not {clip.path for clip in clips} & {clip.path for clip in others}


def test_a_line_that_stands_there_twice_is_said_in_two_ways(tmp_path: Path) -> None:
    first, second = planned(tmp_path, "The same.", "The same.")
    assert first.path != second.path


def test_each_line_is_planned_or_refused_by_its_number(tmp_path: Path) -> None:
    source = tmp_path / "words.txt"
    source.write_bytes("\ufeffOne  word.\r\n\r\n2 words\r\nThree.".encode())
    clips, refused = plan(source, [ANNA], [1.0], 1, tmp_path)
    assert [(c.line, c.written, c.text) for c in clips] == [
        (1, "One word.", "one word"),
        (4, "Three.", "three"),
    ]
    assert [(r.line, r.content) for r in refused] == [(3, "2 words")]


def test_ends_are_cut_and_the_loudest_sample_is_as_asked() -> None:
    second = 24_000
    tone = 0.3 * np.sin(np.arange(second) * 2 * np.pi * 440 / second).astype(np.float32)
    silence = np.zeros(second, np.float32)
    speech = finish(np.concatenate([silence, tone, silence]), 0.5)
    assert len(speech) / 16_000 == pytest.approx(0.1 + 1.0 + 0.15, abs=0.01)
    assert np.abs(speech).max() == pytest.approx(0.5)
    with pytest.raises(UnspeakableError, match="silence"):
        finish(silence, 0.5)


def test_the_english_voices_of_a_folder_are_read(tmp_path: Path) -> None:
    for name in ("bm_ben", "af_anna", "ff_siwis"):
        np.full((510, 256), len(name), "<f4").tofile(tmp_path / f"{name}.bin")
    anna, ben = read_voices(tmp_path)
    assert (anna.name, anna.british, ben.name, ben.british) == ("af_anna", False, "bm_ben", True)
    assert anna.styles.shape == (510, 256) and anna.styles[0, 0] == len("af_anna")


def test_a_folder_without_voices_and_a_broken_voice_are_errors(tmp_path: Path) -> None:
    with pytest.raises(VoiceError, match="holds no English voice"):
        read_voices(tmp_path)
    (tmp_path / "af_anna.bin").write_bytes(b"<html>")
    with pytest.raises(VoiceError, match=r"af_anna.bin is not a voice: 6 bytes"):
        read_voices(tmp_path)


def test_without_its_packages_the_error_names_the_set() -> None:
    code = "import sys; sys.modules['onnxruntime'] = None; import training.synthesize"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "onnxruntime is not installed" in ended.stderr
    assert "make .venv/synthesis.done" in ended.stderr


@pytest.fixture(scope="module")
def synthesizer() -> Synthesizer:
    return Synthesizer()


@pytest.mark.parametrize(
    ("text", "american", "british"),
    [
        ("No button, please!", "nˈO bˈʌtᵊn, plˈiz!", "nˈQ bˈʌtən, plˈiːz!"),
        ("Hear Judge Church sing.", "hˈɪɹ ʤˈʌʤ ʧˈɜɹʧ sˈɪŋ.", "hˈɪə ʤˈʌʤ ʧˈɜːʧ sˈɪŋ."),
        ("my boy's loud day", "mI bˈYz lˈWd dˈA", "mI bˈYz lˈWd dˈA"),
    ],
)
def test_phonemes_are_those_of_kokoro(
    synthesizer: Synthesizer, text: str, american: str, british: str
) -> None:
    assert synthesizer.phonemes(text, british=False) == american
    assert synthesizer.phonemes(text, british=True) == british


def test_a_text_beyond_the_context_is_refused(synthesizer: Synthesizer) -> None:
    with pytest.raises(UnspeakableError, match=f"at most {MOST_PHONEMES}"):
        synthesizer.speak("never again " * 60, packaged_voices()[0])


SPOKEN = [
    "The old harbor was quiet, and the ship left before the morning.",
    "She keeps a small garden behind the house.",
    "Please close the window, it is cold in here.",
]


@pytest.mark.slow
def test_a_killed_run_goes_on_and_a_recognizer_understands_the_clips(tmp_path: Path) -> None:
    source, output = tmp_path / "words.txt", tmp_path / "synthetic"
    source.write_text("\n".join([*SPOKEN, "Gate 4"]))
    arguments = ["--text", str(source), "--output", str(output), "--workers", "2"]

    with started([sys.executable, "-m", "training.synthesize", *arguments]) as (run,):
        while not (kept := list(output.glob("clips/*.flac"))):
            assert run.poll() is None
            time.sleep(0.05)
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in kept}
    assert main(arguments) == 0
    assert before == {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in kept}

    clips, rejected = read_manifest(output / "manifest.jsonl")
    assert not rejected
    assert [clip.written for clip in clips] == SPOKEN
    assert [clip.text for clip in clips] == [spoken_text(line) for line in SPOKEN]
    assert {clip.label for clip in clips} == {"synthetic"}
    assert all((clip.speaker or "?") in clip.audio_filepath.name for clip in clips)
    (refused,) = (output / "refused.jsonl").read_text().splitlines()
    assert json.loads(refused)["line"] == 4

    remade = clips[-1].audio_filepath
    content = remade.read_bytes()
    remade.unlink()
    assert main(arguments) == 0
    assert remade.read_bytes() == content

    assert {soundfile.info(clip.audio_filepath).samplerate for clip in clips} == {16_000}
    recognizer = Recognizer(load_checkpoint(SHIPPED))
    heard = recognizer.transcribe([load_audio(clip.audio_filepath) for clip in clips]).transcripts
    pairs = [
        Pair(str(clip.audio_filepath), clip.text, transcript.text, clip.duration)
        for clip, transcript in zip(clips, heard, strict=True)
    ]
    assert score(pairs).wer.errors <= 2  # of 29 words
