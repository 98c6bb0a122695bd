"""The settings inside asr.mar, and how a pod's own are put into a copy of it."""

import os
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from handler.config import read_handler_config

SETTINGS = "model-config.yaml"
SECTION = "handler"


class ArchiveError(RuntimeError):
    """The archive, or what should be changed in it, cannot be used; the message says why."""


def read_settings(archive: Path) -> dict[str, Any]:
    """Return the model-config.yaml of an archive. Raises ArchiveError if there is none."""
    try:
        with zipfile.ZipFile(archive) as file:
            settings = yaml.safe_load(file.read(SETTINGS))
    except (OSError, KeyError, zipfile.BadZipFile, yaml.YAMLError) as error:
        raise ArchiveError(f"{archive} has no readable {SETTINGS}: {error}") from error
    return dict(settings)


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


def write_with_settings(archive: Path, target: Path, changes: Mapping[str, Any]) -> None:
    """Copy an archive to `target` with changed settings; it is there whole or not at all.

    Raises:
        ArchiveError: as `merge_settings`.
    """
    settings = merge_settings(read_settings(archive), changes)
    partial = target.with_name(f".{target.name}.partial")
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(partial, "w") as copy:
        for entry in source.infolist():
            if entry.filename == SETTINGS:
                copy.writestr(entry, yaml.safe_dump(settings, sort_keys=False))
            else:
                with source.open(entry) as content, copy.open(entry, "w") as out:
                    shutil.copyfileobj(content, out, 1 << 20)
    os.replace(partial, target)
