"""Make training data out of recordings: check, measure, split by speaker, describe.

    python -m training.prepare --input CORPUS --output prepared --split train=0.9 dev=0.05 test=0.05
    python -m training.prepare --train M --dev M --test M --output prepared

The output folder gets a manifest for each split (`train.jsonl`, …), `rejected.jsonl` (every line
that was refused, with its reason), `corrected.jsonl` (every duration that was declared wrongly),
`statistics.json` with the data's fingerprint, and `statistics.png`.
"""

import hashlib
import json
import math
import multiprocessing
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Self

import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from tqdm import tqdm

from model.audio import (
    SAMPLE_RATE,
    AudioError,
    AudioLimits,
    AudioTooLong,
    NotAudio,
    load_audio,
)
from training.arguments import parse_config
from training.corpus_statistics import (
    SPLITS,
    CorpusStatistics,
    SplitName,
    corpus_statistics,
    draw_statistics,
    fingerprint,
)
from training.files import relative, write_text
from training.manifest import (
    ManifestError,
    Rejected,
    Utterance,
    read_librispeech,
    read_manifest,
    write_manifest,
)

# Refusals that are no matter of criteria: the recording's fault, and this machine's.
UNDECODABLE, UNREADABLE = "undecodable", "unreadable"


class PreparationError(ValueError):
    """The data as a whole cannot be prepared as asked."""


def _shares(value: object) -> object:
    """Turn the command line's NAME=SHARE words into a mapping."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        return value
    pairs = [str(word).partition("=")[::2] for word in value]
    if len({name for name, _ in pairs}) < len(pairs):
        raise ValueError(f"a split is named twice in {' '.join(map(str, value))}")
    return dict(pairs)


Share = Annotated[float, Field(ge=0, le=1)]


class Criteria(BaseModel):
    """Which recordings are accepted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_seconds: float = Field(default=0.5, gt=0, description="shorter recordings are rejected")
    max_seconds: float = Field(
        default=30.0, gt=0, description="longer ones are rejected; Whisper's encoder ends at 30 s"
    )
    min_characters_per_second: float = Field(
        default=1.0,
        ge=0,
        description="a slower text is rejected: words are probably missing from it",
    )
    max_characters_per_second: float = Field(
        default=25.0,
        gt=0,
        description="a faster text is rejected: it probably belongs to other audio",
    )
    duration_tolerance: float = Field(
        default=0.1, ge=0, description="seconds by which a declared duration may be off unreported"
    )

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.min_seconds > self.max_seconds:
            raise ValueError(f"min_seconds {self.min_seconds} > max_seconds {self.max_seconds}")
        if self.min_characters_per_second > self.max_characters_per_second:
            raise ValueError(
                f"min_characters_per_second {self.min_characters_per_second} >"
                f" max_characters_per_second {self.max_characters_per_second}"
            )
        return self


class PrepareConfig(Criteria):
    """What to prepare and what to accept. Give `input` to have it split, or the splits yourself."""

    output: Path = Field(description="folder for the results; must be new or empty")
    input: tuple[Path, ...] = Field(
        default=(), description="manifests or LibriSpeech roots, to be split"
    )
    train: tuple[Path, ...] = Field(default=(), description="the same, already chosen for training")
    dev: tuple[Path, ...] = Field(default=(), description="the same, already chosen for dev")
    test: tuple[Path, ...] = Field(default=(), description="the same, already chosen for test")
    split: Annotated[dict[SplitName, Share], BeforeValidator(_shares)] = Field(
        default={"train": 0.9, "dev": 0.05, "test": 0.05},
        description="NAME=SHARE: the part of the speakers for each split, together 1; of the seconds"
        " only as far as all speak equally long"
        " (train=0.9 dev=0.05 test=0.05 if not given)",
    )
    seed: int = Field(default=0, description="another seed chooses other speakers for dev and test")
    workers: int = Field(
        default_factory=lambda: os.cpu_count() or 1, ge=1, description="decoding processes"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        given = [name for name in SPLITS if getattr(self, name)]
        if bool(self.input) == bool(given):
            raise ValueError("give either --input, or some of --train, --dev and --test")
        if not math.isclose(sum(self.split.values()), 1, abs_tol=1e-6):
            raise ValueError(f"the shares of --split add up to {sum(self.split.values())}, not 1")
        if not self.split.get("train"):
            raise ValueError("--split gives nothing to train")
        return self


@dataclass(frozen=True, slots=True)
class Measured:
    """An utterance whose audio was decoded; its duration is the true one."""

    utterance: Utterance
    declared_duration: float  # seconds
    audio_sha256: str  # of the file's bytes


@dataclass(frozen=True)
class Refusal:
    """A line or a recording that the prepared data do not hold."""

    kind: str  # for counting: "too long"
    reason: str  # for a person: "31.2 s, above 30.0 s"
    source: Path  # the manifest or the LibriSpeech root
    what: Rejected | Utterance

    def entry(self, folder: Path) -> dict[str, Any]:
        """The line for `rejected.jsonl`, which lies in `folder`."""
        entry = {
            "kind": self.kind,
            "reason": self.reason,
            "source": relative(self.source, folder),
        }
        if isinstance(self.what, Rejected):
            return {**entry, "line": self.what.line, "content": self.what.content}
        audio = relative(self.what.audio_filepath, folder)
        return {**entry, "audio_filepath": audio, "text": self.what.text}


@dataclass(frozen=True)
class Prepared:
    """What `prepare` wrote."""

    splits: Mapping[SplitName, Sequence[Utterance]]
    refusals: Sequence[Refusal]
    corrected: int  # durations that were declared wrongly
    statistics: CorpusStatistics


# A measured utterance, and the manifest or LibriSpeech root that it comes from.
Found = tuple[Measured, Path]


def prepare(config: PrepareConfig, *, progress: bool = False) -> Prepared:
    """Prepare the data and write everything into `config.output`.

    Raises:
        PreparationError: the output folder is not empty, nothing is left, there are too few
            speakers to split, or a speaker or a recording stands in two given splits. What was
            refused until then is in `rejected.jsonl`, but where speakers are too few: the folder
            stays empty for another attempt.
        ManifestError: an input folder holds no transcripts.
        OSError: an input cannot be read or the output not written.
    """
    output = Path(os.path.abspath(config.output))
    output.mkdir(parents=True, exist_ok=True)
    if any(output.iterdir()):
        raise PreparationError(
            f"{config.output} holds files already; give a new folder, so that no older split stays"
        )
    groups: dict[SplitName | None, tuple[Path, ...]]
    groups = {None: config.input} if config.input else {s: getattr(config, s) for s in SPLITS}
    refusals: list[Refusal] = []
    measured: dict[SplitName | None, list[Found]] = {}
    for group, inputs in groups.items():
        if inputs:
            listed, unusable = _read(inputs)
            refusals += unusable
            if group is None and listed:  # not only after hours of decoding
                try:
                    check_speakers({utterance.speaker for utterance, _ in listed}, config.split)
                except PreparationError as error:
                    if not unusable:
                        raise
                    raise PreparationError(
                        f"{error}. {len(unusable)} lines cannot be used; the first: {unusable[0].reason}"
                    ) from None
            measured[group], unfit = measure(listed, config, config.workers, progress)
            refusals += unfit
    return assemble(
        output,
        measured,
        refusals,
        split=config.split,
        seed=config.seed,
        duration_tolerance=config.duration_tolerance,
    )


def assemble(
    output: Path,
    measured: Mapping[SplitName | None, Sequence[Found]],
    refusals: Sequence[Refusal],
    *,
    split: Mapping[SplitName, float],
    seed: int,
    duration_tolerance: float,
) -> Prepared:
    """Split what was measured and write everything into the folder `output`.

    Args:
        measured: utterances whose split is chosen already, and under None those to be split.
        refusals: what was refused before; what is refused here is added.
        split: shares of what is to be split.

    Raises:
        PreparationError: as `prepare`.
    """
    refused = list(refusals)
    kept: dict[SplitName | None, list[Measured]] = {}
    for group, entries in measured.items():
        kept[group], duplicates = _unique(entries)
        refused += duplicates
    _write_lines(output / "rejected.jsonl", (refusal.entry(output) for refusal in refused))
    for group, left in kept.items():
        if not left:
            raise PreparationError(
                f"no utterance is left{f' for {group}' if group else ''}; {len(refused)} lines were"
                f" refused, the reasons are in {output / 'rejected.jsonl'}. The first:"
                f" {refused[0].reason if refused else 'there are no lines'}"
            )

    splits = {name: kept[name] for name in SPLITS if name in kept}
    if None in kept:
        splits |= split_by_speaker(kept[None], split, seed)
    _refuse_leakage(splits)
    everything = [entry for found in splits.values() for entry in found]
    corrections = [
        {
            "audio_filepath": relative(entry.utterance.audio_filepath, output),
            "declared": entry.declared_duration,
            "measured": entry.utterance.duration,
        }
        for entry in everything
        if abs(entry.declared_duration - entry.utterance.duration) > duration_tolerance
    ]
    _write_lines(output / "corrected.jsonl", corrections)
    utterances = {name: [entry.utterance for entry in found] for name, found in splits.items()}
    for name, chosen in utterances.items():
        write_manifest(output / f"{name}.jsonl", chosen)
    statistics = corpus_statistics(
        utterances,
        fingerprints={
            name: fingerprint((entry.utterance, entry.audio_sha256) for entry in found)
            for name, found in splits.items()
        },
        rejected=Counter(refusal.kind for refusal in refused),
        corrected_durations=len(corrections),
    )
    draw_statistics(utterances, output / "statistics.png")
    write_text(output / "statistics.json", statistics.model_dump_json(indent=2) + "\n")
    return Prepared(utterances, refused, len(corrections), statistics)


def _read(inputs: Sequence[Path]) -> tuple[list[tuple[Utterance, Path]], list[Refusal]]:
    listed: list[tuple[Utterance, Path]] = []
    refusals: list[Refusal] = []
    for source in inputs:
        read = read_librispeech if source.is_dir() else read_manifest
        utterances, rejected = read(source)
        listed += [(utterance, source) for utterance in utterances]
        refusals += [
            Refusal("unusable line", line.reason, line.manifest, line) for line in rejected
        ]
    return listed, refusals


def measure(
    listed: Sequence[tuple[Utterance, Path]],
    criteria: Criteria,
    workers: int,
    progress: bool = False,
) -> tuple[list[Found], list[Refusal]]:
    """Decode every recording: the accepted ones and the refused, both in order.

    Args:
        listed: utterances, each with the manifest or the LibriSpeech root that it comes from.
        workers: decoding processes.
    """
    accepted: list[Found] = []
    refusals: list[Refusal] = []
    seen: dict[str, Measured] = {}  # by the audio's SHA-256
    decode = partial(_measure, limits=AudioLimits(max_seconds=criteria.max_seconds))
    with _workers(workers) as mapped:
        outcomes = tqdm(
            mapped(decode, [utterance for utterance, _ in listed]),
            desc="decoding",
            total=len(listed),
            unit="file",
            disable=not progress,
            leave=False,
        )
        for (utterance, source), outcome in zip(listed, outcomes, strict=True):
            if not isinstance(outcome, Measured):
                refusals.append(Refusal(_kind(outcome), str(outcome), source, utterance))
            elif unfit := _unfit(outcome.utterance, criteria):
                refusals.append(Refusal(*unfit, source, utterance))
            elif same := seen.get(outcome.audio_sha256):
                refusals.append(_duplicate(outcome, same, source))
            else:
                seen[outcome.audio_sha256] = outcome
                accepted.append((outcome, source))
    return accepted, refusals


def _unique(entries: Sequence[Found]) -> tuple[list[Measured], list[Refusal]]:
    """The first of each recording, and the others as refused: parts may share what each holds once."""
    kept: dict[str, Measured] = {}  # by the audio's SHA-256
    refusals: list[Refusal] = []
    for entry, source in entries:
        if same := kept.get(entry.audio_sha256):
            refusals.append(_duplicate(entry, same, source))
        else:
            kept[entry.audio_sha256] = entry
    return list(kept.values()), refusals


def _duplicate(entry: Measured, kept: Measured, source: Path) -> Refusal:
    reason = f"the same audio as {kept.utterance.audio_filepath.name}, which is kept"
    return Refusal("duplicate audio", reason, source, entry.utterance)


@contextmanager
def _workers(count: int) -> Iterator[Callable[..., Iterable[Measured | AudioError | OSError]]]:
    """A `map` over `count` processes, or over none beside this one.

    Processes, because MP3 comes in frames of 26 ms that are put together under Python's lock, so
    threads barely help; from a server, because a fork of a process that has used torch may hang.
    """
    if count == 1:
        yield map
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["training.prepare"])  # else each worker imports it anew
    with ProcessPoolExecutor(count, context, initializer=_use_one_thread) as pool:
        yield partial(pool.map, chunksize=16)


def _use_one_thread() -> None:
    torch.set_num_threads(1)  # the processes are the parallelism


def _measure(utterance: Utterance, limits: AudioLimits) -> Measured | AudioError | OSError:
    try:
        content = utterance.audio_filepath.read_bytes()
    except OSError as error:
        return error
    try:
        samples = load_audio(content, limits).numel()
    except AudioError as error:
        return error
    except OSError as error:  # FFmpeg's are; one that was not foreseen must not end all
        return NotAudio(str(error))
    return Measured(
        utterance=replace(utterance, duration=samples / SAMPLE_RATE),
        declared_duration=utterance.duration,
        audio_sha256=hashlib.sha256(content).hexdigest(),
    )


def _kind(error: AudioError | OSError) -> str:
    if isinstance(error, AudioTooLong):
        return "too long"
    return UNREADABLE if isinstance(error, OSError) else UNDECODABLE


def _unfit(utterance: Utterance, config: Criteria) -> tuple[str, str] | None:
    """The kind and the reason for which an utterance cannot be trained on, if there is one."""
    seconds = utterance.duration
    rate = len(utterance.text) / seconds
    spoken = f"{rate:.1f} characters/s ({len(utterance.text)} in {seconds:.2f} s)"
    if seconds < config.min_seconds:
        return "too short", f"{seconds:.2f} s, below {config.min_seconds:g} s"
    if rate < config.min_characters_per_second:
        return "text too slow", f"{spoken}, below {config.min_characters_per_second:g}"
    if rate > config.max_characters_per_second:
        return "text too fast", f"{spoken}, above {config.max_characters_per_second:g}"
    return None


def check_speakers(speakers: Set[str | None], shares: Mapping[SplitName, float]) -> None:
    """Raise PreparationError if there are fewer speakers than splits; unnamed ones count as one."""
    wanted = _wanted(shares)
    if len(speakers) < len(wanted):
        raise PreparationError(
            f"{len(speakers)} speakers cannot be shared among {', '.join(wanted)}: give recordings"
            " of more speakers, or name the speakers in the manifest (where nobody knows them, a"
            " session or a call will do), or outside the pipeline give --train, --dev and --test"
        )


def _wanted(shares: Mapping[SplitName, float]) -> list[SplitName]:
    return [name for name in SPLITS if shares.get(name)]


def split_by_speaker(
    measured: Sequence[Measured], shares: Mapping[SplitName, float], seed: int
) -> dict[SplitName, list[Measured]]:
    """Give each speaker to one split, by a hash of seed and name alone.

    So a speaker stays where he is while the data grow: nobody whom an earlier training has heard comes
    into test, once there are some ten speakers (of fewer, the hashes of nearly all may lie in test).
    The price is that shares are met by chance: of 200 speakers 10 give or take 3 are in a split of 0.05.
    Where there are so few that a split would have none, it gets the one who is nearest. Utterances
    without a speaker stay together, as if one person had spoken them.

    Raises:
        PreparationError: there are fewer speakers than splits.
    """
    speakers = {entry.utterance.speaker for entry in measured}
    check_speakers(speakers, shares)
    wanted = _wanted(shares)

    def place(speaker: str | None) -> float:
        """Where a speaker stands between 0 and 1."""
        digest = hashlib.sha256(json.dumps([seed, speaker]).encode()).digest()
        return int.from_bytes(digest[:8], "big") / 2**64

    free = sorted(speakers, key=place)
    split_of: dict[str | None, SplitName] = {}
    end = 0.0
    for position, name in enumerate(wanted[:0:-1]):  # test before dev, and never train
        end += shares[name]
        most = len(free) - (len(wanted) - 1 - position)  # each later split needs a speaker too
        chosen = [speaker for speaker in free if place(speaker) < end][:most] or free[:1]
        for speaker in chosen:
            split_of[speaker] = name
        free = free[len(chosen) :]
    return {
        name: [e for e in measured if split_of.get(e.utterance.speaker, "train") == name]
        for name in wanted
    }


def _refuse_leakage(splits: Mapping[SplitName, Sequence[Measured]]) -> None:
    check_apart(
        {name: {entry.utterance.speaker for entry in found} for name, found in splits.items()},
        "give every speaker to one split, or all of it to --input to have it split",
    )
    recordings: defaultdict[str, dict[SplitName, str]] = defaultdict(dict)
    for name, found in splits.items():
        for entry in found:
            recordings[entry.audio_sha256][name] = entry.utterance.audio_filepath.name
    repeated = [places for places in recordings.values() if len(places) > 1]
    if repeated:
        raise PreparationError(
            f"{len(repeated)} recordings stand in more than one split: "
            + _some(
                " = ".join(f"{audio} in {name}" for name, audio in places.items())
                for places in repeated
            )
        )


def check_apart(speakers: Mapping[str, Set[str | None]], advice: str) -> None:
    """Raise PreparationError if somebody stands in more than one split; unnamed speakers may."""
    splits: defaultdict[str, list[str]] = defaultdict(list)
    for name, found in speakers.items():
        for speaker in found:
            if speaker is not None:
                splits[speaker].append(name)
    shared = sorted(speaker for speaker, names in splits.items() if len(names) > 1)
    if shared:
        raise PreparationError(
            f"{len(shared)} speakers stand in more than one split: "
            + _some(f"{speaker} in {' and '.join(sorted(splits[speaker]))}" for speaker in shared)
            + f"; {advice}"
        )


def _some(texts: Iterable[str], most: int = 5) -> str:
    listed = list(texts)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more


def _write_lines(path: Path, entries: Iterable[Mapping[str, Any]]) -> None:
    lines = (json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
    write_text(path, "".join(lines))


def summary(prepared: Prepared, output: Path) -> str:
    """What a person wants to know about the result, in a few lines."""
    statistics = prepared.statistics
    total = sum(split.seconds for split in statistics.splits.values())
    lines = [f"{'split':<6} {'utterances':>10} {'hours':>8} {'share':>7} {'speakers':>9}"]
    for name, split in statistics.splits.items():
        lines.append(
            f"{name:<6} {split.utterances:>10} {split.seconds / 3600:>8.2f}"
            f" {split.seconds / total:>7.1%} {split.speakers:>9}"
        )
    unnamed = sum(split.utterances_without_speaker for split in statistics.splits.values())
    if unnamed:
        lines.append(f"Beware: {unnamed} utterances name no speaker; theirs may be in two splits.")
    kinds = ", ".join(f"{count} {kind}" for kind, count in statistics.rejected.items())
    refused = len(prepared.refusals)
    lines += [
        f"rejected   {refused}" + (f" ({kinds}): rejected.jsonl says why" if refused else ""),
        f"corrected  {prepared.corrected} wrongly declared durations"
        + (": corrected.jsonl" if prepared.corrected else ""),
        f"data       {statistics.fingerprint}",
        f"written to {output}",
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    config = parse_config(
        PrepareConfig,
        "python -m training.prepare",
        arguments,
        several=("input", "train", "dev", "test", "split"),
    )
    try:
        prepared = prepare(config, progress=sys.stderr.isatty())
    except (PreparationError, ManifestError, OSError) as error:
        print(f"prepare: {error}", file=sys.stderr)
        return 1
    print(summary(prepared, config.output))
    return 0


if __name__ == "__main__":
    sys.exit(main())
