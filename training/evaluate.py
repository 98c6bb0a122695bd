"""Measure a checkpoint on a manifest: error rates with their intervals, speed, a report.

    python -m training.evaluate --checkpoint model/shipped --manifest test.jsonl --output evaluation

The output folder gets `metrics.json`, `hypotheses.jsonl` and `report.html`.
"""

import hashlib
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from tqdm import tqdm

from model.audio import SAMPLE_RATE, AudioError, load_audio
from model.checkpoint import WEIGHTS, CheckpointError, load_checkpoint
from model.recognizer import Mode, Recognizer, TranscribeOptions
from training.arguments import parse_config
from training.corpus_statistics import fingerprint
from training.files import write_text
from training.machine import Machine
from training.manifest import Utterance, read_manifest
from training.padded import SECONDS, transcribe_padded
from training.report import render_report
from training.results import (
    Conditions,
    Evaluation,
    Speed,
    SystemResult,
    Unused,
    WrittenForm,
)
from training.scoring import Pair, ScoringError, score

# Audio that is held at once; sorted by length, so that the recognizer pads little within it.
_CHUNK_SECONDS = 600.0

Transcriber = Callable[[Sequence[Tensor]], list[str]]
# The checkpoint's place among those that are compared, and the mode or "baseline".
_System = tuple[int, str]


class EvaluationError(ValueError):
    """Nothing can be measured as asked."""


class EvaluateConfig(BaseModel):
    """What to measure, and on what."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    checkpoint: Path = Field(description="checkpoint folder")
    manifest: Path = Field(description="NeMo JSON Lines with the recordings and their texts")
    output: Path = Field(description="folder for metrics.json, hypotheses.jsonl and report.html")
    mode: tuple[Mode, ...] = Field(
        default=("accurate", "fast"),
        min_length=1,
        description="accurate, fast, or both, which is the default",
    )
    baseline: Path | None = Field(
        default=None,
        description="checkpoint of Whisper's own weights, measured beside: padded to 30 s, greedy",
    )
    language_model: Path | None = Field(
        default=None, description="n-gram in ARPA format for mode fast"
    )
    device: str = Field(default="auto", description="auto is a GPU where there is one")
    dtype: str = Field(default="auto", description="float32, bfloat16, or what fits the device")
    max_batch_seconds: float = Field(
        default=240.0, gt=0, description="padded seconds in one forward pass"
    )
    threads: int | None = Field(default=None, ge=1, description="torch's; all cores if not given")
    seed: int = Field(default=0, ge=0, description="of the bootstrap intervals")


@dataclass(frozen=True)
class _Clip:
    """A recording to transcribe; its samples are decoded when its turn comes."""

    id: str  # its path from the manifest's folder
    utterance: Utterance


def evaluate(config: EvaluateConfig, *, command: str, progress: bool = False) -> Evaluation:
    """Transcribe the manifest in each mode, score it, and write everything to `config.output`.

    A line or a recording that cannot be used is listed in the results, and in no figure.

    Args:
        command: what a person types to get the same figures.
        progress: show a bar on stderr.

    Raises:
        EvaluationError: the checkpoint cannot be loaded as asked, or no recording can be used.
        ScoringError: no reference has a word.
        OSError: the manifest cannot be read or the output not written.
    """
    (evaluation,) = evaluate_in_turns([config], command=command, progress=progress)
    return evaluation


def evaluate_in_turns(
    configs: Sequence[EvaluateConfig], *, command: str, progress: bool = False
) -> list[Evaluation]:
    """Evaluate checkpoints side by side, so that their speeds can be compared.

    Each stretch of audio goes through all of them before the next one, in turned order: none has
    the cold start or the busy minutes of a machine to itself. All are in memory at once.

    Args:
        configs: alike in all but checkpoint and output.
        command, progress: as of `evaluate`, which tells what is raised too.
    """
    config = configs[0]
    for other in configs:
        own = {"checkpoint": config.checkpoint, "output": config.output}
        if other.model_copy(update=own) != config:
            raise ValueError(f"{other} differs from {config} in more than checkpoint and output")
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    recognizers = [_recognizer(entry) for entry in configs]
    utterances, rejected = read_manifest(config.manifest)
    folder = os.path.dirname(os.path.abspath(config.manifest))
    clips = [
        _Clip(Path(os.path.relpath(utterance.audio_filepath, folder)).as_posix(), utterance)
        for utterance in utterances
    ]
    unused = [Unused(f"line {line.line}", line.reason) for line in rejected]
    systems: dict[_System, Transcriber] = {
        (place, mode): _transcriber(recognizer, mode)
        for mode in config.mode
        for place, recognizer in enumerate(recognizers)
    }
    if config.baseline is not None:
        longest = max(clips, key=lambda clip: clip.utterance.duration, default=None)
        if longest is not None and longest.utterance.duration > SECONDS:
            raise EvaluationError(
                f"{longest.id} lasts {longest.utterance.duration:.1f} s, and a baseline hears"
                f" {SECONDS} s of a clip; leave longer ones out, or --baseline"
            )
        for place, recognizer in enumerate(recognizers):
            systems[place, "baseline"] = _baseline(config.baseline, recognizer)
    measured = _transcribe(clips, systems, progress, compared=len(configs) > 1)
    unused += measured.unused
    if not measured.seconds:
        raise EvaluationError(
            f"no recording of {config.manifest} can be used: "
            + "; ".join(f"{entry.what}: {entry.reason}" for entry in unused[:5])
        )
    used = [clip for clip in clips if clip.id in measured.seconds]
    evaluations = [
        _evaluation(entry, place, recognizer, command, used, unused, measured)
        for place, (entry, recognizer) in enumerate(zip(configs, recognizers, strict=True))
    ]
    for entry, evaluation in zip(configs, evaluations, strict=True):
        _write(evaluation, entry.output)
    return evaluations


def _recognizer(config: EvaluateConfig) -> Recognizer:
    try:
        return Recognizer.load(
            config.checkpoint,
            device=config.device,
            dtype=config.dtype,
            max_batch_seconds=config.max_batch_seconds,
            language_model=config.language_model,
        )
    except ValueError as error:  # a wrong checkpoint, n-gram, device, dtype or batch
        raise EvaluationError(str(error)) from error


def _evaluation(
    config: EvaluateConfig,
    place: int,
    recognizer: Recognizer,
    command: str,
    used: Sequence[_Clip],
    unused: Sequence[Unused],
    measured: "_Measured",
) -> Evaluation:
    """What was measured of one of the checkpoints, scored."""
    audio_seconds = sum(measured.seconds.values())
    return Evaluation(
        conditions=Conditions(
            command=command,
            measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
            checkpoint=str(config.checkpoint),
            checkpoint_sha256=_sha256(config.checkpoint / WEIGHTS),
            manifest=str(config.manifest),
            data_fingerprint=fingerprint((c.utterance, measured.sha256[c.id]) for c in used),
            utterances=len(used),
            seconds=audio_seconds,
            speakers=len({c.utterance.speaker for c in used} - {None}),
            unused=tuple(unused),
            machine=Machine.here(recognizer.device),
            device=str(recognizer.device),
            dtype=str(next(recognizer.network.parameters()).dtype).removeprefix("torch."),
            seed=config.seed,
        ),
        systems=tuple(
            SystemResult(
                name=name,
                scores=score(
                    [
                        Pair(
                            id=clip.id,
                            reference=clip.utterance.text,
                            hypothesis=texts[clip.id],
                            duration=measured.seconds[clip.id],
                            speaker=clip.utterance.speaker,
                            group=clip.utterance.group,
                        )
                        for clip in used
                    ],
                    seed=config.seed,
                ),
                speed=Speed(audio_seconds, measured.wall_seconds[place, name]),
                written_form=WrittenForm.of(list(texts.values())),
            )
            for (owner, name), texts in measured.texts.items()
            if owner == place
        ),
    )


def _write(evaluation: Evaluation, output: Path) -> None:
    output.mkdir(parents=True, exist_ok=True)
    metrics = json.dumps(evaluation.metrics(), indent=2, ensure_ascii=False)
    write_text(output / "metrics.json", metrics + "\n")
    lines = (json.dumps(line, ensure_ascii=False) + "\n" for line in evaluation.hypotheses())
    write_text(output / "hypotheses.jsonl", "".join(lines))
    write_text(output / "report.html", render_report(evaluation))


def _transcriber(recognizer: Recognizer, mode: Mode) -> Transcriber:
    """Transcribe as a caller of the endpoint gets it who asks for nothing but the mode."""
    options = TranscribeOptions(mode=mode)
    return lambda waveforms: [t.text for t in recognizer.transcribe(waveforms, options).transcripts]


def _baseline(folder: Path, recognizer: Recognizer) -> Transcriber:
    """Whisper's own way on the recognizer's device, in its precision."""
    try:
        checkpoint = load_checkpoint(folder)
    except CheckpointError as error:
        raise EvaluationError(str(error)) from error
    checkpoint.network.to(recognizer.device, next(recognizer.network.parameters()).dtype)
    return lambda waveforms: transcribe_padded(checkpoint, waveforms)


@dataclass(frozen=True)
class _Measured:
    """What came out of the systems; the other keys are clips' ids."""

    seconds: dict[str, float]
    sha256: dict[str, str]
    texts: dict[_System, dict[str, str]]
    wall_seconds: dict[_System, float]
    unused: list[Unused]


def _transcribe(
    clips: Sequence[_Clip], systems: Mapping[_System, Transcriber], progress: bool, compared: bool
) -> _Measured:
    """Send every clip through every system, and time the systems alone.

    Args:
        compared: no system's time may hold what another's does not.
    """
    measured = _Measured({}, {}, {name: {} for name in systems}, dict.fromkeys(systems, 0.0), [])
    order: list[_System] = []
    bar = tqdm(total=len(clips), unit="clip", disable=not progress, leave=False)
    with bar:
        for chunk in _chunks(clips):
            waveforms: dict[str, Tensor] = {}
            for clip in chunk:
                try:
                    content = clip.utterance.audio_filepath.read_bytes()
                    waveforms[clip.id] = load_audio(content)
                except (AudioError, OSError) as error:
                    measured.unused.append(Unused(clip.id, str(error)))
                    continue
                measured.seconds[clip.id] = len(waveforms[clip.id]) / SAMPLE_RATE
                measured.sha256[clip.id] = hashlib.sha256(content).hexdigest()
            if waveforms:
                samples = list(waveforms.values())
                if not order:
                    # A first pass sets up threads and kernels, and memory for the largest batch.
                    for transcribe in systems.values():
                        transcribe(samples if compared else samples[-1:])
                order = list(reversed(order)) or list(systems)
                for name in order:
                    started = time.perf_counter()
                    texts = systems[name](samples)
                    measured.wall_seconds[name] += time.perf_counter() - started
                    measured.texts[name] |= dict(zip(waveforms, texts, strict=True))
            bar.update(len(chunk))
    return measured


def _chunks(clips: Sequence[_Clip]) -> Iterator[list[_Clip]]:
    """Clips of similar length together; the longest first, so that memory fails early if at all."""
    chunk: list[_Clip] = []
    seconds = 0.0
    for clip in sorted(clips, key=lambda clip: -clip.utterance.duration):
        if chunk and seconds + clip.utterance.duration > _CHUNK_SECONDS:
            yield chunk
            chunk, seconds = [], 0.0
        chunk.append(clip)
        seconds += clip.utterance.duration
    if chunk:
        yield chunk


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    prog = "python -m training.evaluate"
    config = parse_config(EvaluateConfig, prog, words, several=("mode",))
    try:
        evaluation = evaluate(
            config, command=f"{prog} {shlex.join(words)}", progress=sys.stderr.isatty()
        )
    except (EvaluationError, ScoringError, OSError) as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 1
    print(evaluation.table())
    print(f"written to {config.output / 'report.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
