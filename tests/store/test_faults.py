"""Busy, slow and cut connections: what was asked for is done, once, and what came is whole."""

from collections.abc import Callable
from pathlib import Path

import pytest

from store import Conflict, Corrupted, ModelStore, Release, StoreConfig, StoreError, Unavailable
from tests.store.faulty_proxy import Fault, FaultyProxy

Publish = Callable[..., Release]
MakeArchive = Callable[..., Path]
MIB = 1 << 20
SIZE = 6 * MIB  # two parts
READ_TIMEOUT = 2.0
# Every request of a publish, a promotion and a fetch.
REQUESTS = [
    ("GET", "v1/release.json"),
    ("POST", "asr.mar?uploads"),
    ("PUT", "partNumber=1"),
    ("PUT", "partNumber=2"),
    ("POST", "asr.mar?uploadId="),
    ("PUT", "v1/release.json"),
    ("HEAD", "asr.mar"),
    ("GET", "production.json"),
    ("PUT", "production.json"),
    ("GET", "asr.mar"),
]


@pytest.fixture
def shaky(s3: StoreConfig, proxy: FaultyProxy) -> ModelStore:
    """A store behind the proxy."""
    settings = {"endpoint": proxy.endpoint, "part_bytes": 5 * MIB, "read_timeout": READ_TIMEOUT}
    return ModelStore.open(s3.model_copy(update=settings))


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param({"status": 500}, id="500"),
        pytest.param({"status": 503}, id="503"),
        pytest.param({"pause": 1.5 * READ_TIMEOUT}, id="too slow"),
        pytest.param({"cut_request": True}, id="request cut"),
        pytest.param({"lose_answer": True}, id="answer lost"),
    ],
)
@pytest.mark.slow
def test_each_request_may_fail_once_and_nothing_is_lost(
    shaky: ModelStore,
    proxy: FaultyProxy,
    publish: Publish,
    make_archive: MakeArchive,
    tmp_path: Path,
    fault: dict[str, object],
) -> None:
    proxy.faults = [Fault(method, target, **fault) for method, target in REQUESTS]  # type: ignore[arg-type]

    release = publish(shaky, "v1", size=SIZE)
    moved = shaky.promote("v1", expected=None)
    fetched = shaky.fetch("v1", tmp_path / "out")

    assert [fault.times for fault in proxy.faults] == [0] * len(REQUESTS)  # each one has struck
    assert fetched.read_bytes() == make_archive(size=SIZE).read_bytes()
    assert shaky.release("v1") == release
    assert shaky.production() == moved


def test_a_server_that_is_busy_for_a_while_is_waited_for(
    shaky: ModelStore, proxy: FaultyProxy, publish: Publish
) -> None:
    proxy.faults = [Fault("PUT", "release.json", times=4, status=503)]
    publish(shaky, "v1")
    assert shaky.versions() == ["v1"]


def test_a_slow_answer_within_the_limit_is_waited_for(
    shaky: ModelStore, proxy: FaultyProxy, publish: Publish
) -> None:
    proxy.faults = [Fault("PUT", "release.json", pause=READ_TIMEOUT / 2)]
    publish(shaky, "v1")
    puts = [item.target for item in proxy.requests if item.method == "PUT"]
    assert sum("release.json" in target for target in puts) == 1


def test_a_download_that_is_cut_goes_on_where_it_was_cut(
    shaky: ModelStore,
    proxy: FaultyProxy,
    publish: Publish,
    make_archive: MakeArchive,
    tmp_path: Path,
) -> None:
    publish(shaky, "v1", size=SIZE)
    cuts = (2 * MIB, 1 * MIB)
    proxy.faults = [Fault("GET", "asr.mar", cut_answer=size) for size in cuts]

    fetched = shaky.fetch("v1", tmp_path / "out")

    assert fetched.read_bytes() == make_archive(size=SIZE).read_bytes()
    gets = [item for item in proxy.requests if item.method == "GET" and "asr.mar" in item.target]
    asked = [item.headers["range"] for item in gets]
    assert asked == ["bytes=0-", f"bytes={2 * MIB}-", f"bytes={3 * MIB}-"]


def test_a_download_that_was_given_up_is_gone_on_with_by_the_next(
    s3: StoreConfig,
    proxy: FaultyProxy,
    publish: Publish,
    make_archive: MakeArchive,
    tmp_path: Path,
) -> None:
    publish(ModelStore.open(s3), "v1", size=SIZE)
    hasty = ModelStore.open(s3.model_copy(update={"endpoint": proxy.endpoint, "attempts": 1}))
    proxy.faults = [Fault("GET", "asr.mar", cut_answer=2 * MIB)]
    with pytest.raises(Unavailable, match=f"broke off 1 times at byte {2 * MIB} of {SIZE}"):
        hasty.fetch("v1", tmp_path / "out")
    assert not (tmp_path / "out" / "asr.mar").exists()

    fetched = hasty.fetch("v1", tmp_path / "out")

    assert proxy.requests[-1].headers["range"] == f"bytes={2 * MIB}-"
    assert fetched.read_bytes() == make_archive(size=SIZE).read_bytes()
    assert [path.name for path in fetched.parent.iterdir()] == ["asr.mar"]


def test_an_archive_that_is_spoilt_on_the_way_is_refused_and_comes_whole_the_next_time(
    shaky: ModelStore, proxy: FaultyProxy, publish: Publish, tmp_path: Path
) -> None:
    release = publish(shaky, "v1")
    proxy.faults = [Fault("GET", "asr.mar", flip=50_000)]
    with pytest.raises(Corrupted, match=release.sha256):
        shaky.fetch("v1", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    shaky.fetch("v1", tmp_path / "out")


def test_a_document_that_is_spoilt_on_the_way_is_refused(
    shaky: ModelStore, proxy: FaultyProxy, publish: Publish
) -> None:
    publish(shaky, "v1")
    proxy.faults = [Fault("GET", "release.json", flip=40)]
    with pytest.raises(Corrupted, match="release.json does not have the checksum"):
        shaky.release("v1")


def test_a_document_that_is_cut_is_read_again(
    shaky: ModelStore, proxy: FaultyProxy, publish: Publish
) -> None:
    release = publish(shaky, "v1")
    proxy.faults = [Fault("GET", "release.json", cut_answer=20)]
    assert shaky.release("v1") == release


def test_an_upload_that_is_spoilt_on_the_way_is_refused_and_can_be_repeated(
    shaky: ModelStore, proxy: FaultyProxy, publish: Publish, tmp_path: Path
) -> None:
    proxy.faults = [Fault("PUT", "asr.mar", flip_request=50_000)]
    with pytest.raises(StoreError, match="asr.mar: .* answered 400 "):
        publish(shaky, "v1")
    assert shaky.versions() == []
    publish(shaky, "v1")
    shaky.fetch("v1", tmp_path / "out")


def test_a_writer_that_aws_turns_away_for_another_is_told_so_and_can_try_again(
    shaky: ModelStore, proxy: FaultyProxy, publish: Publish
) -> None:
    publish(shaky, "v1")
    proxy.faults = [Fault("PUT", "production.json", status=409)]
    with pytest.raises(Conflict, match="somebody else moved production"):
        shaky.promote("v1", expected=None)
    assert shaky.production() is None
    shaky.promote("v1", expected=None)


def test_a_server_that_stays_busy_is_given_up_with_its_answer(
    s3: StoreConfig, proxy: FaultyProxy
) -> None:
    store = ModelStore.open(s3.model_copy(update={"endpoint": proxy.endpoint, "attempts": 2}))
    proxy.faults = [Fault("GET", "production.json", times=9, status=503)]
    with pytest.raises(Unavailable, match=r"answered 503 SlowDown .*\(after 2 attempts\)"):
        store.production()
    assert len(proxy.requests) == 2


def test_a_server_that_is_not_there_is_named(s3: StoreConfig, proxy: FaultyProxy) -> None:
    proxy.close()
    store = ModelStore.open(s3.model_copy(update={"endpoint": proxy.endpoint, "attempts": 2}))
    with pytest.raises(Unavailable, match=f"{proxy.endpoint} could not be asked, in 2 attempts"):
        store.production()
