"""Preparation in parts: each part of a corpus is measured and packed alone, then they are joined.

    Listing   what the manifests name, before any recording was looked at
    Shard     one part, measured; its recordings lie in a tar, byte for byte as they were
    join      the splits, statistics and refusals of all parts, as `training.prepare` writes them

Recordings are named by their place below one folder, `audio/`, which exists only where they are needed.
"""

import hashlib
import tarfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from training.corpus_statistics import SplitName
from training.files import atomic_writer
from training.manifest import Rejected, Utterance
from training.prepare import Criteria, Found, Measured, Prepared, Refusal, assemble, measure

AUDIO = "audio"


class ShardError(ValueError):
    """A part is missing or not of this corpus."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Recording(_Record):
    """A line of a manifest."""

    source: int
    """Which of the listing's manifests."""
    path: str
    """From the manifest's folder."""
    tag: str
    """Another one whenever the recording changes."""
    use: Literal["split", "test"]
    """To be split by speaker, or chosen for test already."""
    duration: float
    text: str
    speaker: str | None
    label: str | None
    written: str | None
    group: str | None

    @property
    def place(self) -> str:
        """Where it lies below the folder of all recordings."""
        return f"{self.source}/{self.path}"

    def utterance(self, folder: Path) -> Utterance:
        """The utterance, whose recording lies or will lie in `folder`/audio."""
        return Utterance(
            audio_filepath=folder / AUDIO / self.place,
            duration=self.duration,
            text=self.text,
            speaker=self.speaker,
            label=self.label,
            written=self.written,
            group=self.group,
        )


class RejectedLine(_Record):
    """A line of a manifest that cannot be used."""

    source: int
    line: int
    reason: str
    content: str


class Listing(_Record):
    """All that the manifests name."""

    sources: tuple[str, ...]
    """The manifests' addresses."""
    recordings: tuple[Recording, ...]
    rejected: tuple[RejectedLine, ...]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of manifests and recordings as they are; another one when anything changes."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    def part(self, index: int, count: int) -> list[Recording]:
        """Part `index` of `count`; each recording is in one, and all have about as many seconds."""
        by_length = sorted(range(len(self.recordings)), key=lambda i: -self.recordings[i].duration)
        # In the listing's order: of equal recordings the first is kept, however many parts there are.
        return [self.recordings[i] for i in sorted(by_length[index::count])]


class Accepted(_Record):
    """A recording that was decoded and fits."""

    recording: Recording
    seconds: float
    sha256: str


class Refused(_Record):
    """A recording that cannot be decoded or does not fit."""

    recording: Recording
    kind: str
    reason: str


class Shard(_Record):
    """One part of a corpus, measured."""

    listing: str
    """Fingerprint of the listing that it is a part of."""
    index: int
    archive: str
    """Name under which the tar is stored."""
    sha256: str
    """Of the tar."""
    accepted: tuple[Accepted, ...]
    refused: tuple[Refused, ...]


def measure_part(
    recordings: Sequence[Recording], folder: Path, criteria: Criteria, workers: int
) -> tuple[list[Accepted], list[Refused]]:
    """Decode and check recordings that lie in `folder`/audio, in `workers` processes."""
    by_path = {entry.utterance(folder).audio_filepath: entry for entry in recordings}
    listed = [(entry.utterance(folder), folder) for entry in recordings]
    accepted, refused = measure(listed, criteria, workers)
    return (
        [
            Accepted(
                recording=by_path[found.utterance.audio_filepath],
                seconds=found.utterance.duration,
                sha256=found.audio_sha256,
            )
            for found, _ in accepted
        ],
        [
            Refused(
                recording=by_path[refusal.what.audio_filepath],
                kind=refusal.kind,
                reason=refusal.reason,
            )
            for refusal in refused
            if isinstance(refusal.what, Utterance)
        ],
    )


def pack(recordings: Sequence[Recording], folder: Path, archive: Path) -> None:
    """Put recordings of `folder`/audio into a tar; the same recordings give the same bytes."""
    with atomic_writer(archive) as file, tarfile.open(fileobj=file, mode="w") as tar:
        for place in sorted(entry.place for entry in recordings):
            path = folder / AUDIO / place
            member = tarfile.TarInfo(place)
            member.size = path.stat().st_size
            with path.open("rb") as content:
                tar.addfile(member, content)


def unpack(archive: Path, folder: Path, wanted: Collection[str] | None = None) -> None:
    """Take recordings out of a tar into `folder`/audio: those at the places `wanted`, or all."""
    with tarfile.open(archive) as tar:
        for member in tar:
            if wanted is None or member.name in wanted:
                tar.extract(member, folder / AUDIO, filter="data")


def join(
    listing: Listing,
    shards: Sequence[Shard],
    output: Path,
    *,
    split: Mapping[SplitName, float],
    seed: int,
    criteria: Criteria,
) -> Prepared:
    """Split what all parts accepted and write the folder that `training.prepare` would.

    The manifests name recordings in `output`/audio, which this does not make.

    Raises:
        ShardError: a part is of another listing, twice there, or missing.
        PreparationError: as `training.prepare.prepare`.
    """
    _check(listing, shards)
    names = [
        output / f"{number}-{address.rsplit('/', 1)[-1]}"
        for number, address in enumerate(listing.sources)
    ]
    refusals = [
        Refusal(
            "unusable line",
            line.reason,
            names[line.source],
            Rejected(names[line.source], line.line, line.reason, line.content),
        )
        for line in listing.rejected
    ]
    refusals += [
        Refusal(
            entry.kind,
            entry.reason,
            names[entry.recording.source],
            entry.recording.utterance(output),
        )
        for shard in shards
        for entry in shard.refused
    ]
    measured: dict[SplitName | None, list[Found]] = {}
    order = {entry.place: place for place, entry in enumerate(listing.recordings)}
    accepted = [entry for shard in shards for entry in shard.accepted]
    for entry in sorted(accepted, key=lambda entry: order[entry.recording.place]):
        found = Measured(
            utterance=entry.recording.model_copy(update={"duration": entry.seconds}).utterance(
                output
            ),
            declared_duration=entry.recording.duration,
            audio_sha256=entry.sha256,
        )
        group: SplitName | None = "test" if entry.recording.use == "test" else None
        measured.setdefault(group, []).append((found, names[entry.recording.source]))
    return assemble(
        output,
        measured,
        refusals,
        split=split,
        seed=seed,
        duration_tolerance=criteria.duration_tolerance,
    )


def _check(listing: Listing, shards: Sequence[Shard]) -> None:
    if foreign := [shard.index for shard in shards if shard.listing != listing.fingerprint]:
        raise ShardError(f"parts {foreign} are of another listing than {listing.fingerprint}")
    places = [
        *(entry.recording.place for shard in shards for entry in shard.accepted),
        *(entry.recording.place for shard in shards for entry in shard.refused),
    ]
    listed = {entry.place for entry in listing.recordings}
    if len(places) != len(set(places)) or set(places) != listed:
        raise ShardError(
            f"the parts {sorted(shard.index for shard in shards)} hold {len(places)} recordings,"
            f" {len(set(places))} of them different; the listing has {len(listed)}"
        )
