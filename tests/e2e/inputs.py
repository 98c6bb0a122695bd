"""Good and bad recordings as a caller would send them, made on the spot."""

import base64
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
import soundfile
from numpy.typing import NDArray

from tests.bombs import mp4, tag

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
SAMPLE_RATE = 16_000


@dataclass(frozen=True)
class Sent:
    """One request: keyword arguments of `requests.post`, and what must come back."""

    name: str
    arguments: Mapping[str, Any] = field(repr=False)
    status: int = 200
    error: str | None = None


@cache
def speech() -> NDArray[np.float32]:
    """A few seconds of real speech at 16 kHz, or noise where no clip is in the repository yet."""
    for line in fixture_lines():
        path = FIXTURES / line["audio_filepath"]
        if path.suffix in (".wav", ".flac"):
            samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
            if rate == SAMPLE_RATE:
                return np.ascontiguousarray(samples.mean(axis=1))
    return (0.1 * np.random.default_rng(0).standard_normal(3 * SAMPLE_RATE)).astype(np.float32)


def fixture_lines() -> list[dict[str, Any]]:
    manifest = FIXTURES / "manifest.jsonl"
    if not manifest.is_file():
        return []
    return [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines() if line]


def encoded(
    samples: NDArray[np.float32], rate: int = SAMPLE_RATE, kind: str = "WAV", subtype: str = ""
) -> bytes:
    """Encode with libsndfile; `kind` is its name of the container."""
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, subtype=subtype or None)
    return file.getvalue()


def encoded_by_ffmpeg(samples: NDArray[np.float32], container: str, codec: str) -> bytes:
    """Encode with FFmpeg, for what libsndfile cannot write."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = cast(av.AudioStream, output.add_stream(codec, rate=48_000, layout="mono"))
        resampler = av.AudioResampler(
            format=stream.codec_context.format or "fltp", layout="mono", rate=48_000
        )
        frame = av.AudioFrame.from_ndarray(samples[None, :], format="flt", layout="mono")
        frame.sample_rate = SAMPLE_RATE
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            output.mux(stream.encode(part))
        output.mux(stream.encode(None))
    return file.getvalue()


def raw(
    name: str,
    body: bytes,
    status: int = 200,
    error: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Sent:
    return Sent(name, {"data": body, "headers": headers or {}}, status, error)


def form(
    name: str,
    *files: bytes,
    status: int = 200,
    error: str | None = None,
    **fields: str | list[str],
) -> Sent:
    parts = [("file", ("clip", content, "application/octet-stream")) for content in files]
    return Sent(name, {"files": parts, "data": fields}, status, error)


def json_body(name: str, audio: str, status: int = 200, error: str | None = None) -> Sent:
    return Sent(name, {"json": {"audio": audio}}, status, error)


def as_base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def surround() -> NDArray[np.float32]:
    """The speech at 96 kHz in 6 channels."""
    return np.repeat(np.repeat(speech(), 96_000 // SAMPLE_RATE)[:, None], 6, axis=1)


@cache
def good() -> tuple[Sent, ...]:
    """The same speech in every container, and in every way to send it."""
    samples = speech()
    wav = encoded(samples)
    return (
        raw("wav", wav, headers={"Content-Type": "audio/wav"}),
        raw("flac", encoded(samples, kind="FLAC")),
        raw("ogg vorbis", encoded(samples, kind="OGG")),
        raw("mp3", encoded(samples, kind="MP3")),
        raw("m4a", encoded_by_ffmpeg(samples, "ipod", "aac")),
        raw("webm", encoded_by_ffmpeg(samples, "webm", "libopus")),
        raw("96 kHz, 6 channels", encoded(surround(), 96_000, subtype="FLOAT")),
        form("form", wav, model="whisper-1", language="en", temperature="0"),
        json_body("json", as_base64(wav)),
    )


@cache
def long_silence() -> bytes:
    """Eight hours of silence in a file of a few hundred kilobytes."""
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", 8_000, 1, format="FLAC") as output:
        minute = np.zeros(60 * 8_000, np.int16)
        for _ in range(8 * 60):
            output.write(minute)
    return file.getvalue()


@cache
def bad() -> tuple[Sent, ...]:
    """Every input that must get its own 4xx, but for the body that TorchServe refuses by itself."""
    samples = speech()
    wav = encoded(samples)
    not_finite = samples.copy()
    not_finite[len(samples) // 2] = np.nan
    flac = encoded(samples, kind="FLAC")
    png = base64.b64decode(
        "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
    )
    return (
        raw("empty body", b"", 400, "empty_audio"),
        raw("text file", b"This is not a recording.\n" * 40, 400, "not_audio"),
        raw("PNG", png, 400, "not_audio"),
        raw("table of 1.4 GB in an mp4 of 600 bytes", mp4(40_000_000), 400, "not_audio"),
        raw("280 MB of text in a tag", tag(70, 4 * 2**20) + flac, 400, "not_audio"),
        raw("truncated FLAC", flac[: len(flac) // 2], 400, "truncated_audio"),
        raw("WAV of 0 samples", encoded(samples[:0]), 400, "empty_audio"),
        raw("8 hours of silence", long_silence(), 413, "audio_too_long"),
        raw("WAV with NaN", encoded(not_finite, subtype="FLOAT"), 400, "non_finite_audio"),
        json_body("wrong base64", "no base64 at all!", 400, "invalid_base64"),
        form("unknown format", wav, response_format="yaml", status=400, error="invalid_value"),
        form("two files", wav, wav, status=400, error="repeated_field"),
        form("unknown field", wav, colour="red", status=400, error="unknown_field"),
        form("1,000 fields", wav, hotwords=["word"] * 1000, status=400, error="invalid_value"),
        raw(
            "JSON, 600 deep",
            b'{"audio": "AA==", "mode": ' + b"[" * 600 + b"]" * 600 + b"}",
            400,
            "invalid_value",
            {"Content-Type": "application/json"},
        ),
    )
