"""Steps around training: what is ingested, which version a release becomes, what the run tells."""

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from kfp_pipelines import data, record, steps
from kfp_pipelines.data import DataError, list_speech, prepare_shard, shard_names
from kfp_pipelines.rollout import RollOutError
from store import (
    ModelStore,
    NotFound,
    Stat,
    StoreConfig,
    StoreError,
    open_objects,
    patience,
)
from store.folder import FolderObjects
from tests.s3_server import S3Server
from tests.store.faulty_proxy import Fault, FaultyProxy
from training import shards
from training.corpus_statistics import SplitName
from training.prepare import Criteria, PreparationError

FIXTURES = Path(__file__).parents[1] / "fixtures"
BUCKET = "steno"


@pytest.fixture
def speech(s3: StoreConfig, server: S3Server) -> str:
    """The fixtures in S3, with a line whose recording is missing; the manifest's address."""
    folder = s3.prefix.strip("/") + "-speech"
    client = server.client()
    for path in FIXTURES.iterdir():
        client.upload_file(str(path), BUCKET, f"{folder}/{path.name}")
    lines = (FIXTURES / "manifest.jsonl").read_text()
    lines += json.dumps({"audio_filepath": "gone.wav", "duration": 1.0, "text": "gone"}) + "\n"
    client.put_object(Bucket=BUCKET, Key=f"{folder}/manifest.jsonl", Body=lines.encode())
    return f"s3://{BUCKET}/{folder}/manifest.jsonl"


def test_what_a_pod_cannot_reach_is_told_in_the_users_words(
    s3: StoreConfig, tmp_path: Path
) -> None:
    manifest = tmp_path / "lists" / "m.jsonl"
    manifest.parent.mkdir()
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    lines = [
        {"audio_filepath": path, "duration": 1.0, "text": "some words"}
        for path in ("../a.wav", "/corpus/a.wav", "s3://bucket/a.wav", "a.wav")
    ]
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(DataError) as error:
        list_speech(open_objects(s3), str(manifest), "", s3)
    _, *reasons = str(error.value).split("line ")
    for number, reason in enumerate(reasons[:2], start=1):
        assert reason.startswith(f"{number}: audio_filepath lies outside the manifest's folder")
    assert reasons[2].startswith("3: audio_filepath is an address")
    assert reasons[3] == "4: no such file: 'a.wav'"


def test_recordings_in_s3_are_listed_prepared_and_stored_by_what_they_are(
    s3: StoreConfig, speech: str
) -> None:
    objects = open_objects(s3)
    listing = list_speech(objects, speech, "", s3)
    assert len(listing.recordings) == 6
    assert [line.line for line in listing.rejected] == [7]
    assert listing.rejected[0].reason == "no such file: 'gone.wav'"
    assert list_speech(objects, speech, "", s3).fingerprint == listing.fingerprint

    (name,) = shard_names(listing, 2)  # six recordings are one piece
    shard = prepare_shard(objects, name, Criteria(), 1, s3)
    (piece,) = shard.pieces.values()
    assert objects.stat(piece.archive).sha256 == piece.sha256
    assert len(piece.accepted) == 6
    assert prepare_shard(objects, name, Criteria(), 1, s3) == shard


@pytest.fixture
def single_recordings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each recording is a piece."""
    monkeypatch.setattr(shards, "PIECE", 1)


@pytest.mark.usefixtures("single_recordings")
def test_what_was_prepared_before_is_found_and_not_prepared_again(
    s3: StoreConfig, speech: str, server: S3Server, capsys: pytest.CaptureFixture[str]
) -> None:
    objects, client = open_objects(s3), server.client()
    folder = speech.removeprefix(f"s3://{BUCKET}/").removesuffix("manifest.jsonl")
    first = list_speech(objects, speech, "", s3)
    before = [prepare_shard(objects, name, Criteria(), 1, s3) for name in shard_names(first, 2)]
    assert [len(shard.pieces) for shard in before] == [3, 3]
    known = {start: piece for shard in before for start, piece in shard.pieces.items()}
    assert "prepared before" not in capsys.readouterr().out

    # A line is appended, and the store has lost a tar.
    client.copy_object(
        Bucket=BUCKET, Key=f"{folder}gone.wav", CopySource=f"{BUCKET}/{folder}short.wav"
    )
    client.delete_object(Bucket=BUCKET, Key=s3.prefix + known[1].archive)
    listing = list_speech(objects, speech, "", s3)
    (name,) = shard_names(listing, 1)
    shard = prepare_shard(objects, name, Criteria(), 1, s3)
    assert {start: piece for start, piece in shard.pieces.items() if start < 6} == known
    assert capsys.readouterr().out.count("prepared before") == 5
    assert all(objects.stat(piece.archive) for piece in shard.pieces.values())


@pytest.mark.usefixtures("single_recordings")
def test_what_other_code_prepares_takes_the_place_of_nothing(
    s3: StoreConfig, speech: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run of a former image, or one whose Merge is cached, counts on what it prepared."""
    objects = open_objects(s3)
    listing = list_speech(objects, speech, "", s3)
    (name,) = shard_names(listing, 1)
    before = prepare_shard(objects, name, Criteria(), 1, s3)
    monkeypatch.setattr(shards, "VERSION", shards.VERSION + 1)
    monkeypatch.setattr(data, "measure_piece", lambda recordings, *_: ([], []))
    after = prepare_shard(objects, name, Criteria(), 1, s3)
    assert [*after.accepted()] == []
    for piece in before.pieces.values():
        objects.download(piece.archive, tmp_path / "tar", sha256=piece.sha256)


@pytest.mark.usefixtures("single_recordings")
def test_an_attempt_that_was_ended_leaves_what_it_had_prepared(
    s3: StoreConfig,
    speech: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    objects = open_objects(s3)
    (name,) = shard_names(list_speech(objects, speech, "", s3), 1)
    measured = []

    def measure(*given: Any) -> Any:
        if len(measured) == 4:
            raise KeyboardInterrupt
        measured.append(given)
        return shards.measure_piece(*given)

    monkeypatch.setattr(data, "measure_piece", measure)
    with pytest.raises(KeyboardInterrupt):
        prepare_shard(objects, name, Criteria(), 1, s3)
    monkeypatch.setattr(data, "measure_piece", shards.measure_piece)
    capsys.readouterr()
    assert len([*prepare_shard(objects, name, Criteria(), 1, s3).accepted()]) == 6
    assert capsys.readouterr().out.count("prepared before") == 4


def test_a_store_that_refuses_every_second_request_is_waited_for(
    s3: StoreConfig, speech: str, server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "FIRST_PAUSE_SECONDS", 0.01)
    with FaultyProxy(server.port) as proxy:
        # Without attempts of its own, as when botocore's quota of them is empty.
        settings = s3.model_copy(update={"endpoint": proxy.endpoint, "attempts": 1})
        objects = open_objects(settings)
        methods = ("GET", "HEAD", "PUT")
        proxy.faults = [Fault(method, "", times=1_000, every=2, status=503) for method in methods]
        listing = list_speech(objects, speech, "", settings)
        (name,) = shard_names(listing, 1)
        assert len([*prepare_shard(objects, name, Criteria(), 1, settings).accepted()]) == 6


def test_only_the_folder_that_a_manifest_names_is_listed(
    tmp_path: Path, store: StoreConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A manifest may lie at the root of a bucket with millions of other objects."""
    asked = []

    def stats(self: FolderObjects, prefix: str = "") -> dict[str, Stat]:
        asked.append(prefix)
        return listed(self, prefix)

    listed = FolderObjects.stats
    monkeypatch.setattr(FolderObjects, "stats", stats)
    for names, prefix in (
        (["speech/a/1.wav", "speech/b/2.wav"], "speech/"),
        (["speech/a/1.wav", "../3.wav"], "speech/a/"),
        (["speech/a/1.wav", "2.wav"], ""),
        (["speech/a/1.wav", "speech/.takes/2.wav"], "speech/"),
    ):
        asked.clear()
        lines = [{"audio_filepath": name, "duration": 1.5, "text": "hello"} for name in names]
        for name in names:
            (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "in" / name).write_bytes(b"not looked into yet")
        (tmp_path / "in" / "all.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
        listing = list_speech(open_objects(store), str(tmp_path / "in" / "all.jsonl"), "", store)
        assert asked == [prefix]
        found = [recording.path for recording in listing.recordings]
        assert found == [name for name in names if not name.startswith("..") and "/." not in name]


def test_another_recording_under_the_same_name_is_another_listing(
    s3: StoreConfig, speech: str, server: S3Server
) -> None:
    objects = open_objects(s3)
    before = list_speech(objects, speech, "", s3)
    key = speech.removeprefix(f"s3://{BUCKET}/").replace("manifest.jsonl", "short.wav")
    server.client().put_object(Bucket=BUCKET, Key=key, Body=b"another recording")
    after = list_speech(objects, speech, "", s3)
    assert after.fingerprint != before.fingerprint
    (name,) = shard_names(before, 1)
    with pytest.raises(StoreError, match=r"short.wav has changed since the run began"):
        prepare_shard(objects, name, Criteria(), 1, s3)


def test_a_manifest_that_cannot_be_used_ends_the_run_with_the_reason(
    store: StoreConfig, tmp_path: Path
) -> None:
    objects = open_objects(store)
    with pytest.raises(NotFound, match=r"there is no .*none.jsonl"):
        list_speech(objects, str(tmp_path / "none.jsonl"), "", store)
    (tmp_path / "bad.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match="names no recording that can be used. line 1: lacks"):
        list_speech(objects, str(tmp_path / "bad.jsonl"), "", store)
    with pytest.raises(DataError, match="'https://host/m.jsonl' is no manifest"):
        list_speech(objects, "https://host/m.jsonl", "", store)


def test_the_start_is_what_serves_or_what_is_shipped(
    store: StoreConfig, models: ModelStore, tmp_path: Path
) -> None:
    assert steps.choose_models(store.url, "production", "run") == ("v1", "v1")
    assert steps.choose_models(store.url, "v2", "run") == ("v2", "v1")
    assert steps.choose_models(str(tmp_path / "empty"), "production", "run") == ("shipped", "")
    with pytest.raises(NotFound, match="there is no version v9"):
        steps.choose_models(store.url, "v9", "run")


def publish(store: StoreConfig, content: bytes, evaluation: Path, folder: Path) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "asr.mar").write_bytes(content)
    return steps.publish(store.url, folder, evaluation, "f00d", "shipped", "run")


def test_versions_are_counted_and_a_repeated_publish_finds_its_own(
    store: StoreConfig, models: ModelStore, evaluation: Path, tmp_path: Path
) -> None:
    assert publish(store, b"new", evaluation, tmp_path / "mar") == "v3"
    assert publish(store, b"new", evaluation, tmp_path / "mar") == "v3"
    release = models.release("v3")
    assert release.data_fingerprint == "f00d"
    assert release.metrics["systems"]["accurate"]["wer"]["rate"] == 0.1


def test_an_archive_that_an_interrupted_publish_left_is_passed_by(
    store: StoreConfig, models: ModelStore, evaluation: Path, tmp_path: Path
) -> None:
    left = tmp_path / "left.mar"
    left.write_bytes(b"of a run that was ended")
    models.objects.upload(left, "models/asr/v3/asr.mar", create=True)
    assert publish(store, b"new", evaluation, tmp_path / "mar") == "v4"
    assert publish(store, left.read_bytes(), evaluation, tmp_path / "again") == "v5"


def test_publishes_at_the_same_time_become_versions_of_their_own(
    store: StoreConfig, models: ModelStore, evaluation: Path, tmp_path: Path
) -> None:
    def attempt(number: int) -> str:
        return publish(store, bytes([number]), evaluation, tmp_path / f"mar-{number}")

    with ThreadPoolExecutor(4) as pool:
        versions = list(pool.map(attempt, range(4)))
    assert sorted(versions) == ["v3", "v4", "v5", "v6"]
    for number, version in enumerate(versions):
        fetched = models.fetch(version, tmp_path / version)
        assert fetched.read_bytes() == bytes([number])


def test_the_summary_tells_each_step_in_order_and_reaches_the_webhook(
    store: StoreConfig, webhook: tuple[str, list[bytes]]
) -> None:
    objects = open_objects(store)
    record.note(objects, "run-1", "gate", "Not deployed: WER lower by the margin: no.")
    record.note(objects, "run-1", "ingest", "6 recordings")
    record.note(objects, "run-2", "ingest", "of another run")
    text = steps.notify(store.url, "run-1", "SUCCEEDED", "", webhook[0])
    assert text.index("Not deployed") < text.index("6 recordings")
    assert "of another run" not in text
    assert json.loads(webhook[1][0])["text"] == text


def test_a_run_that_failed_at_once_has_a_summary_too(store: StoreConfig) -> None:
    text = steps.notify(store.url, "run-1", "FAILED", "ingest ended with 1", "")
    assert "The run failed: ingest ended with 1. Production was not changed." in text
    assert "No step got to an end." in text


def test_a_webhook_that_is_away_does_no_harm_and_stays_secret(
    store: StoreConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    steps.notify(store.url, "run-1", "SUCCEEDED", "", "http://127.0.0.1:1/hooks/secret")
    said = capsys.readouterr().out
    assert "not delivered: the webhook could not be reached (ConnectionError)" in said
    assert "secret" not in said


def test_a_store_that_cannot_be_read_is_told_to_the_webhook(
    webhook: tuple[str, list[bytes]],
) -> None:
    """Then a message is wanted most."""
    text = steps.notify("https://models", "run-1", "FAILED", "ingest ended with 1", webhook[0])
    assert "FAILED: ingest ended with 1" in text
    assert "What the steps found cannot be read" in text
    assert "not changed" not in text
    assert json.loads(webhook[1][0])["text"] == text


def manifest_of(path: Path, *lines: dict[str, str]) -> Path:
    """Write a manifest, and for each line a file beside it."""
    entries = []
    for number, line in enumerate(lines):
        audio = path.with_name(f"{path.stem}-{number}.wav")
        audio.write_bytes(b"not looked into yet")
        entry = {"audio_filepath": audio.name, "duration": 1.5, "text": "Hello there.", **line}
        entries.append(json.dumps(entry) + "\n")
    path.write_text("".join(entries))
    return path


def ingest(
    store: StoreConfig,
    manifest: Path,
    test_manifest: Path | str = "",
    shares: Mapping[SplitName, float] = MappingProxyType({"dev": 0.1, "test": 0.1}),
    shards: int = 1,
    max_unusable: float = 0.1,
    punctuate: bool = False,
) -> list[str]:
    return steps.ingest(
        store.url,
        str(manifest),
        str(test_manifest),
        shares,
        shards,
        max_unusable,
        punctuate,
        "run",
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"shards": 0}, "data_shards is 0; give at least 1"),
        ({"dev": 0.0}, "data_dev_share is 0.0; give a share between 0 and 1"),
        ({"max_unusable": 1.5}, "data_max_unusable is 1.5; give a share from 0 to 1"),
        ({"test": 0.0}, "data_test_share is 0.0; give a share between 0 and 1"),
        ({"dev": 0.6, "test": 0.6}, "data_dev_share 0.6 and data_test_share 0.6 leave nothing"),
    ],
)
def test_what_would_fail_after_hours_is_refused_at_once(
    store: StoreConfig, values: dict[str, float], message: str
) -> None:
    shares: dict[SplitName, float] = {
        "dev": values.get("dev", 0.1),
        "test": values.get("test", 0.1),
    }
    with pytest.raises(steps.StepError, match=message):
        ingest(
            store,
            Path("mine.jsonl"),
            shares=shares,
            shards=int(values.get("shards", 1)),
            max_unusable=values.get("max_unusable", 0.1),
        )


def test_speech_of_one_speaker_is_refused_before_it_is_prepared(
    store: StoreConfig, tmp_path: Path
) -> None:
    manifest = manifest_of(tmp_path / "all.jsonl", {}, {})
    with pytest.raises(PreparationError, match="1 speakers cannot be shared among train"):
        ingest(store, manifest)


def test_a_speaker_in_both_manifests_is_refused_before_anything_is_prepared(
    store: StoreConfig, tmp_path: Path
) -> None:
    speakers = [{"speaker": name} for name in ("anna", "bert", "cleo")]
    manifest = manifest_of(tmp_path / "all.jsonl", *speakers, {})
    tests = manifest_of(tmp_path / "test.jsonl", {"speaker": "dora"}, {"speaker": "bert"}, {})
    both = "1 speakers stand in more than one split: bert in data_manifest and data_test_manifest"
    with pytest.raises(PreparationError, match=both):
        ingest(store, manifest, tests)


def test_manifests_whose_recordings_have_vanished_end_the_run(
    store: StoreConfig, tmp_path: Path
) -> None:
    speakers = [{"speaker": str(number)} for number in range(20)]
    manifest = manifest_of(tmp_path / "all.jsonl", *speakers)
    for number in range(2):
        (tmp_path / f"all-{number}.wav").unlink()
    assert len(ingest(store, manifest)) == 1
    for number in range(2, 17):
        (tmp_path / f"all-{number}.wav").unlink()
    told = "17 of the 20 lines of .*all.jsonl cannot be used, 85.0%, and data_max_unusable is 0.1. "
    with pytest.raises(DataError, match=told + "The first: line 1: no such file: 'all-0.wav'; "):
        ingest(store, manifest)
    assert len(ingest(store, manifest, max_unusable=0.9)) == 1


def test_recordings_that_cannot_be_decoded_end_the_run_too(
    store: StoreConfig, tmp_path: Path
) -> None:
    """Each line has its recording, and no recording is one."""
    speakers = [{"speaker": str(number)} for number in range(4)]
    (name,) = ingest(store, manifest_of(tmp_path / "all.jsonl", *speakers))
    steps.prepare(store.url, name, {}, tmp_path / "part")
    shares: dict[SplitName, float] = {"dev": 0.1, "test": 0.1}
    told = "4 of the 4 lines of .*all.jsonl cannot be used, .* The first: all-0.wav: "
    with pytest.raises(DataError, match=told):
        steps.merge(store.url, [tmp_path / "part"], {}, shares, 0, 0.5, tmp_path / "out")


@pytest.mark.parametrize(
    ("texts", "punctuate", "warned"),
    [
        (["hello there", "good morning to you"], False, True),
        (["HELLO THERE", "GOOD MORNING TO YOU"], False, True),
        (["hello there.", "good morning, to you."], False, True),
        (["hello there", "good morning to you"], True, False),
        (["Hello there.", "Good morning to you!"], False, False),
    ],
)
def test_texts_of_which_the_decoder_would_unlearn_punctuation_are_told(
    store: StoreConfig, tmp_path: Path, texts: list[str], punctuate: bool, warned: bool
) -> None:
    lines = [{"text": text, "speaker": str(number)} for number, text in enumerate(texts * 2)]
    ingest(store, manifest_of(tmp_path / "all.jsonl", *lines), punctuate=punctuate)
    text = steps.notify(store.url, "run", "SUCCEEDED", "", "")
    assert ("Beware: the texts have" in text) == warned
    assert ("Set train_punctuate to true" in text) == warned


def test_what_was_taken_back_is_not_put_in_again(
    store: StoreConfig, models: ModelStore, tmp_path: Path
) -> None:
    """Kubeflow repeats a step that failed."""
    record.note(
        models.objects, "run-1", "roll-out", "rolled back: wrong text.", state="rolled back"
    )
    before = models.production()
    with pytest.raises(RollOutError, match=r"wrong text\. This run does not try again"):
        steps.put_into_production(store.url, "v2", "v1", tmp_path, {}, "run-1")
    assert models.production() == before
