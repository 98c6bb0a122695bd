"""Hot words: words that a caller expects, made likelier while the text is searched for.

Contextual shallow fusion (Zhao et al., "Shallow-Fusion End-to-End Contextual Biasing", Interspeech
2019): each step of a hypothesis into a hot word earns a bonus, which is taken back when the
hypothesis leaves the word before its end. All words are followed at once by an automaton (Aho and
Corasick, "Efficient String Matching", 1975), so a step costs the same for one word and for a hundred.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from model.tokenizer import Characters, Tokenizer

# Natural logarithm, for each token (accurate) and each letter (fast) of a word of weight 1; chosen on
# dev, see docs/experiments.md.
TOKEN_BONUS = 1.5
LETTER_BONUS = 1.0
LONGEST_HOTWORD = 60  # characters
HIGHEST_WEIGHT = 10.0

# Said as words of their own, or not at all.
_SIGNS = frozenset("+#/\\@&%$*=<>|~^_")

# A word's edge in the automaton; tokens and labels are 0 or more.
EDGE = -1


@dataclass(frozen=True)
class Hotword:
    """A word or phrase that is expected.

    Attributes:
        text: as it should be written.
        weight: how much likelier it gets; 1 is the bonus that was chosen on dev, 0 none.
    """

    text: str
    weight: float = 1.0

    @classmethod
    def parse(cls, written: str) -> Self:
        """Read `Kubernetes` or `Kubernetes:2.5`.

        Raises:
            ValueError: it is no word, or has no weight after its colon.
        """
        text, colon, number = written.rpartition(":")
        if not colon:
            text, number = written, "1"
        try:
            weight = float(number)
        except ValueError:
            raise ValueError(
                f"{number[:LONGEST_HOTWORD]!r}, the weight after the colon, is no number"
            ) from None
        text = " ".join(text.split())
        try:
            text.encode()
        except UnicodeEncodeError:  # half of a surrogate pair, which JSON may hold
            raise ValueError("it is not valid Unicode text") from None
        if not any(c.isalnum() for c in text) or len(text) > LONGEST_HOTWORD:
            raise ValueError(
                f"a hot word has 1 to {LONGEST_HOTWORD} characters, and a letter or digit among them"
            )
        if not 0 < weight <= HIGHEST_WEIGHT:
            raise ValueError(f"a weight must be above 0 and at most {HIGHEST_WEIGHT:g}")
        return cls(text, weight)


class PhraseTree:
    """Follows any number of phrases through a sequence of symbols, and says what each step earns.

    What a hypothesis has earned is the bonus of its complete phrases and, until it leaves it, of the
    one that it is in: the highest of those that begin so. A phrase that begins with another one keeps
    that one's bonus.

    Args:
        phrases: symbols of each phrase, and the bonus of each symbol.
    """

    ROOT = 0

    def __init__(self, phrases: Iterable[Sequence[tuple[int, float]]]) -> None:
        self._next: list[dict[int, int]] = [{}]
        bonus = [0.0]
        own = [0.0]  # of a whole phrase; others that begin like it may earn more on the way
        for phrase in phrases:
            node, total = self.ROOT, 0.0
            for symbol, earned in phrase:
                child = self._next[node].setdefault(symbol, len(self._next))
                if child == len(self._next):
                    self._next.append({})
                    bonus.append(earned)
                    own.append(0.0)
                bonus[child] = max(bonus[child], earned)
                node, total = child, total + earned
            own[node] = max(own[node], total)
        # Along a path: what a hypothesis there would lose by leaving, and what reaching it completes.
        self._at_stake = [0.0] * len(bonus)
        self._completed = [0.0] * len(bonus)
        highest, kept = [0.0] * len(bonus), [0.0] * len(bonus)
        self._fallback = [self.ROOT] * len(bonus)
        queue = deque([self.ROOT])
        while queue:
            node = queue.popleft()
            for symbol, child in self._next[node].items():
                if node != self.ROOT:
                    self._fallback[child] = self._find(self._fallback[node], symbol)
                highest[child] = highest[node] + bonus[child]
                kept[child] = max(kept[node], own[child])
                self._at_stake[child] = highest[child] - kept[child] if self._next[child] else 0.0
                self._completed[child] = max(
                    kept[child] - kept[node], self._completed[self._fallback[child]]
                )
                queue.append(child)

    def _find(self, node: int, symbol: int) -> int:
        while node != self.ROOT and symbol not in self._next[node]:
            node = self._fallback[node]
        return self._next[node].get(symbol, self.ROOT)

    def step(self, node: int, symbol: int) -> tuple[int, float]:
        """The node after `symbol`, and what the step earns; less than nothing where a phrase breaks."""
        after = self._find(node, symbol)
        return after, self._at_stake[after] - self._at_stake[node] + self._completed[after]

    def at_stake(self, node: int) -> float:
        """What a hypothesis there would lose with a symbol that stands in no phrase."""
        return self._at_stake[node]

    def symbols(self, node: int) -> set[int]:
        """Those that lead from here to some place in a phrase."""
        found = set(self._next[node])
        while node != self.ROOT:
            node = self._fallback[node]
            found.update(self._next[node])
        return found


class LetterBias:
    """Hot words in the labels of the CTC head.

    A word with digits, foreign letters, or signs that change what it is ("C++" is no "c") cannot be
    spelled in them, and is left out.

    Attributes:
        words: those of all hot words, as the labels spell them.
        phrases: the hot words as the labels spell them, and as they were given.
        beginnings: what any of these begins with, whole words included.
        highest: bonus of a letter.
    """

    def __init__(self, hotwords: Iterable[Hotword], characters: Characters) -> None:
        self._space = characters.space
        hotwords = [
            word
            for word in hotwords
            if characters.covers(word.text) and not _SIGNS.intersection(word.text)
        ]
        spelled = [(characters.encode(word.text), word.weight * LETTER_BONUS) for word in hotwords]
        self._tree = PhraseTree(
            [
                (EDGE, 0.0),
                *((EDGE, 0.0) if label == self._space else (label, bonus) for label in labels),
                (EDGE, 0.0),
            ]
            for labels, bonus in spelled
        )
        self.highest = max((bonus for _, bonus in spelled), default=0.0)
        texts = [characters.decode(labels) for labels, _ in spelled]
        self.phrases = dict(zip(texts, (word.text for word in hotwords), strict=True))
        self.words = {word for text in texts for word in text.split()}
        self.beginnings = {word[:n] for word in self.words for n in range(1, len(word) + 1)}
        self.start, _ = self._tree.step(PhraseTree.ROOT, EDGE)

    def step(self, state: int, label: int) -> tuple[int, float]:
        """The state after a label, and what it earns."""
        return self._tree.step(state, EDGE if label == self._space else label)

    def at_stake(self, state: int) -> float:
        """What a text there has earned by the beginning of a hot word."""
        return self._tree.at_stake(state)

    def end(self, state: int) -> float:
        """What the end of the text earns."""
        _, earned = self._tree.step(state, EDGE)
        return earned


class TokenBias:
    """Hot words in the decoder's tokens.

    A word counts as written, in lower case, in capitals, and with a capital for each word: what is
    expected is the word, and where it stands decides how it begins. It always begins after a space;
    "art" does not make "start" likelier. A word that takes a token which is never written is left out.
    """

    def __init__(self, hotwords: Iterable[Hotword], tokenizer: Tokenizer) -> None:
        self._opens = tokenizer.opens_word
        self._is_opening: list[bool] = self._opens.tolist()
        self._known: dict[int, tuple[float, float, Tensor, Tensor]] = {}
        phrases = []
        special = tokenizer.pairs.get_added_tokens_decoder()  # a caller may write "<|endoftext|>"
        never = set(tokenizer.suppressed)
        for word in hotwords:
            plain = word.text.replace("’", "'")  # as transcripts have it
            for text in {plain, plain.lower(), plain.upper(), _capitals(plain)}:
                phrase = []
                spelled = tokenizer.encode(text)
                if never.intersection(spelled) - special.keys():
                    continue
                for token in spelled:
                    if token in special:
                        continue
                    if self._is_opening[token]:
                        phrase.append((EDGE, 0.0))
                    phrase.append((token, word.weight * TOKEN_BONUS))
                phrases.append([*phrase, (EDGE, 0.0)])
        self._tree = PhraseTree(phrases)
        self.start = PhraseTree.ROOT

    def step(self, state: int, token: int) -> int:
        """The state after a token."""
        if self._is_opening[token]:
            state, _ = self._tree.step(state, EDGE)
        state, _ = self._tree.step(state, token)
        return state

    def bonuses(self, state: int) -> Tensor:
        """What each token earns, float32 (vocabulary,)."""
        # Most texts are at the same few states, above all outside of any phrase.
        if state not in self._known:
            self._known[state] = self._bonuses_in_phrases(state)
        opening, going_on, tokens, earned = self._known[state]
        bonuses = torch.where(self._opens, opening, going_on)
        bonuses[tokens] = earned
        return bonuses

    def _bonuses_in_phrases(self, state: int) -> tuple[float, float, Tensor, Tensor]:
        """What tokens outside of all phrases earn, opening a word or going on; others, with theirs."""
        edge, at_edge = self._tree.step(state, EDGE)
        earned = {}
        for node, before, opens in ((edge, at_edge, True), (state, 0.0, False)):
            for token in self._tree.symbols(node) - {EDGE}:
                if self._is_opening[token] == opens:
                    earned[token] = before + self._tree.step(node, token)[1]
        return (
            at_edge - self._tree.at_stake(edge),
            -self._tree.at_stake(state),
            torch.tensor(list(earned), dtype=torch.long),
            torch.tensor(list(earned.values()), dtype=torch.float32),
        )


def _capitals(text: str) -> str:
    return " ".join(word[:1].upper() + word[1:] for word in text.split())
