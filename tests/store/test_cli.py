"""`python -m store`, on S3 and on a folder."""

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from store import StoreConfig
from store.__main__ import _parser, main
from training.package import ROOT

MakeArchive = Callable[..., Path]
# What a document tells to type, from the module's name to the end of the line or of the code in it.
COMMAND = re.compile(r"python -m store ((?:[^\n`\\#]|\\\n)+)")


def test_a_version_goes_from_a_file_into_production_and_back_out(
    config: StoreConfig,
    make_archive: MakeArchive,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("STENO_STORE", config.url)
    metrics = tmp_path / "metrics.json"
    metrics.write_text('{"wer": 0.097}')

    def publish(version: str, seed: int, *more: str) -> int:
        return main(
            [
                *("publish", version, "--archive", str(make_archive(seed))),
                *("--metrics", str(metrics), "--data-fingerprint", "f00d", "--commit", "40d53ea"),
                *more,
            ]
        )

    assert publish("v1", 1) == 0
    assert publish("v2", 2, "--parent", "v1") == 0
    assert publish("v2", 3) == 1
    assert "error: version v2 is published already" in capsys.readouterr().err

    assert main(["production"]) == 1
    assert main(["fetch", "--output", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.count("nothing is in production") == 2

    assert main(["promote", "v1", "--expected", "none"]) == 0
    assert main(["promote", "v2"]) == 0
    assert main(["promote", "v1", "--expected", "v1"]) == 1
    assert "v2 is in production, not v1" in capsys.readouterr().err

    assert main(["production"]) == 0
    pointer = json.loads(capsys.readouterr().out)
    assert (pointer["version"], pointer["previous"]) == ("v2", "v1")

    assert main(["show", "v2"]) == 0
    release = json.loads(capsys.readouterr().out)
    assert (release["parent"], release["metrics"]) == ("v1", {"wer": 0.097})

    assert main(["list"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("v1 ") and first.endswith("from none")
    assert second.startswith("v2 ") and second.endswith("from v1  in production")

    assert main(["fetch", "--output", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "asr.mar").read_bytes() == make_archive(2).read_bytes()


def test_who_has_no_evaluation_publishes_all_the_same(
    config: StoreConfig, make_archive: MakeArchive, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = str(make_archive(1))
    assert main(["publish", "v1", "--archive", archive, "--store", config.url]) == 0
    assert main(["show", "v1", "--store", config.url]) == 0
    release = json.loads(capsys.readouterr().out.partition("\n")[2])
    assert (release["metrics"], release["data_fingerprint"]) == ({}, "unknown")


def test_every_command_of_the_documents_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STENO_STORE", "s3://bucket")
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "store" / "README.md"]
    found = [text for page in pages for text in COMMAND.findall(page.read_text(encoding="utf-8"))]
    assert {text.split()[0] for text in found} >= {"publish", "promote", "fetch", "list", "show"}
    for text in found:
        typed = re.sub(r"\$\(.*?\)", "SUBSTITUTED", text.replace("\\\n", " "))
        _parser().parse_args(shlex.split(typed))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "metrics.json is not JSON"),
        ("[1]", "must be an object with names"),
        ('{"wer": NaN}', "metrics cannot be written as JSON"),
    ],
)
def test_metrics_that_are_not_json_are_refused(
    make_archive: MakeArchive,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    content: str,
    message: str,
) -> None:
    (tmp_path / "metrics.json").write_text(content)
    arguments = ["publish", "v1", "--store", str(tmp_path / "store"), "--commit", "c"]
    arguments += ["--archive", str(make_archive()), "--data-fingerprint", "f"]
    assert main([*arguments, "--metrics", str(tmp_path / "metrics.json")]) == 1
    assert message in capsys.readouterr().err


def test_a_missing_archive_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "metrics.json").write_text("{}")
    arguments = ["publish", "v1", "--store", str(tmp_path / "store"), "--commit", "c"]
    arguments += ["--archive", str(tmp_path / "asr.mar"), "--data-fingerprint", "f"]
    assert main([*arguments, "--metrics", str(tmp_path / "metrics.json")]) == 1
    assert "asr.mar" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["list"],  # which store?
        ["list", "--store", "https://host/bucket"],
        ["list", "--store", "s3://models", "--kms-key", "k"],
        [],
    ],
)
def test_wrong_usage_ends_with_status_2(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STENO_STORE", raising=False)
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
