"""One batch of requests into one batch of answers, where a bad item costs only itself."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import TypeVar

import torch
from torch import Tensor

from handler.auth import Tokens
from handler.config import HandlerConfig
from handler.errors import RequestError, error_body
from handler.request import Options, Supported, parse_request
from handler.transport import Part
from model.audio import SAMPLE_RATE, AudioError, AudioTooLarge, AudioTooLong, load_audio
from model.recognizer import LANGUAGES, BatchResult, Recognizer, TranscribeOptions
from model.screening import Screen
from model.transcript import CONTENT_TYPES, WITH_TIMES, Transcript, render

JSON_TYPE = "application/json"
# Decoded audio of a batch that is more than this (0.1 GB) is recognized before more is decoded; nothing
# is faster with more at once. What the threads decode at the same time comes on top.
PORTION_SECONDS = 1800.0

logger = logging.getLogger(__name__)
Result = TypeVar("Result")


@dataclass(frozen=True)
class Item:
    """One request of a batch as the transport gave it."""

    request_id: str
    parts: Sequence[Part]
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Answer:
    """One HTTP answer; `error` is the error's type, None when the text is there."""

    body: str
    content_type: str = JSON_TYPE
    status: HTTPStatus = HTTPStatus.OK
    error: str | None = None


@dataclass(frozen=True)
class BatchAnswer:
    """The answers in the order of the requests, and what they took; times in seconds."""

    answers: list[Answer]
    decode_seconds: float
    model_seconds: float
    audio_seconds: float
    heard_seconds: float
    padded_seconds: float


class DeviceLostError(RuntimeError):
    """The GPU refuses all further work in this process; only a new worker helps."""


@dataclass(frozen=True)
class _Decoded:
    request_id: str
    options: Options
    waveform: Tensor


@dataclass
class _Totals:
    decode_seconds: float = 0.0
    model_seconds: float = 0.0
    audio_seconds: float = 0.0
    heard_seconds: float = 0.0
    padded_seconds: float = 0.0

    def add(self, result: BatchResult) -> None:
        self.audio_seconds += result.audio_seconds
        self.heard_seconds += result.heard_seconds
        self.padded_seconds += result.padded_seconds


class BatchTranscriber:
    """Answers batches with one recognizer; decodes in `threads` threads.

    A batch is decoded and recognized in portions, so that no more long recordings are in memory at once
    than there are threads.
    """

    def __init__(self, recognizer: Recognizer, config: HandlerConfig, threads: int) -> None:
        self._recognizer = recognizer
        self._limits = config.audio_limits
        self._screen = Screen()
        self._threads = threads
        self._tokens = Tokens(config.token_file) if config.token_file else None
        language = recognizer.config.language
        self._supported = Supported(
            config.model_names, (language, LANGUAGES.get(language, language))
        )
        # A thread decodes one file, so torch's resampling must not start threads of its own.
        self._pool = ThreadPoolExecutor(
            threads, "decode", initializer=torch.set_num_threads, initargs=(1,)
        )

    def answer(self, items: Sequence[Item]) -> BatchAnswer:
        """Answer every item: its text, its own 4xx, or its own 5xx.

        Raises:
            DeviceLostError: when the GPU is gone for this process; nothing can be answered.
        """
        totals = _Totals()
        answers: list[Answer] = []
        portion: list[_Decoded | Answer] = []
        for first in range(0, len(items), self._threads):
            start = time.perf_counter()
            portion += self._pool.map(self._read, items[first : first + self._threads])
            totals.decode_seconds += time.perf_counter() - start
            held = sum(len(item.waveform) for item in portion if isinstance(item, _Decoded))
            if held > PORTION_SECONDS * SAMPLE_RATE:
                answers += self._answer_portion(portion, totals)
                portion = []
        answers += self._answer_portion(portion, totals)
        return BatchAnswer(
            answers=answers,
            decode_seconds=totals.decode_seconds,
            model_seconds=totals.model_seconds,
            audio_seconds=totals.audio_seconds,
            heard_seconds=totals.heard_seconds,
            padded_seconds=totals.padded_seconds,
        )

    def _answer_portion(
        self, portion: Sequence[_Decoded | Answer], totals: _Totals
    ) -> list[Answer]:
        decoded = [item for item in portion if isinstance(item, _Decoded)]
        start = time.perf_counter()
        transcripts = iter(self._transcribe(decoded, totals))
        totals.model_seconds += time.perf_counter() - start
        return [
            item if isinstance(item, Answer) else _render(item, next(transcripts))
            for item in portion
        ]

    def _read(self, item: Item) -> _Decoded | Answer:
        def read() -> _Decoded:
            if self._tokens:
                self._tokens.check(item.headers)
            request = parse_request(item.parts, item.headers, self._supported)
            waveform = load_audio(request.audio, self._limits, self._screen)
            return _Decoded(item.request_id, request.options, waveform)

        return _guarded(read, f"reading request {item.request_id}")

    def _transcribe(
        self, decoded: Sequence[_Decoded], totals: _Totals
    ) -> Sequence[Transcript | Answer]:
        if not decoded:
            return []
        ids = ", ".join(item.request_id for item in decoded)
        whole = _guarded(partial(self._recognize, decoded), f"transcribing {ids}")
        if not isinstance(whole, Answer):
            totals.add(whole)
            return whole.transcripts
        if len(decoded) == 1:
            return [whole]
        # One item poisons the call for all; alone, it fails alone.
        transcripts: list[Transcript | Answer] = []
        for item in decoded:
            what = f"transcribing {item.request_id} alone"
            single = _guarded(partial(self._recognize, [item]), what)
            if isinstance(single, Answer):
                transcripts.append(single)
            else:
                totals.add(single)
                transcripts += single.transcripts
        return transcripts

    def _recognize(self, decoded: Sequence[_Decoded]) -> BatchResult:
        return self._recognizer.transcribe(
            [item.waveform for item in decoded],
            [
                TranscribeOptions(
                    mode=item.options.mode,
                    word_timestamps=item.options.response_format in WITH_TIMES,
                    prompt=item.options.prompt,
                    hotwords=item.options.hotwords,
                    beam_size=item.options.beam_size,
                )
                for item in decoded
            ],
        )

    def warm_up(self, seconds: Sequence[float]) -> None:
        """Run both modes on noise of these lengths, alone and together, so that no caller waits."""
        generator = torch.Generator().manual_seed(0)
        noise = [
            0.01 * torch.randn(int(length * SAMPLE_RATE), generator=generator) for length in seconds
        ]
        for options in (TranscribeOptions("accurate", True), TranscribeOptions("fast", True)):
            for waveform in noise:
                self._recognizer.transcribe([waveform], options)
            self._recognizer.transcribe(noise, options)


def _guarded(work: Callable[[], Result], what: str) -> Result | Answer:
    """Do `work`; return the answer its failure deserves."""
    try:
        return work()
    except RequestError as error:
        return _error(error.status, error.type, str(error), error.param)
    except AudioError as error:
        too_large = isinstance(error, AudioTooLong | AudioTooLarge)
        status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE if too_large else HTTPStatus.BAD_REQUEST
        return _error(status, error.code, str(error), "file")
    except Exception as error:
        if is_out_of_memory(error):
            logger.exception("Out of memory while %s", what)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            return _error(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "out_of_memory",
                "the server has no memory for this recording now; try again, or send it in parts",
            )
        logger.exception("Unexpected error while %s", what)
        if is_device_lost(error):
            raise DeviceLostError(str(error)) from error
        return _error(
            HTTPStatus.INTERNAL_SERVER_ERROR,
            "internal_error",
            "the server failed on this recording; its log says why under the answer's x-request-id",
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Tell a lack of memory, on either device; torch has a class for one kind of it alone."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    signs = ("DefaultCPUAllocator", "ALLOC_FAILED", "out of memory")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


def is_device_lost(error: BaseException) -> bool:
    """Tell a CUDA error that outlives its call (an assert on the device, an illegal address)."""
    return isinstance(error, torch.AcceleratorError) or "CUDA error" in str(error)


def _render(item: _Decoded, transcript: Transcript | Answer) -> Answer:
    if isinstance(transcript, Answer):
        return transcript
    options = item.options
    granularities = options.timestamp_granularities or ("segment",)
    return _guarded(
        lambda: Answer(
            render(transcript, options.response_format, granularities),
            CONTENT_TYPES[options.response_format],
        ),
        f"rendering {item.request_id}",
    )


def _error(status: HTTPStatus, type: str, message: str, param: str | None = None) -> Answer:
    return Answer(error_body(type, message, param), JSON_TYPE, status, type)
