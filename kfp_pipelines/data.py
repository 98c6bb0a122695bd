"""Speech on its way from manifests in S3 to the pods that prepare, train and evaluate.

    data/listings/<fingerprint>.json   what the manifests named when a run began
    data/pieces/<identity>.json        what came of some neighbours in a listing, or in several
    data/archives/<sha256>.tar         the recordings of a piece that were accepted

Listings and tars are named by what they hold: nothing else ever takes their place. A piece is named by
what was to be measured: a later run that finds it there, with its tar, does not measure it again.
"""

import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Lock

from pydantic import ValidationError

from store import (
    Conflict,
    NotFound,
    Objects,
    Stat,
    StoreConfig,
    StoreError,
    open_objects,
    patiently,
)
from store.objects import sha256_of
from training.files import relative
from training.manifest import NO_FILE, read_manifest
from training.prepare import Criteria
from training.shards import (
    AUDIO,
    Listing,
    Piece,
    Recording,
    RejectedLine,
    Shard,
    measure_piece,
    pack,
    unpack,
)

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
    _upload_text(objects, listing.model_dump_json(), _listing_key(listing.fingerprint))
    return listing


def check_usable(listing: Listing, most: float, unreadable: Iterable[tuple[int, str]] = ()) -> None:
    """Refuse manifests of which too much cannot be used: then most likely something else is wrong.

    Args:
        most: share of a manifest's lines that may be unusable.
        unreadable: places in the listing whose recordings cannot be decoded, with the reasons.

    Raises:
        DataError: naming the first of the lines.
    """
    lost = [(line.source, f"line {line.line}: {line.reason}") for line in listing.rejected]
    for place, reason in unreadable:
        entry = listing.recordings[place]
        lost.append((entry.source, f"{entry.path}: {reason}"))
    count = Counter(source for source, _ in lost)
    lines = Counter(entry.source for entry in listing.recordings)
    lines.update(line.source for line in listing.rejected)
    for source, number in count.items():
        if number > most * lines[source]:
            first = "; ".join([told for where, told in lost if where == source][:5])
            raise DataError(
                f"{number} of the {lines[source]} lines of {listing.sources[source]} cannot be used,"
                f" {number / lines[source]:.1%}, and data_max_unusable is {most:g}. The first: {first}"
            )


def _read_source(
    number: int, address: str, settings: StoreConfig
) -> tuple[list[Recording], list[RejectedLine]]:
    """Read one manifest: its recordings and its unusable lines."""
    objects, name = _source(address, settings)
    with tempfile.TemporaryDirectory(dir=scratch()) as temporary:
        folder = Path(temporary)
        patiently(lambda: objects.download(name, folder / name))
        stats = _stats(objects, folder / name)
        utterances, rejected = read_manifest(
            folder / name, lambda path: relative(path, folder) in stats
        )
    recordings = [
        Recording(
            source=number,
            path=path,
            size=stats[path].size,
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
        if (path := relative(utterance.audio_filepath, folder))
    ]
    lines = [
        RejectedLine(
            source=number,
            line=line.line,
            reason=_reason(line.reason, folder),
            content=line.content,
        )
        for line in rejected
    ]
    return recordings, lines


def _reason(reason: str, folder: Path) -> str:
    """A reason as somebody reads it who knows nothing of the temporary folder, another one each time."""
    if reason.startswith(NO_FILE) and f"{folder}/" not in reason:
        return (
            "audio_filepath lies outside the manifest's folder (paths are relative to it): put the "
            "manifest above its recordings"
        )
    if f"'{folder}/s3:/" in reason:
        return "audio_filepath is an address; give the path from the manifest's folder"
    return reason.replace(f"{folder}/", "")


def _stats(objects: Objects, manifest: Path) -> Mapping[str, Stat]:
    """What is there of the recordings that a manifest names.

    Beside it there may be much else: at the root of a bucket, all that the bucket holds. What has a part
    that begins with a dot is no key that could be fetched, and so not there.
    """
    folders: set[str] = set()

    def note(path: Path) -> bool:
        folders.add(relative(path.parent, manifest.parent))
        return True

    read_manifest(manifest, note)
    below = [folder for folder in folders if not folder.startswith("..")]
    if not below:
        return {}
    common = os.path.commonpath(below)
    found = patiently(lambda: objects.stats(f"{common}/" if common else ""))
    return {key: stat for key, stat in found.items() if "/." not in f"/{key}"}


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
    """Names of the parts that `prepare_shard` takes; never more parts than pieces."""
    parts = min(count, len(listing.pieces))
    return [f"{listing.fingerprint}/{index}/{parts}" for index in range(parts)]


def read_listing(objects: Objects, fingerprint: str) -> Listing:
    """Return a listing that `list_speech` noted."""
    data = patiently(lambda: objects.read(_listing_key(fingerprint))).data
    return Listing.model_validate_json(data)


def prepare_shard(
    objects: Objects, name: str, criteria: Criteria, workers: int, settings: StoreConfig
) -> Shard:
    """Fetch the recordings of a part, check them, and store those that fit, piece by piece.

    Pieces that an earlier run or an earlier attempt has measured are taken over.

    Raises:
        DataError: the name is none.
        StoreError: a recording has changed since it was listed, or cannot be fetched.
    """
    match = SHARD.fullmatch(name)
    if match is None:
        raise DataError(f"{name!r} is no part; one looks like <listing>/0/4")
    index, count = int(match["index"]), int(match["count"])
    listing = read_listing(objects, match["listing"])
    sources = [_source(address, settings)[0] for address in listing.sources]
    pieces: dict[int, Piece] = {}
    part = listing.part(index, count)
    for number, piece in enumerate(part, start=1):
        key = f"data/pieces/{listing.identity(piece, criteria)}.json"
        found = _known_piece(objects, key)
        how = "prepared before"
        if found is None:
            members = listing.members(piece)
            with tempfile.TemporaryDirectory(dir=scratch()) as temporary:
                folder = Path(temporary)
                _fetch(sources[members[0].source], members, folder, settings.connections)
                found = _prepare_piece(objects, members, folder, criteria, workers)
            _upload_text(objects, found.model_dump_json(), key)
            how = f"{len(found.accepted)} accepted, {len(found.refused)} refused"
        pieces[piece.start] = found
        print(f"piece {number} of {len(part)}: {how}", flush=True)
    return Shard(listing=match["listing"], index=index, pieces=pieces)


def _known_piece(objects: Objects, key: str) -> Piece | None:
    """What was measured before, if its recordings are still there."""
    try:
        found = Piece.model_validate_json(patiently(lambda: objects.read(key)).data)
        patiently(lambda: objects.stat(found.archive))
    except NotFound:
        return None
    return found


def _prepare_piece(
    objects: Objects,
    recordings: Sequence[Recording],
    folder: Path,
    criteria: Criteria,
    workers: int,
) -> Piece:
    """Check recordings that lie in `folder`, and store those that fit."""
    accepted, refused = measure_piece(recordings, folder, criteria, workers)
    tar = folder / "piece.tar"
    pack([recordings[entry.member] for entry in accepted], folder, tar)
    sha256 = sha256_of(tar)
    archive = f"data/archives/{sha256}.tar"
    with suppress(Conflict):  # the very same is there
        patiently(lambda: objects.upload(tar, archive, create=True))
    return Piece(archive=archive, sha256=sha256, accepted=tuple(accepted), refused=tuple(refused))


def _fetch(objects: Objects, recordings: Sequence[Recording], folder: Path, threads: int) -> None:
    """Bring recordings as they were when they were listed; a busy store is waited for."""

    def fetch(entry: Recording) -> None:
        path, stat = folder / AUDIO / entry.place, Stat(entry.size, entry.tag)
        try:
            patiently(lambda: objects.download(entry.path, path, stat=stat))
        except Conflict:
            raise StoreError(
                f"{objects.location(entry.path)} has changed since the run began; start another"
            ) from None

    # Small files wait for the network and not for the processor.
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(fetch, recordings):
            pass


def write_archives(path: Path, listing: Listing, shards: Iterable[Shard]) -> None:
    """Note, beside the manifests of a prepared corpus, where its recordings are.

    A line tells which of the listing's manifests they are of, and the tar's SHA-256 and name. However
    many parts there were, the lines are the same: the training is named by them.
    """
    pieces = {start: piece for shard in shards for start, piece in shard.pieces.items()}
    lines = [
        f"{listing.recordings[start].source} {piece.sha256} {piece.archive}\n"
        for start, piece in sorted(pieces.items())
        if piece.accepted
    ]
    path.write_text("".join(lines), encoding="utf-8")


ARCHIVES = "archives.txt"
TARS_AT_ONCE = 4  # each takes its size of the scratch disk beside what is unpacked


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
        wanted |= {relative(u.audio_filepath, prepared / AUDIO) for u in utterances}
        manifests[split] = folder / f"{split}.jsonl"
        manifests[split].write_bytes((prepared / f"{split}.jsonl").read_bytes())
    sources = {place.partition("/")[0] for place in wanted}
    unpacking = Lock()  # tarfile makes folders as if nobody else did

    def bring(line: str) -> None:
        source, sha256, key = line.split(" ", 2)
        if source in sources:
            tar = folder / f"{sha256}.tar"
            patiently(lambda: objects.download(key, tar, sha256=sha256))
            with unpacking:
                unpack(tar, folder, wanted)
            tar.unlink()

    # One connection to S3 is slower than a disk.
    with ThreadPoolExecutor(TARS_AT_ONCE) as pool:
        for _ in pool.map(bring, (prepared / ARCHIVES).read_text(encoding="utf-8").splitlines()):
            pass
    return manifests


def _listing_key(fingerprint: str) -> str:
    return f"data/listings/{fingerprint}.json"


def _upload_text(objects: Objects, text: str, key: str) -> None:
    with tempfile.TemporaryDirectory(dir=scratch()) as folder:
        path = Path(folder) / "text"
        path.write_text(text, encoding="utf-8")
        patiently(lambda: objects.upload(path, key))
