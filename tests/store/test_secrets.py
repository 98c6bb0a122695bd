"""What the store says about credentials, and that it never says the credentials."""

import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from store import Denied, ModelStore, Release, StoreConfig, StoreError, Unavailable
from store.__main__ import main
from tests.s3_server import S3Server

SECRET = "wJalrXUtnFEMI-K7MDENG-bPxRfiCYEXAMPLEKEY"
MakeArchive = Callable[..., Path]


def everything_said(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


def test_a_wrong_secret_is_told_from_every_command_and_not_shown(
    s3: StoreConfig,
    server: S3Server,
    make_archive: MakeArchive,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    store = ModelStore.open(s3)

    def publish() -> Release:
        return store.publish(
            make_archive(), version="v1", metrics={}, data_fingerprint="f", commit="c"
        )

    def download() -> None:
        store.objects.download("state.pt", tmp_path / "state.pt")

    def upload() -> str:
        return store.objects.upload(make_archive(), "state.pt")

    for ask in (store.versions, store.production, publish, download, upload):
        with pytest.raises(Denied, match=f"{server.endpoint} answered 403") as caught:
            ask()
        assert "AWS_SECRET_ACCESS_KEY" in str(caught.value)
        assert SECRET not in everything_said(caught.value)
        assert server.secret_key not in everything_said(caught.value)


def test_an_unknown_access_key_is_named_as_the_cause(
    s3: StoreConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE")
    with pytest.raises(Denied, match=r"does not know the access key \(AWS_ACCESS_KEY_ID\)"):
        ModelStore.open(s3).versions()


def test_missing_credentials_are_named(s3: StoreConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(Denied, match="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
        ModelStore.open(s3).versions()


def test_half_of_the_credentials_is_not_shown(
    s3: StoreConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    with pytest.raises(Denied) as caught:
        ModelStore.open(s3).versions()
    assert SECRET not in everything_said(caught.value)


def test_a_token_that_no_header_can_hold_is_not_shown(
    s3: StoreConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", f"{SECRET}\nsecond line")
    store = ModelStore.open(s3.model_copy(update={"attempts": 1}))
    with pytest.raises(StoreError) as caught:
        store.versions()
    assert SECRET not in everything_said(caught.value)


@pytest.mark.parametrize(
    "values",
    [
        {"url": f"s3://AKIA:{SECRET}@models/steno"},
        {"url": "s3://models", "endpoint": f"https://user:{SECRET}@minio:9000"},
    ],
)
def test_credentials_in_an_address_are_refused_and_not_shown(values: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="holds credentials") as caught:
        StoreConfig(**values)  # type: ignore[arg-type]
    assert SECRET not in everything_said(caught.value)


def test_credentials_in_an_address_of_the_environment_are_not_shown(
    s3: StoreConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://user:{SECRET}@127.0.0.1:1")
    store = ModelStore.open(s3.model_copy(update={"attempts": 1}))
    with pytest.raises(Unavailable, match=r"http://127.0.0.1:1 could not be asked") as caught:
        store.versions()
    assert SECRET not in everything_said(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AWS_PROFILE", "nobody"),
        ("AWS_ENDPOINT_URL_S3", f"user:{SECRET}@minio:9000"),  # without http://
        ("AWS_DEFAULT_REGION", "not a region"),
    ],
)
def test_settings_that_boto3_cannot_use_are_named(
    s3: StoreConfig, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(StoreError, match=name) as caught:
        ModelStore.open(s3)
    assert SECRET not in everything_said(caught.value)


def test_the_shell_says_it_in_one_line(
    s3: StoreConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    assert main(["list", "--store", s3.url]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("error: ") and output.err.count("\n") == 1
    assert "AWS_SECRET_ACCESS_KEY" in output.err and SECRET not in output.err
