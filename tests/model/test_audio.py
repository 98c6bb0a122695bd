import io
import json
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torchaudio.functional import resample

from model.audio import (
    SAMPLE_RATE,
    AudioError,
    AudioLimits,
    AudioTooLarge,
    AudioTooLong,
    EmptyAudio,
    NoAudioStream,
    NonFiniteAudio,
    NotAudio,
    TruncatedAudio,
    UnsupportedSampleRate,
    load_audio,
)
from model.screening import Screen

FIXTURES = Path(__file__).parents[1] / "fixtures"
CLIPS = [json.loads(line) for line in (FIXTURES / "manifest.jsonl").read_text().splitlines()]
TONE = 440.0  # Hz


def tone(seconds: float, rate: int, channels: int = 1) -> NDArray[np.float64]:
    """A tone of amplitude 0.5 (samples, channels)."""
    samples = 0.5 * np.sin(2 * np.pi * TONE * np.arange(round(seconds * rate)) / rate)
    return np.repeat(samples[:, None], channels, axis=1)


def with_soundfile(
    samples: NDArray[np.float64], rate: int, container: str, subtype: str | None = None
) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=container, subtype=subtype)
    return file.getvalue()


def wav(samples: NDArray[np.float64], rate: int = SAMPLE_RATE, subtype: str = "PCM_16") -> bytes:
    return with_soundfile(samples, rate, "WAV", subtype)


def with_ffmpeg(
    seconds: float,
    rate: int,
    container: str,
    codec: str,
    options: dict[str, str] | None = None,
    codec_options: dict[str, str] | None = None,
) -> bytes:
    return encoded(tone(seconds, rate), rate, container, codec, options, codec_options)


def encoded(
    samples: NDArray[np.float64],
    rate: int,
    container: str,
    codec: str,
    options: dict[str, str] | None = None,
    codec_options: dict[str, str] | None = None,
) -> bytes:
    """Samples (samples, channels) in the frames of one of FFmpeg's codecs."""
    layout = {1: "mono", 2: "stereo"}[samples.shape[1]]
    file = io.BytesIO()
    with av.open(file, "w", format=container, options=options or {}) as output:
        stream = output.add_stream(codec, rate=rate, layout=layout, options=codec_options)
        assert isinstance(stream, av.AudioStream)
        planes = np.ascontiguousarray(samples.T.astype(np.float32))
        frame = av.AudioFrame.from_ndarray(planes, "fltp", layout)
        frame.sample_rate = rate
        resampler = av.AudioResampler(
            format=stream.codec_context.format.name,
            frame_size=stream.codec_context.frame_size or 1024,
        )
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            output.mux(stream.encode(part))
        output.mux(stream.encode(None))
    return file.getvalue()


def video(container: str = "mp4", codec: str = "mpeg4", frames: int = 10) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=10)
        assert isinstance(stream, av.VideoStream)
        stream.width = stream.height = 64
        stream.pix_fmt = "rgb24" if codec == "png" else "yuv420p"
        for index in range(frames):
            frame = av.VideoFrame(64, 64, stream.pix_fmt)
            frame.pts = index
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()


def assert_is_tone(samples: Tensor, seconds: float, within: float = 0.001) -> None:
    """Checks length (`within` seconds), pitch and level (LAME lowers it by 5 %), but not the ends."""
    assert samples.dtype == torch.float32 and samples.ndim == 1
    assert len(samples) / SAMPLE_RATE == pytest.approx(seconds, abs=within)
    middle = samples[len(samples) // 4 : 3 * len(samples) // 4]
    spectrum = torch.fft.rfft(middle * torch.hann_window(len(middle))).abs()
    loudest = float(spectrum.argmax()) * SAMPLE_RATE / len(middle)
    assert loudest == pytest.approx(TONE, abs=SAMPLE_RATE / len(middle))
    assert middle.square().mean().sqrt() == pytest.approx(0.5 / np.sqrt(2), rel=0.1)


@pytest.mark.parametrize("clip", CLIPS, ids=lambda clip: clip["audio_filepath"])
def test_each_clip_is_read_from_its_path_and_from_its_bytes(clip: dict[str, str]) -> None:
    path = FIXTURES / clip["audio_filepath"]
    samples = load_audio(path)
    assert len(samples) / SAMPLE_RATE == pytest.approx(float(clip["duration"]), abs=0.001)
    assert 0.3 < samples.abs().max() <= 1
    for source in (str(path), path.read_bytes(), bytearray(path.read_bytes())):
        assert torch.equal(load_audio(source), samples)


@pytest.mark.parametrize(
    ("container", "subtype"),
    [
        *[("WAV", s) for s in ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE")],
        *[("WAV", s) for s in ("ALAW", "ULAW", "IMA_ADPCM", "MS_ADPCM")],
        ("RF64", "PCM_16"),
        ("FLAC", "PCM_24"),
        ("OGG", "VORBIS"),
        ("OGG", "OPUS"),
        ("MP3", "MPEG_LAYER_III"),
        ("AIFF", "PCM_16"),
        ("AU", "PCM_16"),
        ("CAF", "PCM_16"),
        ("W64", "PCM_16"),
    ],
)
def test_containers_and_sample_formats(container: str, subtype: str) -> None:
    data = with_soundfile(tone(1, SAMPLE_RATE), SAMPLE_RATE, container, subtype)
    assert_is_tone(load_audio(data), 1, within=0.04)


@pytest.mark.parametrize(
    ("container", "codec", "options"),
    [
        ("ipod", "aac", {}),
        ("ipod", "alac", {}),
        ("mp4", "aac", {"movflags": "frag_keyframe+empty_moov"}),
        ("adts", "aac", {}),
        ("webm", "libopus", {}),
        ("webm", "libopus", {"live": "1"}),
        ("mp3", "libmp3lame", {"id3v2_version": "4"}),
        ("mp3", "libmp3lame", {"write_xing": "0"}),
        ("mpegts", "aac", {}),
    ],
)
def test_containers_of_ffmpeg(container: str, codec: str, options: dict[str, str]) -> None:
    # An AAC frame of padding at either end stays where nothing says how long it is.
    data = with_ffmpeg(2, 48_000, container, codec, options)
    assert_is_tone(load_audio(data), 2, within=0.08)


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 24_000, 44_100, 48_000, 192_000])
def test_rates(rate: int) -> None:
    assert_is_tone(load_audio(wav(tone(1, rate), rate)), 1)


@pytest.mark.parametrize("rate", [8_000, 22_050, 32_000, 44_100, 48_000])
def test_mp3_at_various_rates(rate: int) -> None:
    assert_is_tone(load_audio(with_ffmpeg(2, rate, "mp3", "libmp3lame")), 2)


@pytest.mark.parametrize("rate", [4_000, 15_987, 44_101, 700_001, 768_000])
def test_unusual_rates_need_no_giant_filters(rate: int) -> None:
    assert_is_tone(load_audio(wav(tone(1, rate), rate)), 1)


@pytest.mark.parametrize("rate", [100, 3_999, 768_001])
def test_a_rate_outside_all_reason_is_refused(rate: int) -> None:
    with pytest.raises(UnsupportedSampleRate, match=f"{rate:,} Hz; .* between 4,000 and 768,000"):
        load_audio(wav(tone(1, rate), rate))


@pytest.mark.parametrize("rate", [8_000, 44_100, 96_000])
def test_blocks_are_resampled_to_the_same_samples_as_the_whole(rate: int) -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (30 * rate, 1))
    data = wav(noise, rate, "FLOAT")
    whole = resample(
        torch.from_numpy(noise[:, 0]).float(), rate, SAMPLE_RATE, lowpass_filter_width=16
    )
    torch.testing.assert_close(load_audio(data), whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("channels", [2, 6, 7, 8, 16])
@pytest.mark.parametrize(("container", "subtype"), [("WAV", "PCM_16"), ("OGG", "VORBIS")])
def test_channels_are_mixed_by_their_mean(channels: int, container: str, subtype: str) -> None:
    samples = tone(1, 48_000, channels)
    samples[:, 1::2] *= 0.0
    samples *= channels / np.ceil(channels / 2)
    data = with_soundfile(samples * 0.4, 48_000, container, subtype)
    assert_is_tone(load_audio(data) / 0.4, 1, within=0.03)


@pytest.mark.parametrize(("container", "subtype"), [("WAV", "PCM_16"), ("FLAC", "PCM_16")])
@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_channels_that_cancel_out_are_not_silence(
    container: str, subtype: str, noise: float
) -> None:
    samples = tone(2, 16_000, 2) * [1, -0.9]
    samples += noise * np.random.default_rng(0).standard_normal(samples.shape)
    heard = load_audio(with_soundfile(samples, 16_000, container, subtype))
    assert torch.allclose(heard, torch.from_numpy(samples[:, 0]).float(), atol=1e-4)


@pytest.mark.parametrize(("container", "codec"), [("ipod", "aac"), ("webm", "libopus")])
def test_of_channels_that_cancel_out_one_is_kept_throughout(container: str, codec: str) -> None:
    """Noise makes now one, now the other louder, by next to nothing."""
    samples = tone(2, 48_000, 2) * [1, -1]
    samples += 0.001 * np.random.default_rng(0).standard_normal(samples.shape)
    # What is lost must not look like a change of channels.
    clear = {"b": "256000"}
    heard = load_audio(encoded(samples, 48_000, container, codec, codec_options=clear))
    # Where the sound is turned round in mid-tone, its parts cancel out in the spectrum.
    assert_is_tone(heard, 2, within=0.06)
    middle = heard[8_000:24_000].numpy()
    times = np.arange(len(middle)) / SAMPLE_RATE
    assert abs(np.mean(middle * np.exp(-2j * np.pi * TONE * times))) == pytest.approx(
        0.25, rel=0.05
    )


def test_channels_of_different_sound_are_both_heard() -> None:
    noise = 0.1 * np.random.default_rng(0).standard_normal((32_000, 2))
    heard = load_audio(wav(noise))
    assert torch.allclose(heard, torch.from_numpy(noise.mean(axis=1)).float(), atol=1e-4)


def with_times(container: str, codec: str, starts: list[float], film: bool = False) -> bytes:
    """A second of tone at each of these times, with nothing between; a film begins at 0."""
    rate = 48_000
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=rate, layout="mono")
        if film:
            pictures = output.add_stream("mpeg4", rate=10)
            pictures.width, pictures.height, pictures.pix_fmt = 64, 64, "yuv420p"
            for index in range(10 * round(starts[-1] + 1)):
                picture = av.VideoFrame(64, 64, "yuv420p")
                picture.pts = index
                output.mux(pictures.encode(picture))
            output.mux(pictures.encode(None))
        size = stream.codec_context.frame_size or 1024
        samples = tone(1, rate).T.astype(np.float32)
        for start in starts:
            for place in range(0, rate - size, size):
                frame = av.AudioFrame.from_ndarray(samples[:, place : place + size], "fltp", "mono")
                frame.sample_rate, frame.pts = rate, round(start * rate) + place
                output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()


def sounding(samples: Tensor) -> list[tuple[float, float]]:
    """Starts and ends (s) of what is not silent, pauses of less than 0.1 s left out."""
    loud = np.flatnonzero(samples.abs().numpy() > 0.05) / SAMPLE_RATE
    cuts = np.flatnonzero(np.diff(loud) > 0.1)
    return list(zip(loud[[0, *(cuts + 1)]], loud[[*cuts, -1]], strict=True))


@pytest.mark.parametrize(
    ("container", "codec"), [("webm", "libopus"), ("mp4", "aac"), ("mpegts", "aac")]
)
def test_sound_that_pauses_keeps_its_times(container: str, codec: str) -> None:
    samples = load_audio(with_times(container, codec, [0.0, 3.0, 5.5]))
    for (start, end), expected in zip(sounding(samples), [0.0, 3.0, 5.5], strict=True):
        assert start == pytest.approx(expected, abs=0.06)
        assert end == pytest.approx(expected + 1, abs=0.06)


def test_sound_that_begins_after_its_film_keeps_its_times() -> None:
    ((start, end),) = sounding(load_audio(with_times("mp4", "aac", [2.0], film=True)))
    assert (start, end) == (pytest.approx(2, abs=0.06), pytest.approx(3, abs=0.06))


@pytest.mark.parametrize("starts", [[5000.0], [0.0, 5000.0]])
def test_a_clock_that_was_set_is_no_pause(starts: list[float]) -> None:
    samples = load_audio(with_times("matroska", "aac", starts))
    assert len(samples) / SAMPLE_RATE == pytest.approx(len(starts), abs=0.1)


def test_pauses_count_as_seconds() -> None:
    data = with_times("mpegts", "aac", [0.0, 400.0, 800.0])
    with pytest.raises(AudioTooLong, match="goes on after the 700"):
        load_audio(data, AudioLimits(max_seconds=700))


def test_96_khz_in_6_channels_and_24_bits() -> None:
    assert_is_tone(load_audio(wav(tone(3, 96_000, 6), 96_000, "PCM_24")), 3)


@pytest.mark.parametrize("riff_bytes", [0, 36, 0x7FFFFFFF, 0xFFFFFFFF])
@pytest.mark.parametrize("data_bytes", [0, 0x7FFFF000, 0x80000000, 0xFFFFFFFF])
@pytest.mark.parametrize("level", [0.0, 1.0])
def test_a_wav_written_into_a_pipe_is_read_to_its_end(
    riff_bytes: int, data_bytes: int, level: float
) -> None:
    data = bytearray(wav(level * tone(1, SAMPLE_RATE)))
    struct.pack_into("<I", data, 4, riff_bytes)
    struct.pack_into("<I", data, data.index(b"data") + 4, data_bytes)
    assert len(load_audio(data)) == SAMPLE_RATE


def test_a_flac_written_into_a_pipe_is_read_to_its_end() -> None:
    assert len(load_audio(without_declared_length(flac(1)))) == SAMPLE_RATE


def test_a_wav_whose_header_is_a_few_bytes_off_is_read() -> None:
    data = bytearray(wav(tone(1, SAMPLE_RATE)))
    struct.pack_into("<I", data, data.index(b"data") + 4, len(data))
    assert len(load_audio(data)) == SAMPLE_RATE


def flac(seconds: float) -> bytes:
    return with_soundfile(tone(seconds, SAMPLE_RATE), SAMPLE_RATE, "FLAC")


def flac_header() -> bytes:
    """A FLAC that ends after its STREAMINFO, marked as the last block, of unknown length."""
    header = bytearray(without_declared_length(flac(1))[:42])
    header[4] |= 0x80
    return bytes(header)


def without_declared_length(data: bytes) -> bytes:
    """A FLAC whose number of samples, 36 bits from byte 21, is 0: unknown."""
    return data[:21] + bytes([data[21] & 0xF0, 0, 0, 0, 0]) + data[26:]


def png() -> bytes:
    return video("image2pipe", "png", frames=1)


@pytest.mark.parametrize(
    "data",
    [
        b"Dear Sir or Madam,\n" * 100,
        b"{}",
        b"\0" * 5000,
        png(),
        b"%PDF-1.7\n" + bytes(range(256)) * 8,
        b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n",
        b"ffconcat version 1.0\nfile /etc/passwd\n",
    ],
    ids=["text", "json", "zeros", "png", "pdf", "hls playlist", "ffmpeg playlist"],
)
def test_what_is_not_audio_is_shown_and_the_formats_named(data: bytes) -> None:
    with pytest.raises(NotAudio) as refused:
        load_audio(data)
    assert repr(data[:10])[2:-1] in str(refused.value)
    assert "WAV, FLAC, MP3, Ogg, m4a, mp4 or webm" in str(refused.value)


CUT: dict[str, Callable[[], bytes]] = {
    "wav": lambda: wav(tone(5, SAMPLE_RATE)),
    "rf64": lambda: with_soundfile(tone(5, SAMPLE_RATE), SAMPLE_RATE, "RF64", "PCM_16"),
    "wav A-law": lambda: wav(tone(5, SAMPLE_RATE), subtype="ALAW"),
    "flac": lambda: flac(5),
    "mp3 with Xing header": lambda: with_ffmpeg(5, 44_100, "mp3", "libmp3lame"),
    "mp3 in WAV": lambda: with_ffmpeg(5, 44_100, "wav", "libmp3lame"),
    "m4a, index last": lambda: with_ffmpeg(5, 44_100, "ipod", "aac"),
    "webm": lambda: with_ffmpeg(5, 48_000, "webm", "libopus"),
    "ogg": lambda: with_soundfile(tone(5, SAMPLE_RATE), SAMPLE_RATE, "OGG", "VORBIS"),
}


@pytest.mark.parametrize("kind", CUT)
@pytest.mark.parametrize("kept", [0.5, 0.9])
def test_a_file_that_ends_before_its_declared_end_is_truncated(kind: str, kept: float) -> None:
    data = CUT[kind]()
    with pytest.raises(TruncatedAudio, match="send it whole"):
        load_audio(data[: round(kept * len(data))])


def test_a_damaged_place_in_an_mp3_in_a_wav_costs_no_more_than_itself() -> None:
    data = bytearray(with_ffmpeg(8, 44_100, "wav", "libmp3lame"))
    middle = len(data) // 2
    data[middle : middle + 2_000] = bytes(2_000)
    assert len(load_audio(data)) / SAMPLE_RATE == pytest.approx(8, abs=0.8)


@pytest.mark.parametrize("kept", [44, 40])
def test_a_wav_cut_in_its_header_is_truncated(kept: int) -> None:
    with pytest.raises(TruncatedAudio):
        load_audio(wav(tone(1, SAMPLE_RATE))[:kept])


@pytest.mark.parametrize("index_first", [True, False])
def test_an_m4a_cut_anywhere_is_truncated(index_first: bool, tmp_path: Path) -> None:
    whole = with_ffmpeg(5, 44_100, "ipod", "aac")
    if index_first:
        path = tmp_path / "whole.m4a"
        with (
            av.open(io.BytesIO(whole), "r") as source,
            av.open(str(path), "w", format="ipod", options={"movflags": "faststart"}) as output,
        ):
            stream = output.add_stream_from_template(source.streams.audio[0])
            for packet in source.demux(audio=0):
                if packet.dts is not None:
                    packet.stream = stream
                    output.mux(packet)
        whole = path.read_bytes()
        assert whole.index(b"moov") < whole.index(b"mdat")
    for kept in (30, whole.index(b"moov") + 300, len(whole) // 2, round(0.95 * len(whole))):
        with pytest.raises(TruncatedAudio):
            load_audio(whole[:kept])


@pytest.mark.parametrize("container", ["mp3", "adts", "webm"])
def test_a_stream_that_declares_no_length_plays_until_it_was_cut(container: str) -> None:
    codec = {"mp3": "libmp3lame", "adts": "aac", "webm": "libopus"}[container]
    options = {"mp3": {"write_xing": "0"}, "adts": {}, "webm": {"live": "1"}}[container]
    data = with_ffmpeg(4, 48_000, container, codec, options)
    assert_is_tone(load_audio(data[: len(data) // 2]), 2, within=0.15)


def test_a_file_of_0_bytes_is_empty() -> None:
    with pytest.raises(EmptyAudio, match="0 bytes; send WAV"):
        load_audio(b"")


@pytest.mark.parametrize(
    "data",
    [
        wav(tone(0, SAMPLE_RATE)),
        wav(tone(0, SAMPLE_RATE)) + b"LIST\4\0\0\0INFO",
        flac_header(),
        with_soundfile(tone(0, SAMPLE_RATE), SAMPLE_RATE, "OGG", "VORBIS"),
    ],
    ids=["wav", "wav with tags after the sound", "flac", "ogg"],
)
def test_a_container_of_0_samples_is_empty(data: bytes) -> None:
    with pytest.raises(EmptyAudio, match="0 samples"):
        load_audio(data)


@pytest.mark.parametrize("container", ["mp4", "matroska"])
def test_a_video_without_sound_has_no_audio_stream(container: str) -> None:
    with pytest.raises(NoAudioStream, match="holds video but no sound"):
        load_audio(video(container))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_sample_that_is_not_a_number_is_named_with_its_place(value: float, channels: int) -> None:
    samples = tone(60, SAMPLE_RATE, channels)
    samples[50 * SAMPLE_RATE, 0] = value
    with pytest.raises(NonFiniteAudio, match=r"at 50\.000 s is (nan|-?inf|1e\+30|5e\+29)"):
        load_audio(wav(samples, subtype="FLOAT"))


def test_a_recording_that_declares_too_much_is_refused_before_it_is_read() -> None:
    with pytest.raises(AudioTooLong, match=r"lasts 5\.0 s, more than the 4\.0 s allowed"):
        load_audio(flac(5), AudioLimits(max_seconds=4))


@pytest.mark.parametrize(
    "data",
    [
        without_declared_length(flac(5)),
        with_ffmpeg(5, 48_000, "webm", "libopus", {"live": "1"}),
        with_soundfile(tone(5, 48_000), 48_000, "OGG", "OPUS"),
    ],
    ids=["flac", "webm", "ogg"],
)
def test_a_recording_that_declares_nothing_is_refused_when_it_grows_too_long(data: bytes) -> None:
    with pytest.raises(AudioTooLong, match=r"goes on after the 4\.0 s allowed"):
        load_audio(data, AudioLimits(max_seconds=4))
    assert len(load_audio(data, AudioLimits(max_seconds=5.1))) > 4.9 * SAMPLE_RATE


def test_hours_in_a_small_file_are_refused_at_the_limit() -> None:
    """A minute of silence of MP3 frames, all alike, is repeated to 8 hours: 14 MB."""
    silence = io.BytesIO()
    with av.open(silence, "w", format="mp3", options={"write_xing": "0"}) as output:
        stream = output.add_stream("libmp3lame", rate=8_000, layout="mono")
        assert isinstance(stream, av.AudioStream)
        stream.bit_rate = 8_000
        for _ in range(60):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 8_000), np.int16), "s16p", "mono")
            frame.sample_rate = 8_000
            output.mux(stream.encode(frame))
    data = silence.getvalue() * (8 * 60)
    assert len(data) < AudioLimits().max_bytes
    with pytest.raises(AudioTooLong, match="after the 600.0 s"):
        load_audio(data, AudioLimits(max_seconds=600))


@pytest.mark.parametrize("rate", [8_000, 44_100])
def test_a_recording_of_just_the_longest_length_is_read(rate: int) -> None:
    data = with_soundfile(np.zeros((3600 * rate, 1)), rate, "FLAC")
    assert len(load_audio(data, AudioLimits(max_seconds=3600))) == 3600 * SAMPLE_RATE
    data = with_soundfile(np.zeros((3600 * rate + 1, 1)), rate, "FLAC")
    with pytest.raises(AudioTooLong):
        load_audio(data, AudioLimits(max_seconds=3600))


def test_a_file_of_too_many_bytes_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "large.bin"
    path.write_bytes(b"\0" * 2001)
    for source in (path, path.read_bytes()):
        with pytest.raises(AudioTooLarge, match="has 2,001 bytes, more than the 2,000 allowed"):
            load_audio(source, AudioLimits(max_bytes=2000))


def test_packets_of_a_single_sample_are_refused() -> None:
    """They would cost a hundred times the work of a sane file."""
    data = bytearray(with_soundfile(tone(2, SAMPLE_RATE), SAMPLE_RATE, "CAF", "PCM_16"))
    frames_a_packet = data.index(b"desc") + 12 + 20
    struct.pack_into(">I", data, frames_a_packet, 513)  # too many for FFmpeg to join packets
    with pytest.raises(NotAudio, match="packets hold no more than"):
        load_audio(data)


def test_each_error_has_a_code_of_its_own() -> None:
    codes = [error.code for error in AudioError.__subclasses__()]
    assert sorted(codes) == [
        "audio_too_large",
        "audio_too_long",
        "empty_audio",
        "no_audio_stream",
        "non_finite_audio",
        "not_audio",
        "truncated_audio",
        "unsupported_sample_rate",
    ]


def test_a_path_that_is_not_there_is_the_caller_s_error() -> None:
    with pytest.raises(FileNotFoundError):
        load_audio("no-such-file.wav")


def test_a_name_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "recording.raw").write_bytes(wav(tone(1, SAMPLE_RATE)))
    assert_is_tone(load_audio(tmp_path / "recording.raw"), 1)


@pytest.mark.parametrize("screened", [False, True])
def test_a_stream_that_begins_in_mid_file_costs_the_sound_nothing(screened: bool) -> None:
    """As where a broadcast's recorder meets the next programme."""
    data = bytearray(with_ffmpeg(2, 48_000, "mpegts", "aac"))
    assert len(load_audio(data)) / SAMPLE_RATE == pytest.approx(2, abs=0.05)
    starts = [p for p in range(0, len(data), 188) if data[p + 1] & 0x40 and data[p + 1] & 0x1F == 1]
    data[starts[-1] + 2] = 0x7F  # a packet that begins a frame, with the number of another stream
    samples = load_audio(data, screen=Screen() if screened else None)
    assert 1.5 < len(samples) / SAMPLE_RATE < 2.05


def test_short_frames_take_no_memory_of_their_own() -> None:
    """The file's 24,000 frames of 2.5 ms give few pieces to be joined."""
    pieces: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "model.audio._joined", lambda them: pieces.append(len(them)) or torch.cat(them)
        )
        load_audio(
            with_ffmpeg(60, 48_000, "webm", "libopus", codec_options={"frame_duration": "2.5"})
        )
    assert pieces[0] < 100


def test_threads_read_at_the_same_time() -> None:
    paths = [FIXTURES / clip["audio_filepath"] for clip in CLIPS] * 4
    expected = [load_audio(path) for path in paths]
    with ThreadPoolExecutor(8) as threads:
        for one, other in zip(threads.map(load_audio, paths), expected, strict=True):
            assert torch.equal(one, other)


SMALL = [
    wav(tone(0.2, 8_000), 8_000),
    wav(tone(0.2, 44_100, 2), 44_100, "FLOAT"),
    flac(0.2),
    with_soundfile(tone(0.2, 16_000), 16_000, "OGG", "OPUS"),
    with_ffmpeg(0.2, 44_100, "mp3", "libmp3lame"),
    with_ffmpeg(0.2, 44_100, "wav", "libmp3lame"),
    with_ffmpeg(0.2, 44_100, "ipod", "aac"),
    with_ffmpeg(0.2, 48_000, "webm", "libopus"),
]


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(SMALL),
    st.lists(st.tuples(st.integers(0, 600), st.binary(min_size=1, max_size=4)), max_size=8),
    st.floats(0, 1),
)
def test_damaged_files_give_sound_or_an_audio_error(
    data: bytes, damage: list[tuple[int, bytes]], kept: float
) -> None:
    damaged = bytearray(data[: round(kept * len(data))])
    for position, values in damage:
        damaged[position : position + len(values)] = values
    try:
        samples = load_audio(damaged)
    except AudioError:
        return
    assert len(samples) and samples.isfinite().all()


@pytest.mark.parametrize("second", [(22_050, 1), (16_000, 2)], ids=["rate", "channels"])
def test_a_chain_that_cannot_be_read_on_is_no_short_recording(second: tuple[int, int]) -> None:
    """As a radio's recordings are: several Ogg streams, one after the other."""
    rate, channels = second
    first = with_soundfile(tone(3.0, 16_000), 16_000, "OGG", "VORBIS")
    other = with_soundfile(tone(2.0, rate, channels), rate, "OGG", "VORBIS")
    with pytest.raises(TruncatedAudio, match="cannot be read on after"):
        load_audio(first + other)
    same = with_soundfile(tone(2.0, 16_000), 16_000, "OGG", "VORBIS")
    assert len(load_audio(first + same)) / SAMPLE_RATE == pytest.approx(5.0, abs=0.1)


@pytest.mark.parametrize("container", ["WAV", "W64"])
def test_more_samples_a_second_than_are_decoded_are_refused(container: str) -> None:
    many = with_soundfile(tone(0.1, 48_000, 64), 48_000, container, "PCM_16")
    with pytest.raises(AudioTooLarge, match="64 channels of 48,000 Hz are 3,072,000 samples"):
        load_audio(many)
    assert_is_tone(load_audio(with_soundfile(tone(1.0, 48_000, 32), 48_000, "WAV", "PCM_16")), 1.0)
