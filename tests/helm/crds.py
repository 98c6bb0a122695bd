"""Custom resources against the operators' own schemas."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
from cloudcoil.models.cert_manager import v1 as cert_manager
from cloudcoil.models.keda import v1alpha1 as keda
from cloudcoil.models.prometheus_operator import v1 as prometheus_operator
from kubeflow_trainer_api import models as trainer
from pydantic import BaseModel, ValidationError

from tests.helm.chart import Manifest

# Kinds whose schema a package has as classes.
MODELS: dict[str, type[BaseModel]] = {
    "Certificate": cert_manager.Certificate,
    "PrometheusRule": prometheus_operator.PrometheusRule,
    "ScaledObject": keda.ScaledObject,
    "ServiceMonitor": prometheus_operator.ServiceMonitor,
}
# No Python package has these; each file says where it is from.
FILES = {"HTTPRoute": Path(__file__).parent / "schemas" / "httproute.json"}
KINDS = {*MODELS, *FILES, "TrainJob"}


def crd_problems(manifest: Manifest) -> list[str]:
    """What the operator's schema refuses or does not know."""
    kind = manifest["kind"]
    if kind in FILES:
        schema = closed(json.loads(FILES[kind].read_text()))
        errors = jsonschema.Draft7Validator(schema).iter_errors(manifest)
        return [f"{kind} {list(error.path)}: {error.message}" for error in errors]
    try:
        known = _known(manifest)
    except ValidationError as error:
        return [f"{problem['loc']}: {problem['msg']}" for problem in error.errors()]
    # The classes read over what they do not know.
    return list(_missing(manifest, known, kind))


def _known(manifest: Manifest) -> Any:
    """What the operator's classes keep of a manifest."""
    if manifest["kind"] == "TrainJob":
        # Its quantities are objects, which only from_dict makes of text.
        job = trainer.TrainerV1alpha1TrainJob.from_dict(manifest)
        return job.to_dict() if job else {}
    model = MODELS[manifest["kind"]].model_validate(manifest)
    return model.model_dump(mode="json", by_alias=True, exclude_unset=True)


def closed(schema: Any) -> Any:
    """A schema that also refuses what it does not name, as `kubectl apply` does."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: closed(value) for key, value in schema.items()}
    if isinstance(inner.get("properties"), dict) and inner.get("type") == "object":
        inner.setdefault("additionalProperties", False)
    return inner


def _missing(given: Any, known: Any, path: str) -> Iterator[str]:
    if isinstance(given, dict) and isinstance(known, dict):
        for key, value in given.items():
            if key in known:
                yield from _missing(value, known[key], f"{path}.{key}")
            else:
                yield f"{path}.{key} is unknown"
    elif isinstance(given, list) and isinstance(known, list) and len(given) == len(known):
        for number, (mine, other) in enumerate(zip(given, known, strict=True)):
            yield from _missing(mine, other, f"{path}[{number}]")
    elif isinstance(given, dict | list):
        yield f"{path} is unknown"
