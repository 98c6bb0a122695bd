"""Which labels of a manifest may be wrong: the utterances whose text a model finds least likely.

    python -m training.check_labels --checkpoint DIR --manifest train.jsonl --output doubtful.jsonl

The output has a line for each utterance, the most doubtful first. A person reads it from the top: what a
model does not understand stands there as well. `docs/training.md` tells how to drop lines.
"""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jiwer
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from whisper_normalizer.english import EnglishTextNormalizer

from model.alignment import fits, text_logprob
from model.audio import SAMPLE_RATE, AudioError, load_audio
from model.recognizer import Recognizer
from model.search import greedy_search
from training.arguments import parse_config
from training.files import write_text
from training.manifest import Utterance, read_manifest
from training.punctuate import written_form

_normalize = EnglishTextNormalizer()


class CheckConfig(BaseModel):
    """What to check, and with which model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    checkpoint: Path = Field(description="checkpoint folder")
    manifest: Path = Field(description="NeMo JSON Lines with the recordings and their texts")
    output: Path = Field(description="JSON Lines file, the most doubtful utterance first")
    device: str = Field(default="auto", description="auto is a GPU where there is one")
    dtype: str = Field(default="auto", description="float32, bfloat16, or what fits the device")
    threads: int | None = Field(default=None, ge=1, description="torch's; all cores if not given")


@dataclass(frozen=True)
class Checked:
    """A label and what the model makes of it; losses are in nats.

    Attributes:
        heard: the text that the model writes itself.
        wer: of what it heard against the label, normalized; None where the label has no word.
        ctc_loss: of the label by the CTC head, for each of its characters, on the best alignment;
            None where the audio is too short for it.
        cross_entropy: of the label in the dress of what was heard by the decoder, for each token.
        doubt: how much likelier the model finds what it heard than the label, in nats, by the head
            that doubts less: what one head misheard, the other mostly did not.
    """

    utterance: Utterance
    heard: str
    wer: float | None
    ctc_loss: float | None
    cross_entropy: float
    doubt: float


@torch.inference_mode()
def check(
    recognizer: Recognizer, utterances: Sequence[Utterance], waveforms: Sequence[Tensor]
) -> list[Checked]:
    """Check labels in one forward pass; no waveform is longer than the network hears at once."""
    network = recognizer.network
    samples = torch.tensor([len(w) for w in waveforms], device=recognizer.device)
    padded = pad_sequence(list(waveforms), batch_first=True).to(recognizer.device)
    features, frames = recognizer.features(padded, samples)
    encoded = network.encoder(features, frames)
    found = greedy_search(network.decoder, encoded, frames, recognizer.tokenizer)
    heard = [recognizer.tokenizer.decode(decoded.tokens) for decoded in found]
    written = [written_form(u.text, h) for u, h in zip(utterances, heard, strict=True)]
    decoder_losses = [
        _decoder_losses(recognizer, encoded, frames, texts) for texts in (written, heard)
    ]
    logprobs = network.ctc(encoded, frames).cpu()
    return [
        _checked(recognizer, utterance, text, rows[:count], label, own)
        for utterance, text, rows, count, label, own in zip(
            utterances, heard, logprobs, frames.tolist(), *decoder_losses, strict=True
        )
    ]


def _decoder_losses(
    recognizer: Recognizer, encoded: Tensor, frames: Tensor, texts: Sequence[str]
) -> list[Tensor]:
    """What each token of each text, and its end, costs the decoder: (tokens + 1,) each."""
    tokenizer, decoder = recognizer.tokenizer, recognizer.network.decoder
    prompt = list(tokenizer.prompt)
    room = decoder.embed_positions.num_embeddings - len(prompt)
    tokens = [  # a text that is longer is no text of half a minute, and doubted without its end
        torch.tensor([*tokenizer.encode(text)[:room], tokenizer.end]) for text in texts
    ]
    fed = [torch.tensor([*prompt, *own[:-1]]) for own in tokens]
    hidden = decoder(
        pad_sequence(fed, batch_first=True, padding_value=tokenizer.end).to(encoded.device),
        decoder.start(encoded, frames),
    )
    first = len(prompt) - 1  # the place after which the text's first token stands
    return [
        F.cross_entropy(
            decoder.scores(row[first : first + len(own)]).float().cpu(), own, reduction="none"
        )
        for row, own in zip(hidden, tokens, strict=True)
    ]


def _checked(
    recognizer: Recognizer,
    utterance: Utterance,
    heard: str,
    logprobs: Tensor,
    label_losses: Tensor,
    heard_losses: Tensor,
) -> Checked:
    """`logprobs` (frames, labels) of the CTC head; the losses are the decoder's."""
    reference, characters = _normalize(utterance.text), recognizer.characters
    doubt = float(label_losses.sum() - heard_losses.sum())
    ctc_loss = None
    if fits(utterance.text, len(logprobs), characters):
        loss = -text_logprob(logprobs, utterance.text, characters)
        ctc_loss = loss / max(1, len(characters.encode(utterance.text)))
        if fits(heard, len(logprobs), characters):
            doubt = min(doubt, loss + text_logprob(logprobs, heard, characters))
    return Checked(
        utterance=utterance,
        heard=heard,
        wer=float(jiwer.wer(reference, _normalize(heard))) if reference else None,
        ctc_loss=ctc_loss,
        cross_entropy=float(label_losses.mean()),
        doubt=doubt,
    )


def run(config: CheckConfig) -> list[Checked]:
    """Check a manifest and write the output, most doubtful first.

    Lines and recordings that cannot be used are named on stderr and do not stand in the output.

    Raises:
        CheckpointError, ValueError: the checkpoint cannot be loaded as asked.
        OSError: the manifest cannot be read, or the output not written.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    recognizer = Recognizer.load(config.checkpoint, device=config.device, dtype=config.dtype)
    utterances, rejected = read_manifest(config.manifest)
    for line in rejected:
        print(f"line {line.line} is left out: {line.reason}", file=sys.stderr)
    checked: list[Checked] = []
    with tqdm(total=len(utterances), unit="label", disable=not sys.stderr.isatty()) as bar:
        for batch in _batches(utterances, recognizer.max_batch_seconds):
            usable = []
            for utterance in batch:
                try:
                    waveform = load_audio(utterance.audio_filepath)
                except (AudioError, OSError) as error:
                    print(f"{utterance.audio_filepath} is left out: {error}", file=sys.stderr)
                    continue
                if len(waveform) <= recognizer.longest_seconds * SAMPLE_RATE:
                    usable.append((utterance, waveform))
                else:
                    reason = f"longer than {recognizer.longest_seconds} s"
                    print(f"{utterance.audio_filepath} is left out: {reason}", file=sys.stderr)
            if usable:
                checked += check(recognizer, *zip(*usable, strict=True))
            bar.update(len(batch))
    checked.sort(key=lambda entry: -entry.doubt)
    folder = os.path.dirname(os.path.abspath(config.manifest))
    lines = (json.dumps(_line(entry, folder), ensure_ascii=False) + "\n" for entry in checked)
    write_text(config.output, "".join(lines))
    return checked


def _batches(utterances: Sequence[Utterance], seconds: float) -> Iterator[list[Utterance]]:
    """Utterances of similar length together, at most so many padded seconds of them."""
    batch: list[Utterance] = []
    for utterance in sorted(utterances, key=lambda u: u.duration):  # so this is the longest so far
        if batch and utterance.duration * (len(batch) + 1) > seconds:
            yield batch
            batch = []
        batch.append(utterance)
    if batch:
        yield batch


def _line(entry: Checked, folder: str) -> dict[str, Any]:
    """What the output says of an utterance; the path is the manifest's, from its `folder`."""
    utterance = entry.utterance
    return {
        "audio_filepath": Path(os.path.relpath(utterance.audio_filepath, folder)).as_posix(),
        "text": utterance.text,
        "heard": entry.heard,
        "doubt": round(entry.doubt, 2),
        "wer": None if entry.wer is None else round(entry.wer, 3),
        "ctc_loss": None if entry.ctc_loss is None else round(entry.ctc_loss, 3),
        "cross_entropy": round(entry.cross_entropy, 3),
        "duration": utterance.duration,
        "speaker": utterance.speaker,
        "label": utterance.label,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    config = parse_config(CheckConfig, "python -m training.check_labels", arguments)
    try:
        checked = run(config)
    except (ValueError, OSError) as error:
        print(f"check_labels: {error}", file=sys.stderr)
        return 1
    print(f"{config.output}: {len(checked)} utterances, the most doubtful first")
    return 0


if __name__ == "__main__":
    sys.exit(main())
