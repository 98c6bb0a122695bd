"""Debian's promtool, without installing it for the whole machine."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CACHE = Path(sys.prefix) / "promtool"


def promtool() -> str:
    """Return the program: from PATH, else out of Debian's package, kept beside the environment."""
    if found := shutil.which("promtool"):
        return found
    program = CACHE / "usr" / "bin" / "promtool"
    if not program.is_file():
        if not shutil.which("apt-get"):
            pytest.skip("no promtool in PATH, and no apt-get to fetch Debian's package prometheus")
        CACHE.mkdir(exist_ok=True)
        fetch = ["apt-get", "download", "-q", "prometheus"]
        if subprocess.run(fetch, cwd=CACHE, capture_output=True, check=False).returncode != 0:
            # A fresh image has no lists of packages yet.
            subprocess.run(["apt-get", "update", "-q"], capture_output=True, check=False)
            subprocess.run(fetch, cwd=CACHE, capture_output=True, check=True)
        package = next(CACHE.glob("prometheus_*.deb"))
        subprocess.run(["dpkg", "-x", str(package), str(CACHE)], check=True)
        package.unlink()
    return str(program)


def run_promtool(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [promtool(), *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
