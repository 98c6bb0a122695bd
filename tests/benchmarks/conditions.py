"""What can happen to speech before a recognizer hears it: noise, rooms, telephones, hurry, compression.

A condition changes one clean clip, float32 (samples,) at 16 kHz, and draws all that is random from the
generator that it is given.
"""

import io
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import cache, partial

import av
import numpy as np
import pyroomacoustics
import soundfile
import torch
from av.audio.frame import AudioFrame
from av.filter import Graph
from torch import Tensor
from torchaudio.functional import add_noise, fftconvolve, resample

from model.audio import SAMPLE_RATE, load_audio

NOISE_DB = (20, 10, 5)
VOICES = 6  # in a babble: more than one can follow, few enough to hear that they speak
# Speech in a second, over the original's; the voice keeps its pitch.
SLOW, FAST = 0.75, 1.33
MP3_BITS_PER_SECOND = 16_000
TELEPHONE_RATE, TELEPHONE_BAND = 8_000, (300.0, 3_400.0)  # Hz
# Shoebox rooms: sides in m, share of the energy that a wall takes, places of mouth and microphone. Their
# reverberation times, measured on the responses, are 0.23, 0.43 and 0.65 s; the distances 1, 2 and 3 m.
ROOMS = (
    ((3.5, 3.0, 2.5), 0.35, (0.9, 1.2, 1.5), (1.7, 1.75, 1.2)),
    ((6.0, 4.5, 2.7), 0.30, (1.4, 1.9, 1.5), (3.2, 2.7, 1.2)),
    ((9.0, 7.0, 3.0), 0.30, (2.1, 2.6, 1.6), (4.7, 4.0, 1.1)),
)
REFLECTIONS = 30  # of a path; each that has more comes at least 75 dB below the direct sound

# (clip, clips of other speakers, generator) -> changed clip
Condition = Callable[[Tensor, Sequence[Tensor], np.random.Generator], Tensor]


def coloured_noise(samples: int, exponent: float, rng: np.random.Generator) -> Tensor:
    """Noise with a power spectrum of 1/f^exponent: 0 is white, 1 pink, 2 brown; RMS 1.

    Nothing below 20 Hz, which no one hears and in which brown noise has nearly all its power.
    """
    frequencies = np.fft.rfftfreq(samples, 1 / SAMPLE_RATE)
    gain = np.where(frequencies >= 20, np.maximum(frequencies, 20) ** (-exponent / 2), 0)
    noise = np.fft.irfft(np.fft.rfft(rng.standard_normal(samples)) * gain, samples)
    return torch.from_numpy((noise / noise.std()).astype(np.float32))


def babble(samples: int, others: Sequence[Tensor], rng: np.random.Generator) -> Tensor:
    """Six voices at once, equally loud, each clip begun anywhere and repeated.

    Raises ValueError where there are fewer clips.
    """
    if len(others) < VOICES:
        raise ValueError(
            f"a babble needs {VOICES} clips of other speakers; there are {len(others)}"
        )
    chosen = [others[i] for i in rng.choice(len(others), VOICES, replace=False)]
    begun = [voice.roll(int(rng.integers(len(voice)))) for voice in chosen]
    repeated = [voice.repeat(-(-samples // len(voice)))[:samples] for voice in begun]
    return torch.stack([voice / level(voice) for voice in repeated]).sum(0)


def level(waveform: Tensor) -> Tensor:
    """Root of the mean square; at least 1e-9, so that it can divide."""
    return waveform.square().mean().sqrt().clamp(min=1e-9)


def _with_noise(
    speech: Tensor, others: Sequence[Tensor], rng: np.random.Generator, *, kind: str, db: float
) -> Tensor:
    """`db` is the ratio of the mean powers over the whole clip, pauses included."""
    if kind == "babble":
        noise = babble(len(speech), others, rng)
    else:
        noise = coloured_noise(len(speech), 1.0, rng)
    return add_noise(speech[None], noise[None], torch.tensor([float(db)]))[0]


@cache
def room_response(number: int) -> Tensor:
    """Impulse response (samples,) of a room, by the image-source method (Allen and Berkley, 1979)."""
    sides, absorption, mouth, microphone = ROOMS[number]
    room = pyroomacoustics.ShoeBox(
        sides,
        fs=SAMPLE_RATE,
        materials=pyroomacoustics.Material(absorption),
        max_order=REFLECTIONS,
    )
    room.add_source(mouth)
    room.add_microphone(microphone)
    room.compute_rir()
    return torch.from_numpy(room.rir[0][0].astype(np.float32))


def in_room(speech: Tensor, others: Sequence[Tensor], rng: np.random.Generator) -> Tensor:
    """In one of the rooms, as loud as before, with the reverberation after the last word."""
    heard = fftconvolve(speech, room_response(int(rng.integers(len(ROOMS)))))
    return heard * level(speech) / level(heard)


def by_telephone(speech: Tensor, others: Sequence[Tensor], rng: np.random.Generator) -> Tensor:
    """8 kHz, 300 to 3,400 Hz, and G.711's mu-law: 8 bits a sample."""
    narrow = resample(speech, SAMPLE_RATE, TELEPHONE_RATE)
    spectrum = torch.fft.rfft(narrow)
    frequencies = torch.fft.rfftfreq(len(narrow), 1 / TELEPHONE_RATE)
    low, high = TELEPHONE_BAND
    spectrum[(frequencies < low) | (frequencies > high)] = 0
    file = io.BytesIO()
    band = torch.fft.irfft(spectrum, len(narrow))
    soundfile.write(file, band.numpy(), TELEPHONE_RATE, format="WAV", subtype="ULAW")
    return load_audio(file.getvalue())


def _at_tempo(
    speech: Tensor, others: Sequence[Tensor], rng: np.random.Generator, *, tempo: float
) -> Tensor:
    """FFmpeg's atempo: overlapping pieces are moved together or apart, so pitch stays."""
    graph = Graph()
    source = graph.add_abuffer(
        sample_rate=SAMPLE_RATE, format="fltp", layout="mono", time_base=Fraction(1, SAMPLE_RATE)
    )
    graph.link_nodes(source, graph.add("atempo", str(tempo)), graph.add("abuffersink")).configure()
    graph.push(_frame(speech))
    graph.push(None)
    pieces = []
    while True:
        try:
            pieces.append(torch.from_numpy(graph.pull().to_ndarray()[0]))
        except av.EOFError:
            return torch.cat(pieces)


def as_mp3(speech: Tensor, others: Sequence[Tensor], rng: np.random.Generator) -> Tensor:
    """MP3 at 16 kbit/s by LAME: a sixteenth of the samples' bits."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp3") as container:
        stream = container.add_stream("libmp3lame", rate=SAMPLE_RATE, layout="mono")
        stream.bit_rate = MP3_BITS_PER_SECOND
        container.mux(stream.encode(_frame(speech)))
        container.mux(stream.encode(None))
    return load_audio(file.getvalue())


def _frame(waveform: Tensor) -> AudioFrame:
    frame = AudioFrame.from_ndarray(waveform.numpy()[None], format="fltp", layout="mono")
    frame.sample_rate = SAMPLE_RATE
    return frame


CLEAN = "clean"
CONDITIONS: dict[str, Condition] = {
    CLEAN: lambda speech, others, rng: speech,
    **{
        f"{kind} {db} dB": partial(_with_noise, kind=kind, db=db)
        for kind in ("babble", "pink noise")
        for db in NOISE_DB
    },
    "room": in_room,
    "telephone": by_telephone,
    "slow speech": partial(_at_tempo, tempo=SLOW),
    "fast speech": partial(_at_tempo, tempo=FAST),
    "MP3 16 kbit/s": as_mp3,
}
