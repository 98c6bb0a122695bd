"""One system's turn, in a process of its own: load it, transcribe groups of clips, time each group.

    OMP_NUM_THREADS=N PYTHON -m tests.benchmarks.accuracy_worker JOB.json

`accuracy` starts it, with the product's Python or the peers'. The job names the system, the clips and
where to put the answer; nothing but numpy is imported before the process is bound to its cores.
"""

import json
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.accuracy_systems import Loaded


def load(job: dict[str, Any]) -> Loaded:
    """Load a system; its packages are imported only here, because each Python has its own."""
    system = job["system"]
    if system["loader"] == "steno":
        from tests.benchmarks.accuracy_steno import load_steno

        return load_steno(**system["options"], batched=system["batched"])
    from tests.benchmarks.peers import load_faster_whisper, load_pocketsphinx

    if system["loader"] == "pocketsphinx":
        return load_pocketsphinx()
    return load_faster_whisper(
        **system["options"], batched=system["batched"], threads=job["threads"]
    )


def main() -> None:
    """Do the job of the file that the command line names."""
    job = json.loads(Path(sys.argv[1]).read_text())
    cores = sorted(os.sched_getaffinity(0))[: job["threads"]]
    os.sched_setaffinity(0, cores)  # libraries that heed no variable stay within them too
    system = load(job)
    with np.load(job["audio"]) as archive:
        clips = {i: archive[f"arr_{i}"] for group in job["groups"] for i in group}
    # A first pass sets up threads and kernels.
    system.transcribe([max(clips.values(), key=len)])
    texts: dict[int, str] = {}
    seconds = []
    for group in job["groups"]:
        started = time.perf_counter()
        found = system.transcribe([clips[i] for i in group])
        seconds.append(time.perf_counter() - started)
        texts.update(zip(group, found, strict=True))
    answer = {
        "texts": texts,
        "seconds": seconds,
        "model_bytes": system.model_bytes,
        "versions": {package: version(package) for package in system.packages},
    }
    Path(job["answer"]).write_text(json.dumps(answer))


if __name__ == "__main__":
    main()
