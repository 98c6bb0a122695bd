"""Speech on its way from manifests in S3 to the pods that prepare, train and evaluate.

    data/<listing>/listing.json        what the manifests named when the run began
    data/<listing>/<index>-of-<count>-<criteria>.tar    the recordings of one part

Everything under `data/` is named by what it holds, so that it is never overwritten by anything else.
"""

import hashlib
import os
import re
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pydantic import ValidationError

from store import Objects, StoreConfig, StoreError, open_objects
from training.manifest import read_manifest
from training.prepare import Criteria
from training.shards import (
    AUDIO,
    Listing,
    Recording,
    RejectedLine,
    Shard,
    measure_part,
    pack,
    unpack,
)

# Requests under way at once: small files wait for the network and not for the processor.
DOWNLOADS = 16
SHARD = re.compile(r"(?P<listing>[0-9a-f]{64})/(?P<index>\d+)/(?P<count>\d+)")


class DataError(ValueError):
    """The manifests cannot be worked with."""


def scratch() -> Path:
    """The folder for what a step needs only while it runs: STENO_SCRATCH, else the system's."""
    return Path(os.environ.get("STENO_SCRATCH", tempfile.gettempdir()))


def list_speech(
    objects: Objects, manifest: str, test_manifest: str, settings: StoreConfig
) -> Listing:
    """Read the manifests, look that every recording is there, and note all in the store.

    Args:
        objects: the store's.
        manifest: address of NeMo's JSON Lines, s3://bucket/path or a file.
        test_manifest: another one, whose recordings are for test alone; empty: none.
        settings: how S3 is spoken to.

    Raises:
        DataError: nothing can be used.
        StoreError: a manifest cannot be read.
    """
    recordings: list[Recording] = []
    rejected: list[RejectedLine] = []
    sources = [address for address in (manifest, test_manifest) if address]
    for number, address in enumerate(sources):
        found, refused = _read_source(number, address, settings)
        recordings += found
        rejected += refused
        if not found:
            reasons = "; ".join(f"line {line.line}: {line.reason}" for line in refused[:5])
            raise DataError(f"{address} names no recording that can be used. {reasons}")
    listing = Listing(
        sources=tuple(sources), recordings=tuple(recordings), rejected=tuple(rejected)
    )
    with tempfile.TemporaryDirectory(dir=scratch()) as folder:
        path = Path(folder) / "listing.json"
        path.write_text(listing.model_dump_json(), encoding="utf-8")
        objects.upload(path, _listing_key(listing.fingerprint))
    return listing


def _read_source(
    number: int, address: str, settings: StoreConfig
) -> tuple[list[Recording], list[RejectedLine]]:
    """Read one manifest: its recordings and its unusable lines."""
    objects, name = _source(address, settings)
    stats = objects.stats()
    with tempfile.TemporaryDirectory(dir=scratch()) as temporary:
        folder = Path(temporary)
        objects.download(name, folder / name)
        utterances, rejected = read_manifest(
            folder / name, lambda path: _relative(path, folder) in stats
        )
    recordings = [
        Recording(
            source=number,
            path=path,
            tag=stats[path].tag,
            use="split" if number == 0 else "test",
            duration=utterance.duration,
            text=utterance.text,
            speaker=utterance.speaker,
            label=utterance.label,
            written=utterance.written,
            group=utterance.group,
        )
        for utterance in utterances
        if (path := _relative(utterance.audio_filepath, folder))
    ]
    # A reason may name a place in the temporary folder, another one each time.
    lines = [
        RejectedLine(
            source=number,
            line=line.line,
            reason=line.reason.replace(f"{folder}/", ""),
            content=line.content,
        )
        for line in rejected
    ]
    return recordings, lines


def _relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path, folder)).as_posix()


def _source(address: str, settings: StoreConfig) -> tuple[Objects, str]:
    """Split a manifest's address into the objects beside it and its name among them."""
    parent, slash, name = address.rpartition("/")
    wrong = f"{address!r} is no manifest; give s3://bucket/path/manifest.jsonl or a file"
    if not name:
        raise DataError(wrong)
    try:
        config = StoreConfig(**{**settings.model_dump(), "url": parent or slash or "."})
    except ValidationError:
        raise DataError(wrong) from None
    return open_objects(config), name


def shard_names(listing: Listing, count: int) -> list[str]:
    """Names of the parts that `prepare_shard` takes; never more parts than recordings."""
    parts = min(count, len(listing.recordings))
    return [f"{listing.fingerprint}/{index}/{parts}" for index in range(parts)]


def read_listing(objects: Objects, fingerprint: str) -> Listing:
    """Return a listing that `list_speech` noted."""
    return Listing.model_validate_json(objects.read(_listing_key(fingerprint)).data)


def prepare_shard(
    objects: Objects, name: str, criteria: Criteria, workers: int, settings: StoreConfig
) -> Shard:
    """Fetch the recordings of a part, check them, and store those that fit as one tar.

    Raises:
        DataError: the name is none.
        StoreError: a recording has changed since it was listed, or cannot be fetched.
    """
    match = SHARD.fullmatch(name)
    if match is None:
        raise DataError(f"{name!r} is no part; one looks like <listing>/0/4")
    index, count = int(match["index"]), int(match["count"])
    listing = read_listing(objects, match["listing"])
    recordings = listing.part(index, count)
    with tempfile.TemporaryDirectory(dir=scratch()) as temporary:
        folder = Path(temporary)
        _fetch_recordings(listing, recordings, folder, settings)
        accepted, refused = measure_part(recordings, folder, criteria, workers)
        tar = folder / "part.tar"
        pack([entry.recording for entry in accepted], folder, tar)
        chosen = hashlib.sha256(criteria.model_dump_json().encode()).hexdigest()[:12]
        key = f"data/{listing.fingerprint}/{index}-of-{count}-{chosen}.tar"
        sha256 = objects.upload(tar, key)
    return Shard(
        listing=listing.fingerprint,
        index=index,
        archive=key,
        sha256=sha256,
        accepted=tuple(accepted),
        refused=tuple(refused),
    )


def _fetch_recordings(
    listing: Listing, recordings: Sequence[Recording], folder: Path, settings: StoreConfig
) -> None:
    sources = [_source(address, settings)[0] for address in listing.sources]

    def fetch(entry: Recording) -> None:
        objects = sources[entry.source]
        stat = objects.stat(entry.path)
        if stat.tag != entry.tag:
            raise StoreError(
                f"{objects.location(entry.path)} has changed since the run began; start another"
            )
        objects.download(entry.path, folder / AUDIO / entry.place)

    with ThreadPoolExecutor(DOWNLOADS) as pool:
        for _ in pool.map(fetch, recordings):
            pass


def write_archives(path: Path, shards: Iterable[Shard]) -> None:
    """Note, beside the manifests of a prepared corpus, where its recordings are."""
    lines = (f"{shard.sha256}  {shard.archive}\n" for shard in shards)
    path.write_text("".join(lines), encoding="utf-8")


ARCHIVES = "archives.txt"


def fetch_prepared(
    objects: Objects, prepared: Path, folder: Path, splits: Sequence[str]
) -> dict[str, Path]:
    """Bring the recordings of some splits to `folder`, and their manifests beside them.

    Args:
        prepared: the folder that the step `merge` wrote.

    Returns:
        The manifest of each split.
    """
    folder.mkdir(parents=True, exist_ok=True)
    manifests: dict[str, Path] = {}
    wanted: set[str] = set()
    for split in splits:
        utterances, _ = read_manifest(prepared / f"{split}.jsonl", lambda path: True)
        wanted |= {_relative(u.audio_filepath, prepared / AUDIO) for u in utterances}
        manifests[split] = folder / f"{split}.jsonl"
        manifests[split].write_bytes((prepared / f"{split}.jsonl").read_bytes())
    for line in (prepared / ARCHIVES).read_text(encoding="utf-8").splitlines():
        sha256, key = line.split("  ", 1)
        tar = folder / "part.tar"
        objects.download(key, tar, sha256=sha256)
        unpack(tar, folder, wanted)
        tar.unlink()
    return manifests


def _listing_key(fingerprint: str) -> str:
    return f"data/{fingerprint}/listing.json"
