"""Steno as one of the systems of `accuracy`."""

from pathlib import Path

import torch

from model.checkpoint import CONFIG, LANGUAGE_MODEL, TOKENIZER, WEIGHTS
from model.recognizer import Mode, Recognizer, TranscribeOptions
from tests.benchmarks.accuracy_systems import Clips, Loaded


def load_steno(
    *, checkpoint: str, mode: Mode, dtype: str, beam_size: int | None, batched: bool
) -> Loaded:
    """The recognizer as the endpoint uses it for `json` and `text`: without word times."""
    folder = Path(checkpoint)
    recognizer = Recognizer.load(folder, device="cpu", dtype=dtype)
    options = TranscribeOptions(mode=mode, word_timestamps=False, beam_size=beam_size)

    def together(clips: Clips) -> list[str]:
        waveforms = [torch.from_numpy(clip) for clip in clips]
        return [t.text for t in recognizer.transcribe(waveforms, options).transcripts]

    def one_by_one(clips: Clips) -> list[str]:
        return [text for clip in clips for text in together([clip])]

    names = (WEIGHTS, CONFIG, TOKENIZER, LANGUAGE_MODEL)
    size = sum((folder / name).stat().st_size for name in names if (folder / name).is_file())
    return Loaded(together if batched else one_by_one, size, ("torch", "torchaudio"))
