"""Custom resources against the operators' own schemas."""

from typing import Any

from cloudcoil.models.cert_manager import v1 as cert_manager
from cloudcoil.models.keda import v1alpha1 as keda
from cloudcoil.models.prometheus_operator import v1 as prometheus_operator
from pydantic import BaseModel, ValidationError

from tests.helm.chart import Manifest

KINDS: dict[str, type[BaseModel]] = {
    "Certificate": cert_manager.Certificate,
    "PrometheusRule": prometheus_operator.PrometheusRule,
    "ScaledObject": keda.ScaledObject,
    "ServiceMonitor": prometheus_operator.ServiceMonitor,
}


def crd_problems(manifest: Manifest) -> list[str]:
    """What the operator's schema refuses or does not know."""
    try:
        model = KINDS[manifest["kind"]].model_validate(manifest)
    except ValidationError as error:
        return [f"{problem['loc']}: {problem['msg']}" for problem in error.errors()]
    # The models read over what they do not know.
    known = model.model_dump(mode="json", by_alias=True, exclude_unset=True)
    return list(_missing(manifest, known, manifest["kind"]))


def _missing(given: Any, known: Any, path: str) -> list[str]:
    if isinstance(given, dict):
        if not isinstance(known, dict):
            return [f"{path} is unknown"]
        return [
            problem
            for key, value in given.items()
            for problem in (
                _missing(value, known[key], f"{path}.{key}")
                if key in known
                else [f"{path}.{key} is unknown"]
            )
        ]
    if isinstance(given, list):
        if not isinstance(known, list) or len(known) != len(given):
            return [f"{path} is unknown"]
        return [
            problem
            for number, (mine, other) in enumerate(zip(given, known, strict=True))
            for problem in _missing(mine, other, f"{path}[{number}]")
        ]
    return []
