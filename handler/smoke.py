"""Transcribe one clip through a running endpoint, for `helm test`: python -m handler.smoke --url …"""

import argparse
import sys
from pathlib import Path

import requests


def main(arguments: list[str] | None = None) -> int:
    """The exit status is 0 when the clip was transcribed, with the expected words."""
    parser = argparse.ArgumentParser(prog="python -m handler.smoke", description=__doc__)
    parser.add_argument("--url", required=True, help="of /predictions/asr")
    parser.add_argument("--clip", type=Path, required=True)
    parser.add_argument("--expect", default="", help="words that the text must have, in any case")
    parser.add_argument("--tokens", type=Path, help="file with the tokens; its first one is used")
    options = parser.parse_args(arguments)
    headers = {"Content-Type": "application/octet-stream"}
    if options.tokens:
        token = options.tokens.read_text().split()[0]
        headers["Authorization"] = f"Bearer {token}"
    try:
        answer = requests.post(
            options.url, data=options.clip.read_bytes(), headers=headers, timeout=120
        )
    except requests.RequestException as error:
        print(f"error: {options.url} cannot be reached: {error}", file=sys.stderr)
        return 1
    if answer.status_code != requests.codes.ok:
        print(f"error: {answer.status_code}: {answer.text}", file=sys.stderr)
        return 1
    text = answer.json()["text"]
    print(text)
    if options.expect.lower() not in text.lower():
        print(f"error: the text lacks {options.expect!r}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
