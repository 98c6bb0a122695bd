import itertools
import math

import pytest
import torch

from model.beam_search import beam_search
from model.recognizer import Recognizer, TranscribeOptions
from model.search import Decoded, greedy_search


@pytest.fixture
def table(random_checkpoint, monkeypatch):
    """A decoder that looks only at the last token; probabilities as {last: {next: probability}}."""
    decoder, tokenizer = random_checkpoint.network.decoder, random_checkpoint.tokenizer

    def token(name):
        if name == "end":
            return tokenizer.end
        return tokenizer.prompt[-1] if name == "start" else tokenizer.encode(name)[-1]

    def use(probabilities):
        logits = {}
        for last, following in probabilities.items():
            row = torch.full((decoder.embed_tokens.num_embeddings,), -50.0)
            for name, probability in following.items():
                row[token(name)] = math.log(probability)
            logits[token(last)] = row

        def forward(tokens, cache):
            cache.lengths = [n + tokens.shape[1] for n in cache.lengths]
            return tokens[..., None].float()

        nothing = torch.zeros(decoder.embed_tokens.num_embeddings)

        def scores(hidden):
            rows = [logits.get(int(last), nothing) for last in hidden.flatten()]
            return torch.stack(rows).view(*hidden.shape[:-1], -1)

        monkeypatch.setattr(decoder, "forward", forward)
        monkeypatch.setattr(decoder, "scores", scores)
        width = random_checkpoint.config.dimensions.audio_width
        audio = torch.zeros(1, 50, width), torch.tensor([50])
        return decoder, audio, tokenizer

    return use


# Greedy search takes "a" and must then choose among what is hardly likely.
MISLEADING = {
    "start": {"a": 0.55, "b": 0.45},
    "a": {"c": 0.3, "d": 0.3, "b": 0.3, "end": 0.1},
    "b": {"end": 1.0},
    "c": {"end": 1.0},
    "d": {"end": 1.0},
}


def test_several_texts_find_what_greedy_search_misses(table):
    decoder, audio, tokenizer = table(MISLEADING)
    (greedy,) = greedy_search(decoder, *audio, tokenizer)
    (found,) = beam_search(decoder, *audio, tokenizer, [tokenizer.prompt], [None], 2)
    assert tokenizer.decode(greedy.tokens).startswith("a")
    assert tokenizer.decode(found.tokens) == "b"
    assert sum(found.logprobs) == pytest.approx(math.log(0.45), abs=1e-4)
    assert len(found.logprobs) == len(found.tokens) + 1


def test_a_text_that_loops_is_no_bar_for_one_that_ends(table):
    """At its cycle's end a loop is more probable than any whole text, and never has an end."""
    says = {
        "start": {"a": 0.9, "b": 0.1},
        "a": {"a": 1.0},
        "b": {"c": 0.4, "d": 0.3},
        "c": {"end": 0.5, "d": 0.5},
        "d": {"end": 1.0},
    }
    decoder, audio, tokenizer = table(says)
    (found,) = beam_search(decoder, *audio, tokenizer, [tokenizer.prompt], [None], 3)
    assert not found.looped
    assert tokenizer.decode(found.tokens) == "bd"
    says["b"] = {"b": 1.0}
    decoder, audio, tokenizer = table(says)
    (found,) = beam_search(decoder, *audio, tokenizer, [tokenizer.prompt], [None], 3)
    assert found.looped  # nothing else is there
    assert tokenizer.decode(found.tokens).startswith("aa")


def test_an_end_that_comes_second_does_not_cut_what_was_heard(table):
    words = list("abcdefghijklmnop")
    says = {"start": {words[0]: 0.8, "end": 0.2}} | {
        one: {other: 0.8, "x": 0.2} for one, other in itertools.pairwise([*words, "end"])
    }
    decoder, audio, tokenizer = table(says)
    arguments = decoder, *audio, tokenizer, [tokenizer.prompt], [None], 2
    (cut,) = beam_search(*arguments, drafts=[""])  # nothing was heard
    assert tokenizer.decode(cut.tokens) == ""
    (whole,) = beam_search(*arguments, drafts=["".join(words)])
    assert tokenizer.decode(whole.tokens) == "".join(words)


def test_reconsidering_finds_it_too(table):
    decoder, audio, tokenizer = table(MISLEADING)
    (found,) = greedy_search(decoder, *audio, tokenizer, reconsider=[True])
    assert tokenizer.decode(found.tokens) == "b"
    assert sum(found.logprobs) == pytest.approx(math.log(0.45), abs=1e-4)
    assert len(found.logprobs) == len(found.tokens) + 1


def test_a_rival_stays_where_nothing_is_more_probable(table):
    decoder, audio, tokenizer = table(MISLEADING)
    tokens = tuple(tokenizer.encode("d"))
    arguments = (decoder, *audio, tokenizer, [tokenizer.prompt], [None], 2)
    for rival, text in ((-0.5, "d"), (-3.0, "b")):  # the best there is has log(0.45) = -0.8
        (found,) = beam_search(*arguments, [Decoded(tokens, (rival / 2, rival / 2), 0.0, False)])
        assert tokenizer.decode(found.tokens) == text


def test_clips_that_keep_fewer_texts_than_others_find_the_same(random_checkpoint):
    decoder, tokenizer = random_checkpoint.network.decoder, random_checkpoint.tokenizer
    width = random_checkpoint.config.dimensions.audio_width
    encoded = torch.randn(3, 20, width, generator=torch.Generator().manual_seed(0))
    frames = torch.tensor([20, 7, 13])

    def search(rows, rivals):
        prompts, none = [tokenizer.prompt] * len(rows), [None] * len(rows)
        found = beam_search(
            decoder, encoded[rows], frames[rows], tokenizer, prompts, none, 3, rivals
        )
        return [f.tokens for f in found]

    free = search([0, 1, 2], None)
    # A rival makes the second clip's texts fewer, and end sooner.
    (second,) = greedy_search(decoder, encoded[[1]], frames[[1]], tokenizer)
    rival = Decoded(second.tokens, second.logprobs, 0.0, False)
    together = search([0, 1, 2], [None, rival, None])
    assert [together[0], together[2]] == [free[0], free[2]]
    assert together[1:2] == search([1], [rival])


def test_one_text_is_greedy_search(random_checkpoint):
    decoder, tokenizer = random_checkpoint.network.decoder, random_checkpoint.tokenizer
    width = random_checkpoint.config.dimensions.audio_width
    encoded = torch.randn(3, 20, width, generator=torch.Generator().manual_seed(0))
    frames = torch.tensor([20, 7, 13])
    greedy = greedy_search(decoder, encoded, frames, tokenizer)
    found = beam_search(decoder, encoded, frames, tokenizer, [tokenizer.prompt] * 3, [None] * 3, 1)
    for a, b in zip(greedy, found, strict=True):
        assert a.tokens == b.tokens
        assert a.logprobs[: len(b.tokens)] == pytest.approx(b.logprobs[: len(b.tokens)], abs=1e-3)


@pytest.mark.parametrize(
    ("beam_size", "doubt", "searched"), [(3, 0.35, 1), (3, 0.45, 0), (1, 0.35, 0), (None, 0.35, 0)]
)
def test_only_a_clip_in_doubt_is_searched_again_if_that_is_wanted(
    random_checkpoint, monkeypatch, beam_size, doubt, searched
):
    recognizer = Recognizer(random_checkpoint, device="cpu", dtype="float32")
    tokens = tuple(recognizer.tokenizer.encode("a b"))
    logprobs = (math.log(doubt),) * (len(tokens) + 1)
    calls = []

    def greedy(decoder, encoded, *_):
        found = greedy_search(decoder, encoded, *_)
        return [type(f)(tokens, logprobs, 0.0, False) for f in found]

    def beam(decoder, encoded, *_):
        calls.append(len(encoded))
        return greedy(decoder, encoded, *_[:2])

    monkeypatch.setattr("model.recognizer.greedy_search", greedy)
    monkeypatch.setattr("model.recognizer.beam_search", beam)
    noise = 0.1 * torch.randn(16_000, generator=torch.Generator().manual_seed(0))
    recognizer.transcribe([noise], TranscribeOptions(word_timestamps=False, beam_size=beam_size))
    assert len(calls) == searched
