"""The two messages of TorchServe's gRPC interface that a prediction needs.

They are declared here as in `inference.proto` of TorchServe 0.12 (it lies in its model-server.jar),
so that no generated code has to be kept, and no protoc installed.
"""

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    MessageOptions,
)
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

PACKAGE = "org.pytorch.serve.grpc.inference"
METHOD = f"/{PACKAGE}.InferenceAPIsService/Predictions"

_STRING, _BYTES, _MESSAGE = (
    FieldDescriptorProto.TYPE_STRING,
    FieldDescriptorProto.TYPE_BYTES,
    FieldDescriptorProto.TYPE_MESSAGE,
)


def _field(name: str, number: int, type: FieldDescriptorProto.Type) -> FieldDescriptorProto:
    return FieldDescriptorProto(
        name=name, number=number, type=type, label=FieldDescriptorProto.LABEL_OPTIONAL
    )


def _file() -> FileDescriptorProto:
    entry = DescriptorProto(
        name="InputEntry",
        field=[_field("key", 1, _STRING), _field("value", 2, _BYTES)],
        options=MessageOptions(map_entry=True),
    )
    inputs = FieldDescriptorProto(
        name="input",
        number=3,
        type=_MESSAGE,
        type_name=f".{PACKAGE}.PredictionsRequest.InputEntry",
        label=FieldDescriptorProto.LABEL_REPEATED,
    )
    request = DescriptorProto(
        name="PredictionsRequest",
        field=[_field("model_name", 1, _STRING), inputs],
        nested_type=[entry],
    )
    response = DescriptorProto(name="PredictionResponse", field=[_field("prediction", 1, _BYTES)])
    return FileDescriptorProto(
        name="steno/inference.proto",
        package=PACKAGE,
        syntax="proto3",
        message_type=[request, response],
    )


_pool = DescriptorPool()  # one of our own: another library may have registered TorchServe's
_pool.Add(_file())
PredictionsRequest = GetMessageClass(_pool.FindMessageTypeByName(f"{PACKAGE}.PredictionsRequest"))
PredictionResponse = GetMessageClass(_pool.FindMessageTypeByName(f"{PACKAGE}.PredictionResponse"))
