"""Published versions: whole, never overwritten, and told from damaged ones."""

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from store import (
    Conflict,
    Corrupted,
    ModelStore,
    NotFound,
    Release,
    StoreConfig,
    StoreError,
)
from tests.s3_server import S3Server

Publish = Callable[..., Release]
MakeArchive = Callable[..., Path]
WRITERS = 4


def overwrite(store: ModelStore, key: str, data: bytes, tmp_path: Path) -> None:
    """Damage the store behind its back."""
    damaged = tmp_path / "damaged"
    damaged.write_bytes(data)
    store.objects.upload(damaged, key)


def test_a_published_version_is_listed_described_and_fetched(
    store: ModelStore, publish: Publish, make_archive: MakeArchive, tmp_path: Path
) -> None:
    first = publish(store, "v1")
    second = publish(store, "v2", seed=2, parent="v1")

    assert store.versions() == ["v1", "v2"]
    assert store.release("v1") == first and store.release("v2") == second
    assert second.parent == "v1"
    assert second.metrics == {"systems": {"accurate": {"wer": 0.097}}}
    assert (second.data_fingerprint, second.commit) == ("f00d", "40d53ea")

    fetched = store.fetch("v2", tmp_path / "serving")
    assert fetched == tmp_path / "serving" / "asr.mar"
    assert fetched.read_bytes() == make_archive(2).read_bytes()
    assert second.sha256 == hashlib.sha256(fetched.read_bytes()).hexdigest()
    assert [path.name for path in fetched.parent.iterdir()] == ["asr.mar"]


def test_an_empty_store_has_no_versions(store: ModelStore) -> None:
    assert store.versions() == []
    with pytest.raises(NotFound, match="there is no version v1 in .*models/asr"):
        store.release("v1")


def test_a_second_publish_of_a_version_is_refused_and_changes_nothing(
    store: ModelStore, publish: Publish, make_archive: MakeArchive, tmp_path: Path
) -> None:
    first = publish(store, "v1", seed=1)
    for seed in (1, 2):  # the same archive, and another
        with pytest.raises(Conflict, match="v1 is published already"):
            publish(store, "v1", seed=seed)

    assert store.release("v1") == first
    assert store.fetch("v1", tmp_path / "out").read_bytes() == make_archive(1).read_bytes()


@pytest.mark.parametrize("same_archive", [True, False])
def test_of_several_publishes_at_the_same_time_one_wins(
    store: ModelStore,
    publish: Publish,
    make_archive: MakeArchive,
    tmp_path: Path,
    same_archive: bool,
) -> None:
    seeds = [0 if same_archive else number for number in range(WRITERS)]
    for seed in seeds:
        make_archive(seed)
    together = Barrier(WRITERS)

    def attempt(seed: int) -> Release | None:
        together.wait()
        try:
            return publish(store, "v1", seed)
        except Conflict:
            return None

    with ThreadPoolExecutor(WRITERS) as pool:
        won = [release for release in pool.map(attempt, seeds) if release]

    assert len(won) == 1
    assert store.release("v1") == won[0]
    store.fetch("v1", tmp_path / "out")  # the archive is the winner's, or this raises Corrupted


def test_a_publish_that_was_killed_is_repeated_with_the_same_archive_only(
    store: ModelStore, publish: Publish, make_archive: MakeArchive, tmp_path: Path
) -> None:
    store.objects.upload(make_archive(1), "models/asr/v1/asr.mar")  # and there it was killed
    assert store.versions() == []

    with pytest.raises(Conflict, match="another archive"):
        publish(store, "v1", seed=2)
    publish(store, "v1", seed=1)
    assert store.fetch("v1", tmp_path / "out").read_bytes() == make_archive(1).read_bytes()


def test_a_parent_that_was_never_published_is_refused(store: ModelStore, publish: Publish) -> None:
    with pytest.raises(NotFound, match="there is no version v0"):
        publish(store, "v1", parent="v0")
    assert store.versions() == []


@pytest.mark.parametrize(
    "version", ["", "..", "a/b", ".hidden", "production.json", "v 1", "v" * 101]
)
def test_a_name_that_would_leave_its_place_is_no_version(
    store: ModelStore, publish: Publish, version: str
) -> None:
    with pytest.raises(StoreError, match="cannot be a version"):
        publish(store, version)


def test_a_damaged_archive_is_refused_and_what_was_there_before_stays(
    store: ModelStore, publish: Publish, make_archive: MakeArchive, tmp_path: Path
) -> None:
    publish(store, "v1", seed=1)
    publish(store, "v2", seed=2)
    spoilt = bytearray(make_archive(2).read_bytes())
    spoilt[50_000] ^= 1
    overwrite(store, "models/asr/v2/asr.mar", bytes(spoilt), tmp_path)
    serving = store.fetch("v1", tmp_path / "serving")

    with pytest.raises(Corrupted, match=store.release("v2").sha256):
        store.fetch("v2", serving.parent)
    assert serving.read_bytes() == make_archive(1).read_bytes()
    assert [path.name for path in serving.parent.iterdir()] == ["asr.mar"]


def test_a_damaged_description_is_refused(
    store: ModelStore, publish: Publish, tmp_path: Path
) -> None:
    publish(store, "v1")
    overwrite(store, "models/asr/v1/release.json", b'{"version": "v1"}', tmp_path)
    with pytest.raises(Corrupted, match=r"release.json is no release: id: Field required"):
        store.release("v1")


def test_a_description_may_know_more_than_this_program(
    store: ModelStore, publish: Publish, tmp_path: Path
) -> None:
    release = publish(store, "v1")
    newer = release.model_dump_json().replace("{", '{"licence": "MIT", ', 1)
    overwrite(store, "models/asr/v1/release.json", newer.encode(), tmp_path)
    assert store.release("v1") == release


def test_an_archive_that_is_there_already_is_not_fetched_again(
    store: ModelStore, publish: Publish, tmp_path: Path
) -> None:
    publish(store, "v1")
    fetched = store.fetch("v1", tmp_path / "out")
    before = fetched.stat()
    assert store.fetch("v1", tmp_path / "out") == fetched
    assert fetched.stat().st_ino == before.st_ino

    fetched.write_bytes(b"spoilt since")
    store.fetch("v1", tmp_path / "out")
    assert fetched.stat().st_size == before.st_size


def test_metrics_that_json_cannot_hold_are_refused(
    store: ModelStore, make_archive: MakeArchive
) -> None:
    with pytest.raises(StoreError, match="metrics cannot be written as JSON"):
        store.publish(
            make_archive(),
            version="v1",
            metrics={"wer": float("nan")},
            data_fingerprint="f00d",
            commit="40d53ea",
        )
    assert store.versions() == []


def test_a_missing_bucket_is_named(s3: StoreConfig, server: S3Server, publish: Publish) -> None:
    store = ModelStore.open(StoreConfig(url="s3://no-such-bucket/steno"))
    message = f"there is no bucket no-such-bucket at {server.endpoint}"
    with pytest.raises(StoreError, match=message):
        store.versions()
    with pytest.raises(StoreError, match=message):
        store.production()
    with pytest.raises(StoreError, match=message):
        publish(store, "v1")
