"""What `accuracy` found, as tables, `results.json` and `hypotheses.jsonl` say it."""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tests.benchmarks.accuracy_systems import System
from training.scoring import CONFIDENCE, NORMALIZER, RESAMPLES, Rate, Scores, bootstrap_interval

SHORT_SECONDS = 15.0  # the requests that an endpoint mostly gets are shorter


@dataclass(frozen=True)
class Spread:
    """A figure that was taken several times."""

    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Half of the rounds gave more."""
        return statistics.median(self.rounds)

    def __str__(self) -> str:
        return f"{self.median:.1f} ({min(self.rounds):.1f}–{max(self.rounds):.1f})"


@dataclass(frozen=True)
class Result:
    """One system, measured.

    Attributes:
        scores: on all clips.
        short_scores: on the clips under SHORT_SECONDS.
        rtfx: by threads, audio seconds in a second on the clips that are timed.
        short_rtfx: the same on those under SHORT_SECONDS.
        model_bytes: on disk, as it is distributed.
    """

    system: System
    scores: Scores
    short_scores: Scores
    rtfx: dict[int, Spread]
    short_rtfx: dict[int, Spread]
    model_bytes: int

    def metrics(self) -> dict[str, Any]:
        """Its entry of `results.json`."""
        return {
            **asdict(self.system),
            "model_bytes": self.model_bytes,
            "all_clips": _metrics(self.scores, self.rtfx),
            "short_clips": _metrics(self.short_scores, self.short_rtfx),
        }


def interval_facts(seed: int) -> dict[str, Any]:
    """How the error rates and their intervals were made."""
    return {
        "normalizer": NORMALIZER,
        "interval": {
            "confidence": CONFIDENCE,
            "method": "percentile bootstrap over utterances",
            "resamples": RESAMPLES,
            "seed": seed,
        },
    }


def hypotheses(results: Sequence[Result]) -> Iterator[dict[str, Any]]:
    """Each clip as each system heard it."""
    for result in results:
        for scored in (*result.scores.utterances, *result.scores.empty_references):
            yield {
                "system": result.system.name,
                "id": scored.pair.id,
                "reference": scored.pair.reference,
                "hypothesis": scored.pair.hypothesis,
                "words": scored.words,
                "errors": scored.word_errors,
            }


def errors_table(results: Sequence[Result]) -> str:
    """Error rates and sizes."""
    heading = ("", "WER", "CER", f"WER under {SHORT_SECONDS:g} s", "loops", "empty", "MB on disk")
    return _table(
        heading,
        [
            (
                result.system.name,
                _percent(result.scores.wer),
                _percent(result.scores.cer),
                _percent(result.short_scores.wer),
                str(len(result.scores.looped)),
                str(len(result.scores.empty)),
                f"{result.model_bytes / 1e6:.0f}",
            )
            for result in results
        ],
    )


def speed_table(results: Sequence[Result]) -> str:
    """RTFx by threads."""
    threads = sorted({n for result in results for n in result.rtfx})
    columns = [_threads(n) for n in threads]
    heading = ("", *columns, *(f"under {SHORT_SECONDS:g} s, {column}" for column in columns))
    return _table(
        heading,
        [
            (
                result.system.name,
                *(str(result.rtfx.get(n, "–")) for n in threads),
                *(str(result.short_rtfx.get(n, "–")) for n in threads),
            )
            for result in results
        ],
    )


def peers_table(results: Sequence[Result], seed: int) -> str:
    """Each peer beside the Steno that is the fastest without more errors, on short clips.

    The fastest is that on the fewest threads.
    Where each Steno has more errors, the one with the fewest stands there. A peer that gets many clips
    at once is set beside a Steno that does too.
    """
    steno = [result for result in results if result.system.loader == "steno"]
    rows = []
    for peer in results:
        rivals = [ours for ours in steno if ours.system.batched == peer.system.batched]
        if peer.system.loader == "steno" or not rivals:
            continue
        ours = _rival(peer, rivals)
        rows.append(
            (
                peer.system.name,
                ours.system.name,
                _difference(ours.short_scores, peer.short_scores, seed),
                *(
                    f"{ours.short_rtfx[n].median / spread.median:.1f}"
                    if (spread := peer.short_rtfx.get(n))
                    else "–"
                    for n in sorted(ours.short_rtfx)
                ),
            )
        )
    threads = sorted({n for result in steno for n in result.rtfx})
    heading = (
        "peer",
        "Steno",
        "WER, Steno − peer",
        *(f"RTFx ratio, {_threads(n)}" for n in threads),
    )
    return _table(heading, rows)


def _rival(peer: Result, rivals: Sequence[Result]) -> Result:
    limit = peer.short_scores.wer.value
    as_good = [ours for ours in rivals if ours.short_scores.wer.value <= limit]
    if not as_good:
        return min(rivals, key=lambda ours: ours.short_scores.wer.value)
    return max(as_good, key=lambda ours: ours.short_rtfx[min(ours.short_rtfx)].median)


def _difference(ours: Scores, theirs: Scores, seed: int) -> str:
    """Difference of two error rates in points, with the interval of the pairs of texts."""
    pairs = list(zip(ours.utterances, theirs.utterances, strict=True))
    errors = [own.word_errors - other.word_errors for own, other in pairs]
    words = [own.words for own, _ in pairs]
    low, high = bootstrap_interval(errors, words, seed=seed)
    return f"{100 * sum(errors) / sum(words):+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def _metrics(scores: Scores, rtfx: dict[int, Spread]) -> dict[str, Any]:
    return {
        "wer": {"rate": scores.wer.value, **asdict(scores.wer)},
        "cer": {"rate": scores.cer.value, **asdict(scores.cer)},
        "looped": [scored.pair.id for scored in scores.looped],
        "empty_hypotheses": [scored.pair.id for scored in scores.empty],
        "rtfx_by_threads": {
            str(threads): {"median": spread.median, "rounds": spread.rounds}
            for threads, spread in rtfx.items()
        },
    }


def _percent(rate: Rate) -> str:
    return f"{rate.value:.1%} ({rate.low:.1%}–{rate.high:.1%})"


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = (heading, ["---"] * len(heading), *rows)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
