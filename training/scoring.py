"""Comparing texts with their references: error rates, their intervals, alignments, loops."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from itertools import zip_longest
from typing import Any, Literal

import jiwer
import numpy as np
from numpy.typing import NDArray
from whisper_normalizer.english import EnglishTextNormalizer

from model.search import COMPRESSION_RATIO_LIMIT, compression_ratio

CONFIDENCE = 0.95
RESAMPLES = 10_000
NORMALIZER = f"whisper_normalizer.english.EnglishTextNormalizer {version('whisper-normalizer')}"
DURATION_CLASSES = (  # seconds: name, from, below
    ("< 5 s", 0.0, 5.0),
    ("5–10 s", 5.0, 10.0),
    ("10–20 s", 10.0, 20.0),
    ("≥ 20 s", 20.0, float("inf")),
)

# People do say "no, no, no"; six words that only repeat those just before them are a loop.
REPEATED_WORDS_LIMIT = 6
_LONGEST_PHRASE = 30  # words; a longer phrase said twice is left to the compression


class ScoringError(ValueError):
    """There is nothing to score."""


@dataclass(frozen=True)
class Pair:
    """What was said, and what was recognized."""

    id: str
    reference: str
    hypothesis: str
    duration: float  # seconds
    speaker: str | None = None
    group: str | None = None  # of speakers, see training.manifest


Step = Literal["equal", "substitute", "delete", "insert"]  # jiwer's names


@dataclass(frozen=True)
class AlignedWord:
    """A step of the alignment; the word that a deletion or an insertion lacks is None."""

    step: Step
    reference: str | None
    hypothesis: str | None


@dataclass(frozen=True)
class ScoredPair:
    """A pair after normalization, aligned."""

    pair: Pair
    reference: str  # normalized
    hypothesis: str  # normalized
    alignment: tuple[AlignedWord, ...]
    character_errors: int

    @cached_property
    def steps(self) -> Counter[Step]:
        """How often each kind of step stands in the alignment."""
        return Counter(word.step for word in self.alignment)

    @property
    def words(self) -> int:
        """Words of the reference."""
        return len(self.reference.split())

    @property
    def word_errors(self) -> int:
        """Substitutions, deletions and insertions."""
        return len(self.alignment) - self.steps["equal"]

    @property
    def empty(self) -> bool:
        """Nothing was recognized though something was said."""
        return not self.hypothesis and bool(self.reference)

    @property
    def looped(self) -> bool:
        """The recognized text goes in circles, and the reference does not."""
        repeated = repeated_words(self.hypothesis.split())
        if repeated >= REPEATED_WORDS_LIMIT and repeated > repeated_words(self.reference.split()):
            return True
        ratio = compression_ratio(self.hypothesis)
        return ratio > COMPRESSION_RATIO_LIMIT and ratio > compression_ratio(self.reference)


@dataclass(frozen=True)
class Rate:
    """Errors for each word (or character) of the reference, with a 95 % interval.

    The interval is the percentile bootstrap over utterances: how far the rate would vary with
    other utterances of the same speakers. Speakers are not resampled. Of a handful of utterances it is
    far too narrow; of one it has no width and says nothing.
    """

    errors: int
    total: int  # words or characters of the reference
    low: float
    high: float
    utterances: int
    seconds: float

    @property
    def value(self) -> float:
        """Errors for each word (or character) of the reference."""
        return self.errors / self.total


@dataclass(frozen=True)
class Confusion:
    """One kind of word error, and how often it happened."""

    reference: str | None
    hypothesis: str | None
    count: int


@dataclass(frozen=True)
class Scores:
    """Everything that is known about one set of hypotheses.

    An utterance whose reference the normalizer leaves empty ("Uh, hmm.") cannot have an error
    rate; it stands in `empty_references` and in no rate.
    """

    utterances: tuple[ScoredPair, ...]
    empty_references: tuple[ScoredPair, ...]
    wer: Rate
    cer: Rate
    by_speaker: dict[str, Rate]  # word error rates, best first; "" where none is named
    by_duration: dict[str, Rate]  # word error rates, in the order of DURATION_CLASSES

    def count(self, step: Step) -> int:
        """How many words were substituted, deleted, inserted or right."""
        return sum(scored.steps[step] for scored in self.utterances)

    def confusions(self, step: Step, most: int = 20) -> list[Confusion]:
        """The most frequent errors of one kind, most frequent first, then by alphabet."""
        counts = Counter(
            (word.reference, word.hypothesis)
            for scored in self.utterances
            for word in scored.alignment
            if word.step == step
        )
        ranked = sorted(counts.items(), key=lambda item: (-item[1], [w or "" for w in item[0]]))
        return [Confusion(*words, count) for words, count in ranked[:most]]

    def worst(self, most: int = 20) -> list[ScoredPair]:
        """The utterances with the most word errors that have any; of equals, the shorter first."""
        wrong = [scored for scored in self.utterances if scored.word_errors]
        return sorted(wrong, key=lambda s: (-s.word_errors, s.words, s.pair.id))[:most]

    @property
    def looped(self) -> list[ScoredPair]:
        """Utterances whose text repeats itself as the reference does not."""
        return [s for s in (*self.utterances, *self.empty_references) if s.looped]

    @property
    def empty(self) -> list[ScoredPair]:
        """Utterances that came back without a word."""
        return [scored for scored in self.utterances if scored.empty]


def score(pairs: Sequence[Pair], *, seed: int = 0) -> Scores:
    """Normalize, align and count `pairs`; `seed` is the bootstrap's.

    Raises:
        ScoringError: no reference has a word.
    """
    aligned = _align(pairs)
    scorable = [scored for scored in aligned if scored.reference]
    if not scorable:
        raise ScoringError(
            f"none of the {len(pairs)} references has a word left after {NORMALIZER}"
        )
    speakers = _grouped(scorable, lambda scored: scored.pair.speaker or "")
    durations = _grouped(scorable, lambda scored: _duration_class(scored.pair.duration))
    by_speaker = {name: _word_rate(group, seed) for name, group in speakers.items()}
    return Scores(
        utterances=tuple(scorable),
        empty_references=tuple(scored for scored in aligned if not scored.reference),
        wer=_word_rate(scorable, seed),
        cer=_rate(
            scorable,
            [scored.character_errors for scored in scorable],
            [len(scored.reference) for scored in scorable],
            seed,
        ),
        by_speaker=dict(sorted(by_speaker.items(), key=lambda item: (item[1].value, item[0]))),
        by_duration={
            name: _word_rate(durations[name], seed)
            for name, _, _ in DURATION_CLASSES
            if name in durations
        },
    )


def bootstrap_interval(
    errors: Sequence[float],
    totals: Sequence[float],
    *,
    seed: int,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
    few: bool = False,
) -> tuple[float, float]:
    """The percentile bootstrap interval of sum(errors) / sum(totals) over the items.

    `errors` and `totals` are (items,), no total is 0. The rate of the sums, not the mean of the
    rates, is drawn again, as Bisani and Ney (2004) propose for word error rates.

    Args:
        few: widen it as few items need: the spread of a handful is a guess, and the bootstrap takes
            it as known and for n - 1 in n of what it is (Hesterberg, 2015). How far each draw is
            from the rate is multiplied by sqrt(n / chi²(n - 1)), as in Student's interval. With
            hundreds of items that changes nothing; of one item the interval has no end.
    """
    items = len(errors)
    if few and items == 1:
        return -math.inf, math.inf
    table = np.array([errors, totals], dtype=np.float64)
    generator = np.random.default_rng(seed)
    rates: list[NDArray[np.float64]] = []
    block = max(1, 1_000_000 // items)  # draws at once, which bounds memory to some 20 MB
    for start in range(0, resamples, block):
        draws = min(block, resamples - start)
        chosen = generator.integers(0, items, size=(draws, items), dtype=np.int32)
        summed = table[:, chosen].sum(axis=-1)
        drawn = summed[0] / summed[1]
        if few:
            rate = table[0].sum() / table[1].sum()
            drawn = rate + (drawn - rate) * np.sqrt(items / generator.chisquare(items - 1, draws))
        rates.append(drawn)
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(rates), [tail, 1 - tail])
    return float(low), float(high)


def repeated_words(words: Sequence[str]) -> int:
    """The most words in a row that only repeat the phrase just before them.

    0 for a text without repetition, 4 for "a b a b a b".
    """
    most = 0
    for length in range(1, min(_LONGEST_PHRASE, len(words) // 2) + 1):
        run = 0
        for position in range(length, len(words)):
            run = run + 1 if words[position] == words[position - length] else 0
            most = max(most, run - run % length)
    return most


def _align(pairs: Sequence[Pair]) -> list[ScoredPair]:
    normalize = EnglishTextNormalizer()
    references = [normalize(pair.reference) for pair in pairs]
    hypotheses = [normalize(pair.hypothesis) for pair in pairs]
    words = jiwer.process_words(references, hypotheses)
    characters = jiwer.process_characters(references, hypotheses)
    return [
        ScoredPair(
            pair=pair,
            reference=" ".join(words.references[index]),
            hypothesis=" ".join(words.hypotheses[index]),
            alignment=tuple(
                _aligned_words(
                    words.references[index], words.hypotheses[index], words.alignments[index]
                )
            ),
            character_errors=sum(
                max(
                    chunk.ref_end_idx - chunk.ref_start_idx,
                    chunk.hyp_end_idx - chunk.hyp_start_idx,
                )
                for chunk in characters.alignments[index]
                if chunk.type != "equal"
            ),
        )
        for index, pair in enumerate(pairs)
    ]


def _aligned_words(
    reference: Sequence[str], hypothesis: Sequence[str], chunks: Sequence[Any]
) -> list[AlignedWord]:
    aligned = []
    for chunk in chunks:
        said = reference[chunk.ref_start_idx : chunk.ref_end_idx]
        heard = hypothesis[chunk.hyp_start_idx : chunk.hyp_end_idx]
        aligned += [
            AlignedWord(chunk.type, a, b) for a, b in zip_longest(said, heard, fillvalue=None)
        ]
    return aligned


def _grouped(
    scored: Sequence[ScoredPair], name_of: Callable[[ScoredPair], str]
) -> dict[str, list[ScoredPair]]:
    groups: defaultdict[str, list[ScoredPair]] = defaultdict(list)
    for entry in scored:
        groups[name_of(entry)].append(entry)
    return dict(groups)


def _duration_class(seconds: float) -> str:
    return next(name for name, start, end in DURATION_CLASSES if start <= seconds < end)


def _word_rate(scored: Sequence[ScoredPair], seed: int) -> Rate:
    return _rate(scored, [s.word_errors for s in scored], [s.words for s in scored], seed)


def _rate(
    scored: Sequence[ScoredPair], errors: Sequence[int], totals: Sequence[int], seed: int
) -> Rate:
    low, high = bootstrap_interval(errors, totals, seed=seed)
    return Rate(
        errors=sum(errors),
        total=sum(totals),
        low=low,
        high=high,
        utterances=len(scored),
        seconds=sum(entry.pair.duration for entry in scored),
    )
