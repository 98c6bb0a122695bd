"""What hot words and a prompt gain and cost, on real speech with words that training never had.

    python -m tests.benchmarks.vocabulary --manifest dev.jsonl --train train.jsonl [--weights 0.5 1 2]

Hot words are 50 words of the manifest that the training manifest lacks and that the mode gets wrong
without help. Every clip is given all of them, and as many distractors: rare words of training.
"""

import argparse
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from handler.request import MOST_HOTWORDS
from model.audio import load_audio
from model.hotwords import Hotword
from model.language_model import LanguageModel
from model.recognizer import Mode, Recognizer, TranscribeOptions
from training.manifest import Utterance, read_manifest
from training.scoring import Pair, score
from training.spoken import words_of

LETTERS = 5  # a shorter word is no name that somebody would list


@dataclass(frozen=True)
class Clips:
    utterances: Sequence[Utterance]
    waveforms: Sequence[Tensor]

    @property
    def seconds(self) -> float:
        return sum(utterance.duration for utterance in self.utterances)

    def texts(self, recognizer: Recognizer, options: TranscribeOptions) -> tuple[list[str], float]:
        """Transcribe all clips; also the seconds that it took."""
        start = time.perf_counter()
        found = recognizer.transcribe(self.waveforms, options).transcripts
        return [t.text for t in found], time.perf_counter() - start


def missed(clips: Clips, texts: Sequence[str], known: Counter[str]) -> set[str]:
    """Words that training lacks and that do not stand in the text of a clip that has them."""
    return {
        word
        for utterance, text in zip(clips.utterances, texts, strict=True)
        for word in set(words_of(utterance.text)) - set(words_of(text))
        if word not in known and len(word) >= LETTERS
    }


def report(clips: Clips, texts: Sequence[str], sought: set[str]) -> str:
    """How many of the sought words are found and invented, and the WER with and without them."""
    said: Counter[str] = Counter()
    found: Counter[str] = Counter()
    invented = 0
    pairs: dict[bool, list[Pair]] = {True: [], False: []}
    for utterance, text in zip(clips.utterances, texts, strict=True):
        there, written = Counter(words_of(utterance.text)), Counter(words_of(text))
        said += Counter({word: n for word, n in there.items() if word in sought})
        found += Counter({word: n for word, n in (there & written).items() if word in sought})
        invented += sum(n for word, n in (written - there).items() if word in sought)
        pairs[not sought.isdisjoint(there)].append(
            Pair(utterance.audio_filepath, utterance.text, text, utterance.duration)
        )
    rates = [
        score(group).wer.value for group in (pairs[True] + pairs[False], pairs[True], pairs[False])
    ]
    return f"{found.total():3} / {said.total()} | {invented:3} | " + " | ".join(
        f"{rate:6.2%}" for rate in rates
    )


def main() -> None:
    """Print a row for each condition."""
    parser = argparse.ArgumentParser(description="Hot words and prompt on rare words.")
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, default=Path("model/shipped"))
    parser.add_argument("--weights", type=float, nargs="*", default=[1.0])
    parser.add_argument(
        "--mode", nargs="*", choices=("accurate", "fast"), default=["accurate", "fast"]
    )
    parser.add_argument("--language-model", type=Path, help="n-gram for mode fast, in ARPA format")
    args = parser.parse_args()
    recognizer = Recognizer.load(args.checkpoint)
    utterances, _ = read_manifest(args.manifest)
    clips = Clips(utterances, [load_audio(u.audio_filepath) for u in utterances])
    known = Counter(w for u in read_manifest(args.train)[0] for w in words_of(u.text))
    modes: list[Mode] = args.mode
    for mode in modes:
        plain = TranscribeOptions(mode, word_timestamps=False)
        texts, seconds = clips.texts(recognizer, plain)
        drawn = random.Random(0)
        candidates = sorted(missed(clips, texts, known))
        sought = set(drawn.sample(candidates, min(len(candidates), MOST_HOTWORDS // 2)))
        rare = sorted(word for word, n in known.items() if n == 1 and len(word) >= LETTERS)
        words = [*sorted(sought), *drawn.sample(rare, len(sought))]
        print(f"\n{mode} misses {len(candidates)} words; sought: {', '.join(sorted(sought))}\n")
        print("| | found | invented | WER | clips with one | others | RTFx |")
        print("|---|---|---|---|---|---|---|")

        def row(name: str, texts: Sequence[str], seconds: float, sought: set[str]) -> None:
            rate = clips.seconds / seconds
            print(f"| {name} | {report(clips, texts, sought)} | {rate:.0f} |", flush=True)

        row(mode, texts, seconds, sought)
        helped = [
            (
                f"hot words of weight {weight:g}",
                replace(plain, hotwords=tuple(Hotword(word, weight) for word in words)),
            )
            for weight in args.weights
        ]
        if mode == "accurate":
            helped.append(("the words as a prompt", replace(plain, prompt=", ".join(words))))
        else:
            nobody_says = replace(plain, hotwords=(Hotword("zyzzyva"),))
            helped.insert(0, ("beam search alone", nobody_says))
        for name, options in helped:
            row(name, *clips.texts(recognizer, options), sought)
        if mode == "fast" and args.language_model:
            recognizer.language_model = LanguageModel(args.language_model)
            for name, options in [("alone", plain), *helped[1:]]:
                row(f"n-gram, {name}", *clips.texts(recognizer, options), sought)


if __name__ == "__main__":
    main()
