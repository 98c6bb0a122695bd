"""The recognizer: any number of waveforms of any length, each as if it were alone."""

import json
import math
import threading
import time
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from threading import Barrier, Event

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jiwer import wer
from whisper_normalizer.english import EnglishTextNormalizer

from model.audio import load_audio
from model.checkpoint import load_checkpoint
from model.confidence import Calibration, Calibrations
from model.hotwords import Hotword
from model.int8 import Int8Linear
from model.lanes import Lanes
from model.precision import has_int8_units
from model.recognizer import _NOTHING, Recognizer, TranscribeOptions
from model.search import Decoded
from model.tokenizer import Characters
from tests.benchmarks.conditions import level
from tests.benchmarks.non_speech import SOUNDS
from tests.model.test_language_model import ARPA
from tests.random_checkpoint import SHIPPED
from training.spoken import words_of

FIXTURES = Path(__file__).parents[1] / "fixtures"
FAST, ACCURATE = TranscribeOptions(mode="fast"), TranscribeOptions(mode="accurate")
SOUND_ALIKE = (Hotword("metres", 2.0), Hotword("bridge"), Hotword("Kubernetes"))
WITH_HELP = [
    TranscribeOptions(hotwords=SOUND_ALIKE),
    TranscribeOptions("fast", hotwords=SOUND_ALIKE),
    TranscribeOptions(prompt="The river was quiet."),
    TranscribeOptions(prompt="Flood", hotwords=SOUND_ALIKE),
]


@pytest.fixture(scope="module")
def random_recognizer(random_folder) -> Recognizer:
    return Recognizer.load(random_folder, device="cpu", dtype="float32")


@given(
    st.lists(
        st.tuples(st.floats(0.05, 4.0), st.integers(0, 99), st.sampled_from([FAST, ACCURATE])),
        min_size=1,
        max_size=6,
    )
)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_padding_does_not_leak_encoder_and_ctc(random_recognizer, sound, clips):
    recognizer = random_recognizer
    waveforms = [sound(seconds, seed) for seconds, seed, _ in clips]
    features, frames = recognizer.features(
        torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True),
        torch.tensor([len(w) for w in waveforms]),
    )
    together = recognizer.network.encoder(features, frames)
    heard = recognizer.network.ctc(together, frames)
    for i, waveform in enumerate(waveforms):
        alone, count = recognizer.features(waveform[None], torch.tensor([len(waveform)]))
        n = int(count)
        assert n == frames[i]
        encoded = recognizer.network.encoder(alone, count)
        assert torch.allclose(together[i, :n], encoded[0], atol=1e-4)
        assert torch.allclose(heard[i, :n], recognizer.network.ctc(encoded, count)[0], atol=1e-4)


@pytest.mark.slow
@given(
    order=st.permutations(range(6)),
    modes=st.lists(st.sampled_from([FAST, ACCURATE, *WITH_HELP]), min_size=6, max_size=6),
)
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_batch_gives_the_texts_of_its_items(shipped_recognizer, speech, order, modes):
    waveforms = [speech[i % len(speech)][: 16_000 * (2 + i)] for i in order]
    together = shipped_recognizer.transcribe(waveforms, modes).transcripts
    for waveform, mode, transcript in zip(waveforms, modes, together, strict=True):
        (alone,) = shipped_recognizer.transcribe([waveform], mode).transcripts
        assert transcript.text == alone.text
        assert [w.start for w in transcript.words] == [w.start for w in alone.words]


@pytest.mark.parametrize(("mode", "word"), [("accurate", "metres"), ("fast", "Roze")])
def test_a_hot_word_is_written_where_it_sounds_so_and_nowhere_else(
    shipped_recognizer, speech, mode, word
):
    news, short = speech[0], speech[5]
    plain = TranscribeOptions(mode, False)
    hot = TranscribeOptions(mode, False, hotwords=(Hotword(word, 2.0), Hotword("Kubernetes")))
    before = [t.text for t in shipped_recognizer.transcribe([news, short], plain).transcripts]
    after = [t.text for t in shipped_recognizer.transcribe([news, short], hot).transcripts]
    assert word not in before[0].split() and word in after[0].split()
    assert "kubernetes" not in after[0].lower()
    assert after[1] == before[1]


def test_many_hot_words_that_nobody_said_leave_the_text_alone(shipped_recognizer, speech):
    """Their beginnings must not take all places in the beam, however high their weight."""
    names = (
        "abalone bergez blanco bordeaux claret collander dainty decorum derivatively deterioration"
        " diced display entangled felix fillmore glorification gourmets harpies heidelberg"
        " inexhausted intuitions isolation lighter liquors loftiest luncheon luscious menus"
        " montgomery newberg nowadays odeon pessimistic poodle purity raisins rathskeller salad"
        " shrimps simultaneousness specialty sprinkling strengthens suffocate unwearied vintage"
    )
    hotwords = tuple(Hotword(name, 10.0) for name in names.split())
    hot = TranscribeOptions("fast", False, hotwords=hotwords)
    (before,) = shipped_recognizer.transcribe([speech[0]], FAST).transcripts
    (after,) = shipped_recognizer.transcribe([speech[0]], hot).transcripts
    lost = Counter(words_of(before.text)) - Counter(words_of(after.text))
    assert lost.total() <= 3


def test_a_prompt_is_gone_on_with(shipped_recognizer, speech):
    def text(prompt):
        options = TranscribeOptions(word_timestamps=False, prompt=prompt)
        return shipped_recognizer.transcribe([speech[0]], options).transcripts[0].text

    plain, british = text(""), text("Ten metres, five metres, seven metres of water.")
    assert "meters" in plain and "metres" in british
    assert text("   ") == plain
    assert text("water " * 5000)  # the last of it is kept


def test_silence_has_no_text(random_recognizer):
    quiet = [torch.zeros(16_000), torch.zeros(0), torch.full((8_000,), 5e-5)]
    for options in (FAST, ACCURATE):
        result = random_recognizer.transcribe(quiet, options)
        assert [t.text for t in result.transcripts] == ["", "", ""]
        assert [t.segments for t in result.transcripts] == [(), (), ()]
    assert result.padded_seconds == 0
    assert result.audio_seconds == pytest.approx(1.5)


def test_no_waveform_is_no_transcript(random_recognizer):
    assert random_recognizer.transcribe([]).transcripts == []


@pytest.fixture
def threads():
    """Sets how many threads torch has, for as long as the test runs."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("count", "padded"),
    [
        # Sorted: 1 2 3 | 8 9 | 12 | 20; the cap allows 1 2 3 together with 8 only while 4 × 8 ≤ 30.
        (1, 3 * 3 + 2 * 9 + 12 + 20),
        # In two lanes: 1 3 9 | 20 and 2 8 | 12.
        (2, 3 * 9 + 20 + 2 * 8 + 12),
    ],
)
def test_groups_stay_below_the_cap(random_folder, sound, threads, count, padded):
    threads(count)
    recognizer = Recognizer.load(
        random_folder, device="cpu", dtype="float32", max_batch_seconds=30.0
    )
    waveforms = [sound(s, 1) for s in (1, 9, 2, 8, 12, 3, 20)]
    result = recognizer.transcribe(waveforms, FAST)
    assert result.padded_seconds == pytest.approx(padded)
    assert result.audio_seconds == pytest.approx(55)


def test_lanes_read_what_one_reads(random_folder, sound, threads):
    waveforms = [sound(s, i) for i, s in enumerate((2, 0.5, 3, 1, 45, 2.5))]
    options = [(FAST, ACCURATE)[i % 2] for i in range(len(waveforms))]
    found = []
    for count in (1, 2):
        threads(count)
        recognizer = Recognizer.load(random_folder, device="cpu", dtype="float32")
        found.append([t.text for t in recognizer.transcribe(waveforms, options).transcripts])
    assert any(found[0])
    assert found[0] == found[1]


@pytest.mark.parametrize("positions", [1500, 1010])
def test_with_tiles_the_encoder_has_few_lengths_and_the_texts_stay(
    random_checkpoint, sound, monkeypatch, positions
):
    dims = replace(random_checkpoint.config.dimensions, audio_positions=positions)
    config = replace(random_checkpoint.config, dimensions=dims)
    recognizer = Recognizer(replace(random_checkpoint, config=config), dtype="float32")
    seen = []
    recognizer.network.encoder.register_forward_hook(lambda _m, _x, y: seen.append(y.shape[1]))
    waveforms = [sound(seconds, 3) for seconds in (0.3, 2.13, 3.7, 19.6)]
    texts = []
    for tiles in (False, True):
        monkeypatch.setattr("model.recognizer.has_amx_tiles", lambda has=tiles: has)
        texts.append([recognizer.transcribe([w], FAST).transcripts[0].text for w in waveforms])
    assert seen[:4] == [40, 132, 210, 1005]  # 50 a second, and half a second after the end
    assert seen[4:] == [64, 160, 224, min(1024, positions)]
    assert any(texts[0])
    assert texts[0] == texts[1]


def test_what_is_encoded_at_once_has_little_padding(random_recognizer, sound):
    seen = []
    encoder = random_recognizer.network.encoder
    hook = encoder.register_forward_hook(lambda _m, given, _y: seen.append(given[1].tolist()))
    seconds = (0.5, 2.0, 1.0, 1.2, 9.0, 10.0, 9.5, 10.5, 14.0)
    together = random_recognizer.transcribe([sound(s, 4) for s in seconds], FAST).transcripts
    hook.remove()
    # Sorted, in one lane or two: no more than a second apart, and 30 s at most.
    assert sorted(n for part in seen for n in part) == sorted(int(50 * s + 25) for s in seconds)
    assert all(part[-1] - part[0] <= 50 and len(part) * (part[-1] - 25) <= 1500 for part in seen)
    assert len(seen) < len(seconds)
    for s, transcript in zip(seconds, together, strict=True):
        (alone,) = random_recognizer.transcribe([sound(s, 4)], FAST).transcripts
        assert transcript.text == alone.text


def test_an_error_in_a_lane_is_raised_when_all_have_ended(
    random_folder, sound, threads, monkeypatch
):
    threads(2)
    recognizer = Recognizer.load(random_folder, device="cpu", dtype="float32")
    ended = []

    def read(pieces):
        if len(pieces[0].waveform) < 16_000:
            raise MemoryError
        time.sleep(0.2)
        ended.append(len(pieces))
        return [_NOTHING] * len(pieces)

    monkeypatch.setattr(recognizer, "_read", read)
    with pytest.raises(MemoryError):
        recognizer.transcribe([sound(0.5, 0), sound(2, 0)], FAST)
    assert ended == [1]


def test_a_second_lane_reads_while_there_are_threads_for_it(
    random_folder, sound, threads, monkeypatch
):
    threads(2)
    may_use = [2]
    recognizer = Recognizer.load(
        random_folder,
        device="cpu",
        dtype="float32",
        max_batch_seconds=20.0,
        threads=lambda: may_use[0],
    )
    together = Barrier(2)
    had = []  # threads that each group had
    lanes = {}  # where each group was read

    def read(pieces):
        seconds = round(len(pieces[0].waveform) / 16_000)
        had.append((seconds, torch.get_num_threads()))
        lanes[seconds] = threading.current_thread()
        if seconds in (18, 17):  # the first two: neither goes on without the other
            if seconds == 17:
                may_use[0] = 1
            together.wait(timeout=60)
        elif seconds == 16:
            time.sleep(0.5)  # in which the second lane would take others
        elif seconds == 14:
            may_use[0] = 2
        elif seconds in (13, 12):
            together.wait(timeout=60)
        return [_NOTHING] * len(pieces)

    monkeypatch.setattr(recognizer, "_read", read)
    recognizer.transcribe([sound(s, 0) for s in range(12, 19)], FAST)
    assert [s for s, _ in had[2:5]] == [16, 15, 14]
    assert {s for s, _ in had[5:]} == {13, 12}
    assert [s for s, lane in lanes.items() if lane is threading.current_thread()][1:4] == [
        16,
        15,
        14,
    ]
    assert {n for _, n in had} == {1}

    had.clear()
    recognizer.transcribe([sound(1, 0)], FAST)
    assert had == [(1, 2)]
    may_use[0] = 1
    recognizer.transcribe([sound(1, 0)], FAST)
    assert had[1:] == [(1, 1)]
    assert torch.get_num_threads() == 2  # the caller's own


def test_no_thread_of_a_second_lane_stays(threads):
    def lane_threads():
        return [thread for thread in threading.enumerate() if thread.name.startswith("lane")]

    both = Barrier(2, timeout=10)  # so the second lane has a group for certain

    def work(group):
        both.wait()
        return [thread.name for thread in lane_threads()]

    found = Lanes(lambda: 2).map(work, ["first", "second"])
    assert len(found[0]) == 1  # it was there meanwhile
    assert lane_threads() == []


def test_the_second_lane_pauses_in_its_work_while_threads_are_needed_elsewhere(threads):
    threads(2)
    may_use = [2]
    step = torch.nn.Identity()
    lanes = Lanes(lambda: may_use[0], [step])
    both_began, second_went_on = Barrier(2), Event()
    had = {}

    def work(group):
        both_began.wait(timeout=60)
        if group == "first":
            may_use[0] = 1
            step(0)
            had[group] = torch.get_num_threads()
            assert not second_went_on.wait(0.3)
            may_use[0] = 2
            assert second_went_on.wait(60)
            may_use[0] = 1
        else:
            while may_use[0] == 2:
                time.sleep(0.001)
            step(0)
            second_went_on.set()
            while may_use[0] == 2:
                time.sleep(0.001)
            step(0)  # ends when the first lane has ended
            had[group] = torch.get_num_threads()
        return group

    assert lanes.map(work, ["first", "second"]) == ["first", "second"]
    assert had == {"first": 1, "second": 1}
    assert lanes.map(lambda group: torch.get_num_threads(), ["alone"]) == [1]
    may_use[0] = 2
    assert lanes.map(lambda group: torch.get_num_threads(), ["alone"]) == [2]


def test_refuses_what_is_not_a_waveform(random_recognizer):
    with pytest.raises(ValueError, match=r"float32 \(samples,\)"):
        random_recognizer.transcribe([torch.zeros(2, 16_000)])
    with pytest.raises(ValueError, match=r"float32 \(samples,\)"):
        random_recognizer.transcribe([torch.zeros(16_000, dtype=torch.int16)])
    with pytest.raises(ValueError, match="1 options for 2 waveforms"):
        random_recognizer.transcribe([torch.zeros(9), torch.zeros(9)], [FAST])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"device": "abacus"}, "device is 'abacus'"),
        ({"dtype": "int3"}, "dtype is 'int3'"),
        ({"max_batch_seconds": 10}, "max_batch_seconds is 10"),
    ],
)
def test_refuses_wrong_settings(random_folder, arguments, message):
    with pytest.raises(ValueError, match=message):
        Recognizer.load(random_folder, **arguments)


@pytest.mark.slow
def test_transcribes_the_clips(shipped_recognizer, speech, texts):
    found = [t.text for t in shipped_recognizer.transcribe(speech).transcripts]
    normalize = EnglishTextNormalizer()
    assert wer(list(map(normalize, texts)), list(map(normalize, found))) <= 0.15, found
    assert all(t[0].isupper() and t[-1] in ".?!" for t in found), found


@pytest.mark.slow
def test_a_long_recording_has_the_times_of_its_parts(shipped_recognizer, speech):
    pause = torch.zeros(16_000)
    joined = torch.cat([part for clip in speech * 4 for part in (clip, pause)])
    (whole,) = shipped_recognizer.transcribe([joined]).transcripts
    assert whole.duration > 60
    starts = [w.start for w in whole.words]
    assert starts == sorted(starts)
    assert all(s.start < s.end <= whole.duration for s in whole.segments)
    offset, matched, total = 0.0, 0, 0
    for clip in speech * 4:
        (alone,) = shipped_recognizer.transcribe([clip]).transcripts
        for word in alone.words:
            total += 1
            matched += any(
                w.word == word.word and abs(w.start - offset - word.start) < 0.12
                for w in whole.words
            )
        offset += len(clip) / 16_000 + 1.0
    assert matched >= 0.9 * total


@pytest.mark.slow
def test_shipped_checkpoint_writes_nothing_where_nobody_speaks(shipped_recognizer):
    rng = np.random.default_rng(7)  # not the benchmark's
    made = [torch.from_numpy(make(32_000, rng)).float() for make in SOUNDS.values()]
    waveforms = [torch.zeros(80_000)] + [0.05 * waveform / level(waveform) for waveform in made]
    for options in (ACCURATE, FAST):
        result = shipped_recognizer.transcribe(waveforms, options)
        heard = dict(zip(["silence", *SOUNDS], (t.text for t in result.transcripts), strict=True))
        assert heard == dict.fromkeys(heard, "")


@pytest.mark.slow
def test_a_single_word_between_long_pauses_is_heard_and_so_is_soft_speech(
    shipped_recognizer, speech
):
    joined = load_audio(FIXTURES / "words.flac")
    entries = json.loads((FIXTURES / "words.json").read_text())[::5]
    pause = torch.zeros(2 * 16_000)
    words = [torch.cat([pause, joined[e["start"] : e["end"]], pause]) for e in entries]
    soft = [waveform / level(waveform) * 1e-3 for waveform in speech[:2]]  # -60 dB of full scale
    for options in (ACCURATE, FAST):
        result = shipped_recognizer.transcribe([*words, *soft], options)
        assert all(t.text for t in result.transcripts), [t.text for t in result.transcripts]


@pytest.mark.slow
def test_sentences_are_segments(shipped_recognizer, speech):
    for transcript in shipped_recognizer.transcribe(speech).transcripts:
        assert " ".join(s.text for s in transcript.segments) == transcript.text
        for segment in transcript.segments[:-1]:
            assert segment.text[-1] in ".?!"


def test_the_shipped_checkpoint_is_small_enough():
    assert (SHIPPED / "model.safetensors").stat().st_size <= 80_000_000


@pytest.mark.slow
@given(clip=st.integers(0, 5), start=st.floats(0, 5), length=st.floats(0.1, 3))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_times_lie_within_the_audio_however_it_is_cut(
    shipped_recognizer, speech, clip, start, length
):
    waveform = speech[clip % len(speech)][int(start * 16_000) :][: int(length * 16_000)]
    (transcript,) = shipped_recognizer.transcribe([waveform]).transcripts
    for part in (*transcript.words, *transcript.segments):
        assert 0 <= part.start < part.end <= transcript.duration
    assert all(a.end <= b.start for a, b in pairwise(transcript.words))
    assert " ".join(w.word for w in transcript.words) == transcript.text


def decoded_as(recognizer, monkeypatch, text, **values):
    """Make the decoder write a text, to see what the recognizer makes of it."""
    tokens = tuple(recognizer.tokenizer.encode(text))
    found = {
        "logprobs": (-0.1,) * (len(tokens) + 1),
        "no_speech_prob": 0.0,
        "looped": False,
    } | values
    decoded = Decoded(tokens=tokens, **found)
    monkeypatch.setattr("model.recognizer.greedy_search", lambda *_: [decoded])
    monkeypatch.setattr("model.recognizer.beam_search", lambda *_: [decoded])


@pytest.fixture
def heard(random_recognizer, sound):
    """What the CTC head of the random network hears in a clip of 2 s; it is not empty."""
    (transcript,) = random_recognizer.transcribe([sound(2.0, 1)], FAST).transcripts
    assert transcript.text
    return transcript.text


@pytest.mark.parametrize("words", [True, False])
@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("so be it", {"looped": True}),
        ("so be 20", {"looped": True}),
        ("so says the poet Søren", {"looped": True}),
        ("and why indulge " * 9, {}),
        ("a text that is much longer than two seconds of audio could ever hold " * 2, {}),
    ],
    ids=["looped", "looped with a number", "looped with a name", "repeats itself", "too long"],
)
def test_an_invented_text_gives_way_to_what_the_ctc_head_heard(
    random_recognizer, sound, heard, monkeypatch, words, text, values
):
    decoded_as(random_recognizer, monkeypatch, text, **values)
    options = TranscribeOptions(word_timestamps=words)
    (transcript,) = random_recognizer.transcribe([sound(2.0, 1)], options).transcripts
    assert transcript.text == heard


def test_the_decoder_is_as_sure_of_a_word_as_of_the_tokens_that_spell_it(
    random_recognizer, sound, monkeypatch
):
    text = "so - be it."
    tokens = random_recognizer.tokenizer.encode(text)  # a byte each, the spaces among them
    assert len(tokens) == len(text) + 1
    logprobs = dict(zip(range(12), [-0.1] * 12, strict=True))
    logprobs |= {1: -0.5, 2: -0.7, 11: -9.0, 12: -9.0}  # s, o, the full stop, the end
    monkeypatch.setattr("model.confidence.DECODER_SHARE", 1.0)
    values = {"logprobs": tuple(logprobs.values())}
    decoded_as(random_recognizer, monkeypatch, text, **values)
    (transcript,) = random_recognizer.transcribe([sound(2.0, 1)]).transcripts
    found = {w.word: w.confidence for w in transcript.words}
    assert found.keys() == {"so -", "be", "it."}
    assert found["be"] == pytest.approx(math.exp(-0.2))
    assert found["it."] == pytest.approx(math.exp(-0.2))
    assert found["so -"] == pytest.approx(math.exp(-1.3))


@pytest.mark.parametrize("text", ["yes ' sir", "' yes", "yes '"])
def test_an_apostrophe_on_its_own_goes_with_the_word_beside_it(
    random_recognizer, sound, monkeypatch, text
):
    ctc_hears(random_recognizer, monkeypatch, text)
    (transcript,) = random_recognizer.transcribe([sound(2.0, 1)], FAST).transcripts
    assert transcript.text.split().count("'") == 1
    assert " ".join(word.word for word in transcript.words) == transcript.text
    assert len(transcript.words) == len(text.split()) - 1


def test_confidences_are_calibrated_by_who_wrote_the_text(random_folder, sound, monkeypatch):
    checkpoint = load_checkpoint(random_folder)
    raw = Recognizer(checkpoint, device="cpu", dtype="float32")
    waveform = sound(2.0, 1)
    decoder, ctc = Calibration(0.5, 0.3), Calibration(2.0, 1.0)
    fitted = replace(
        checkpoint, config=replace(checkpoint.config, calibration=Calibrations(decoder, ctc))
    )
    calibrated = Recognizer(fitted, device="cpu", dtype="float32")
    for options, decoded, expected in (
        (FAST, {}, ctc),
        (ACCURATE, {}, decoder),
        (ACCURATE, {"looped": True}, ctc),
    ):
        decoded_as(raw, monkeypatch, "so be it", **decoded)
        pairs = [r.transcribe([waveform], options).transcripts[0].words for r in (raw, calibrated)]
        assert [w.word for w in pairs[0]] == [w.word for w in pairs[1]]
        for as_given, mended in zip(*pairs, strict=True):
            assert mended.confidence == pytest.approx(expected(as_given.confidence))
            assert mended.confidence != as_given.confidence


@pytest.mark.parametrize("looped", [True, False])
def test_no_speech_has_no_text_even_if_the_decoder_looped(
    random_recognizer, sound, monkeypatch, looped
):
    values = {"no_speech_prob": 0.9, "logprobs": (-2.0,) * 11, "looped": looped}
    decoded_as(random_recognizer, monkeypatch, "thank you", **values)
    (transcript,) = random_recognizer.transcribe([sound(2.0, 1)]).transcripts
    assert transcript.text == ""


def ctc_hears(recognizer, monkeypatch, text, logprob=-0.1):
    """Make the CTC head hear a text, each letter for a frame with that log-probability."""
    rows = torch.full((125, len(Characters())), -20.0)
    rows[:, Characters.BLANK] = -0.01
    for place, character in enumerate(text):
        rows[2 * place] = -20.0
        rows[2 * place, 1 + Characters().characters.index(character)] = logprob
    monkeypatch.setattr(recognizer.network.ctc, "forward", lambda *_: rows[None])


@pytest.mark.parametrize(
    ("text", "logprob", "heard"),
    [("eh", -0.1, "eh"), ("eh", -0.9, ""), ("so let it be then", -0.9, "so let it be then")],
    ids=["clear", "few and unsure", "unsure"],
)
def test_few_letters_that_the_ctc_head_is_unsure_of_are_no_speech(
    random_recognizer, sound, monkeypatch, text, logprob, heard
):
    ctc_hears(random_recognizer, monkeypatch, text, logprob)
    (transcript,) = random_recognizer.transcribe([sound(2.0, 1)], FAST).transcripts
    assert words_of(transcript.text) == heard.split()


def test_where_no_frame_has_a_letter_the_ngram_finds_no_word(
    random_folder, sound, tmp_path, monkeypatch
):
    (tmp_path / "lm.arpa").write_text(ARPA.replace("ships", "a"))
    recognizer = Recognizer.load(
        random_folder, device="cpu", dtype="float32", language_model=tmp_path / "lm.arpa"
    )
    # "a" is possible everywhere, and nowhere the most probable.
    rows = torch.full((125, len(Characters())), -20.0)
    rows[:, Characters.BLANK] = math.log(0.9)
    rows[:, Characters().encode("a")[0]] = math.log(0.1)
    monkeypatch.setattr(recognizer.network.ctc, "forward", lambda *_: rows[None])
    (transcript,) = recognizer.transcribe([sound(2.0, 1)], FAST).transcripts
    assert transcript.text == ""


@pytest.mark.parametrize(
    ("times", "said", "text"),
    [
        (8, "so be it then", "So be it then."),
        (8, "the cat sat on a mat", "The cat sat on a mat."),
        (2, "so bee it thn", "So be it then."),
        (2, "so be it thn so bee it then", "So be it then. So be it then."),
        (2, "", "So be it then. So be it then."),
    ],
    ids=[
        "loop, heard once",
        "loop, heard otherwise",
        "twice, heard once",
        "heard twice",
        "unheard",
    ],
)
def test_what_is_written_again_and_again_is_kept_as_often_as_it_was_heard(
    random_recognizer, sound, monkeypatch, times, said, text
):
    ctc_hears(random_recognizer, monkeypatch, said)
    written = " ".join(["So be it then."] * times)
    decoded_as(random_recognizer, monkeypatch, written, looped=times > 2)
    (transcript,) = random_recognizer.transcribe([sound(2.0, 1)], ACCURATE).transcripts
    assert transcript.text == text


@pytest.mark.parametrize("words", [True, False])
@pytest.mark.parametrize(
    ("no_speech_prob", "written", "heard", "text"),
    [
        (0.3, "Thank you.", "", ""),
        (0.3, "Thank you.", "ten cue", "Thank you."),
        (0.01, "Thank you.", "", "Thank you."),
        (0.3, "धन्यवाद", "", "धन्यवाद"),
    ],
    ids=["nothing heard", "something heard", "no hint", "letters that the head does not know"],
)
def test_a_hint_of_no_speech_is_enough_where_the_ctc_head_hears_nothing(
    random_recognizer, sound, monkeypatch, words, no_speech_prob, written, heard, text
):
    ctc_hears(random_recognizer, monkeypatch, heard)
    decoded_as(random_recognizer, monkeypatch, written, no_speech_prob=no_speech_prob)
    options = TranscribeOptions(word_timestamps=words)
    (transcript,) = random_recognizer.transcribe([sound(2.0, 1)], options).transcripts
    assert transcript.text == text


@pytest.mark.parametrize(
    "text", ["So be it.", "... and then", "- Yes - no?", "in 20 days", "नमस्ते " * 20]
)
def test_the_text_is_the_same_with_word_times_and_without(
    random_recognizer, sound, monkeypatch, text
):
    decoded_as(random_recognizer, monkeypatch, text)
    found = [
        random_recognizer.transcribe([sound(2.0, 1)], TranscribeOptions(word_timestamps=words))
        for words in (True, False)
    ]
    assert [result.transcripts[0].text for result in found] == [text.strip()] * 2


@pytest.mark.skipif(not has_int8_units(torch.device("cpu")), reason="FBGEMM needs AVX2")
@pytest.mark.parametrize("offered", [("int8", "float32"), ("int8", "bfloat16", "float32")])
def test_in_int8_the_encoder_is_left_to_units_for_bfloat16(random_checkpoint, monkeypatch, offered):
    monkeypatch.setattr("model.recognizer.precisions", lambda device: offered)
    network = Recognizer(random_checkpoint, device="cpu").network
    for layer in (*network.encoder.layers, *network.ctc.layers):
        if "bfloat16" in offered:
            assert layer.fc1.weight.dtype == torch.bfloat16
        else:
            assert isinstance(layer.fc1, Int8Linear) and layer.fc1.by_row
    assert isinstance(network.decoder.layers[0].fc1, Int8Linear)
