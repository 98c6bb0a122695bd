"""Greedy search: the right text, and none that is invented."""

import re

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from model.checkpoint import Checkpoint
from model.hypothesis import LOOP_TOKENS, Hypothesis, cycle_length
from model.search import (
    TOKENS_AT_LEAST,
    TOKENS_PER_SECOND,
    Decoded,
    compression_ratio,
    greedy_ctc,
    greedy_search,
    until_repeated,
)
from model.tokenizer import Characters


@given(
    st.lists(st.integers(0, 9), max_size=20),
    st.lists(st.integers(0, 9), min_size=1, max_size=12),
    st.integers(LOOP_TOKENS, LOOP_TOKENS + 5),
)
def test_finds_a_cycle_at_the_end_whatever_stands_before(before, cycle, repeats):
    found = cycle_length(before + cycle * repeats)
    assert found is not None
    tail = (cycle * repeats)[-LOOP_TOKENS:]
    assert all(a == b for a, b in zip(tail, tail[found:], strict=False))


@pytest.mark.parametrize("tokens", [[], [1, 2, 3], [7, 7, 7, 7, 7, 7], list(range(100))])
def test_ordinary_repetition_is_speech(tokens):
    assert cycle_length(tokens) is None
    assert list(until_repeated(tokens)) == list(tokens)


def test_compression_ratio_tells_repetition():
    assert compression_ratio("") == 0.0
    assert compression_ratio("All idealisation makes life poorer.") < 1.2
    assert compression_ratio("and why indulge " * 20) > 2.4


@torch.inference_mode()
def test_a_search_that_never_ends_is_stopped_and_marked(random_checkpoint, sound):
    network = random_checkpoint.network
    waveform = sound(1.0, 3)[None]
    features, frames = random_checkpoint.features(waveform, torch.tensor([16_000]))
    encoded = network.encoder(features, frames)
    # The end token is never the best of a decoder whose output for it is turned away.
    tokenizer = random_checkpoint.tokenizer
    network.decoder.embed_tokens.weight[tokenizer.end] = 0
    network.decoder.layer_norm.bias.fill_(1.0)
    network.decoder.embed_tokens.weight[5] = 1.0
    (found,) = greedy_search(network.decoder, encoded, frames, tokenizer)
    assert found.looped
    assert len(found.tokens) <= TOKENS_AT_LEAST + TOKENS_PER_SECOND * int(frames) // 50
    assert set(found.tokens) == {5}


@torch.inference_mode()
def test_writes_no_special_token_and_no_non_speech_symbol(random_checkpoint, sound):
    network, tokenizer = random_checkpoint.network, random_checkpoint.tokenizer
    waveforms = torch.stack([sound(1.0, seed) for seed in range(8)])
    features, frames = random_checkpoint.features(waveforms, torch.full((8,), 16_000))
    encoded = network.encoder(features, frames)
    for found in greedy_search(network.decoder, encoded, frames, tokenizer):
        assert not set(found.tokens) & set(tokenizer.suppressed)
        assert 0 <= found.no_speech_prob <= 1
        assert found.avg_logprob <= 0


def plainly(
    checkpoint: Checkpoint, encoded: Tensor, frames: int
) -> tuple[list[int], list[float], bool]:
    """Greedy search of one clip without a cache: tokens, log-probabilities, and whether it looped."""
    decoder, tokenizer = checkpoint.network.decoder, checkpoint.tokenizer
    tokens: list[int] = []
    logprobs: list[float] = []
    encoded, count = encoded[None, :frames], torch.tensor([frames])
    while True:
        fed = torch.tensor([[*tokenizer.prompt, *tokens]])
        scores = decoder.scores(decoder(fed, decoder.start(encoded, count))[0, -1]).clone()
        scores[tokenizer.suppressed] = -torch.inf
        if not tokens:
            scores[tokenizer.suppressed_first] = -torch.inf
        logprob, token = scores.log_softmax(-1).max(-1)
        logprobs.append(float(logprob))
        if token == tokenizer.end:
            return tokens, logprobs, False
        tokens.append(int(token))
        limit = TOKENS_AT_LEAST + TOKENS_PER_SECOND * frames // 50
        if len(tokens) >= limit or cycle_length(tokens):
            return tokens, logprobs, True


class Oracle:
    """A draft that knows the text, but for some wrong tokens and an early end."""

    def __init__(self, tokens: list[int], wrong: set[int], known: int) -> None:
        self.tokens = [t + 1 if i in wrong else t for i, t in enumerate(tokens)][:known]
        self.written = 0

    def follow(self, token: int) -> None:
        self.written += 1

    def next(self, most: int) -> list[int]:
        return self.tokens[self.written :][:most]


@given(seed=st.integers(0, 1000), data=st.data())
@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@torch.inference_mode()
def test_any_draft_gives_the_text_of_plain_greedy_search(
    random_checkpoint, monkeypatch, seed, data
):
    generator = torch.Generator().manual_seed(seed)
    decoder = random_checkpoint.network.decoder
    for parameter in decoder.parameters():
        if parameter.ndim == 2:  # large enough that texts vary
            torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    end = random_checkpoint.tokenizer.end
    decoder.embed_tokens.weight[end] *= 3  # and end
    counts = data.draw(st.lists(st.integers(1, 80), min_size=1, max_size=5))
    encoded = torch.randn(len(counts), max(counts), 64, generator=generator)
    expected = [
        plainly(random_checkpoint, row, count) for row, count in zip(encoded, counts, strict=True)
    ]
    oracles = {
        str(i): Oracle(
            [*tokens, end], data.draw(st.sets(st.integers(0, 20))), data.draw(st.integers(0, 40))
        )
        for i, (tokens, _, _) in enumerate(expected)
    }
    monkeypatch.setattr("model.search.Draft", lambda text, _: oracles[text])
    for drafts in (None, list(oracles)):
        found = greedy_search(
            decoder, encoded, torch.tensor(counts), random_checkpoint.tokenizer, drafts
        )
        for one, (tokens, logprobs, looped) in zip(found, expected, strict=True):
            assert list(one.tokens) == tokens
            assert one.logprobs == pytest.approx(logprobs, abs=1e-4)
            assert one.avg_logprob == pytest.approx(sum(logprobs) / (len(tokens) + 1), abs=1e-4)
            assert one.looped == looped


@torch.inference_mode()
def test_the_ctc_text_saves_passes_and_changes_nothing(shipped_recognizer, speech, monkeypatch):
    network, tokenizer = shipped_recognizer.network, shipped_recognizer.tokenizer
    samples = torch.tensor([len(w) for w in speech])
    features, frames = shipped_recognizer.features(pad_sequence(speech, batch_first=True), samples)
    encoded = network.encoder(features, frames)
    drafts = greedy_ctc(network.ctc(encoded, frames), frames, shipped_recognizer.characters)
    passes: list[int] = []
    forward = network.decoder.forward
    monkeypatch.setattr(
        network.decoder, "forward", lambda *args: passes.append(1) or forward(*args)
    )
    plain = greedy_search(network.decoder, encoded, frames, tokenizer)
    without = len(passes)
    drafted = greedy_search(network.decoder, encoded, frames, tokenizer, drafts)
    assert len(passes) - without < 0.7 * without
    assert [d.tokens for d in drafted] == [d.tokens for d in plain]


@torch.inference_mode()
def test_wrong_guesses_save_passes(shipped_recognizer, speech, monkeypatch):
    network, tokenizer = shipped_recognizer.network, shipped_recognizer.tokenizer
    clips = []
    for waveform in speech:
        features, frames = shipped_recognizer.features(
            waveform[None], torch.tensor([len(waveform)])
        )
        encoded = network.encoder(features, frames)
        (heard,) = greedy_ctc(network.ctc(encoded, frames), frames, shipped_recognizer.characters)
        misspelled = re.sub(r"(\w)\w(\w)", r"\1\2", heard)
        clips.append((encoded, frames, misspelled))
    passes: list[int] = []
    forward = network.decoder.forward
    monkeypatch.setattr(
        network.decoder, "forward", lambda *args: passes.append(1) or forward(*args)
    )

    def texts() -> list[Decoded]:
        passes.clear()
        return [
            greedy_search(network.decoder, encoded, frames, tokenizer, [heard])[0]
            for encoded, frames, heard in clips
        ]

    mended, count = texts(), len(passes)
    monkeypatch.setattr(Hypothesis, "mend_guess", lambda *_: None)
    assert [one.tokens for one in texts()] == [one.tokens for one in mended]
    assert count < 0.95 * len(passes)


def test_ctc_merges_repeats_and_drops_blanks_and_padding():
    characters = Characters()
    label = {c: characters.characters.index(c) + 1 for c in "helo "}
    spelled = [0, label["h"], label["h"], 0, label["e"], label["l"], 0, label["l"], label["o"]]
    path = torch.tensor([[label[" "], *spelled, 0, label["h"], label["h"]]])
    logprobs = torch.nn.functional.one_hot(path, len(characters)).float().log()
    assert greedy_ctc(logprobs, torch.tensor([11]), characters) == ["hello"]


def test_what_is_repeated_is_kept_once_with_what_stood_before():
    sentence = list(range(8))
    assert until_repeated([90, 91, *sentence * 4]) == [90, 91, *sentence]
    assert until_repeated([90, *sentence * 4, 0, 1, 2]) == [90, *sentence]
    assert until_repeated([90, *sentence * 2]) == [90, *sentence]
    assert until_repeated([90, 91, 91]) == [90, 91, 91]
    assert until_repeated([*sentence, 90, *sentence]) == [*sentence, 90, *sentence]
