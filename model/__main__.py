"""Transcribe files without a server: `python -m model FILE… [--mode fast] [--response-format srt]`."""

import argparse
import sys
from pathlib import Path

from model.audio import AudioError, load_audio
from model.recognizer import Recognizer, TranscribeOptions
from model.transcript import render

SHIPPED = Path(__file__).parent / "shipped"


def main() -> int:
    """Print each file's transcript; the exit status is 1 if one could not be read."""
    parser = argparse.ArgumentParser(prog="python -m model", description="Transcribe audio files.")
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--checkpoint", type=Path, default=SHIPPED)
    parser.add_argument("--mode", choices=["accurate", "fast"], default="accurate")
    parser.add_argument(
        "--response-format", choices=["json", "text", "verbose_json", "srt", "vtt"], default="text"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16", "int8"], default="auto")
    args = parser.parse_args()
    try:
        recognizer = Recognizer.load(args.checkpoint, device=args.device, dtype=args.dtype)
    except ValueError as error:
        parser.error(str(error))
    status = 0
    for file in args.files:
        try:
            waveform = load_audio(file)
        except (AudioError, OSError) as error:
            print(f"{file}: {error}", file=sys.stderr)
            status = 1
            continue
        result = recognizer.transcribe([waveform], TranscribeOptions(mode=args.mode))
        print(render(result.transcripts[0], args.response_format), end="")
        if args.response_format in ("json", "verbose_json"):
            print()
    return status


if __name__ == "__main__":
    sys.exit(main())
