"""Sending one recording, over HTTP or gRPC, with the same kind of answer from both."""

import json
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import urlsplit

import grpc
from geventhttpclient import HTTPClient

from loadtest.inference import METHOD, PredictionResponse, PredictionsRequest
from loadtest.recordings import Recording

PROTOCOLS = ("http", "grpc")

MODEL = "asr"
PATH = f"/predictions/{MODEL}"
CONNECT_SECONDS = 10.0
# gRPC's default of 4 MB is less than the limit of the endpoint.
MESSAGE_BYTES = 64 * 2**20
# TorchServe's words for a full queue; over gRPC they come as INTERNAL.
QUEUE_FULL = "no worker to serve"
# gRPC's words for the 503 of a gateway; UNAVAILABLE is an outage of any other kind, too.
GATEWAY_FULL = "http2 header with status: 503"
# Over gRPC TorchServe drops the status of the handler's answer: its error's type must tell.
SERVER_ERRORS = {"internal_error": 500, "out_of_memory": 503}
STATUS = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 401,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 507,
}


@dataclass(frozen=True)
class Answer:
    """`status` is HTTP's; gRPC's codes are put into it."""

    status: int
    body: bytes


class Transport(Protocol):
    """A caller's connection to the endpoint."""

    def send(self, recording: Recording) -> Answer:
        """Send and wait for the answer. Raises OSError or the like when there is none."""

    def close(self) -> None:
        """Close the connections."""


class Http:
    """A multipart form over HTTP/1.1, with connections kept alive.

    Args:
        host: as "http://127.0.0.1:8080".
        token: TorchServe's inference token, or what a gateway in front wants; None sends none.
        timeout: seconds to wait for an answer.
        connections: requests at a time.
    """

    def __init__(self, host: str, token: str | None, timeout: float, connections: int) -> None:
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._path = urlsplit(host).path.rstrip("/") + PATH
        self._client = HTTPClient.from_url(
            host,
            concurrency=connections,
            connection_timeout=CONNECT_SECONDS,
            network_timeout=timeout,
        )

    def send(self, recording: Recording) -> Answer:
        """POST the form."""
        body, content_type = recording.form
        headers = {**self._headers, "Content-Type": content_type}
        response = self._client.post(self._path, body=body, headers=headers)
        try:
            return Answer(response.status_code, bytes(response.read()))
        finally:
            response.release()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


class Grpc:
    """TorchServe's Predictions, with the form's fields as its inputs.

    Args:
        host: as "127.0.0.1:7070" (without TLS) or "https://asr.example.org:443" (with it).
        token: the inference token; None sends none.
        timeout: seconds to wait for an answer.
    """

    def __init__(self, host: str, token: str | None, timeout: float) -> None:
        self._metadata = [("protocol", "gRPC")]
        if token:
            self._metadata.append(("authorization", f"Bearer {token}"))
        self._timeout = timeout
        scheme, _, address = host.rpartition("://")
        options = [
            ("grpc.max_send_message_length", MESSAGE_BYTES),
            ("grpc.max_receive_message_length", MESSAGE_BYTES),
            ("grpc.use_local_subchannel_pool", 1),  # each caller a connection of its own
        ]
        self._channel = (
            grpc.secure_channel(address, grpc.ssl_channel_credentials(), options)
            if scheme == "https"
            else grpc.insecure_channel(address, options)
        )
        self._predict = self._channel.unary_unary(
            METHOD,
            request_serializer=PredictionsRequest.SerializeToString,
            response_deserializer=PredictionResponse.FromString,
        )

    def send(self, recording: Recording) -> Answer:
        """Call Predictions."""
        inputs = {name: value.encode() for name, value in recording.fields.items()}
        request = PredictionsRequest(model_name=MODEL, input={**inputs, "file": recording.content})
        try:
            reply = self._predict(request, timeout=self._timeout, metadata=self._metadata)
        except grpc.RpcError as error:
            return _refusal(error.code(), error.details() or "")
        return Answer(_status(reply.prediction), reply.prediction)

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()


def _refusal(code: grpc.StatusCode, details: str) -> Answer:
    """HTTP's answer for a call that failed; raises ConnectionError where nobody gave one."""
    if QUEUE_FULL in details or GATEWAY_FULL in details:
        return Answer(503, details.encode())
    if code is grpc.StatusCode.UNAVAILABLE:
        raise ConnectionError(details)
    return Answer(STATUS.get(code, 500), details.encode())


def _status(body: bytes) -> int:
    if not body.startswith(b'{"error"'):
        return 200
    return SERVER_ERRORS.get(json.loads(body)["error"]["type"], 400)
