"""A handler as TorchServe's wav2vec2 example has it, around our network: what users start from.

One item of a batch, no form fields, no limits, no errors of its own, no metrics. Kinder than the
example in two ways: the audio may be longer than the network's window, and the precision is ours.
`threads` in its configuration is what each worker gets; without it torch takes all cores for each.
It is packed in the place of `asr_handler.py`, and is no part of the product.
"""

import io
from pathlib import Path
from typing import Any

import soundfile
import torch
import torchaudio

from model.audio import SAMPLE_RATE
from model.recognizer import Recognizer, TranscribeOptions


class OfficialStyleHandler:
    def initialize(self, context: Any) -> None:
        if threads := context.model_yaml_config.get("threads"):
            torch.set_num_threads(threads)
        folder = Path(context.system_properties["model_dir"])
        self.recognizer = Recognizer.load(folder / "checkpoint")

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[str]:
        content = data[0].get("data") or data[0]["body"]
        samples, rate = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
        waveform = torch.from_numpy(samples.mean(axis=1))
        if rate != SAMPLE_RATE:
            waveform = torchaudio.functional.resample(waveform, rate, SAMPLE_RATE)
        options = TranscribeOptions(word_timestamps=False)
        return [self.recognizer.transcribe([waveform], options).transcripts[0].text]
