"""The recognizer: waveforms in, transcripts out.

    waveforms → cut at pauses → groups of similar length → log-mel → encoder → decoder → words' times

One `Recognizer` holds one network on one device; it keeps no state between calls.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from model.alignment import align_words, fits
from model.audio import SAMPLE_RATE
from model.beam_search import beam_search
from model.checkpoint import Checkpoint, load_checkpoint
from model.confidence import with_confidences
from model.correction import Corrector
from model.ctc_beam import CTCBeamSearch
from model.features import SAMPLES_PER_ENCODER_FRAME
from model.hotwords import Hotword, LetterBias, TokenBias
from model.lanes import Lanes
from model.language_model import LanguageModel
from model.network import KERNEL_STEP
from model.precision import has_amx_tiles, precisions
from model.search import (
    AVG_LOGPROB_LIMIT,
    COMPRESSION_RATIO_LIMIT,
    NO_SPEECH_LIMIT,
    Decoded,
    compression_ratio,
    greedy_ctc,
    greedy_search,
    until_repeated,
)
from model.segmentation import Span, split_at_pauses
from model.tokenizer import Characters
from model.transcript import Segment, Transcript, Word, ends_sentence

Mode = Literal["accurate", "fast"]
Group = TypeVar("Group")
Result = TypeVar("Result")

# -80 dB of full scale: below it there is dither at most, and the network would be asked to read noise.
SILENCE_PEAK = 1e-4
# Where nobody speaks the decoder may write all the same, with a chance of no speech of 0.12 and more;
# sentences have 0.01 at most, very soft ones 0.08. From here on the CTC head must hear something too.
NO_SPEECH_HINT = 0.05
# The CTC head hears nothing there, or one to four letters, fewer than 1.5 a second, all unsure. Speech
# has about 14 a second; where it has few, as a word between long pauses, they are clearer.
CTC_AVG_LOGPROB_LIMIT = -0.4
CTC_LEAST_LETTERS = 4
CTC_LETTERS_PER_SECOND = 2.0
# Most padded audio that a CPU's lane encodes at once: what a layer makes of more misses its cache, while
# searching many clips together pays (docs/experiments.md).
CPU_ENCODER_SECONDS = 30.0
# And how much longer than its shortest piece the longest may be: to encode them apart costs less than to
# compute what is padded.
CPU_ENCODER_PADDING_SECONDS = 1.0
# Longest stretch of a recording; a pause is sought from half of it on. Longer ones are slower, since
# a doubt anywhere in one has all of it searched again, and have as many errors; shorter ones end
# sentences that go on (docs/experiments.md). The network itself takes 29.5 s.
PIECE_SECONDS = 20.0
# The decoder may write a sentence again and again where it does not hear the end; what it wrote once is
# kept if it is so like the CTC head's text (1 is the same). Texts of different clips are less so: 300
# pairs of dev had 0.45 at most.
LIKE_HEARD = 0.6
# Share of a text's letters that the CTC head must know to judge it and write it anew.
LETTERS_KNOWN = 0.8
# Texts that are kept of a clip with hot words; 5 were no better on dev (docs/experiments.md).
BEAM_SIZE = 3
WIDEST_BEAM = 8  # that a caller may ask for
# Where a token is less likely, a beam search that a caller wants looks for a better text. A third of
# dev's clips has one; in clean speech and noise they hold nine tenths of what a limit of one half gained
# (docs/experiments.md).
BEAM_LOGPROB_LIMIT = math.log(0.4)
# OpenAI's verbose_json names languages in words.
LANGUAGES = {"en": "english"}


@dataclass(frozen=True)
class TranscribeOptions:
    """What a caller asks for.

    Attributes:
        mode: "accurate" has the decoder search for the text; "fast" takes the CTC head's, which the
            decoder corrects in one parallel pass.
        word_timestamps: also find when each word was said; segments are then sentences.
        prompt: text that came before, or is like what will be said: the decoder goes on in its spelling
            and style. Mode "fast" has no use for it.
        hotwords: words that are expected.
        beam_size: texts that beam search keeps of a clip where greedy search is in doubt; 1 leaves it at
            greedy search. None reconsiders the doubtful tokens one by one, which finds as much as a beam
            of 3 for less, and has such a beam for hot words. Mode "fast" has no use for it.
    """

    mode: Mode = "accurate"
    word_timestamps: bool = True
    prompt: str = ""
    hotwords: tuple[Hotword, ...] = ()
    beam_size: int | None = None


@dataclass(frozen=True)
class BatchResult:
    """Transcripts in the order of the waveforms, and what they cost.

    Attributes:
        transcripts: one for each waveform.
        audio_seconds: length of all waveforms.
        heard_seconds: of it, what went through the network; silence does not.
        padded_seconds: the same with the padding within its groups.
    """

    transcripts: list[Transcript]
    audio_seconds: float
    heard_seconds: float
    padded_seconds: float


@dataclass(frozen=True)
class _Piece:
    """A stretch of one waveform that the network hears at once."""

    owner: int
    span: Span
    waveform: Tensor
    options: TranscribeOptions


@dataclass(frozen=True)
class _Reading:
    """What was read in a piece; times count from the piece's start."""

    text: str
    avg_logprob: float
    no_speech_prob: float
    words: tuple[Word, ...]


_NOTHING = _Reading("", 0.0, 1.0, ())


class Recognizer:
    """Transcribes batches of audio.

    Args:
        checkpoint: the network and its tokenizers; it is moved to the device and precision.
        device: "cpu", "cuda", "cuda:1", …; "auto" is CUDA where there is one.
        dtype: of matrix products: "float32", "bfloat16", or "int8", which on an x86 CPU that has units
            for bfloat16 leaves encoder and CTC head to these. "auto" is the fastest that the device has
            units for.
        max_batch_seconds: most padded audio in one forward pass, of which a CPU has two at once; it
            bounds memory.
        language_model: an n-gram that judges the words of mode "fast"; the checkpoint's own by default.
        threads: how many of a CPU's may be used now, which is asked again all the time; by default those
            that torch has when the recognizer is made.

    Raises:
        ValueError: the device or dtype is unknown or not there.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        device: str = "auto",
        dtype: str = "auto",
        max_batch_seconds: float = 240.0,
        language_model: LanguageModel | None = None,
        threads: Callable[[], int] | None = None,
    ) -> None:
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            self.device = torch.device(device)
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(
                f"device is {device!r}, which is not here; use 'auto', 'cpu' or 'cuda:N' ({error})"
            ) from error
        offered = precisions(self.device)
        if dtype not in ("auto", *offered):
            raise ValueError(
                f"dtype is {dtype!r}; on this device it can be {', '.join(('auto', *offered))}"
            )
        self.dtype = offered[0] if dtype == "auto" else dtype
        self.config = checkpoint.config
        self.tokenizer = checkpoint.tokenizer
        self.characters = checkpoint.characters
        self.features = checkpoint.features.to(self.device)
        self.network = checkpoint.network.to(self.device, torch.float32).eval()
        if self.dtype != "float32" and "bfloat16" in offered:
            self.network.encoder.bfloat16()
            self.network.ctc.bfloat16()
        if self.dtype == "int8":
            self.network.decoder.use_int8()
            if "bfloat16" not in offered:
                # Units for bfloat16 are fast enough, and it rounds less (docs/experiments.md).
                for layer in (*self.network.encoder.layers, *self.network.ctc.layers):
                    layer.use_int8()
        elif self.dtype == "bfloat16":
            self.network.decoder.bfloat16()
        positions = checkpoint.config.dimensions.audio_positions
        # As in Whisper, which leaves the other half of its positions to the text.
        self.max_prompt_tokens = checkpoint.config.dimensions.text_positions // 2 - 1
        longest = positions * SAMPLES_PER_ENCODER_FRAME - self.features.tail_samples
        self.longest_seconds = longest / SAMPLE_RATE  # that the network hears at once
        self.max_piece_seconds = min(PIECE_SECONDS, self.longest_seconds)
        if max_batch_seconds < self.max_piece_seconds:
            raise ValueError(
                f"max_batch_seconds is {max_batch_seconds}; "
                f"it must hold one piece of {self.max_piece_seconds} s"
            )
        self.max_batch_seconds = max_batch_seconds
        if language_model is None and checkpoint.language_model is not None:
            language_model = LanguageModel(checkpoint.language_model)
        self.language_model = language_model
        self._corrector = Corrector(
            self.network.decoder,
            self.tokenizer,
            None if language_model is None else language_model.knows,
        )
        self._lanes: Lanes | None = None
        if self.device.type == "cpu":
            at_first = torch.get_num_threads()
            steps = (*self.network.encoder.layers, *self.network.ctc.layers, self.network.decoder)
            self._lanes = Lanes(threads or (lambda: at_first), steps)

    @classmethod
    def load(
        cls,
        checkpoint: Path,
        *,
        device: str = "auto",
        dtype: str = "auto",
        max_batch_seconds: float = 240.0,
        language_model: Path | None = None,
        threads: Callable[[], int] | None = None,
    ) -> "Recognizer":
        """Read a checkpoint folder, and perhaps another n-gram; arguments as for the class.

        Raises:
            CheckpointError: the folder is not a checkpoint.
            LanguageModelError: the file is not an n-gram.
        """
        return cls(
            load_checkpoint(checkpoint),
            device=device,
            dtype=dtype,
            max_batch_seconds=max_batch_seconds,
            language_model=None if language_model is None else LanguageModel(language_model),
            threads=threads,
        )

    @torch.inference_mode()
    def transcribe(
        self,
        waveforms: Sequence[Tensor],
        options: TranscribeOptions | Sequence[TranscribeOptions] = TranscribeOptions(),
    ) -> BatchResult:
        """Transcribe any number of waveforms of any length.

        Args:
            waveforms: float32 (samples,) each, 16 kHz mono.
            options: for all, or one for each waveform.

        Raises:
            ValueError: a waveform is not of that form, or the options are not as many.
        """
        if isinstance(options, TranscribeOptions):
            options = [options] * len(waveforms)
        if len(options) != len(waveforms):
            raise ValueError(f"{len(options)} options for {len(waveforms)} waveforms")
        for waveform in waveforms:
            if waveform.ndim != 1 or not waveform.is_floating_point():
                raise ValueError(
                    f"a waveform is {waveform.dtype} {tuple(waveform.shape)}; "
                    "it must be float32 (samples,)"
                )
        pieces = [
            _Piece(owner, span, waveform[span.start : span.end], wanted)
            for owner, (waveform, wanted) in enumerate(zip(waveforms, options, strict=True))
            for span in split_at_pauses(waveform, self.max_piece_seconds)
        ]
        readings: dict[int, _Reading] = {}
        heard = padded = 0
        groups = self._groups(pieces)
        reads = self._in_lanes(partial(self._read_group, pieces), groups)
        for group, read in zip(groups, reads, strict=True):
            readings.update(zip(group, read, strict=True))
            lengths = [len(pieces[i].waveform) for i in group]
            heard += sum(lengths)
            padded += max(lengths) * len(lengths)
        transcripts = self._assemble(waveforms, pieces, readings)
        return BatchResult(
            transcripts=transcripts,
            audio_seconds=sum(map(len, waveforms)) / SAMPLE_RATE,
            heard_seconds=heard / SAMPLE_RATE,
            padded_seconds=padded / SAMPLE_RATE,
        )

    def _groups(self, pieces: Sequence[_Piece]) -> list[list[int]]:
        """Indices of pieces that go through the network together: same mode, similar length.

        Pieces of silence are in none. Where there are lanes, each gets a group of every length. Those
        with most audio come first, so that the lanes end together.
        """
        audible = [
            i
            for i, p in enumerate(pieces)
            if len(p.waveform) and p.waveform.abs().max() > SILENCE_PEAK
        ]
        audible.sort(key=lambda i: (pieces[i].options.mode, len(pieces[i].waveform)))
        lanes = 1 if self._lanes is None else self._lanes.count
        groups: list[list[int]] = []
        for lane in range(lanes):
            group: list[int] = []
            for i in audible[lane::lanes]:
                # Sorted: this piece is the longest so far, and sets the group's width.
                seconds = len(pieces[i].waveform) / SAMPLE_RATE * (len(group) + 1)
                other = group and pieces[group[0]].options.mode != pieces[i].options.mode
                if not group or other or seconds > self.max_batch_seconds:
                    group = []
                    groups.append(group)
                group.append(i)
        return sorted(groups, key=lambda g: -len(g) * len(pieces[g[-1]].waveform))

    def _in_lanes(self, work: Callable[[Group], Result], groups: Sequence[Group]) -> list[Result]:
        """Do the work for each group, on a CPU in its lanes; results in order."""
        if self._lanes is None:
            return [work(group) for group in groups]
        return self._lanes.map(work, groups)

    @torch.inference_mode()  # a thread has its own mode
    def _read_group(self, pieces: Sequence[_Piece], group: Sequence[int]) -> list[_Reading]:
        return self._read([pieces[i] for i in group])

    def _read(self, pieces: Sequence[_Piece]) -> list[_Reading]:
        """Read a group of pieces in one forward pass."""
        encoded, frames, logprobs = self._encode(self._features(pieces))
        rows = [own[:count] for own, count in zip(logprobs, frames.tolist(), strict=True)]
        if pieces[0].options.mode == "fast":
            return self._read_as_heard(pieces, encoded, frames, rows)
        drafts = greedy_ctc(logprobs, frames, self.characters)
        found = self._search(pieces, encoded, frames, drafts)
        readings = []
        doubtful = set()
        questionable = set()
        found = [self._unrepeated(*own) for own in zip(found, drafts, strict=True)]
        for i, (decoded, count) in enumerate(zip(found, frames.tolist(), strict=True)):
            text = self.tokenizer.decode(decoded.tokens)
            unsure = decoded.avg_logprob < AVG_LOGPROB_LIMIT or decoded.looped
            if decoded.no_speech_prob > NO_SPEECH_LIMIT and unsure:
                text = ""
            if self._is_invented(text, decoded, count):
                doubtful.add(i)
            elif decoded.no_speech_prob > NO_SPEECH_HINT and self._can_be_spelled(text):
                questionable.add(i)
            readings.append(_Reading(text, decoded.avg_logprob, decoded.no_speech_prob, ()))
        timed = {i for i, p in enumerate(pieces) if p.options.word_timestamps}
        for i in questionable:
            bias = LetterBias(pieces[i].options.hotwords, self.characters)
            if not self._hear(pieces[i], rows[i], bias):
                readings[i] = _NOTHING
        if doubtful:  # what the CTC head hears cannot loop
            again = sorted(doubtful)
            own = (
                [pieces[i] for i in again],
                encoded[again],
                frames[again],
                [rows[i] for i in again],
            )
            for i, reading in zip(again, self._read_as_heard(*own), strict=True):
                readings[i] = reading
        for i in timed - doubtful:
            words = self._align(rows[i], readings[i].text, pieces[i])
            words = self._with_decoder_confidences(words, found[i])
            readings[i] = replace(readings[i], words=words)
        return readings

    def _parts(self, pieces: Sequence[_Piece]) -> list[list[_Piece]]:
        """Cut a group, whose pieces are sorted by length, into what is encoded at once."""
        if self.device.type != "cpu":
            return [list(pieces)]
        most = round(CPU_ENCODER_SECONDS * SAMPLE_RATE)
        padding = round(CPU_ENCODER_PADDING_SECONDS * SAMPLE_RATE)
        parts: list[list[_Piece]] = []
        for piece in pieces:
            length = len(piece.waveform)
            if (
                not parts
                or length * (len(parts[-1]) + 1) > most
                or length > len(parts[-1][0].waveform) + padding
            ):
                parts.append([])
            parts[-1].append(piece)
        return parts

    def _features(self, pieces: Sequence[_Piece]) -> Iterator[tuple[Tensor, Tensor]]:
        """Features and valid frames of a group of pieces, part by part."""
        for part in self._parts(pieces):
            own = [piece.waveform for piece in part]
            waveforms = pad_sequence(own, batch_first=True).to(self.device)
            samples = torch.tensor([len(waveform) for waveform in own], device=self.device)
            features, frames = self.features(waveforms, samples)
            if self.device.type == "cpu" and has_amx_tiles():
                # oneDNN compiles its kernels anew for each length, and a server hears new ones only.
                length = features.shape[2] // 2
                positions = self.config.dimensions.audio_positions
                more = min(-length % KERNEL_STEP, positions - length)
                features = F.pad(features, (0, 2 * more))
            yield features, frames

    def _encode(self, parts: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
        """Run encoder and CTC head over a group's parts.

        Returns:
            The encoder's output (batch, length, width), each piece's valid frames (batch,), and the log-
            probabilities of the characters (batch, length, labels), which are on the CPU.
        """
        heard = []
        for features, frames in parts:
            encoded = self.network.encoder(features, frames)
            heard.append((encoded, frames, self.network.ctc(encoded, frames).cpu()))
        if len(heard) == 1:
            return heard[0]
        outputs, counts, logprobs = zip(*heard, strict=True)
        return (
            pad_sequence([row for part in outputs for row in part], batch_first=True),
            torch.cat(counts),
            pad_sequence([row for part in logprobs for row in part], batch_first=True),
        )

    def _search(
        self, pieces: Sequence[_Piece], encoded: Tensor, frames: Tensor, drafts: Sequence[str]
    ) -> list[Decoded]:
        """The decoder's text of each piece.

        Greedy search finds most, and reconsiders what it was unsure of. Hot words need beam search, and
        a caller may want it where greedy search wrote an unlikely token (`BEAM_LOGPROB_LIMIT`).
        """
        # The pieces of a recording have the same prompt, and a long one takes milliseconds.
        given = {piece.options.prompt for piece in pieces}
        after = {text: self.tokenizer.prompt_after(text, self.max_prompt_tokens) for text in given}
        prompts = [after[piece.options.prompt] for piece in pieces]
        found: dict[int, Decoded] = {}
        plain = [i for i, piece in enumerate(pieces) if not piece.options.hotwords]
        for rows in _of_one_kind(plain, lambda i: len(prompts[i])):
            decoded = greedy_search(
                self.network.decoder,
                *((encoded, frames) if len(rows) == len(pieces) else (encoded[rows], frames[rows])),
                self.tokenizer,
                [drafts[i] for i in rows],
                [prompts[i] for i in rows],
                [pieces[i].options.beam_size is None for i in rows],
            )
            found.update(zip(rows, decoded, strict=True))
        beams = [p.options.beam_size or (BEAM_SIZE if p.options.hotwords else 1) for p in pieces]
        again = [
            i
            for i, piece in enumerate(pieces)
            if piece.options.hotwords
            or (beams[i] > 1 and min(found[i].logprobs) < BEAM_LOGPROB_LIMIT)
        ]
        for rows in _of_one_kind(again, lambda i: (len(prompts[i]), beams[i])):
            # The pieces of a recording have the same hot words.
            wanted = [pieces[i].options.hotwords for i in rows]
            biases = {
                words: TokenBias(words, self.tokenizer) if words else None for words in set(wanted)
            }
            decoded = beam_search(
                self.network.decoder,
                encoded[rows],
                frames[rows],
                self.tokenizer,
                [prompts[i] for i in rows],
                [biases[words] for words in wanted],
                beams[rows[0]],
                # A text that loops may be without its end, and is nothing to keep.
                [None if i not in found or found[i].looped else found[i] for i in rows],
                [drafts[i] for i in rows],
            )
            found.update(zip(rows, decoded, strict=True))
        return [found[i] for i in range(len(pieces))]

    def _unrepeated(self, decoded: Decoded, heard: str) -> Decoded:
        """A text without the repetitions that it ends with, if the CTC head heard much the same.

        A text that has its end may be of a speaker who repeated himself: then all of it is liker.
        """
        tokens = tuple(until_repeated(decoded.tokens))
        if tokens == decoded.tokens:
            return decoded
        once, said = (
            SequenceMatcher(None, self.tokenizer.decode(own).lower(), heard, autojunk=False).ratio()
            for own in (tokens, decoded.tokens)
        )
        if once < LIKE_HEARD or (not decoded.looped and once <= said):
            return decoded
        return replace(
            decoded, tokens=tokens, logprobs=decoded.logprobs[: len(tokens)], looped=False
        )

    def _is_invented(self, text: str, decoded: Decoded, frames: int) -> bool:
        """Whether a text loops, or is longer than its audio can hold.

        Only texts that the CTC head can spell are judged: its own takes their place, and scripts of
        three bytes a letter compress well without repeating anything.
        """
        if not text or not self._can_be_spelled(text):
            return False
        repeats = compression_ratio(text) > COMPRESSION_RATIO_LIMIT
        return decoded.looped or repeats or not fits(text, frames, self.characters)

    def _can_be_spelled(self, text: str) -> bool:
        """Whether the CTC head knows most letters; digits are said in words, which it can spell.

        Not all: a foreign name in an English text must not keep a loop.
        """
        letters = [c for c in text if c.isalpha()]
        return sum(map(self.characters.covers, letters)) >= LETTERS_KNOWN * len(letters)

    def _with_decoder_confidences(
        self, words: tuple[Word, ...], decoded: Decoded
    ) -> tuple[Word, ...]:
        """The aligned words; the decoder is as sure of each as of the tokens that spell it."""
        spellings = iter(self.tokenizer.word_tokens(decoded.tokens))
        logprobs = []
        for word in words:
            # A dash on its own went with the word before it when they were aligned.
            places = [place for _ in word.word.split() for place in next(spellings)]
            logprobs.append(sum(decoded.logprobs[place] for place in places))
        return with_confidences(words, logprobs, self.config.calibration.accurate)

    def _align(self, logprobs: Tensor, text: str, piece: _Piece) -> tuple[Word, ...]:
        """Times of the words of a text, within the piece; none if it does not fit its frames.

        The last frame may end after the piece, and a text that is long for its audio needs the silence
        after it as well: then its times are drawn together.
        """
        heard = -(-len(piece.waveform) // SAMPLES_PER_ENCODER_FRAME)
        for count in (heard, len(logprobs)):
            if fits(text, count, self.characters):
                pace = len(piece.waveform) / (count * SAMPLES_PER_ENCODER_FRAME)
                return tuple(
                    replace(word, start=word.start * pace, end=word.end * pace)
                    for word in align_words(logprobs[:count], text, self.characters)
                )
        return ()

    def _hear(self, piece: _Piece, logprobs: Tensor, bias: LetterBias) -> str:
        """What the CTC head hears in a piece, with its hot words.

        Few letters that it is unsure of are no speech. `logprobs` (frames, labels), valid frames only.
        """
        best, labels = logprobs.max(-1)
        letters = best[labels != Characters.BLANK]
        if not len(letters):  # an n-gram would find a word all the same
            return ""
        if piece.options.hotwords or self.language_model is not None:
            text = CTCBeamSearch(self.characters, bias, self.language_model)(logprobs)
        else:
            (text,) = greedy_ctc(logprobs[None], torch.tensor([len(logprobs)]), self.characters)
        few = max(CTC_LEAST_LETTERS, CTC_LETTERS_PER_SECOND * len(piece.waveform) / SAMPLE_RATE)
        unsure = float(letters.mean()) < CTC_AVG_LOGPROB_LIMIT
        return "" if unsure and len(text.replace(" ", "")) < few else text

    def _read_as_heard(
        self,
        pieces: Sequence[_Piece],
        encoded: Tensor,
        frames: Tensor,
        logprobs: Sequence[Tensor],
    ) -> list[_Reading]:
        """What the CTC head hears in each piece, corrected by the decoder.

        Args:
            pieces: of one group.
            encoded: (batch, length, width), the encoder's output.
            frames: int64 (batch,), valid frames of each piece.
            logprobs: (frames, labels) of each piece, of its valid frames.
        """
        # The pieces of a recording have the same hot words.
        wanted = [piece.options.hotwords for piece in pieces]
        biases = {words: LetterBias(words, self.characters) for words in set(wanted)}
        texts = [
            self._hear(piece, own, biases[words])
            for piece, own, words in zip(pieces, logprobs, wanted, strict=True)
        ]
        spoken = [i for i, text in enumerate(texts) if text]
        readings = [_NOTHING] * len(pieces)
        if not spoken:
            return readings
        corrected = self._corrector(
            *(
                (encoded, frames)
                if len(spoken) == len(pieces)
                else (encoded[spoken], frames[spoken])
            ),
            [texts[i] for i in spoken],
            [biases[wanted[i]].phrases for i in spoken],
        )
        for i, found in zip(spoken, corrected, strict=True):
            words: tuple[Word, ...] = ()
            if pieces[i].options.word_timestamps:
                words = self._align(logprobs[i], found.text, pieces[i])
            if words:
                each = iter(found.logprobs)
                # A sign on its own went with the word before it when they were aligned.
                sure = [sum(next(each) for _ in word.word.split()) for word in words]
                words = with_confidences(words, sure, self.config.calibration.fast)
            readings[i] = _Reading(found.text, found.avg_logprob, found.no_speech_prob, words)
        return readings

    def _assemble(
        self, waveforms: Sequence[Tensor], pieces: Sequence[_Piece], readings: dict[int, _Reading]
    ) -> list[Transcript]:
        """Put the pieces of each waveform together, with times from its start."""
        segments: list[list[Segment]] = [[] for _ in waveforms]
        for i, piece in enumerate(pieces):
            reading = readings.get(i, _NOTHING)
            if not reading.text:
                continue
            own = segments[piece.owner]
            start, end = piece.span.start / SAMPLE_RATE, piece.span.end / SAMPLE_RATE
            words = [
                replace(word, start=start + word.start, end=min(start + word.end, end))
                for word in reading.words
            ]
            for sentence in _sentences(words) if words else [[]]:
                text = " ".join(w.word for w in sentence) or reading.text
                own.append(
                    Segment(
                        id=len(own),
                        start=sentence[0].start if sentence else start,
                        end=sentence[-1].end if sentence else end,
                        text=text,
                        tokens=tuple(self.tokenizer.encode(text)),
                        avg_logprob=reading.avg_logprob,
                        compression_ratio=compression_ratio(text),
                        no_speech_prob=reading.no_speech_prob,
                        words=tuple(sentence),
                    )
                )
        language = LANGUAGES.get(self.config.language, self.config.language)
        return [
            Transcript(
                text=" ".join(s.text for s in own),
                language=language,
                duration=len(waveform) / SAMPLE_RATE,
                segments=tuple(own),
            )
            for waveform, own in zip(waveforms, segments, strict=True)
        ]


def _of_one_kind(rows: Sequence[int], kind: Callable[[int], Hashable]) -> Iterator[list[int]]:
    """The rows that can be searched together, kind by kind, in their order."""
    together = defaultdict[Hashable, list[int]](list)
    for row in rows:
        together[kind(row)].append(row)
    yield from together.values()


def _sentences(words: Sequence[Word]) -> Iterator[list[Word]]:
    """Cut words after the end of each sentence."""
    sentence: list[Word] = []
    for word in words:
        sentence.append(word)
        if ends_sentence(word.word):
            yield sentence
            sentence = []
    if sentence:
        yield sentence
