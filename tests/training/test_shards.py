"""A corpus prepared in parts is the one that is prepared at once."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from training.prepare import Criteria, PreparationError, PrepareConfig, prepare
from training.shards import (
    AUDIO,
    Listing,
    Recording,
    RejectedLine,
    Shard,
    ShardError,
    join,
    measure_part,
    pack,
    unpack,
)

SPEAKERS = 8
SPLIT = {"train": 0.5, "dev": 0.25, "test": 0.25}


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
        accepted, refused = measure_part(listing.part(index, count), folder, Criteria(), 1)
        shards.append(
            Shard(
                listing=listing.fingerprint,
                index=index,
                archive=f"{index}.tar",
                sha256="",
                accepted=tuple(accepted),
                refused=tuple(refused),
            )
        )
    return shards


def lines(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


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


def test_every_recording_is_in_one_part_and_parts_are_of_a_length(corpus: Path) -> None:
    listing = listing_of(corpus)
    parts = [listing.part(index, 3) for index in range(3)]
    places = [entry.place for part in parts for entry in part]
    assert sorted(places) == sorted(entry.place for entry in listing.recordings)
    seconds = [sum(entry.duration for entry in part) for part in parts]
    assert max(seconds) - min(seconds) < 2.5  # the longest recording


def test_a_part_that_is_missing_twice_there_or_foreign_is_refused(
    corpus: Path, tmp_path: Path
) -> None:
    listing = listing_of(corpus)
    shards = measured(listing, corpus.parent, 2)

    def attempt(parts: list[Shard]) -> None:
        join(listing, parts, tmp_path, split=SPLIT, seed=0, criteria=Criteria())

    with pytest.raises(ShardError, match="hold 8 recordings, 8 of them different; the listing"):
        attempt(shards[:1])
    with pytest.raises(ShardError, match="hold 24 recordings, 16 of them different"):
        attempt([*shards, shards[0]])
    with pytest.raises(ShardError, match=r"parts \[1\] are of another listing"):
        attempt([shards[0], shards[1].model_copy(update={"listing": "0"})])


def test_a_speaker_of_the_test_manifest_must_not_be_trained_on(
    corpus: Path, tmp_path: Path
) -> None:
    listing = listing_of(corpus)
    first, *others = listing.recordings
    tested = first.model_copy(update={"use": "test"})
    listing = listing.model_copy(update={"recordings": (tested, *others)})
    with pytest.raises(PreparationError, match="1 speakers stand in more than one split: 0 in"):
        join(
            listing,
            measured(listing, corpus.parent, 1),
            tmp_path,
            split={"train": 0.8, "dev": 0.2},
            seed=0,
            criteria=Criteria(),
        )


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
