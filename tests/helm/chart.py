"""The chart, rendered by Helm itself."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import helm_python as helm
import yaml

from training.package import ROOT

CHART = ROOT / "helm" / "steno"
NAMESPACE = "speech"
# What a user has to give; the chart has no default for it.
REQUIRED: dict[str, Any] = {
    "image": {"repository": "registry.example.com/steno"},
    "model": {"store": "s3://models/steno"},
    "auth": {"existingSecret": "steno-tokens"},
}
VALUE_FILES = sorted((CHART / "values").glob("*.yaml"))
CI_FILES = sorted((CHART / "ci").glob("*.yaml"))

Manifest = dict[str, Any]


@cache
def chart(path: Path = CHART) -> helm.Chart:
    return helm.Chart.load(path)


def merged(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Lay values over each other as Helm does: maps are merged, all else is replaced."""
    result: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            if isinstance(value, Mapping) and isinstance(result.get(key), Mapping):
                result[key] = merged(result[key], value)
            else:
                result[key] = value
    return result


def values_of(path: Path) -> dict[str, Any]:
    """The values of a file over those that a user has to give, where it does not replace them."""
    given = yaml.safe_load(path.read_text()) or {}
    base = merged(REQUIRED)
    if given.get("model", {}).get("claim"):
        del base["model"]
    return merged(base, given)


def render(
    values: Mapping[str, Any], *, release: str = "demo", source: helm.Chart | None = None
) -> list[Manifest]:
    """The objects of one release, without the notes.

    Raises:
        helm.HelmError: the values are refused, or a template fails.
    """
    files = (source or chart()).render(dict(values), name=release, namespace=NAMESPACE)
    documents = [
        yaml.safe_load_all(text) for name, text in files.items() if not name.endswith(".txt")
    ]
    return [manifest for document in documents for manifest in document if manifest]


def notes(values: Mapping[str, Any]) -> str:
    files = chart().render(dict(values), name="demo", namespace=NAMESPACE)
    return files["steno/templates/NOTES.txt"]


def of_kind(manifests: list[Manifest], kind: str) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] == kind]
