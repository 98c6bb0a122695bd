"""The joint loss: attention, CTC, and what a teacher that hears clean audio has to say."""

import torch
import torchaudio.transforms
from torch import Tensor, nn
from torch.nn import functional as F

from model.checkpoint import Checkpoint
from model.features import FRAMES_PER_SECOND
from model.network import Network, frame_mask
from training.config import Augmentation, Losses
from training.data import IGNORE, Batch


class Teacher:
    """A frozen network that hears clean audio; the student learns to hear the same through noise.

    Args:
        checkpoint: the network.
        device: where to compute.
        padded: whether it hears audio padded to 30 s, as Whisper does, or at its own length, as the
            student.
    """

    def __init__(self, checkpoint: Checkpoint, device: torch.device, padded: bool) -> None:
        self.network = checkpoint.network.to(device).eval()
        self.features = checkpoint.features.to(device)
        self.padded = padded

    @torch.no_grad()
    def encode(self, waveforms: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, samples) and lengths (batch,) → (batch, positions, width) and frames (batch,)."""
        if self.padded:
            features = self.features.whisper(waveforms)
            positions = self.network.dims.audio_positions
            frames = torch.full((len(features),), positions, device=features.device)
        else:
            features, frames = self.features(waveforms, samples)
        return self.network.encoder(features, frames), frames

    @torch.no_grad()
    def write(self, encoded: Tensor, frames: Tensor, tokens: Tensor) -> Tensor:
        """Log-probabilities (batch, length, vocabulary) of the next token at each place."""
        decoder = self.network.decoder
        hidden = decoder(tokens, decoder.start(encoded, frames))
        return decoder.scores(hidden).float().log_softmax(-1)


class JointLoss(nn.Module):
    """The network and all that is computed from a batch; a module, so that DDP can wrap it."""

    def __init__(
        self,
        network: Network,
        features: nn.Module,
        weights: Losses,
        augment: Augmentation,
        teacher: Teacher | None,
    ) -> None:
        super().__init__()
        if teacher is None and (weights.distillation or weights.matching):
            raise ValueError("losses.distillation and losses.matching need a teacher; give one")
        self.network = network
        self.features = features
        self.weights = weights
        self.teacher = teacher
        self.spec_augment = torchaudio.transforms.SpecAugment(
            n_time_masks=augment.time_masks,
            time_mask_param=round(augment.time_mask_seconds * FRAMES_PER_SECOND),
            n_freq_masks=augment.frequency_masks,
            freq_mask_param=augment.frequency_mask_bands,
            iid_masks=True,
            zero_masking=True,
        )

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Each part of the loss as a mean (0 when it does not apply), and their weighted `total`."""
        weights = self.weights
        features, frames = self.features(batch.noisy, batch.samples)
        if self.training:
            features = self.spec_augment(features)
        encoded = self.network.encoder(features, frames)
        parts: dict[str, Tensor] = {}
        if weights.matching or weights.distillation:
            assert self.teacher is not None
            heard, heard_frames = self.teacher.encode(batch.clean, batch.samples)
            if weights.matching:
                parts["matching"] = _matching(encoded, heard, frames)
        if weights.attention or weights.distillation:
            decoder = self.network.decoder
            hidden = decoder(batch.tokens, decoder.start(encoded, frames))
            scores = decoder.scores(hidden).float()
            if weights.attention:
                parts["attention"] = F.cross_entropy(
                    scores.flatten(0, 1),
                    batch.targets.flatten(),
                    ignore_index=IGNORE,
                    label_smoothing=weights.label_smoothing if self.training else 0.0,
                )
            if weights.distillation:
                assert self.teacher is not None
                kept = batch.targets != IGNORE
                parts["distillation"] = F.kl_div(
                    scores[kept].log_softmax(-1),
                    self.teacher.write(heard, heard_frames, batch.tokens)[kept],
                    reduction="batchmean",
                    log_target=True,
                )
        if weights.ctc:
            parts["ctc"] = self._ctc(encoded, frames, batch)
        parts["total"] = torch.stack(
            [getattr(weights, name) * value for name, value in parts.items()]
        ).sum()
        return parts

    def _ctc(self, encoded: Tensor, frames: Tensor, batch: Batch) -> Tensor:
        logprobs = self.network.ctc(encoded, frames)
        with torch.autocast(encoded.device.type, enabled=False):
            each = F.ctc_loss(
                logprobs.transpose(0, 1),
                batch.labels,
                frames,
                batch.label_lengths,
                reduction="none",
                zero_infinity=True,
            )
        # An utterance of 10 s counts as ten of 1 s; a text with digits has no full spelling.
        counted = batch.spelled
        return (each * counted).sum() / (batch.label_lengths * counted).sum().clamp(min=1)


def _matching(encoded: Tensor, heard: Tensor, frames: Tensor) -> Tensor:
    """Squared error over valid frames against the teacher's, in units of the teacher's variance."""
    length = min(encoded.shape[1], heard.shape[1])
    mask = frame_mask(frames.clamp(max=length), length)
    student, teacher = encoded[:, :length].float(), heard[:, :length].float()
    if mask is not None:
        student, teacher = student[mask], teacher[mask]
    return (student - teacher).square().mean() / teacher.var()
