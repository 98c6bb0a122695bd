"""The secret that a pod's containers share: with it the exporter is told what becomes of the server.

Where a request comes from proves nothing: a service mesh's proxy brings a stranger's from 127.0.0.1.
"""

import secrets
from pathlib import Path
from typing import Literal

from handler.loopback import direct

KEY = "pod.key"
TIMEOUT_SECONDS = 10.0


def write_key(folder: Path) -> None:
    """Write a new key into a folder that the pod's containers see and nobody else."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / KEY
    path.touch(mode=0o600)
    path.write_text(secrets.token_hex(32) + "\n")


def tell(exporter: str, what: Literal["drain", "start"], key: Path) -> None:
    """Tell the exporter at a URL that the server is drained, or that one starts.

    Raises:
        requests.RequestException: it does not answer, or does not believe it.
        OSError: the key cannot be read.
    """
    headers = {"Authorization": f"Bearer {key.read_text().strip()}"}
    with direct() as http:
        answer = http.post(f"{exporter}/{what}", headers=headers, timeout=TIMEOUT_SECONDS)
    answer.raise_for_status()
