"""Utterances as batches of augmented audio.

Every random choice is drawn from (seed, epoch, utterance), so that a run which is stopped and resumed
sees the same batches as one that was not, whatever the number of worker processes.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torchaudio.functional
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from model.audio import SAMPLE_RATE, AudioError, load_audio
from model.tokenizer import Characters, Tokenizer
from training.config import Augmentation, Batches
from training.manifest import Utterance, read_manifest

# Label that the cross-entropy skips.
IGNORE = -100


@dataclass
class Batch:
    """Utterances padded to the longest.

    Attributes:
        clean: float32 (batch, samples), speed changed only: what the teacher hears.
        noisy: float32 (batch, samples).
        samples: int64 (batch,), length of each.
        tokens: int64 (batch, length): prompt, text; what the decoder is fed.
        targets: int64 (batch, length): the next token at each place, IGNORE where none counts.
        labels: int64 (total,), characters of all utterances one after the other.
        label_lengths: int64 (batch,); 0 where the CTC head has nothing to learn.
        spelled: bool (batch,), whether the characters tell the whole text.
    """

    clean: Tensor
    noisy: Tensor
    samples: Tensor
    tokens: Tensor
    targets: Tensor
    labels: Tensor
    label_lengths: Tensor
    spelled: Tensor

    def to(self, device: torch.device) -> "Batch":
        """The same on another device."""
        return Batch(**{k: v.to(device, non_blocking=True) for k, v in vars(self).items()})

    def pin_memory(self) -> "Batch":
        """The same in pinned memory; the data loader calls it."""
        return Batch(**{k: v.pin_memory() for k, v in vars(self).items()})


def colored_noise(samples: int, rng: np.random.Generator) -> Tensor:
    """Noise with a power spectrum of 1/f^a, a drawn from 0 (white) to 2 (brown); RMS 1."""
    exponent = rng.uniform(0.0, 2.0)
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    frequencies = np.maximum(np.arange(len(spectrum)), 1.0)
    noise = np.fft.irfft(spectrum * frequencies ** (-exponent / 2), samples)
    return torch.from_numpy((noise / max(noise.std(), 1e-9)).astype(np.float32))


def load_utterance(utterance: Utterance) -> Tensor:
    """Decode an utterance: float32 (samples,) at 16 kHz.

    Raises:
        ValueError: it cannot be decoded; the message names its file.
        OSError: it cannot be read.
    """
    try:
        return load_audio(utterance.audio_filepath)
    except AudioError as error:
        raise ValueError(f"{utterance.audio_filepath}: {error}") from error


def fitting_speeds(duration: float, speeds: Sequence[float], longest: float) -> tuple[float, ...]:
    """The speeds at which an utterance of `duration` lasts no longer than `longest` seconds."""
    return tuple(speed for speed in speeds if duration / speed <= longest)


@dataclass(frozen=True)
class Corpus:
    """The utterances of a manifest that are used."""

    manifest: Path
    utterances: list[Utterance]

    @classmethod
    def read(cls, manifest: Path, longest: float, speeds: Sequence[float], say: bool) -> "Corpus":
        """Read a manifest; what is rejected, or too long at each of the speeds, is told.

        Raises:
            ValueError: nothing is left.
        """
        utterances, rejected = read_manifest(manifest)
        kept = [u for u in utterances if fitting_speeds(u.duration, speeds, longest)]
        if say:
            for line in rejected:
                print(f"{line.manifest}:{line.line}: left out: {line.reason}")
            if len(kept) < len(utterances):
                limit = longest * max(speeds)
                hours = sum(u.duration for u in utterances if u.duration > limit) / 3600
                print(
                    f"{manifest}: {len(utterances) - len(kept)} left out ({hours:.2f} h): "
                    f"longer than {limit:.4g} s"
                )
        if not kept:
            raise ValueError(f"{manifest} has no utterance to use ({len(rejected)} rejected)")
        return cls(manifest, kept)

    def fingerprint(self) -> str:
        """SHA-256 of what is learnt from it, wherever it lies with its recordings."""
        folder = os.path.abspath(self.manifest.parent)
        digest = hashlib.sha256()
        for u in self.utterances:
            place = os.path.relpath(u.audio_filepath, folder)
            digest.update(json.dumps([place, u.duration, u.text, u.written]).encode())
        return digest.hexdigest()


class SpeechDataset(Dataset[tuple[Tensor, Tensor, str, str]]):
    """Augmented audio, spoken and written text of an utterance in an epoch.

    Args:
        utterances: each fits into `longest` at one of the speeds at least.
        augment: what is drawn.
        seed: of the drawing.
        longest: seconds that no change of speed may exceed.
    """

    def __init__(
        self,
        utterances: Sequence[Utterance],
        augment: Augmentation,
        seed: int,
        longest: float = math.inf,
    ) -> None:
        self.utterances = utterances
        self.augment = augment
        self.seed = seed
        self.longest = longest

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor, str, str]:  # type: ignore[override]
        """Return (clean, noisy, spoken, written) of (epoch, index)."""
        epoch, index = key
        rng = np.random.default_rng((self.seed, epoch, index))
        utterance = self.utterances[index]
        clean = self._load(index, rng)
        if rng.random() < self.augment.silence_probability:
            level = 10 ** (rng.uniform(-70.0, -25.0) / 20)
            noise = level * colored_noise(len(clean), rng)
            return noise, noise, "", ""
        noisy = clean
        if rng.random() < self.augment.noise_probability:
            noisy = self._add_noise(clean, rng)
        return clean, noisy, utterance.text, utterance.written or utterance.text

    def _load(self, index: int, rng: np.random.Generator) -> Tensor:
        utterance = self.utterances[index]
        waveform = load_utterance(utterance)
        speeds = fitting_speeds(utterance.duration, self.augment.speeds, self.longest)
        speed = float(rng.choice(speeds))
        if speed != 1.0:
            waveform, _ = torchaudio.functional.speed(waveform, SAMPLE_RATE, speed)
        return waveform

    def _add_noise(self, clean: Tensor, rng: np.random.Generator) -> Tensor:
        if rng.random() < 0.5:
            noise = colored_noise(len(clean), rng)
        else:  # babble
            noise = torch.zeros(len(clean))
            for other in rng.integers(len(self.utterances), size=int(rng.integers(1, 8))):
                voice = load_utterance(self.utterances[other])
                repeats = -(-len(clean) // len(voice))
                noise += voice.repeat(repeats)[: len(clean)]
            if not bool(noise.any()):  # recordings of silence; a ratio to nothing is no number
                return clean
        ratio = torch.tensor([rng.uniform(*self.augment.noise_db)])
        return torchaudio.functional.add_noise(clean[None], noise[None], ratio)[0]


class BucketSampler:
    """Batches of utterances of similar length, capped in padded seconds, shuffled for each epoch.

    Args:
        durations: seconds of each utterance.
        padded_seconds: cap of one batch.
        seed: of the shuffling.
        rank, world: this process among several; every one gets the same number of batches.
    """

    def __init__(
        self,
        durations: Sequence[float],
        padded_seconds: float,
        seed: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        longest = max(durations)
        if longest > padded_seconds:
            raise ValueError(
                f"padded_seconds is {padded_seconds}; the longest utterance has {longest:.1f} s"
            )
        self.durations = np.array(durations)
        self.padded_seconds = padded_seconds
        self.seed = seed
        self.rank, self.world = rank, world

    def batches(self, epoch: int) -> list[list[tuple[int, int]]]:
        """Keys (epoch, index) of this process's batches in an epoch.

        Over all processes each utterance stands once; where batches do not divide, some are repeated.
        """
        rng = np.random.default_rng((self.seed, epoch))
        # Lengths are shaken a little, so that an utterance meets others in every epoch.
        order = np.argsort(self.durations * rng.uniform(0.9, 1.1, len(self.durations)))
        batches: list[list[tuple[int, int]]] = [[]]
        longest = 0.0
        for index in order.tolist():
            longest = max(longest, self.durations[index])
            if longest * (len(batches[-1]) + 1) > self.padded_seconds:
                batches.append([])
                longest = self.durations[index]
            batches[-1].append((epoch, index))
        rng.shuffle(batches)
        while len(batches) % self.world:  # DDP needs as many on each process
            batches.append(batches[int(rng.integers(len(batches)))])
        return batches[self.rank :: self.world]


def collate(
    items: list[tuple[Tensor, Tensor, str, str]], tokenizer: Tokenizer, characters: Characters
) -> Batch:
    """Put utterances together, see `Batch`."""
    cleans, noisies, spoken, written = zip(*items, strict=True)
    prompt = list(tokenizer.prompt)
    tokens, targets, labels = [], [], []
    for said, text in zip(spoken, written, strict=True):
        ids = tokenizer.encode(text) if text else []
        tokens.append(torch.tensor(prompt + ids))
        targets.append(torch.tensor([IGNORE] * (len(prompt) - 1) + ids + [tokenizer.end]))
        labels.append(torch.tensor(characters.encode(said), dtype=torch.int64))
    return Batch(
        clean=pad_sequence(list(cleans), batch_first=True),
        noisy=pad_sequence(list(noisies), batch_first=True),
        samples=torch.tensor([len(x) for x in cleans]),
        tokens=pad_sequence(tokens, batch_first=True, padding_value=tokenizer.end),
        targets=pad_sequence(targets, batch_first=True, padding_value=IGNORE),
        labels=torch.cat(labels),
        label_lengths=torch.tensor([len(x) for x in labels]),
        spelled=torch.tensor([characters.covers(said) for said in spoken]),
    )


class _Collate:
    """`collate` with its tokenizers bound; a class, because worker processes pickle it."""

    def __init__(self, tokenizer: Tokenizer, characters: Characters) -> None:
        self.tokenizer = tokenizer
        self.characters = characters

    def __call__(self, items: list[tuple[Tensor, Tensor, str, str]]) -> Batch:
        return collate(items, self.tokenizer, self.characters)


def epoch_batches(
    dataset: SpeechDataset,
    keys: list[list[tuple[int, int]]],
    config: Batches,
    tokenizer: Tokenizer,
    characters: Characters,
    pin: bool,
) -> Iterator[Batch]:
    """Load the batches of (a part of) an epoch, in order."""
    yield from DataLoader(
        dataset,
        batch_sampler=keys,  # type: ignore[arg-type]
        collate_fn=_Collate(tokenizer, characters),
        num_workers=config.workers,
        pin_memory=pin,
        prefetch_factor=4 if config.workers else None,
        worker_init_fn=_leave_group,
    )


def _leave_group(worker: int) -> None:
    """Take a loading process out of its trainer's group.

    torchrun sends SIGTERM to the whole group. The trainer saves its state then, which it could not if
    the processes that it loads from died first: torch makes an error of that.
    """
    os.setpgid(0, 0)
