"""What hot words, a prompt and an n-gram gain and cost, on real speech with words that training lacks.

    python -m tests.benchmarks.vocabulary --manifest dev.jsonl --train train.jsonl --mode accurate
    python -m tests.benchmarks.vocabulary --manifest dev.jsonl --train train.jsonl --mode fast \
        --language-model lm.arpa

Hot words are 50 words of the manifest that the training manifest lacks and that the mode gets wrong
without help. Every clip is given all of them, and as many distractors: rare words of training.
"""

import argparse
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from handler.request import MOST_HOTWORDS
from model.audio import load_audio
from model.checkpoint import load_checkpoint
from model.hotwords import Hotword
from model.language_model import LanguageModel
from model.recognizer import Recognizer, TranscribeOptions
from training.manifest import Utterance, read_manifest
from training.scoring import Pair, score
from training.spoken import words_of

LETTERS = 5  # a shorter word is no name that somebody would list
# Of the n-gram: its weight, what a word earns, what an unknown one costs. The first is the default.
NGRAM_WEIGHTS = (
    (0.5, 1.5, 12.0),
    (0.3, 1.5, 12.0),
    (0.7, 1.5, 12.0),
    (0.5, 0.5, 12.0),
    (0.5, 2.5, 12.0),
    (0.5, 1.5, 8.0),
    (0.5, 1.5, 16.0),
)


class Table:
    """Conditions and what comes of each, printed as soon as it is known.

    Args:
        mode: of the recognizer.
        utterances: the clips.
        known: words of training, with their counts.
        texts: of the clips without help; they say which words are missed.
    """

    def __init__(
        self,
        mode: str,
        utterances: Sequence[Utterance],
        known: Counter[str],
        texts: Sequence[str],
    ) -> None:
        self._utterances = utterances
        candidates = sorted(
            {
                word
                for utterance, text in zip(utterances, texts, strict=True)
                for word in set(words_of(utterance.text)) - set(words_of(text))
                if word not in known and len(word) >= LETTERS
            }
        )
        drawn = random.Random(0)
        self._sought = set(drawn.sample(candidates, min(len(candidates), MOST_HOTWORDS // 2)))
        rare = sorted(word for word, n in known.items() if n == 1 and len(word) >= LETTERS)
        self.words = [*sorted(self._sought), *drawn.sample(rare, len(self._sought))]
        print(
            f"\n{mode} misses {len(candidates)} words; sought: {', '.join(sorted(self._sought))}\n"
        )
        print("| | found | invented | WER | clips with one | others | RTFx |")
        print("|---|---|---|---|---|---|---|")

    def hotwords(self, weight: float) -> tuple[Hotword, ...]:
        """The words that are sought and the distractors."""
        return tuple(Hotword(word, weight) for word in self.words)

    def row(self, name: str, texts: Sequence[str], seconds: float) -> None:
        """Print what is found and invented, the error rates, and audio seconds a CPU second."""
        said: Counter[str] = Counter()
        found: Counter[str] = Counter()
        invented = 0
        pairs: dict[bool, list[Pair]] = {True: [], False: []}
        for utterance, text in zip(self._utterances, texts, strict=True):
            there, written = Counter(words_of(utterance.text)), Counter(words_of(text))
            said += Counter({word: n for word, n in there.items() if word in self._sought})
            both = (there & written).items()
            found += Counter({word: n for word, n in both if word in self._sought})
            invented += sum(n for word, n in (written - there).items() if word in self.words)
            pairs[not self._sought.isdisjoint(there)].append(
                Pair(utterance.audio_filepath, utterance.text, text, utterance.duration)
            )
        groups = (pairs[True] + pairs[False], pairs[True], pairs[False])
        rates = " | ".join(f"{score(group).wer.value:.1%}" for group in groups)
        speed = sum(u.duration for u in self._utterances) / seconds
        print(
            f"| {name} | {found.total()} of {said.total()} | {invented} | {rates} | {speed:.0f} |",
            flush=True,
        )


def transcribed(
    recognizer: Recognizer, waveforms: Sequence[Tensor], options: TranscribeOptions
) -> tuple[list[str], float]:
    """Texts, and the CPU seconds that they took."""
    start = time.process_time()
    texts = [t.text for t in recognizer.transcribe(waveforms, options).transcripts]
    return texts, time.process_time() - start


def accurate(
    recognizer: Recognizer,
    utterances: Sequence[Utterance],
    waveforms: Sequence[Tensor],
    known: Counter[str],
    weights: Sequence[float],
) -> None:
    """Hot words and a prompt in mode accurate."""
    plain = TranscribeOptions(word_timestamps=False)
    without, seconds = transcribed(recognizer, waveforms, plain)
    table = Table("accurate", utterances, known, without)
    table.row("without", without, seconds)
    for weight in weights:
        hot = replace(plain, hotwords=table.hotwords(weight))
        table.row(f"hot words of weight {weight:g}", *transcribed(recognizer, waveforms, hot))
    prompted = replace(plain, prompt=", ".join(table.words))
    table.row("the words as a prompt", *transcribed(recognizer, waveforms, prompted))


def fast(
    checkpoint: Path,
    utterances: Sequence[Utterance],
    waveforms: Sequence[Tensor],
    known: Counter[str],
    weights: Sequence[float],
    arpa: Path | None,
) -> None:
    """Hot words and n-grams in mode fast."""
    plain = TranscribeOptions("fast", word_timestamps=False)
    without = Recognizer(replace(load_checkpoint(checkpoint), language_model=None))
    texts, seconds = transcribed(without, waveforms, plain)
    table = Table("fast", utterances, known, texts)
    table.row("without an n-gram", texts, seconds)
    hot = {weight: replace(plain, hotwords=table.hotwords(weight)) for weight in weights}
    for weight, options in hot.items():
        name = f"hot words of weight {weight:g}"
        table.row(name, *transcribed(without, waveforms, options))
    if arpa is None:
        return
    for weight, bonus, cost in NGRAM_WEIGHTS:
        model = LanguageModel(arpa, weight=weight, word_bonus=bonus, unknown_cost=cost)
        judged = Recognizer(load_checkpoint(checkpoint), language_model=model)
        name = f"n-gram, {weight:g} / {bonus:g} / {cost:g}"
        table.row(name, *transcribed(judged, waveforms, plain))
    judged = Recognizer(load_checkpoint(checkpoint), language_model=LanguageModel(arpa))
    for weight, options in hot.items():
        name = f"n-gram, hot words of weight {weight:g}"
        table.row(name, *transcribed(judged, waveforms, options))


def main() -> None:
    """Print a row for each condition."""
    parser = argparse.ArgumentParser(description="Hot words, prompt and n-gram on rare words.")
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--mode", choices=("accurate", "fast"), required=True)
    parser.add_argument("--checkpoint", type=Path, default=Path("model/shipped"))
    parser.add_argument("--weights", type=float, nargs="*", default=[0.5, 1.0, 2.0])
    parser.add_argument("--language-model", type=Path, help="n-gram for mode fast, in ARPA format")
    args = parser.parse_args()
    recognizer = Recognizer.load(args.checkpoint)
    utterances = [
        u for u in read_manifest(args.manifest)[0] if u.duration < recognizer.longest_seconds
    ]
    waveforms = [load_audio(u.audio_filepath) for u in utterances]
    known = Counter(w for u in read_manifest(args.train)[0] for w in words_of(u.text))
    if args.mode == "accurate":
        accurate(recognizer, utterances, waveforms, known, args.weights)
    else:
        fast(args.checkpoint, utterances, waveforms, known, args.weights, args.language_model)


if __name__ == "__main__":
    main()
