"""An archive whose TorchServe settings differ from the shipped ones, for the benchmarks of serving."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from training.package import ROOT, build_package


@dataclass(frozen=True)
class Setting:
    """What differs from `handler/model-config.yaml`; None is as it stands there.

    Attributes:
        workers: of the model, each with `threads` threads.
        batch: most requests recognized together.
        delay: milliseconds that the first of them waits for others.
    """

    workers: int | None = None
    threads: int | None = None
    batch: int | None = None
    delay: int | None = None

    def config(self) -> dict[str, Any]:
        """TorchServe's settings for the model."""
        path = ROOT / "handler" / "model-config.yaml"
        values: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
        changes = {
            "minWorkers": self.workers,
            "maxWorkers": self.workers,
            "batchSize": self.batch,
            "maxBatchDelay": self.delay,
        }
        values |= {key: value for key, value in changes.items() if value is not None}
        if self.threads:
            values["handler"]["cpu_threads"] = self.threads
        return values

    def build(self, checkpoint: Path, folder: Path) -> Path:
        """Pack the archive with these settings; returns the folder that it is in."""
        config = folder / "model-config.yaml"
        config.write_text(yaml.safe_dump(self.config()), encoding="utf-8")
        build_package(checkpoint, folder / "steno", model_config=config)
        return folder / "steno"
