import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.transcript import CONTENT_TYPES, Segment, Transcript, Word, render


def segment(
    text: str, start: float = 0.0, end: float = 1.0, words: tuple[Word, ...] = (), id: int = 0
) -> Segment:
    return Segment(
        id=id,
        start=start,
        end=end,
        text=text,
        tokens=(1770, 13),
        avg_logprob=-0.25,
        compression_ratio=1.1,
        no_speech_prob=0.01,
        words=words,
    )


def transcript(*segments: Segment) -> Transcript:
    text = " ".join(s.text for s in segments)
    duration = segments[-1].end if segments else 0.0
    return Transcript(text=text, language="english", duration=duration, segments=segments)


def evenly_spoken(text: str, start: float = 0.0, seconds_a_word: float = 0.4) -> Segment:
    words = tuple(
        Word(word, start + i * seconds_a_word, start + (i + 1) * seconds_a_word, 0.9)
        for i, word in enumerate(text.split())
    )
    return segment(text, start, words[-1].end, words)


HELLO = transcript(
    segment(
        "Hello, Zoë.",
        0.5,
        1.25,
        (Word("Hello,", 0.5, 0.8, 0.98), Word("Zoë.", 0.9, 1.25, 0.5)),
    )
)
NOTHING = transcript()


def test_json_is_the_text_alone() -> None:
    assert json.loads(render(HELLO)) == {"text": "Hello, Zoë."}
    assert "Zoë" in render(HELLO)


def test_text_is_the_text_and_a_newline() -> None:
    assert render(HELLO, "text") == "Hello, Zoë.\n"


def test_verbose_json_has_openai_s_fields() -> None:
    assert json.loads(render(HELLO, "verbose_json")) == {
        "task": "transcribe",
        "language": "english",
        "duration": 1.25,
        "text": "Hello, Zoë.",
        "segments": [
            {
                "id": 0,
                "seek": 0,
                "start": 0.5,
                "end": 1.25,
                "text": " Hello, Zoë.",
                "tokens": [1770, 13],
                "temperature": 0.0,
                "avg_logprob": -0.25,
                "compression_ratio": 1.1,
                "no_speech_prob": 0.01,
            }
        ],
    }


def test_words_come_instead_of_segments_when_only_they_are_asked_for() -> None:
    body = json.loads(render(HELLO, "verbose_json", ["word"]))
    assert "segments" not in body
    assert body["words"] == [
        {"word": "Hello,", "start": 0.5, "end": 0.8, "confidence": 0.98},
        {"word": "Zoë.", "start": 0.9, "end": 1.25, "confidence": 0.5},
    ]


def test_words_and_segments_come_together_when_both_are_asked_for() -> None:
    body = json.loads(render(HELLO, "verbose_json", ("word", "segment")))
    assert len(body["words"]) == 2 and len(body["segments"]) == 1


def test_srt() -> None:
    assert render(HELLO, "srt") == "1\n00:00:00,500 --> 00:00:01,250\nHello, Zoë.\n\n"


def test_vtt() -> None:
    assert render(HELLO, "vtt") == "WEBVTT\n\n00:00:00.500 --> 00:00:01.250\nHello, Zoë.\n\n"


@pytest.mark.parametrize(
    ("response_format", "body"),
    [("json", '{"text": ""}'), ("text", "\n"), ("srt", ""), ("vtt", "WEBVTT\n\n")],
)
def test_an_empty_transcript_is_a_valid_file(response_format: str, body: str) -> None:
    assert render(NOTHING, response_format) == body  # type: ignore[arg-type]


def test_an_empty_transcript_lists_no_segments_and_no_words() -> None:
    body = json.loads(render(NOTHING, "verbose_json", ("word", "segment")))
    assert body["segments"] == [] and body["words"] == []


@pytest.mark.parametrize(
    ("seconds", "stamp"),
    [
        (0.0, "00:00:00,000"),
        (59.9994, "00:00:59,999"),
        (59.9996, "00:01:00,000"),
        (3599.9996, "01:00:00,000"),
        (3661.001, "01:01:01,001"),
        (360_000.0, "100:00:00,000"),
    ],
)
def test_times_carry_over_when_they_are_rounded(seconds: float, stamp: str) -> None:
    assert f"\n{stamp} --> " in render(transcript(segment("Yes.", seconds, seconds + 1)), "srt")


def test_long_text_is_cut_into_cues_of_two_short_lines_at_the_words_times() -> None:
    text = (
        "The committee met on Tuesday to hear what the engineers had found under the old bridge "
        "and to decide whether the road could be opened again before the winter."
    )
    cues = read_cues(render(transcript(evenly_spoken(text)), "srt"))
    assert len(cues) == 2
    assert all(len(cue[2]) <= 2 and max(map(len, cue[2])) <= 42 for cue in cues)
    words_in_first = len(" ".join(cues[0][2]).split())
    assert cues[0][1] == cues[1][0] == round(words_in_first * 400)


def test_a_title_ends_no_cue() -> None:
    start = "At last, and late in the evening, there came"
    text = f'{start} Mr. Smith. "And you?" he asked.'
    cues = read_cues(render(transcript(evenly_spoken(text)), "srt"))
    shown = [" ".join(lines) for _, _, lines in cues]
    assert shown == [f"{start} Mr. Smith.", '"And you?" he asked.']


def test_a_pause_between_words_ends_a_cue() -> None:
    words = (Word("Wait.", 0.0, 0.4, 0.9), Word("Listen.", 2.0, 2.4, 0.9))
    cues = read_cues(render(transcript(segment("Wait. Listen.", 0.0, 2.4, words)), "srt"))
    assert cues == [(0, 400, ["Wait."]), (2000, 2400, ["Listen."])]


def test_a_sentence_that_fills_the_first_line_ends_a_cue() -> None:
    text = "This sentence is longer than a single line. The next has a cue of its own."
    cues = read_cues(render(transcript(evenly_spoken(text)), "srt"))
    assert [" ".join(lines) for _, _, lines in cues] == [
        "This sentence is longer than a single line.",
        "The next has a cue of its own.",
    ]


def test_text_without_word_times_shares_its_segment_s_time_by_characters() -> None:
    text = " ".join(["word"] * 32)  # 16 words of 5 characters fill two lines
    cues = read_cues(render(transcript(segment(text, 10.0, 20.0)), "srt"))
    assert [start for start, _, _ in cues] == [10_000, 15_031]
    assert cues[-1][1] == 20_000


def test_an_arrow_in_the_text_does_not_end_a_cue() -> None:
    arrows = transcript(segment("a --> b <c> & d"))
    assert render(arrows, "vtt").splitlines()[3] == "a --&gt; b &lt;c&gt; &amp; d"
    assert render(arrows, "srt").splitlines()[2] == "a → b <c> & d"


def test_an_unknown_format_is_named_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'xml'; it must be one of json, text, verbose_json"):
        render(HELLO, "xml")  # type: ignore[arg-type]


def test_an_unknown_granularity_is_named() -> None:
    with pytest.raises(ValueError, match=r"\['char'\]; each must be segment or word"):
        render(HELLO, "verbose_json", ["char"])  # type: ignore[list-item]


def test_each_format_has_its_content_type() -> None:
    assert CONTENT_TYPES["verbose_json"] == "application/json"
    assert CONTENT_TYPES["srt"] == "text/plain; charset=utf-8"


def test_a_transcript_s_words_are_those_of_its_segments_in_order() -> None:
    two = transcript(evenly_spoken("One two."), evenly_spoken("Three.", 2.0))
    assert [word.word for word in two.words] == ["One", "two.", "Three."]


Cue = tuple[int, int, list[str]]


def read_cues(subtitles: str) -> list[Cue]:
    """Reads SRT or VTT as a player does: blocks between empty lines, times in milliseconds."""
    cues: list[Cue] = []
    for block in subtitles.removeprefix("WEBVTT\n\n").split("\n\n"):
        if not block:
            continue
        lines = block.split("\n")
        if "-->" not in lines[0]:
            assert int(lines.pop(0)) == len(cues) + 1
        start, end = (milliseconds(stamp) for stamp in lines[0].split(" --> "))
        cues.append((start, end, lines[1:]))
    return cues


def milliseconds(stamp: str) -> int:
    match = re.fullmatch(r"(\d\d+):(\d\d):(\d\d)[.,](\d{3})", stamp)
    assert match, stamp
    hours, minutes, seconds, thousandths = map(int, match.groups())
    assert minutes < 60 and seconds < 60
    return ((hours * 60 + minutes) * 60 + seconds) * 1000 + thousandths


seconds = st.floats(0, 20_000)


@st.composite
def segments(draw: st.DrawFn) -> Segment:
    """Any text, with the times of its words, with times of too few words, or without times."""
    text = draw(st.text(st.characters(exclude_categories=["Cs"]), max_size=300))
    count = draw(st.sampled_from([0, 1, len(text.split())]))
    words = tuple(
        Word("w", draw(seconds), draw(seconds), 0.5) for _ in range(min(count, len(text.split())))
    )
    return segment(text, draw(seconds), draw(seconds), words)


@settings(deadline=None)
@given(st.lists(segments(), max_size=5), st.sampled_from(["srt", "vtt"]))
def test_cues_are_in_order_and_hold_the_whole_text(parts: list[Segment], form: str) -> None:
    whole = transcript(*parts)
    cues = read_cues(render(whole, form))  # type: ignore[arg-type]
    previous_end = 0
    for start, end, lines in cues:
        assert previous_end <= start < end
        assert 1 <= len(lines) <= 2
        previous_end = end
    shown = " ".join(line for _, _, lines in cues for line in lines)
    if form == "vtt":
        shown = shown.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
        assert shown.split() == whole.text.split()
    else:
        assert shown.split() == whole.text.replace("-->", "→").split()
