"""A corpus prepared in parts is the one that is prepared at once."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from training import shards as module
from training.prepare import Criteria, PreparationError, PrepareConfig, prepare
from training.shards import (
    AUDIO,
    LARGEST_PIECE,
    PIECE,
    Accepted,
    Listing,
    Piece,
    Recording,
    Refused,
    RejectedLine,
    Shard,
    ShardError,
    join,
    measure_piece,
    pack,
    unpack,
)

SPEAKERS = 8
SPLIT = {"train": 0.5, "dev": 0.25, "test": 0.25}


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """The corpus is four pieces."""
    monkeypatch.setattr(module, "PIECE", 4)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Two recordings of each speaker; one is too short, one stands twice, one is no audio."""
    folder = tmp_path / "corpus"
    audio = folder / AUDIO / "0"
    audio.mkdir(parents=True)
    noise = np.random.default_rng(0)
    lines = []
    for number in range(2 * SPEAKERS):
        name = f"{number:02}.wav"
        seconds = 0.2 if number == 5 else 1.0 + 0.1 * number
        soundfile.write(audio / name, noise.uniform(-0.1, 0.1, int(seconds * 16_000)), 16_000)
        lines.append(
            {
                "audio_filepath": f"{AUDIO}/0/{name}",
                "duration": seconds,
                "text": "some words",
                "speaker": str(number % SPEAKERS),
            }
        )
    (audio / "07.wav").write_bytes(b"no sound at all")
    (audio / "09.wav").write_bytes((audio / "01.wav").read_bytes())
    manifest = folder / "all.jsonl"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return manifest


def listing_of(manifest: Path) -> Listing:
    recordings = [
        Recording(
            source=0,
            path=Path(line["audio_filepath"]).name,
            size=1,
            tag="1",
            use="split",
            duration=line["duration"],
            text=line["text"],
            speaker=line["speaker"],
            label=None,
            written=None,
            group=None,
        )
        for line in map(json.loads, manifest.read_text().splitlines())
    ]
    rejected = (RejectedLine(source=0, line=17, reason="text is empty", content="{}"),)
    return Listing(sources=("s3://b/all.jsonl",), recordings=tuple(recordings), rejected=rejected)


def measured(listing: Listing, folder: Path, count: int) -> list[Shard]:
    shards = []
    for index in range(count):
        pieces = {}
        for piece in listing.part(index, count):
            accepted, refused = measure_piece(listing.members(piece), folder, Criteria(), 1)
            pieces[piece.start] = Piece(
                archive="1.tar", sha256="", accepted=tuple(accepted), refused=tuple(refused)
            )
        shard = Shard(listing=listing.fingerprint, index=index, pieces=pieces)
        shards.append(Shard.model_validate_json(shard.model_dump_json()))  # as Merge gets it
    return shards


def many(count: int, source: int = 0, first: int = 0) -> list[Recording]:
    return [
        Recording(
            source=source,
            path=f"{number:06}.wav",
            size=1,
            tag="1",
            use="split" if source == 0 else "test",
            duration=5.0,
            text="some words",
            speaker=None,
            label=None,
            written=None,
            group=None,
        )
        for number in range(first, first + count)
    ]


def listing_with(*recordings: Recording) -> Listing:
    sources = ("s3://b/all.jsonl", "s3://b/test.jsonl")
    return Listing(sources=sources, recordings=recordings, rejected=())


def identities(listing: Listing, criteria: Criteria | None = None) -> set[str]:
    return {listing.identity(piece, criteria or Criteria()) for piece in listing.pieces}


def lines(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("count", [1, 3])
def test_parts_joined_are_what_one_process_prepares(
    corpus: Path, tmp_path: Path, count: int
) -> None:
    whole, joined = tmp_path / "whole", tmp_path / "joined"
    prepare(PrepareConfig(output=whole, input=(corpus,), split=SPLIT, workers=1))
    joined.mkdir()
    listing = listing_of(corpus)
    join(
        listing,
        measured(listing, corpus.parent, count),
        joined,
        split=SPLIT,
        seed=0,
        criteria=Criteria(),
    )
    for split in SPLIT:
        one, other = lines(whole / f"{split}.jsonl"), lines(joined / f"{split}.jsonl")
        assert [Path(line["audio_filepath"]).name for line in one] == [
            Path(line["audio_filepath"]).name for line in other
        ]
        assert other[0]["audio_filepath"].startswith("audio/0/")
    one, other = (json.loads((f / "statistics.json").read_text()) for f in (whole, joined))
    assert one["fingerprint"] == other["fingerprint"]
    kinds = {line["kind"] for line in lines(joined / "rejected.jsonl")}
    assert kinds == {"unusable line", "too short", "undecodable", "duplicate audio"}


def test_every_recording_is_in_one_part_and_parts_are_of_a_length() -> None:
    listing = listing_with(*many(100_000))
    parts = [listing.part(index, 3) for index in range(3)]
    places = [place for part in parts for piece in part for place in piece]
    assert sorted(places) == [*range(100_000)]
    sizes = [sum(map(len, part)) for part in parts]
    assert max(sizes) - min(sizes) < LARGEST_PIECE


def test_recordings_that_are_appended_change_the_last_piece_alone() -> None:
    """What is retrained each week must not be prepared each week."""
    before = listing_with(*many(50_000))
    after = listing_with(*many(51_000))
    assert len(before.pieces) == pytest.approx(50_000 / PIECE, rel=0.3)
    assert max(map(len, before.pieces)) <= LARGEST_PIECE
    assert len(identities(before) - identities(after)) <= 1
    assert len(identities(after) - identities(before)) <= 4


def test_a_line_that_is_added_taken_out_or_changed_changes_its_piece_alone() -> None:
    recordings = many(20_000)
    before = identities(listing_with(*recordings))
    (new,) = many(1, first=70_000)
    changed = replace(recordings[10_000], tag="2")
    for others in (
        [*recordings[:10_000], new, *recordings[10_000:]],
        [*recordings[:10_000], *recordings[10_001:]],
        [*recordings[:10_000], changed, *recordings[10_001:]],
    ):
        # Where the line itself ended a piece, two have become one or one two.
        assert len(identities(listing_with(*others)) - before) in (1, 2)


def test_no_piece_holds_recordings_of_two_manifests() -> None:
    """So that a test manifest is found again whatever is appended to the other."""
    tested = many(700, source=1)
    listing = listing_with(*many(3_000), *tested)
    for piece in listing.pieces:
        assert len({entry.source for entry in listing.members(piece)}) == 1
    assert identities(listing_with(*many(3_500), *tested)) >= {
        listing.identity(piece, Criteria())
        for piece in listing.pieces
        if listing.recordings[piece.start].source == 1
    }


def test_a_piece_is_another_when_anything_changes_that_its_outcome_depends_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, *others = many(5)
    same = identities(listing_with(first, *others))
    for values in ({"speaker": "anna"}, {"duration": 3.0}, {"group": "north"}):
        assert identities(listing_with(replace(first, **values), *others)) == same
    for values in ({"path": "x.wav"}, {"size": 2}, {"tag": "2"}, {"text": "more words"}):
        assert identities(listing_with(replace(first, **values), *others)) != same
    assert identities(listing_with(first, *others), Criteria(max_seconds=20)) != same
    elsewhere = Listing(sources=("s3://c/all.jsonl",), recordings=(first, *others), rejected=())
    assert identities(elsewhere) != same
    monkeypatch.setattr(module, "VERSION", module.VERSION + 1)
    assert identities(listing_with(first, *others)) != same


@pytest.mark.usefixtures("small_pieces")
def test_a_part_that_is_missing_twice_there_or_foreign_is_refused(
    corpus: Path, tmp_path: Path
) -> None:
    listing = listing_of(corpus)
    shards = measured(listing, corpus.parent, 2)

    def attempt(parts: list[Shard]) -> None:
        join(listing, parts, tmp_path, split=SPLIT, seed=0, criteria=Criteria())

    held = len([*shards[0].accepted(), *shards[0].refused()])
    with pytest.raises(ShardError, match=f"hold {held} recordings, {held} of them different; the"):
        attempt(shards[:1])
    with pytest.raises(ShardError, match=f"hold {16 + held} recordings, 16 of them different"):
        attempt([*shards, shards[0]])
    with pytest.raises(ShardError, match=r"parts \[1\] are of another listing"):
        attempt([shards[0], shards[1].model_copy(update={"listing": "0"})])


def test_a_fault_of_this_machine_is_not_kept_as_one_of_the_recording(corpus: Path) -> None:
    """What is measured of a piece is taken over by all later runs."""
    (corpus.parent / AUDIO / "0" / "03.wav").unlink()
    with pytest.raises(ShardError, match=r"1 recordings cannot be read here: .*03\.wav"):
        measured(listing_of(corpus), corpus.parent, 1)


def test_a_speaker_of_the_test_manifest_must_not_be_trained_on(
    corpus: Path, tmp_path: Path
) -> None:
    listing = listing_of(corpus)
    first, *others = listing.recordings
    listing = Listing(
        sources=listing.sources,
        recordings=(replace(first, use="test"), *others),
        rejected=listing.rejected,
    )
    with pytest.raises(PreparationError, match="1 speakers stand in more than one split: 0 in"):
        join(
            listing,
            measured(listing, corpus.parent, 1),
            tmp_path,
            split={"train": 0.8, "dev": 0.2},
            seed=0,
            criteria=Criteria(),
        )


@pytest.mark.parametrize(("source", "group"), [(0, ""), (1, " for test")])
def test_a_manifest_of_which_all_is_refused_is_told_before_anything_is_trained(
    tmp_path: Path, source: int, group: str
) -> None:
    listing = listing_with(*many(4), *many(2, source=1, first=4))
    pieces = {}
    for piece in listing.pieces:
        members = range(len(piece))
        bad = listing.recordings[piece.start].source == source
        sound = [Accepted(n, 5.0, f"{piece.start + n}") for n in members if not bad]
        refused = [Refused(n, "too long", "it lasts 31 s") for n in members if bad]
        pieces[piece.start] = Piece(
            archive="1.tar", sha256="", accepted=tuple(sound), refused=tuple(refused)
        )
    shard = Shard(listing=listing.fingerprint, index=0, pieces=pieces)
    with pytest.raises(
        PreparationError, match=f"no utterance is left{group}; . lines were refused"
    ):
        join(listing, [shard], tmp_path, split=SPLIT, seed=0, criteria=Criteria())
    assert "31 s" in (tmp_path / "rejected.jsonl").read_text()


def test_recordings_come_out_of_the_tar_as_they_were(corpus: Path, tmp_path: Path) -> None:
    listing = listing_of(corpus)
    tars = [tmp_path / "one.tar", tmp_path / "two.tar"]
    pack(listing.recordings, corpus.parent, tars[0])
    pack(listing.recordings[::-1], corpus.parent, tars[1])
    assert tars[0].read_bytes() == tars[1].read_bytes()

    unpack(tars[0], tmp_path / "out", {"0/03.wav"})
    (found,) = (path for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert found == tmp_path / "out" / AUDIO / "0" / "03.wav"
    assert found.read_bytes() == (corpus.parent / AUDIO / "0" / "03.wav").read_bytes()
