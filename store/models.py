"""Versions of the model, never overwritten, and the pointer to the one in production.

models/asr/<version>/asr.mar       the archive
models/asr/<version>/release.json  what it is; a version is published when this is there
models/asr/production.json         the version that serves
"""

import hashlib
import json
import re
import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Self, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, JsonValue, ValidationError

from store.config import StoreConfig
from store.errors import Conflict, Corrupted, NotFound, StoreError
from store.folder import FolderObjects
from store.objects import Objects, sha256_of
from store.s3 import S3Objects

ROOT = "models/asr"
ARCHIVE = "asr.mar"
RELEASE = "release.json"
PRODUCTION = f"{ROOT}/production.json"
VERSION = re.compile(r"(?!production\.json$)[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class Record(BaseModel):
    """A document of the store. Keys that a later version of Steno adds are read over."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    version: str
    # Random: no two writers write the same bytes, which `Objects.swap` relies on.
    id: str


class Release(Record):
    """One published version.

    Attributes:
        sha256: of asr.mar, in hexadecimal.
        size: of asr.mar, in bytes.
        metrics: what the evaluation measured (metrics.json).
        data_fingerprint: names the data that it was trained on.
        commit: of the code that trained it.
        parent: the version that its training started from; None for one of the store's first.
        published_at: UTC.
    """

    sha256: str
    size: int
    metrics: dict[str, JsonValue]
    data_fingerprint: str
    commit: str
    parent: str | None
    published_at: AwareDatetime


class Production(Record):
    """Which version serves, which one did before it (None for the first), and since when (UTC)."""

    previous: str | None
    moved_at: AwareDatetime


Kind = TypeVar("Kind", bound=Record)


class ModelStore:
    """The versions in one store. All methods raise StoreError's kinds, see store/errors.py."""

    def __init__(self, objects: Objects) -> None:
        self.objects = objects

    @classmethod
    def open(cls, config: StoreConfig) -> Self:
        """Return the store that a configuration names; nothing is read or written yet."""
        return cls(open_objects(config))

    def publish(
        self,
        archive: Path,
        *,
        version: str,
        metrics: dict[str, JsonValue],
        data_fingerprint: str,
        commit: str,
        parent: str | None = None,
    ) -> Release:
        """Store an archive as a new version.

        A publish that was killed can be repeated with the same archive. Of several at the same
        time, one wins.

        Raises:
            Conflict: the version is published already, or another archive lies under its name.
            NotFound: the parent is not published.
            StoreError: the version's name or the metrics cannot be stored.
        """
        release_key, archive_key = _key(version, RELEASE), _key(version, ARCHIVE)
        if not isinstance(metrics, dict):  # they may come from a file
            raise StoreError(f"the metrics are {metrics!r}; they must be an object with names")
        try:
            json.dumps(metrics, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise StoreError(f"the metrics cannot be written as JSON: {error}") from None
        if parent is not None:
            self.release(parent)
        if self._find(release_key, Release):
            raise Conflict(f"version {version} is published already; versions never change")
        sha256 = self._store_archive(archive, archive_key)
        release = Release(
            version=version,
            id=secrets.token_hex(8),
            sha256=sha256,
            size=archive.stat().st_size,
            metrics=metrics,
            data_fingerprint=data_fingerprint,
            commit=commit,
            parent=parent,
            published_at=datetime.now(UTC),
        )
        try:
            self.objects.swap(release_key, _encode(release), None)
        except Conflict:
            raise Conflict(f"version {version} was published by somebody else just now") from None
        return release

    def versions(self) -> list[str]:
        """Return the names of all published versions, sorted."""
        end = f"/{RELEASE}"
        keys = self.objects.keys(f"{ROOT}/")
        names = [
            key.removeprefix(f"{ROOT}/").removesuffix(end) for key in keys if key.endswith(end)
        ]
        return [name for name in names if VERSION.fullmatch(name)]

    def release(self, version: str) -> Release:
        """Return what a version is. Raises NotFound if it is not published."""
        found = self._find(_key(version, RELEASE), Release)
        if found is None:
            raise NotFound(f"there is no version {version} in {self.objects.location(ROOT)}")
        return found[0]

    def fetch(self, version: str, folder: Path) -> Path:
        """Bring a version's archive to `folder`/asr.mar and return that path.

        An interrupted fetch is gone on with; an archive that is there already is kept if it is the
        right one.

        Raises:
            Corrupted: the archive is not the one that was published. Nothing of it is kept; what
                lay at the path before stays.
        """
        release = self.release(version)
        path = folder / ARCHIVE
        if not (path.is_file() and sha256_of(path) == release.sha256):
            self.objects.download(_key(version, ARCHIVE), path, sha256=release.sha256)
        return path

    def production(self) -> Production | None:
        """Return which version serves; None as long as none was promoted."""
        found = self._find(PRODUCTION, Production)
        return found[0] if found else None

    def promote(self, version: str, *, expected: str | None) -> Production:
        """Make a version the one that serves, if `expected` still is.

        If `version` serves already, nothing is moved. To go back, promote the former version.

        Args:
            expected: the version in production that the decision was made against; None: none.

        Raises:
            Conflict: another version serves than was expected.
            NotFound: the version is not published.
        """
        release = self.release(version)
        archive = _key(version, ARCHIVE)
        if (size := self.objects.stat(archive).size) != release.size:
            raise Corrupted(
                f"{self.objects.location(archive)} has {size} bytes and not {release.size}"
            )
        current, tag = self._find(PRODUCTION, Production) or (None, None)
        if current and current.version == version:
            return current
        serving = current.version if current else None
        if serving != expected:
            raise Conflict(f"{serving or 'nothing'} is in production, not {expected or 'nothing'}")
        moved = Production(
            version=version, id=secrets.token_hex(8), previous=serving, moved_at=datetime.now(UTC)
        )
        try:
            self.objects.swap(PRODUCTION, _encode(moved), tag)
        except Conflict:
            raise Conflict(
                f"somebody else moved production away from {expected or 'nothing'} just now"
            ) from None
        return moved

    def _store_archive(self, archive: Path, key: str) -> str:
        try:
            return self.objects.upload(archive, key, create=True)
        except Conflict:
            sha256 = sha256_of(archive)
            if sha256 != self._stored_sha256(key):
                raise Conflict(
                    f"{self.objects.location(key)} is another archive, of a publish that is going "
                    "on or was interrupted; choose another version"
                ) from None
            return sha256

    def _stored_sha256(self, key: str) -> str | None:
        digest = hashlib.sha256()
        try:
            for chunk in self.objects.stream(key, self.objects.stat(key)):
                digest.update(chunk)
        except NotFound:
            return None
        return digest.hexdigest()

    def _find(self, key: str, kind: type[Kind]) -> tuple[Kind, str] | None:
        """Return a document and its tag; None if there is none."""
        try:
            document = self.objects.read(key)
        except NotFound:
            return None
        try:
            return kind.model_validate_json(document.data), document.tag
        except ValidationError as error:
            problem = error.errors()[0]
            raise Corrupted(
                f"{self.objects.location(key)} is no {kind.__name__.lower()}: "
                f"{'.'.join(map(str, problem['loc'])) or 'the whole'}: {problem['msg']}"
            ) from None


def open_objects(config: StoreConfig) -> Objects:
    """Return the objects below a bucket's prefix or a folder; nothing is read or written yet."""
    return S3Objects(config) if config.is_s3 else FolderObjects(config.folder)


def _key(version: str, name: str) -> str:
    if not VERSION.fullmatch(version):
        raise StoreError(
            f"{version!r} cannot be a version; it takes up to 100 of A-Z, a-z, 0-9, '.', '_' and "
            "'-', beginning with a letter or digit"
        )
    return f"{ROOT}/{version}/{name}"


def _encode(record: Record) -> bytes:
    return record.model_dump_json(indent=2).encode() + b"\n"
