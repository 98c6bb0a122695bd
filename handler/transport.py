"""How a TorchServe worker hands over a request, with three of its habits undone.

TorchServe 0.12 parses JSON and decodes text parts on the worker's only thread before the handler
is called, and keeps only the last of several form fields with one name, so a form with two files
looks like a form with one. It also asks the socket for each number and each text by itself, and takes
as many fields as there are: a form of 40 MB has room for a million, which cost the worker 10 s before
a token was asked for. All of it happens in Python, in the worker; the frame from its Java side still
has everything. TorchServe is frozen at 0.12.0 and so are the names used here.
"""

import os
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from io import BufferedReader
from typing import Any

# Read by TorchServe for every request part.
DECODE_SWITCH = "TS_DECODE_INPUT_REQUEST"
# The file and every option as often as it may be given are fewer. What is beyond is not kept, and who
# gets more than this knows that there was more.
MOST_PARTS = 300
BUFFER_BYTES = 1 << 16
# In the place of a length: there is no further part.
END_OF_LIST = -1
_LENGTH = struct.Struct("!i")


@dataclass(frozen=True)
class Part:
    """One form field, or the whole body under the name "body"."""

    name: str
    content_type: str
    value: bytes | bytearray


def keep_parts_as_sent() -> None:
    """Make TorchServe hand each request to the handler as a list of `Part`, raw and as sent.

    Of more than `MOST_PARTS` parts one more than that is handed over. To be called once in a worker,
    before the first request.
    """
    from ts.protocol import otf_message_handler as frames
    from ts.service import Service

    os.environ[DECODE_SWITCH] = "false"
    with_last_of_each = Service.retrieve_data_for_inference
    read_part = frames._retrieve_input_data
    kept = 0

    def with_all_parts(batch: Sequence[dict[str, Any]]) -> tuple[Any, list[list[Part]], Any]:
        headers, _, request_ids = with_last_of_each(batch)
        items = [
            [Part(p["name"], p["contentType"], p["value"]) for p in request["parameters"]]
            for request in batch
        ]
        return headers, items, request_ids

    def with_most_parts(connection: socket.socket) -> dict[str, Any] | None:
        nonlocal kept
        part: dict[str, Any] | None = None
        if kept > MOST_PARTS:
            _skip_parts(connection)
        else:
            part = read_part(connection)
        kept = kept + 1 if part else 0
        return part

    Service.retrieve_data_for_inference = staticmethod(with_all_parts)
    frames._retrieve_buffer = read_exactly
    frames._retrieve_input_data = with_most_parts


@cache  # A worker has one connection in its life.
def _buffered(connection: socket.socket) -> BufferedReader:
    return BufferedReader(connection.makefile("rb", buffering=0), BUFFER_BYTES)


def read_exactly(connection: socket.socket, length: int) -> bytes:
    """Return the next `length` bytes. Ends the worker, as TorchServe does, where Java has gone."""
    data = _buffered(connection).read(length)
    if len(data) < length:
        raise SystemExit(0)
    return data


def _skip_parts(connection: socket.socket) -> None:
    """Read to the end of a request's parts: of each its name, its content type and its value."""
    (length,) = _LENGTH.unpack(read_exactly(connection, _LENGTH.size))
    fields = 0
    while length != END_OF_LIST or fields % 3:
        # A text, and the length of the next in the same breath.
        text = read_exactly(connection, length + _LENGTH.size)
        (length,) = _LENGTH.unpack_from(text, len(text) - _LENGTH.size)
        fields += 1


def request_headers(properties: dict[str, Any]) -> dict[str, str]:
    """Return the request's own headers out of TorchServe's mixture.

    TorchServe puts the headers of form parts, as dictionaries, beside the request's, as text.
    """
    return {name: value for name, value in properties.items() if isinstance(value, str)}
