"""A proxy before an S3 server that does to requests what networks and busy servers do."""

import contextlib
import socket
import socketserver
import struct
import threading
import time
from dataclasses import dataclass
from types import TracebackType
from typing import BinaryIO, Self

ERROR_CODES = {
    409: "ConditionalRequestConflict",
    429: "TooManyRequests",
    500: "InternalError",
    503: "SlowDown",
}
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close without a farewell


@dataclass
class Fault:
    """What happens to the first `times` requests with this method and this text in their target.

    Attributes:
        every: only each second of them, or each third.
        status: answer this, and do not ask the server.
        cut_request: reset the connection half-way through the request; the server sees nothing.
        lose_answer: let the server do it, and reset the connection instead of answering.
        cut_answer: end the connection after so many bytes of the answer's body.
        flip: spoil the answer's body at this byte.
        flip_request: spoil the request's body at this byte.
        pause: seconds before the answer.
    """

    method: str
    target: str
    times: int = 1
    every: int = 1
    status: int | None = None
    cut_request: bool = False
    lose_answer: bool = False
    cut_answer: int | None = None
    flip: int | None = None
    flip_request: int | None = None
    pause: float = 0.0


@dataclass(frozen=True)
class Request:
    """A request as it came."""

    method: str
    target: str
    headers: dict[str, str]


class FaultyProxy:
    """Listens on a free port of 127.0.0.1 and hands on to `port`, as a context manager.

    `faults` may be appended to at any time; `requests` has all that came.
    """

    def __init__(self, port: int) -> None:
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self._upstream = ("127.0.0.1", port)
        self._lock = threading.Lock()
        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening; harmless when it has."""
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[socketserver.StreamRequestHandler]:
        proxy = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                proxy._serve(self.connection, self.rfile)

        return Handler

    def _serve(self, client: socket.socket, incoming: BinaryIO) -> None:
        """Deal with one request; every connection carries one only."""
        line = incoming.readline()
        if not line:
            return
        method, target, _ = line.decode().split(" ", 2)
        headers = {}
        while (header := incoming.readline().strip()) != b"":
            name, _, value = header.decode().partition(":")
            headers[name.lower()] = value.strip()
        fault = self._note(Request(method, target, headers))
        size = int(headers.get("content-length", 0))
        if headers.pop("expect", None):
            client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        if fault.cut_request:
            incoming.read(size // 2)
            _reset(client)
            return
        body = _flipped(incoming.read(size), fault.flip_request)
        answer = _error(fault.status) if fault.status else self._ask(line, headers, body)
        time.sleep(fault.pause)
        if fault.lose_answer:
            _reset(client)
            return
        head, _, body = answer.partition(b"\r\n\r\n")
        body = _flipped(body, fault.flip)
        with contextlib.suppress(ConnectionError):  # the client may have waited long enough
            client.sendall(head + b"\r\n\r\n" + body[: fault.cut_answer])

    def _note(self, request: Request) -> Fault:
        with self._lock:
            self.requests.append(request)
            for fault in self.faults:
                if (
                    fault.times
                    and fault.method == request.method
                    and fault.target in request.target
                ):
                    fault.times -= 1
                    if fault.times % fault.every == 0:
                        return fault
        return Fault("", "")

    def _ask(self, line: bytes, headers: dict[str, str], body: bytes) -> bytes:
        lines = [f"{name}: {value}\r\n" for name, value in headers.items() if name != "connection"]
        head = line + "".join(lines).encode() + b"connection: close\r\n\r\n"
        with socket.create_connection(self._upstream, timeout=60) as server:
            server.sendall(head + body)
            answer = bytearray()
            while chunk := server.recv(1 << 16):
                answer += chunk
        return bytes(answer)


def _flipped(body: bytes, at: int | None) -> bytes:
    return body if at is None else body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]


def _error(status: int) -> bytes:
    code = ERROR_CODES[status]
    body = f"<Error><Code>{code}</Code><Message>Please try again.</Message></Error>"
    return (
        f"HTTP/1.1 {status} {code}\r\ncontent-type: application/xml\r\nconnection: close\r\n"
        f"content-length: {len(body)}\r\n\r\n{body}"
    ).encode()


def _reset(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    client.close()  # before socketserver, which would say goodbye first
