"""The entry point that TorchServe loads from the archive; it only translates.

TorchServe's contract: `initialize` once in each worker, then `handle` for each batch with one
answer for each item, in order. An exception or a wrong count would fail the whole batch.
"""

import logging
from pathlib import Path
from typing import Any

import torch

from handler.batch import BatchTranscriber, DeviceLostError, Item
from handler.busy import Colleagues, busy
from handler.config import read_handler_config, workers_of
from handler.cpus import threads_for_worker
from handler.kernels import bound_kernel_caches
from handler.metrics import report
from handler.transport import Part, keep_parts_as_sent, request_headers
from model.recognizer import Recognizer

logger = logging.getLogger(__name__)


class AsrHandler:
    """One worker: a recognizer and the translation to and from TorchServe."""

    def __init__(self) -> None:
        self._transcriber: BatchTranscriber | None = None
        self._colleagues = Colleagues()

    def initialize(self, context: Any) -> None:
        """Load the checkpoint beside this file and warm it up; READY comes after.

        Raises:
            pydantic.ValidationError: for a wrong `handler:` section.
            ValueError: for a device or a precision that is not here, or tokens that guard badly.
            OSError: for a file of tokens that cannot be read.
            model.checkpoint.CheckpointError: for a damaged checkpoint.
            model.language_model.LanguageModelError: for a damaged n-gram in it.
        """
        config = read_handler_config(context.model_yaml_config)
        share = config.cpu_threads or threads_for_worker(workers_of(context.model_yaml_config))
        most = config.cpu_threads or threads_for_worker(1)
        bound_kernel_caches()
        torch.set_num_interop_threads(1)

        properties = context.system_properties
        device: str = config.device
        if device != "cpu" and torch.cuda.is_available() and properties["gpu_id"] is not None:
            device = f"cuda:{properties['gpu_id']}"
        elif device == "auto":  # TorchServe gives no GPU, even if there is one
            device = "cpu"
        # Before the first operation: torch would take all cores for each worker. On a CPU the
        # recognizer takes what it may; to begin with most of it spares one caller a change each time.
        torch.set_num_threads(most if device == "cpu" else share)
        archive = Path(properties["model_dir"])
        recognizer = Recognizer.load(
            archive / config.checkpoint,
            device=device,
            dtype=config.dtype,
            max_batch_seconds=config.max_batch_seconds,
            threads=lambda: share if self._colleagues.are_at_work() else most,
        )
        transcriber = BatchTranscriber(recognizer, config, share)
        with self._colleagues.joined():
            transcriber.warm_up(config.warmup_seconds)
        keep_parts_as_sent()
        self._transcriber = transcriber
        logger.info("Ready on %s with %d to %d CPU threads", recognizer.device, share, most)

    def handle(self, data: list[list[Part]], context: Any) -> list[str]:
        """Answer one batch."""
        with busy(), self._colleagues.joined():
            return self._handle(data, context)

    def _handle(self, data: list[list[Part]], context: Any) -> list[str]:
        assert self._transcriber is not None, "TorchServe calls initialize first"
        items = [
            Item(
                context.get_request_id(index),
                parts,
                request_headers(context.get_all_request_header(index)),
            )
            for index, parts in enumerate(data)
        ]
        # TorchServe logs a request when it is answered, and without its name: one that ends the worker
        # would leave no trace, and one that is refused no reason. Messages quote callers and stay out.
        for item in items:
            size = sum(len(part.value) for part in item.parts)
            logger.info("request %s: %d bytes", item.request_id, size)
        try:
            batch = self._transcriber.answer(items)
        except DeviceLostError as error:
            # No later request could succeed in this process. TorchServe answers this batch with
            # 500 and starts a new worker only when the process ends.
            logger.critical("Leaving, so that TorchServe starts a new worker: %s", error)
            raise SystemExit(1) from error
        for index, answer in enumerate(batch.answers):
            if answer.error:
                name = items[index].request_id
                logger.info("request %s: %d %s", name, answer.status, answer.error)
            context.set_response_content_type(index, answer.content_type)
            context.set_response_status(answer.status, answer.status.phrase, index)
            if answer.status == answer.status.SERVICE_UNAVAILABLE:
                context.set_response_header(index, "Retry-After", "1")
            elif answer.status == answer.status.UNAUTHORIZED:
                context.set_response_header(index, "WWW-Authenticate", "Bearer")
        report(batch, context.metrics)
        return [answer.body for answer in batch.answers]
