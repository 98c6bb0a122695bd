"""Transcribe files without a server: `python -m model FILE… [--response-format srt]`."""

import argparse
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from model.audio import AudioError, load_audio
from model.hotwords import Hotword
from model.recognizer import WIDEST_BEAM, Recognizer, TranscribeOptions
from model.transcript import WITH_TIMES, render

SHIPPED = Path(__file__).parent / "shipped"
SUFFIXES = {"text": "txt", "json": "json", "verbose_json": "json", "srt": "srt", "vtt": "vtt"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print each file's transcript, or write it; the exit status is 1 if one could not be made."""
    parser = argparse.ArgumentParser(prog="python -m model", description="Transcribe audio files.")
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--checkpoint", type=Path, default=SHIPPED)
    parser.add_argument("--mode", choices=["accurate", "fast"], default="accurate")
    parser.add_argument("--response-format", choices=[*SUFFIXES], default="text")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="write there talk.txt for talk.mp3, and so on; what is there already is left as it is, "
        "so take a folder for each format",
    )
    parser.add_argument(
        "--hotwords",
        type=_hotwords,
        default=(),
        metavar="WORD,WORD:WEIGHT",
        help="words that are expected; a weight is above 0 and at most 10, and 1 by default",
    )
    parser.add_argument("--prompt", default="", help="what came before, or is like what is said")
    parser.add_argument("--beam-size", type=int, choices=range(1, WIDEST_BEAM + 1))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16", "int8"], default="auto")
    args = parser.parse_args(arguments)
    if args.mode == "fast" and (args.prompt or args.beam_size):
        parser.error("--prompt and --beam-size are for --mode accurate")
    outputs: dict[Path, Path] = {}
    if args.output is not None:
        for file in args.files:
            path = args.output / f"{file.stem}.{SUFFIXES[args.response_format]}"
            if path in outputs:
                parser.error(f"{outputs[path]} and {file} would both be written to {path}")
            outputs[path] = file
        try:
            args.output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            parser.error(f"--output: {error}")
    try:
        recognizer = Recognizer.load(args.checkpoint, device=args.device, dtype=args.dtype)
    except ValueError as error:
        parser.error(str(error))
    options = TranscribeOptions(
        mode=args.mode,
        word_timestamps=args.response_format in WITH_TIMES,
        prompt=args.prompt,
        hotwords=args.hotwords,
        beam_size=args.beam_size,
    )
    status = 0
    paths = outputs or [None] * len(args.files)
    for number, (file, path) in enumerate(zip(args.files, paths, strict=True), start=1):
        if path is not None and path.exists():
            print(f"{file}: {path} is there already and was left as it is", file=sys.stderr)
            continue
        try:
            waveform = load_audio(file)
            result = recognizer.transcribe([waveform], options)
            text = render(result.transcripts[0], args.response_format, ("segment", "word"))
            if path is not None:
                _write(path, text)
                print(f"{number} of {len(args.files)}: {path}", file=sys.stderr)
        except (AudioError, OSError) as error:
            print(f"{file}: {error}", file=sys.stderr)
            status = 1
            continue
        except Exception:
            # Such as too little memory: the other files must not wait for this one.
            print(f"{file}: {traceback.format_exc()}", file=sys.stderr)
            status = 1
            continue
        if path is None:
            print(text, end="\n" if args.response_format in ("json", "verbose_json") else "")
    return status


def _hotwords(value: str) -> tuple[Hotword, ...]:
    try:
        return tuple(Hotword.parse(word) for word in value.split(",") if word.strip())
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{value!r}: {error}") from None


def _write(path: Path, text: str) -> None:
    """Write a transcript that is there whole or not at all: a second run must not take a half one."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


if __name__ == "__main__":
    sys.exit(main())
