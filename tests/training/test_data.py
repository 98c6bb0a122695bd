"""Batches: every utterance once, under the cap, the same again from the same seed."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.checkpoint import load_checkpoint
from tests.random_checkpoint import make_random_checkpoint
from training.config import Augmentation
from training.data import IGNORE, BucketSampler, Corpus, SpeechDataset, collate, colored_noise
from training.manifest import read_manifest, write_manifest

FIXTURES = Path(__file__).parents[1] / "fixtures" / "manifest.jsonl"
PLAIN = Augmentation(speeds=(1.0,), noise_probability=0, silence_probability=0)


@pytest.fixture(scope="module")
def utterances():
    return read_manifest(FIXTURES)[0]


@given(
    durations=st.lists(st.floats(0.5, 29.0), min_size=1, max_size=80),
    world=st.integers(1, 4),
    epoch=st.integers(0, 3),
)
def test_each_utterance_stands_once_in_an_epoch_and_no_batch_is_over_the_cap(
    durations, world, epoch
):
    parts = [BucketSampler(durations, 60.0, 7, rank, world).batches(epoch) for rank in range(world)]
    assert len({len(part) for part in parts}) == 1, "DDP needs as many batches on each process"
    batches = [batch for part in parts for batch in part]
    for batch in batches:
        assert max(durations[i] for _, i in batch) * len(batch) <= 60.0
    seen = [i for batch in {tuple(b) for b in batches} for _, i in batch]
    assert sorted(seen) == list(range(len(durations)))
    assert {e for batch in batches for e, _ in batch} == {epoch}


def test_epochs_differ_and_a_seed_repeats():
    durations = list(np.random.default_rng(0).uniform(1, 20, 100))
    sampler = BucketSampler(durations, 60.0, 7)
    assert sampler.batches(0) == BucketSampler(durations, 60.0, 7).batches(0)
    assert sampler.batches(0) != sampler.batches(1)
    assert sampler.batches(0) != BucketSampler(durations, 60.0, 8).batches(0)


def test_little_is_padded():
    durations = list(np.random.default_rng(0).uniform(1, 20, 500))
    batches = BucketSampler(durations, 60.0, 7).batches(0)
    padded = sum(max(durations[i] for _, i in b) * len(b) for b in batches)
    assert sum(durations) / padded > 0.9


def test_refuses_an_utterance_that_fits_no_batch():
    with pytest.raises(ValueError, match="padded_seconds is 10.0; the longest utterance has 12.5"):
        BucketSampler([3.0, 12.5], 10.0, 1)


def test_augmentation_is_drawn_from_seed_epoch_and_utterance_alone(utterances):
    augment = Augmentation(noise_probability=1.0)
    one, two = (SpeechDataset(utterances, augment, 3) for _ in range(2))
    two[(0, 1)]  # what was drawn before does not matter
    for key in [(0, 0), (5, 2)]:
        for a, b in zip(one[key][:2], two[key][:2], strict=True):
            assert torch.equal(a, b)
    assert not torch.equal(one[(0, 0)][1], one[(1, 0)][1])


def test_speed_changes_the_length_and_noise_does_not(utterances):
    plain = SpeechDataset(utterances, PLAIN, 1)[(0, 0)][0]
    augment = Augmentation(speeds=(0.9,), noise_probability=1.0, silence_probability=0)
    clean, noisy, _, _ = SpeechDataset(utterances, augment, 1)[(0, 0)]
    assert len(clean) == len(noisy) == pytest.approx(len(plain) / 0.9, abs=20)
    assert not torch.equal(clean, noisy)


def test_only_speeds_are_drawn_at_which_an_utterance_fits(utterances):
    augment = Augmentation(speeds=(0.9, 1.0, 1.1), noise_probability=0, silence_probability=0)
    longest = 1.05 * utterances[0].duration
    dataset = SpeechDataset(utterances[:1], augment, 1, longest)
    lengths = {len(dataset[(epoch, 0)][0]) / 16_000 for epoch in range(20)}
    whole = len(SpeechDataset(utterances[:1], PLAIN, 1)[(0, 0)][0]) / 16_000
    assert sorted(lengths) == pytest.approx([whole / 1.1, whole], abs=0.01)


def test_what_fits_at_no_speed_is_left_out_and_told(utterances, tmp_path, capsys):
    write_manifest(tmp_path / "all.jsonl", utterances)
    durations = sorted(u.duration for u in utterances)
    longest = durations[-1] / 1.2  # too slow at 1.1
    corpus = Corpus.read(tmp_path / "all.jsonl", longest, (0.9, 1.1), say=True)
    assert sorted(u.duration for u in corpus.utterances) == durations[:-1]
    assert f"1 left out (0.00 h): longer than {1.1 * longest:.4g} s" in capsys.readouterr().out
    with pytest.raises(ValueError, match="has no utterance to use"):
        Corpus.read(tmp_path / "all.jsonl", 1.0, (1.0,), say=False)


def test_a_corpus_is_known_by_what_it_holds_and_not_by_its_place(utterances, tmp_path):
    def fingerprint(folder, **change):
        moved = [replace(u, audio_filepath=folder / u.audio_filepath.name) for u in utterances]
        moved[0] = replace(moved[0], **change)
        return Corpus(folder / "train.jsonl", moved).fingerprint()

    known = fingerprint(tmp_path / "a")
    assert fingerprint(tmp_path / "elsewhere" / "b") == known
    changes = [{"text": "else"}, {"written": "Else"}, {"duration": 9.0}]
    changes.append({"audio_filepath": tmp_path / "a" / "other.wav"})
    others = {fingerprint(tmp_path / "a", **change) for change in changes}
    assert len(others | {known}) == 5


@pytest.mark.parametrize("ratio", [0.0, 10.0, 30.0])
def test_noise_has_the_ratio_that_was_asked_for(utterances, ratio):
    augment = Augmentation(
        speeds=(1.0,), noise_probability=1.0, noise_db=(ratio, ratio), silence_probability=0
    )
    clean, noisy, _, _ = SpeechDataset(utterances, augment, 1)[(0, 0)]
    found = 10 * torch.log10(clean.square().sum() / (noisy - clean).square().sum())
    assert float(found) == pytest.approx(ratio, abs=0.1)


def test_babble_of_silent_recordings_is_no_noise(utterances, tmp_path):
    soundfile.write(tmp_path / "zeros.wav", np.zeros(16_000), 16_000)
    silent = replace(utterances[0], audio_filepath=tmp_path / "zeros.wav")
    augment = Augmentation(speeds=(1.0,), noise_probability=1.0, silence_probability=0)
    dataset = SpeechDataset([silent, silent], augment, 1)
    for epoch in range(8):
        assert bool(dataset[(epoch, 0)][1].isfinite().all())


def test_a_broken_recording_is_named(utterances, tmp_path):
    (tmp_path / "broken.wav").write_text("hello")
    broken = replace(utterances[0], audio_filepath=tmp_path / "broken.wav")
    with pytest.raises(ValueError, match=r"broken\.wav"):
        SpeechDataset([broken], PLAIN, 1)[(0, 0)]


def test_noise_alone_has_no_text(utterances):
    augment = Augmentation(silence_probability=1.0)
    _, noisy, spoken, written = SpeechDataset(utterances, augment, 1)[(0, 0)]
    assert (spoken, written) == ("", "")
    assert 0 < float(noisy.std()) < 0.1


def test_colored_noise_has_the_power_it_says():
    noise = colored_noise(16_000, np.random.default_rng(1))
    assert float(noise.std()) == pytest.approx(1.0, abs=0.01)


def test_a_batch_holds_prompt_text_and_end(utterances, tmp_path):
    checkpoint = load_checkpoint(make_random_checkpoint(tmp_path / "c"))
    tokenizer, characters = checkpoint.tokenizer, checkpoint.characters
    long, short = torch.zeros(900), torch.zeros(400)
    items = [
        (long, long, "so be it", "So be it."),
        (short, short, "in 1984", "In 1984"),
        (short, short, "", ""),
    ]
    batch = collate(items, tokenizer, characters)
    assert batch.samples.tolist() == [900, 400, 400]
    assert batch.clean.shape == (3, 900)
    ids = tokenizer.encode("So be it.")
    assert batch.tokens[0].tolist() == [*tokenizer.prompt, *ids]
    assert batch.targets[0].tolist() == [IGNORE, *ids, tokenizer.end]
    silent = batch.targets[2].tolist()
    assert silent[:2] == [IGNORE, tokenizer.end]
    assert set(silent[2:]) == {IGNORE}
    assert batch.label_lengths.tolist() == [8, 2, 0]
    assert characters.decode(batch.labels[:8].tolist()) == "so be it"
    # 1984 has no letters: the CTC head learns nothing from that utterance.
    assert batch.spelled.tolist() == [True, False, True]
