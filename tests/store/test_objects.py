"""Plain objects: what training keeps of checkpoints and manifests."""

import hashlib
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from pydantic import ValidationError

from store import Conflict, Corrupted, NotFound, Objects, StoreConfig, StoreError, open_objects
from tests.s3_server import S3Server
from tests.store.conftest import BUCKET

MakeArchive = Callable[..., Path]
MIB = 1 << 20
PARTS = 5 * MIB  # the smallest part that S3 takes


@pytest.fixture
def objects(config: StoreConfig) -> Objects:
    return open_objects(config)


def test_a_file_goes_up_and_comes_back(
    objects: Objects, make_archive: MakeArchive, tmp_path: Path
) -> None:
    source = make_archive()
    sha256 = objects.upload(source, "checkpoints/run-7/state.pt")
    objects.download("checkpoints/run-7/state.pt", tmp_path / "new" / "state.pt", sha256=sha256)
    assert (tmp_path / "new" / "state.pt").read_bytes() == source.read_bytes()
    assert sha256 == hashlib.sha256(source.read_bytes()).hexdigest()


def test_a_checkpoint_is_replaced_by_the_next(
    objects: Objects, make_archive: MakeArchive, tmp_path: Path
) -> None:
    for seed in (1, 2):
        objects.upload(make_archive(seed), "state.pt")
        objects.download("state.pt", tmp_path / "state.pt")
        assert (tmp_path / "state.pt").read_bytes() == make_archive(seed).read_bytes()


def test_a_name_may_have_all_the_length_that_a_file_system_takes(
    objects: Objects, make_archive: MakeArchive, tmp_path: Path
) -> None:
    key = "audio/" + "n" * 251 + ".wav"
    objects.upload(make_archive(), key)
    objects.download(key, tmp_path / key)
    assert (tmp_path / key).read_bytes() == make_archive().read_bytes()


def test_an_empty_file_is_a_file(
    objects: Objects, make_archive: MakeArchive, tmp_path: Path
) -> None:
    objects.upload(make_archive(size=0), "empty")
    objects.download("empty", tmp_path / "empty")
    assert (tmp_path / "empty").read_bytes() == b""
    assert objects.read("empty").data == b""


def test_keys_are_listed_by_prefix(objects: Objects, make_archive: MakeArchive) -> None:
    assert objects.keys() == []
    for key in ("b/2", "a/1", "a/10", "ab"):
        objects.upload(make_archive(size=10), key)
    assert objects.keys() == ["a/1", "a/10", "ab", "b/2"]
    assert objects.keys("a/") == ["a/1", "a/10"]
    assert objects.keys("c/") == []


def test_what_is_not_there_is_named(objects: Objects, tmp_path: Path) -> None:
    for ask in (objects.read, objects.stat, lambda key: objects.download(key, tmp_path / "x")):
        with pytest.raises(NotFound, match=f"there is no {objects.location('none/here')}"):
            ask("none/here")
    assert not (tmp_path / "x").exists()


def test_what_has_been_replaced_since_it_was_listed_is_not_fetched(
    objects: Objects, make_archive: MakeArchive, tmp_path: Path
) -> None:
    objects.upload(make_archive(1), "clip.wav")
    listed = objects.stats()["clip.wav"]
    objects.download("clip.wav", tmp_path / "x", stat=listed)
    objects.upload(make_archive(2), "clip.wav")
    with pytest.raises(Conflict):
        objects.download("clip.wav", tmp_path / "x", stat=listed)
    assert (tmp_path / "x").read_bytes() == make_archive(1).read_bytes()


@pytest.mark.parametrize(
    "key", ["../x", "/etc/passwd", "a/../b", "a//b", "a/", "", ".lock", "a/.b"]
)
def test_a_key_cannot_leave_the_store(
    objects: Objects, make_archive: MakeArchive, key: str
) -> None:
    with pytest.raises(StoreError, match="is no key"):
        objects.upload(make_archive(), key)
    with pytest.raises(StoreError, match="is no key"):
        objects.read(key)


def test_bytes_that_are_not_the_expected_ones_are_refused_and_removed(
    objects: Objects, make_archive: MakeArchive, tmp_path: Path
) -> None:
    objects.upload(make_archive(), "state.pt")
    with pytest.raises(Corrupted, match=f"and not {'0' * 64}"):
        objects.download("state.pt", tmp_path / "out" / "state.pt", sha256="0" * 64)
    assert list((tmp_path / "out").iterdir()) == []


def test_s3_notes_the_digest_and_a_download_is_held_to_it(
    s3: StoreConfig, server: S3Server, make_archive: MakeArchive, tmp_path: Path
) -> None:
    objects = open_objects(s3)
    sha256 = objects.upload(make_archive(1), "state.pt")
    server.client().put_object(
        Bucket=BUCKET,
        Key=s3.prefix + "state.pt",
        Body=make_archive(2).read_bytes(),
        Metadata={"sha256": sha256},
    )
    with pytest.raises(Corrupted, match=sha256):
        objects.download("state.pt", tmp_path / "state.pt")


def test_swap_writes_only_over_what_was_read(objects: Objects) -> None:
    objects.swap("pointer", b"first", None)
    first = objects.read("pointer")
    with pytest.raises(Conflict, match="pointer was written by somebody else"):
        objects.swap("pointer", b"second", None)
    objects.swap("pointer", b"second", first.tag)
    with pytest.raises(Conflict):
        objects.swap("pointer", b"third", first.tag)
    with pytest.raises(Conflict):
        objects.swap("nothing here", b"x", first.tag)
    assert objects.read("pointer").data == b"second"
    assert objects.keys() == ["pointer"]


def count_up(config: StoreConfig, turns: int, together: Barrier) -> None:
    """Add one to a number `turns` times, among others who do the same."""
    objects = open_objects(config)
    together.wait()
    done = 0
    while done < turns:
        before = objects.read("count")
        number = int(before.data.split()[0]) + 1
        try:
            objects.swap("count", f"{number} {os.getpid()}".encode(), before.tag)
            done += 1
        except Conflict:
            continue


@pytest.mark.slow
def test_no_swap_is_lost_among_processes(config: StoreConfig) -> None:
    objects = open_objects(config)
    objects.swap("count", b"0", None)
    context = multiprocessing.get_context("spawn")
    together = context.Barrier(3)
    workers = [context.Process(target=count_up, args=(config, 40, together)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert objects.read("count").data.split()[0] == b"120"


def test_what_is_replaced_while_it_is_read_is_not_mixed(
    objects: Objects, make_archive: MakeArchive
) -> None:
    objects.upload(make_archive(1), "state.pt")
    before = objects.stat("state.pt")
    objects.upload(make_archive(2), "state.pt")
    with pytest.raises(Conflict):
        list(objects.stream("state.pt", before, start=50_000))


def test_a_large_file_goes_up_in_parts_each_with_its_checksum(
    s3: StoreConfig, server: S3Server, make_archive: MakeArchive, tmp_path: Path
) -> None:
    objects = open_objects(s3.model_copy(update={"part_bytes": PARTS}))
    source = make_archive(size=12 * MIB)
    sha256 = objects.upload(source, "large", create=True)

    found = server.client().head_object(
        Bucket=BUCKET, Key=s3.prefix + "large", ChecksumMode="ENABLED"
    )
    parts = [source.read_bytes()[at : at + PARTS] for at in range(0, 12 * MIB, PARTS)]
    of_parts = hashlib.md5(b"".join(hashlib.md5(part).digest() for part in parts)).hexdigest()
    assert found["ETag"] == f'"{of_parts}-3"'
    assert found["ChecksumSHA256"].endswith("-3")

    objects.download("large", tmp_path / "large", sha256=sha256)
    with pytest.raises(Conflict):
        objects.upload(make_archive(2, size=12 * MIB), "large", create=True)
    uploads = server.client().list_multipart_uploads(Bucket=BUCKET, Prefix=s3.prefix)
    assert uploads.get("Uploads", []) == []  # the refused one left nothing to pay for


@pytest.mark.parametrize("settings", [("AES256", None), ("aws:kms", "steno-key")])
def test_what_is_written_is_encrypted_as_configured(
    s3: StoreConfig,
    server: S3Server,
    make_archive: MakeArchive,
    tmp_path: Path,
    settings: tuple[str, str | None],
) -> None:
    encryption, kms_key = settings
    config = StoreConfig(
        url=s3.url,
        encryption=encryption,  # type: ignore[arg-type]
        kms_key=kms_key,
        part_bytes=PARTS,
    )
    objects = open_objects(config)
    objects.swap("small", b"1", None)
    objects.swap("small", b"2", objects.read("small").tag)
    sha256 = objects.upload(make_archive(size=6 * MIB), "large", create=True)
    for key in ("small", "large"):
        found = server.client().head_object(Bucket=BUCKET, Key=s3.prefix + key)
        assert found["ServerSideEncryption"] == encryption
        assert found.get("SSEKMSKeyId") == kms_key
    assert objects.read("small").data == b"2"
    objects.download("large", tmp_path / "large", sha256=sha256)


def test_downloads_to_the_same_place_do_not_spoil_each_other(
    objects: Objects, make_archive: MakeArchive, tmp_path: Path
) -> None:
    sha256 = objects.upload(make_archive(size=3 * MIB), "state.pt")
    target = tmp_path / "out" / "state.pt"
    with ThreadPoolExecutor(4) as pool:
        for done in [
            pool.submit(objects.download, "state.pt", target, sha256=sha256) for _ in range(4)
        ]:
            done.result()
    assert target.read_bytes() == make_archive(size=3 * MIB).read_bytes()
    assert [path.name for path in target.parent.iterdir()] == ["state.pt"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"url": "https://host/bucket"}, "url must be s3://bucket/prefix or a folder"),
        ({"url": ""}, "url must be s3://bucket/prefix or a folder"),
        ({"url": "s3://Bad_Bucket/x"}, "names the bucket 'Bad_Bucket'"),
        ({"url": "s3://b"}, "names the bucket 'b'"),
        ({"url": "s3://models", "endpoint": "minio:9000"}, "endpoint must be a URL"),
        ({"url": "s3://models", "kms_key": "k"}, "kms_key needs encryption aws:kms"),
        ({"url": "s3://models", "secret": "k"}, "Extra inputs are not permitted"),
        ({"url": "s3://models", "part_bytes": MIB}, "greater than or equal to 5242880"),
    ],
)
def test_a_wrong_configuration_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        StoreConfig.model_validate(values)


@pytest.mark.parametrize(
    ("url", "bucket", "prefix"),
    [("s3://models", "models", ""), ("s3://models/a/b/", "models", "a/b/")],
)
def test_a_url_names_bucket_and_prefix(url: str, bucket: str, prefix: str) -> None:
    config = StoreConfig(url=url)
    assert (config.is_s3, config.bucket, config.prefix) == (True, bucket, prefix)
