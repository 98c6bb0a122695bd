"""A guess at what the decoder will write next, from the text that the CTC head heard.

The guess costs nothing but time when it is wrong, so plain rules do: the written text is laid along the
draft by edit distance, and what the draft says from there on comes next.
"""

from collections.abc import Sequence
from itertools import accumulate
from operator import sub

from model.tokenizer import Tokenizer

_SENTENCE_ENDS = (".", "?", "!")


class Draft:
    """Follows what is written of one clip along a draft of it.

    The written text has capitals, commas and other spellings; distances between its letters and those
    of every beginning of the draft tell where in the draft it stands. They are kept as bits of two
    integers, and a written letter costs a dozen operations (Myers, "A fast bit-vector algorithm for
    approximate string matching", 1999; Hyyrö, 2003, for whole strings).

    Args:
        text: the draft, lower-case words with single spaces.
        tokenizer: of the decoder.
    """

    def __init__(self, text: str, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._text = f" {text}"  # the decoder's texts begin with a space
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
            if letter.isalnum() or letter in " '":
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
        """Letters that were written for each of the draft's."""
        return self._letters / len(self._text)

    def after(self, tokens: Sequence[int]) -> "Draft":
        """The same draft beside another text, from its beginning."""
        other = Draft(self._text[1:], self._tokenizer)
        for token in tokens:
            other.follow(token)
        return other

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
        text = self._text[self.place :]
        ended = self._last in _SENTENCE_ENDS
        if self._last and not (self._last.isalnum() or self._last in " '-"):
            text = text[text.find(" ") :] if " " in text else ""
        if ended or not self._last:
            text = text[:1] + text[1:2].upper() + text[2:]
        closing = "" if ended and not text else "."
        # A word has at least one token.
        words = " ".join(text.split(" ")[: most + 1]) + closing
        tokens = self._tokenizer.pairs.encode(words, add_special_tokens=False).ids
        return [*tokens, self._tokenizer.end][:most]
