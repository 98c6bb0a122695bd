"""What the peers wrote in earlier runs: their texts depend on neither the load nor our checkpoint."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from training.files import write_text


class PeerTexts:
    """Texts of peers in a JSON file, under the SHA-256 of each clip's file.

    Args:
        path: read if it is there; written after each addition, so that a stopped run loses nothing.
        clips: SHA-256 of the clips' files, in their order.
    """

    def __init__(self, path: Path, clips: Sequence[str]) -> None:
        self._path = path
        self._clips = clips
        self._known: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}

    def get(self, system: str) -> list[str] | None:
        """The texts of all clips, or None if one is missing."""
        texts = self._known.get(system, {"texts": {}})["texts"]
        return [texts[clip] for clip in self._clips] if set(self._clips) <= set(texts) else None

    def put(self, system: str, texts: Sequence[str], versions: dict[str, str]) -> None:
        """Add the texts of all clips; those that packages of other versions wrote are dropped."""
        entry = self._known.get(system)
        if entry is None or entry["versions"] != versions:
            entry = {"versions": versions, "texts": {}}
        entry["texts"].update(zip(self._clips, texts, strict=True))
        self._known[system] = entry
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self._path, json.dumps(self._known, indent=1, ensure_ascii=False) + "\n")

    def check(self, system: str, versions: dict[str, str]) -> None:
        """Raise RuntimeError if its texts were written by packages of other versions than these."""
        written_by = self._known[system]["versions"]
        if written_by != versions:
            raise RuntimeError(
                f"{self._path} has texts by {written_by}, here are {versions}; remove it"
            )
