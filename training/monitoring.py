"""Where a run's figures go: a JSON Lines log, TensorBoard, and a Prometheus push gateway."""

import http.client
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from prometheus_client import CollectorRegistry, Gauge, push_to_gateway
from torch.utils.tensorboard import SummaryWriter

from training.files import write_text

# A gateway that is away must not slow the training down.
PUSH_EVERY_SECONDS = 15.0
PUSH_TIMEOUT_SECONDS = 2.0


class Monitor:
    """Writes figures as they come; on a process that is not the first, writes nothing."""

    def __init__(
        self, log: TextIO | None, board: SummaryWriter | None, run: str, gateway: str | None
    ) -> None:
        self.file = log
        self.board = board
        self.run = run
        self.gateway = gateway
        self.registry = CollectorRegistry()
        self.gauges: dict[str, Gauge] = {}
        self.pushed = 0.0
        self.failures = 0

    @classmethod
    @contextmanager
    def open(
        cls, folder: Path, gateway: str | None, first: bool, step: int, judged: bool
    ) -> Iterator["Monitor"]:
        """Open the log and TensorBoard's events in a run's folder.

        A run that resumes at `step` adds to them; what came after that step will come again, and is
        taken out. So will its figures on dev, unless the step is `judged`.
        """
        if not first:
            yield cls(None, None, folder.name, None)
            return
        _cut_log(folder / "log.jsonl", step, judged)
        with (
            (folder / "log.jsonl").open("a", buffering=1, encoding="utf-8") as log,
            SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1) as board,
        ):
            monitor = cls(log, board, folder.name, gateway)
            yield monitor
            monitor.push(wait=False)

    def log(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        """Write figures of a step; `kind` is "train" or "dev"."""
        if self.file is None or self.board is None:
            return
        entry = {"time": round(time.time(), 3), "step": step, "kind": kind}
        self.file.write(
            json.dumps({**entry, **{k: float(f"{v:.6g}") for k, v in values.items()}}) + "\n"
        )
        for name, value in values.items():
            self.board.add_scalar(f"{kind}/{name}", value, step)
            self._gauge(f"steno_training_{kind}_{name}").set(value)
        self._gauge("steno_training_step").set(step)
        self.push(wait=kind != "dev")

    def _gauge(self, name: str) -> Gauge:
        if name not in self.gauges:
            self.gauges[name] = Gauge(name, name.replace("_", " "), registry=self.registry)
        return self.gauges[name]

    def push(self, wait: bool) -> None:
        """Send the figures to the gateway, if there is one; with `wait`, not more often than needed."""
        if self.gateway is None or (wait and time.monotonic() - self.pushed < PUSH_EVERY_SECONDS):
            return
        self.pushed = time.monotonic()
        try:
            push_to_gateway(
                self.gateway,
                job="steno-training",
                registry=self.registry,
                grouping_key={"run": self.run},
                timeout=PUSH_TIMEOUT_SECONDS,
            )
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.failures += 1
            if self.failures == 1:  # said once; the log in the run's folder is whole anyway
                print(f"the push gateway {self.gateway} cannot be reached: {error}")


def _cut_log(path: Path, step: int, judged: bool) -> None:
    """Keep the whole lines of a log up to a step, its figures on dev only if it is `judged`."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
            again = entry["kind"] == "dev" and not judged
            if entry["step"] > step or (entry["step"] == step and again):
                break
        except ValueError:  # torn by a power cut
            break
        kept.append(line + "\n")
    write_text(path, "".join(kept))
