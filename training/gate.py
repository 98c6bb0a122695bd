"""Whether a candidate may replace what is in production, and why, in words.

Both were measured on the same recordings by `training.evaluate`. Errors are compared utterance by
utterance: the paired bootstrap draws the same utterances for both, so that what is hard for both
does not blur the difference (Bisani and Ney, 2004).
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from training.manifest import read_json_lines
from training.scoring import CONFIDENCE, RESAMPLES

METRICS, HYPOTHESES = "metrics.json", "hypotheses.jsonl"


class GateError(ValueError):
    """The two evaluations cannot be compared."""


class GateConfig(BaseModel):
    """What a candidate must show. Rates are shares of the words: 0.01 is one percentage point."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_improvement: float = Field(
        default=0.002, ge=0, description="by which the WER must be lower; 0.002 is 0.2 points"
    )
    max_group_loss: float = Field(
        default=0.02,
        ge=0,
        description="by which the WER of a speaker group may be higher, if that is no chance",
    )
    min_group_words: int = Field(
        default=100, ge=1, description="groups with fewer words are not judged by themselves"
    )
    max_slowdown: float = Field(
        default=0.15, ge=0, lt=1, description="share of the speed that may be lost"
    )
    highest_wer: float = Field(
        default=0.5, gt=0, description="that a first version may have; with none in production"
    )
    mode: Literal["accurate", "fast"] = "accurate"
    seed: int = Field(default=0, ge=0, description="of the bootstrap")


@dataclass(frozen=True)
class Heard:
    """One evaluation, as far as the gate looks at it: per utterance, in the order of `ids`."""

    ids: tuple[str, ...]
    groups: tuple[str, ...]  # the speaker's group; the speaker where there is none
    errors: NDArray[np.int64]
    words: NDArray[np.int64]
    rtfx: float  # seconds of audio in a second
    test_set: str  # fingerprint of the recordings

    @classmethod
    def read(cls, folder: Path, mode: str) -> Self:
        """Read what `training.evaluate` wrote.

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
        return cls(
            ids=tuple(line["id"] for line in used),
            groups=tuple(line["group"] or line["speaker"] or "" for line in used),
            errors=np.array([line["errors"] for line in used]),
            words=np.array([line["words"] for line in used]),
            rtfx=metrics["systems"][mode]["rtfx"],
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
    confidence: float = CONFIDENCE

    def __str__(self) -> str:
        interval = f"{100 * self.confidence:.4g} % interval"
        return f"{_points(self.value)} ({interval} {_points(self.low)} to {_points(self.high)})"


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
        GateError: they are not of the same recordings.
        OSError: an evaluation is missing.
    """
    new = Heard.read(candidate, config.mode)
    if production is None:
        check = Check(
            "good enough for a first version",
            new.wer <= config.highest_wer,
            f"WER {new.wer:.2%}, at most {config.highest_wer:.2%}",
        )
        return _decision([check], new, None, None)
    old = Heard.read(production, config.mode)
    if (new.ids, new.test_set) != (old.ids, old.test_set):
        raise GateError(
            f"{candidate} and {production} are evaluations of other recordings"
            f" ({len(new.ids)} and {len(old.ids)} utterances)"
        )
    difference = _difference(new, old, range(len(new.ids)), config.seed)
    checks = [
        Check(
            "WER lower by the margin",
            difference.value <= -config.min_improvement,
            f"{new.wer:.2%} against {old.wer:.2%}: {_points(difference.value)}; asked are"
            f" {_points(-config.min_improvement)} or lower",
        ),
        Check(
            "not by chance",
            difference.high < 0,
            f"the 95 % interval goes from {_points(difference.low)} to {_points(difference.high)}",
        ),
        _groups_check(new, old, config),
        Check(
            "as fast",
            new.rtfx >= (1 - config.max_slowdown) * old.rtfx,
            f"{new.rtfx:.1f} s of audio in a second against {old.rtfx:.1f}; at most"
            f" {config.max_slowdown:.0%} may be lost",
        ),
    ]
    return _decision(checks, new, old, difference)


def _decision(
    checks: list[Check], new: Heard, old: Heard | None, difference: Difference | None
) -> Decision:
    failed = [check for check in checks if not check.passed]
    if failed:
        reason = "Not deployed: " + "; ".join(f"{c.name}: no ({c.finding})" for c in failed) + "."
    elif old is None:
        reason = f"Deployed as the first version: {checks[0].finding}."
    else:
        reason = f"Deployed: WER {new.wer:.2%} against {old.wer:.2%}, difference {difference}."
    return Decision(
        deploy=not failed,
        reason=reason,
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
    # Of many groups one is worse by chance: all intervals together hold with CONFIDENCE (Bonferroni).
    confidence = 1 - (1 - CONFIDENCE) / max(1, len(large))
    judged = {
        group: _difference(new, old, indices, config.seed, confidence)
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


def _difference(
    new: Heard, old: Heard, indices: Sequence[int], seed: int, confidence: float = CONFIDENCE
) -> Difference:
    """The paired bootstrap over the utterances `indices`."""
    chosen = np.asarray(indices)
    change = (new.errors - old.errors)[chosen]
    words = new.words[chosen]
    generator = np.random.default_rng(seed)
    rates: list[NDArray[np.float64]] = []
    block = max(1, 1_000_000 // len(chosen))  # draws at once, which bounds memory
    for start in range(0, RESAMPLES, block):
        drawn = generator.integers(0, len(chosen), (min(block, RESAMPLES - start), len(chosen)))
        rates.append(change[drawn].sum(axis=1) / words[drawn].sum(axis=1))
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(rates), [tail, 1 - tail])
    value = float(change.sum() / words.sum())
    return Difference(value, float(low), float(high), confidence)


def _points(rate: float) -> str:
    return f"{100 * rate:+.2f} points"
