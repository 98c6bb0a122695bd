"""Command lines that are made from configuration classes."""

from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict

from training.arguments import parse_config


class _Limits(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    longest_seconds: float = 1.0


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    language_model: Path | None = None
    held_out: tuple[str, ...] = ()
    limits: _Limits = _Limits()


def parsed(*words: str) -> _Config:
    return parse_config(_Config, "prog", words, several=("held_out",))


@pytest.mark.parametrize(
    "words",
    [
        "--language-model a-b.xz --held-out x-1 y_2 --limits.longest-seconds=2",
        "--language_model=a-b.xz --held_out x-1 y_2 --limits.longest_seconds 2",
    ],
)
def test_an_option_is_written_with_dashes_or_as_its_field(words: str) -> None:
    assert parsed(*words.split()) == _Config(
        language_model=Path("a-b.xz"),
        held_out=("x-1", "y_2"),
        limits=_Limits(longest_seconds=2),
    )


def test_the_command_line_is_what_was_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["prog", "--language-model", "a.xz"])
    assert parse_config(_Config, "prog").language_model == Path("a.xz")


def test_an_unknown_option_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parsed("--language-models", "a.xz")
    assert ended.value.code == 2
    assert "language_models" in capsys.readouterr().err
