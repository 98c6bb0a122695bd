"""Who may call, where TorchServe's own tokens cannot tell.

TorchServe makes random tokens at each start and takes none from outside, so neither replicas nor a
restart could share one. In a pod they are off, and the handler compares the caller's bearer token
with those of a mounted file.
"""

import hmac
import logging
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path

from handler.errors import RequestError

logger = logging.getLogger(__name__)

MIN_LENGTH = 16
SCHEME = "bearer "


def written_tokens(path: Path) -> list[bytes]:
    """The tokens in a file, one a line, whatever their length; a line that begins with `#` is none."""
    lines = map(bytes.strip, path.read_bytes().splitlines())
    return [line for line in lines if line and not line.startswith(b"#")]


class Tokens:
    """The tokens in a file, one a line; any of them opens, so that one can replace another.

    The file is read for every request: Kubernetes exchanges a mounted secret while the pod runs. A line
    that begins with `#` is a comment. A token that is too short, or that no header can hold as it is
    (beyond ASCII), stops the start; one that comes later opens nothing, and the others still do: a slip
    while a token is exchanged locks nobody out.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds no token, or an impossible one; no message repeats a token.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._refused = 0
        self._read()
        if self._refused:
            raise ValueError(self._impossible())

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
        written = written_tokens(self._path)
        tokens = [token for token in written if len(token) >= MIN_LENGTH and token.isascii()]
        refused, self._refused = self._refused, len(written) - len(tokens)
        if not written:
            raise ValueError(f"{self._path} holds no token; it takes one a line")
        if not tokens:
            raise ValueError(self._impossible())
        if self._refused > refused:
            logger.error("%s; it opens nothing", self._impossible())
        return tokens

    def _impossible(self) -> str:
        return (
            f"{self._path} holds a token of fewer than {MIN_LENGTH} characters, or beyond ASCII; "
            "make one with `openssl rand -hex 32`"
        )
