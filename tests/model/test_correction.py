"""A draft is corrected where the decoder is sure and its word is like what was heard."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from model.checkpoint import load_checkpoint
from model.correction import Corrector
from model.hotwords import Hotword
from model.network import Decoder
from model.recognizer import Recognizer, TranscribeOptions
from model.tokenizer import Tokenizer
from tests.random_checkpoint import SHIPPED
from training.spoken import words_of

FAST = TranscribeOptions("fast")
KNOWN = {"condemnation", "condemn"}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_checkpoint(SHIPPED).tokenizer


class Scripted:
    """A decoder that wants the draft's tokens, but for some places.

    Args:
        tokenizer: its vocabulary.
        says: for a token of the draft, what is wanted in its place, with the probabilities; for "" what
            is wanted after the last.
    """

    def __init__(self, tokenizer: Tokenizer, says: dict[str, dict[str, float]]) -> None:
        self._tokenizer = tokenizer
        self._says = says
        self._wanted: list[dict[int, float]] = []
        self.embed_positions = SimpleNamespace(num_embeddings=448)
        self.embed_tokens = SimpleNamespace(weight=torch.zeros(tokenizer.vocabulary, 1))

    def start(self, encoded: Tensor, frames: Tensor) -> None:
        """Nothing to remember."""

    def __call__(self, tokens: Tensor, cache: None) -> Tensor:
        """The number of each place: (1, length, 1)."""
        (row,) = tokens.tolist()
        end = self._tokenizer.end
        for token in [*row[1:], end]:
            piece = "" if token == end else self._tokenizer.piece(token)
            wanted = self._says.get(piece, {})
            probabilities = {self._token(text): p for text, p in wanted.items()}
            rest = 1 - sum(probabilities.values())
            self._wanted.append({token: max(rest, 1e-6), **probabilities})
        return torch.arange(len(row), dtype=torch.float32)[None, :, None]

    def _token(self, text: str) -> int:
        if not text:
            return self._tokenizer.end
        (token,) = self._tokenizer.pairs.encode(text, add_special_tokens=False).ids
        return token

    def scores(self, hidden: Tensor) -> Tensor:
        """Natural logarithms of the probabilities, (…, vocabulary)."""
        places = hidden.flatten().long().tolist()
        scores = torch.full((len(places), self._tokenizer.vocabulary), math.log(1e-9))
        for row, place in zip(scores, places, strict=True):
            for token, probability in self._wanted[place].items():
                row[token] = math.log(probability)
        return scores.view(*hidden.shape[:-1], -1)


def corrected(
    tokenizer: Tokenizer,
    draft: str,
    says: dict[str, dict[str, float]],
    phrases: dict[str, str] | None = None,
) -> tuple[str, dict[str, float]]:
    """The corrected text, and the probability of each word."""
    decoder: Decoder = Scripted(tokenizer, says)  # type: ignore[assignment]
    corrector = Corrector(decoder, tokenizer, KNOWN.__contains__)
    (found,) = corrector(torch.zeros(1, 1, 1), torch.tensor([1]), [draft], [phrases or {}])
    assert found.text.split() == list(found.words)
    return found.text, dict(zip(found.words, map(math.exp, found.logprobs), strict=True))


@pytest.mark.parametrize(
    ("draft", "says", "text"),
    [
        ("the cat set", {}, "The cat set"),
        ("the cat set", {" set": {" sat": 0.9}}, "The cat sat"),
        ("the cat set", {" set": {" sat": 0.3}}, "The cat set"),
        ("the cat set", {" cat": {" house": 0.9}}, "The cat set"),
        ("the cat set", {" cat": {" Cat": 0.9}}, "The Cat set"),
        ("the cat set", {" cat": {",": 0.9}}, "The, cat set"),
        ("the cat set", {" cat": {".": 0.9}}, "The. Cat set"),
        ("the cat set", {" cat": {",": 0.3, ".": 0.4}}, "The. Cat set"),
        ("the cat set", {" cat": {",": 0.3}}, "The cat set"),
        ("the cat set", {" set": {",": 0.7, " sat": 0.25}}, "The cat, sat"),
        ("an ice cream", {" cream": {"-": 0.9}}, "An ice-cream"),
        ("water mark", {" mark": {"mark": 0.9}}, "Watermark"),
        ("water mark", {" mark": {"mark": 0.25, ",": 0.7}}, "Water, mark"),
        ("water mark", {" mark": {"mark": 0.25, ".": 0.7}}, "Water. Mark"),
        ("the cat set", {"": {".": 0.6, "": 0.3}}, "The cat set."),
        ("the cat set", {"": {".": 0.3, "": 0.6}}, "The cat set"),
        ("the cat set", {"": {"?": 0.4, ".": 0.3, " on": 0.2}}, "The cat set?"),
        ("the cat set", {"": {"-": 0.9}}, "The cat set"),
        ("the cat set", {" cat": {"": 0.9}}, "The cat set"),
    ],
)
def test_the_decoder_is_followed_where_it_is_sure_and_heard_alike(tokenizer, draft, says, text):
    assert corrected(tokenizer, draft, says)[0] == text


def test_the_rest_of_a_word_stays_where_that_makes_a_known_one(tokenizer):
    pieces = [tokenizer.piece(token) for token in tokenizer.encode("a condenation")]
    assert pieces == [" a", " con", "den", "ation"]
    says = {" con": {" condemn": 0.8}}
    assert corrected(tokenizer, "a condenation", says)[0] == "A condemnation"
    says = {" con": {" conduct": 0.8}}
    assert corrected(tokenizer, "a condenation", says)[0] == "A conduct"


def test_a_word_is_corrected_from_its_middle_on(tokenizer):
    pieces = [tokenizer.piece(token) for token in tokenizer.encode("when thickend")]
    assert pieces == [" when", " thick", "end"]
    text, probabilities = corrected(tokenizer, "when thickend", {"end": {"ened": 0.8}})
    assert text == "When thickened"
    assert probabilities["thickened"] == pytest.approx(0.8, rel=1e-3)
    assert corrected(tokenizer, "when thickend", {"end": {" end": 0.8}})[0] == "When thickend"


def test_a_words_probability_is_that_of_what_is_written(tokenizer):
    says = {" set": {" sat": 0.9}, " cat": {",": 0.6, " cut": 0.1}}
    text, probabilities = corrected(tokenizer, "the cat set", says)
    assert text == "The, cat sat"
    assert probabilities["sat"] == pytest.approx(0.9, rel=1e-3)
    # Of what is no sign: 0.3 of 0.4.
    assert probabilities["cat"] == pytest.approx(0.75, rel=1e-3)


@pytest.mark.parametrize(
    ("phrases", "text"),
    [
        ({}, "The bay, near car the."),
        ({"care": "Kearny"}, "The bay, near Kearny the."),
        ({"care": "care"}, "The bay, near care the."),
        ({"near care": "Near Care"}, "The bay, Near Care the."),
        ({"the day": "The Bay"}, "The Bay, near car the."),
        ({"day the": "Day The"}, "The bay, near car the."),
        ({"the": "tHe"}, "tHe bay, near car tHe."),
        ({"near care": "Near & Care"}, "The bay, near care the."),
    ],
)
def test_a_hot_phrase_stays_and_is_written_as_it_was_given(tokenizer, phrases, text):
    says = {" care": {" car": 0.9}, " day": {" bay": 0.9}, " near": {",": 0.9}, "": {".": 0.9}}
    assert corrected(tokenizer, "the day near care the", says, phrases)[0] == text


def test_two_words_become_one_unless_the_second_is_a_hot_word(tokenizer):
    says = {" miss": {" misunderstand": 0.9}}
    assert corrected(tokenizer, "you miss understand", says)[0] == "You misunderstand"
    kept = corrected(tokenizer, "you miss understand", says, {"understand": "understand"})[0]
    assert kept.endswith("understand") and len(kept.split()) == 3


def test_what_is_beyond_the_decoders_longest_text_is_left(shipped_recognizer, speech):
    recognizer = shipped_recognizer
    features, frames = recognizer.features(speech[0][None], torch.tensor([len(speech[0])]))
    with torch.inference_mode():
        encoded = recognizer.network.encoder(features, frames)
    corrector = Corrector(recognizer.network.decoder, recognizer.tokenizer, None)
    draft = " ".join(["xq"] * 600)
    (found,) = corrector(encoded, frames, [draft], [{}])
    assert found.words[-100:] == ("xq",) * 100
    assert all(map(math.isfinite, [*found.logprobs, found.avg_logprob]))


def test_real_speech_is_written_with_signs_and_with_fewer_errors(shipped_recognizer, speech):
    """The fixtures' first clip, whose text the decoder's search finds."""
    (accurate,) = shipped_recognizer.transcribe([speech[0]]).transcripts
    (fast,) = shipped_recognizer.transcribe([speech[0]], FAST).transcripts
    assert fast.text.startswith("The river rose two meters overnight, and the old bridge was clos")
    missed = set(words_of(accurate.text)) - set(words_of(fast.text))
    assert len(missed) <= 2
    assert [w.word for w in fast.words] == fast.text.split()
    assert all(0 < w.confidence < 1 for w in fast.words)


def test_hot_words_of_mode_fast_are_written_as_given(shipped_recognizer, speech):
    options = TranscribeOptions("fast", hotwords=(Hotword("Bridge"),))
    (transcript,) = shipped_recognizer.transcribe([speech[0]], options).transcripts
    assert "Bridge" in transcript.text.split()


def test_a_batch_and_its_parts_have_the_same_texts(shipped_recognizer, speech):
    """In float32: int8 rounds by the least and the greatest of a batch."""
    recognizer = Recognizer(load_checkpoint(SHIPPED), device="cpu", dtype="float32")
    clips = [clip[: 16_000 * 8] for clip in speech[:3]]
    together = [t.text for t in recognizer.transcribe(clips, FAST).transcripts]
    alone = [recognizer.transcribe([clip], FAST).transcripts[0].text for clip in clips]
    assert together == alone
