"""The settings inside asr.mar. Without torch, which those beside the server need not load."""

import os
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

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


def write_with_settings(archive: Path, target: Path, settings: Mapping[str, Any]) -> None:
    """Copy an archive to `target` with other settings; it is there whole or not at all."""
    partial = target.with_name(f".{target.name}.partial")
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(partial, "w") as copy:
        for entry in source.infolist():
            if entry.filename == SETTINGS:
                copy.writestr(entry, yaml.safe_dump(dict(settings), sort_keys=False))
            else:
                with source.open(entry) as content, copy.open(entry, "w") as out:
                    shutil.copyfileobj(content, out, 1 << 20)
    os.replace(partial, target)
