"""Manifests: what is read, what is rejected and why, and that writing loses nothing."""

import json
import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from training.manifest import (
    ManifestError,
    Utterance,
    read_json_lines,
    read_librispeech,
    read_manifest,
    write_manifest,
)

GOOD = {"audio_filepath": "a.wav", "duration": 1.5, "text": "hello there"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.wav", "b.wav"):
        (tmp_path / name).write_bytes(b"not looked into")
    return tmp_path


def manifest_of(folder: Path, *lines: object) -> Path:
    path = folder / "manifest.jsonl"
    raw = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    path.write_bytes(b"\n".join(raw) + b"\n")
    return path


def test_a_line_becomes_an_utterance_with_an_absolute_path(folder: Path) -> None:
    path = manifest_of(folder, {**GOOD, "speaker": "7", "label": "human", "language": "en"})
    utterances, rejected = read_manifest(path)
    assert utterances == [Utterance(folder / "a.wav", 1.5, "hello there", "7", "human")]
    assert rejected == []


def test_the_path_does_not_depend_on_the_working_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest_of(folder, GOOD)
    monkeypatch.chdir(folder)
    utterances, _ = read_manifest(Path("manifest.jsonl"))
    assert utterances[0].audio_filepath == folder / "a.wav"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"", "empty line"),
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"audio_filepath": "\xff"}', "not UTF-8 at byte 21"),
        (["a.wav"], "not a JSON object but list"),
        ({"audio_filepath": "a.wav"}, "lacks duration, text"),
        ({**GOOD, "audio_filepath": 7}, "audio_filepath is 7, not a string"),
        ({**GOOD, "audio_filepath": "c.wav"}, "no such file"),
        ({**GOOD, "audio_filepath": "."}, "no such file"),
        ({**GOOD, "audio_filepath": "a" * 5000}, "no such file"),
        ({**GOOD, "audio_filepath": "a\0.wav"}, "no such file"),
        ({**GOOD, "duration": "1.5"}, "duration is '1.5', not a number"),
        ({**GOOD, "duration": True}, "duration is True, not a number"),
        ({**GOOD, "duration": 0}, "must be finite and above 0"),
        ({**GOOD, "duration": -1.0}, "must be finite and above 0"),
        ({**GOOD, "duration": float("nan")}, "must be finite and above 0"),
        ({**GOOD, "duration": float("inf")}, "must be finite and above 0"),
        ({**GOOD, "duration": 10**400}, "must be finite and above 0"),
        ({**GOOD, "text": None}, "text is None, not a string"),
        ({**GOOD, "text": " \t"}, "text is empty"),
        ({**GOOD, "text": "\ud800"}, "text holds half a character"),
        ({**GOOD, "speaker": 7}, "speaker is 7, not a string"),
        ({**GOOD, "offset": 3.0}, "offset 3.0"),
    ],
)
def test_a_bad_line_is_listed_and_its_neighbours_are_read(
    folder: Path, line: object, reason: str
) -> None:
    other = {**GOOD, "audio_filepath": "b.wav"}
    utterances, rejected = read_manifest(manifest_of(folder, GOOD, line, other))
    assert [utterance.audio_filepath.name for utterance in utterances] == ["a.wav", "b.wav"]
    assert [entry.line for entry in rejected] == [2]
    assert reason in rejected[0].reason
    assert rejected[0].manifest == folder / "manifest.jsonl"


def test_a_speaker_in_two_spellings_of_unicode_is_one(folder: Path) -> None:
    entries = [
        {
            "audio_filepath": f"{number}.wav",
            "duration": 1,
            "text": "a",
            "speaker": name,
            "group": name,
        }
        for number, name in enumerate(["Jos\u00e9", "Jose\u0301", " Jos\u00e9 "])
    ]
    path = folder / "names.jsonl"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    utterances, _ = read_manifest(path, exists=lambda path: True)
    assert [(u.speaker, u.group) for u in utterances] == [("Jos\u00e9", "Jos\u00e9")] * 3


def test_the_second_line_for_one_file_is_rejected(folder: Path) -> None:
    again = {**GOOD, "audio_filepath": "../" + folder.name + "/a.wav"}
    utterances, rejected = read_manifest(manifest_of(folder, GOOD, again))
    assert len(utterances) == 1
    assert rejected[0].reason == "audio_filepath is the same as in line 1"


def test_a_byte_order_mark_and_windows_line_ends_are_read(folder: Path) -> None:
    path = folder / "manifest.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\r\n")
    utterances, rejected = read_manifest(path)
    assert (len(utterances), rejected) == (1, [])


def test_a_manifest_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere.jsonl"):
        read_manifest(tmp_path / "nowhere.jsonl")


text = st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip)
name = text.map(lambda given: unicodedata.normalize("NFC", given).strip())


@settings(deadline=None)
@given(
    entries=st.lists(
        st.tuples(
            st.floats(min_value=0, exclude_min=True, allow_nan=False, allow_infinity=False),
            text,
            st.none() | name,
            *[st.none() | text] * 2,
        ),
        max_size=4,
    )
)
def test_what_is_written_is_read_back_exactly(
    tmp_path_factory: pytest.TempPathFactory,
    entries: list[tuple[float, str, str | None, str | None, str | None]],
) -> None:
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "audio").mkdir()
    (folder / "lists").mkdir()
    utterances = []
    for number, entry in enumerate(entries):
        audio = folder / "audio" / f"{number} ü.wav"
        audio.touch()
        utterances.append(Utterance(audio, *entry))
    path = folder / "lists" / "manifest.jsonl"
    write_manifest(path, utterances)
    assert read_manifest(path) == (utterances, [])


def test_written_paths_are_relative_so_that_a_corpus_can_be_moved(folder: Path) -> None:
    (folder / "lists").mkdir()
    path = folder / "lists" / "manifest.jsonl"
    write_manifest(path, [Utterance(folder / "a.wav", 1.0, "hello")])
    assert json.loads(path.read_text())["audio_filepath"] == "../a.wav"


def test_a_write_that_fails_leaves_the_former_manifest(folder: Path) -> None:
    path = folder / "manifest.jsonl"
    path.write_text("former")

    def utterances_that_end_badly() -> Iterator[Utterance]:
        yield Utterance(folder / "a.wav", 1.0, "hello")
        raise RuntimeError("the corpus went away")

    with pytest.raises(RuntimeError, match="the corpus went away"):
        write_manifest(path, utterances_that_end_badly())
    assert path.read_text() == "former"
    assert sorted(os.listdir(folder)) == ["a.wav", "b.wav", "manifest.jsonl"]


@pytest.fixture
def librispeech(tmp_path: Path) -> Path:
    """One chapter of three files: two with text, the third without."""
    chapter = tmp_path / "LibriSpeech" / "dev-clean" / "84" / "121123"
    chapter.mkdir(parents=True)
    for number in range(3):
        soundfile.write(chapter / f"84-121123-000{number}.flac", np.zeros(8000), 16_000)
    (chapter / "84-121123.trans.txt").write_text(
        "84-121123-0000 GO DO YOU HEAR\n84-121123-0001 BUT IN LESS THAN FIVE MINUTES\n"
    )
    return tmp_path


def test_librispeech_folders_are_read_with_speakers_and_durations(librispeech: Path) -> None:
    utterances, _ = read_librispeech(librispeech)
    assert [(u.text, u.duration, u.speaker) for u in utterances] == [
        ("go do you hear", 0.5, "84"),
        ("but in less than five minutes", 0.5, "84"),
    ]
    assert utterances[0].audio_filepath.name == "84-121123-0000.flac"


def test_librispeech_audio_without_text_is_listed(librispeech: Path) -> None:
    _, rejected = read_librispeech(librispeech)
    assert [(entry.line, entry.reason, entry.content) for entry in rejected] == [
        (0, "no line has this file's text", "84-121123-0002.flac")
    ]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"84-121123-0002", "text is empty"),
        (b"84-121123-0009 NO AUDIO", "no such file"),
        (b"84-121123-0000 TWICE", "the same utterance stands in an earlier line"),
        (b"85-121123-0000 OF ANOTHER SPEAKER", "not with 84-121123-NUMBER"),
        (b"84-121123-0002 \xff", "not UTF-8 at byte 16"),
    ],
)
def test_bad_librispeech_lines_are_listed(librispeech: Path, line: bytes, reason: str) -> None:
    (transcript,) = librispeech.rglob("*.trans.txt")
    transcript.write_bytes(transcript.read_bytes() + line + b"\n")
    utterances, rejected = read_librispeech(librispeech)
    assert len(utterances) == 2
    assert reason in next(entry for entry in rejected if entry.line == 3).reason


def test_librispeech_audio_that_is_no_flac_is_listed(librispeech: Path) -> None:
    next(librispeech.rglob("*0001.flac")).write_bytes(b"plain text")
    utterances, rejected = read_librispeech(librispeech)
    assert len(utterances) == 1
    assert "84-121123-0001.flac is not FLAC" in rejected[0].reason


def test_a_folder_without_transcripts_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="holds no SPEAKER/CHAPTER"):
        read_librispeech(tmp_path)


def test_a_text_may_hold_what_ends_lines_elsewhere(tmp_path: Path) -> None:
    lines = [{"text": "one\u2028two\x85three\u2029"}, {"text": "four"}]
    path = tmp_path / "lines.jsonl"
    written = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    path.write_text(written, encoding="utf-8")
    assert len(written.splitlines()) > 2
    assert read_json_lines(path) == lines


def test_of_a_file_in_parts_none_is_used(folder: Path) -> None:
    """The first part would be learnt with the sound of all of them."""
    whole = {**GOOD, "audio_filepath": "b.wav", "offset": 0}
    lines = [{**GOOD, "offset": 0.0}, whole, {**GOOD, "offset": 5.2}, {**GOOD, "offset": 9}]
    utterances, rejected = read_manifest(manifest_of(folder, *lines))
    assert [utterance.audio_filepath.name for utterance in utterances] == ["b.wav"]
    assert [entry.line for entry in rejected] == [1, 3, 4]
    assert [entry.reason.split(":")[0] for entry in rejected] == [
        "offset 0",
        "offset 5.2",
        "offset 9",
    ]
