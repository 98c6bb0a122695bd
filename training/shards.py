"""Preparation in parts: each part of a corpus is measured and packed alone, then they are joined.

    Listing   what the manifests name, before any recording was looked at
    Piece     neighbours in a listing, measured; their recordings lie in a tar, as they were
    Shard     the pieces of one part
    join      the splits, statistics and refusals of all parts, as `training.prepare` writes them

Recordings are named by their place below one folder, `audio/`, which exists only where they are needed.
There may be millions of them: what is held for each is small, and says by a number which one it is of.
"""

import hashlib
import json
import tarfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from training.corpus_statistics import SplitName
from training.files import atomic_writer
from training.manifest import Rejected, Utterance
from training.prepare import (
    UNREADABLE,
    Criteria,
    Found,
    Measured,
    Prepared,
    Refusal,
    assemble,
    measure,
)

AUDIO = "audio"
# Recordings of a piece on average, and at most.
PIECE, LARGEST_PIECE = 1_000, 4_000
# Raise it when recordings are decoded or judged otherwise, or pieces are kept otherwise: what was
# measured before is then measured anew.
VERSION = 3


class ShardError(ValueError):
    """A part is missing, not of this corpus, or cannot be measured here."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True, slots=True)
class Recording:
    """A line of a manifest."""

    source: int
    """Which of the listing's manifests."""
    path: str
    """From the manifest's folder."""
    size: int
    """In bytes."""
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

    @property
    def ends_piece(self) -> bool:
        """Whether the next recording begins another piece, whatever stands around the two."""
        digest = hashlib.sha256(self.path.encode()).digest()
        return int.from_bytes(digest[:8], "big") % PIECE == 0


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

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of manifests and recordings as they are; another one when anything changes."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    @cached_property
    def pieces(self) -> list[range]:
        """Neighbours that are prepared together, by their places in `recordings`.

        Where one ends is up to the recording there. So where lines are added or taken out, that piece
        changes, and all others stay what they are: of a manifest that is appended to, all but the last.
        """
        found: list[range] = []
        start = 0
        for end, entry in enumerate(self.recordings, start=1):
            if (
                end == len(self.recordings)
                or entry.ends_piece
                or end - start == LARGEST_PIECE
                or self.recordings[end].source != entry.source
            ):
                found.append(range(start, end))
                start = end
        return found

    def members(self, piece: range) -> Sequence[Recording]:
        """The recordings of a piece."""
        return self.recordings[piece.start : piece.stop]

    def identity(self, piece: range, criteria: Criteria) -> str:
        """SHA-256 of all that decides what comes of a piece, whatever listing it stands in."""
        members = self.members(piece)
        source = members[0].source
        folder = self.sources[source].rpartition("/")[0]
        entries = [(entry.path, entry.size, entry.tag, entry.text) for entry in members]
        content = [VERSION, source, folder, criteria.model_dump(), entries]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def part(self, index: int, count: int) -> list[range]:
        """The pieces of part `index` of `count`; all parts have about as many seconds of speech."""

        def seconds(piece: range) -> float:
            return sum(entry.duration for entry in self.members(piece))

        return sorted(sorted(self.pieces, key=seconds)[index::count], key=lambda piece: piece.start)


class Accepted(NamedTuple):
    """A recording that was decoded and fits."""

    member: int
    """Its place in the piece."""
    seconds: float
    sha256: str


class Refused(NamedTuple):
    """A recording that cannot be decoded or does not fit."""

    member: int
    """Its place in the piece."""
    kind: str
    reason: str


class Piece(_Record):
    """Some neighbours in a listing, measured."""

    archive: str
    """Name under which the tar with those that were accepted is stored."""
    sha256: str
    """Of the tar."""
    accepted: tuple[Accepted, ...]
    refused: tuple[Refused, ...]


class Shard(_Record):
    """One part of a corpus, measured."""

    listing: str
    """Fingerprint of the listing that it is a part of."""
    index: int
    pieces: dict[int, Piece]
    """Each by the place of its first recording in the listing."""

    def accepted(self) -> Iterator[tuple[int, Accepted]]:
        """What was accepted, each with its place in the listing."""
        for start, piece in self.pieces.items():
            for entry in piece.accepted:
                yield start + entry.member, entry

    def refused(self) -> Iterator[tuple[int, Refused]]:
        """What was refused, each with its place in the listing."""
        for start, piece in self.pieces.items():
            for entry in piece.refused:
                yield start + entry.member, entry


def measure_piece(
    recordings: Sequence[Recording], folder: Path, criteria: Criteria, workers: int
) -> tuple[list[Accepted], list[Refused]]:
    """Decode and check recordings that lie in `folder`/audio, in `workers` processes.

    Raises:
        ShardError: one cannot be read. It was fetched, so the fault is this machine's, and what is kept
            for later runs must not hold it.
    """
    utterances = [entry.utterance(folder) for entry in recordings]
    members = {utterance.audio_filepath: place for place, utterance in enumerate(utterances)}
    accepted, refused = measure([(entry, folder) for entry in utterances], criteria, workers)
    if unreadable := [refusal.reason for refusal in refused if refusal.kind == UNREADABLE]:
        raise ShardError(f"{len(unreadable)} recordings cannot be read here: {unreadable[0]}")
    return (
        [
            Accepted(
                member=members[found.utterance.audio_filepath],
                seconds=found.utterance.duration,
                sha256=found.audio_sha256,
            )
            for found, _ in accepted
        ],
        [
            Refused(
                member=members[refusal.what.audio_filepath],
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
    # In the listing's order: of equal recordings the first is kept, however many parts there are.
    for place, refused in sorted(chain.from_iterable(shard.refused() for shard in shards)):
        entry = listing.recordings[place]
        refusals.append(
            Refusal(refused.kind, refused.reason, names[entry.source], entry.utterance(output))
        )
    # Where all of a source was refused, its group is empty and not missing.
    measured: dict[SplitName | None, list[Found]] = {None: []}
    if len(listing.sources) > 1:
        measured["test"] = []
    for place, accepted in sorted(chain.from_iterable(shard.accepted() for shard in shards)):
        entry = listing.recordings[place]
        group: SplitName | None = "test" if entry.use == "test" else None
        found = Measured(
            utterance=replace(entry.utterance(output), duration=accepted.seconds),
            declared_duration=entry.duration,
            audio_sha256=accepted.sha256,
        )
        measured.setdefault(group, []).append((found, names[entry.source]))
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
    places = [place for shard in shards for place, _ in (*shard.accepted(), *shard.refused())]
    listed = len(listing.recordings)
    if sorted(places) != list(range(listed)):
        raise ShardError(
            f"the parts {sorted(shard.index for shard in shards)} hold {len(places)} recordings,"
            f" {len(set(places))} of them different; the listing has {listed}"
        )
