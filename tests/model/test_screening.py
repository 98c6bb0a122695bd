"""Files that make FFmpeg take far more memory than they have bytes, and recordings, which do not."""

import io
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from model.audio import NotAudio, load_audio
from model.screening import MOST_MEMORY, Screen, Verdict
from tests.bombs import mp4, tag

FIXTURES = Path(__file__).parents[1] / "fixtures"
RECORDINGS = [FIXTURES / name for name in ("meeting.mp3", "news.flac")]


@pytest.fixture(scope="module")
def screen() -> Iterator[Screen]:
    screen = Screen()
    yield screen
    screen.close()


BOMBS = {
    "table of an mp4": mp4(40_000_000),
    "tag before a FLAC": tag(70, 4 * 2**20) + RECORDINGS[1].read_bytes(),
    "one text": tag(1, 2**28 - 10) + RECORDINGS[1].read_bytes(),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_small_file_that_takes_much_memory_is_refused(screen: Screen, name: str) -> None:
    assert len(BOMBS[name]) < 1_000_000 < MOST_MEMORY
    with pytest.raises(NotAudio, match="take more memory or time to read"):
        load_audio(BOMBS[name], screen=screen)


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.name)
def test_a_recording_is_read_as_without_a_screen(screen: Screen, path: Path) -> None:
    assert load_audio(path, screen=screen).equal(load_audio(path))


def test_a_cover_of_many_megabytes_is_no_bomb(screen: Screen) -> None:
    picture = struct.pack(">II10sI16xI", 3, 10, b"image/jpeg", 0, 15_000_000) + bytes(15_000_000)
    content = RECORDINGS[1].read_bytes()
    block = b"\6" + len(picture).to_bytes(3, "big") + picture
    assert content[4] & 0x80 == 0  # other blocks follow the first
    covered = content[:42] + block + content[42:]
    assert screen.look(io.BytesIO(covered)) is Verdict.READ


@pytest.mark.parametrize("content", [b"no sound" * 100, b"ID3"])
def test_what_ffmpeg_cannot_open_is_told(screen: Screen, content: bytes) -> None:
    assert screen.look(io.BytesIO(content)) is Verdict.NOT_READ
    with pytest.raises(NotAudio, match="cannot be read as sound"):
        load_audio(content, screen=screen)


def test_what_takes_too_long_is_refused(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.screening.MOST_SECONDS", 0.0)
    monkeypatch.setattr("model.screening.LOOK_SECONDS", 0.0)
    assert screen.look(io.BytesIO(mp4(2_000_000))) is Verdict.TOO_MUCH
    monkeypatch.undo()
    assert screen.look(io.BytesIO(RECORDINGS[0].read_bytes())) is Verdict.READ


def test_threads_share_a_screen_and_a_bomb_costs_only_itself(screen: Screen) -> None:
    good, bad = RECORDINGS[0].read_bytes(), BOMBS["table of an mp4"]
    with ThreadPoolExecutor(4) as pool:
        verdicts = list(pool.map(screen.look, map(io.BytesIO, [good, bad, good, bad, good])))
    assert verdicts == [
        Verdict.READ,
        Verdict.TOO_MUCH,
        Verdict.READ,
        Verdict.TOO_MUCH,
        Verdict.READ,
    ]


def test_a_process_that_was_killed_is_started_again() -> None:
    screen = Screen()
    screen.close()
    assert screen.look(io.BytesIO(RECORDINGS[0].read_bytes())) is Verdict.READ
    screen.close()
