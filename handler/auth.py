"""Who may call, where TorchServe's own tokens cannot tell.

TorchServe makes random tokens at each start and takes none from outside, so neither replicas nor a
restart could share one. In a pod they are off, and the handler compares the caller's bearer token
with those of a mounted file.
"""

import hmac
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path

from handler.errors import RequestError

MIN_LENGTH = 16
SCHEME = "bearer "


class Tokens:
    """The tokens in a file, one a line; any of them opens, so that one can replace another.

    The file is read for every request: Kubernetes exchanges a mounted secret while the pod runs.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds no token, or one that is too short; no message repeats a token.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read()

    def check(self, headers: Mapping[str, str]) -> None:
        """Return if the request carries a token of the file. Raises RequestError (401) if not."""
        sent = next((v for name, v in headers.items() if name.lower() == "authorization"), "")
        token = sent[len(SCHEME) :].strip() if sent.lower().startswith(SCHEME) else ""
        # Every token is compared, in constant time: how long it takes tells nothing.
        matches = [hmac.compare_digest(token.encode(), known) for known in self._read()]
        if not any(matches):
            raise RequestError(
                "invalid_token",
                "the token is missing or wrong; send the header Authorization: Bearer TOKEN",
                status=HTTPStatus.UNAUTHORIZED,
            )

    def _read(self) -> list[bytes]:
        tokens = [line for line in map(bytes.strip, self._path.read_bytes().splitlines()) if line]
        if not tokens:
            raise ValueError(f"{self._path} holds no token; it takes one a line")
        if any(len(token) < MIN_LENGTH for token in tokens):
            raise ValueError(
                f"{self._path} holds a token of fewer than {MIN_LENGTH} characters; make one with "
                "`openssl rand -hex 32`"
            )
        return tokens
