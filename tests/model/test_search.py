"""Greedy search: the right text, and none that is invented."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.search import (
    LOOP_TOKENS,
    TOKENS_AT_LEAST,
    TOKENS_PER_SECOND,
    compression_ratio,
    cycle_length,
    greedy_ctc,
    greedy_search,
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


def test_ctc_merges_repeats_and_drops_blanks_and_padding():
    characters = Characters()
    label = {c: characters.characters.index(c) + 1 for c in "helo "}
    spelled = [0, label["h"], label["h"], 0, label["e"], label["l"], 0, label["l"], label["o"]]
    path = torch.tensor([[label[" "], *spelled, 0, label["h"], label["h"]]])
    logprobs = torch.nn.functional.one_hot(path, len(characters)).float().log()
    assert greedy_ctc(logprobs, torch.tensor([11]), characters) == ["hello"]
