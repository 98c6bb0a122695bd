"""Steps around training: what is ingested, which version a release becomes, what the run tells."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kfp_pipelines import record, steps
from kfp_pipelines.data import DataError, list_speech, prepare_shard, shard_names
from kfp_pipelines.rollout import RollOutError
from store import ModelStore, NotFound, StoreConfig, StoreError, open_objects
from tests.s3_server import S3Server
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


def test_recordings_in_s3_are_listed_prepared_and_stored_by_what_they_are(
    s3: StoreConfig, speech: str
) -> None:
    objects = open_objects(s3)
    listing = list_speech(objects, speech, "", s3)
    assert len(listing.recordings) == 6
    assert [line.line for line in listing.rejected] == [7]
    assert listing.rejected[0].reason == "no such file: 'gone.wav'"
    assert list_speech(objects, speech, "", s3).fingerprint == listing.fingerprint

    name, _ = shard_names(listing, 2)
    shard = prepare_shard(objects, name, Criteria(), 1, s3)
    assert shard.archive in objects.keys("data/")
    assert len(shard.accepted) == 3
    assert prepare_shard(objects, name, Criteria(), 1, s3) == shard


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


def test_a_pod_without_the_gpus_that_it_asked_for_does_not_begin(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(steps, "gpus", lambda: 1)
    steps.check_gpus(1)
    with pytest.raises(steps.StepError, match="asked for 2 GPUs and torch sees 1; is the image"):
        steps.check_gpus(2)
    monkeypatch.setenv(steps.LOCAL_RELEASE, "serving.json")
    steps.check_gpus(2)


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


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"shards": 0}, "data_shards is 0; give at least 1"),
        ({"dev": 0.0}, "data_dev_share is 0.0; give a share between 0 and 1"),
        ({"test": 0.0}, "data_test_share is 0.0; give a share between 0 and 1"),
        ({"dev": 0.6, "test": 0.6}, "data_dev_share 0.6 and data_test_share 0.6 leave nothing"),
    ],
)
def test_what_would_fail_after_hours_is_refused_at_once(
    store: StoreConfig, values: dict[str, float], message: str
) -> None:
    shares = {"dev": values.get("dev", 0.1), "test": values.get("test", 0.1)}
    with pytest.raises(steps.StepError, match=message):
        steps.ingest(store.url, "mine.jsonl", "", shares, int(values.get("shards", 1)), "run")


def test_speech_of_one_speaker_is_refused_before_it_is_prepared(
    store: StoreConfig, tmp_path: Path
) -> None:
    lines = []
    for name in ("a.wav", "b.wav"):
        (tmp_path / name).write_bytes(b"not looked into yet")
        lines.append(json.dumps({"audio_filepath": name, "duration": 1.5, "text": "hello there"}))
    (tmp_path / "all.jsonl").write_text("\n".join(lines) + "\n")
    shares: dict[SplitName, float] = {"dev": 0.1, "test": 0.1}
    with pytest.raises(PreparationError, match="1 speakers cannot be shared among train"):
        steps.ingest(store.url, str(tmp_path / "all.jsonl"), "", shares, 1, "run")


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
