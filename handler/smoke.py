"""Transcribe one clip through a running endpoint, for `helm test`: python -m handler.smoke --url …"""

import argparse
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import requests

from handler.auth import written_tokens

PAUSE_SECONDS = 1.0
# Packets that nobody takes must not use up all the time.
CONNECT_SECONDS = 10.0


def transcribe(url: str, clip: bytes, headers: Mapping[str, str], seconds: float) -> str:
    """Return the clip's text.

    A service that was just installed may have no pod yet that is ready, and a gateway may not have
    heard of one: what says so (no connection, 503) is tried again for some seconds.

    Raises:
        RuntimeError: the endpoint cannot be reached, or gave another answer.
    """
    deadline = time.monotonic() + seconds
    while True:
        left = max(deadline - time.monotonic(), PAUSE_SECONDS)
        try:
            timeouts = (min(CONNECT_SECONDS, left), left)
            answer = requests.post(url, data=clip, headers=headers, timeout=timeouts)
        except requests.ConnectionError as error:
            trouble = f"{url} cannot be reached: {error}"
        except requests.RequestException as error:
            raise RuntimeError(f"{url} cannot be asked: {error}") from error
        else:
            if answer.ok:
                return _text(answer)
            trouble = f"{answer.status_code}: {answer.text}"
            if answer.status_code != requests.codes.service_unavailable:
                raise RuntimeError(trouble)
        if time.monotonic() + PAUSE_SECONDS > deadline:
            raise RuntimeError(f"not within {seconds:g} s: {trouble}")
        time.sleep(PAUSE_SECONDS)


def _text(answer: requests.Response) -> str:
    try:
        return str(answer.json()["text"])
    except (ValueError, KeyError, TypeError):
        raise RuntimeError(
            f"{answer.url} answers with no transcript: {answer.text[:200]}"
        ) from None


def main(arguments: list[str] | None = None) -> int:
    """The exit status is 0 when the clip was transcribed, with the expected words."""
    parser = argparse.ArgumentParser(prog="python -m handler.smoke", description=__doc__)
    parser.add_argument("--url", required=True, help="of /predictions/asr")
    parser.add_argument("--clip", type=Path, required=True)
    parser.add_argument("--expect", default="", help="words that the text must have, in any case")
    parser.add_argument("--tokens", type=Path, help="file with the tokens; its first one is used")
    # Less than the five minutes after which `helm test` gives up and shows no reason.
    parser.add_argument("--seconds", type=float, default=240.0, help="to wait for an answer")
    options = parser.parse_args(arguments)
    headers = {"Content-Type": "application/octet-stream"}
    if options.tokens:
        tokens = written_tokens(options.tokens)
        if not tokens:
            print(f"error: {options.tokens} holds no token; it takes one a line", file=sys.stderr)
            return 1
        headers["Authorization"] = f"Bearer {tokens[0].decode()}"
    try:
        text = transcribe(options.url, options.clip.read_bytes(), headers, options.seconds)
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(text)
    if options.expect.lower() not in text.lower():
        print(f"error: the text lacks {options.expect!r}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
