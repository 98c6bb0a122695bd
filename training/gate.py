"""Whether a candidate may replace what is in production, and why, in words.

Both were measured on the same recordings by `training.evaluate`. Errors are compared by the paired
bootstrap, which draws the same for both, so that what is hard for both does not blur the difference
(Bisani and Ney, 2004). What it draws depends on the question:

- What lets a candidate through must hold for speakers who were not heard. Whole speakers are drawn,
  each with all that they said (the blockwise bootstrap of Liu and Peng, 2020): what a model gains or
  loses varies from speaker to speaker, and a thousand utterances of four speakers tell of four.
- What stops it need only be sure for those who were heard. Utterances are drawn: few speakers would
  make an interval so wide that nothing could ever stop it.
"""

import json
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from training.arguments import parse_config
from training.manifest import read_json_lines
from training.results import WrittenForm
from training.scoring import CONFIDENCE, bootstrap_interval

METRICS, HYPOTHESES = "metrics.json", "hypotheses.jsonl"
# With fewer speakers an interval is wide, and how wide is itself a guess; a warning is given.
FEW_SPEAKERS = 10


class GateError(ValueError):
    """The two evaluations cannot be compared."""


class GateConfig(BaseModel):
    """What a candidate must show. Rates are shares of the words: 0.01 is one percentage point."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_improvement: float = Field(
        default=0.002, ge=0, description="by which the WER must be lower; 0.002 is 0.2 points"
    )
    confidence: float = Field(
        default=CONFIDENCE, gt=0.5, lt=1, description="of every interval that chance is judged by"
    )
    max_group_loss: float = Field(
        default=0.02,
        ge=0,
        description="by which the WER of a speaker group may be higher, if that is no chance",
    )
    min_group_words: int = Field(
        default=100, ge=1, description="groups with fewer words are not judged by themselves"
    )
    # What a model gains in its accurate mode must not be paid for by those who ask for the other.
    max_fast_loss: float = Field(
        default=0.01,
        ge=0,
        description="by which the WER of mode fast may be higher, if that is no chance",
    )
    # Two models that both write set a few per cent more or fewer marks; one that was trained on bare
    # words loses nearly all. A tenth is beyond the former and far from the latter.
    max_written_form_loss: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="share of production's capitals, final marks and punctuation that may be lost",
    )
    max_slowdown: float = Field(
        default=0.15, ge=0, lt=1, description="share of the speed that may be lost"
    )
    highest_wer: float = Field(
        default=0.5, gt=0, description="that a first version may have; with none in production"
    )
    seed: int = Field(default=0, ge=0, description="of the bootstrap")


@dataclass(frozen=True)
class Heard:
    """One evaluation, as far as the gate looks at it: per utterance, in the order of `ids`."""

    ids: tuple[str, ...]
    speakers: tuple[str, ...]  # "" where none is named
    groups: tuple[str, ...]  # the speaker's group; the speaker where there is none
    errors: NDArray[np.int64]
    words: NDArray[np.int64]
    written: WrittenForm
    rtfx: float  # seconds of audio in a second
    test_set: str  # fingerprint of the recordings

    @classmethod
    def read(cls, folder: Path, mode: str = "accurate") -> Self:
        """Read what `training.evaluate` wrote of one mode.

        Raises:
            GateError: the mode was not measured.
            OSError: a file is missing.
        """
        metrics = json.loads((folder / METRICS).read_text(encoding="utf-8"))
        if mode not in metrics["systems"]:
            raise GateError(f"{folder / METRICS} has no figures of mode {mode}")
        used = sorted(
            (
                line
                for line in read_json_lines(folder / HYPOTHESES)
                if line["system"] == mode and line["words"]
            ),
            key=lambda line: line["id"],
        )
        figures = metrics["systems"][mode]
        return cls(
            ids=tuple(line["id"] for line in used),
            speakers=tuple(line["speaker"] or "" for line in used),
            groups=tuple(line["group"] or line["speaker"] or "" for line in used),
            errors=np.array([line["errors"] for line in used]),
            words=np.array([line["words"] for line in used]),
            written=WrittenForm(**figures["written_form"]),
            rtfx=figures["rtfx"],
            test_set=metrics["data_fingerprint"],
        )

    @property
    def wer(self) -> float:
        """Errors for each word."""
        return float(self.errors.sum() / self.words.sum())


@dataclass(frozen=True)
class Difference:
    """WER of the candidate less WER of production, with its interval; below 0 is better."""

    value: float
    low: float
    high: float
    confidence: float
    drawn: str  # what the interval was drawn over, as "12 speakers"

    @property
    def interval(self) -> str:
        """The interval in words."""
        ends = f"from {_points(self.low)} to {_points(self.high)}"
        return f"{100 * self.confidence:.4g} % interval over {self.drawn}: {ends}"

    def __str__(self) -> str:
        return f"{_points(self.value)} ({self.interval})"


@dataclass(frozen=True)
class Check:
    """One demand, and whether it is met."""

    name: str
    passed: bool
    finding: str


@dataclass(frozen=True)
class Decision:
    """What the gate says."""

    deploy: bool
    reason: str
    checks: tuple[Check, ...]
    candidate_wer: float
    production_wer: float | None
    difference: Difference | None

    def markdown(self) -> str:
        """The decision as a page."""
        rows = "\n".join(
            f"| {check.name} | {'met' if check.passed else '**not met**'} | {check.finding} |"
            for check in self.checks
        )
        verdict = "Deploy" if self.deploy else "Do not deploy"
        return f"# {verdict}\n\n{self.reason}\n\n| demand | | found |\n|---|---|---|\n{rows}\n"


def decide(candidate: Path, production: Path | None, config: GateConfig) -> Decision:
    """Compare the evaluation in folder `candidate` with that of `production`.

    Raises:
        GateError: they are not of the same recordings, or lack a mode.
        OSError: an evaluation is missing.
    """
    new = Heard.read(candidate)
    if production is None:
        check = Check(
            "good enough for a first version",
            new.wer <= config.highest_wer,
            f"WER {new.wer:.2%}, at most {config.highest_wer:.2%}",
        )
        remark = (
            "Nothing is in production, so nothing was compared: neither errors and speed, nor capitals"
            f" and punctuation. Of this version's texts, {_written(new.written)}."
        )
        return _decision([check], new, None, None, remark)
    old = Heard.read(production)
    if (new.ids, new.test_set) != (old.ids, old.test_set):
        raise GateError(
            f"{candidate} and {production} are evaluations of other recordings"
            f" ({len(new.ids)} and {len(old.ids)} utterances)"
        )
    difference = compare(new, old, by_speaker=True, confidence=config.confidence, seed=config.seed)
    checks = [
        Check(
            "WER lower by the margin",
            difference.value <= -config.min_improvement,
            f"{new.wer:.2%} against {old.wer:.2%}: {_points(difference.value)}; asked are"
            f" {_points(-config.min_improvement)} or lower",
        ),
        Check("not by chance", difference.high < 0, f"the {difference.interval}"),
        _groups_check(new, old, config),
        _fast_check(Heard.read(candidate, "fast"), Heard.read(production, "fast"), config),
        _written_check(new.written, old.written, config.max_written_form_loss),
        Check(
            "as fast",
            new.rtfx >= (1 - config.max_slowdown) * old.rtfx,
            f"{new.rtfx:.1f} s of audio in a second against {old.rtfx:.1f}; at most"
            f" {config.max_slowdown:.0%} may be lost",
        ),
    ]
    return _decision(checks, new, old, difference, _speakers_remark(new))


def compare(
    new: Heard,
    old: Heard,
    indices: Sequence[int] | None = None,
    *,
    by_speaker: bool = False,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Difference:
    """The difference on the utterances `indices` (all if not given), by the paired bootstrap.

    Args:
        by_speaker: draw whole speakers; utterances where no speaker is named, or only one.
    """
    chosen = range(len(new.ids)) if indices is None else indices
    units: list[list[int]] = [[index] for index in chosen]
    drawn = _count(len(units), "utterance")
    if by_speaker:
        grouped: defaultdict[str | int, list[int]] = defaultdict(list)
        for index in chosen:
            grouped[new.speakers[index] or index].append(index)  # unnamed: somebody of their own
        if len(grouped) > 1:
            units = list(grouped.values())
        drawn = _in_words(grouped)
    change = new.errors - old.errors
    changes = [int(change[unit].sum()) for unit in units]
    words = [int(new.words[unit].sum()) for unit in units]
    low, high = bootstrap_interval(changes, words, seed=seed, confidence=confidence, few=True)
    return Difference(sum(changes) / sum(words), low, high, confidence, drawn)


def _in_words(grouped: Mapping[str | int, Sequence[int]]) -> str:
    """What is drawn: utterances by the speaker's name, or by a number of their own."""
    speakers = sum(isinstance(name, str) for name in grouped)
    unnamed = len(grouped) - speakers
    if not speakers:
        return _count(unnamed, "utterance")
    if len(grouped) == 1:
        (only,) = grouped.values()
        return f"{_count(len(only), 'utterance')} of one speaker"
    named = _count(speakers, "speaker")
    return f"{named} and {_count(unnamed, 'utterance')} without one" if unnamed else named


def _speakers_remark(heard: Heard) -> str:
    """A warning where few speakers decide, or nobody knows how many."""
    speakers = set(heard.speakers) - {""}
    if not speakers:
        return "Beware: no speaker is named, so what holds for other speakers is not known."
    if len(speakers) >= FEW_SPEAKERS:
        return ""
    return (
        f"Beware: it was measured on {_count(len(speakers), 'named speaker')} alone. Below"
        f" {FEW_SPEAKERS} it is unsure what holds for others, and only a large and even gain can be"
        " shown; measure on more (data_test_manifest)."
    )


def _decision(
    checks: list[Check],
    new: Heard,
    old: Heard | None,
    difference: Difference | None,
    remark: str,
) -> Decision:
    failed = [check for check in checks if not check.passed]
    if failed:
        reason = "Not deployed: " + "; ".join(f"{c.name}: no ({c.finding})" for c in failed) + "."
    elif old is None:
        reason = f"Passed as the first version: {checks[0].finding}."
    else:
        reason = f"Passed: WER {new.wer:.2%} against {old.wer:.2%}, difference {difference}."
    return Decision(
        deploy=not failed,
        reason=f"{reason} {remark}".strip(),
        checks=tuple(checks),
        candidate_wer=new.wer,
        production_wer=old.wer if old else None,
        difference=difference,
    )


def _groups_check(new: Heard, old: Heard, config: GateConfig) -> Check:
    """Whether no group is worse by more than is allowed, in a way that chance does not explain."""
    members: defaultdict[str, list[int]] = defaultdict(list)
    for index, group in enumerate(new.groups):
        members[group].append(index)
    large = {
        group: indices
        for group, indices in members.items()
        if group and new.words[indices].sum() >= config.min_group_words
    }
    # Of many groups one is worse by chance: all intervals hold together (Bonferroni).
    confidence = 1 - (1 - config.confidence) / max(1, len(large))
    judged = {
        group: compare(new, old, indices, confidence=confidence, seed=config.seed)
        for group, indices in large.items()
    }
    worse = {
        group: difference
        for group, difference in judged.items()
        if difference.value > config.max_group_loss and difference.low > 0
    }
    name = "no speaker group much worse"
    if worse:
        return Check(name, False, ", ".join(f"{group}: {worse[group]}" for group in sorted(worse)))
    unjudged = len(members) - len(judged)
    finding = f"{len(judged)} groups compared, at most {_points(config.max_group_loss)} allowed"
    if unjudged:
        finding += f"; {unjudged} unnamed or below {config.min_group_words} words not judged"
    return Check(name, True, finding)


def _fast_check(new: Heard, old: Heard, config: GateConfig) -> Check:
    """Whether mode fast, whose text the CTC head drafts, did not pay for the accurate one."""
    difference = compare(new, old, confidence=config.confidence, seed=config.seed)
    return Check(
        "mode fast not much worse",
        difference.value <= config.max_fast_loss or difference.low <= 0,
        f"{new.wer:.2%} against {old.wer:.2%}: {difference}; at most"
        f" {_points(config.max_fast_loss)} allowed",
    )


def _written_check(new: WrittenForm, old: WrittenForm, loss: float) -> Check:
    """Whether capitals and punctuation, which the WER does not see, were not unlearnt."""
    kept = [
        after >= (1 - loss) * before
        for after, before in zip(astuple(new), astuple(old), strict=True)
    ]
    return Check(
        "capitals and punctuation kept",
        all(kept),
        f"of the texts, {_written(new)}; in production, {_written(old)}; at most {loss:.0%} of each"
        " may be lost",
    )


def _written(form: WrittenForm) -> str:
    return (
        f"{form.starts_with_capital:.1%} start with a capital and {form.ends_with_mark:.1%} end with"
        f" a full stop, question or exclamation mark; {form.marks_per_100_words:.1f} marks stand in"
        " 100 words"
    )


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" + ("" if number == 1 else "s")


def _points(rate: float) -> str:
    return f"{100 * rate:+.2f} points"


class CompareConfig(GateConfig):
    """Two evaluations of the same recordings, and what the first must show beside the second."""

    candidate: Path = Field(description="folder that training.evaluate wrote")
    production: Path = Field(description="another one, of the model to compare with")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status is 0 where the candidate is the better one."""
    config = parse_config(CompareConfig, "python -m training.gate", arguments)
    try:
        decision = decide(config.candidate, config.production, config)
    except (GateError, OSError) as error:
        print(f"gate: {error}", file=sys.stderr)
        return 2
    print(decision.markdown(), end="")
    return 0 if decision.deploy else 1


if __name__ == "__main__":
    sys.exit(main())
