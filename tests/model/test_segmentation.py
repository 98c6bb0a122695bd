import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.audio import SAMPLE_RATE
from model.segmentation import Span, split_at_pauses

Pauses = list[tuple[float, float]]


def speech(seconds: float, pauses: Pauses, noise: float = 1e-4) -> Tensor:
    """Noise at the level of speech, dropping to `noise` in each pause (start, end), in seconds."""
    generator = torch.Generator().manual_seed(0)
    waveform = torch.randn(round(seconds * SAMPLE_RATE), generator=generator)
    level = torch.full_like(waveform, 0.1)
    for start, end in pauses:
        level[round(start * SAMPLE_RATE) : round(end * SAMPLE_RATE)] = noise
    return waveform * level


def cuts(spans: list[Span]) -> list[float]:
    """Where one span ends and the next begins, in seconds."""
    return [span.end / SAMPLE_RATE for span in spans[:-1]]


def test_a_short_recording_is_one_span() -> None:
    assert split_at_pauses(torch.ones(30 * SAMPLE_RATE)) == [Span(0, 30 * SAMPLE_RATE)]


def test_an_empty_recording_has_no_span() -> None:
    assert split_at_pauses(torch.empty(0)) == []


def test_a_recording_is_cut_in_the_middle_of_a_pause() -> None:
    assert cuts(split_at_pauses(speech(40, [(20.0, 20.6)]))) == pytest.approx([20.3], abs=0.03)


def test_the_longest_pause_wins() -> None:
    pauses = [(17.0, 17.3), (20.0, 21.0), (28.0, 28.4)]
    assert cuts(split_at_pauses(speech(40, pauses))) == pytest.approx([20.5], abs=0.03)


def test_a_pause_in_the_first_half_is_not_used_while_the_second_has_one() -> None:
    pauses = [(5.0, 7.0), (25.0, 25.4)]
    assert cuts(split_at_pauses(speech(40, pauses))) == pytest.approx([25.2], abs=0.03)


@pytest.mark.parametrize("gain", [1e-3, 1.0, 100.0])
@pytest.mark.parametrize("noise", [0.0, 1e-4, 2e-2])
def test_pauses_are_found_in_quiet_loud_clean_and_noisy_recordings(
    gain: float, noise: float
) -> None:
    waveform = gain * speech(40, [(22.0, 23.0)], noise)
    assert cuts(split_at_pauses(waveform)) == pytest.approx([22.5], abs=0.03)


def test_without_a_pause_the_cut_is_at_the_quietest_place() -> None:
    waveform = speech(40, [(24.0, 24.1)], noise=0.05)
    assert cuts(split_at_pauses(waveform)) == pytest.approx([24.05], abs=0.05)


def test_silence_is_cut_evenly() -> None:
    assert cuts(split_at_pauses(torch.zeros(40 * SAMPLE_RATE))) == pytest.approx([22.5], abs=0.01)


def test_no_sliver_is_left_at_the_end() -> None:
    spans = split_at_pauses(speech(30.2, [(29.5, 30.0)]))
    assert spans[-1].end - spans[-1].start >= SAMPLE_RATE


@settings(max_examples=50, deadline=None)
@given(
    seconds=st.floats(0, 30),
    max_seconds=st.floats(2, 12),
    pauses=st.lists(st.tuples(st.floats(0, 30), st.floats(0, 30)), max_size=5),
    noise=st.sampled_from([0.0, 1e-3, 0.1]),
)
def test_spans_cover_every_sample_once_and_none_is_too_long(
    seconds: float, max_seconds: float, pauses: Pauses, noise: float
) -> None:
    waveform = speech(seconds, pauses, noise)
    spans = split_at_pauses(waveform, max_seconds)
    assert [span.start for span in spans] == [0, *(span.end for span in spans)][: len(spans)]
    assert sum(span.end - span.start for span in spans) == len(waveform)
    assert all(0 < span.end - span.start <= max_seconds * SAMPLE_RATE for span in spans)


def test_an_hour_takes_a_second() -> None:
    waveform = speech(70, [(second, second + 0.5) for second in range(7, 70, 7)]).repeat(52)
    began = time.process_time()
    spans = split_at_pauses(waveform)
    assert time.process_time() - began < 2
    assert 120 <= len(spans) <= 240


@pytest.mark.parametrize(
    ("waveform", "max_seconds", "message"),
    [
        (torch.zeros(1, 16_000), 30.0, r"shape \(1, 16000\); it must be \(samples,\)"),
        (torch.zeros(16_000), 1.5, "max_seconds is 1.5; it must be at least 2"),
    ],
)
def test_wrong_arguments_are_named(waveform: Tensor, max_seconds: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        split_at_pauses(waveform, max_seconds)
