"""What an evaluation found, as `metrics.json`, `hypotheses.jsonl` and a table say it."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from training.machine import Machine
from training.scoring import (
    CONFIDENCE,
    NORMALIZER,
    RESAMPLES,
    Confusion,
    Rate,
    ScoredPair,
    Scores,
)


@dataclass(frozen=True)
class Speed:
    """How long the transcription took, decoding of the files not included."""

    audio_seconds: float
    wall_seconds: float

    @property
    def rtfx(self) -> float:
        """Seconds of audio transcribed in a second."""
        return self.audio_seconds / self.wall_seconds


@dataclass(frozen=True)
class WrittenForm:
    """Whether texts still have the capitals and punctuation that the normalizer takes away."""

    starts_with_capital: float  # share of the texts that are not empty
    ends_with_mark: float  # the same: with one of . ? !
    marks_per_100_words: float  # . , ? ! ; :

    @classmethod
    def of(cls, texts: Sequence[str]) -> Self:
        """Count words, capitals and marks of texts."""
        written = [text.strip() for text in texts if text.strip()]
        words = sum(len(text.split()) for text in written)
        marks = sum(len(re.findall(r"[.,?!;:](?=\W|$)", text)) for text in written)
        count = max(len(written), 1)
        return cls(
            starts_with_capital=sum(text.lstrip("\"'“‘")[:1].isupper() for text in written) / count,
            ends_with_mark=sum(text.rstrip("\"'”’").endswith((".", "?", "!")) for text in written)
            / count,
            marks_per_100_words=100 * marks / max(words, 1),
        )


@dataclass(frozen=True)
class SystemResult:
    """One way of transcribing, measured: its name is the mode's."""

    name: str
    scores: Scores
    speed: Speed
    written_form: WrittenForm


@dataclass(frozen=True)
class Unused:
    """A line or a recording of the manifest that could not be evaluated."""

    what: str  # "line 7", or the audio_filepath
    reason: str


@dataclass(frozen=True)
class Conditions:
    """How the figures were made."""

    command: str
    measured_at: str  # ISO 8601, UTC
    checkpoint: str
    checkpoint_sha256: str  # of model.safetensors
    manifest: str
    data_fingerprint: str
    utterances: int  # evaluated
    seconds: float  # evaluated
    speakers: int  # named
    unused: tuple[Unused, ...]
    machine: Machine
    device: str
    dtype: str
    seed: int  # of the bootstrap


@dataclass(frozen=True)
class Evaluation:
    """All systems on one set of recordings."""

    conditions: Conditions
    systems: tuple[SystemResult, ...]

    def metrics(self) -> dict[str, Any]:
        """The content of `metrics.json`."""
        return {
            **asdict(self.conditions),
            "normalizer": NORMALIZER,
            "interval": {
                "confidence": CONFIDENCE,
                "method": "percentile bootstrap over utterances",
                "resamples": RESAMPLES,
                "seed": self.conditions.seed,
            },
            "systems": {system.name: _system_metrics(system) for system in self.systems},
        }

    def hypotheses(self) -> Iterator[dict[str, Any]]:
        """The lines of `hypotheses.jsonl`: each utterance as each system heard it."""
        for system in self.systems:
            scores = system.scores
            for scored in (*scores.utterances, *scores.empty_references):
                yield {
                    "id": scored.pair.id,
                    "system": system.name,
                    "speaker": scored.pair.speaker,
                    "group": scored.pair.group,
                    "duration": scored.pair.duration,
                    "reference": scored.pair.reference,
                    "hypothesis": scored.pair.hypothesis,
                    "words": scored.words,
                    "errors": scored.word_errors,
                    "substitutions": scored.steps["substitute"],
                    "deletions": scored.steps["delete"],
                    "insertions": scored.steps["insert"],
                    "looped": scored.looped,
                }

    def table(self) -> str:
        """The headline figures for a terminal."""
        heading = f"{'system':<16} {'WER':>7} {'95 % interval':>15} {'CER':>7}"
        lines = [f"{heading} {'looped':>6} {'empty':>6} {'RTFx':>7}"]
        for system in self.systems:
            wer, cer = system.scores.wer, system.scores.cer
            interval = f"{wer.low:.2%} – {wer.high:.2%}"
            lines.append(
                f"{system.name:<16} {wer.value:>7.2%} {interval:>15} {cer.value:>7.2%}"
                f" {len(system.scores.looped):>6} {len(system.scores.empty):>6}"
                f" {system.speed.rtfx:>7.1f}"
            )
        conditions = self.conditions
        lines.append(
            f"utterances: {conditions.utterances}, hours: {conditions.seconds / 3600:.2f},"
            f" speakers: {conditions.speakers}; {conditions.machine}, {conditions.dtype}"
        )
        if conditions.unused:
            lines.append(
                f"Beware: {len(conditions.unused)} could not be used; metrics.json names them."
            )
        return "\n".join(lines)


def _system_metrics(system: SystemResult) -> dict[str, Any]:
    scores = system.scores
    return {
        "wer": _rate(scores.wer),
        "cer": _rate(scores.cer),
        "substitutions": scores.count("substitute"),
        "deletions": scores.count("delete"),
        "insertions": scores.count("insert"),
        "looped": _ids(scores.looped),
        "empty_hypotheses": _ids(scores.empty),
        "empty_references": _ids(scores.empty_references),
        "written_form": asdict(system.written_form),
        "rtfx": system.speed.rtfx,
        "audio_seconds": system.speed.audio_seconds,
        "wall_seconds": system.speed.wall_seconds,
        "wer_by_speaker": {name: _rate(rate) for name, rate in scores.by_speaker.items()},
        "wer_by_duration": {name: _rate(rate) for name, rate in scores.by_duration.items()},
        "confusions": {
            "substitutions": _confusions(scores.confusions("substitute")),
            "deletions": _confusions(scores.confusions("delete")),
            "insertions": _confusions(scores.confusions("insert")),
        },
    }


def _rate(rate: Rate) -> dict[str, float]:
    return {"rate": rate.value, **asdict(rate)}


def _ids(scored: Sequence[ScoredPair]) -> list[str]:
    return [entry.pair.id for entry in scored]


def _confusions(confusions: Sequence[Confusion]) -> list[dict[str, Any]]:
    return [asdict(confusion) for confusion in confusions]
