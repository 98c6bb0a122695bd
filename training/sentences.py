"""Choose sentences from books whose words a training set lacks, for training.synthesize.

    python -m training.sentences --book moby.txt austen.txt --train train.jsonl \
        --held-out dev.jsonl test.jsonl --hours 2 --output words.txt

Books are plain text (UTF-8), with an empty line between paragraphs. A sentence that shares six words
in a row with a held-out text is never chosen, so that no figure gains from having read the answer.
"""

import argparse
import math
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heapreplace
from pathlib import Path

from training.files import write_text
from training.manifest import Rejected, Utterance, read_manifest
from training.spoken import read_plain_text, simple_signs, words_of

KNOWN = 2  # a word that is said so often in training is not sought
FREQUENT = 4  # a word that stands less often in the books is not sought: a name, a misprint
SHARED_WORDS = 6  # in a row with a held-out text
WORDS = range(6, 23)  # of a sentence
# Each time that a word is chosen, it is worth this much less.
_AGAIN = 0.25
# A clip costs as much as this many words more than it has; else the shortest sentences always win.
_COST_OF_A_CLIP = 3
# Measured on 1,372 clips of book sentences, 28 voices, speeds 0.9 to 1.2 (1.78 h).
CHARACTERS_A_SECOND = 16.6

PARAGRAPH = re.compile(r"\n\s*\n")
END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
_SENTENCE = re.compile(r"[A-Z][A-Za-z ,.;:!?'—-]*[.!?]")
# A point that ends no sentence; and such words are read in several ways. Their sentences are left out.
_ABBREVIATION = re.compile(
    r"\b(?:Mr|Mrs|Messrs|Dr|St|Capt|Col|Gen|Lieut|Hon|Rev|Esq|Jr|vol|etc|viz|[A-Za-z])\."
)
# Capitals may be spelled or not; an apostrophe at a word's edge may be a quotation mark.
_DOUBTFUL = re.compile(r"\b[A-Z]{2,}|(?:^|[ —])'|'(?:[ —]|$)")


@dataclass(frozen=True)
class Sentence:
    """A sentence of a book and the words that are said in it."""

    written: str
    words: tuple[str, ...]

    @property
    def seconds(self) -> float:
        """How long it takes to say, roughly."""
        return len(" ".join(self.words)) / CHARACTERS_A_SECOND


def runs(words: Sequence[str]) -> set[tuple[str, ...]]:
    """Every SHARED_WORDS words in a row."""
    return {tuple(words[i : i + SHARED_WORDS]) for i in range(len(words) - SHARED_WORDS + 1)}


def sentences_of(book: str) -> Iterator[Sentence]:
    """Sentences of a plain text that can be read in one way only; quotation marks are left out."""
    for paragraph in PARAGRAPH.split(_ABBREVIATION.sub("§", re.sub(r'["“”_]', "", book))):
        for sentence in END.split(simple_signs(paragraph)):
            if _SENTENCE.fullmatch(sentence) and not _DOUBTFUL.search(sentence):
                words = tuple(words_of(sentence))
                if len(words) in WORDS:
                    yield Sentence(sentence, words)


def sought_words(sentences: Iterable[Sentence], known: Mapping[str, int]) -> dict[str, float]:
    """What each word that training lacks is worth: the logarithm of how often the books have it."""
    counts = Counter(word for sentence in sentences for word in set(sentence.words))
    return {
        word: math.log1p(count)
        for word, count in counts.items()
        if count >= FREQUENT and known.get(word, 0) < KNOWN
    }


def choose(
    sentences: Sequence[Sentence], sought: Mapping[str, float], seconds: float
) -> list[Sentence]:
    """Take the sentence with the most sought words for its length, again and again.

    Args:
        sentences: to choose from.
        sought: what each word is worth; less each time that it is chosen.
        seconds: how much is wanted.

    Returns:
        The best first. Less than `seconds` if no other sentence holds a sought word.
    """
    worth = dict(sought)

    def gain(sentence: Sentence) -> float:
        words = sorted(
            set(sentence.words)
        )  # a set's order differs from run to run, and so would sums
        return sum(worth.get(word, 0.0) for word in words) / (len(sentence.words) + _COST_OF_A_CLIP)

    # Gains only fall, so one that is still what the heap says is the greatest.
    heap = [(-gain(sentence), index) for index, sentence in enumerate(sentences)]
    heapify(heap)
    chosen: list[Sentence] = []
    while heap and heap[0][0] < 0 and seconds > 0:
        stated, index = heap[0]
        sentence = sentences[index]
        if -gain(sentence) > stated:
            heapreplace(heap, (-gain(sentence), index))
            continue
        heappop(heap)
        chosen.append(sentence)
        seconds -= sentence.seconds
        for word in set(sentence.words) & worth.keys():
            worth[word] *= _AGAIN
    return chosen


def read_words(manifests: Iterable[Path]) -> Iterator[list[str]]:
    """Words of each utterance, whose recordings need not be here; rejected lines are named."""
    for manifest in manifests:
        utterances, rejected = _read_texts(manifest)
        for line in rejected:
            print(f"{manifest}:{line.line}: left out: {line.reason}", file=sys.stderr)
        for utterance in utterances:
            yield words_of(utterance.text)


def read_runs(manifests: Iterable[Path]) -> set[tuple[str, ...]]:
    """The `runs` of all texts that are held out; their recordings need not be here.

    Raises ValueError for a line that cannot be read: what it says would not be held out.
    """
    found: set[tuple[str, ...]] = set()
    for manifest in manifests:
        utterances, rejected = _read_texts(manifest)
        if rejected:
            first = rejected[0]
            raise ValueError(
                f"{manifest}:{first.line}: {first.reason}; its text would not be held out. Mend or "
                f"remove this line{f' and {len(rejected) - 1} more' if rejected[1:] else ''}"
            )
        for utterance in utterances:
            found |= runs(words_of(utterance.text))
    return found


def _read_texts(manifest: Path) -> tuple[list[Utterance], list[Rejected]]:
    return read_manifest(manifest, exists=lambda path: True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m training.sentences", description="Choose sentences with words that lack."
    )
    parser.add_argument("--book", type=Path, nargs="+", required=True, help="plain text, UTF-8")
    parser.add_argument("--train", type=Path, nargs="+", required=True, help="manifests")
    parser.add_argument("--held-out", type=Path, nargs="+", required=True, help="manifests")
    parser.add_argument("--hours", type=float, required=True, help="how much speech is wanted")
    parser.add_argument("--output", type=Path, required=True, help="one sentence a line")
    args = parser.parse_args(arguments)
    try:
        known = Counter(word for words in read_words(args.train) for word in words)
        held_out = read_runs(args.held_out)
        found = {s.words: s for book in args.book for s in sentences_of(read_plain_text(book))}
        sentences = [s for s in found.values() if held_out.isdisjoint(runs(s.words))]
        sought = sought_words(sentences, known)
        chosen = choose(sentences, sought, args.hours * 3600)
        write_text(args.output, "".join(f"{sentence.written}\n" for sentence in chosen))
    except (OSError, ValueError) as error:
        print(f"sentences: {error}", file=sys.stderr)
        return 1
    covered = sought.keys() & {word for sentence in chosen for word in sentence.words}
    print(
        f"{len(sentences)} sentences can be read, {len(found) - len(sentences)} are too like held-out"
        f" texts\n{args.output}: {len(chosen)} sentences, about"
        f" {sum(s.seconds for s in chosen) / 3600:.2f} h, with {len(covered)} of {len(sought)} words"
        f" that training lacks"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
