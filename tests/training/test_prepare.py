"""Preparation: what is refused and why, that no speaker leaks, that the data have a fingerprint."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from training.corpus_statistics import SplitName
from training.manifest import Utterance, read_manifest
from training.prepare import (
    Measured,
    PreparationError,
    PrepareConfig,
    main,
    prepare,
    split_by_speaker,
)

Corpus = Callable[..., Path]


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    """Write recordings and their manifest: corpus("name", dict(speaker=…, seconds=…, …), …)."""

    def write(name: str, *lines: dict[str, Any]) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        entries = []
        for number, line in enumerate(lines):
            seconds = line.get("seconds", 1.0)
            noise = np.random.default_rng(line.get("sound", crc32(f"{name} {number}".encode())))
            audio = folder / f"{number}.wav"
            soundfile.write(audio, noise.uniform(-0.1, 0.1, int(seconds * 16_000)), 16_000)
            entries.append(
                {
                    "audio_filepath": audio.name,
                    "duration": line.get("declared", seconds),
                    "text": line.get("text", "ten chars."),
                    "speaker": line.get("speaker", str(number)),
                }
            )
        path = folder / "all.jsonl"
        path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
        return path

    return write


def prepared(output: Path, **values: Any) -> dict[str, list[dict[str, Any]]]:
    """Prepare in this process and read back the lists that were written."""
    prepare(PrepareConfig(output=output, workers=1, **values))
    return {
        path.stem: [json.loads(line) for line in path.read_text().splitlines()]
        for path in output.glob("*.jsonl")
    }


def measured(speaker: str | None, seconds: float, sound: str = "") -> Measured:
    utterance = Utterance(Path("/a.wav"), seconds, "hello", speaker)
    return Measured(utterance, declared_duration=seconds, audio_sha256=sound)


SHARES: dict[SplitName, float] = {"train": 0.8, "dev": 0.1, "test": 0.1}

speakers = st.lists(
    st.tuples(st.sampled_from([None, *"abcdefgh"]), st.floats(0.5, 30)), min_size=1, max_size=40
).filter(lambda entries: len({speaker for speaker, _ in entries}) >= 3)


@settings(deadline=None)
@given(speakers, st.integers(0, 3))
def test_every_speaker_is_in_one_split_and_every_utterance_is_kept(
    entries: list[tuple[str | None, float]], seed: int
) -> None:
    utterances = [measured(*entry) for entry in entries]
    splits = split_by_speaker(utterances, SHARES, seed)
    names = [{entry.utterance.speaker for entry in found} for found in splits.values()]
    assert all(names)
    assert sum(map(len, names)) == len(set.union(*names))
    assert sum(map(len, splits.values())) == len(utterances)


@settings(deadline=None)
@given(speakers, st.randoms(use_true_random=False))
def test_the_split_does_not_depend_on_the_order_of_the_input(
    entries: list[tuple[str | None, float]], random: Any
) -> None:
    utterances = [measured(*entry, sound=str(n)) for n, entry in enumerate(entries)]
    shuffled = list(utterances)
    random.shuffle(shuffled)

    def test_set(order: Sequence[Measured]) -> set[Measured]:
        return set(split_by_speaker(order, SHARES, seed=0)["test"])

    assert test_set(utterances) == test_set(shuffled)


def test_the_split_meets_the_shares_of_many_speakers() -> None:
    splits = split_by_speaker([measured(str(n), 1.0) for n in range(2_000)], SHARES, seed=0)
    assert len(splits["dev"]) == pytest.approx(200, abs=45)  # 3 standard deviations
    assert len(splits["test"]) == pytest.approx(200, abs=45)


@settings(deadline=None)
@given(st.integers(20, 60), st.integers(1, 200), st.integers(0, 1_000))
def test_nobody_whom_a_training_has_heard_is_measured_on_when_the_data_grow(
    few: int, more: int, seed: int
) -> None:
    people = [measured(f"{seed} {n}", 1.0) for n in range(few + more)]
    small, large = (split_by_speaker(found, SHARES, seed=0) for found in (people[:few], people))
    assert not set(small["train"]) & set(large["test"])
    assert len({name for name, found in large.items() if found}) == 3


def test_another_seed_holds_other_speakers_out() -> None:
    utterances = [measured(str(n), 1.0) for n in range(100)]
    first, second = (split_by_speaker(utterances, SHARES, seed)["test"] for seed in (0, 1))
    assert first != second


def test_fewer_speakers_than_splits_are_refused() -> None:
    with pytest.raises(PreparationError, match="2 speakers cannot be shared among train, dev, te"):
        split_by_speaker([measured("a", 1.0), measured(None, 1.0)], SHARES, seed=0)


def test_too_few_speakers_are_told_before_anything_is_decoded(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.prepare.measure", lambda *_: pytest.fail("decoded"))
    manifest = corpus("corpus", {"speaker": None}, {"speaker": None}, {"speaker": "a"})
    with pytest.raises(PreparationError, match="2 speakers cannot be shared"):
        prepared(tmp_path / "out", input=(manifest,), split=SHARES)
    assert not any((tmp_path / "out").iterdir())  # another attempt may use it


def test_lines_that_cannot_be_used_are_told_and_not_taken_for_a_lack_of_speakers(
    tmp_path: Path,
) -> None:
    table = tmp_path / "validated.tsv"
    table.write_text("client_id\tpath\tsentence\n1\ta.mp3\tHello.\n")
    with pytest.raises(PreparationError, match=r"no utterance is left; 2 lines were .*The first: "):
        prepared(tmp_path / "out", input=(table,), split=SHARES)
    assert len((tmp_path / "out" / "rejected.jsonl").read_text().splitlines()) == 2


def test_where_too_few_speakers_are_left_the_refused_lines_are_told_too(
    corpus: Corpus, tmp_path: Path
) -> None:
    manifest = corpus("corpus", {"speaker": "a"}, {"speaker": "b"})
    manifest.write_text(manifest.read_text() + '{"audio_filepath": "gone.wav"}\n')
    with pytest.raises(
        PreparationError, match=r"2 speakers cannot be shared.*1 lines cannot be used"
    ):
        prepared(tmp_path / "out", input=(manifest,), split=SHARES)
    assert not any((tmp_path / "out").iterdir())


def test_what_cannot_be_trained_on_is_listed_with_its_reason(
    corpus: Corpus, tmp_path: Path
) -> None:
    manifest = corpus(
        "corpus",
        {},
        {"seconds": 0.25},
        {"seconds": 4.0},
        {"text": "far too many characters"},
        {"text": "a", "seconds": 2.0},
        {"sound": 7},
        {"sound": 7},
        {},
        {},
    )
    (manifest.parent / "7.wav").write_bytes(b"no sound at all")
    (manifest.parent / "8.wav").unlink()
    lists = prepared(
        tmp_path / "out",
        input=(manifest,),
        split={"train": 1.0},
        max_seconds=3.0,
        max_characters_per_second=20.0,
    )
    assert len(lists["train"]) == 2
    audio = "../corpus/{}.wav".format
    refused = {
        entry.get("audio_filepath", entry.get("line")): (entry["kind"], entry["reason"])
        for entry in lists["rejected"]
    }
    assert list(refused) == [9, *map(audio, (1, 2, 3, 4, 6, 7))]
    assert refused[9][0] == "unusable line" and "no such file" in refused[9][1]
    assert refused[audio(1)] == ("too short", "0.25 s, below 0.5 s")
    assert refused[audio(2)][0] == "too long" and "4.0 s" in refused[audio(2)][1]
    assert refused[audio(3)] == ("text too fast", "23.0 characters/s (23 in 1.00 s), above 20")
    assert refused[audio(4)] == ("text too slow", "0.5 characters/s (1 in 2.00 s), below 1")
    assert refused[audio(6)] == ("duplicate audio", "the same audio as 5.wav, which is kept")
    assert refused[audio(7)][0] == "undecodable"
    assert {entry["source"] for entry in lists["rejected"]} == {"../corpus/all.jsonl"}


def test_wrongly_declared_durations_are_reported_and_put_right(
    corpus: Corpus, tmp_path: Path
) -> None:
    manifest = corpus("corpus", {"declared": 1.04}, {"declared": 9.0})
    lists = prepared(tmp_path / "out", input=(manifest,), split={"train": 1.0})
    assert [entry["duration"] for entry in lists["train"]] == [1.0, 1.0]
    assert lists["corrected"] == [
        {"audio_filepath": "../corpus/1.wav", "declared": 9.0, "measured": 1.0}
    ]


def test_the_written_manifests_can_be_read(corpus: Corpus, tmp_path: Path) -> None:
    prepared(tmp_path / "out", input=(corpus("corpus", {}, {}, {}),))
    for split in ("train", "dev", "test"):
        utterances, rejected = read_manifest(tmp_path / "out" / f"{split}.jsonl")
        assert (len(utterances), rejected) == (1, [])


def test_a_librispeech_folder_is_an_input_too(tmp_path: Path) -> None:
    chapter = tmp_path / "corpus" / "84" / "121123"
    chapter.mkdir(parents=True)
    soundfile.write(chapter / "84-121123-0000.flac", np.zeros(16_000), 16_000)
    (chapter / "84-121123.trans.txt").write_text("84-121123-0000 GO DO YOU HEAR\n")
    lists = prepared(tmp_path / "out", input=(tmp_path / "corpus",), split={"train": 1.0})
    assert [entry["text"] for entry in lists["train"]] == ["go do you hear"]


def test_given_splits_are_kept(corpus: Corpus, tmp_path: Path) -> None:
    train = corpus("a", {"speaker": "1"}, {"speaker": "2"})
    test = corpus("b", {"speaker": "3"})
    lists = prepared(tmp_path / "out", train=(train,), test=(test,))
    assert [entry["speaker"] for entry in lists["train"]] == ["1", "2"]
    assert [entry["speaker"] for entry in lists["test"]] == ["3"]
    assert "dev" not in lists


def test_a_speaker_in_two_given_splits_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    train = corpus("a", {"speaker": "1"}, {"speaker": "2"})
    test = corpus("b", {"speaker": "2"})
    with pytest.raises(PreparationError, match="1 speakers stand in .*: 2 in test and train"):
        prepared(tmp_path / "out", train=(train,), test=(test,))


def test_a_recording_in_two_given_splits_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    train = corpus("a", {"speaker": "1", "sound": 7})
    test = corpus("b", {"speaker": "2", "sound": 7})
    with pytest.raises(PreparationError, match=r"1 recordings .*: 0\.wav in train = 0\.wav in te"):
        prepared(tmp_path / "out", train=(train,), test=(test,))


def test_an_output_folder_with_files_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "dev.jsonl").touch()
    with pytest.raises(PreparationError, match="holds files already"):
        prepared(output, input=(corpus("corpus", {}),))


def test_when_nothing_is_left_the_reasons_are_there_all_the_same(
    corpus: Corpus, tmp_path: Path
) -> None:
    manifest = corpus("corpus", {"seconds": 0.1})
    with pytest.raises(PreparationError, match="rejected.jsonl"):
        prepared(tmp_path / "out", train=(manifest,))
    assert "too short" in (tmp_path / "out" / "rejected.jsonl").read_text()


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({}, "give either --input, or some of --train"),
        ({"input": ["a"], "test": ["b"]}, "give either --input, or some of --train"),
        ({"input": ["a"], "split": ["train=0.9"]}, "add up to 0.9, not 1"),
        ({"input": ["a"], "split": ["dev=0.5", "test=0.5"]}, "gives nothing to train"),
        ({"input": ["a"], "split": ["train=0.5", "train=0.5"]}, "named twice"),
        ({"input": ["a"], "split": ["train=1", "valid=0"]}, "'train', 'dev' or 'test'"),
        ({"input": ["a"], "min_seconds": 40}, "min_seconds 40.0 > max_seconds 30.0"),
        ({"input": ["a"], "sead": 1}, "sead"),
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused(
    values: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValidationError, match=reason):
        PrepareConfig(output=Path("out"), **values)


def fingerprint_of(output: Path, *manifests: Path) -> str:
    prepared(output, input=manifests, split={"train": 1.0})
    fingerprint = json.loads((output / "statistics.json").read_text())["fingerprint"]
    assert isinstance(fingerprint, str)
    return fingerprint


def test_the_fingerprint_follows_texts_and_audio_not_their_place(
    corpus: Corpus, tmp_path: Path
) -> None:
    one = {"sound": 1, "text": "first text"}
    two = {"sound": 2, "text": "second text"}
    both = fingerprint_of(tmp_path / "both", corpus("b", one, two))
    assert fingerprint_of(tmp_path / "turned", corpus("t", two, one)) == both
    apart = (corpus("x", one), corpus("y", two))
    assert fingerprint_of(tmp_path / "apart", *apart) == both
    other_text = corpus("o", one, {**two, "text": "another text"})
    assert fingerprint_of(tmp_path / "other text", other_text) != both
    other_sound = corpus("s", one, {**two, "sound": 3})
    assert fingerprint_of(tmp_path / "other sound", other_sound) != both


def test_the_command_prints_a_summary_and_writes_the_plot(
    corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = corpus("corpus", {}, {}, {}, {"seconds": 0.1})
    output = tmp_path / "out"
    words = f"--input {manifest} --output {output} --split train=0.5 dev=0.25 test=0.25 --workers 2"
    assert main(words.split()) == 0
    printed = capsys.readouterr().out
    assert "rejected   1 (1 too short): rejected.jsonl says why" in printed
    assert (output / "statistics.png").read_bytes().startswith(b"\x89PNG")
    statistics = json.loads((output / "statistics.json").read_text())
    assert statistics["splits"]["train"]["utterances"] == 1
    assert statistics["splits"]["train"]["seconds"] == 1.0
    assert statistics["rejected"] == {"too short": 1}
    assert statistics["fingerprint"] in printed


def test_several_processes_give_what_one_gives(corpus: Corpus, tmp_path: Path) -> None:
    config = PrepareConfig(
        output=tmp_path / "one", input=(corpus("corpus", {}, {}, {}),), workers=1
    )
    one = prepare(config)
    two = prepare(config.model_copy(update={"output": tmp_path / "two", "workers": 2}))
    assert one == two


def test_the_command_reports_what_stops_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--input", str(tmp_path / "nowhere.jsonl"), "--output", str(tmp_path / "out")]
    assert main(words) == 1
    assert "nowhere.jsonl" in capsys.readouterr().err


def test_the_command_refuses_what_the_configuration_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--input", "a", "--output", str(tmp_path / "out"), "--split", "train=0.5"])
    assert stopped.value.code == 2
    assert "add up to 0.5, not 1" in capsys.readouterr().err


def test_the_configuration_can_come_from_yaml_with_overrides(
    corpus: Corpus, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"input: [{corpus('corpus', {'seconds': 3.0}, {}, {})}]\n"
        f"output: {tmp_path / 'out'}\nsplit: [train=1]\nmin_seconds: 5\nworkers: 1\n"
    )
    assert main(["--config", str(recipe), "--min_seconds", "2"]) == 0
    utterances, _ = read_manifest(tmp_path / "out" / "train.jsonl")
    assert [utterance.duration for utterance in utterances] == [3.0]
