"""Transcribe recordings through a real TorchServe and stop it: python -m handler.demo [FILE ...]"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import requests

from handler.loopback import direct
from handler.server import ServerError, TorchServe

FIXTURES = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "manifest.jsonl"
REQUEST_SECONDS = 1200


def main(arguments: list[str] | None = None) -> int:
    """Run the demo; the exit status is 0 when every file was transcribed."""
    # argparse and not jsonargparse: this also runs where only the serving set is installed.
    parser = argparse.ArgumentParser(prog="python -m handler.demo", description=__doc__)
    parser.add_argument("files", type=Path, nargs="*", help="recordings; by default our own clips")
    parser.add_argument(
        "--model-store", type=Path, default=Path("dist"), help="the folder with asr.mar"
    )
    parser.add_argument("--mode", choices=("accurate", "fast"), default="accurate")
    options = parser.parse_args(arguments)

    files: list[Path] = options.files or _fixtures()
    for file in files:
        if not file.is_file():
            print(f"error: there is no file {file}", file=sys.stderr)
            return 1
    print("Starting TorchServe ...", flush=True)
    try:
        with TorchServe(options.model_store) as server:
            failures = [not _transcribe(server, file, options.mode) for file in files]
    except ServerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped.")
        return 130
    print(
        f"\n{len(files) - sum(failures)} of {len(files)} files transcribed; TorchServe is stopped."
    )
    return 1 if any(failures) else 0


def _fixtures() -> list[Path]:
    lines = FIXTURES.read_text(encoding="utf-8").splitlines()
    return [FIXTURES.parent / json.loads(line)["audio_filepath"] for line in lines if line]


def _transcribe(server: TorchServe, file: Path, mode: str) -> bool:
    """Post one file, print what came back, and tell whether it was a transcript."""
    with direct() as http, file.open("rb") as stream:
        start = time.perf_counter()
        response = http.post(
            server.predictions_url,
            headers=server.authorization,
            files={"file": (file.name, stream, "application/octet-stream")},
            data={
                "response_format": "verbose_json",
                "timestamp_granularities[]": ["word", "segment"],
                "mode": mode,
            },
            timeout=REQUEST_SECONDS,
        )
    elapsed = time.perf_counter() - start
    print(f"\n{file.name}")
    if not response.ok:
        print(f"  refused with {response.status_code}: {_reason(response)}")
        return False
    print(describe(response.json(), elapsed))
    return True


def _reason(response: requests.Response) -> str:
    """Return the error's message: ours, or TorchServe's own when the request never reached us."""
    try:
        body = response.json()
        return str(body["error"]["message"] if "error" in body else body["message"])
    except (ValueError, KeyError):
        return response.text[:200]


def describe(transcript: dict[str, Any], elapsed: float) -> str:
    """Lay a verbose_json transcript out for a person: the text, then each word with its times."""
    duration = float(transcript["duration"])
    speed = duration / elapsed if elapsed > 0 else 0.0
    lines = [
        f"  {transcript['text'].strip() or '(no speech)'}",
        f"  {duration:.1f} s of audio in {elapsed:.2f} s ({speed:.1f} x real time)",
    ]
    for word in transcript.get("words", []):
        confidence = f"{word['confidence']:.2f}" if "confidence" in word else ""
        lines.append(
            f"    {word['start']:7.2f} - {word['end']:6.2f}  {word['word']:<20}{confidence}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
