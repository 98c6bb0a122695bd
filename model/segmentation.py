"""Long recordings cut into pieces at the pauses of the speech, by its energy."""

from dataclasses import dataclass

import torch
from torch import Tensor

from model.audio import SAMPLE_RATE

_FRAME = 160  # samples: 10 ms
_SMOOTHED_FRAMES = 5
_SHORTEST_PAUSE = 20  # frames: 0.2 s; closures of plosives inside words last up to 0.15 s
_SHORTEST_REST = 100  # frames: 1 s; less than that at the end is too little context to recognize
_DYNAMIC_RANGE = 40.0  # dB below the loud frames: silence from here on, digital or not
_QUIET_PART = 0.25  # of the range between the quiet and the loud frames, in dB


@dataclass(frozen=True)
class Span:
    """A piece of a waveform, in samples: `waveform[start:end]`."""

    start: int
    end: int


def split_at_pauses(waveform: Tensor, max_seconds: float = 30.0) -> list[Span]:
    """Cut a 16 kHz waveform (samples,) into spans of at most `max_seconds`, at least 2.

    The spans are contiguous and cover the whole. Each cut lies in the later half of the longest
    span allowed: in the middle of its longest pause, or at its quietest place where none lasts
    0.2 s. Beyond the waveform itself it needs 8 bytes for each 10 ms.

    Raises ValueError for a waveform that is not 1-D, or a smaller `max_seconds`.
    """
    if waveform.ndim != 1:
        raise ValueError(f"the waveform has shape {tuple(waveform.shape)}; it must be (samples,)")
    if max_seconds < 2:
        raise ValueError(f"max_seconds is {max_seconds}; it must be at least 2")
    total = len(waveform)
    longest = int(max_seconds * SAMPLE_RATE) // _FRAME  # frames
    levels = _levels(waveform) if total > longest * _FRAME else torch.empty(0)
    spans = []
    start = 0  # frames
    while total - start * _FRAME > longest * _FRAME:
        last = max(longest // 2 + 1, min(longest, len(levels) - start - _SHORTEST_REST))
        cut = start + _best_cut(levels[start : start + longest], longest // 2, last)
        spans.append(Span(start * _FRAME, cut * _FRAME))
        start = cut
    if total > start * _FRAME:
        spans.append(Span(start * _FRAME, total))
    return spans


def _levels(waveform: Tensor) -> Tensor:
    """Power of each whole frame (frames,), smoothed over 50 ms, in dB."""
    whole = len(waveform) // _FRAME * _FRAME
    frames = waveform[:whole].float().reshape(-1, _FRAME)
    power = torch.linalg.vector_norm(frames, dim=1).square_() / _FRAME
    smoothed = torch.nn.functional.avg_pool1d(
        power[None],
        _SMOOTHED_FRAMES,
        stride=1,
        padding=_SMOOTHED_FRAMES // 2,
        count_include_pad=False,
    )[0]
    return 10 * smoothed.clamp_(min=1e-20).log10_()


def _best_cut(levels: Tensor, first: int, last: int) -> int:
    """The frame, from `first` to `last`, before which to cut a window of levels (frames,)."""
    low, high = torch.quantile(levels, levels.new_tensor([0.01, 0.95])).tolist()
    low = max(low, high - _DYNAMIC_RANGE)
    searched = levels[first:last]
    edges = torch.zeros(len(searched) + 2, dtype=torch.int8, device=levels.device)
    edges[1:-1] = searched <= low + _QUIET_PART * (high - low)
    steps = edges.diff()
    starts, ends = (steps == 1).nonzero()[:, 0], (steps == -1).nonzero()[:, 0]
    if len(starts):
        lengths = ends - starts
        longest = int(lengths.argmax())
        if lengths[longest] >= _SHORTEST_PAUSE:
            return first + int(starts[longest] + ends[longest]) // 2
    return first + int(searched.argmin())
