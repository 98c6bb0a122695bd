"""Evaluation: a real run over recordings, and the results and the page made of known texts."""

import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from model.audio import load_audio
from model.checkpoint import load_checkpoint
from model.recognizer import Mode, Recognizer
from tests.random_checkpoint import make_random_checkpoint
from training import evaluate as module
from training.evaluate import EvaluateConfig, EvaluationError, evaluate, main
from training.machine import Machine
from training.padded import transcribe_padded
from training.report import render_report
from training.results import (
    Conditions,
    Evaluation,
    Speed,
    SystemResult,
    Unused,
    WrittenForm,
)
from training.scoring import Pair, score

REFERENCES = {
    "right.wav": "the cat sat on the mat",
    "wrong.wav": "a quick brown fox",
    "looped.wav": "and then it stopped",
    "empty.wav": "nothing was heard here",
    "hesitation.wav": "uh hmm",
}
ACCURATE = {
    "right.wav": "The cat sat on the mat.",
    "wrong.wav": "Quick red fox <jumps>.",
    "looped.wav": "and then " * 10,
    "empty.wav": "",
    "hesitation.wav": "Uh.",
}


def system(name: str, texts: dict[str, str], seconds: float) -> SystemResult:
    pairs = [
        Pair(id, reference, texts[id], duration=4.0 * (place + 1), speaker=str(place % 2))
        for place, (id, reference) in enumerate(REFERENCES.items())
    ]
    return SystemResult(
        name, score(pairs), Speed(60.0, seconds), WrittenForm.of(list(texts.values()))
    )


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    lower = {id: text.lower().rstrip(".") for id, text in ACCURATE.items()}
    return Evaluation(
        conditions=Conditions(
            command="python -m training.evaluate --checkpoint c --manifest m.jsonl --output o",
            measured_at="2026-01-31T12:00:00+00:00",
            checkpoint="c",
            checkpoint_sha256="ab" * 32,
            manifest="m.jsonl",
            data_fingerprint="cd" * 32,
            utterances=5,
            seconds=60.0,
            speakers=2,
            unused=(Unused("line 6", "text is empty"),),
            machine=Machine.here(torch.device("cpu")),
            device="cpu",
            dtype="float32",
            seed=0,
        ),
        systems=(system("accurate", ACCURATE, 6.0), system("fast", lower, 3.0)),
    )


def test_metrics_name_the_figures_and_how_they_were_made(evaluation: Evaluation) -> None:
    metrics = json.loads(json.dumps(evaluation.metrics()))
    accurate = metrics["systems"]["accurate"]
    # Of 6 + 4 + 4 + 4 words are wrong: a, brown; "it stopped" and 16 more; all 4 of the empty one.
    # The normalizer takes away what stands in brackets.
    assert (accurate["wer"]["errors"], accurate["wer"]["total"]) == (24, 18)
    assert accurate["wer"]["rate"] == pytest.approx(24 / 18)
    assert accurate["wer"]["low"] <= accurate["wer"]["rate"] <= accurate["wer"]["high"]
    assert accurate["looped"] == ["looped.wav"]
    assert accurate["empty_hypotheses"] == ["empty.wav"]
    assert accurate["empty_references"] == ["hesitation.wav"]
    assert accurate["rtfx"] == 10.0
    assert set(accurate["wer_by_speaker"]) == {"0", "1"}
    assert metrics["normalizer"].startswith("whisper_normalizer.english.EnglishTextNormalizer 0.")
    assert metrics["command"].startswith("python -m training.evaluate")
    assert metrics["machine"]["threads"] == torch.get_num_threads()
    assert metrics["unused"] == [{"what": "line 6", "reason": "text is empty"}]


def test_hypotheses_hold_every_utterance_of_every_system(evaluation: Evaluation) -> None:
    lines = list(evaluation.hypotheses())
    assert len(lines) == 2 * len(REFERENCES)
    wrong = next(line for line in lines if line["id"] == "wrong.wav")
    assert wrong["reference"] == "a quick brown fox"
    assert wrong["hypothesis"] == "Quick red fox <jumps>."
    assert (wrong["words"], wrong["errors"]) == (4, 2)
    assert (wrong["deletions"], wrong["substitutions"], wrong["insertions"]) == (1, 1, 0)


def test_the_table_has_a_line_for_each_system(evaluation: Evaluation) -> None:
    heading, accurate, fast, *rest = evaluation.table().splitlines()
    assert "WER" in heading and "RTFx" in heading
    assert accurate.split()[:2] == ["accurate", "133.33%"]
    assert fast.split()[-1] == "20.0"
    assert "1 could not be used" in rest[-1]


def test_the_written_form_is_measured() -> None:
    form = WrittenForm.of(["Yes, it is.", "“No!”", "no capital", " ", "3.5 metres"])
    assert form.starts_with_capital == 2 / 4
    assert form.ends_with_mark == 2 / 4
    assert form.marks_per_100_words == 100 * 3 / 8


class Page(HTMLParser):
    """The page's text, and proof that its elements nest."""

    VOID = frozenset({"meta", "br", "hr", "rect", "line", "circle"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text.append(data)

    def read(self) -> str:
        return " ".join(" ".join(self.text).split())


def test_the_page_needs_nothing_but_itself(evaluation: Evaluation) -> None:
    page = render_report(evaluation)
    names = {name for name, _ in Page(page).attributes}
    assert names.isdisjoint({"src", "href", "srcset", "onload", "onclick"})
    assert "<script" not in page and "@import" not in page and "http" not in page
    assert set(re.findall(r"url\((.*?)\)", page)) <= {f"#pattern-{n}" for n in (1, 2, 3)}


def test_the_page_tells_the_headline_figures_and_what_to_look_at(evaluation: Evaluation) -> None:
    text = Page(render_report(evaluation)).read()
    assert "133.33 % of the words are wrong" in text
    assert "24 of 18: 3 substituted, 5 deleted, 16 inserted" in text
    assert "accurate, looped: looped.wav" in text
    assert "fast, empty: empty.wav" in text
    assert "Reference empty after normalization, in no rate: hesitation.wav “uh hmm”" in text
    assert "Not evaluated: line 6 : text is empty" in text
    assert "EnglishTextNormalizer" in text
    assert "python -m training.evaluate --checkpoint c --manifest m.jsonl --output o" in text


def test_the_page_marks_word_errors_by_signs_not_only_by_colours(evaluation: Evaluation) -> None:
    page = render_report(evaluation)
    assert '<li class="delete"><i>a</i><i>·</i><b>−</b></li>' in page
    assert '<li class="equal"><i>quick</i><i>quick</i><b></b></li>' in page
    assert '<li class="substitute"><i>brown</i><i>red</i><b>≠</b></li>' in page
    assert '<li class="insert"><i>·</i><i>and</i><b>+</b></li>' in page


def test_texts_cannot_become_markup(evaluation: Evaluation) -> None:
    page = render_report(evaluation)
    assert "<jumps>" not in page
    assert "&lt;jumps&gt;" in page


def test_a_page_without_any_error_can_be_made(evaluation: Evaluation) -> None:
    perfect = system("accurate", {**REFERENCES}, 6.0)
    text = Page(render_report(Evaluation(evaluation.conditions, (perfect,)))).read()
    assert "0.00 % of the words are wrong" in text
    assert "No utterance has an error." in text


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two clips of noise, a file without sound, and a line without text."""
    folder = tmp_path_factory.mktemp("corpus")
    noise = np.random.default_rng(0)
    lines: list[dict[str, Any]] = []
    for name, seconds in (("a.wav", 1.0), ("b.wav", 0.5)):
        soundfile.write(folder / name, noise.uniform(-0.1, 0.1, int(seconds * 16_000)), 16_000)
        lines.append({"audio_filepath": name, "duration": seconds, "text": "some words"})
    (folder / "c.wav").write_bytes(b"no sound at all")
    lines.append({"audio_filepath": "c.wav", "duration": 1.0, "text": "some words"})
    lines.append({"audio_filepath": "a.wav", "duration": 1.0, "text": ""})
    path = folder / "test.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_random_checkpoint(tmp_path_factory.mktemp("checkpoints") / "random")


def test_the_command_measures_a_checkpoint_in_both_modes(
    checkpoint: Path, manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = f"--checkpoint {checkpoint} --manifest {manifest} --output {tmp_path} --device cpu"
    assert main(words.split()) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert list(metrics["systems"]) == ["accurate", "fast"]
    assert (metrics["utterances"], metrics["seconds"]) == (2, 1.5)
    assert [entry["what"] for entry in metrics["unused"]] == ["line 4", "c.wav"]
    assert metrics["command"] == f"python -m training.evaluate {words}"
    assert metrics["systems"]["fast"]["wall_seconds"] > 0
    lines = [json.loads(line) for line in (tmp_path / "hypotheses.jsonl").open()]
    assert {(line["id"], line["system"]) for line in lines} == {
        (id, mode) for id in ("a.wav", "b.wav") for mode in ("accurate", "fast")
    }
    Page((tmp_path / "report.html").read_text())
    printed = capsys.readouterr().out
    assert "accurate" in printed and "report.html" in printed


def test_one_mode_can_be_chosen(checkpoint: Path, manifest: Path, tmp_path: Path) -> None:
    config = EvaluateConfig(
        checkpoint=checkpoint, manifest=manifest, output=tmp_path, mode=("fast",), device="cpu"
    )
    evaluation = evaluate(config, command="")
    assert [system.name for system in evaluation.systems] == ["fast"]


def test_checkpoints_that_are_compared_take_turns(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has been through the first stretch before it is timed, and none is always the first."""
    other = make_random_checkpoint(tmp_path / "other", seed=1)
    lines = []
    for seconds in (1.0, 0.75, 0.5):
        soundfile.write(tmp_path / f"{seconds}.wav", np.zeros(int(seconds * 16_000)), 16_000)
        line = {"audio_filepath": f"{seconds}.wav", "duration": seconds, "text": "some words"}
        lines.append(json.dumps(line) + "\n")
    manifest = tmp_path / "three.jsonl"
    manifest.write_text("".join(lines))
    monkeypatch.setattr(module, "_CHUNK_SECONDS", 1.75)  # the longer two, and the last
    turns: list[tuple[str, str, float]] = []

    def transcriber(recognizer: Recognizer, mode: Mode) -> module.Transcriber:
        name = {id(found): name for name, found in loaded.items()}[id(recognizer)]

        def transcribe(waveforms: Sequence[torch.Tensor]) -> list[str]:
            turns.append((name, mode, sum(map(len, waveforms)) / 16_000))
            return [f"Some words of {name}." for _ in waveforms]

        return transcribe

    loaded: dict[str, Recognizer] = {}
    load = module._recognizer

    def remembered(config: EvaluateConfig) -> Recognizer:
        return loaded.setdefault(config.output.name, load(config))

    monkeypatch.setattr(module, "_recognizer", remembered)
    monkeypatch.setattr(module, "_transcriber", transcriber)
    configs = [
        EvaluateConfig(checkpoint=folder, manifest=manifest, output=tmp_path / name, device="cpu")
        for name, folder in (("candidate", checkpoint), ("production", other))
    ]
    evaluations = module.evaluate_in_turns(configs, command="")
    forth = [(n, m) for m in ("accurate", "fast") for n in ("candidate", "production")]
    first = [(*turn, 1.75) for turn in forth]
    assert turns == [*first, *first, *((*turn, 0.5) for turn in reversed(forth))]
    for config, evaluation in zip(configs, evaluations, strict=True):
        assert [system.name for system in evaluation.systems] == ["accurate", "fast"]
        assert evaluation.conditions.checkpoint == str(config.checkpoint)
        heard = (config.output / "hypotheses.jsonl").read_text().splitlines()
        assert {json.loads(line)["hypothesis"] for line in heard} == {
            f"Some words of {config.output.name}."
        }
    slower = configs[1].model_copy(update={"dtype": "bfloat16"})
    with pytest.raises(ValueError, match="differs from"):
        module.evaluate_in_turns([configs[0], slower], command="")


def test_a_manifest_without_a_usable_recording_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "test.jsonl"
    path.write_text("{}\n")
    config = EvaluateConfig(checkpoint=checkpoint, manifest=path, output=tmp_path / "out")
    with pytest.raises(EvaluationError, match="line 1: lacks audio_filepath, duration, text"):
        evaluate(config, command="")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_no_checkpoint_is_reported(
    manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--checkpoint", str(tmp_path), "--manifest", str(manifest), "--output", "unused"]
    assert main(words) == 1
    assert "evaluate: " in capsys.readouterr().err


def test_a_baseline_is_not_given_what_it_cannot_hear(tmp_path: Path) -> None:
    checkpoint = make_random_checkpoint(tmp_path / "c")
    soundfile.write(tmp_path / "long.wav", np.zeros(31 * 16_000), 16_000)
    line = {"audio_filepath": "long.wav", "duration": 31.0, "text": "a long story"}
    (tmp_path / "m.jsonl").write_text(json.dumps(line) + "\n")
    config = EvaluateConfig(
        checkpoint=checkpoint,
        manifest=tmp_path / "m.jsonl",
        output=tmp_path / "out",
        baseline=checkpoint,
    )
    with pytest.raises(
        EvaluationError, match=r"long\.wav lasts 31\.0 s, and a baseline hears 30 s"
    ):
        evaluate(config, command="test")


def test_a_baseline_is_the_other_network_in_whispers_own_way(
    checkpoint: Path, manifest: Path, tmp_path: Path
) -> None:
    other = make_random_checkpoint(tmp_path / "other", seed=1)
    config = EvaluateConfig(
        checkpoint=checkpoint,
        manifest=manifest,
        output=tmp_path / "out",
        baseline=other,
        device="cpu",
        dtype="float32",
    )
    evaluation = evaluate(config, command="test")
    assert [system.name for system in evaluation.systems] == ["accurate", "fast", "baseline"]
    lines = map(json.loads, (tmp_path / "out" / "hypotheses.jsonl").open())
    texts = {line["id"]: line["hypothesis"] for line in lines if line["system"] == "baseline"}
    waveforms = [load_audio(manifest.parent / name) for name in texts]
    theirs = transcribe_padded(load_checkpoint(other), waveforms)
    assert list(texts.values()) == [text.strip() for text in theirs]
    assert list(texts.values()) != [
        text.strip() for text in transcribe_padded(load_checkpoint(checkpoint), waveforms)
    ]
    assert "baseline" in json.loads((tmp_path / "out" / "metrics.json").read_text())["systems"]
