"""Text to numbers and back: Whisper's tokens for the decoder, characters for the CTC head."""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import torch
from tokenizers import Tokenizer as BytePairs
from torch import Tensor

# Characters of music, brackets and markup: text that tells of a sound instead of speech, such as
# "[applause]" or "♪". Whisper learnt them from subtitles; a transcript does not want them.
_NON_SPEECH = frozenset('"#()*+/:;<=>@[\\]^_`{|}~「」『』-')
# Several tokens each; without the first of them none can be written.
_MUSIC = "♩♪♫♬♭♮♯"
# A hyphen or an apostrophe inside a word is speech; as a token of its own after a space it is not.
_NON_SPEECH_ALONE = (" -", " '")

# What decoding makes of bytes that are not, or not yet, a character; UTF-8 has at most four for one.
_NOT_WHOLE = "\ufffd"
_BYTES_A_CHARACTER = 4

DEFAULT_CHARACTERS = " 'abcdefghijklmnopqrstuvwxyz"


class Tokenizer:
    """Whisper's byte-pair tokens, English or multilingual.

    Args:
        pairs: loaded from a `tokenizer.json`.
        vocabulary: tokens of the network; the timestamp tokens, which the file may leave out, come
            last in it.
        multilingual: whether the network was taught to be told the language.
        language: ISO 639-1 code, the language that the text is written in.

    Raises:
        ValueError: a special token is missing, or the language is not the tokenizer's.
    """

    def __init__(
        self, pairs: BytePairs, vocabulary: int, multilingual: bool = False, language: str = "en"
    ) -> None:
        self.pairs = pairs
        self.vocabulary = vocabulary
        self.language = language
        self.end = self._special("<|endoftext|>")
        self.previous = self._special("<|startofprev|>")
        start = self._special("<|startoftranscript|>")
        no_timestamps = self._special("<|notimestamps|>")
        # Older files say <|nocaptions|>, for the same token.
        self.no_speech = self._special("<|nospeech|>", "<|nocaptions|>")
        if multilingual:
            language_token = self._special(f"<|{language}|>")
            transcribe = self._special("<|transcribe|>")
            self.prompt: tuple[int, ...] = (start, language_token, transcribe, no_timestamps)
        elif language == "en":
            self.prompt = (start, no_timestamps)
        else:
            raise ValueError(f"language is {language!r}; this is an English model: 'en'")

    @classmethod
    def from_file(
        cls, path: Path, vocabulary: int, multilingual: bool = False, language: str = "en"
    ) -> "Tokenizer":
        """Read a `tokenizer.json`.

        Raises:
            ValueError: the file is not a tokenizer, or not one of Whisper's kind.
        """
        try:
            pairs = BytePairs.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"{path} is not a tokenizer file: {error}") from error
        return cls(pairs, vocabulary, multilingual, language)

    def _special(self, *names: str) -> int:
        for name in names:
            token = self.pairs.token_to_id(name)
            if token is not None:
                return token
        raise ValueError(f"the tokenizer has no token {' or '.join(names)}")

    def encode(self, text: str) -> list[int]:
        """Tokens of a text, without the prompt and the end; Whisper's texts begin with a space."""
        return self.pairs.encode(" " + text.strip(), add_special_tokens=False).ids

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of tokens, special ones left out."""
        return self.pairs.decode(list(tokens), skip_special_tokens=True).strip()

    def piece(self, token: int) -> str:
        """What one token adds to a text, its space included."""
        return self.pairs.decode([token], skip_special_tokens=False)

    def word_tokens(self, tokens: Sequence[int]) -> list[tuple[int, ...]]:
        """Which tokens spell the words of a text; words are what white space separates.

        Returns:
            For each word of `decode(tokens).split()` the places in `tokens` of those with a letter or
            digit of it. Punctuation is no part of a word's spelling, unless the word has nothing else.
            A token that reaches over white space belongs to the words on both sides.
        """
        text = ""
        written_by: list[tuple[int, ...]] = []  # for each character
        for places, part in self._whole_characters(tokens):
            text += part
            written_by += [places] * len(part)
        words = []
        for word in re.finditer(r"\S+", text):
            own = written_by[word.start() : word.end()]
            spelling = [places for places, c in zip(own, word[0], strict=True) if c.isalnum()]
            words.append(tuple({place: None for places in spelling or own for place in places}))
        return words

    def _whole_characters(self, tokens: Sequence[int]) -> Iterator[tuple[tuple[int, ...], str]]:
        """Places of tokens and what they write together: a character may take several."""
        places: tuple[int, ...] = ()
        for place in range(len(tokens)):
            places += (place,)
            text = self.pairs.decode([tokens[p] for p in places], skip_special_tokens=True)
            unfinished = _NOT_WHOLE in text and len(places) < _BYTES_A_CHARACTER
            if not unfinished or place == len(tokens) - 1:
                yield places, text
                places = ()

    def prompt_after(self, text: str, most: int) -> tuple[int, ...]:
        """The prompt of a text that goes on after `text`, whose last `most` tokens are kept."""
        if not text.strip():
            return self.prompt
        special = self.pairs.get_added_tokens_decoder()  # a caller may write "<|endoftext|>"
        before = [token for token in self.encode(text) if token not in special][-most:]
        return (self.previous, *before, *self.prompt)

    @cached_property
    def word_starts(self) -> frozenset[int]:
        """Tokens that begin with a space, as a word's first does."""
        space = self.pairs.encode(" ", add_special_tokens=False).tokens[0]  # as the pairs spell it
        names = self.pairs.get_vocab().items()
        return frozenset(token for name, token in names if name.startswith(space))

    @cached_property
    def suppressed(self) -> list[int]:
        """Tokens that a transcript never holds: non-speech symbols, and all special but the end."""
        music = [m for sign in _MUSIC for m in (sign, " " + sign)]
        tokens = [self.pairs.encode(m, add_special_tokens=False).ids[0] for m in music]
        # An added token can be special without standing at the end of the numbers.
        special = self.pairs.get_added_tokens_decoder()
        for token in range(self.vocabulary):
            if token == self.end:
                continue
            if token in special or token >= self.pairs.get_vocab_size():
                tokens.append(token)
                continue
            text = self.pairs.decode([token])
            bare = text.strip()
            if text in _NON_SPEECH_ALONE or (
                bare and bare not in ("-",) and _NON_SPEECH.issuperset(bare)
            ):
                tokens.append(token)
        return sorted(set(tokens))

    @cached_property
    def suppressed_first(self) -> list[int]:
        """Tokens that no text begins with: a lone space."""
        return self.pairs.encode(" ", add_special_tokens=False).ids

    @cached_property
    def opens_word(self) -> Tensor:
        """bool (vocabulary,): True where a token cannot go on with the word before it.

        Those begin with a space or a sign, or are special; so does the end. Half of a character, which
        decodes to U+FFFD, goes on.
        """
        special = self.pairs.get_added_tokens_decoder()
        opens = torch.ones(self.vocabulary, dtype=torch.bool)
        for token in range(self.pairs.get_vocab_size()):
            first = self.pairs.decode([token])[:1]
            opens[token] = token in special or not (first.isalnum() or first == "\ufffd")
        return opens


class Characters:
    """Labels of the CTC head: 0 is the blank, then each character in order.

    Args:
        characters: the space, and what words are made of, in lower case.
    """

    BLANK = 0

    def __init__(self, characters: str = DEFAULT_CHARACTERS) -> None:
        if len(set(characters)) != len(characters) or " " not in characters:
            raise ValueError(
                f"characters are {characters!r}; each must stand once, and the space among them"
            )
        self.characters = characters
        self._labels = {c: i for i, c in enumerate(characters, start=1)}
        self.space = self._labels[" "]

    def __len__(self) -> int:
        """Number of labels, the blank included."""
        return len(self.characters) + 1

    def spell(self, word: str) -> list[int]:
        """Labels of a word: lower case, accents folded, other signs left out.

        Digits and foreign letters have no label, so the answer may be shorter than the word, or empty.
        """
        labels = [self._labels[c] for c in self._fold(word) if c in self._labels and c != " "]
        # A quotation mark is no part of a word; an apostrophe inside it is.
        quote = self._labels.get("'")
        while labels and labels[0] == quote and len(labels) > 1:
            labels = labels[1:]
        while labels and labels[-1] == quote and len(labels) > 1:
            labels = labels[:-1]
        return [] if labels == [quote] else labels

    def covers(self, text: str) -> bool:
        """Whether every letter and digit of a text has a label, so that the CTC head can learn it."""
        return all(c in self._labels for c in self._fold(text) if c.isalnum())

    def _fold(self, text: str) -> Iterator[str]:
        """Lower-case characters; an accent that has no label of its own is taken off."""
        for c in unicodedata.normalize("NFKC", text.replace("’", "'")).lower():
            yield from c if c in self._labels else unicodedata.normalize("NFKD", c.casefold())

    def encode(self, text: str) -> list[int]:
        """Labels of a text: its words with a single space between them."""
        labels: list[int] = []
        for spelled in filter(None, map(self.spell, text.split())):
            labels += [self.space, *spelled] if labels else spelled
        return labels

    def decode(self, labels: Iterable[int]) -> str:
        """Text of collapsed labels (no blanks, no repeats)."""
        return "".join(self.characters[i - 1] for i in labels)
