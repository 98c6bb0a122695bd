"""Train the recognizer.

    python -m training.train --config training/configs/finetune.yaml [--optimizer.learning_rate 1e-5 …]
    torchrun --nproc-per-node 8 -m training.train --config …      # several GPUs; nodes likewise

A run's folder holds config.yaml, log.jsonl, TensorBoard's events, state.pt to resume from, and the
checkpoints `best` (lowest WER on dev) and `last`, both of the running average of the weights.
"""

import copy
import hashlib
import json
import math
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

import torch
import yaml
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from model.audio import SAMPLE_RATE
from model.checkpoint import (
    CONFIG,
    TOKENIZER,
    WEIGHTS,
    Checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from model.features import ENCODER_FRAMES_PER_SECOND
from training.arguments import parse_config
from training.config import Optimizer, TrainConfig
from training.data import (
    Batch,
    BucketSampler,
    Corpus,
    SpeechDataset,
    epoch_batches,
    fitting_speeds,
)
from training.losses import JointLoss, Teacher
from training.manifest import Utterance
from training.monitoring import Monitor
from training.processes import Processes
from training.state import STATE, Average, Progress, load_state, save_state
from training.termination import Termination
from training.validation import validate

# Where a run finds its files and leaves what it makes, and whether it goes on: what may change when
# it is resumed, and says nothing to a reader of its card.
PLACES = {"train", "dev", "init", "output", "teacher", "push_gateway", "resume"}


def learning_rate_scale(config: Optimizer, name: str) -> float:
    """Factor of the learning rate for a parameter: that of the longest beginning that fits."""
    fitting = [prefix for prefix in config.scales if name.startswith(prefix)]
    return config.scales[max(fitting, key=len)] if fitting else 1.0


def build_optimizer(network: nn.Module, config: Optimizer) -> torch.optim.AdamW:
    """AdamW over what is not frozen; vectors (biases, norms) have no weight decay.

    Raises:
        ValueError: a name in `scales` fits no parameter.
    """
    names = [name for name, _ in network.named_parameters()]
    for prefix in config.scales:
        if not any(name.startswith(prefix) for name in names):
            raise ValueError(
                f"optimizer.scales names {prefix!r}, which no parameter begins with; "
                f"they begin with {sorted({n.split('.')[0] + '.' for n in names})}"
            )
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, parameter in network.named_parameters():
        scale = learning_rate_scale(config, name)
        if scale == 0:
            parameter.requires_grad_(False)
        if parameter.requires_grad:
            decay = config.weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((scale, decay), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "scale": scale, "weight_decay": decay}
            for (scale, decay), parameters in groups.items()
        ],
        lr=config.learning_rate,
        betas=config.betas,
    )


def learning_rate(config: Optimizer, step: int, steps: int) -> float:
    """Learning rate at a step (from 0) of a run of so many: linear warm-up, then half a cosine."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    share = config.final_share + (1 - config.final_share) * 0.5 * (1 + math.cos(math.pi * done))
    return config.learning_rate * share


def checkpoint_fingerprint(folder: Path) -> str:
    """SHA-256 of what a checkpoint computes with."""
    digest = hashlib.sha256()
    for name in (CONFIG, TOKENIZER, WEIGHTS):
        with (folder / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


@dataclass
class Run:
    """Everything that the loop works with."""

    config: TrainConfig
    processes: Processes
    checkpoint: Checkpoint
    loss: JointLoss
    optimizer: torch.optim.AdamW
    average: Average
    dataset: SpeechDataset
    sampler: BucketSampler
    train: list[Corpus]
    dev: Corpus
    steps: int
    saved: Callable[[Path], None]

    @classmethod
    def prepare(
        cls, config: TrainConfig, processes: Processes, saved: Callable[[Path], None]
    ) -> "Run":
        """Read the data and build the network."""
        # Speed 0.9 makes an utterance longer; the network's positions are its limit.
        speeds, longest = config.augmentation.speeds, config.batches.longest_seconds
        train = [Corpus.read(m, longest, speeds, processes.first) for m in config.train]
        dev = Corpus.read(config.dev, longest, (1.0,), processes.first)
        checkpoint = load_checkpoint(config.init)
        _check_lengths(config, checkpoint)
        utterances = [u for corpus in train for u in corpus.utterances]
        utterances = _with_fitting_texts(checkpoint, utterances, processes.first)
        _check_letters(config, checkpoint, utterances)
        network = checkpoint.network.to(processes.device)
        # What no loss reaches has no gradient, for which several processes would wait in vain.
        losses = config.losses
        network.ctc.requires_grad_(losses.ctc > 0)
        network.decoder.requires_grad_(losses.attention + losses.distillation > 0)
        optimizer = build_optimizer(network, config.optimizer)
        teacher = None
        if config.teacher is not None:
            teacher = Teacher(
                load_checkpoint(config.teacher), processes.device, config.teacher_padded
            )
            _check_teacher(config, checkpoint, teacher)
            teacher.network.requires_grad_(False)
            if processes.autocast(config.precision):
                teacher.network.to(torch.bfloat16)
        sampler = BucketSampler(
            [u.duration / min(fitting_speeds(u.duration, speeds, longest)) for u in utterances],
            config.batches.padded_seconds,
            config.seed,
            processes.rank,
            processes.world,
        )
        batches = [len(sampler.batches(epoch)) for epoch in range(config.epochs)]
        steps = sum(math.ceil(n / config.batches.accumulate) for n in batches)
        if processes.first and steps <= config.optimizer.warmup_steps:
            print(
                f"the run has {steps} steps, and optimizer.warmup_steps is "
                f"{config.optimizer.warmup_steps}: the learning rate never gets to what it should be"
            )
        return cls(
            config=config,
            processes=processes,
            checkpoint=checkpoint,
            loss=JointLoss(
                network,
                checkpoint.features.to(processes.device),
                config.losses,
                config.augmentation,
                teacher,
            ),
            optimizer=optimizer,
            average=Average(network, config.optimizer.ema_decay),
            dataset=SpeechDataset(utterances, config.augmentation, config.seed, longest),
            sampler=sampler,
            train=train,
            dev=dev,
            steps=steps,
            saved=saved,
        )

    @cached_property
    def identity(self) -> str:
        """What a resumed run must share with the one that it goes on with.

        Files count by what they hold: a run goes on where they lie elsewhere.
        """
        config = self.config
        free = dict.fromkeys((*PLACES, "save_every"), True)
        settings = config.model_dump(mode="json", exclude={**free, "batches": {"workers"}})
        return json.dumps(
            {
                "config": settings,
                "processes": self.processes.world,
                "train": [corpus.fingerprint() for corpus in self.train],
                "dev": self.dev.fingerprint(),
                "init": checkpoint_fingerprint(config.init),
                "teacher": config.teacher and checkpoint_fingerprint(config.teacher),
            }
        )


def _check_teacher(config: TrainConfig, checkpoint: Checkpoint, teacher: Teacher) -> None:
    """Refuse a teacher whose frames or tokens cannot be compared with the student's."""
    student, dims = checkpoint.config.dimensions, teacher.network.dims
    for name in ("audio_width", "vocabulary"):
        if getattr(student, name) != getattr(dims, name):
            raise ValueError(
                f"the teacher {config.teacher} has {name} {getattr(dims, name)}, and {config.init}"
                f" {getattr(student, name)}; give one of the same family and size"
            )


def _check_lengths(config: TrainConfig, checkpoint: Checkpoint) -> None:
    """Refuse, before hours of training, audio that the network cannot hold."""
    dims = checkpoint.config.dimensions
    limit = dims.audio_positions / ENCODER_FRAMES_PER_SECOND - checkpoint.config.tail_seconds
    if config.batches.longest_seconds > limit:
        raise ValueError(
            f"batches.longest_seconds is {config.batches.longest_seconds}; "
            f"this network takes at most {limit} s"
        )


def _with_fitting_texts(
    checkpoint: Checkpoint, utterances: list[Utterance], say: bool
) -> list[Utterance]:
    """Leave out, and count, what has more tokens than the network's decoder takes.

    Raises:
        ValueError: nothing is left.
    """
    room = checkpoint.config.dimensions.text_positions - len(checkpoint.tokenizer.prompt)
    kept = [u for u in utterances if len(checkpoint.tokenizer.encode(u.written or u.text)) <= room]
    if say and len(kept) < len(utterances):
        print(f"{len(utterances) - len(kept)} left out: their texts have more than {room} tokens")
    if not kept:
        raise ValueError(
            f"all {len(utterances)} texts have more than the {room} tokens that this network takes"
        )
    return kept


def _check_letters(
    config: TrainConfig, checkpoint: Checkpoint, utterances: list[Utterance]
) -> None:
    """Refuse texts of which the CTC head can spell none; tell how many have letters that it lacks."""
    spelled = sum(checkpoint.characters.covers(u.text) for u in utterances)
    if config.losses.ctc and not spelled:
        raise ValueError(
            f"the CTC head's characters {checkpoint.characters.characters!r} spell none of the "
            "texts; start from a checkpoint with others (python -m model.whisper --characters), "
            "or set losses.ctc to 0"
        )
    if config.losses.ctc and spelled < len(utterances):
        print(f"{len(utterances) - spelled} texts have letters or digits that the CTC head lacks")


def train(config: TrainConfig, saved: Callable[[Path], None] = lambda folder: None) -> Path:
    """Train as told.

    At SIGTERM the first process saves its state after the step that it is in, and ends; while it
    judges, before the next batch of dev, since the state is saved already.

    Args:
        saved: called in the first process with the run's folder whenever the state in it is new,
            to bring it elsewhere; nothing in the folder changes until it returns.

    Returns:
        The folder of the best checkpoint.

    Raises:
        ValueError: the configuration does not fit the data or the checkpoint.
        FloatingPointError: the gradient is no longer finite.
        SystemExit: SIGTERM came.
    """
    with Processes.start() as processes, Termination() as termination:
        run = Run.prepare(config, processes, saved)
        progress = Progress()
        if config.resume:
            progress = (
                load_state(
                    config.output, run.loss.network, run.optimizer, run.average, run.identity
                )
                or progress
            )
            if not processes.agree(vars(progress)):
                raise ValueError(
                    f"{config.output} holds another state on each node; "
                    "all processes must see one folder"
                )
        elif (config.output / STATE).exists():
            raise ValueError(
                f"{config.output} holds a run; go on with --resume true, or choose another"
            )
        if processes.first:
            config.output.mkdir(parents=True, exist_ok=True)
            told = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
            (config.output / "config.yaml").write_text(told)
        opened = Monitor.open(
            config.output,
            config.push_gateway,
            processes.first,
            progress.step,
            judged=progress.batch == 0,
        )
        with opened as monitor:
            loop(run, progress, monitor, termination)
    return config.output / "best"


def loop(run: Run, progress: Progress, monitor: Monitor, termination: Termination) -> None:
    """Run the epochs that are left."""
    config, processes = run.config, run.processes
    wrapped: nn.Module = run.loss
    if processes.world > 1:
        wrapped = DistributedDataParallel(run.loss)
    if processes.first:  # a run that is killed before its first save shall resume too
        save_state(config.output, progress, *_state(run))
    while progress.epoch < config.epochs:
        keys = run.sampler.batches(progress.epoch)
        left = keys[progress.batch :]
        loaded = epoch_batches(
            run.dataset,
            left,
            config.batches,
            run.checkpoint.tokenizer,
            run.checkpoint.characters,
            pin=processes.device.type == "cuda",
        )
        wrapped.train()
        bar = tqdm(
            loaded,
            desc=f"epoch {progress.epoch + 1}/{config.epochs}",
            total=len(keys),
            initial=progress.batch,
            unit="batch",
            disable=not processes.first,
        )
        accumulate = config.batches.accumulate
        started, audio = time.perf_counter(), 0.0
        for batch in bar:
            # Masks are drawn from the step, not from what came before: a resumed run draws the same.
            torch.manual_seed(hash((config.seed, progress.epoch, progress.batch, processes.rank)))
            first = progress.batch // accumulate * accumulate
            share = 1 / min(accumulate, len(keys) - first)  # the last step of an epoch may be short
            last = (progress.batch + 1) % accumulate == 0 or progress.batch + 1 == len(keys)
            parts = backward(run, wrapped, batch.to(processes.device), share, last)
            audio += float(batch.samples.sum()) / SAMPLE_RATE
            progress.batch += 1
            if not last:
                continue
            norm, rate = step(run, progress)
            seconds = time.perf_counter() - started
            values = {name: float(value) for name, value in parts.items()}
            bar.set_postfix({k: f"{v:.3f}" for k, v in values.items()})
            monitor.log(
                progress.step,
                "train",
                {
                    **{f"loss_{k}": v for k, v in values.items()},
                    "gradient_norm": norm,
                    "learning_rate": rate,
                    "audio_seconds_per_second": audio * processes.world / seconds,
                    "epoch": progress.epoch + progress.batch / len(keys),
                },
            )
            # A node may be drained that is not the first's, whose process alone saves.
            leaving = processes.any(termination.asked)
            if processes.first and (leaving or progress.step % config.save_every == 0):
                keep(run, progress)
            if leaving:
                processes.wait()
                termination.leave(f"at step {progress.step}; the state is saved")
            started, audio = time.perf_counter(), 0.0
        if processes.first:
            keep(run, progress)  # judging takes long, and a run may be killed meanwhile
            judge(run, progress, monitor, termination)
        progress.epoch, progress.batch = progress.epoch + 1, 0
        if processes.first:
            keep(run, progress)
        processes.wait()


def keep(run: Run, progress: Progress) -> None:
    """Save the state, and have it brought elsewhere."""
    save_state(run.config.output, progress, *_state(run))
    run.saved(run.config.output)


def _state(run: Run) -> tuple[nn.Module, torch.optim.Optimizer, Average, str]:
    return run.loss.network, run.optimizer, run.average, run.identity


def backward(
    run: Run, wrapped: nn.Module, batch: Batch, share: float, last: bool
) -> dict[str, Tensor]:
    """Add a batch's gradients with its share; processes exchange them with the last of a step."""
    silent: AbstractContextManager[object] = nullcontext()
    if isinstance(wrapped, DistributedDataParallel) and not last:
        silent = wrapped.no_sync()
    with silent:
        with run.processes.autocast_context(run.config.precision):
            parts: dict[str, Tensor] = wrapped(batch)
        (parts["total"] * share).backward()
    return {name: value.detach() for name, value in parts.items()}


def step(run: Run, progress: Progress) -> tuple[float, float]:
    """Move the weights.

    Returns:
        The gradient's norm before clipping, and the learning rate.

    Raises:
        FloatingPointError: the gradient is not finite; the weights stay as they were.
    """
    config = run.config.optimizer
    rate = learning_rate(config, progress.step, run.steps)
    for group in run.optimizer.param_groups:
        group["lr"] = rate * group["scale"]
    norm = nn.utils.clip_grad_norm_(run.loss.network.parameters(), config.clip_norm)
    if not bool(norm.isfinite()):  # the same on all processes, and nothing is spoilt yet
        raise FloatingPointError(
            f"the gradient is {float(norm)} at step {progress.step}; "
            f"start again with a learning rate below {config.learning_rate}"
        )
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    run.average.update(run.loss.network)
    progress.step += 1
    return float(norm), rate


def judge(run: Run, progress: Progress, monitor: Monitor, termination: Termination) -> None:
    """Measure the averaged weights on dev and keep them, as `last` and perhaps as `best`."""
    config = run.config
    epoch = progress.epoch + 1

    def leave_if_asked() -> None:
        if termination.asked:
            termination.leave(f"as epoch {epoch} was judged; the state is saved")

    judged = copy.copy(run.checkpoint)
    judged.network = copy.deepcopy(run.loss.network).eval()
    judged.network.load_state_dict(run.average.weights)
    precision = run.processes.autocast_context(config.precision)
    figures = validate(judged, run.dev.utterances, precision, leave_if_asked)
    monitor.log(progress.step, "dev", {**figures, "epoch": epoch})
    print(f"epoch {epoch}: " + ", ".join(f"{k} {v:.4f}" for k, v in figures.items()))
    folders = ["last"]
    modes = ("accurate", "fast") if config.select == "mean" else (config.select,)
    wer = sum(figures[f"wer_{mode}"] for mode in modes) / len(modes)
    if progress.best is None or wer < progress.best:
        progress.best = wer
        folders.append("best")
    provenance = {
        "start": config.init.name,
        "steps": progress.step,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "dev": {name: round(value, 5) for name, value in figures.items()},
    }
    for folder in folders:
        save_checkpoint(
            config.output / folder,
            judged,
            model_card(config, provenance),
            provenance=provenance,
        )


def model_card(config: TrainConfig, provenance: dict[str, object]) -> str:
    """Markdown that tells how the weights were made."""
    recipe = yaml.safe_dump(config.model_dump(mode="json", exclude=PLACES), sort_keys=False)
    return (
        "# Steno checkpoint\n\n"
        f"Trained from `{config.init.name}` by `python -m training.train`.\n\n"
        f"```json\n{json.dumps(provenance, indent=2)}\n```\n\n"
        f"## Configuration\n\n```yaml\n{recipe}```\n"
    )


def main() -> int:
    """Run the command line; returns the exit status."""
    config = parse_config(TrainConfig, "python -m training.train", several=("train",))
    try:
        best = train(config)
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"train: {error}", file=sys.stderr)
        return 1
    print(f"the best checkpoint is in {best}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
