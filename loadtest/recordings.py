"""What the callers send: short commands, sentences, minutes-long files, and files that must be refused.

All are made in memory from the clips of tests/fixtures; the long ones are clips joined with pauses.
"""

import io
import itertools
import json
import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import av
import numpy as np
import soundfile
from numpy.typing import NDArray
from urllib3.filepost import encode_multipart_formdata

Kind = Literal["command", "sentence", "long", "bad"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Mode = Literal["accurate", "fast"]

FIXTURES = Path(__file__).resolve().parent.parent / "tests" / "fixtures"
SAMPLE_RATE = 16_000
COMMAND_SECONDS = 5.0  # a command is shorter, a sentence is not
PAUSE_SECONDS = 0.4
# A share of its words that an answer must have: the load is judged here, not the model.
LEAST_RIGHT = 0.5
CUE = re.compile(r"^\d+:\d\d:\d\d,\d{3} --> \d+:\d\d:\d\d,\d{3}$", re.MULTILINE)
# Dealt from a pack of so many, shuffled anew each time, the shares of a mix are exact.
PACK = 100


@dataclass(frozen=True)
class Recording:
    """One request.

    Attributes:
        kind: its class in the objectives: how long it is, or that it is bad.
        name: file and answer format, for people.
        content: the file.
        seconds: of audio; 0 for a bad one.
        fields: the form's other fields.
        reference: what is said in it; any answer will do where it has no word.
    """

    kind: Kind
    name: str
    content: bytes
    seconds: float
    fields: Mapping[str, str]
    reference: str = ""

    @cached_property
    def form(self) -> tuple[bytes, str]:
        """Body and content type of the request, made once and not for each call."""
        file = ("recording", self.content, "application/octet-stream")
        return encode_multipart_formdata({**self.fields, "file": file})

    def problem(self, status: int, body: bytes) -> str | None:
        """Say what is wrong with an answer; None if it is what this recording must get."""
        said = body[:200].decode("utf-8", "replace")
        if self.kind == "bad":
            refused = 400 <= status < 500 and _is_refusal(body)
            return None if refused else f"a bad file got {status}: {said}"
        if status != 200:
            return f"{status}: {said}"
        try:
            text = self._text(body)
        except ValueError as error:
            return f"{error}: {said}"
        right = share_right(self.reference, text)
        if right < LEAST_RIGHT:
            return f"an answer with {100 * right:.0f} % of the words: {said}"
        return None

    def _text(self, body: bytes) -> str:
        """What an answer says; raises ValueError where it is not of the format asked for."""
        form = self.fields["response_format"]
        try:
            text = body.decode()
            if "json" in form:
                text = json.loads(text)["text"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"an answer that is not {form}") from error
        if not isinstance(text, str):
            raise ValueError("an answer without text")
        if form == "srt" and not CUE.search(text):
            raise ValueError("an answer without a cue")
        return text


def _is_refusal(body: bytes) -> bool:
    """Whether Steno itself refuses the file: not TorchServe or a gateway, and not for our token."""
    try:
        kind = json.loads(body)["error"]["type"]
    except (ValueError, KeyError, TypeError):
        return False
    return isinstance(kind, str) and kind != "invalid_token"


def share_right(reference: str, text: str) -> float:
    """The share of a reference's words that a text has, in any order; 1 where it has none."""
    wanted, found = _words(reference), _words(text)
    return (wanted & found).total() / wanted.total() if wanted else 1.0


def _words(text: str) -> Counter[str]:
    """Words of lower-case letters: a figure may be spelled out on either side."""
    return Counter(re.findall(r"[a-z']+", text.lower()))


def make_recordings(mode: Mode = "accurate") -> dict[Kind, list[Recording]]:
    """Make all recordings, by kind.

    Raises:
        OSError: the fixtures are not there.
    """
    lines, contents = _clips()
    words = {"response_format": "verbose_json", "timestamp_granularities[]": "word"}
    plain = {"response_format": "json"}
    made: dict[Kind, list[Recording]] = {kind: [] for kind in KINDS}

    def add(
        kind: Kind,
        name: str,
        content: bytes,
        seconds: float,
        reference: str,
        *answers: Mapping[str, str],
    ) -> None:
        for fields in answers:
            label = f"{name} as {fields['response_format']}"
            made[kind].append(
                Recording(kind, label, content, seconds, {**fields, "mode": mode}, reference)
            )

    for name, line in lines.items():
        seconds = float(line["duration"])
        if seconds < COMMAND_SECONDS:
            other: Mapping[str, str] = {"response_format": "text"}
            add("command", name, contents[name], seconds, line["text"], plain, other)
        else:
            add("sentence", name, contents[name], seconds, line["text"], plain, words)
    for name, content, seconds, reference in _long_files():
        add("long", name, content, seconds, reference, words, {"response_format": "srt"})
    flac = contents["news.flac"]
    add("bad", "text file", b"This is not a recording.\n" * 40, 0.0, "", plain)
    add("bad", "half a FLAC", flac[: len(flac) // 2], 0.0, "", plain)
    add("bad", "empty file", b"", 0.0, "", plain)
    add("bad", "good file", flac, 0.0, "", {"response_format": "yaml"})
    return made


@cache
def _clips() -> tuple[dict[str, dict[str, Any]], dict[str, bytes]]:
    """Lines of the manifest and contents, by file."""
    manifest = (FIXTURES / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    lines = {line["audio_filepath"]: line for line in map(json.loads, manifest)}
    return lines, {name: (FIXTURES / name).read_bytes() for name in lines}


@cache
def _long_files() -> list[tuple[str, bytes, float, str]]:
    """Name, content, seconds and reference of each; they take seconds to make."""
    lines, contents = _clips()
    speech = [_decode(content) for content in contents.values()]
    texts = [line["text"] for line in lines.values()]
    made = []
    for seconds, container in ((60.0, "FLAC"), (180.0, "MP3")):
        joined, reference = _join(speech, texts, seconds)
        made.append(
            (f"{seconds:g} s of {container}", _encode(joined, container), seconds, reference)
        )
    return made


def parse_mix(text: str) -> dict[Kind, float]:
    """Read shares such as "command=45,sentence=40,long=10,bad=5"; a kind left out gets none.

    Raises:
        ValueError: naming the part that is no share of a kind.
    """
    mix: dict[Kind, float] = dict.fromkeys(KINDS, 0.0)
    for part in text.split(","):
        name, _, share = part.partition("=")
        kind = next((kind for kind in KINDS if kind == name.strip()), None)
        try:
            value = float(share)
        except ValueError:
            value = -1.0
        if kind is None or not 0 <= value < float("inf"):
            raise ValueError(
                f"the mix has {part!r}; each part must be KIND=SHARE, with a kind of "
                f"{', '.join(KINDS)} and a share of at least 0"
            )
        mix[kind] = value
    if not sum(mix.values()):
        raise ValueError(f"the mix {text!r} has no share above 0")
    return mix


def deal(
    recordings: Mapping[Kind, Sequence[Recording]], mix: Mapping[Kind, float], seed: int
) -> Iterator[Recording]:
    """Deal recordings for ever: in each pack the shares of the mix to within one card, shuffled.

    What a share is too small for in one pack is carried over to the next.
    """
    rng = random.Random(seed)
    turn = dict.fromkeys(KINDS, 0)
    total = sum(mix.values())
    due = dict.fromkeys(KINDS, 0.0)
    while True:
        pack = []
        for kind in KINDS:
            due[kind] += PACK * mix[kind] / total
            while due[kind] >= 1:
                due[kind] -= 1
                pack.append(recordings[kind][turn[kind] % len(recordings[kind])])
                turn[kind] += 1
        rng.shuffle(pack)
        yield from pack


def _decode(content: bytes) -> NDArray[np.float32]:
    """Samples (samples,) at 16 kHz, mono."""
    resampler = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)
    with av.open(io.BytesIO(content), mode="r") as container:
        frames = [*container.decode(audio=0), None]  # None flushes the resampler
        blocks = [part.to_ndarray()[0] for frame in frames for part in resampler.resample(frame)]
    return np.concatenate(blocks)


def _join(
    clips: Sequence[NDArray[np.float32]], texts: Sequence[str], seconds: float
) -> tuple[NDArray[np.float32], str]:
    """Repeat the clips in turn, with a pause after each, until `seconds` are full.

    The text is that of the clips that are in it as a whole.
    """
    pause = np.zeros(int(PAUSE_SECONDS * SAMPLE_RATE), np.float32)
    length = int(seconds * SAMPLE_RATE)
    parts: list[NDArray[np.float32]] = []
    said = []
    for clip, text in itertools.cycle(zip(clips, texts, strict=True)):
        left = length - sum(map(len, parts))
        if left <= 0:
            break
        if len(clip) <= left:
            said.append(text)
        parts += [clip, pause]
    return np.concatenate(parts)[:length], " ".join(said)


def _encode(samples: NDArray[np.float32], container: str) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, SAMPLE_RATE, format=container)
    return file.getvalue()
