"""What a real server cannot be made to show: a model that fails. The recognizer here is a fake."""

import io
import json
import logging
from collections.abc import Callable, Sequence
from http import HTTPStatus
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from handler.asr_handler import AsrHandler
from handler.batch import BatchAnswer, BatchTranscriber, DeviceLostError, Item
from handler.config import HandlerConfig
from handler.transport import Part
from model.audio import SAMPLE_RATE
from model.hotwords import Hotword
from model.recognizer import BatchResult, Recognizer, TranscribeOptions
from model.transcript import Transcript
from tests.random_checkpoint import make_random_checkpoint

POISON_SECONDS = 3


class FragileRecognizer:
    """Says how long each clip is; meets `fail` whenever a clip of 3 s is in the call."""

    config = SimpleNamespace(language="en")

    def __init__(self, fail: Callable[[], None]) -> None:
        self.fail = fail
        self.calls: list[int] = []
        self.options: list[TranscribeOptions] = []

    def transcribe(
        self, waveforms: Sequence[Tensor], options: Sequence[TranscribeOptions]
    ) -> BatchResult:
        self.calls.append(len(waveforms))
        self.options += options
        seconds = [len(waveform) / SAMPLE_RATE for waveform in waveforms]
        if POISON_SECONDS in seconds:
            self.fail()
        transcripts = [Transcript(f"{s:.0f} seconds", "en", s, ()) for s in seconds]
        total = sum(seconds)
        return BatchResult(transcripts, total, total, max(seconds) * len(seconds))


def raising(error: BaseException) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


def wav(seconds: int) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.zeros(seconds * SAMPLE_RATE, np.float32), SAMPLE_RATE, format="WAV")
    return file.getvalue()


def item(body: bytes, number: int = 0) -> Item:
    return Item(f"request-{number}", [Part("body", "", body)], {"X-Steno-Response-Format": "text"})


def transcriber(recognizer: FragileRecognizer) -> BatchTranscriber:
    return BatchTranscriber(cast(Recognizer, recognizer), HandlerConfig(), threads=2)


def answer(recognizer: FragileRecognizer, *bodies: bytes) -> BatchAnswer:
    items = [item(body, number) for number, body in enumerate(bodies)]
    return transcriber(recognizer).answer(items)


def test_a_bad_file_never_reaches_the_model() -> None:
    recognizer = FragileRecognizer(raising(AssertionError()))
    batch = answer(recognizer, wav(1), b"no sound", wav(2))
    assert recognizer.calls == [2]
    assert [a.status for a in batch.answers] == [200, 400, 200]
    assert [a.body.strip() for a in batch.answers[::2]] == ["1 seconds", "2 seconds"]
    assert (batch.audio_seconds, batch.padded_seconds) == (3, 4)


def test_each_recording_is_recognized_with_the_options_of_its_request() -> None:
    sent: list[tuple[dict[str, str], TranscribeOptions]] = [
        ({}, TranscribeOptions("accurate", word_timestamps=False)),
        (
            {"mode": "fast", "hotwords": "Hof Brau:2", "response_format": "srt"},
            TranscribeOptions("fast", word_timestamps=True, hotwords=(Hotword("Hof Brau", 2.0),)),
        ),
        (
            {"prompt": "At O'Farrell's.", "beam_size": "2", "response_format": "verbose_json"},
            TranscribeOptions(
                "accurate", word_timestamps=True, prompt="At O'Farrell's.", beam_size=2
            ),
        ),
    ]
    recognizer = FragileRecognizer(raising(AssertionError()))
    headers = {"content-type": "multipart/form-data; boundary=b"}
    items = [
        Item(
            f"request-{number}",
            [
                Part("file", "", wav(1)),
                *(Part(name, "", value.encode()) for name, value in fields.items()),
            ],
            headers,
        )
        for number, (fields, _) in enumerate(sent)
    ]
    batch = transcriber(recognizer).answer(items)
    assert [a.status for a in batch.answers] == [200] * 3, batch.answers
    assert recognizer.options == [options for _, options in sent]


def test_a_pod_may_allow_less_than_the_archive() -> None:
    recognizer = FragileRecognizer(raising(AssertionError()))
    for limits in ({"max_audio_seconds": 1.5}, {"max_audio_bytes": len(wav(2)) - 1}):
        small = BatchTranscriber(cast(Recognizer, recognizer), HandlerConfig(**limits), 2)
        batch = small.answer([item(wav(1), 0), item(wav(2), 1)])
        assert [a.status for a in batch.answers] == [200, 413]


def test_long_recordings_of_a_batch_are_recognized_before_more_is_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("handler.batch.PORTION_SECONDS", 8.0)
    recognizer = FragileRecognizer(raising(AssertionError()))
    bodies = [wav(5), wav(4), wav(1), b"no sound", wav(2), wav(1), b"", wav(6)]
    batch = answer(recognizer, *bodies)  # decoded two by two
    assert recognizer.calls == [2, 4]
    assert [a.status for a in batch.answers] == [200, 200, 200, 400, 200, 200, 400, 200]
    texts = [a.body.strip() for a in batch.answers if a.status == 200]
    assert texts == [f"{seconds} seconds" for seconds in (5, 4, 1, 2, 1, 6)]
    assert batch.audio_seconds == 19


def test_a_batch_of_bad_files_calls_no_model() -> None:
    recognizer = FragileRecognizer(raising(AssertionError()))
    batch = answer(recognizer, b"no sound", b"")
    assert recognizer.calls == []
    assert [a.error for a in batch.answers] == ["not_audio", "empty_audio"]


def test_an_item_that_breaks_the_model_fails_alone_and_is_logged_with_its_id(
    caplog: pytest.LogCaptureFixture,
) -> None:
    recognizer = FragileRecognizer(raising(RuntimeError("secret path /weights")))
    with caplog.at_level(logging.ERROR):
        batch = answer(recognizer, wav(1), wav(POISON_SECONDS), wav(2))
    assert recognizer.calls == [3, 1, 1, 1]
    assert [a.status for a in batch.answers] == [200, 500, 200]
    error = json.loads(batch.answers[1].body)["error"]
    assert error["type"] == "internal_error"
    assert "secret" not in error["message"]
    assert "request-1 alone" in caplog.text
    assert "secret path" in caplog.text  # the traceback
    assert batch.audio_seconds == 3  # of what was transcribed


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
    ],
)
def test_an_item_too_large_for_memory_gets_503_alone(error: BaseException) -> None:
    batch = answer(FragileRecognizer(raising(error)), wav(1), wav(POISON_SECONDS))
    assert [a.status for a in batch.answers] == [200, HTTPStatus.SERVICE_UNAVAILABLE]
    assert batch.answers[1].error == "out_of_memory"
    assert "CUDA" not in batch.answers[1].body


def test_a_lost_gpu_is_not_hidden() -> None:
    recognizer = FragileRecognizer(raising(RuntimeError("CUDA error: device-side assert")))
    with pytest.raises(DeviceLostError):
        answer(recognizer, wav(1), wav(POISON_SECONDS))


class FakeContext:
    """The part of TorchServe's context that `handle` uses."""

    def get_request_id(self, index: int) -> str:
        return f"request-{index}"

    def get_all_request_header(self, index: int) -> dict[str, str]:
        return {}

    def set_response_content_type(self, index: int, value: str) -> None:
        pass

    def set_response_status(self, code: int, phrase: str, index: int) -> None:
        pass

    metrics = None


def test_what_the_archive_says_reaches_the_recognizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_random_checkpoint(tmp_path / "another")
    load = Recognizer.load
    loaded: list[dict[str, Any]] = []

    def noted(folder: Path, **given: Any) -> Recognizer:
        loaded.append({"folder": folder, **given})
        return load(folder, **given)

    monkeypatch.setattr(Recognizer, "load", noted)
    for once in ("keep_parts_as_sent", "bound_kernel_caches", "torch.set_num_interop_threads"):
        monkeypatch.setattr(f"handler.asr_handler.{once}", lambda *_: None)  # of a whole process
    settings = {
        "checkpoint": "another",
        "dtype": "float32",
        "max_batch_seconds": 25,
        "cpu_threads": 1,
        "warmup_seconds": [0.5],
    }
    threads = torch.get_num_threads()
    handler = AsrHandler()
    try:
        handler.initialize(
            SimpleNamespace(
                model_yaml_config={"maxWorkers": 2, "handler": settings},
                system_properties={"gpu_id": None, "model_dir": str(tmp_path)},
            )
        )
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)
    (given,) = loaded
    assert given.pop("threads")() == 1
    assert given == {
        "folder": tmp_path / "another",
        "device": "cpu",
        "dtype": "float32",
        "max_batch_seconds": 25,
    }
    assert handler._transcriber is not None


def test_the_log_names_each_request_before_it_is_read_and_each_that_failed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What ends a worker, or the whole pod, is found by its last line."""
    handler = AsrHandler()
    handler._transcriber = transcriber(FragileRecognizer(raising(KeyboardInterrupt())))
    poison = wav(POISON_SECONDS)
    with caplog.at_level(logging.INFO), pytest.raises(KeyboardInterrupt):
        handler.handle([[Part("body", "", poison)]], FakeContext())
    assert caplog.messages[-1] == f"request request-0: {len(poison)} bytes"
    monkeypatch.setattr("handler.asr_handler.report", lambda *_: None)
    with caplog.at_level(logging.INFO):
        handler.handle([[Part("body", "", b"secret")], [Part("body", "", wav(1))]], FakeContext())
    assert caplog.messages[-1] == "request request-0: 400 not_audio"
    assert "secret" not in caplog.text


def test_a_worker_with_a_lost_gpu_ends_so_that_torchserve_starts_a_new_one() -> None:
    handler = AsrHandler()
    handler._transcriber = transcriber(
        FragileRecognizer(raising(RuntimeError("CUDA error: an illegal memory access")))
    )
    with pytest.raises(SystemExit) as ended:
        handler.handle([[Part("body", "", wav(POISON_SECONDS))]], FakeContext())
    assert ended.value.code == 1
