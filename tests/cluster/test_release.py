"""What release.py says where there is no cluster: why it skips, and never that all is well."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from handler.server import Ports
from training.package import ROOT

pytestmark = pytest.mark.slow


def kubeconfig(server: str, context: str = "here") -> str:
    return json.dumps(
        {
            "current-context": context,
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
            "clusters": [{"name": "here", "cluster": {"server": server}}],
            "users": [{"name": "me", "user": {}}],
        }
    )


@pytest.mark.parametrize(
    ("image", "content", "reason"),
    [
        ("", kubeconfig("http://127.0.0.1:1"), "no serving image"),
        ("registry/steno-serve:1", None, "the kubeconfig does not tell of a cluster"),
        (
            "registry/steno-serve:1",
            kubeconfig("http://127.0.0.1:1", context="elsewhere"),
            "the kubeconfig does not tell of a cluster",
        ),
        (
            "registry/steno-serve:1",
            kubeconfig(f"http://127.0.0.1:{Ports.free().inference}"),
            "the kubeconfig's cluster cannot be reached",
        ),
    ],
    ids=["no image", "no kubeconfig", "a broken one", "nobody there"],
)
def test_without_a_cluster_it_skips_says_why_and_does_not_pass(
    tmp_path: Path, image: str, content: str | None, reason: str
) -> None:
    file = tmp_path / "kubeconfig"
    if content is not None:
        file.write_text(content)
    environment = {**os.environ, "KUBECONFIG": str(file), "STENO_CLUSTER_IMAGE": image}
    environment.pop("STENO_CLUSTER_CONTEXT", None)
    options = ["-q", "-rs", "-p", "no:cacheprovider", "-k", "test_1", "tests/cluster/release.py"]
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", *options],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 1, ran.stdout
    assert reason in ran.stdout
    assert "1 skipped" in ran.stdout and "passed" not in ran.stdout
