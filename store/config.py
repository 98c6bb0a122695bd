"""Which store, and how it is spoken to."""

import re
from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, model_validator

MIB = 1 << 20
SCHEME = "s3://"


class StoreConfig(BaseModel):
    """Where a store is. It holds no credentials: boto3 finds those itself.

    That is AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, or the role of a pod's service
    account. Where `endpoint` or `region` is not given, AWS's own variables hold
    (AWS_ENDPOINT_URL_S3, AWS_DEFAULT_REGION).
    """

    # A value that is refused may hold a password, so that no message repeats it.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    url: str = Field(description="s3://bucket/prefix, or a folder")
    endpoint: str | None = Field(default=None, description="URL of an S3 server that is not AWS")
    region: str | None = Field(default=None, description="AWS region of the bucket")
    encryption: Literal["AES256", "aws:kms"] | None = Field(
        default=None,
        description="server-side encryption of what is written; else as the bucket says",
    )
    kms_key: str | None = Field(
        default=None, description="key for aws:kms; else the bucket's or AWS's own"
    )
    # S3 takes parts from 5 MiB to 5 GiB; ten of them are in memory during an upload.
    part_bytes: int = Field(default=16 * MIB, ge=5 * MIB, le=5120 * MIB)
    # Backoff doubles up to 20 s, with jitter: six attempts last up to half a minute.
    attempts: int = Field(
        default=6, ge=1, description="how often a request is sent before it has failed"
    )
    connections: int = Field(
        default=16, ge=1, description="requests that may be under way at the same time"
    )
    connect_timeout: float = Field(default=10.0, gt=0, description="seconds")
    read_timeout: float = Field(default=60.0, gt=0, description="seconds without a byte")

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        for name, value in (("url", self.url), ("endpoint", self.endpoint)):
            if value is not None and "://" in value and "@" in urlsplit(value).netloc:
                raise ValueError(
                    f"{name} holds credentials; give them to boto3, see store/README.md"
                )
        if self.is_s3:
            if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", self.bucket):
                raise ValueError(
                    f"url names the bucket {self.bucket!r}; it takes 3 to 63 of a-z, 0-9, . and -"
                )
        elif not self.url or "://" in self.url:
            raise ValueError("url must be s3://bucket/prefix or a folder")
        if self.kms_key and self.encryption != "aws:kms":
            raise ValueError("kms_key needs encryption aws:kms")
        if self.endpoint and urlsplit(self.endpoint).scheme not in ("http", "https"):
            raise ValueError("endpoint must be a URL with http:// or https://")
        return self

    @property
    def is_s3(self) -> bool:
        """Whether this is S3, and not a folder."""
        return self.url.startswith(SCHEME)

    @property
    def bucket(self) -> str:
        """The bucket of an S3 store."""
        return self.url.removeprefix(SCHEME).partition("/")[0]

    @property
    def prefix(self) -> str:
        """What every key of an S3 store begins with: empty, or a path that ends with a slash."""
        path = self.url.removeprefix(SCHEME).partition("/")[2].strip("/")
        return f"{path}/" if path else ""

    @property
    def folder(self) -> Path:
        """The folder of a store that is not S3."""
        return Path(self.url)
