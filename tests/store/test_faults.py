"""Busy, slow and cut connections: what was asked for is done, once, and what came is whole."""

import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from store import (
    Conflict,
    Corrupted,
    Denied,
    ModelStore,
    NotFound,
    Release,
    StoreConfig,
    StoreError,
    Unavailable,
    open_objects,
    patience,
    patiently,
)
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
    asked = [item.headers.get("range") for item in gets]
    assert asked == [None, f"bytes={2 * MIB}-", f"bytes={3 * MIB}-"]


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
    publish(shaky, "v1")
    proxy.faults = [Fault("GET", "asr.mar", flip=50_000)]
    with pytest.raises(Corrupted, match=r"asr.mar does not have the checksum"):
        shaky.fetch("v1", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    shaky.fetch("v1", tmp_path / "out")


def test_what_a_list_names_is_compared_with_the_server_s_checksum(
    s3: StoreConfig, proxy: FaultyProxy, tmp_path: Path
) -> None:
    """A list tells no SHA-256."""
    (tmp_path / "clip.wav").write_bytes(bytes(100_000))
    objects = open_objects(s3.model_copy(update={"endpoint": proxy.endpoint}))
    objects.upload(tmp_path / "clip.wav", "clips/1.wav")
    stat = objects.stats()["clips/1.wav"]
    assert stat.sha256 is None
    proxy.faults = [Fault("GET", "clips/1.wav", flip=50_000)]
    with pytest.raises(Corrupted, match=r"clips/1.wav does not have the checksum"):
        objects.download("clips/1.wav", tmp_path / "out" / "1.wav", stat=stat)
    assert list((tmp_path / "out").iterdir()) == []
    objects.download("clips/1.wav", tmp_path / "out" / "1.wav", stat=stat)
    assert (tmp_path / "out" / "1.wav").read_bytes() == bytes(100_000)


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


@pytest.mark.parametrize("answer", ["503 SlowDown", "429 TooManyRequests"])
def test_a_server_that_stays_busy_is_given_up_with_its_answer(
    s3: StoreConfig, proxy: FaultyProxy, answer: str
) -> None:
    store = ModelStore.open(s3.model_copy(update={"endpoint": proxy.endpoint, "attempts": 2}))
    proxy.faults = [Fault("GET", "production.json", times=9, status=int(answer[:3]))]
    with pytest.raises(Unavailable, match=rf"answered {answer} .*\(after 2 attempts\)"):
        store.production()
    assert len(proxy.requests) == 2


def test_an_error_tells_how_often_was_asked(
    s3: StoreConfig, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where most requests fail, botocore repeats fewer and fewer, and in the end none."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    objects = open_objects(s3.model_copy(update={"endpoint": proxy.endpoint}))
    proxy.faults = [Fault("GET", "state.pt", times=1_000, status=503)]
    told = []
    for _ in range(30):
        with pytest.raises(Unavailable) as caught:
            objects.read("state.pt")
        found = re.search(r"\(after (\d+) attempts?\)", str(caught.value))
        assert found is not None
        told.append(int(found[1]))
    assert (told[0], told[-1]) == (6, 1)
    assert sum(told) == len(proxy.requests)


def test_many_at_once_are_patient_with_a_server_that_refuses_every_second_request(
    s3: StoreConfig, proxy: FaultyProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "FIRST_PAUSE_SECONDS", 0.01)
    source = tmp_path / "source"
    source.write_bytes(b"speech")
    direct = open_objects(s3)
    keys = [f"{number:03}.wav" for number in range(100)]
    for key in keys:
        direct.upload(source, key)
    stats = direct.stats()
    # Without attempts of its own, as when botocore's quota of them is empty.
    hasty = open_objects(s3.model_copy(update={"endpoint": proxy.endpoint, "attempts": 1}))
    proxy.faults = [Fault("GET", ".wav", times=1_000, every=2, status=503)]

    def fetch(key: str) -> bytes:
        patiently(lambda: hasty.download(key, tmp_path / key, stat=stats[key]))
        return (tmp_path / key).read_bytes()

    with ThreadPoolExecutor(16) as pool:
        assert set(pool.map(fetch, keys)) == {b"speech"}
    assert {request.method for request in proxy.requests} == {"GET"}  # nothing is asked twice
    assert len(proxy.requests) in (2 * len(keys) - 1, 2 * len(keys))


def test_patience_has_an_end_and_is_for_a_store_that_is_away_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(patience, "FIRST_PAUSE_SECONDS", 0.01)
    asked: list[type[StoreError]] = []

    def ask(kind: type[StoreError]) -> None:
        asked.append(kind)
        raise kind("it said no")

    with pytest.raises(Unavailable):
        patiently(partial(ask, Unavailable), seconds=0.1)
    assert len(asked) > 1
    for kind in (NotFound, Denied, Conflict):
        asked.clear()
        with pytest.raises(kind):
            patiently(partial(ask, kind))
        assert len(asked) == 1


def test_a_server_that_is_not_there_is_named(s3: StoreConfig, proxy: FaultyProxy) -> None:
    proxy.close()
    store = ModelStore.open(s3.model_copy(update={"endpoint": proxy.endpoint, "attempts": 2}))
    with pytest.raises(Unavailable, match=f"{proxy.endpoint} could not be asked, in at most 2"):
        store.production()
