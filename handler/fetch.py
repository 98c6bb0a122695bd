"""Bring a pod its model before the server starts: python -m handler.fetch --output /models

The version is the pinned one (STENO_VERSION), else the one that the store's production pointer
names. Its archive is downloaded, compared with the SHA-256 of its release, given the pod's settings
and put in place; whatever else happens, nothing is in place and the exit status is 1. Beside it lies
a new key, by which the pod's containers know each other.
"""

import argparse
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from handler.archive import SECTION, SETTINGS, ArchiveError, read_settings, write_with_settings
from handler.config import read_handler_config
from handler.pod_key import write_key
from handler.served import RECORD, Served
from store import ModelStore, StoreConfig, StoreError

ARCHIVE = "asr.mar"
# A folder for what is downloaded; TorchServe loads only what config.properties names.
ARRIVED = ".arrived"


def merge_settings(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return an archive's settings with a pod's own.

    Args:
        settings: of the archive.
        changes: keys that the archive has, with other values; in `handler`, any that it may have.

    Raises:
        ArchiveError: naming the key that there is not, or the value that is impossible.
    """
    if unknown := sorted(changes.keys() - settings.keys()):
        raise ArchiveError(
            f"{SETTINGS} has no {', '.join(unknown)}; it has {', '.join(sorted(settings))}"
        )
    if not isinstance(changes.get(SECTION) or {}, Mapping):
        raise ArchiveError(f"{SECTION} is {changes[SECTION]!r}; it must hold keys with values")
    merged = {**settings, **changes}
    merged[SECTION] = {**(settings.get(SECTION) or {}), **(changes.get(SECTION) or {})}
    try:
        read_handler_config(merged)
    except ValidationError as error:
        problems = "; ".join(
            f"{SECTION}.{'.'.join(map(str, problem['loc']))}: {problem['msg']}"
            for problem in error.errors()
        )
        raise ArchiveError(f"the settings of the pod are impossible: {problems}") from None
    return merged


def fetch(store: ModelStore, version: str | None, output: Path, changes: dict[str, Any]) -> Served:
    """Put a verified archive with the pod's settings at `output`/asr.mar, and a record beside it.

    Args:
        store: where from.
        version: None: the one in production.
        output: a folder; an archive and a record of before are removed first.
        changes: of the archive's model-config.yaml, see `merge_settings`.

    Raises:
        StoreError: nothing is in production, or its kinds: no such version, no permission, damaged.
        ArchiveError: the settings do not fit the archive.
    """
    output.mkdir(parents=True, exist_ok=True)
    for name in (ARCHIVE, RECORD):
        (output / name).unlink(missing_ok=True)
    pinned = version is not None
    if version is None:
        production = store.production()
        if production is None:
            raise StoreError(
                "nothing is in production: promote a version (python -m store promote VERSION), or "
                "pin one (model.version in the chart's values)"
            )
        version = production.version
    release = store.release(version)
    # Not a temporary folder: Kubernetes starts a failed init container again over the same volume,
    # and the next one goes on with what has arrived.
    arrived = output / ARRIVED
    archive = store.fetch(version, arrived)
    settings = merge_settings(read_settings(archive), changes)
    write_with_settings(archive, output / ARCHIVE, settings)
    shutil.rmtree(arrived)
    served = Served(version=version, sha256=release.sha256, pinned=pinned)
    served.write(output)
    return served


def main(arguments: list[str] | None = None) -> int:
    """Fetch as the environment says; the exit status is 1 when no verified model is in place."""
    parser = argparse.ArgumentParser(prog="python -m handler.fetch", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--output", type=Path, required=True, help="the server's model store")
    parser.add_argument(
        "--settings", type=Path, help="YAML that changes keys of the archive's model-config.yaml"
    )
    options = parser.parse_args(arguments)
    url = os.environ.get("STENO_STORE")
    if not url:
        parser.error("STENO_STORE is not set; it is s3://bucket/prefix, or a folder")
    try:
        store = ModelStore.open(StoreConfig(url=url))
        changes = _read_changes(options.settings)
        write_key(options.output)
        served = fetch(store, os.environ.get("STENO_VERSION") or None, options.output, changes)
    except ValidationError as error:
        problems = "; ".join(problem["msg"] for problem in error.errors())
        print(f"error: STENO_STORE: {problems}", file=sys.stderr)
        return 1
    except (StoreError, ArchiveError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{served.version} is in place, with the SHA-256 {served.sha256}")
    return 0


def _read_changes(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        changes = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ArchiveError(f"{path} is no YAML: {error}") from error
    if not isinstance(changes, dict):
        raise ArchiveError(f"{path} must hold keys of model-config.yaml")
    return changes


if __name__ == "__main__":
    sys.exit(main())
