"""Let a pod's server end without losing a request (its preStop hook): python -m handler.drain

1. Readiness turns false, and no new caller is sent here.
2. For some seconds requests still come, from those who have not heard yet. They are served.
3. Wait until no request waits and no worker is at work, for as long as java gathers a batch and
   `--settle` says besides. A request that is still being received is in neither place: the second
   step must last as long as the longest upload.
4. End; Kubernetes stops the server.

When `--timeout` is over it ends too, since Kubernetes would kill the server soon after. A java that
hangs is killed at once: it would not hear SIGTERM, and Kubernetes would wait for it for all of the
pod's grace period.
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import requests

from handler import management
from handler.busy import is_busy
from handler.launch import FOLDER
from handler.management import ManagementError
from handler.pod_key import tell

POLL_SECONDS = 0.25
# A server that is gone cannot be waited for, but one slow answer does not mean that it is.
LOST_SECONDS = 3 * management.TIMEOUT_SECONDS
# A worker that was killed has loaded the model again in less. One that TorchServe has given up does not
# come back, and what waits for it would keep the pod for the whole timeout.
WORKERLESS_SECONDS = 180.0
# Where TorchServe's wrapper notes the number of java's process, in the server's temporary folder.
PID_FILE = ".model_server.pid"


class NoWorkerError(ManagementError):
    """Requests wait, and there is no worker to answer them."""


@dataclass(frozen=True)
class Drain:
    """How to drain, in seconds.

    Attributes:
        propagation: until nobody sends new requests any more.
        settle: without any request waiting or in a worker's hands; longer than the time in which
            java gathers a batch and writes an answer.
        timeout: for all of it.
    """

    propagation: float
    settle: float
    timeout: float

    def wait(self, idle: Callable[[], bool]) -> bool:
        """Wait as described; return whether all requests were served.

        Args:
            idle: whether nothing waits and nothing is worked on. Raises ManagementError when the
                server cannot be asked, NoWorkerError when nobody would answer what waits.

        Raises:
            ManagementError: the server could not be asked for LOST_SECONDS.
        """
        deadline = time.monotonic() + self.timeout
        time.sleep(max(0.0, min(self.propagation, self.timeout)))
        quiet_since = answered_at = served_at = time.monotonic()
        while time.monotonic() < deadline:
            try:
                quiet = idle()
                answered_at = served_at = time.monotonic()
            except NoWorkerError:  # the server answers, and nobody serves
                answered_at = time.monotonic()
                if answered_at - served_at > WORKERLESS_SECONDS:
                    return False
                quiet = False
            except ManagementError:
                if time.monotonic() - answered_at > LOST_SECONDS:
                    raise
                quiet = False
            if not quiet:
                quiet_since = time.monotonic()
            elif time.monotonic() - quiet_since >= self.settle:
                return True
            time.sleep(POLL_SECONDS)
        return False


def is_idle(url: str, folder: Path) -> bool:
    """Tell whether no request waits and no worker is at work.

    Raises:
        NoWorkerError: requests wait, and no worker is READY or at work.
        ManagementError: the server cannot be asked.
    """
    # In this order: a request goes from the queue into a worker's hands, never back.
    state = management.describe(url)
    working = is_busy(folder)
    if state.pending and not state.ready and not working:
        raise NoWorkerError(f"{state.pending} requests wait, and none of {state.workers} is READY")
    return state.pending == 0 and not working


def batch_delay(url: str) -> float:
    """Return the seconds for which the server gathers a batch."""
    try:
        return management.describe(url).batch_delay
    except ManagementError:  # It hangs or is gone, and `wait` will find that out.
        return 0.0


def kill_java(folder: Path) -> bool:
    """Kill the java of the server whose temporary folder this is; False if there is none."""
    try:
        process = psutil.Process(int((folder / PID_FILE).read_text()))
        if process.name() != "java":  # its number is another's by now
            return False
        os.kill(process.pid, signal.SIGKILL)
    except (OSError, ValueError, psutil.NoSuchProcess):
        return False
    return True


def main(arguments: list[str] | None = None) -> int:
    """Drain; the exit status is 1 when requests may have been lost."""
    parser = argparse.ArgumentParser(prog="python -m handler.drain", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--propagation", type=float, default=15.0, help="seconds")
    parser.add_argument("--settle", type=float, default=2.0, help="seconds, besides maxBatchDelay")
    parser.add_argument("--timeout", type=float, required=True, help="seconds for all of it")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="the server's temporary folder")
    parser.add_argument("--management", default=management.DEFAULT_URL, help="URL")
    parser.add_argument("--exporter", help="URL of the exporter, which answers readiness probes")
    parser.add_argument("--key", type=Path, help="the pod's key, for the exporter")
    options = parser.parse_args(arguments)
    if options.exporter and not options.key:
        parser.error("--exporter needs --key: nobody else is believed")

    start = time.monotonic()
    if options.exporter:
        try:
            tell(options.exporter, "drain", options.key)
        except (requests.RequestException, OSError) as error:
            # Without it, Kubernetes takes a pod that ends out of its services all the same.
            print(f"warning: the exporter was not told of the drain: {error}", file=sys.stderr)
    settle = batch_delay(options.management) + options.settle
    # A server that took long to answer has used up some of the time.
    left = options.timeout - (time.monotonic() - start)
    why = ""
    try:
        served = Drain(options.propagation, settle, left).wait(
            partial(is_idle, options.management, options.folder)
        )
    except ManagementError as error:
        served = False
        killed = kill_java(options.folder)
        why = f"{error}; {'java was killed' if killed else 'there is no java'}, "
    after = f"after {time.monotonic() - start:.1f} s"
    if not served:
        print(f"gave up {after}: {why}requests may be lost", file=sys.stderr)
        return 1
    print(f"no request is left {after}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
