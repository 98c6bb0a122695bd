"""What one serving pod takes on this machine, for the sizing table of docs/deployment.md.

    python -m tests.benchmarks.pod_size

Starts a pod's processes with the shipped checkpoint, recognizes full batches, and prints each
container's memory (resident, without what processes share counted twice) and the times to start.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import psutil
import requests

from tests.e2e.inputs import encoded, speech
from tests.handler.pod import Pod, publish, wait_until
from tests.random_checkpoint import SHIPPED
from training.package import build_package

BATCH = 8
LENGTHS = (5.0, 60.0)


def main() -> None:
    """Print the table."""
    with TemporaryDirectory(prefix="steno-pod-") as name:
        folder = Path(name)
        package = build_package(SHIPPED, folder / "dist")
        publish(folder / "store", package.path, "v1")
        with Pod(folder / "store") as pod:
            start = time.perf_counter()
            pod.fetch()
            fetched = time.perf_counter() - start
            pod.start_exporter()
            start = time.perf_counter()
            server = pod.start_server()
            wait_until(pod.ready, "a worker is READY")
            ready = time.perf_counter() - start
            print(f"archive {package.path.stat().st_size / 1e6:.0f} MB")
            print(f"fetch, verify, configure {fetched:.1f} s; server to ready {ready:.1f} s")
            print(
                f"{'idle':>24}: server {memory(server.pid):.0f} MB, exporter {exporter(pod):.0f} MB"
            )
            for seconds in LENGTHS:
                body = encoded(np.resize(speech(), int(seconds * 16_000)))
                with ThreadPoolExecutor(BATCH) as callers:
                    jobs = [callers.submit(call, pod, body) for _ in range(BATCH)]
                    peak = 0.0
                    while not all(job.done() for job in jobs):
                        peak = max(peak, memory(server.pid))
                        time.sleep(0.2)
                    assert all(job.result() == 200 for job in jobs)
                print(f"{f'{BATCH} clips of {seconds:.0f} s':>24}: server {peak:.0f} MB at most")


def call(pod: Pod, body: bytes) -> int:
    headers = {"Content-Type": "audio/wav", **pod.authorization}
    return requests.post(pod.predictions_url, data=body, headers=headers, timeout=1200).status_code


def memory(root: int) -> float:
    """Megabytes of a process and its descendants: proportional set sizes."""
    total = 0
    for process in [psutil.Process(root), *psutil.Process(root).children(recursive=True)]:
        try:
            total += process.memory_full_info().pss
        except psutil.NoSuchProcess:
            continue
    return total / 1e6


def exporter(pod: Pod) -> float:
    found = [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if "handler.exporter" in (process.info["cmdline"] or [])
        and str(pod.exporter_port) in process.info["cmdline"]
    ]
    return memory(found[0])


if __name__ == "__main__":
    main()
