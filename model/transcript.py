"""The result of a recognition, and the five forms in which OpenAI's transcription endpoint gives it.

The shapes follow OpenAI's API reference, "The transcription object" and "(Verbose JSON)".
"""

import json
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

ResponseFormat = Literal["json", "text", "verbose_json", "srt", "vtt"]
Granularity = Literal["segment", "word"]

_JSON, _PLAIN = "application/json", "text/plain; charset=utf-8"
CONTENT_TYPES: dict[ResponseFormat, str] = {
    "json": _JSON,
    "text": _PLAIN,
    "verbose_json": _JSON,
    "srt": _PLAIN,
    "vtt": _PLAIN,
}

# Two lines of 42 characters are what subtitle guidelines (Netflix, BBC) let a viewer read at once.
LINE_CHARACTERS = 42
LINES_A_CUE = 2
LONGEST_PAUSE = 1.0  # seconds of silence inside a cue
SENTENCE_ENDS = (".", "?", "!", "…")
# Words with a point that ends no sentence.
TITLES = frozenset({"mr.", "mrs.", "ms.", "dr.", "st.", "prof.", "jr.", "sr.", "vs."})


@dataclass(frozen=True)
class Word:
    """A word as written, its times in seconds, and how sure the recognizer is of it, from 0 to 1."""

    word: str
    start: float
    end: float
    confidence: float


@dataclass(frozen=True)
class Segment:
    """A stretch of speech: times in seconds, and Whisper's measures of how the text came about.

    `avg_logprob` is the mean natural logarithm of the tokens' probabilities, `compression_ratio`
    the text's bytes over their zlib-compressed length (loops compress well), `no_speech_prob` from
    0 to 1. `words` is empty where no word times were asked for.
    """

    id: int
    start: float
    end: float
    text: str
    tokens: tuple[int, ...]
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float
    words: tuple[Word, ...] = ()


@dataclass(frozen=True)
class Transcript:
    """The text of a recording; `language` by its English name ("english"), `duration` in seconds."""

    text: str
    language: str
    duration: float
    segments: tuple[Segment, ...]

    @property
    def words(self) -> tuple[Word, ...]:
        """The words of all segments, in order."""
        return tuple(word for segment in self.segments for word in segment.words)


# Formats that show times; their segments and cues follow the words.
WITH_TIMES = frozenset({"verbose_json", "srt", "vtt"})


def render(
    transcript: Transcript,
    response_format: ResponseFormat = "json",
    granularities: Iterable[Granularity] = ("segment",),
) -> str:
    """The body of the answer, as OpenAI's endpoint writes it.

    `granularities` chooses what `verbose_json` lists: segments, words (which also carry their
    `confidence`, an addition of ours), or both; the other formats do not look at it. Subtitles hold
    at most two lines of 42 characters a cue, cut by word times where there are words.

    Raises ValueError for an unknown format or granularity.
    """
    match response_format:
        case "json":
            return _to_json({"text": transcript.text})
        case "text":
            return transcript.text + "\n"
        case "verbose_json":
            return _to_json(_verbose(transcript, set(granularities)))
        case "srt":
            return "".join(
                f"{number}\n{_timestamp(cue.start, ',')} --> {_timestamp(cue.end, ',')}\n"
                f"{_wrapped(cue.text).replace('-->', '→')}\n\n"  # SRT has no way to escape it
                for number, cue in enumerate(_cues(transcript), start=1)
            )
        case "vtt":
            return "WEBVTT\n\n" + "".join(
                f"{_timestamp(cue.start, '.')} --> {_timestamp(cue.end, '.')}\n"
                f"{_escaped(_wrapped(cue.text))}\n\n"
                for cue in _cues(transcript)
            )
        case _:
            known = ", ".join(get_args(ResponseFormat))
            raise ValueError(f"response_format is {response_format!r}; it must be one of {known}")


def _to_json(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _verbose(transcript: Transcript, granularities: set[Granularity]) -> dict[str, Any]:
    unknown = granularities - set(get_args(Granularity))
    if unknown:
        raise ValueError(
            f"timestamp granularities are {sorted(unknown)}; each must be segment or word"
        )
    body: dict[str, Any] = {
        "task": "transcribe",
        "language": transcript.language,
        "duration": _rounded(transcript.duration),
        "text": transcript.text,
    }
    if "word" in granularities:
        body["words"] = [
            {
                "word": word.word,
                "start": _rounded(word.start),
                "end": _rounded(word.end),
                "confidence": _rounded(word.confidence),
            }
            for word in transcript.words
        ]
    if "segment" in granularities:
        body["segments"] = [
            {
                "id": segment.id,
                "seek": 0,  # the place of Whisper's 30 s window, which we do not have
                "start": _rounded(segment.start),
                "end": _rounded(segment.end),
                "text": " " + segment.text.strip(),  # Whisper's texts begin with a space
                "tokens": list(segment.tokens),
                "temperature": 0.0,
                "avg_logprob": _rounded(segment.avg_logprob),
                "compression_ratio": _rounded(segment.compression_ratio),
                "no_speech_prob": _rounded(segment.no_speech_prob),
            }
            for segment in transcript.segments
        ]
    return body


def _rounded(value: float) -> float:
    return round(float(value), 4)


@dataclass(frozen=True)
class _Cue:
    """What is shown at once; times in whole milliseconds, `end` after `start`."""

    start: int
    end: int
    text: str


def _cues(transcript: Transcript) -> Iterator[_Cue]:
    """Cues in order, none overlapping the one before, whatever the times of the words."""
    free = 0
    for segment in transcript.segments:
        for words in _grouped(_timed_words(segment)):
            start = max(free, round(words[0].start * 1000))
            free = max(start + 1, round(words[-1].end * 1000))
            yield _Cue(start, free, " ".join(word.text for word in words))


@dataclass(frozen=True)
class _TimedWord:
    text: str
    start: float
    end: float


def _timed_words(segment: Segment) -> list[_TimedWord]:
    """The segment's text word by word, with the words' own times, else shared out by characters."""
    texts = segment.text.split()
    if " ".join(word.word for word in segment.words).split() == texts:
        return [_TimedWord(word.word, word.start, word.end) for word in segment.words]
    seconds_a_character = (segment.end - segment.start) / max(1, len(" ".join(texts)))
    timed = []
    position = 0
    for text in texts:
        start = segment.start + position * seconds_a_character
        timed.append(_TimedWord(text, start, start + len(text) * seconds_a_character))
        position += len(text) + 1
    return timed


def ends_sentence(word: str) -> bool:
    """Whether a sentence ends with a word as it is written, with its signs."""
    bare = word.rstrip("\"')”’")
    return bare.endswith(SENTENCE_ENDS) and bare.lower() not in TITLES


def _grouped(words: list[_TimedWord]) -> Iterator[list[_TimedWord]]:
    """Groups that fit a cue; a pause, or a sentence's end after the first line, closes one early."""
    group: list[_TimedWord] = []
    for word in words:
        if group:
            text = " ".join(member.text for member in group)
            full = _wrapped(f"{text} {word.text}").count("\n") >= LINES_A_CUE
            sentence = len(text) > LINE_CHARACTERS and ends_sentence(group[-1].text)
            if full or sentence or word.start - group[-1].end > LONGEST_PAUSE:
                yield group
                group = []
        group.append(word)
    if group:
        yield group


def _wrapped(text: str) -> str:
    return textwrap.fill(text, LINE_CHARACTERS, break_long_words=False, break_on_hyphens=False)


def _escaped(text: str) -> str:
    """WebVTT's escapes; they also keep an arrow in the text from ending the cue."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _timestamp(milliseconds: int, point: str) -> str:
    seconds, milliseconds = divmod(milliseconds, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{seconds:02d}{point}{milliseconds:03d}"
