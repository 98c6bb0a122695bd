from loadtest.inference import METHOD, PredictionResponse, PredictionsRequest


def test_messages_are_on_the_wire_as_torchserves_proto_has_them() -> None:
    """Field 1 model_name, field 3 a map of input; field 1 prediction (inference.proto, 0.12)."""
    request = PredictionsRequest(model_name="asr", input={"data": b"x"})
    assert request.SerializeToString() == b"\x0a\x03asr\x1a\x09\x0a\x04data\x12\x01x"
    assert PredictionResponse.FromString(b"\x0a\x02hi\x12\x01s").prediction == b"hi"
    assert METHOD == "/org.pytorch.serve.grpc.inference.InferenceAPIsService/Predictions"
