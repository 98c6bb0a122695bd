"""Scan the chart, by every shipped set of values, and k8s/ for careless settings: make scan

    python -m tests.helm.scan PATH_OF_TRIVY

Ends with 1 if trivy finds anything that helm/trivyignore gives no reason for.
"""

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml

from tests.helm.chart import CI_FILES, VALUE_FILES, render, values_of
from training.package import ROOT


def main(trivy: str) -> int:
    """Return trivy's exit status, 1 when there are findings."""
    with TemporaryDirectory(prefix="steno-scan-") as name:
        folder = Path(name)
        for path in [*VALUE_FILES, *CI_FILES]:
            text = yaml.safe_dump_all(render(values_of(path)))
            (folder / f"chart-{path.stem}.yaml").write_text(text)
        for path in (ROOT / "k8s").rglob("*.yaml"):
            (folder / f"k8s-{path.parent.name}-{path.name}").write_text(path.read_text())
        command = [
            *(trivy, "config", "--quiet", "--skip-check-update", "--exit-code", "1"),
            *("--ignorefile", str(ROOT / "helm" / "trivyignore"), str(folder)),
        ]
        return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
