from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import pytest

from loadtest.inference import METHOD, PredictionResponse, PredictionsRequest
from loadtest.recordings import Recording
from loadtest.transports import Grpc

CLIP = Recording("command", "clip", b"sound", 1.0, {"response_format": "json"})
Behave = Callable[[object, grpc.ServicerContext], object]


@contextmanager
def served(behave: Behave) -> Iterator[str]:
    """The address of a server whose Predictions does so."""
    service, _, method = METHOD[1:].partition("/")
    handler = grpc.unary_unary_rpc_method_handler(
        behave,
        request_deserializer=PredictionsRequest.FromString,
        response_serializer=PredictionResponse.SerializeToString,
    )
    server = grpc.server(ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler(service, {method: handler})]
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None)


def status(host: str) -> int:
    transport = Grpc(host, token=None, timeout=10.0)
    try:
        return transport.send(CLIP).status
    finally:
        transport.close()


def failing(code: grpc.StatusCode, details: str) -> Behave:
    return lambda request, context: context.abort(code, details)


@pytest.mark.parametrize(
    ("code", "details", "wanted"),
    [
        (grpc.StatusCode.INTERNAL, 'Model "asr" has no worker to serve inference request.', 503),
        (grpc.StatusCode.UNAVAILABLE, "Received http2 header with status: 503", 503),
        (grpc.StatusCode.INTERNAL, "InternalServerException()", 500),
        (grpc.StatusCode.INVALID_ARGUMENT, "no input", 400),
    ],
)
def test_only_a_full_queue_and_a_gateways_503_are_refusals(
    code: grpc.StatusCode, details: str, wanted: int
) -> None:
    with served(failing(code, details)) as host:
        assert status(host) == wanted


def test_a_server_that_is_gone_gives_no_answer() -> None:
    with pytest.raises(ConnectionError, match="connect"):
        status("127.0.0.1:9")
    with (
        served(failing(grpc.StatusCode.UNAVAILABLE, "Socket closed")) as host,
        pytest.raises(ConnectionError, match="Socket closed"),
    ):
        status(host)


def test_messages_are_on_the_wire_as_torchserves_proto_has_them() -> None:
    """Field 1 model_name, field 3 a map of input; field 1 prediction (inference.proto, 0.12)."""
    request = PredictionsRequest(model_name="asr", input={"data": b"x"})
    assert request.SerializeToString() == b"\x0a\x03asr\x1a\x09\x0a\x04data\x12\x01x"
    assert PredictionResponse.FromString(b"\x0a\x02hi\x12\x01s").prediction == b"hi"
    assert METHOD == "/org.pytorch.serve.grpc.inference.InferenceAPIsService/Predictions"
