import math
import random
import statistics
from pathlib import Path

import pytest
import torch

from loadtest.service_time import ServiceTime, shape_of
from model.audio import SAMPLE_RATE
from model.recognizer import Recognizer, TranscribeOptions, _Piece
from model.segmentation import Span
from tests.random_checkpoint import make_random_checkpoint


def test_groups_are_those_that_one_lane_makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    recognizer = Recognizer.load(
        make_random_checkpoint(tmp_path / "checkpoint"), device="cpu", max_batch_seconds=30.0
    )
    lengths = [1.0, 7.5, 2.5, 12.0, 6.0, 3.0]
    generator = torch.Generator().manual_seed(0)
    waveforms = [
        0.1 * torch.randn(int(seconds * SAMPLE_RATE), generator=generator) for seconds in lengths
    ]
    options = TranscribeOptions()
    pieces = [_Piece(0, Span(0, len(waveform)), waveform, options) for waveform in waveforms]
    widths = [max(len(waveforms[i]) for i in group) for group in recognizer._groups(pieces)]
    audio, longest = shape_of(lengths, recognizer.max_piece_seconds, 30.0)
    assert longest == pytest.approx(sum(widths) / SAMPLE_RATE) == 6.0 + 12.0
    assert audio == sum(lengths)


def test_a_long_recording_counts_as_its_pieces_and_a_refused_one_as_nothing() -> None:
    assert shape_of([60.0], 29.5, 120.0) == pytest.approx((60.0, 20.0))
    assert shape_of([0.0, 0.0], 29.5, 120.0) == (0.0, 0.0)


TRUE = ServiceTime(
    per_batch=0.02,
    per_request=0.005,
    per_audio_second=0.01,
    per_longest_second=0.03,
    spread=0.0,
    piece_seconds=29.5,
    max_batch_seconds=120.0,
)


def drawn(count: int, rng: random.Random) -> list[list[float]]:
    return [[rng.uniform(1, 40) for _ in range(rng.randint(1, 8))] for _ in range(count)]


def test_the_fit_finds_the_costs_that_made_the_times() -> None:
    batches = drawn(40, random.Random(0))
    found = ServiceTime.fit([(batch, TRUE.seconds(batch)) for batch in batches], 29.5, 120.0)
    for name, value in TRUE.model_dump().items():
        if name != "measured":
            assert getattr(found, name) == pytest.approx(value, rel=1e-6, abs=1e-6), name


def test_times_that_spread_draw_the_fit_to_neither_side() -> None:
    rng, spread = random.Random(0), 0.3
    batches = drawn(2_000, rng)
    taken = [TRUE.seconds(batch) * math.exp(rng.gauss(0, spread)) for batch in batches]
    found = ServiceTime.fit(list(zip(batches, taken, strict=True)), 29.5, 120.0)
    ratios = [found.seconds(batch) / TRUE.seconds(batch) for batch in batches]
    assert statistics.mean(ratios) == pytest.approx(1, abs=0.02)
    assert found.spread == pytest.approx(spread, rel=0.05)


def test_too_few_batches_are_refused() -> None:
    with pytest.raises(ValueError, match="3 batches"):
        ServiceTime.fit([([1.0], 0.1)] * 3, 29.5, 120.0)
