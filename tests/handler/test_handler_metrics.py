from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from ts.metrics.metric_cache_yaml_impl import MetricsCacheYamlImpl
from ts.metrics.metric_type_enum import MetricTypes

from handler import metrics
from handler.batch import Answer, BatchAnswer

DECLARED = Path("handler/metrics.yaml")
NAMES = {
    value
    for name, value in vars(metrics).items()
    if name.isupper() and isinstance(value, str) and value.startswith("steno_")
}


def test_what_is_emitted_is_declared_and_what_is_declared_is_emitted() -> None:
    model_metrics = yaml.safe_load(DECLARED.read_text())["model_metrics"]
    declared = {metric["name"] for kind in model_metrics.values() for metric in kind}
    assert declared == NAMES


def test_times_are_declared_in_seconds() -> None:
    model_metrics = yaml.safe_load(DECLARED.read_text())["model_metrics"]
    for metric in (metric for kind in model_metrics.values() for metric in kind):
        if "seconds" in metric["name"]:
            assert metric["unit"] == "seconds"


def recorder(metric: Any, seen: list[tuple[float, list[str]]]) -> Callable[..., None]:
    """Keep what TorchServe would print, once it has found the dimensions right."""

    def record(value: float, dimensions: list[str], request: str) -> None:
        metric._validate_and_get_dimensions(dimensions)
        seen.append((value, dimensions))

    return record


def reported(
    batch: BatchAnswer, monkeypatch: pytest.MonkeyPatch
) -> dict[str, list[tuple[float, list[str]]]]:
    """What TorchServe is given for a batch: of each metric the values with their dimensions."""
    cache = MetricsCacheYamlImpl(str(DECLARED))
    cache.initialize_cache()
    cache.model_name = "asr"
    cache.set_request_ids({0: "a", 1: "b"})
    seen: dict[str, list[tuple[float, list[str]]]] = {}
    for kind in (MetricTypes.COUNTER, MetricTypes.HISTOGRAM):
        for name, metric in cache.cache[kind].items():
            monkeypatch.setattr(
                metric, "add_or_update", recorder(metric, seen.setdefault(name, []))
            )
    metrics.report(batch, cache)
    return {name: values for name, values in seen.items() if values}


def test_torchserve_accepts_every_value_with_its_dimensions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batch = BatchAnswer(
        answers=[Answer("text"), Answer("{}", error="not_audio"), Answer("{}", error="not_audio")],
        decode_seconds=0.5,
        model_seconds=1.5,
        audio_seconds=10.0,
        heard_seconds=10.0,
        padded_seconds=12.5,
    )
    model = ["asr", "Model"]
    assert reported(batch, monkeypatch) == {
        metrics.BATCH_SIZE: [(3, model)],
        metrics.DECODE_SECONDS: [(0.5, model)],
        metrics.MODEL_SECONDS: [(1.5, model)],
        metrics.AUDIO_SECONDS: [(10.0, model)],
        metrics.REAL_TIME_FACTOR: [(0.2, model)],
        metrics.PADDED_FRACTION: [(1 - 10 / 12.5, model)],
        metrics.ERRORS: [(2, ["not_audio", *model])],
    }


def test_a_batch_of_silence_reports_no_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = BatchAnswer(
        [Answer("")], 0.1, 0.1, audio_seconds=5.0, heard_seconds=0.0, padded_seconds=0.0
    )
    found = reported(batch, monkeypatch)
    assert metrics.REAL_TIME_FACTOR in found
    assert metrics.PADDED_FRACTION not in found
