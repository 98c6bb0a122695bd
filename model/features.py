"""Log-mel features, exactly Whisper's, for batches of any length."""

import torch
import torchaudio
from torch import Tensor, nn

from model.audio import SAMPLE_RATE

N_FFT = 400
HOP_LENGTH = 160
FRAMES_PER_SECOND = SAMPLE_RATE // HOP_LENGTH
# One encoder frame covers two mel frames: the second convolution has stride 2.
SAMPLES_PER_ENCODER_FRAME = 2 * HOP_LENGTH
ENCODER_FRAMES_PER_SECOND = SAMPLE_RATE // SAMPLES_PER_ENCODER_FRAME


class LogMel(nn.Module):
    """Log-mel spectrogram as in Whisper (Radford et al., 2022, section 2.2).

    80 (large-v3: 128) Slaney mels over 25 ms windows every 10 ms, log10, the dynamic range limited
    to 8 decades below the clip's loudest value, then scaled to about [-1, 1].

    Whisper pads every clip with zeros to 30 s. Here a clip is followed by `tail_seconds` of zeros
    only: enough for the network to hear that the speech has ended.

    Args:
        n_mels: mel bands, as the network expects.
        tail_seconds: zeros after each clip. At least half a window (12.5 ms), so that the transform's
            reflection at the border sees zeros whether a clip is alone or padded in a batch.
    """

    def __init__(self, n_mels: int, tail_seconds: float = 0.5) -> None:
        super().__init__()
        if tail_seconds < N_FFT / 2 / SAMPLE_RATE:
            raise ValueError(
                f"tail_seconds is {tail_seconds}; it must be at least {N_FFT / 2 / SAMPLE_RATE}"
            )
        self.tail_samples = round(tail_seconds * SAMPLE_RATE)
        self.spectrogram = torchaudio.transforms.MelSpectrogram(
            sample_rate=SAMPLE_RATE,
            n_fft=N_FFT,
            hop_length=HOP_LENGTH,
            n_mels=n_mels,
            norm="slaney",
            mel_scale="slaney",
        )

    def encoder_frames(self, samples: Tensor | int) -> Tensor | int:
        """Number of encoder frames (50 a second) of clips of so many samples, tail included."""
        return (samples + self.tail_samples + SAMPLES_PER_ENCODER_FRAME - 1) // (
            SAMPLES_PER_ENCODER_FRAME
        )

    @torch.no_grad()
    def forward(self, waveforms: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Compute features of a batch.

        Args:
            waveforms: float32 (batch, samples), 16 kHz, zeros after each clip's end.
            samples: int64 (batch,), the length of each clip.

        Returns:
            Features float32 (batch, n_mels, 2 * frames) and each clip's number of encoder frames,
            int64 (batch,). Features beyond a clip's frames are of silence; the encoder masks them.
        """
        frames = self.encoder_frames(samples)
        assert isinstance(frames, Tensor)
        length = int(frames.max()) * SAMPLES_PER_ENCODER_FRAME
        padded = nn.functional.pad(waveforms, (0, length - waveforms.shape[1]))
        return self._log_mel(padded), frames

    @torch.no_grad()
    def whisper(self, waveforms: Tensor) -> Tensor:
        """Features as Whisper itself computes them: padded or cut to 30 s.

        Args:
            waveforms: float32 (batch, samples), 16 kHz.

        Returns:
            float32 (batch, n_mels, 3000).
        """
        padded = nn.functional.pad(waveforms, (0, 30 * SAMPLE_RATE - waveforms.shape[1]))
        return self._log_mel(padded)

    def _log_mel(self, padded: Tensor) -> Tensor:
        """Compressed mel power, each clip against its own maximum."""
        # Training runs in bfloat16 around this; serving does not, and both must hear the same.
        with torch.autocast(padded.device.type, enabled=False):
            power = self.spectrogram(padded.float())[..., :-1]
        log = power.clamp(min=1e-10).log10()
        log = torch.maximum(log, log.amax(dim=(-2, -1), keepdim=True) - 8.0)
        return (log + 4.0) / 4.0
