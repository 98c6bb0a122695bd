"""The conditions of the robustness benchmark do to speech what they say, the same each time."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from model.audio import SAMPLE_RATE
from tests.benchmarks.conditions import (
    CLEAN,
    CONDITIONS,
    ROOMS,
    VOICES,
    babble,
    coloured_noise,
    level,
    room_response,
)
from tests.benchmarks.non_speech import make_clips


@pytest.fixture(scope="module")
def clip(sound: Callable[[float, int], Tensor]) -> Tensor:
    return sound(2.0, 0)


@pytest.fixture(scope="module")
def others(sound: Callable[[float, int], Tensor]) -> list[Tensor]:
    return [sound(1.0 + 0.1 * seed, seed) for seed in range(1, VOICES + 2)]


def changed(name: str, clip: Tensor, others: list[Tensor], seed: int = 0) -> Tensor:
    return CONDITIONS[name](clip, others, np.random.default_rng(seed))


def share_between(waveform: Tensor, low: float, high: float) -> float:
    """Share of the power between two frequencies in Hz."""
    power = torch.fft.rfft(waveform).abs().square()
    frequencies = torch.fft.rfftfreq(len(waveform), 1 / SAMPLE_RATE)
    return float(power[(frequencies >= low) & (frequencies <= high)].sum() / power.sum())


@pytest.mark.parametrize("name", CONDITIONS)
def test_a_condition_gives_the_same_finite_sound_each_time(name, clip, others):
    first = changed(name, clip, others)
    assert first.dtype == torch.float32 and first.ndim == 1
    assert bool(first.isfinite().all())
    assert torch.equal(first, changed(name, clip, others))
    assert torch.equal(first, clip) == (name == CLEAN)


@pytest.mark.parametrize("kind", ["babble", "pink noise"])
@pytest.mark.parametrize("db", [20, 10, 5])
def test_noise_has_the_ratio_that_it_says(kind, db, clip, others):
    noise = changed(f"{kind} {db} dB", clip, others) - clip
    assert float(20 * torch.log10(level(clip) / level(noise))) == pytest.approx(db, abs=0.01)


def test_a_babble_is_made_of_six_voices(others):
    assert len(babble(12_345, others, np.random.default_rng(0))) == 12_345
    with pytest.raises(ValueError, match="needs 6 clips of other speakers; there are 5"):
        babble(100, others[:5], np.random.default_rng(0))


@pytest.mark.parametrize(("exponent", "ratio"), [(0.0, 1.0), (1.0, 0.5), (2.0, 0.25)])
def test_coloured_noise_falls_by_its_exponent(exponent, ratio):
    """In bands an octave wide, white noise doubles its power from one to the next."""
    noise = coloured_noise(20 * SAMPLE_RATE, exponent, np.random.default_rng(0))
    lower, upper = share_between(noise, 500, 1000), share_between(noise, 1000, 2000)
    assert upper / lower == pytest.approx(2 * ratio, rel=0.05)
    assert share_between(noise, 0, 19) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("number", range(len(ROOMS)))
def test_a_room_answers_first_with_the_direct_sound(number):
    _, _, mouth, microphone = ROOMS[number]
    response = room_response(number)
    metres = float(np.linalg.norm(np.subtract(mouth, microphone)))
    # The library's own filter delays by 40 samples.
    assert int(response.argmax()) == pytest.approx(metres / 343 * SAMPLE_RATE + 40, abs=2)


def test_a_room_keeps_the_loudness_and_adds_its_end(clip, others):
    heard = changed("room", clip, others)
    assert len(heard) > len(clip) + 0.2 * SAMPLE_RATE
    assert float(level(heard)) == pytest.approx(float(level(clip)), rel=1e-4)


def test_a_telephone_passes_its_band_alone(others):
    noise = 0.1 * coloured_noise(SAMPLE_RATE, 0.0, np.random.default_rng(0))
    heard = changed("telephone", noise, others)
    assert len(heard) == len(noise)
    assert share_between(heard, 300, 3400) > 0.99


@pytest.mark.parametrize(("name", "tempo"), [("slow speech", 0.75), ("fast speech", 1.33)])
def test_another_tempo_changes_the_length_and_keeps_the_pitch(name, tempo, others):
    time = torch.arange(2 * SAMPLE_RATE) / SAMPLE_RATE
    tone = 0.3 * torch.sin(2 * torch.pi * 440 * time)
    heard = changed(name, tone, others)
    assert len(heard) == pytest.approx(len(tone) / tempo, rel=0.03)
    assert share_between(heard, 420, 460) > 0.9


def test_an_mp3_of_16_kbit_keeps_the_length_and_loses_the_treble(others):
    noise = 0.1 * coloured_noise(2 * SAMPLE_RATE, 0.0, np.random.default_rng(0))
    heard = changed("MP3 16 kbit/s", noise, others)
    assert len(heard) == pytest.approx(len(noise), abs=2_000)
    assert share_between(heard, 6_500, 8_000) < 0.02


def test_the_sounds_without_speech_are_ten_minutes_of_2_to_30_seconds():
    clips = make_clips()
    seconds = [len(clip.waveform) / SAMPLE_RATE for clip in clips]
    assert sum(seconds) >= 600
    assert (min(seconds), max(seconds)) == (2, 30)
    assert len({clip.name for clip in clips}) == len(clips)
    assert all(bool(clip.waveform.isfinite().all()) for clip in clips)
    assert all(float(clip.waveform.abs().max()) <= 1 for clip in clips)
