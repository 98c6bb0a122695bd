"""Make an n-gram of words from plain text, for mode `fast`.

    python -m training.language_model --text moby.txt austen.txt --held-out dev.jsonl test.jsonl \
        --order 3 --output runs/mine/best/language_model.arpa.xz

Texts are UTF-8, with an empty line between paragraphs. Words are those that the CTC head can write. A
sentence that shares six words in a row with a held-out text is left out, so that no figure gains from
having read the answer.
"""

import argparse
import lzma
import math
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from training.files import atomic_writer
from training.sentences import END, PARAGRAPH, read_runs, runs
from training.spoken import read_plain_text, words_of

ORDERS = range(2, 6)
# Of what length n-grams must stand how often; those of the highest order that stand once tell little
# and take most of the room. What is dropped goes to backing off. SRILM has such limits, too.
LEAST = (1, 1, 2, 2, 2)
START, END_OF_SENTENCE, UNKNOWN = "<s>", "</s>", "<unk>"

Gram = tuple[str, ...]


def sentences_of(text: str) -> Iterator[list[str]]:
    """The words of each sentence of a plain text, as the CTC head spells them."""
    for paragraph in PARAGRAPH.split(text):
        for sentence in END.split(" ".join(paragraph.split())):
            if words := words_of(sentence):
                yield words


def count(sentences: Iterable[Sequence[str]], order: int) -> list[Counter[Gram]]:
    """How often n-grams of each order up to `order` stand in the sentences."""
    counts: list[Counter[Gram]] = [Counter() for _ in range(order)]
    for sentence in sentences:
        words = (START, *sentence, END_OF_SENTENCE)
        for length, grams in enumerate(counts, 1):
            grams.update(words[i : i + length] for i in range(len(words) - length + 1))
    return counts


def kneser_ney(counts: Sequence[Counter[Gram]]) -> list[Counter[Gram]]:
    """The same as Kneser and Ney count.

    The highest order is counted plainly, and so are those that begin a sentence; of all others it is
    counted after how many different words they stand.
    """
    found = [Counter({g: n for g, n in grams.items() if g[0] == START}) for grams in counts[:-1]]
    for shorter, longer in zip(found, counts[1:], strict=True):
        shorter.update(gram[1:] for gram in longer)
    return [*found, counts[-1]]


def arpa(counts: Sequence[Counter[Gram]], least: Sequence[int] = LEAST) -> Iterator[str]:
    """Lines of an ARPA file with interpolated Kneser-Ney probabilities, one discount for each order.

    Args:
        counts: of `count`.
        least: for each order, how often an n-gram must stand in the sentences to be kept.

    Chen and Goodman, "An Empirical Study of Smoothing Techniques for Language Modeling", 1999,
    section 3; their formula for the discount.
    """
    vocabulary = len(counts[0].keys() - {(START,)})
    shorter: dict[Gram, float] = {(): 1 / vocabulary}
    tables: list[dict[Gram, float]] = []
    backing_off: dict[Gram, float] = {}
    for length, (plain, grams) in enumerate(zip(counts, kneser_ney(counts), strict=True), 1):
        discount = _discount(grams)
        histories = shorter.keys() | {(START,)}
        totals: defaultdict[Gram, float] = defaultdict(float)
        kept: defaultdict[Gram, float] = defaultdict(float)
        table: dict[Gram, float] = {}
        for gram, n in grams.items():
            if gram == (START,):  # nothing predicts it
                continue
            totals[gram[:-1]] += n
            # Without its shorter ones KenLM does not read a longer one.
            whole = length == 1 or (gram[1:] in shorter and gram[:-1] in histories)
            if plain[gram] >= least[length - 1] and whole:
                kept[gram[:-1]] += n - discount
                table[gram] = n - discount
        left = {history: 1 - kept[history] / total for history, total in totals.items()}
        for gram, share in table.items():
            history = gram[:-1]
            table[gram] = share / totals[history] + left[history] * shorter[gram[1:]]
        backing_off |= left
        tables.append(table)
        shorter = table
    yield "\\data\\"
    # Never asked for, but KenLM warns if they lack.
    tables[0] |= {(START,): 1e-99, (UNKNOWN,): 1e-99}
    for length, table in enumerate(tables, 1):
        yield f"ngram {length}={len(table)}"
    for length, table in enumerate(tables, 1):
        yield f"\n\\{length}-grams:"
        for gram, probability in sorted(table.items()):  # so that it compresses well
            line = f"{math.log10(probability):.3f}\t{' '.join(gram)}"
            if gram in backing_off:
                line += f"\t{math.log10(backing_off[gram]):.3f}"
            yield line
    yield "\n\\end\\"


def _discount(grams: Counter[Gram]) -> float:
    once = sum(n == 1 for n in grams.values())
    twice = sum(n == 2 for n in grams.values())
    return once / (once + 2 * twice) if once and twice else 0.5


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m training.language_model", description="Make an n-gram for mode fast."
    )
    parser.add_argument("--text", type=Path, nargs="+", required=True, help="plain text, UTF-8")
    parser.add_argument("--held-out", type=Path, nargs="*", default=[], help="manifests")
    parser.add_argument("--order", type=int, choices=ORDERS, default=3, help="most words in a row")
    parser.add_argument(
        "--least",
        type=int,
        nargs="+",
        default=LEAST,
        help="drop n-grams that stand more seldom, for each length",
    )
    parser.add_argument(
        "--output", type=Path, required=True, help="ARPA file, compressed if it ends with .xz"
    )
    args = parser.parse_args(arguments)
    if len(args.least) < args.order or min(args.least) < 1:
        parser.error(f"--least is {args.least}; it must be {args.order} numbers >= 1")
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
        held_out = read_runs(args.held_out)
        counts = count(kept(), args.order)
        if not used:
            raise ValueError("the texts hold no sentence that can be used")
        content = "".join(f"{line}\n" for line in arpa(counts, args.least)).encode()
        with atomic_writer(args.output) as file:
            file.write(lzma.compress(content) if args.output.suffix == ".xz" else content)
    except (OSError, ValueError) as error:
        print(f"language_model: {error}", file=sys.stderr)
        return 1
    print(
        f"{args.output}: {args.output.stat().st_size / 1e6:.1f} MB, from {used} words;"
        f" {left_out} sentences are too like held-out texts"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
