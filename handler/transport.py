"""How a TorchServe worker hands over a request, with two of its habits undone.

TorchServe 0.12 parses JSON and decodes text parts on the worker's only thread before the handler
is called, and keeps only the last of several form fields with one name, so a form with two files
looks like a form with one. Both happen in Python, in the worker; the frame from its Java side
still has everything. TorchServe is frozen at 0.12.0 and so are the names used here.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

# Read by TorchServe for every request part.
DECODE_SWITCH = "TS_DECODE_INPUT_REQUEST"


@dataclass(frozen=True)
class Part:
    """One form field, or the whole body under the name "body"."""

    name: str
    content_type: str
    value: bytes | bytearray


def keep_parts_as_sent() -> None:
    """Make TorchServe hand each request to the handler as a list of `Part`, all of them, raw.

    To be called once in a worker, before the first request.
    """
    from ts.service import Service

    os.environ[DECODE_SWITCH] = "false"
    with_last_of_each = Service.retrieve_data_for_inference

    def with_all_parts(batch: Sequence[dict[str, Any]]) -> tuple[Any, list[list[Part]], Any]:
        headers, _, request_ids = with_last_of_each(batch)
        items = [
            [Part(p["name"], p["contentType"], p["value"]) for p in request["parameters"]]
            for request in batch
        ]
        return headers, items, request_ids

    Service.retrieve_data_for_inference = staticmethod(with_all_parts)


def request_headers(properties: dict[str, Any]) -> dict[str, str]:
    """Return the request's own headers out of TorchServe's mixture.

    TorchServe puts the headers of form parts, as dictionaries, beside the request's, as text.
    """
    return {name: value for name, value in properties.items() if isinstance(value, str)}
