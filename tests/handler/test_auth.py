"""Tokens of a file, and the drain's patience, without a server."""

from pathlib import Path

import pytest

from handler.auth import Tokens
from handler.errors import RequestError

GOOD = "a-token-of-20-letters"
OTHER = "another-token-of-28-letters"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    path.write_text(f"{GOOD}\n\n  {OTHER}  \n")
    return path


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Bearer {GOOD}"},
        {"authorization": f"bearer   {GOOD} "},
        {"AUTHORIZATION": f"BEARER {OTHER}"},
    ],
)
def test_any_token_of_the_file_opens(file: Path, headers: dict[str, str]) -> None:
    Tokens(file).check(headers)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "Bearer",
        "Bearer ",
        f"Bearer {GOOD}x",
        f"Bearer {GOOD[:-1]}",
        f"Basic {GOOD}",
        GOOD,
        "Bearer é",
    ],
)
def test_anything_else_is_401_and_repeats_nothing(file: Path, value: str) -> None:
    with pytest.raises(RequestError) as caught:
        Tokens(file).check({"Authorization": value})
    assert caught.value.status == 401
    assert GOOD not in str(caught.value)


def test_no_header_is_401(file: Path) -> None:
    with pytest.raises(RequestError):
        Tokens(file).check({})


@pytest.mark.parametrize(
    "text", ["", "\n \n", "short\n", f"{GOOD}\nshort\n", "schlüssel-für-alle-2026\n"]
)
def test_a_file_that_guards_badly_stops_the_worker(tmp_path: Path, text: str) -> None:
    path = tmp_path / "tokens"
    path.write_text(text)
    with pytest.raises(ValueError, match=str(path)) as caught:
        Tokens(path)
    assert "short" not in str(caught.value)


def test_a_slip_while_a_token_is_exchanged_locks_nobody_out(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokens = Tokens(file)
    comment = "# the mobile team's, until December"
    file.write_text(f"{comment}\n{GOOD}\nshort\n")
    for _ in range(2):
        tokens.check({"Authorization": f"Bearer {GOOD}"})
        for line in (comment, "short"):
            with pytest.raises(RequestError):
                tokens.check({"Authorization": f"Bearer {line}"})
    assert len(caplog.messages) == 1
    assert str(file) in caplog.text
    assert "short\n" not in caplog.text


def test_a_file_that_is_gone_opens_to_nobody(file: Path) -> None:
    tokens = Tokens(file)
    file.unlink()
    with pytest.raises(FileNotFoundError):
        tokens.check({"Authorization": f"Bearer {GOOD}"})
