"""Reading recordings: any common file, from a path or from bytes, to 16 kHz mono samples.

soundfile (libsndfile) reads WAV, PyAV (FFmpeg) everything else. The split was measured: on a WAV of
5 s soundfile is 18 times faster, on FLAC and Vorbis they are alike; and libsndfile loses the end of
a FLAC that a pipe wrote, reads Opus at half the speed, and prints to stderr on many an MP3.

Nothing is decoded whole: blocks are mixed to mono, resampled and counted as they come, so a small
file that expands to hours costs no more than `AudioLimits.max_seconds` of samples. What FFmpeg makes
of headers and tags is bounded by a `Screen` alone; files of strangers need one.
"""

import io
import os
import struct
from collections.abc import Generator
from contextlib import closing, nullcontext
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import BinaryIO, ClassVar

import av
import numpy as np
import soundfile
import torch
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.container import InputContainer
from numpy.typing import NDArray
from torch import Tensor
from torchaudio.transforms import Resample

from model.ffmpeg import CODECS, open_container
from model.screening import Screen, Verdict

SAMPLE_RATE = 16_000
LOWEST_RATE, HIGHEST_RATE = 4_000, 768_000
# Of all channels: 8 of 192 kHz, 33 of 48 kHz. Decoding costs by them, and the limits count seconds: one
# second of 64 channels of Opus takes 0.13 s of a core.
MOST_SAMPLES_A_SECOND = 1_600_000

_ACCEPTED = "WAV, FLAC, MP3, Ogg, m4a, mp4 or webm"
_BLOCK = 2**18  # values (frames x channels) read at once: 1 MiB of float32
_MISSING_SECONDS = 0.1  # headers are often a few samples off; less than this missing is no cut
# Seconds without sound between two packets that are filled with silence. Less is what the clocks of
# recorder and container differ by; more, a clock that was set.
_SHORTEST_GAP = 0.25
_LONGEST_GAP = 600.0
_CANCELLED = 0.1  # of the power that channels without anything in common would have
_PACKETS_A_SECOND = 1000  # codecs have 400 at most; a file of tiny packets would take hours
_MOST_CHUNKS = 10_000  # of a RIFF or mp4 file; a file of nothing but headers would take seconds
_LARGEST_SAMPLE = 2.0**40  # its square, summed over a window, still fits in float32


class AudioError(ValueError):
    """A recording that cannot be used: `code` tells a program why, the message a person."""

    code: ClassVar[str] = "invalid_audio"


class NotAudio(AudioError):
    """Neither a container nor a codec that is read, or damaged throughout."""

    code = "not_audio"


class TruncatedAudio(AudioError):
    """The file ends before the sound that it declares."""

    code = "truncated_audio"


class EmptyAudio(AudioError):
    """0 bytes, or 0 samples."""

    code = "empty_audio"


class NoAudioStream(AudioError):
    """A container, such as an mp4, with video or subtitles alone."""

    code = "no_audio_stream"


class NonFiniteAudio(AudioError):
    """A sample is NaN, infinite, or beyond all reason."""

    code = "non_finite_audio"


class UnsupportedSampleRate(AudioError):
    """The rate lies outside LOWEST_RATE to HIGHEST_RATE."""

    code = "unsupported_sample_rate"


class AudioTooLong(AudioError):
    """More seconds than `AudioLimits.max_seconds`."""

    code = "audio_too_long"


class AudioTooLarge(AudioError):
    """More bytes than `AudioLimits.max_bytes`, or more samples a second than are decoded."""

    code = "audio_too_large"


@dataclass(frozen=True)
class AudioLimits:
    """`max_bytes` of the file as it comes, `max_seconds` of the sound in it."""

    max_bytes: int = 40 * 2**20
    max_seconds: float = 7200.0


def load_audio(
    source: bytes | bytearray | memoryview | str | os.PathLike[str],
    limits: AudioLimits = AudioLimits(),
    screen: Screen | None = None,
) -> Tensor:
    """Decode a recording: its path, or its bytes.

    Args:
        screen: looks first at what FFmpeg would read (`model.screening`).

    Returns float32 samples (samples,), finite, mono, at 16 kHz: the mean of the channels, or one of
    the loudest where they cancel out. Where the container says that sound starts late or pauses, it is
    silent. A file is known by its content; no name is looked at. Safe to call from several threads.

    Raises an `AudioError`; `OSError` when a path cannot be read; `ScreeningError`. A file is
    `TruncatedAudio` when it holds at least 0.1 s less than it declares (WAV, FLAC, m4a, mp4, webm with
    sound alone, and MP3 with a Xing or Info header) or when its last Ogg page is cut. What declares
    nothing (MP3 without that header, ADTS, a recording streamed into WAV or webm) plays until where it
    was cut.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        return _load(io.BytesIO(source), len(source), limits, screen)
    # Without its name: soundfile takes what is called *.raw for samples without a header.
    with open(os.open(source, os.O_RDONLY), "rb") as file:
        return _load(file, os.fstat(file.fileno()).st_size, limits, screen)


def _load(file: BinaryIO, size: int, limits: AudioLimits, screen: Screen | None) -> Tensor:
    if size == 0:
        raise EmptyAudio(f"the file has 0 bytes; send {_ACCEPTED}")
    if size > limits.max_bytes:
        raise AudioTooLarge(
            f"the file has {size:,} bytes, more than the {limits.max_bytes:,} allowed; "
            "compress it (FLAC, MP3, Ogg) or cut it"
        )
    head = file.read(12)
    file.seek(0)
    if head[:4] in (b"RIFF", b"RIFX", b"RF64") and head[8:] == b"WAVE":
        recording = _open_wav(file, size, screen)
    else:
        recording = _open_ffmpeg(file, size, screen)
    with recording.container or nullcontext(), closing(recording.blocks):
        return _collect(recording, limits)


_Blocks = Generator[tuple[int, NDArray[np.float32]], None, None]


@dataclass(frozen=True)
class _Recording:
    """An opened file: the seconds it declares, if it does, and its blocks: rate, mono samples.

    FFmpeg's container is to be closed: in a cycle of references, it would hold the file's bytes until
    the garbage collector comes by.
    """

    declared_seconds: float | None
    blocks: _Blocks
    container: InputContainer | None = None


def _collect(recording: _Recording, limits: AudioLimits) -> Tensor:
    declared, longest = recording.declared_seconds, limits.max_seconds
    if declared is not None and declared > longest:
        raise AudioTooLong(
            f"the recording lasts {declared:,.1f} s, more than the {longest:,.1f} s allowed; "
            "cut it into parts"
        )
    resampler: _Resampler | None = None
    pieces = []
    seconds = before = 0.0
    count = 0  # of samples at this rate: adding up seconds would round beyond a limit that is met
    for rate, block in recording.blocks:
        if block.size == 0:
            continue
        if resampler is None or resampler.rate != rate:
            _check_rate(rate)
            if resampler is not None:
                pieces.append(resampler.flush())
            resampler = _Resampler(rate)
            before, count = seconds, 0
        usable = np.abs(block) < _LARGEST_SAMPLE  # false for NaN
        if not usable.all():
            bad = int(usable.argmin())
            raise NonFiniteAudio(
                f"the sample at {seconds + bad / rate:.3f} s is {block[bad]:g}; "
                "every sample must be a finite number, usually between -1 and 1"
            )
        count += block.size
        seconds = before + count / rate
        if seconds > longest:
            raise AudioTooLong(
                f"the recording goes on after the {longest:,.1f} s allowed; cut it into parts"
            )
        ready = resampler.push(torch.from_numpy(block))
        if len(ready):  # a frame may be 40 samples, and an empty tensor as large as that
            pieces.append(ready)
    if resampler is None:
        raise EmptyAudio("the file holds 0 samples of sound; was anything recorded?")
    pieces.append(resampler.flush())
    return _joined(pieces)


def _joined(pieces: list[Tensor]) -> Tensor:
    """As `torch.cat`, but each piece is dropped once it is copied: an hour is 230 MB."""
    whole = torch.empty(sum(len(piece) for piece in pieces))
    end = len(whole)
    while pieces:
        piece = pieces.pop()
        whole[end - len(piece) : end] = piece
        end -= len(piece)
    return whole


def _check_rate(rate: int, channels: int = 1) -> None:
    if not LOWEST_RATE <= rate <= HIGHEST_RATE:
        raise UnsupportedSampleRate(
            f"the sample rate is {rate:,} Hz; "
            f"it must lie between {LOWEST_RATE:,} and {HIGHEST_RATE:,}"
        )
    if rate * channels > MOST_SAMPLES_A_SECOND:
        raise AudioTooLarge(
            f"{channels} channels of {rate:,} Hz are {rate * channels:,} samples a second, more than "
            f"the {MOST_SAMPLES_A_SECOND:,} allowed; mix them down to one"
        )


class _Resampler:
    """Resamples to 16 kHz block by block, to the same samples as the whole at once.

    The ratio is exact for every common rate (its denominator is at most 640). An odd rate, such as
    15,987 Hz, whose exact filters would need gigabytes, is met within 0.08 %.
    """

    def __init__(self, rate: int) -> None:
        self.rate = rate
        largest = max(1, min(640, 2048 * SAMPLE_RATE // rate))
        ratio = Fraction(rate, SAMPLE_RATE).limit_denominator(largest)
        # From so many samples in come so many samples out.
        self._step, self._gain = ratio.numerator, ratio.denominator
        self._resample = _filters(self._step, self._gain)
        reach = 0 if self._step == self._gain else self._resample.width + self._step
        margin_steps = -(-reach // self._step)
        self._margin, self._skip = margin_steps * self._step, margin_steps * self._gain
        self._waiting = [torch.zeros(self._margin)]
        self._size = self._margin

    def push(self, block: Tensor) -> Tensor:
        """The samples that are certain by now, none for most small blocks."""
        self._waiting.append(block)
        self._size += block.numel()
        steps = (self._size - 2 * self._margin) // self._step
        if steps <= 0 or self._size < _BLOCK:
            return torch.empty(0)
        samples = torch.cat(self._waiting)
        used = steps * self._step
        out = self._resample(samples[: used + 2 * self._margin])
        self._waiting = [samples[used:]]
        self._size -= used
        return out[self._skip : self._skip + steps * self._gain].clone()

    def flush(self) -> Tensor:
        """What remains."""
        return self._resample(torch.cat(self._waiting))[self._skip :]


@lru_cache(maxsize=32)
def _filters(step: int, gain: int) -> Resample:
    return Resample(step, gain, lowpass_filter_width=16)


def _open_wav(file: BinaryIO, size: int, screen: Screen | None) -> _Recording:
    data = _find_wav_data(file, size)
    file.seek(0)
    if data is None:
        raise TruncatedAudio(f"the WAV ends after {size:,} bytes, before its sound; send it whole")
    if data.streamed:
        # FFmpeg reads to the end of the file whatever the header says; libsndfile not always.
        return _open_ffmpeg(file, size, screen)
    if data.held == 0 and data.declared > 0:
        raise _truncated_wav(data)
    try:
        sound = soundfile.SoundFile(file)
    except soundfile.LibsndfileError:
        file.seek(0)
        return _open_ffmpeg(file, size, screen)  # a codec that libsndfile does not know
    _check_rate(sound.samplerate, sound.channels)
    seconds = sound.frames / sound.samplerate
    if data.declared > data.held and seconds * (data.declared / data.held - 1) > _MISSING_SECONDS:
        raise _truncated_wav(data)
    if sound.subtype == "MPEG_LAYER_III":  # at a damaged place libsndfile gives up, or ends
        sound.close()
        file.seek(0)
        return _open_ffmpeg(file, size, screen)
    return _Recording(seconds, _wav_blocks(sound))


def _wav_blocks(sound: soundfile.SoundFile) -> _Blocks:
    frames = max(1, _BLOCK // sound.channels)
    mixer = _Mixer()
    with sound:
        try:
            while len(block := sound.read(frames, dtype="float32", always_2d=True)):
                yield sound.samplerate, mixer.mix(block.T)
        except soundfile.LibsndfileError as error:
            raise NotAudio(
                f"the WAV's sound ({sound.subtype}) cannot be read ({error}); the file is damaged"
            ) from error


@dataclass(frozen=True)
class _WavData:
    """The data chunk: bytes declared, bytes there; `streamed`: written without knowing how many."""

    declared: int
    held: int
    streamed: bool


def _truncated_wav(data: _WavData) -> TruncatedAudio:
    return TruncatedAudio(
        f"the WAV holds {data.held:,} of the {data.declared:,} bytes of sound that it declares; "
        "send it whole"
    )


def _find_wav_data(file: BinaryIO, size: int) -> _WavData | None:
    """Walks the chunks, since libsndfile shortens a declared length to what is there."""
    order = ">" if file.read(12)[:4] == b"RIFX" else "<"
    position = 12
    long = None  # an RF64's length of the data, which takes 64 bits (EBU Tech 3306)
    for _ in range(_MOST_CHUNKS):
        file.seek(position)
        header = file.read(8)
        if len(header) < 8:
            break
        name, length = struct.unpack(f"{order}4sI", header)
        position += 8
        if name == b"ds64":
            long = int.from_bytes(file.read(16)[8:], "little")
        if name == b"data":
            if long and length == 2**32 - 1:
                return _WavData(declared=long, held=size - position, streamed=False)
            # Who writes into a pipe cannot know the length: 0, or about 2 or 4 GiB stand there.
            streamed = length >= 2**31 - 2**16 or (length == 0 and not _are_chunks(file, size))
            return _WavData(declared=length, held=size - position, streamed=streamed)
        position += length + length % 2
    return None


def _are_chunks(file: BinaryIO, size: int) -> bool:
    """Whether RIFF chunks, or nothing, follow to the end: then a sound of 0 bytes is meant."""
    position = file.tell()
    for _ in range(_MOST_CHUNKS):
        if position >= size:
            return True
        file.seek(position)
        header = file.read(8)
        if len(header) < 8 or not header[:4].strip().isalnum():
            return False
        position += 8 + struct.unpack("<I", header[4:])[0]
        position += position % 2
    return False


def _open_ffmpeg(file: BinaryIO, size: int, screen: Screen | None) -> _Recording:
    _check_last_ogg_page(file, size)
    states_frames = _has_xing(file)
    seen = screen.look(file) if screen is not None else Verdict.READ
    if seen is Verdict.TOO_MUCH:
        raise NotAudio(
            f"the {size:,} bytes hold headers or tags that take more memory or time to read than a "
            "recording's do; the file is damaged"
        )
    if seen is Verdict.NOT_READ:
        raise _unreadable(file, size)
    file.seek(0)
    try:
        container = open_container(file)
    except av.FFmpegError as error:
        raise _unreadable(file, size) from error
    try:
        _check_streams(container, file, size)
        declared = _declared_seconds(container, states_frames)
    except BaseException:
        container.close()
        raise
    return _Recording(declared, _ffmpeg_blocks(container, declared), container)


def _check_streams(container: InputContainer, file: BinaryIO, size: int) -> None:
    """Refuse a container without sound, or with sound that is not read."""
    if not container.streams.audio:
        _check_boxes(file, size)
        kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
        raise NoAudioStream(f"the file holds {kinds} but no sound; send one with an audio track")
    codec = container.streams.audio[0].codec_context
    if codec is None or codec.name not in CODECS.split(","):
        name = "an unknown codec" if codec is None else codec.name
        raise NotAudio(f"the sound is coded with {name}, which is not read; send {_ACCEPTED}")


def _unreadable(file: BinaryIO, size: int) -> AudioError:
    _check_boxes(file, size)
    file.seek(0)
    return NotAudio(
        f"the file begins with {file.read(16)!r} and has {size:,} bytes, "
        f"which cannot be read as sound; send {_ACCEPTED}"
    )


def _declared_seconds(container: InputContainer, mp3_states_frames: bool) -> float | None:
    """What the header says, and nothing that FFmpeg estimates from the bit rate."""
    stream = container.streams.audio[0]
    name = container.format.name
    if name.startswith("matroska"):
        # Its one duration is that of the longest track.
        if len(container.streams) > 1 or container.duration is None:
            return None
        return container.duration / av.time_base
    states_length = (
        name.startswith("mov") or name == "flac" or (name == "mp3" and mp3_states_frames)
    )
    if not (states_length and stream.duration and stream.time_base):
        return None
    return float(stream.duration * stream.time_base)


def _ffmpeg_blocks(container: InputContainer, declared: float | None) -> _Blocks:
    stream = container.streams.audio[0]
    stream.codec_context.options = {"max_samples": str(_BLOCK)}  # no packet grows without bound
    tick = float(stream.time_base or 0)
    from_zero = container.format.name.startswith("matroska")  # where its duration counts from
    start = 0 if from_zero or stream.start_time is None else stream.start_time
    packers: dict[tuple[str, str, int], AudioResampler] = {}
    mixer = _Mixer()
    origin = Fraction(container.start_time or 0, av.time_base)
    silent = 0.0  # seconds that were filled with silence
    reached = seconds = 0.0
    count = damaged = 0
    with container:
        packets = container.demux(stream)
        while True:
            count += 1
            if count > _PACKETS_A_SECOND * (1 + seconds):
                raise NotAudio(
                    f"{count:,} packets hold no more than {seconds:.2f} s of sound; "
                    "the file is damaged"
                )
            try:
                packet = next(packets, None)
            except IndexError:  # PyAV 18.1, at the end, where a stream began in mid-file
                packet = None
            except av.FFmpegError as error:  # nothing follows it
                if declared is None:
                    raise TruncatedAudio(
                        f"the file cannot be read on after {seconds:.2f} s of sound "
                        f"({error.strerror}); send it as one recording with one rate and layout"
                    ) from error
                break  # `reached` tells
            if packet is None:
                break
            try:
                frames = packet.decode()
            except (av.FFmpegError, IndexError):  # the latter: PyAV, at a stream that starts late
                damaged += 1  # one lost packet is a click; where many are, `reached` tells
                continue
            for frame in frames:
                _check_rate(frame.sample_rate, frame.layout.nb_channels)
                if frame.pts is not None and frame.time_base is not None:
                    gap = float(frame.pts * frame.time_base - origin) - seconds - silent
                    if gap > _LONGEST_GAP:
                        origin += Fraction(gap)
                    elif gap > _SHORTEST_GAP:
                        silent += gap
                        yield from _silence(gap, frame.sample_rate)
                for part in _packed(frame, packers):
                    yield part.sample_rate, mixer.mix(_channels(part))
                    seconds += part.samples / part.sample_rate
            if packet.pts is not None:
                reached = max(reached, (packet.pts + (packet.duration or 0) - start) * tick)
    if declared is not None and reached < declared - _MISSING_SECONDS:
        raise TruncatedAudio(
            f"the file holds {reached:.2f} s of the {declared:.2f} s of sound that it declares; "
            "it was cut off or damaged: send it whole"
        )
    if damaged > count / 2:
        raise NotAudio(
            f"{damaged:,} of {count:,} packets of {stream.codec_context.name} sound "
            "cannot be decoded; the file is damaged"
        )


def _packed(
    frame: AudioFrame, packers: dict[tuple[str, str, int], AudioResampler]
) -> list[AudioFrame]:
    """Interleaves 8 planes or more: PyAV 18.1 looks for a null pointer after them, and crashes."""
    if not frame.format.is_planar or frame.layout.nb_channels < 8:
        return [frame]
    shape = frame.format.name, frame.layout.name, frame.sample_rate
    if shape not in packers:
        packers[shape] = AudioResampler(format="flt")
    return packers[shape].resample(frame)


def _silence(seconds: float, rate: int) -> _Blocks:
    left = round(seconds * rate)
    while left > 0:
        size = min(left, _BLOCK)
        yield rate, np.zeros(size, np.float32)
        left -= size


def _channels(frame: AudioFrame) -> NDArray[np.generic]:
    """(channels, samples), whole numbers brought to the range from -1 to 1."""
    data = frame.to_ndarray()
    if not frame.format.is_planar:
        data = data.reshape(-1, frame.layout.nb_channels).T
    if data.dtype.kind == "u":
        data = data / 128 - 1
    elif data.dtype.kind == "i":
        data = data / 2.0 ** (8 * data.dtype.itemsize - 1)
    return data


class _Mixer:
    """Mixes the blocks of a recording: the mean of the channels, or one of them where they cancel out.

    They do where one is wired the other way round. Channels that have nothing in common keep, in their
    mean, the sum of their powers over the square of their number; what falls far below has cancelled.
    """

    def __init__(self) -> None:
        self._powers = np.zeros(0)  # of each channel so far
        self._chosen = 0

    # Who collects the blocks refuses what is not finite.
    @np.errstate(invalid="ignore", over="ignore")
    def mix(self, channels: NDArray[np.generic]) -> NDArray[np.float32]:
        """(channels, samples) → (samples,)."""
        if len(channels) == 1:
            return np.ascontiguousarray(channels[0], np.float32)
        mono = channels.mean(axis=0, dtype=np.float64)
        powers = np.square(channels, dtype=np.float64).sum(axis=1)
        if len(powers) != len(self._powers):
            self._powers, self._chosen = np.zeros(len(powers)), int(powers.argmax())
        self._powers += powers
        if np.square(mono).sum() < _CANCELLED * powers.sum() / len(channels) ** 2:
            # Of two that are equally loud noise would choose anew each time, and turn the sound round.
            if self._powers[self._chosen] < self._powers.max() / 2:
                self._chosen = int(self._powers.argmax())
            mono = channels[self._chosen]
        return mono.astype(np.float32)


def _has_xing(file: BinaryIO) -> bool:
    """Whether the first frame, if it is an MP3's, states the number of frames (Xing, Info)."""
    file.seek(0)
    head = file.read(10)
    tag = 0
    if head[:3] == b"ID3":  # its size: four bytes of seven bits
        tag = 10 + sum(
            (byte & 0x7F) << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=False)
        )
    file.seek(tag)
    frame = file.read(2048)
    return b"Xing" in frame or b"Info" in frame


def _check_last_ogg_page(file: BinaryIO, size: int) -> None:
    """Ogg declares no length, but every page its own (RFC 3533, section 6)."""
    file.seek(0)
    if file.read(4) != b"OggS":
        return
    largest = 27 + 255 + 255 * 255
    start = max(0, size - largest)
    file.seek(start)
    tail = file.read()
    page = tail.rfind(b"OggS\0")
    if page < 0:
        return
    header = tail[page : page + 27]
    segments = tail[page + 27 : page + 27 + header[26]] if len(header) == 27 else b""
    whole = len(header) == 27 and len(segments) == header[26]
    if not whole or page + 27 + len(segments) + sum(segments) > len(tail):
        raise TruncatedAudio(f"the Ogg ends after {size:,} bytes in mid-page; send it whole")


def _check_boxes(file: BinaryIO, size: int) -> None:
    """An mp4's index may stand at its end, and without it there is no sound to be found."""
    file.seek(4)
    if file.read(4) == b"ftyp" and _box_is_cut(file, size):
        raise TruncatedAudio(f"the mp4 or m4a ends after {size:,} bytes, in mid-box; send it whole")


def _box_is_cut(file: BinaryIO, size: int) -> bool:
    """Walks the top-level boxes of an mp4 (ISO/IEC 14496-12, section 4.2)."""
    position = 0
    for _ in range(_MOST_CHUNKS):
        if position >= size:
            break
        file.seek(position)
        header = file.read(16)
        if len(header) < 8:
            return True
        length = int.from_bytes(header[:4], "big")
        if length == 1:
            length = int.from_bytes(header[8:16], "big")
        if length < 8:  # 0: to the end of the file
            return False
        position += length
    return position > size
