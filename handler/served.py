"""What a pod serves: the init container writes it down, the exporter shows it."""

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict

RECORD = "served.json"


class Served(BaseModel):
    """The version in place.

    Attributes:
        version: of the model store.
        sha256: of the archive as it was published.
        pinned: the version was given, not read from the production pointer.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: str
    sha256: str
    pinned: bool

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a record. Raises OSError or pydantic.ValidationError."""
        return cls.model_validate_json(path.read_text())

    def write(self, folder: Path) -> None:
        """Write the record into a folder."""
        (folder / RECORD).write_text(self.model_dump_json() + "\n")
