"""Make an n-gram of words from plain text, for mode `fast`.

    python -m training.language_model --text moby.txt austen.txt --held-out dev.jsonl test.jsonl \
        --order 3 --output lm.arpa

Texts are UTF-8, with an empty line between paragraphs. Words are those that the CTC head can write. A
sentence that shares six words in a row with a held-out text is left out, so that no figure gains from
having read the answer.
"""

import argparse
import io
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from kaldingram.train import NgramCounts

from training.files import write_text
from training.sentences import END, PARAGRAPH, read_words, runs
from training.spoken import read_plain_text, words_of

ORDERS = range(2, 6)
# An n-gram of the highest order that stands once in the text tells little and takes most of the room.
# SRILM's default, too.
LEAST = 2


def sentences_of(text: str) -> Iterator[list[str]]:
    """The words of each sentence of a plain text, as the CTC head spells them."""
    for paragraph in PARAGRAPH.split(text):
        for sentence in END.split(" ".join(paragraph.split())):
            if words := words_of(sentence):
                yield words


def estimate(sentences: Iterator[list[str]], order: int) -> str:
    """A Kneser-Ney n-gram in ARPA format (Kneser and Ney, "Improved Backing-off for M-gram Language
    Modeling", 1995), without those of the highest order that stand once.

    Raises:
        ValueError: there is no sentence.
    """
    counts = NgramCounts(order)
    empty = True
    for words in sentences:
        counts.add_raw_counts_from_line(" ".join(words))
        empty = False
    if empty:
        raise ValueError("the texts hold no sentence")
    # Discounts are of the whole text; without its rare n-grams there would be nothing to discount.
    counts.cal_discounting_constants()
    counts.apply_count_cutoffs([0] * (order - 1) + [LEAST])
    counts.cal_f()
    counts.cal_bow()
    arpa = io.StringIO()
    counts.print_as_arpa(arpa)
    return arpa.getvalue()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m training.language_model", description="Make an n-gram for mode fast."
    )
    parser.add_argument("--text", type=Path, nargs="+", required=True, help="plain text, UTF-8")
    parser.add_argument("--held-out", type=Path, nargs="*", default=[], help="manifests")
    parser.add_argument("--order", type=int, choices=ORDERS, default=3, help="most words in a row")
    parser.add_argument("--output", type=Path, required=True, help="ARPA file")
    args = parser.parse_args(arguments)
    left_out = used = 0

    def kept() -> Iterator[list[str]]:
        nonlocal left_out, used
        for path in args.text:
            for words in sentences_of(read_plain_text(path)):
                if held_out.isdisjoint(runs(words)):
                    used += len(words)
                    yield words
                else:
                    left_out += 1

    try:
        held_out = {run for words in read_words(args.held_out) for run in runs(words)}
        arpa = estimate(kept(), args.order)
        write_text(args.output, arpa)
    except (OSError, ValueError) as error:
        print(f"language_model: {error}", file=sys.stderr)
        return 1
    print(
        f"{args.output}: {len(arpa) / 1e6:.1f} MB, from {used} words;"
        f" {left_out} sentences are too like held-out texts"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
