"""How many CPUs this process may use."""

import math
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def cgroup_cpus(root: Path = CGROUP) -> float | None:
    """Return the container's CPU limit, or None where there is none.

    A Kubernetes CPU limit is a quota of time and not a set of cores, so the number of cores that
    the process sees says nothing about it: a pod limited to 2 CPUs on a node of 64 would start
    64 threads and spend its quota on switching between them.
    """
    version_2 = root / "cpu.max"
    if version_2.is_file():
        quota, period = version_2.read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    version_1 = root / "cpu" / "cpu.cfs_quota_us"
    if version_1.is_file():
        quota_us = int(version_1.read_text())
        period_us = int((root / "cpu" / "cpu.cfs_period_us").read_text())
        return None if quota_us <= 0 else quota_us / period_us
    return None


def threads_for_worker(workers: int, root: Path = CGROUP) -> int:
    """Return a fair share of the usable CPUs for one of `workers` processes, at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    limit = cgroup_cpus(root)
    usable = cores or 1 if limit is None else min(cores or 1, math.ceil(limit))
    return max(1, usable // workers)
