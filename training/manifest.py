"""Lists of utterances: NeMo's JSON Lines, and LibriSpeech's own folders.

Whatever a list holds that cannot be used comes back as a `Rejected` line with its reason, so
that the caller can show it; nothing is dropped in silence.
"""

import json
import math
import os
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import soundfile

from training.files import atomic_writer


class ManifestError(ValueError):
    """A list as a whole cannot be used."""


@dataclass(frozen=True, slots=True)
class Utterance:
    """One recording of one speaker, and what is said in it."""

    audio_filepath: Path  # absolute
    duration: float  # seconds
    text: str
    speaker: str | None = None
    label: str | None = None  # where the text comes from, as "human" or "pseudo"
    written: str | None = None  # `text` as it would be written, with capitals and punctuation
    group: str | None = None  # of speakers that must not fare worse together: an accent, a site


NO_FILE = "no such file"


@dataclass(frozen=True)
class Rejected:
    """A line that cannot be used; `line` counts from 1, and is 0 for a file that has no line."""

    manifest: Path
    line: int
    reason: str
    content: str


class _UnusableLine(ValueError):
    """Says why one line is rejected; never leaves this module."""


class _Part(_UnusableLine):
    """A line that takes a part of a file."""

    def __init__(self, audio: Path, offset: object) -> None:
        super().__init__(f"offset {offset!r}: a part of a file cannot be used, cut it out first")
        self.audio = audio


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON Lines file that we wrote.

    Only line feeds end a line: texts may hold others, such as U+2028, at which `str.splitlines` cuts.
    """
    with path.open("rb") as file:
        return [json.loads(line) for line in file]


def read_manifest(
    path: Path, exists: Callable[[Path], bool] = os.path.isfile
) -> tuple[list[Utterance], list[Rejected]]:
    """Read NeMo's JSON Lines: the usable utterances and the rejected lines, both in file order.

    `audio_filepath` is resolved against the manifest's folder. Of the keys that Steno does not
    know, all are ignored but `offset`, which would change what is heard: of a file that is given in
    parts no part is used, the first neither, whose offset is 0.

    Args:
        exists: tells of an absolute path whether the recording is there; another one than the
            default where the recordings are not on this machine.

    Raises:
        OSError: the manifest itself cannot be read.
    """
    path = Path(os.path.abspath(path))
    utterances: list[Utterance] = []
    rejected: list[Rejected] = []
    first_line: dict[Path, int] = {}
    first_parts: dict[Path, Rejected] = {}
    in_parts: set[Path] = set()
    with path.open("rb") as file:  # as bytes: a line that is not UTF-8 must not hide the others
        for number, raw in enumerate(file, start=1):
            line = raw.rstrip(b"\r\n")
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")  # a byte order mark, as Windows writes
            try:
                utterance = _utterance(line, path.parent, exists)
                if utterance.audio_filepath in first_line:
                    first = first_line[utterance.audio_filepath]
                    raise _UnusableLine(f"audio_filepath is the same as in line {first}")
            except _UnusableLine as reason:
                if isinstance(reason, _Part):
                    in_parts.add(reason.audio)
                content = line.decode("utf-8", errors="replace")
                rejected.append(Rejected(path, number, str(reason), content))
                continue
            first_line[utterance.audio_filepath] = number
            utterances.append(utterance)
            if b'"offset"' in line:
                part = _Part(utterance.audio_filepath, 0)
                first_parts[part.audio] = Rejected(path, number, str(part), line.decode("utf-8"))
    if begun := in_parts & first_parts.keys():
        utterances = [u for u in utterances if u.audio_filepath not in begun]
        rejected += [first_parts[audio] for audio in begun]
        rejected.sort(key=lambda entry: entry.line)
    return utterances, rejected


def write_manifest(path: Path, utterances: Iterable[Utterance]) -> None:
    """Write NeMo's JSON Lines with paths relative to the manifest, whole or not at all.

    Raises:
        OSError: the manifest's folder does not exist or cannot be written.
    """
    folder = os.path.abspath(path.parent)
    with atomic_writer(path) as file:
        for utterance in utterances:
            entry: dict[str, Any] = {
                "audio_filepath": Path(
                    os.path.relpath(utterance.audio_filepath, folder)
                ).as_posix(),
                "duration": utterance.duration,
                "text": utterance.text,
            }
            if utterance.speaker is not None:
                entry["speaker"] = utterance.speaker
            if utterance.label is not None:
                entry["label"] = utterance.label
            if utterance.written is not None:
                entry["written"] = utterance.written
            if utterance.group is not None:
                entry["group"] = utterance.group
            file.write(json.dumps(entry, ensure_ascii=False).encode("utf-8") + b"\n")


def read_librispeech(root: Path) -> tuple[list[Utterance], list[Rejected]]:
    """Read every SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt below `root`, in order of their paths.

    The text is lower-cased, because LibriSpeech writes capitals throughout. Durations are those
    that the FLAC headers state.

    Raises:
        ManifestError: there is no folder `root`, or no transcript below it.
    """
    root = Path(os.path.abspath(root))
    transcripts = sorted(root.rglob("*.trans.txt"))
    if not transcripts:
        raise ManifestError(
            f"{root} holds no SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt; give the folder that"
            " LibriSpeech's archive unpacks to, or a manifest file"
        )
    utterances: list[Utterance] = []
    rejected: list[Rejected] = []
    named: set[Path] = set()
    for transcript in transcripts:
        for number, raw in enumerate(transcript.read_bytes().splitlines(), start=1):
            try:
                utterance = _librispeech_utterance(raw, transcript)
                if utterance.audio_filepath in named:
                    raise _UnusableLine("the same utterance stands in an earlier line")
                utterances.append(utterance)
            except _UnusableLine as reason:
                content = raw.decode("utf-8", errors="replace")
                rejected.append(Rejected(transcript, number, str(reason), content))
            identity = raw.split(maxsplit=1)[:1]
            if identity:
                name = identity[0].decode("utf-8", errors="replace")
                named.add(transcript.parent / f"{name}.flac")
    for audio in sorted(root.rglob("*.flac")):
        if audio not in named:
            folder = audio.parent
            transcript = folder / f"{folder.parent.name}-{folder.name}.trans.txt"
            rejected.append(Rejected(transcript, 0, "no line has this file's text", audio.name))
    return utterances, rejected


def _utterance(line: bytes, folder: Path, exists: Callable[[Path], bool]) -> Utterance:
    try:
        entry = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise _UnusableLine(f"not UTF-8 at byte {error.start + 1}") from error
    except (ValueError, RecursionError) as error:
        raise _UnusableLine("empty line" if not line.strip() else f"not JSON: {error}") from error
    if not isinstance(entry, dict):
        raise _UnusableLine(f"not a JSON object but {type(entry).__name__}")
    missing = [key for key in ("audio_filepath", "duration", "text") if key not in entry]
    if missing:
        raise _UnusableLine(f"lacks {', '.join(missing)}")
    audio = Path(os.path.abspath(folder / _string(entry, "audio_filepath")))
    if entry.get("offset"):
        raise _Part(audio, entry["offset"])
    _require_file(audio, exists)
    return Utterance(
        audio_filepath=audio,
        duration=_duration(entry["duration"]),
        text=_string(entry, "text"),
        speaker=_name(entry, "speaker"),
        label=_optional_string(entry, "label"),
        written=_optional_string(entry, "written"),
        group=_name(entry, "group"),
    )


def _librispeech_utterance(raw: bytes, transcript: Path) -> Utterance:
    try:
        identity, _, text = raw.decode("utf-8").strip().partition(" ")
    except UnicodeDecodeError as error:
        raise _UnusableLine(f"not UTF-8 at byte {error.start + 1}") from error
    chapter = transcript.name.removesuffix(".trans.txt")
    if not identity.startswith(f"{chapter}-"):
        raise _UnusableLine(f"starts with {identity!r}, not with {chapter}-NUMBER")
    if not text.strip():
        raise _UnusableLine("text is empty")
    audio = transcript.parent / f"{identity}.flac"
    _require_file(audio, os.path.isfile)
    try:
        duration = soundfile.info(str(audio)).duration
    except soundfile.SoundFileError as error:
        raise _UnusableLine(f"{audio.name} is not FLAC: {error}") from error
    return Utterance(audio, _duration(duration), text.strip().lower(), chapter.split("-")[0])


def _string(entry: dict[str, Any], key: str) -> str:
    value = entry[key]
    if not isinstance(value, str):
        raise _UnusableLine(f"{key} is {_short(value)}, not a string")
    if not value.strip():
        raise _UnusableLine(f"{key} is empty")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:  # JSON can spell half a surrogate pair
        raise _UnusableLine(f"{key} holds half a character: {_short(value)}") from error
    return value


def _name(entry: dict[str, Any], key: str) -> str | None:
    """In one spelling: macOS decomposes accents, and who is spelled in two ways would be two people."""
    name = _optional_string(entry, key)
    return None if name is None else unicodedata.normalize("NFC", name).strip()


def _optional_string(entry: dict[str, Any], key: str) -> str | None:
    return None if entry.get(key) is None else _string(entry, key)


def _duration(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _UnusableLine(f"duration is {_short(value)}, not a number of seconds")
    try:
        seconds = float(value)
    except OverflowError:
        seconds = math.inf
    if not math.isfinite(seconds) or seconds <= 0:
        raise _UnusableLine(f"duration is {seconds} s; it must be finite and above 0")
    return seconds


def _require_file(audio: Path, exists: Callable[[Path], bool]) -> None:
    if not exists(audio):  # os.path.isfile: False for a name that no file system takes
        raise _UnusableLine(f"{NO_FILE}: {_short(str(audio))}")


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 200 else f"{shown[:200]}…"
