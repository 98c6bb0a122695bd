"""The init container's program, against a real S3 server and through a faulty connection."""

import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from handler.fetch import ARCHIVE, fetch, main
from handler.pod_key import KEY as POD_KEY
from handler.served import RECORD
from store import ModelStore, StoreConfig, StoreError
from tests.s3_server import S3Server
from tests.store.faulty_proxy import Fault, FaultyProxy
from training.package import ROOT

BUCKET = "models"
KEY = "steno/models/asr/v7/asr.mar"
SETTINGS = yaml.safe_load((ROOT / "handler" / "model-config.yaml").read_text())


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with S3Server() as running:
        running.create_bucket(BUCKET)
        yield running


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What passes for an archive: settings, and two megabytes."""
    path = tmp_path_factory.mktemp("archive") / "asr.mar"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("model-config.yaml", yaml.safe_dump(SETTINGS))
        file.writestr("checkpoint/model.safetensors", bytes(range(256)) * 8192)
    return path


@pytest.fixture
def store(server: S3Server, archive: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelStore]:
    """A store with v6 and v7, of which v7 is in production; empty again afterwards."""
    for name, value in {**server.environment, "STENO_STORE": f"s3://{BUCKET}/steno"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("STENO_VERSION", raising=False)
    models = ModelStore.open(StoreConfig(url=f"s3://{BUCKET}/steno"))
    for version in ("v6", "v7"):
        models.publish(archive, version=version, metrics={}, data_fingerprint="f", commit="c")
    models.promote("v7", expected=None)
    yield models
    client = server.client()
    for item in client.list_objects_v2(Bucket=BUCKET)["Contents"]:
        client.delete_object(Bucket=BUCKET, Key=item["Key"])


def served(folder: Path) -> dict[str, object]:
    return dict(json.loads((folder / RECORD).read_text()))


def assert_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], *words: str, arguments: tuple[str, ...] = ()
) -> None:
    """The program fails with these words, and no file is there that a server could load."""
    assert main(["--output", str(folder), *arguments]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ") and all(word in said for word in words), said
    assert_nothing_to_load(folder)


def assert_nothing_to_load(folder: Path) -> None:
    assert not {ARCHIVE, RECORD} & {path.name for path in folder.iterdir()}


def test_the_version_in_production_is_put_in_place(store: ModelStore, tmp_path: Path) -> None:
    assert main(["--output", str(tmp_path)]) == 0
    sha256 = store.release("v7").sha256
    assert served(tmp_path) == {"version": "v7", "sha256": sha256, "pinned": False}
    assert sorted(path.name for path in tmp_path.iterdir()) == [ARCHIVE, POD_KEY, RECORD]


def test_a_pinned_version_wins_over_production(
    store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STENO_VERSION", "v6")
    assert main(["--output", str(tmp_path)]) == 0
    assert (served(tmp_path)["version"], served(tmp_path)["pinned"]) == ("v6", True)


def test_the_pods_settings_change_the_copy_and_nothing_else(
    store: ModelStore, archive: Path, tmp_path: Path
) -> None:
    (tmp_path / "settings.yaml").write_text(
        "batchSize: 3\nhandler: {token_file: /t, dtype: auto}\n"
    )
    output = tmp_path / "models"
    assert main(["--output", str(output), "--settings", str(tmp_path / "settings.yaml")]) == 0
    with zipfile.ZipFile(archive) as before, zipfile.ZipFile(output / ARCHIVE) as after:
        assert after.testzip() is None
        assert before.namelist() == after.namelist()
        weights = "checkpoint/model.safetensors"
        assert before.read(weights) == after.read(weights)
        changed = yaml.safe_load(after.read("model-config.yaml"))
    handler = {**SETTINGS["handler"], "token_file": "/t"}
    assert changed == {**SETTINGS, "batchSize": 3, "handler": handler}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("batchsize: 3", ("batchsize", "batchSize")),
        ("handler: {colour: red}", ("handler.colour",)),
        ("handler: {max_batch_seconds: -1}", ("handler.max_batch_seconds",)),
        ("- a", ("must hold keys",)),
        ("handler: red", ("handler is 'red'",)),
        ("{", ("is no YAML",)),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_a_worker_could_crash(
    store: ModelStore,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    settings: str,
    words: tuple[str, ...],
) -> None:
    (tmp_path / "settings.yaml").write_text(settings)
    (tmp_path / "models").mkdir()
    arguments = ("--settings", str(tmp_path / "settings.yaml"))
    assert_refused(tmp_path / "models", capsys, *words, arguments=arguments)


def test_an_archive_that_is_not_the_published_one_is_refused(
    store: ModelStore, server: S3Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    client = server.client()
    body = bytearray(client.get_object(Bucket=BUCKET, Key=KEY)["Body"].read())
    body[1000] ^= 1  # of the same size
    client.put_object(Bucket=BUCKET, Key=KEY, Body=bytes(body))
    assert_refused(tmp_path, capsys, "SHA-256", store.release("v7").sha256)


def test_what_a_former_start_left_is_gone_when_the_next_is_refused(
    store: ModelStore,
    server: S3Server,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--output", str(tmp_path)]) == 0
    server.client().put_object(Bucket=BUCKET, Key=KEY, Body=b"another")
    assert_refused(tmp_path, capsys, "v7")


@pytest.mark.parametrize("version", ["v9", "../v7"])
def test_a_version_that_there_is_not_is_refused(
    store: ModelStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    version: str,
) -> None:
    monkeypatch.setenv("STENO_VERSION", version)
    assert_refused(tmp_path, capsys, version)


def test_without_a_version_in_production_the_way_to_one_is_told(
    store: ModelStore, server: S3Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.client().delete_object(Bucket=BUCKET, Key="steno/models/asr/production.json")
    assert_refused(tmp_path, capsys, "nothing is in production", "model.version")


@pytest.mark.parametrize("who", ["stranger", "wrong secret"])
def test_without_permission_it_says_so(
    store: ModelStore,
    server: S3Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    who: str,
) -> None:
    if who == "stranger":
        for name, value in server.stranger_environment.items():
            monkeypatch.setenv(name, value)
    else:
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "0" * 40)
    assert_refused(tmp_path, capsys, "403")


@pytest.mark.slow
def test_half_a_download_is_gone_on_with_and_never_served(
    store: ModelStore,
    server: S3Server,
    archive: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    half = archive.stat().st_size // 2
    with FaultyProxy(server.port) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.endpoint)
        proxy.faults = [Fault("GET", "v7/asr.mar", cut_answer=half)]
        assert main(["--output", str(tmp_path / "cut once")]) == 0
        asked = [item.headers.get("range") for item in proxy.requests if "asr.mar" in item.target]
        assert f"bytes={half}-" in asked

        # The first container gives up, the next one over the same volume goes on.
        output = tmp_path / "cut twice"
        impatient = ModelStore.open(StoreConfig(url=f"s3://{BUCKET}/steno", attempts=1))
        proxy.faults = [
            Fault("GET", "v7/asr.mar", cut_answer=half),
            Fault("GET", "v7/asr.mar", times=1000, cut_answer=0),
        ]
        with pytest.raises(StoreError, match=r"asr\.mar"):
            fetch(impatient, "v7", output, {})
        assert_nothing_to_load(output)
        proxy.faults, proxy.requests = [], []
        assert main(["--output", str(output)]) == 0
        asked = [item.headers.get("range") for item in proxy.requests if "asr.mar" in item.target]
        assert f"bytes={half}-" in asked
        assert sorted(path.name for path in output.iterdir()) == [ARCHIVE, POD_KEY, RECORD]


def test_without_a_store_its_variable_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("STENO_STORE", raising=False)
    with pytest.raises(SystemExit) as caught:
        main(["--output", str(tmp_path)])
    assert caught.value.code == 2 and "STENO_STORE is not set" in capsys.readouterr().err


@pytest.mark.parametrize("module", ["exporter", "drain", "launch", "smoke"])
def test_what_runs_beside_the_model_does_not_load_torch(module: str) -> None:
    code = f"import sys, handler.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
