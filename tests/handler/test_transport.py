"""The frames that TorchServe's Java side sends to a worker, read from a real socket."""

import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Sequence

import pytest
from ts.protocol import otf_message_handler as frames
from ts.service import Service

from handler.transport import DECODE_SWITCH, MOST_PARTS, Part, keep_parts_as_sent
from training.package import ROOT

END = struct.pack("!i", -1)


@pytest.fixture(autouse=True)
def undo(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a worker does once for its life, done for one test."""
    monkeypatch.setenv(DECODE_SWITCH, os.environ.get(DECODE_SWITCH, "true"))
    for name in ("_retrieve_buffer", "_retrieve_input_data"):
        monkeypatch.setattr(frames, name, getattr(frames, name))
    kept = staticmethod(Service.retrieve_data_for_inference)
    monkeypatch.setattr(Service, "retrieve_data_for_inference", kept)
    keep_parts_as_sent()


def text(value: bytes) -> bytes:
    return struct.pack("!i", len(value)) + value


def request(number: int, parts: Sequence[Part]) -> bytes:
    headers = text(b"content-type") + text(b"a/b")
    sent = b"".join(
        text(part.name.encode()) + text(part.content_type.encode()) + text(part.value)
        for part in parts
    )
    return text(b"id-%d" % number) + headers + END + sent + END


def received(*batches: Sequence[Sequence[Part]]) -> list[list[list[Part]]]:
    """What a handler gets of batches of requests that come one after the other."""
    ours, theirs = socket.socketpair()
    message = b"".join(
        b"I" + b"".join(request(i, parts) for i, parts in enumerate(batch)) + END
        for batch in batches
    )
    sender = threading.Thread(target=theirs.sendall, args=(message,))
    sender.start()
    with ours, theirs:
        items = []
        for batch in batches:
            command, requests = frames.retrieve_msg(ours)
            assert command == b"I"
            headers, parts, ids = Service.retrieve_data_for_inference(requests)
            assert list(ids.values()) == [f"id-{i}" for i in range(len(batch))]
            assert [h.get_request_property("content-type") for h in headers] == ["a/b"] * len(batch)
            items.append(parts)
        sender.join()
    return items


def test_every_part_comes_as_it_was_sent() -> None:
    audio = bytes(range(256)) * 4096
    batch = [
        [Part("body", "application/json", b"{}")],
        [Part("file", "audio/wav", audio), Part("mode", "text/plain", b"fast")],
        [Part("mode", "", b"fast"), Part("mode", "", b""), Part("mode", "text/plain", b"\xff")],
        [],
    ]
    assert received(batch, batch[:2]) == [batch, batch[:2]]


def test_of_many_parts_some_are_kept_and_the_next_request_is_whole() -> None:
    # Among them what looks like the end of a list, and parts without a name or a value.
    odd = [
        Part("", "", b""),
        Part("x", END.hex(), END),
        Part("", "a", END * 3),
        Part("yy", "", b""),
    ]
    short = [Part("file", "", b"audio")]
    for count in (MOST_PARTS, MOST_PARTS + 1, MOST_PARTS + 2, 5_000):
        many = (odd * count)[:count]
        batch, after = received([short, many, short], [many, short])
        assert batch == [short, many[: MOST_PARTS + 1], short]
        assert after == [many[: MOST_PARTS + 1], short]


def test_a_worker_ends_when_java_has_gone() -> None:
    code = (
        "import socket\n"
        "from ts.protocol import otf_message_handler as frames\n"
        "from handler.transport import keep_parts_as_sent\n"
        "keep_parts_as_sent()\n"
        "ours, theirs = socket.socketpair()\n"
        "theirs.sendall(b'I' + bytes([0, 0, 0, 9]) + b'id')\n"
        "theirs.close()\n"
        "frames.retrieve_msg(ours)\n"
        "raise RuntimeError('it went on')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
