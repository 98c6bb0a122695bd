"""Whether word confidences mean what they say, and a calibration that makes them mean it.

    python -m training.confidence --checkpoint model/shipped --manifest dev.jsonl --output DIR

The output folder gets `confidence.json` and `confidence.png`, a reliability diagram. With `--fit true` a
calibration is fitted on all words of the manifest and written into the checkpoint, in place of the one
that it had; what it does is measured on speakers that it was not fitted on, in turn.
"""

import json
import shlex
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from whisper_normalizer.english import EnglishTextNormalizer

from model.checkpoint import CONFIG, load_checkpoint
from model.confidence import LEAST, Calibration, Calibrations, Floats, logit
from model.recognizer import Mode, Recognizer, TranscribeOptions
from model.transcript import Transcript, Word
from training.arguments import parse_config
from training.data import load_utterance
from training.documents import fill
from training.files import atomic_writer, write_text
from training.manifest import Utterance, read_manifest
from training.scoring import NORMALIZER, Pair, ScoredPair, score

BINS = 15  # of equal width, as Guo et al. (2017), "On Calibration of Modern Neural Networks"
FOLDS = 10
CLIPS_AT_ONCE = 64  # decoded; 0.1 GB of half a minute each

Booleans = NDArray[np.bool_]


class ConfidenceError(ValueError):
    """Confidences cannot be judged or calibrated on these words."""


class ConfidenceConfig(BaseModel):
    """What to judge, and on what."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    checkpoint: Path = Field(description="checkpoint folder")
    manifest: Path = Field(description="NeMo JSON Lines with the recordings and their texts")
    output: Path = Field(description="folder for confidence.json and confidence.png")
    mode: tuple[Mode, ...] = Field(
        default=("accurate", "fast"),
        min_length=1,
        description="accurate, fast, or both, which is the default",
    )
    fit: bool = Field(
        default=False,
        description="fit a calibration on these words and write it into the checkpoint's config.json",
    )
    document: Path | None = Field(default=None, description="page whose table `confidence` to fill")
    limit: int | None = Field(
        default=None, ge=1, description="clips to take, evenly from the manifest"
    )
    device: str = Field(default="auto", description="auto is a GPU where there is one")
    dtype: str = Field(default="auto", description="float32, bfloat16, or what fits the device")
    threads: int | None = Field(default=None, ge=1, description="torch's; all cores if not given")


@dataclass(frozen=True)
class Judged:
    """Recognized words of many clips.

    Attributes:
        confidence: (words,), from 0 to 1.
        right: (words,), whether the word stands in the reference.
        speaker: (words,), who said it; the clip's path where no speaker is named.
    """

    confidence: Floats
    right: Booleans
    speaker: NDArray[np.str_]


@dataclass(frozen=True)
class Bin:
    """The words whose confidences lie in one bin."""

    words: int
    confidence: float  # mean
    right: float  # share


@dataclass(frozen=True)
class Reliability:
    """How well confidences fit what is right.

    Attributes:
        ece: expected calibration error, the mean distance of confidence and share right over the bins,
            each weighing as many words as it has (Guo et al., 2017). 0 is best.
        nce: normalized cross entropy (Siu and Gish, 1999), what confidences tell beyond the share that
            is right: 1 is all, 0 nothing, below 0 they mislead. A constant has an ece of 0 as well;
            this tells it from one that knows which words are wrong.
        bins: those with words, lowest confidence first.
    """

    ece: float
    nce: float
    bins: tuple[Bin, ...]


@dataclass(frozen=True)
class Result:
    """What is known about the confidences of a mode."""

    words: int
    right: float  # share
    confidence: float  # mean
    as_given: Reliability
    calibration: Calibration | None  # fitted on all words, where asked for
    calibrated: Reliability | None  # each word by a calibration fitted on other speakers


def judge(words: Sequence[Word], scored: ScoredPair) -> list[tuple[float, bool]]:
    """The confidence of each word, and whether all that the normalizer makes of it is right.

    The normalizer joins words ("twenty one" is 21), splits them ("don't") and drops them ("uh"): words
    that became one are right or wrong together, and one that was dropped is not judged.

    Args:
        words: of the hypothesis, which is these joined by spaces.
        scored: the hypothesis, aligned with its reference.
    """
    normalize = EnglishTextNormalizer()
    alone = [
        (token, place) for place, word in enumerate(words) for token in normalize(word.word).split()
    ]
    together = [step for step in scored.alignment if step.hypothesis is not None]
    matcher = SequenceMatcher(
        None,
        [token for token, _ in alone],
        [step.hypothesis for step in together],
        autojunk=False,
    )
    rights: defaultdict[int, list[bool]] = defaultdict(list)
    for kind, first, last, start, end in matcher.get_opcodes():
        steps = [step.step == "equal" for step in together[start:end]]
        for (_, place), right in zip(
            alone[first:last],
            steps if kind == "equal" else [all(steps)] * (last - first),
            strict=True,
        ):
            if steps:
                rights[place].append(right)
    return [(words[place].confidence, all(votes)) for place, votes in sorted(rights.items())]


def judge_all(clips: Sequence[tuple[Utterance, Transcript]]) -> Judged:
    """Judge the words of clips that were transcribed with word times.

    Raises:
        ScoringError: no reference has a word.
        ConfidenceError: all words are right, or all are wrong.
    """
    words = {str(u.audio_filepath): t.words for u, t in clips}
    scores = score(
        [
            Pair(
                id=str(u.audio_filepath),
                reference=u.text,
                hypothesis=" ".join(word.word for word in t.words),
                duration=t.duration,
                speaker=u.speaker,
            )
            for u, t in clips
        ]
    )
    rows = [
        (confidence, right, scored.pair.speaker or scored.pair.id)
        for scored in (*scores.utterances, *scores.empty_references)
        for confidence, right in judge(words[scored.pair.id], scored)
    ]
    judged = Judged(
        confidence=np.array([row[0] for row in rows], dtype=np.float64),
        right=np.array([row[1] for row in rows], dtype=np.bool_),
        speaker=np.array([row[2] for row in rows], dtype=np.str_),
    )
    if judged.right.all() or not judged.right.any():
        kind = "right" if judged.right.any() else "wrong"
        raise ConfidenceError(f"all of {len(rows)} recognized words are {kind}; give more clips")
    return judged


def reliability(confidence: Floats, right: Booleans) -> Reliability:
    """Compare confidences (words,) with what is right (words,): of both kinds there must be some."""
    places = np.minimum((confidence * BINS).astype(int), BINS - 1)
    bins = tuple(
        Bin(int(own.sum()), float(confidence[own].mean()), float(right[own].mean()))
        for own in (places == place for place in np.unique(places))
    )
    ece = sum(b.words * abs(b.confidence - b.right) for b in bins) / len(right)
    share = np.full(len(right), right.mean())
    return Reliability(
        ece, 1 - _cross_entropy(confidence, right) / _cross_entropy(share, right), bins
    )


def _cross_entropy(confidence: Floats, right: Booleans) -> float:
    clipped = confidence.clip(LEAST, 1 - LEAST)
    return float(-np.log(np.where(right, clipped, 1 - clipped)).mean())


def fit_calibration(confidence: Floats, right: Booleans) -> Calibration:
    """Fit slope and offset to words (words,) by maximum likelihood.

    The targets are Platt's, a little inside 0 and 1, so that words which a threshold tells apart do not
    drive the slope to infinity.

    Raises:
        ConfidenceError: right words do not have the higher confidences.
    """
    count = int(right.sum())
    high, low = (count + 1) / (count + 2), 1 / (len(right) - count + 2)
    targets = torch.from_numpy(np.where(right, high, low))
    logits = torch.from_numpy(logit(confidence))
    line = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([line], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = torch.nn.functional.binary_cross_entropy_with_logits(
            line[0] * logits + line[1], targets
        )
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    slope, offset = line.tolist()
    if slope <= 0:
        raise ConfidenceError(
            f"the slope would be {slope:.3f}: right words do not have the higher confidences"
        )
    return Calibration(slope, offset)


def cross_calibrated(judged: Judged) -> Floats:
    """The confidences (words,), each calibrated by a fit on the words of other speakers.

    With more than ten speakers they are dealt out to ten groups, each left out in turn.

    Raises:
        ConfidenceError: there is one speaker, or the words of the others cannot be fitted.
    """
    names, speaker = np.unique(judged.speaker, return_inverse=True)
    if len(names) < 2:
        raise ConfidenceError(f"all words are of {names[0]}; a calibration needs two speakers")
    fold = speaker % FOLDS
    calibrated = np.empty_like(judged.confidence)
    for left_out in np.unique(fold):
        own = fold == left_out
        calibration = fit_calibration(judged.confidence[~own], judged.right[~own])
        calibrated[own] = calibration(judged.confidence[own])
    return calibrated


def examine(judged: Judged, *, fit: bool) -> Result:
    """Measure confidences, and what a calibration makes of them if `fit`. Raises ConfidenceError."""
    calibration = calibrated = None
    if fit:
        calibration = fit_calibration(judged.confidence, judged.right)
        calibrated = reliability(cross_calibrated(judged), judged.right)
    return Result(
        words=len(judged.right),
        right=float(judged.right.mean()),
        confidence=float(judged.confidence.mean()),
        as_given=reliability(judged.confidence, judged.right),
        calibration=calibration,
        calibrated=calibrated,
    )


def markdown(results: dict[Mode, Result]) -> str:
    """A table with a line for each mode, and another where it was calibrated."""
    lines = ["| | words | right | ECE | NCE |", "|---|---|---|---|---|"]
    for mode, result in results.items():
        head = f"{result.words} | {result.right:.1%}"
        lines.append(
            f"| `{mode}` | {head} | {result.as_given.ece:.3f} | {result.as_given.nce:.3f} |"
        )
        if result.calibrated:
            ece, nce = result.calibrated.ece, result.calibrated.nce
            lines.append(f"| `{mode}`, fitted on other speakers | {head} | {ece:.3f} | {nce:.3f} |")
    return "\n".join(lines)


def draw(results: dict[Mode, Result], path: Path) -> None:
    """Draw reliability diagrams as a PNG, one for each mode, with the words of each bin below."""
    figure = Figure(figsize=(5 * len(results), 6), layout="constrained")
    axes = figure.subplots(2, len(results), squeeze=False, sharex=True, height_ratios=[3, 1])
    for (mode, result), (above, below) in zip(results.items(), axes.T, strict=True):
        above.plot([0, 1], [0, 1], color="#999999", linestyle=":", label="confidence = share right")
        for name, measured, colour, marker in (
            ("as given", result.as_given, "#0072B2", "o"),
            ("calibrated on other speakers", result.calibrated, "#D55E00", "^"),
        ):
            if measured is None:
                continue
            confidence = [b.confidence for b in measured.bins]
            label = f"{name}: ECE {measured.ece:.3f}"
            above.plot(
                confidence,
                [b.right for b in measured.bins],
                color=colour,
                marker=marker,
                label=label,
            )
            below.plot(confidence, [b.words for b in measured.bins], color=colour, marker=marker)
        above.set(title=f"mode={mode}", ylabel="share right", ylim=(0, 1.02), xlim=(0, 1.02))
        above.legend(frameon=False)
        below.set(xlabel="confidence (mean of a bin)", ylabel="words", yscale="log")
        for panel in (above, below):
            panel.spines[["top", "right"]].set_visible(False)
    with atomic_writer(path) as file:
        figure.savefig(file, format="png", dpi=120)


def run(config: ConfidenceConfig, *, command: str) -> dict[Mode, Result]:
    """Transcribe the manifest in each mode, judge the words, and write what was asked for.

    Raises:
        ConfidenceError, ScoringError: the words cannot be judged or calibrated.
        CheckpointError: the checkpoint cannot be loaded.
        ValueError: it cannot be as asked, or a recording cannot be decoded.
        OSError: a recording cannot be read, or the output not written.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    checkpoint = load_checkpoint(config.checkpoint)
    if config.fit:  # to what the network says, not to what an earlier calibration made of it
        checkpoint.config = replace(checkpoint.config, calibration=Calibrations())
    recognizer = Recognizer(checkpoint, device=config.device, dtype=config.dtype)
    utterances, rejected = read_manifest(config.manifest)
    for line in rejected:
        print(f"line {line.line} is left out: {line.reason}", file=sys.stderr)
    if config.limit is not None and len(utterances) > config.limit:
        # Evenly: manifests go speaker by speaker, and the first lines are of a few.
        step = len(utterances) / config.limit
        utterances = [utterances[int(i * step)] for i in range(config.limit)]
    texts: dict[Mode, list[Transcript]] = {mode: [] for mode in config.mode}
    for first in range(0, len(utterances), CLIPS_AT_ONCE):
        waveforms = [load_utterance(u) for u in utterances[first : first + CLIPS_AT_ONCE]]
        for mode, found in texts.items():
            found += recognizer.transcribe(waveforms, TranscribeOptions(mode=mode)).transcripts
    results: dict[Mode, Result] = {}
    for mode, found in texts.items():
        judged = judge_all(list(zip(utterances, found, strict=True)))
        results[mode] = examine(judged, fit=config.fit)
    facts = {
        "command": command,
        "clips": len(utterances),
        "speakers": len({u.speaker for u in utterances} - {None}),
        "dtype": recognizer.dtype,
    }
    write(config, facts, results)
    if config.fit:
        calibrate(config.checkpoint, results)
    return results


def calibrate(checkpoint: Path, results: dict[Mode, Result]) -> None:
    """Write what was fitted into a checkpoint; a mode that is not in `results` keeps its own.

    Raises:
        CheckpointError, OSError: the checkpoint cannot be read or written.
    """
    config = load_checkpoint(checkpoint).config
    fitted = {mode: result.calibration for mode, result in results.items() if result.calibration}
    config = replace(config, calibration=replace(config.calibration, **fitted))
    write_text(checkpoint / CONFIG, config.to_json())


def write(config: ConfidenceConfig, facts: dict[str, Any], results: dict[Mode, Result]) -> None:
    """Write `facts` and results, the diagram, and what else was asked for. Raises OSError."""
    config.output.mkdir(parents=True, exist_ok=True)
    facts = {
        **facts,
        "normalizer": NORMALIZER,
        "bins": f"{BINS} of equal width",
        "modes": {mode: asdict(result) for mode, result in results.items()},
    }
    write_text(config.output / "confidence.json", json.dumps(facts, indent=2) + "\n")
    draw(results, config.output / "confidence.png")
    if config.document is not None:
        fill(config.document, "confidence", markdown(results))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    prog = "python -m training.confidence"
    config = parse_config(ConfidenceConfig, prog, words, several=("mode",))
    try:
        results = run(config, command=f"{prog} {shlex.join(words)}")
    except (ValueError, OSError) as error:
        print(f"confidence: {error}", file=sys.stderr)
        return 1
    print(markdown(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
