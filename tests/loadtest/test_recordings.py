import itertools
import json
from collections import Counter

import pytest

from handler.transport import Part
from loadtest.recordings import (
    KINDS,
    LEAST_RIGHT,
    Mode,
    Recording,
    deal,
    make_recordings,
    parse_mix,
    share_right,
)
from model.audio import AudioError, load_audio
from model.recognizer import Recognizer, TranscribeOptions
from tests.random_checkpoint import SHIPPED

MADE = make_recordings("fast")


def test_recordings_last_as_long_as_they_say_and_bad_ones_cannot_be_used() -> None:
    files = {(r.name.split(" as ")[0], r.kind): r for own in MADE.values() for r in own}
    for (name, kind), recording in files.items():
        if kind != "bad":
            seconds = len(load_audio(recording.content)) / 16_000
            assert seconds == pytest.approx(recording.seconds, abs=0.15), name
        elif name != "good file":  # that one has a wrong field
            with pytest.raises(AudioError):
                load_audio(recording.content)


def test_kinds_are_classes_of_duration() -> None:
    assert all(r.seconds < 5 for r in MADE["command"])
    assert all(5 <= r.seconds < 30 for r in MADE["sentence"])
    assert all(r.seconds >= 60 for r in MADE["long"])
    assert {r.fields["mode"] for own in MADE.values() for r in own} == {"fast"}


def test_the_form_carries_the_file_and_the_fields() -> None:
    recording = MADE["sentence"][1]
    body, content_type = recording.form
    assert content_type.startswith("multipart/form-data; boundary=")
    assert recording.content in body
    assert b'name="timestamp_granularities[]"' in body
    assert Part("file", "", recording.content).value in body


def test_what_counts_as_an_answer() -> None:
    good, bad = MADE["command"][0], MADE["bad"][0]
    assert good.problem(200, json.dumps({"text": good.reference}).encode()) is None
    for status, body in (
        *((400, b"{}"), (503, b""), (200, b"<html>"), (200, b'{"text": 1}'), (200, b"[]")),
        *((200, b'{"text": ""}'), (200, b'{"text": "hello"}')),
    ):
        assert good.problem(status, body)
    refusal = b'{"error": {"type": "not_audio", "message": "", "param": null}}'
    assert bad.problem(400, refusal) is None and bad.problem(413, refusal) is None
    for status in (200, 500, 503):
        assert bad.problem(status, refusal)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (
            400,
            b'{"code": 400, "type": "InvalidKeyException", "message": "Token Authorization failed."}',
        ),
        (401, b'{"error": {"type": "invalid_token", "message": "", "param": null}}'),
        (404, b"<html>no such path</html>"),
        (429, b"{}"),
        (400, b"[]"),
    ],
    ids=["TorchServe's token", "the handler's token", "a wrong path", "a gateway", "no object"],
)
def test_a_bad_file_that_never_reached_the_handler_is_not_answered(
    status: int, body: bytes
) -> None:
    assert MADE["bad"][0].problem(status, body)


def test_half_of_the_words_make_an_answer_and_fewer_do_not() -> None:
    fields = {"response_format": "text"}
    clip = Recording("command", "clip", b"", 2.0, fields, "Please stop it, please!")
    for text in ("please STOP it now", "stop please", "Please? Please."):
        assert clip.problem(200, text.encode()) is None, text
    for text in ("", "stop", "stop stop stop", "<html>a page</html>"):
        assert clip.problem(200, text.encode()), text
    assert clip.problem(200, b"stop") == "an answer with 25 % of the words: stop"


def test_subtitles_have_a_cue() -> None:
    fields = {"response_format": "srt"}
    clip = Recording("long", "clip", b"", 60.0, fields, "Please stop.")
    cue = b"1\n00:00:00,080 --> 00:00:01,200\nPlease stop.\n"
    assert clip.problem(200, cue) is None
    assert clip.problem(200, b"Please stop.") == "an answer without a cue: Please stop."
    assert clip.problem(200, cue.replace(b"stop", b"go")) is None
    assert clip.problem(200, cue.replace(b"Please stop", b"")) is not None


def test_the_reference_of_a_long_file_is_what_is_said_in_it() -> None:
    texts = {r.reference for kind in KINDS[:2] for r in MADE[kind]}
    once = Counter(word for text in texts for word in text.split())
    minute, three = (Counter(MADE["long"][i].reference.split()) for i in (0, 2))
    assert once <= minute <= three
    assert three.total() / minute.total() == pytest.approx(3, abs=0.3)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["fast", "accurate"])
def test_the_shipped_model_has_more_than_half_of_the_words(mode: Mode) -> None:
    recognizer = Recognizer.load(SHIPPED, device="cpu")
    clips = {r.content: r for kind in KINDS[:3] for r in MADE[kind]}
    found = recognizer.transcribe(
        [load_audio(content) for content in clips], TranscribeOptions(mode=mode)
    )
    shares = {
        clip.name: share_right(clip.reference, transcript.text)
        for clip, transcript in zip(clips.values(), found.transcripts, strict=True)
    }
    assert min(shares.values()) > LEAST_RIGHT + 0.1, shares


def test_a_pack_has_exactly_the_shares_of_the_mix_in_a_new_order() -> None:
    mix = parse_mix("command=45,sentence=40,long=10,bad=5")
    cards = deal(MADE, mix, seed=1)
    packs = [list(itertools.islice(cards, 100)) for _ in range(2)]
    for pack in packs:
        assert Counter(r.kind for r in pack) == {
            "command": 45,
            "sentence": 40,
            "long": 10,
            "bad": 5,
        }
    assert packs[0] != packs[1]
    assert packs[0] == list(itertools.islice(deal(MADE, mix, seed=1), 100))


def test_small_shares_are_carried_over_to_the_next_pack() -> None:
    cards = itertools.islice(deal(MADE, parse_mix("command=999,bad=1"), seed=0), 10_000)
    assert Counter(r.kind for r in cards)["bad"] == pytest.approx(10, abs=1)


@pytest.mark.parametrize(
    "text", ["command", "command=x", "song=1", "command=-1", "command=0", "long=nan"]
)
def test_a_wrong_mix_is_refused_with_what_would_be_right(text: str) -> None:
    with pytest.raises(ValueError, match=r"KIND=SHARE|no share above 0"):
        parse_mix(text)


def test_the_fixtures_of_every_format_are_sent() -> None:
    formats = {r.name.split()[0].rpartition(".")[2] for kind in KINDS[:2] for r in MADE[kind]}
    assert formats == {"flac", "mp3", "m4a", "ogg", "webm", "wav"}
    answers = Counter(r.fields["response_format"] for own in MADE.values() for r in own)
    assert {"json", "text", "verbose_json", "srt"} <= set(answers)
    json.dumps(answers)
