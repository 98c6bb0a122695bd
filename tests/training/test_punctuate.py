"""The words that were said, in the dress of what was heard."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.random_checkpoint import SHIPPED
from training.manifest import read_manifest
from training.punctuate import punctuate, written_form

FIXTURES = Path(__file__).parents[1] / "fixtures" / "manifest.jsonl"


@pytest.mark.parametrize(
    ("spoken", "heard", "written"),
    [
        ("so be it", "So be it.", "So be it."),
        ("the cat sat on the mat", "The bat sat on the mat.", "The cat sat on the mat."),
        ("mister smith he said go", 'Mr. Smit, he said, "Go.', 'Mr. Smith, he said, "Go.'),
        ("his father in law", "Of his father-in-law.", "His father-in-law."),
        ("twenty one men", "21 men!", "21 men!"),
        ("go on now", "Go on know?", "Go on now?"),
        ("the good dog", "The dog.", "The good dog."),
        ("i saw her", "I saw her there.", "I saw her."),
        ("in london", "in Londen", "In London"),
        ("hello", "", "Hello"),
        ("", "Thank you.", ""),
        ("the colour", 'The "Color".', 'The "Colour".'),
        ("organised in grey", "Organized in gray!", "Organised in grey!"),
        ("i am going", "I'm going.", "I'm going."),
    ],
)
def test_examples(spoken, heard, written):
    assert written_form(spoken, heard) == written


WORDS = st.lists(
    st.sampled_from(["alpha", "bravo", "charlie", "delta", "echo", "foxtrot"]), max_size=12
)


@given(WORDS, WORDS, st.lists(st.sampled_from(["", ",", ".", "?"]), min_size=12, max_size=12))
def test_the_words_are_always_those_that_were_said(said, heard, marks):
    dressed = [w.capitalize() + m for w, m in zip(heard, marks, strict=False)]
    written = written_form(" ".join(said), " ".join(dressed))
    assert [w.strip(",.?").lower() for w in written.split()] == said


@pytest.mark.slow
@pytest.mark.parametrize("padded", [[], ["--padded"]])
def test_command_writes_a_manifest_that_keeps_the_spoken_words(tmp_path, padded):
    spoken = []
    for utterance in read_manifest(FIXTURES)[0][:2]:
        text = " ".join(utterance.text.lower().replace(".", "").replace(",", "").split())
        entry = {"audio_filepath": str(utterance.audio_filepath), "duration": utterance.duration}
        spoken.append({**entry, "text": text})
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, spoken)))
    command = [sys.executable, "-m", "training.punctuate", "--checkpoint", SHIPPED, *padded]
    files = ["--manifest", tmp_path / "in.jsonl", "--output", tmp_path / "out.jsonl"]
    subprocess.run([*command, *files], check=True)
    written, rejected = read_manifest(tmp_path / "out.jsonl")
    assert not rejected
    assert [u.text for u in written] == [s["text"] for s in spoken]
    assert all(u.written and u.written[0].isupper() for u in written)


def test_command_names_what_cannot_be_read_and_keeps_the_rest(tmp_path):
    first = read_manifest(FIXTURES)[0][0]
    (tmp_path / "broken.wav").write_bytes(b"RIFF, and no more")
    lines = [
        {"audio_filepath": "broken.wav", "duration": 1.0, "text": "lost"},
        {
            "audio_filepath": str(first.audio_filepath),
            "duration": first.duration,
            "text": first.text,
        },
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, lines)))
    result = _run("--manifest", tmp_path / "in.jsonl", "--output", tmp_path / "out.jsonl")
    assert result.returncode == 0, result.stderr
    assert "1 utterances, 1 rejected" in result.stdout
    assert "broken.wav: " in result.stderr
    assert [u.text for u in read_manifest(tmp_path / "out.jsonl")[0]] == [first.text]


def test_a_recording_that_cannot_be_read_ends_it_where_that_is_wanted(tmp_path):
    (tmp_path / "broken.wav").write_bytes(b"RIFF, and no more")
    line = {"audio_filepath": "broken.wav", "duration": 1.0, "text": "lost"}
    (tmp_path / "in.jsonl").write_text(json.dumps(line))
    with pytest.raises(ValueError, match="broken.wav: "):
        punctuate(SHIPPED, tmp_path / "in.jsonl", tmp_path / "out.jsonl", strict=True)
    assert not (tmp_path / "out.jsonl").exists()


def test_command_says_in_a_line_that_there_is_no_manifest(tmp_path):
    result = _run("--manifest", tmp_path / "none.jsonl", "--output", tmp_path / "out.jsonl")
    assert result.returncode == 2
    assert "none.jsonl" in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


def _run(*arguments):
    command = [sys.executable, "-m", "training.punctuate", "--checkpoint", SHIPPED, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)
