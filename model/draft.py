"""A guess at what the decoder will write next, from the text that the CTC head heard.

The guess costs nothing but time when it is wrong, so plain rules do: the written text is laid along the
draft by edit distance, and what the draft says from there on comes next. Where a guess was wrong, the
decoder has read all of it nevertheless, and what it would have written in place of the words that follow
mends the draft (as in Jacobi decoding, Santilli et al., "Accelerating Transformer Inference for
Translation via Parallel Decoding", 2023).
"""

from collections.abc import Sequence
from difflib import SequenceMatcher
from itertools import accumulate, islice
from operator import sub

from model.tokenizer import Tokenizer
from model.transcript import SENTENCE_ENDS

# A token of the guess gives way to one that is so like it, 1 being the same: after a wrong word the
# decoder also repeats itself, or goes back to what it missed (docs/experiments.md).
_ALIKE = 0.4


def _is_letter(character: str) -> bool:
    """Whether a character counts in distances; signs do not, since the CTC head does not write them."""
    return character.isalnum() or character in " '"


def capitalized(word: str) -> str:
    """With its first letter, before which a space may be, as a capital."""
    bare = word.lstrip()
    return word[: len(word) - len(bare)] + bare[:1].upper() + bare[1:]


class Draft:
    """Follows what is written of one clip along a draft of it.

    The written text has capitals, commas and other spellings; distances between its letters and those
    of every beginning of the draft tell where in the draft it stands. They are kept as bits of two
    integers, and a written letter costs a dozen operations (Myers, "A fast bit-vector algorithm for
    approximate string matching", 1999; Hyyrö, 2003, for whole strings).

    Args:
        text: the draft, words with single spaces.
        tokenizer: of the decoder.
    """

    def __init__(self, text: str, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._shown: list[str] = []  # each letter, with the signs after it
        for character in f" {text}":  # the decoder's texts begin with a space
            if _is_letter(character):
                self._shown.append(character)
            else:
                self._shown[-1] += character
        self._text = "".join(shown[0].lower()[0] for shown in self._shown)
        self._heard_letters = len(self._text)
        self._guessed = 0  # where the last guess begins
        self._places: dict[str, int] = {}  # of each letter, a bit for each of its places
        for place, letter in enumerate(self._text):
            self._places[letter] = self._places.get(letter, 0) | 1 << place
        self._all = (1 << len(self._text)) - 1
        # Whether the distance grows, or shrinks, from each beginning of the draft to the next.
        self._grows = self._all
        self._shrinks = 0
        self._last = ""
        self._letters = 0  # that were written

    def follow(self, token: int) -> None:
        """Take in a token that was written."""
        text = self._tokenizer.piece(token)
        for letter in text.lower():
            if _is_letter(letter):
                self._letters += 1
                self._step(self._places.get(letter, 0))
        self._last = text[-1:] or self._last

    def _step(self, same: int) -> None:
        """Distances after one more letter, which the draft has at the places `same`."""
        grows, shrinks = self._grows, self._shrinks
        vertical = same | shrinks
        horizontal = (((same & grows) + grows) ^ grows) | same
        up = shrinks | ~(horizontal | grows)
        down = (grows & horizontal) << 1
        up = up << 1 | 1
        self._grows = (down | ~(vertical | up)) & self._all
        self._shrinks = up & vertical & self._all

    @property
    def overrun(self) -> float:
        """Letters that were written for each that was heard."""
        return self._letters / self._heard_letters

    def after(self, tokens: Sequence[int]) -> "Draft":
        """The same draft beside another text, from its beginning."""
        return self._beside(tokens, "".join(self._shown))

    def _beside(self, tokens: Sequence[int], text: str) -> "Draft":
        other = Draft(text[1:], self._tokenizer)
        other._heard_letters = self._heard_letters
        for token in tokens:
            other.follow(token)
        return other

    def mended(
        self, tokens: Sequence[int], guess: Sequence[int], right: int, chosen: Sequence[int | None]
    ) -> "Draft":
        """The draft with what the decoder would have written after the wrong token of a guess.

        Args:
            tokens: all that is written, the token in place of the wrong one too.
            guess: what `next` said last.
            right: how many tokens of it were written.
            chosen: what the decoder would have written in place of each; None if it was not sure.
        """
        pieces = [
            "" if token == self._tokenizer.end else self._tokenizer.piece(token) for token in guess
        ]
        letters = [sum(map(_is_letter, piece)) for piece in pieces]
        start = self._guessed + sum(letters[:right])
        end = start + sum(letters[right:])
        parts = [pieces[right]]
        left_out = False  # the rest of a word
        rest = zip(pieces, guess, chosen, strict=True)
        for piece, token, other in islice(rest, right + 1, None):
            left_out = left_out and not piece.startswith(" ")
            if left_out:
                continue
            if other in (None, token, self._tokenizer.end) or token == self._tokenizer.end:
                parts.append(piece)
                continue
            wanted = self._tokenizer.piece(other)
            if not any(map(str.isalnum, wanted)):  # a sign before the next word, or for another
                parts.append(wanted)
                if any(map(str.isalnum, piece)):
                    parts.append(capitalized(piece) if wanted in SENTENCE_ENDS else piece)
            elif likeness(piece, wanted) >= _ALIKE:
                parts.append(wanted)
                left_out = True
            else:
                parts.append(piece)
        if parts == pieces[right:]:
            return self
        if left_out:  # of a word that goes on after the guess
            end += (self._text[end:] + " ").index(" ")
        text = "".join([*self._shown[:start], *parts, *self._shown[end:]])
        return self._beside(tokens, text)

    @property
    def distance(self) -> int:
        """Letters to change, add or leave out between what is written and the whole draft."""
        return self._letters + self._grows.bit_count() - self._shrinks.bit_count()

    @property
    def left(self) -> int:
        """Letters of the draft that come after its place."""
        return len(self._text) - self.place

    @property
    def place(self) -> int:
        """Length of the draft's beginning that is nearest to what is written.

        Of equals the longest, and rather one that ends with a word: most tokens do.
        """
        length = len(self._text)
        grows = map(int, f"{self._grows:0{length}b}"[::-1])
        shrinks = map(int, f"{self._shrinks:0{length}b}"[::-1])
        distances = [0, *accumulate(map(sub, grows, shrinks))]  # but for a constant
        least = min(distances)
        nearest = [place for place, distance in enumerate(distances) if distance == least]
        ends_of_words = [place for place in nearest if self._text[place : place + 1] in ("", " ")]
        return (ends_of_words or nearest)[-1]

    def next(self, most: int) -> list[int]:
        """At most so many tokens that may come next, the end among them."""
        start = place = self.place
        ended = self._last in SENTENCE_ENDS
        signs = ""
        if self._last and not (_is_letter(self._last) or self._last == "-"):
            start += (self._text[place:] + " ").index(" ")
        elif self._last != "-" and place:
            signs = self._shown[place - 1][1:]
        self._guessed = start
        text = signs + "".join(self._shown[start:])
        if ended or not self._last:
            text = capitalized(text)
        closing = "" if (ended and not text) or text.endswith(SENTENCE_ENDS) else "."
        # A word has at least one token.
        words = " ".join(text.split(" ")[: most + 1]) + closing
        tokens = self._tokenizer.pairs.encode(words, add_special_tokens=False).ids
        return [*tokens, self._tokenizer.end][:most]


def likeness(one: str, other: str) -> float:
    """How many letters two words share in the same order, from 0 to 1; capitals do not count."""
    a, b = one.strip().lower(), other.strip().lower()
    return SequenceMatcher(None, a, b, autojunk=False).ratio()
