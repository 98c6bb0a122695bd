"""A text that the decoder writes: greedily, and then with other choices where it was in doubt.

Greedy search never takes back a token, and often loses a word at its first one. Limited discrepancy
search (Harvey and Ginsberg, IJCAI 1995) departs from the greedy choice in a few places, those where it
was least sure, and is greedy again from there on. Here the places are tried from the last to the first,
so that what the decoder remembers of the tokens before a place is still right when its turn comes.
"""

import math
from collections.abc import Container, Sequence
from dataclasses import dataclass

from model.draft import Draft

# A cycle of tokens is a loop once it has stood this often and covers so many tokens: "no, no, no, no"
# is speech.
LOOP_REPEATS = 4
LOOP_TOKENS = 20
LOOP_LONGEST_CYCLE = 30
# Fewer tokens that are written twice are left alone: "very very", "no, no".
TWICE_TOKENS = 4
# Tokens that stand twice are a loop where the text has more than so many times the letters of its draft:
# who says it twice is heard twice. It does no harm on dev, clean and in noise, where none loops.
LOOP_LETTERS = 1.5

# The next six were chosen on dev in six conditions (docs/experiments.md).
# A token that is more probable is not doubted.
SURE_LOGPROB = math.log(0.77)
# A rival of a token has at least this share of its probability, and of a text so many are tried.
RIVAL_SHARE = 0.15
MOST_RIVALS = 8
# What follows a rival is the former text again after so many tokens that are the same.
REJOINED_TOKENS = 8
# A rival whose text would be less probable than the best by so much (natural logarithm) is given up
# after two tokens that are the same.
GIVE_UP_TOKENS = 2
GIVE_UP_LOGPROB = 1.0
# A text with so many tokens less than the best has to be liker to its draft.
CUT_TOKENS = 3
# Where a token may stand in the former text if not where it is expected, the nearest first.
NEARBY = (0, -1, 1, -2, 2, 3)


def cycle_length(tokens: Sequence[int]) -> int | None:
    """Length of the cycle that the tokens end with, or None if they do not loop."""
    for period in range(1, LOOP_LONGEST_CYCLE + 1):
        span = max(LOOP_REPEATS * period, LOOP_TOKENS)
        if len(tokens) < span:
            continue
        tail = tokens[-span:]
        if tail[period:] == tail[:-period]:
            return period
    return None


def doubled_length(tokens: Sequence[int]) -> int | None:
    """Number of tokens that stand twice at the end, the fewest, or None."""
    lengths = range(TWICE_TOKENS, len(tokens) // 2 + 1)
    return next((n for n in lengths if tokens[-n:] == tokens[-2 * n : -n]), None)


@dataclass(frozen=True, order=True)
class Rival:
    """The second-best token of a place.

    Attributes:
        share: its probability over that of the token that was written.
        token: the rival.
        logprob: natural logarithm of its probability.
        place: how many tokens come before it.
    """

    share: float
    token: int
    logprob: float
    place: int


class Rest:
    """The rest of a text as the draft of another one that departs from it.

    Args:
        tokens: of the text.
        place: where the other departs.
        token: that it has there instead.
        word_starts: tokens that begin a word.
    """

    def __init__(
        self, tokens: Sequence[int], place: int, token: int, word_starts: Container[int]
    ) -> None:
        self._tokens = list(tokens)
        self._word_starts = word_starts
        self.place = place  # of the text, where the other one stands
        self.agreed = 0  # tokens of the two that were the same of late
        self.follow(token)
        self.agreed = 0

    def next(self, most: int) -> list[int]:
        """At most so many tokens that may come next."""
        return self._tokens[self.place : self.place + most]

    def follow(self, token: int) -> None:
        """Take in a token that was written: the text's own, one nearby, or another."""
        nearby = (self.place + offset for offset in NEARBY)
        there = (i for i in nearby if 0 <= i < len(self._tokens))
        found = next((i for i in there if self._tokens[i] == token), None)
        self.agreed = self.agreed + 1 if found == self.place else int(found is not None)
        if found is not None:
            self.place = found + 1
        elif token in self._word_starts or not self._expects_word():
            self.place += 1
        # Else it is a sign before the next word, or the word before it is longer here.

    def _expects_word(self) -> bool:
        return self.place < len(self._tokens) and self._tokens[self.place] in self._word_starts


class Hypothesis:
    """The text of a clip in the making.

    Args:
        prompt: tokens that come before it.
        limit: most tokens that the audio can hold.
        end: the token that ends a text.
        word_starts: tokens that begin a word.
        draft: a guess at the text.
        reconsider: try the rivals of doubtful tokens after the text has ended.

    Attributes:
        tokens: of what is being written, or of the best text once it has ended.
        logprobs: natural logarithm of the probability of each token, and of the end unless the text
            was stopped before it. Where a rival has won, what comes long after it has the values that it
            had before.
        looped: the text ran into a cycle, stands twice far beyond its draft, or went past the limit.
        ended: nothing more is tried.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        limit: int,
        end: int,
        word_starts: Container[int],
        draft: Draft | None,
        reconsider: bool,
    ) -> None:
        self.prompt = prompt
        self.limit = limit
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.looped = False
        self.ended = False
        self._end = end
        self._word_starts = word_starts
        self._heard = draft  # which `_draft` is no more once a rival is tried
        self._draft: Draft | Rest | None = draft
        self._reconsider = reconsider
        self._rivals: list[Rival] = []
        self._best: tuple[list[int], list[float]] | None = None
        self._best_logprob = -math.inf

    def guess(self, most: int) -> list[int]:
        """Tokens that may come next."""
        return self._draft.next(most) if self._draft else []

    def mend_guess(self, guess: Sequence[int], right: int, chosen: Sequence[int | None]) -> None:
        """Guess better from now on, after a guess that was wrong (see `Draft.mended`)."""
        if isinstance(self._draft, Draft):
            self._draft = self._draft.mended(self.tokens, guess, right, chosen)

    def doubts(self, logprob: float) -> bool:
        """Whether the rival of a token of this probability is wanted."""
        return self._reconsider and self._best is None and logprob < SURE_LOGPROB

    def write(self, token: int, logprob: float, rival: tuple[int, float] | None) -> bool:
        """Add a token, unless it is the end.

        Args:
            token: the most probable one.
            logprob: natural logarithm of its probability.
            rival: the second-best token and its share of the first one's probability, if asked for.

        Returns:
            Whether the same text goes on. If not, this one has ended, or `tokens` are now those up to
            and with the next rival.
        """
        if rival is not None and rival[1] >= RIVAL_SHARE:
            share = rival[1]
            self._rivals.append(Rival(share, rival[0], logprob + math.log(share), len(self.tokens)))
        self.logprobs.append(logprob)
        if token == self._end:
            if self._best is None:
                self._choose_rivals()
            self._judge(self.tokens, self.logprobs)
            return self._try_next()
        self.tokens.append(token)
        if self._draft:
            self._draft.follow(token)
        if len(self.tokens) >= self.limit or self._is_looping():
            if self._best is not None:
                return self._try_next()
            self.looped = self.ended = True
            return False
        return self._best is None or self._is_promising() or self._try_next()

    def _is_looping(self) -> bool:
        if cycle_length(self.tokens) is not None:
            return True
        too_long = isinstance(self._draft, Draft) and self._draft.overrun > LOOP_LETTERS
        return too_long and doubled_length(self.tokens) is not None

    def _choose_rivals(self) -> None:
        closest = sorted(self._rivals, reverse=True)[:MOST_RIVALS]
        self._rivals = sorted(closest, key=lambda rival: rival.place)

    def _judge(self, tokens: list[int], logprobs: list[float]) -> None:
        """Keep a whole text if it is the best."""
        if sum(logprobs) > self._best_logprob and not self._is_cut(tokens):
            self._best = tokens, logprobs
            self._best_logprob = sum(logprobs)

    def _is_cut(self, tokens: list[int]) -> bool:
        """Whether a text lacks what was heard and the best one has.

        Its probability does not tell: the fewer tokens, the fewer factors below one.
        """
        if self._best is None or self._heard is None:
            return False
        if len(self._best[0]) - len(tokens) < CUT_TOKENS:
            return False
        other, best = (self._heard.after(text) for text in (tokens, self._best[0]))
        return other.distance > best.distance

    def _try_next(self) -> bool:
        """Go back to the last rival that is left, or end. Returns False."""
        assert self._best is not None
        while self._rivals:
            rival = self._rivals.pop()
            tokens = self._best[0][: rival.place]
            logprobs = [*self._best[1][: rival.place], rival.logprob]
            if rival.token == self._end:
                self._judge(tokens, logprobs)
            elif sum(logprobs) > self._best_logprob:  # what follows makes no text more probable
                self._draft = Rest(self._best[0], rival.place, rival.token, self._word_starts)
                self.tokens, self.logprobs = [*tokens, rival.token], logprobs
                return False
        self.tokens, self.logprobs = self._best
        self.ended = True
        return False

    def _is_promising(self) -> bool:
        """Whether a text with a rival may still become the best one."""
        assert self._best is not None
        assert isinstance(self._draft, Rest)
        written = sum(self.logprobs)
        if written <= self._best_logprob:
            return False
        # As if the rest stayed as it is, which after a few tokens it mostly does.
        rest = self._best[1][self._draft.place :]
        whole = written + sum(rest)
        if self._draft.agreed >= REJOINED_TOKENS:
            self._judge(self.tokens + self._best[0][self._draft.place :], self.logprobs + rest)
            return False
        return self._draft.agreed < GIVE_UP_TOKENS or whole >= self._best_logprob - GIVE_UP_LOGPROB
