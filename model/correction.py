"""The CTC head's text, read by the decoder once and corrected where that knows better.

The decoder's search writes a text in many passes, each for the few tokens that it can guess. Here all
tokens of a draft go through it at once, and it says for each place what it would have written there. No
word is written that is not like what was heard, so nothing can be made up or loop. Mask CTC (Higuchi et
al., Interspeech 2020) corrects so too, with a decoder of its own; this is Whisper's.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from model.draft import capitalized, likeness
from model.network import Decoder
from model.search import barred_tokens, no_speech_probs
from model.tokenizer import Tokenizer
from model.transcript import SENTENCE_ENDS

# Chosen on dev, clean and in noise (docs/experiments.md).
# A token of the decoder may take a word's place if it is so probable, and its word so like the draft's.
LEAST_LOGPROB = math.log(0.2)
LEAST_LIKENESS = 0.25
# The same of a token that takes the place of two words.
LEAST_LIKENESS_OF_TWO = 0.6
# A sign is put before a word where signs are together so probable.
LEAST_SIGN_PROB = 0.5
# A hyphen joins two words, the others end a clause.
SIGNS = (",", ".", "?", "!", "…", "-")  # the hyphen last
# Places whose scores are computed at once: those of a whole batch would take hundreds of MB.
PLACES_AT_ONCE = 64


@dataclass(frozen=True)
class Corrected:
    """A text that the decoder has read.

    Attributes:
        words: with their signs and capitals.
        logprobs: natural logarithm of the decoder's probability of each word, after the draft's words
            before it.
        avg_logprob: mean over the draft's tokens.
        no_speech_prob: probability of the no-speech token, in [0, 1].
    """

    words: tuple[str, ...]
    logprobs: tuple[float, ...]
    avg_logprob: float
    no_speech_prob: float

    @property
    def text(self) -> str:
        """All words."""
        return " ".join(self.words)


@dataclass(frozen=True)
class _Place:
    """What the decoder says about a place of a draft; probabilities are those without a sign.

    Attributes:
        piece: the draft's own token there.
        logprob: natural logarithm of its probability.
        chosen, chosen_logprob: the most probable token that is no sign.
        sign: that stands before it, or "".
    """

    piece: str
    logprob: float
    chosen: str
    chosen_logprob: float
    sign: str

    @property
    def differs(self) -> bool:
        """Whether another token is more probable."""
        return self.chosen != self.piece

    @property
    def offers(self) -> bool:
        """Whether the other token is probable enough, and is of a word."""
        return self.chosen_logprob >= LEAST_LOGPROB and any(map(str.isalnum, self.chosen))


class Corrector:
    """Corrects drafts with a network's decoder.

    Args:
        decoder: of the network.
        tokenizer: of the decoder.
        knows: whether a lower-case word is one; None: nobody can tell.
    """

    def __init__(
        self, decoder: Decoder, tokenizer: Tokenizer, knows: Callable[[str], bool] | None
    ) -> None:
        self._decoder = decoder
        self._tokenizer = tokenizer
        self._knows = knows or (lambda word: False)
        self._signs = [tokenizer.pairs.encode(s, add_special_tokens=False).ids[0] for s in SIGNS]

    def _tokens(self, draft: str) -> list[int]:
        return self._tokenizer.encode(draft[:1].upper() + draft[1:])

    @torch.inference_mode()
    def __call__(
        self,
        encoded: Tensor,
        frames: Tensor,
        drafts: Sequence[str],
        phrases: Sequence[Mapping[str, str]],
    ) -> list[Corrected]:
        """Correct the draft of each clip.

        Args:
            encoded: (batch, length, width), the encoder's output.
            frames: int64 (batch,), valid frames of each clip.
            drafts: lower-case words of each clip, one at least. What goes beyond the decoder's longest
                text is left as it is.
            phrases: for each clip those that stay where they are, lower-case, and how they are written.
        """
        prompt = self._tokenizer.prompt
        drafted = [self._tokens(draft) for draft in drafts]
        most = self._decoder.embed_positions.num_embeddings - len(prompt)
        tokens = [own[:most] for own in drafted]
        longest = max(map(len, tokens))
        fed = [[*prompt, *own, *[self._tokenizer.end] * (longest - len(own))] for own in tokens]
        cache = self._decoder.start(encoded, frames)
        hidden = self._decoder(torch.tensor(fed, device=encoded.device), cache)
        no_speech = no_speech_probs(self._decoder, hidden, self._tokenizer)
        hidden = hidden[:, len(prompt) - 1 :]
        valid = torch.arange(longest + 1) <= torch.tensor([[len(own)] for own in tokens])
        places = self._judge(hidden[valid.to(hidden.device)], tokens)
        corrected = []
        kept = map(_kept, drafts, phrases)
        for own, fixed, probability in zip(drafted, kept, no_speech, strict=True):
            *judged, closing = islice(places, min(len(own), most) + 1)
            average = sum(place.logprob for place in judged) / len(judged)
            unread = map(self._tokenizer.piece, own[most:])
            judged += [_Place(piece, average, piece, average, "") for piece in unread]
            words = list(self._words(judged, fixed))
            words[-1] = words[-1][0] + closing.sign, words[-1][1]
            texts, logprobs = zip(*words, strict=True)
            corrected.append(Corrected(texts, logprobs, average, probability))
        return corrected

    def _judge(self, hidden: Tensor, tokens: Sequence[Sequence[int]]) -> Iterator[_Place]:
        """What the decoder says, one after the other; after the last token, the sign that ends it.

        Args:
            hidden: (places, width), after the prompt and each token of each text.
            tokens: of the texts.
        """
        end = self._tokenizer.end
        guessed = torch.tensor([t for own in tokens for t in (*own, end)], device=hidden.device)
        barred, _ = barred_tokens(self._decoder, self._tokenizer)
        signs = torch.tensor(self._signs, device=hidden.device)
        for part, own in zip(
            hidden.split(PLACES_AT_ONCE), guessed.split(PLACES_AT_ONCE), strict=True
        ):
            scores = self._decoder.scores(part).float()
            of_own = scores.gather(-1, own[:, None])[:, 0]  # which may begin with a barred "'"
            scores += barred
            of_signs = scores[:, signs]
            scores[:, signs] = -torch.inf
            highest, best = scores.max(-1)
            total = scores.logsumexp(-1)
            # A text need not end with a sign, and none ends with a hyphen.
            likeliest, closing = of_signs[:, :-1].max(-1)
            closed = likeliest > of_own
            before = of_signs.logsumexp(-1) - total > math.log(
                LEAST_SIGN_PROB / (1 - LEAST_SIGN_PROB)
            )
            sign = torch.where(own == end, closing, of_signs.argmax(-1))
            before = torch.where(own == end, closed, before)
            yield from map(
                self._place,
                own.tolist(),
                (of_own - total).tolist(),
                best.tolist(),
                (highest - total).tolist(),
                sign.where(before, -1).tolist(),
            )

    def _place(self, own: int, logprob: float, best: int, highest: float, sign: int) -> _Place:
        end = self._tokenizer.end
        piece, chosen = (
            "" if token == end else self._tokenizer.piece(token) for token in (own, best)
        )
        sign_before = "" if sign < 0 else SIGNS[sign]
        return _Place(piece, min(logprob, 0.0), chosen, highest, sign_before)

    def _words(
        self, places: Sequence[_Place], fixed: Mapping[int, str]
    ) -> Iterator[tuple[str, float]]:
        """The corrected words, and the logarithm of the probability of each; some are fixed."""
        starts = [i for i, place in enumerate(places) if not i or place.piece.startswith(" ")]
        ends = [*starts[1:], len(places)]
        drafted = [places[start:end] for start, end in zip(starts, ends, strict=True)]
        text, logprob = "", 0.0
        taken = False
        for n, word in enumerate(drafted):
            if taken:
                taken = False
                continue
            if n in fixed:
                more, its_logprob = fixed[n], sum(place.logprob for place in word)
            else:
                free = n + 1 < len(drafted) and n + 1 not in fixed
                following = drafted[n + 1] if free else []
                more, its_logprob, taken = self._corrected(word, following)
            sign = word[0].sign if text else ""
            begins = sign in SENTENCE_ENDS or not text
            if begins and not (n in fixed and more != more.lower()):  # who asks for iPhone gets it
                more = capitalized(more)
            if sign == "-" or not (sign or more.startswith(" ")):
                text, logprob = text + sign + more.strip(), logprob + its_logprob
            else:
                if text:
                    yield text + sign, logprob
                text, logprob = more.strip(), its_logprob
        yield text, logprob

    def _corrected(
        self, word: Sequence[_Place], following: Sequence[_Place]
    ) -> tuple[str, float, bool]:
        """What is written for a word of the draft, with a space unless it goes on with the one before.

        Returns:
            It, the logarithm of its probability, and whether it takes the next word's place as well.
        """
        pieces = [place.piece for place in word]
        draft, after = _text(word), _text(following)
        unchanged = draft, sum(place.logprob for place in word), False
        first = word[0]
        if first.differs:
            if not first.offers:
                return unchanged
            if first.chosen.lower() == draft.strip().lower():
                return first.chosen, first.chosen_logprob, False
            if not first.chosen.startswith(" "):
                return unchanged
            alike = {
                likeness(draft, text): (text, False)
                for text in self._spelled(first.chosen, pieces[1:])
            }
            of_two = likeness(draft + after, first.chosen)
            if after and of_two >= LEAST_LIKENESS_OF_TWO:
                alike.setdefault(of_two, (first.chosen, True))
            most = max(alike)
            if most < LEAST_LIKENESS:
                return unchanged
            text, both = alike[most]
            return text, first.chosen_logprob, both
        for n, place in enumerate(word):
            if not place.differs:
                continue
            if not place.offers or place.chosen.startswith(" "):
                return unchanged
            start = "".join(pieces[:n])
            texts = list(self._spelled(start + place.chosen, pieces[n + 1 :]))
            text = max(texts, key=lambda text: likeness(draft, text))
            if likeness(draft, text) < LEAST_LIKENESS:
                return unchanged
            before = sum(place.logprob for place in word[:n])
            return text, before + place.chosen_logprob, False
        return unchanged

    def _spelled(self, start: str, rest: Sequence[str]) -> Iterator[str]:
        """A word's new beginning alone, and with as much of the old word's end as makes a known word."""
        yield start
        for n in range(1, len(rest) + 1):
            text = start + "".join(rest[-n:])
            if self._knows(text.strip().lower()):
                yield text


def _text(word: Sequence[_Place]) -> str:
    return "".join(place.piece for place in word)


def _kept(draft: str, phrases: Mapping[str, str]) -> dict[int, str]:
    """Numbers of a draft's words that a phrase has, and how it writes them, with a space."""
    words = draft.split()
    kept = {}
    for phrase, written in phrases.items():
        parts = phrase.split()
        # Signs of their own have no place in a draft.
        spelled = written.split() if len(written.split()) == len(parts) else parts
        for start in range(len(words) - len(parts) + 1):
            if parts and words[start : start + len(parts)] == parts:
                kept.update({start + i: f" {part}" for i, part in enumerate(spelled)})
    return kept
