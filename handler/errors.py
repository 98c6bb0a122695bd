"""What goes wrong with one request, in the words the caller reads."""

import json
from http import HTTPStatus

MAX_QUOTED = 80
MAX_MESSAGE = 1_000


class RequestError(ValueError):
    """The caller asked for something that cannot be done.

    Attributes:
        type: a stable word for programs, e.g. "invalid_value".
        param: the field at fault, or None when it is the request as a whole; cut if it is long.
        status: the HTTP status, a 4xx.
    """

    def __init__(
        self,
        type: str,
        message: str,
        *,
        param: str | None = None,
        status: HTTPStatus = HTTPStatus.BAD_REQUEST,
    ) -> None:
        # An answer does not grow with what a caller made up: TorchServe ends a worker over a large one.
        super().__init__(message[:MAX_MESSAGE])
        self.type = type
        self.param = param and param[:MAX_QUOTED]
        self.status = status


def error_body(type: str, message: str, param: str | None = None) -> str:
    """Return the JSON that every error answer carries; ASCII, whatever the message quotes."""
    return json.dumps({"error": {"type": type, "message": message, "param": param}})


def quoted(value: object) -> str:
    """Return a value as an error message may show it: one line, cut to a readable length.

    Text is shown in quotes, a number, `true`, `false` and `null` as JSON has them. What holds others is
    named alone: it may be as large as the body, and as deep.
    """
    if isinstance(value, str):
        text = repr(value[:MAX_QUOTED])
    elif isinstance(value, bool | int | float | None):
        text = json.dumps(value)
    else:
        text = "a list" if isinstance(value, list) else "an object"
    return text if len(text) <= MAX_QUOTED else f"{text[:MAX_QUOTED]}..."
