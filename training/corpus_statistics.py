"""What a corpus holds, in figures and in a plot, and the fingerprint that names its content."""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, Self, get_args

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter
from pydantic import BaseModel, ConfigDict

from training.files import atomic_writer
from training.manifest import Utterance

SplitName = Literal["train", "dev", "test"]
SPLITS: tuple[SplitName, ...] = get_args(SplitName)


class Range(BaseModel):
    """How a quantity is spread over the utterances of a split."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    smallest: float
    median: float
    percentile_95: float
    largest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Summarize values, rounded to three digits."""
        smallest, median, percentile_95, largest = np.percentile(values, [0, 50, 95, 100])
        return cls(
            smallest=round(float(smallest), 3),
            median=round(float(median), 3),
            percentile_95=round(float(percentile_95), 3),
            largest=round(float(largest), 3),
        )


class SplitStatistics(BaseModel):
    """One split in figures."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    utterances: int
    seconds: float
    hours: float
    speakers: int  # those named
    utterances_without_speaker: int
    words: int
    characters: int
    duration: Range  # seconds
    characters_per_second: Range
    seconds_per_speaker: Range | None  # None where no speaker is named
    labels: dict[str, int]  # utterances; "" where there is no label
    character_counts: dict[str, int]  # most frequent first
    fingerprint: str


class CorpusStatistics(BaseModel):
    """All that `statistics.json` says."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fingerprint: str
    splits: dict[SplitName, SplitStatistics]
    rejected: dict[str, int]  # by kind, most frequent first
    corrected_durations: int


def fingerprint(contents: Iterable[tuple[Utterance, str]]) -> str:
    """SHA-256 of the texts and the audio files, whatever their order and place.

    `contents` gives each utterance with the SHA-256 of its audio file.
    """
    lines = [json.dumps([entry.text, entry.written, audio]) for entry, audio in contents]
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def corpus_statistics(
    splits: Mapping[SplitName, Sequence[Utterance]],
    *,
    fingerprints: Mapping[SplitName, str],
    rejected: Counter[str],
    corrected_durations: int,
) -> CorpusStatistics:
    """Count `splits`, none of them empty. The corpus' fingerprint is made of its splits' ones."""
    combined = hashlib.sha256(json.dumps(dict(fingerprints), sort_keys=True).encode())
    return CorpusStatistics(
        fingerprint=combined.hexdigest(),
        splits={
            name: _split_statistics(utterances, fingerprints[name])
            for name, utterances in splits.items()
        },
        rejected=dict(rejected.most_common()),
        corrected_durations=corrected_durations,
    )


def _split_statistics(utterances: Sequence[Utterance], identity: str) -> SplitStatistics:
    seconds = sum(utterance.duration for utterance in utterances)
    by_speaker = _seconds_by_speaker(utterances)
    return SplitStatistics(
        utterances=len(utterances),
        seconds=round(seconds, 2),
        hours=round(seconds / 3600, 4),
        speakers=len(by_speaker),
        utterances_without_speaker=sum(u.speaker is None for u in utterances),
        words=sum(len(u.text.split()) for u in utterances),
        characters=sum(len(u.text) for u in utterances),
        duration=Range.of([u.duration for u in utterances]),
        characters_per_second=Range.of([len(u.text) / u.duration for u in utterances]),
        seconds_per_speaker=Range.of(list(by_speaker.values())) if by_speaker else None,
        labels=dict(Counter(u.label or "" for u in utterances).most_common()),
        character_counts=dict(_characters(utterances).most_common()),
        fingerprint=identity,
    )


def _seconds_by_speaker(utterances: Iterable[Utterance]) -> dict[str, float]:
    seconds: defaultdict[str, float] = defaultdict(float)
    for utterance in utterances:
        if utterance.speaker is not None:
            seconds[utterance.speaker] += utterance.duration
    return dict(seconds)


def _characters(utterances: Iterable[Utterance]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for utterance in utterances:
        counts.update(utterance.text)
    return counts


# Okabe and Ito's palette, which people with any colour vision can tell apart.
_COLOURS: dict[SplitName, str] = {"train": "#0072B2", "dev": "#E69F00", "test": "#009E73"}
_MARKERS: dict[SplitName, str] = {"train": "o", "dev": "^", "test": "s"}
_MOST_CHARACTERS = 32


def draw_statistics(splits: Mapping[SplitName, Sequence[Utterance]], path: Path) -> None:
    """Draw durations, characters and seconds a speaker as a PNG; each split has its colour."""
    figure = Figure(figsize=(15, 4.6), layout="constrained")
    durations, characters, speakers = figure.subplots(1, 3, width_ratios=[1, 1.25, 1])
    _draw_durations(durations, splits)
    _draw_characters(characters, splits)
    _draw_speakers(speakers, splits)
    for axes in (durations, characters, speakers):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#dddddd", linewidth=0.7)
        axes.set_axisbelow(True)
    with atomic_writer(path) as file:
        figure.savefig(file, format="png", dpi=120)


def _draw_durations(axes: Axes, splits: Mapping[SplitName, Sequence[Utterance]]) -> None:
    longest = max(u.duration for utterances in splits.values() for u in utterances)
    axes.hist(
        [[u.duration for u in utterances] for utterances in splits.values()],
        bins=np.arange(0, np.ceil(longest) + 1).tolist(),
        stacked=True,
        color=[_COLOURS[name] for name in splits],
        label=[
            f"{name}: {sum(u.duration for u in utterances) / 3600:.2f} h"
            for name, utterances in splits.items()
        ],
    )
    axes.set(title="Durations", xlabel="seconds (bars of 1 s)", ylabel="utterances")
    axes.set_xlim(left=0)
    axes.legend(frameon=False)


def _draw_characters(axes: Axes, splits: Mapping[SplitName, Sequence[Utterance]]) -> None:
    counts = {name: _characters(utterances) for name, utterances in splits.items()}
    total: Counter[str] = sum(counts.values(), Counter())
    shown = [character for character, _ in total.most_common(_MOST_CHARACTERS)]
    bottom = np.zeros(len(shown))
    for name, count in counts.items():
        heights = np.array([count[character] for character in shown]) * 100 / total.total()
        axes.bar(range(len(shown)), heights, bottom=bottom, color=_COLOURS[name], width=0.8)
        bottom += heights
    axes.set_xticks(range(len(shown)), [_visible(character) for character in shown])
    axes.tick_params(axis="x", length=0, labelsize=11)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(PercentFormatter(100, decimals=0))
    title = f"Characters: {len(total)} different"
    if len(total) > len(shown):
        title += f", the {len(shown)} most frequent"
    axes.set(title=title, ylabel="of all characters", xlim=(-0.7, len(shown) - 0.3))


def _visible(character: str) -> str:
    if character == " ":
        return "␣"
    return character if character.isprintable() else f"U+{ord(character):04X}"


def _draw_speakers(axes: Axes, splits: Mapping[SplitName, Sequence[Utterance]]) -> None:
    ranked = sorted(
        (
            (seconds, name)
            for name, utterances in splits.items()
            for seconds in _seconds_by_speaker(utterances).values()
        ),
        reverse=True,
    )
    for name in splits:
        places = [place for place, (_, split) in enumerate(ranked, start=1) if split == name]
        axes.scatter(
            places,
            [ranked[place - 1][0] for place in places],
            color=_COLOURS[name],
            marker=_MARKERS[name],
            s=18,
            label=f"{name}: {len(places)}",
        )
    title = f"Seconds a speaker: {len(ranked)} speakers" if ranked else "No speaker is named"
    axes.set(title=title, xlabel="speakers, most seconds first", ylabel="seconds")
    if ranked:
        axes.set_yscale("log")  # one speaker may have a hundred times another's seconds
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.legend(frameon=False)
