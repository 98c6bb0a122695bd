"""What one batch reports to Prometheus; the names are declared in metrics.yaml.

TorchServe drops what metrics.yaml does not declare. A worker has no HTTP port of its own: each
value is a line on its standard output, which TorchServe's Java side counts and shows on 8082.
"""

from collections import Counter
from typing import Any

from handler.batch import BatchAnswer

AUDIO_SECONDS = "steno_audio_seconds_total"
ERRORS = "steno_errors_total"
BATCH_SIZE = "steno_batch_size"
DECODE_SECONDS = "steno_decode_seconds"
MODEL_SECONDS = "steno_model_seconds"
REAL_TIME_FACTOR = "steno_real_time_factor"
PADDED_FRACTION = "steno_padded_fraction"


def report(batch: BatchAnswer, metrics: Any) -> None:
    """Emit one batch's figures.

    Args:
        batch: the answered batch.
        metrics: TorchServe's metrics cache (`context.metrics`).
    """
    from ts.metrics.dimension import Dimension
    from ts.metrics.metric_type_enum import MetricTypes

    def counter(name: str, value: float, unit: str, *dimensions: Any) -> None:
        metrics.add_metric(name, value, unit, None, list(dimensions), MetricTypes.COUNTER)

    def histogram(name: str, value: float, unit: str) -> None:
        metrics.add_metric(name, value, unit, None, [], MetricTypes.HISTOGRAM)

    histogram(BATCH_SIZE, len(batch.answers), "items")
    histogram(DECODE_SECONDS, batch.decode_seconds, "seconds")
    for error, count in Counter(answer.error for answer in batch.answers if answer.error).items():
        counter(ERRORS, count, "count", Dimension("Type", error))
    if batch.audio_seconds > 0:
        spent = batch.decode_seconds + batch.model_seconds
        counter(AUDIO_SECONDS, batch.audio_seconds, "seconds")
        histogram(MODEL_SECONDS, batch.model_seconds, "seconds")
        histogram(REAL_TIME_FACTOR, spent / batch.audio_seconds, "ratio")
    if batch.padded_seconds > 0:  # the network hears no silence, so there may be none
        padding = 1 - batch.heard_seconds / batch.padded_seconds
        histogram(PADDED_FRACTION, padding, "ratio")
