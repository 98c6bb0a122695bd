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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from handler.request import MOST_HOTWORDS
from model.audio import load_audio
from model.ctc_beam import CTCBeamSearch
from model.hotwords import Hotword, LetterBias
from model.language_model import LanguageModel
from model.recognizer import Recognizer, TranscribeOptions
from model.search import greedy_ctc
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


def timed(transcribe: Callable[[], Sequence[str]]) -> tuple[Sequence[str], float]:
    """Texts, and the CPU seconds that they took."""
    start = time.process_time()
    texts = transcribe()
    return texts, time.process_time() - start


def accurate(
    recognizer: Recognizer,
    utterances: Sequence[Utterance],
    waveforms: Sequence[Tensor],
    known: Counter[str],
    weights: Sequence[float],
) -> None:
    """Mode accurate, from samples to text."""
    plain = TranscribeOptions(word_timestamps=False)

    def texts(options: TranscribeOptions) -> list[str]:
        return [t.text for t in recognizer.transcribe(waveforms, options).transcripts]

    without, seconds = timed(lambda: texts(plain))
    table = Table("accurate", utterances, known, without)
    table.row("without", without, seconds)
    for weight in weights:
        hot = replace(plain, hotwords=table.hotwords(weight))
        table.row(f"hot words of weight {weight:g}", *timed(lambda hot=hot: texts(hot)))
    prompted = replace(plain, prompt=", ".join(table.words))
    table.row("the words as a prompt", *timed(lambda: texts(prompted)))


def heard(recognizer: Recognizer, waveforms: Sequence[Tensor]) -> Iterator[Tensor]:
    """Log-probabilities of the CTC head for each clip."""
    with torch.inference_mode():
        for waveform in waveforms:
            samples = waveform[None].to(recognizer.device)
            features, frames = recognizer.features(samples, torch.tensor([len(waveform)]))
            encoded = recognizer.network.encoder(features, frames)
            yield recognizer.network.ctc(encoded, frames)[0, : int(frames)].cpu()


def fast(
    recognizer: Recognizer,
    utterances: Sequence[Utterance],
    waveforms: Sequence[Tensor],
    known: Counter[str],
    weights: Sequence[float],
    arpa: Path | None,
) -> None:
    """Mode fast: the network once, then each search on what it heard; its speed is the search's."""
    characters = recognizer.characters
    start = time.process_time()
    clips = list(heard(recognizer, waveforms))
    seconds = time.process_time() - start
    print(f"\nthe network alone: RTFx {sum(u.duration for u in utterances) / seconds:.0f}")

    def greedy() -> list[str]:
        return [greedy_ctc(clip[None], torch.tensor([len(clip)]), characters)[0] for clip in clips]

    def search(hotwords: tuple[Hotword, ...] = (), model: LanguageModel | None = None) -> list[str]:
        bias = LetterBias(hotwords, characters)
        return [CTCBeamSearch(characters, bias, model)(clip) for clip in clips]

    without, seconds = timed(greedy)
    table = Table("fast", utterances, known, without)
    table.row("greedy", without, seconds)
    table.row("beam search alone", *timed(search))
    for weight in weights:
        hot = table.hotwords(weight)
        table.row(f"hot words of weight {weight:g}", *timed(lambda hot=hot: search(hot)))
    if arpa is None:
        return
    for weight, bonus, cost in NGRAM_WEIGHTS:
        model = LanguageModel(arpa, weight=weight, word_bonus=bonus, unknown_cost=cost)
        name = f"n-gram, {weight:g} / {bonus:g} / {cost:g}"
        table.row(name, *timed(lambda model=model: search((), model)))
    model = LanguageModel(arpa)
    for weight in weights:
        hot = table.hotwords(weight)
        table.row(
            f"n-gram, hot words of weight {weight:g}", *timed(lambda hot=hot: search(hot, model))
        )


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
        fast(recognizer, utterances, waveforms, known, args.weights, args.language_model)


if __name__ == "__main__":
    main()
