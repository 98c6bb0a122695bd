"""Objects in S3, or in a server that speaks its protocol."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import boto3
import urllib3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    FlexibleChecksumError,
    NoCredentialsError,
    PartialCredentialsError,
)

from store.config import StoreConfig
from store.errors import Conflict, Corrupted, Denied, NotFound, StoreError, Unavailable
from store.objects import CHUNK_BYTES, Document, Objects, Stat, check_key, sha256_of

if TYPE_CHECKING:
    from types_boto3_s3.client import S3Client

# Whatever can break a body on its way, once the answer has begun; botocore repeats requests only
# until then.
BROKEN = (BotoCoreError, urllib3.exceptions.HTTPError, OSError)
NO_CREDENTIALS = (
    CredentialRetrievalError,
    NoCredentialsError,
    PartialCredentialsError,
)
MAX_PAUSE_SECONDS = 20.0
# What to say of the refusals that people meet; S3's own words for the others.
ADVICE = {
    "SignatureDoesNotMatch": "the secret key does not fit the access key (AWS_SECRET_ACCESS_KEY)",
    "InvalidAccessKeyId": "the server does not know the access key (AWS_ACCESS_KEY_ID)",
    "ExpiredToken": "the credentials have expired (AWS_SESSION_TOKEN)",
    "InvalidToken": "the session token is not valid (AWS_SESSION_TOKEN)",
    # To HEAD, whose answers have no body to say more.
    "403": "AWS_ACCESS_KEY_ID or AWS_SECRET_ACCESS_KEY is wrong, or they do not allow it",
}
REFUSED = (401, 403)
MISSING = 404
# 409 is what AWS answers to one of two writers at the same moment.
CONFLICTS = (409, 412)
# What servers that are not AWS answer instead of 503.
TOO_MANY_REQUESTS = 429


class S3Objects(Objects):
    """Keys below a bucket and prefix.

    The server must honour If-Match and If-None-Match on writes, as AWS does. Failures of the
    server and of the network are met with up to `attempts` requests, with growing pauses; a body
    that breaks off is gone on with where it broke, for as long as it gets anywhere. Where most
    requests fail, botocore repeats none (its quota of retries is empty): see `patiently`.
    """

    def __init__(self, config: StoreConfig) -> None:
        self._config = config
        self._bucket = config.bucket
        self._prefix = config.prefix
        self._attempts = config.attempts
        self._encryption = _encryption(config)
        self._transfer = TransferConfig(
            multipart_threshold=config.part_bytes,
            multipart_chunksize=config.part_bytes,
            max_concurrency=4,
        )
        self._client = _client(config)
        address = urlsplit(self._client.meta.endpoint_url)
        # Without a user and a password, should somebody have put some in.
        self._server = f"{address.scheme}://{address.netloc.rpartition('@')[2]}"

    def location(self, key: str) -> str:
        """See Objects."""
        return f"s3://{self._bucket}/{self._prefix}{key}"

    def stats(self, prefix: str = "") -> dict[str, Stat]:
        """See Objects."""
        pages = self._client.get_paginator("list_objects_v2")
        with self._errors(prefix):
            found = {
                entry["Key"].removeprefix(self._prefix): Stat(entry["Size"], entry["ETag"])
                for page in pages.paginate(Bucket=self._bucket, Prefix=self._prefix + prefix)
                for entry in page.get("Contents", [])
            }
        return dict(sorted(found.items()))

    def stat(self, key: str) -> Stat:
        """See Objects."""
        with self._errors(key):
            found = self._client.head_object(Bucket=self._bucket, Key=self._key(key))
        return Stat(found["ContentLength"], found["ETag"], found["Metadata"].get("sha256"))

    def read(self, key: str) -> Document:
        """See Objects."""
        with self._errors(key):
            found = self._client.get_object(Bucket=self._bucket, Key=self._key(key))
            try:
                return Document(found["Body"].read(), found["ETag"])
            except FlexibleChecksumError:
                raise self._spoilt(key) from None
            except BROKEN:
                stat = Stat(found["ContentLength"], found["ETag"])
                return Document(b"".join(self.stream(key, stat)), stat.tag)

    def stream(self, key: str, stat: Stat, start: int = 0) -> Iterator[bytes]:
        """See Objects."""
        position, failures = start, 0
        while position < stat.size:
            # A part of an object comes without the checksum that botocore compares.
            part: dict[str, Any] = {"Range": f"bytes={position}-"} if position else {}
            with self._errors(key):
                found = self._client.get_object(
                    Bucket=self._bucket, Key=self._key(key), IfMatch=stat.tag, **part
                )
            try:
                for chunk in found["Body"].iter_chunks(CHUNK_BYTES):
                    position += len(chunk)
                    failures = 0
                    yield chunk
            except FlexibleChecksumError:
                raise self._spoilt(key) from None
            except BROKEN as error:
                failures += 1
                if failures == self._attempts:
                    raise Unavailable(
                        f"{self.location(key)} broke off {failures} times at byte {position} of "
                        f"{stat.size} ({type(error).__name__}, {self._server})"
                    ) from None
                time.sleep(min(2.0 ** (failures - 1), MAX_PAUSE_SECONDS))

    def swap(self, key: str, data: bytes, expected: str | None) -> None:
        """See Objects."""
        condition: dict[str, Any] = {"IfMatch": expected} if expected else {"IfNoneMatch": "*"}
        try:
            with self._errors(key):
                self._client.put_object(
                    Bucket=self._bucket,
                    Key=self._key(key),
                    **self._encryption,
                    **condition,
                    Body=data,
                    ChecksumAlgorithm="SHA256",
                )
        except (Conflict, NotFound):
            # If the answer to a first attempt was lost, the second meets what the first wrote.
            if not self._holds(key, data):
                raise Conflict(f"{self.location(key)} was written by somebody else") from None

    def upload(self, path: Path, key: str, *, create: bool = False) -> str:
        """See Objects. Each part travels with its own SHA-256, which the server checks."""
        sha256 = sha256_of(path)
        client = self._creator if create else self._client
        options = {
            **self._encryption,
            "ChecksumAlgorithm": "SHA256",
            "Metadata": {"sha256": sha256},
        }
        with path.open("rb") as file, self._errors(key):
            client.upload_fileobj(
                file, self._bucket, self._key(key), ExtraArgs=options, Config=self._transfer
            )
        return sha256

    @cached_property
    def _creator(self) -> "S3Client":
        """A client that overwrites nothing: boto3's multipart upload knows no such condition."""
        client = _client(self._config)
        for operation in ("PutObject", "CompleteMultipartUpload"):
            client.meta.events.register(f"provide-client-params.s3.{operation}", _if_new)
        return client

    def _holds(self, key: str, data: bytes) -> bool:
        try:
            return self.read(key).data == data
        except NotFound:
            return False

    def _spoilt(self, key: str) -> Corrupted:
        return Corrupted(
            f"{self.location(key)} does not have the checksum of what was written. If a second try ends "
            "the same, the stored object is damaged"
        )

    def _key(self, key: str) -> str:
        return self._prefix + check_key(key)

    @contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        """Turn botocore's errors into ours.

        Their texts are left out, and the errors themselves from the traceback, where they may hold
        what was sent: a malformed session token, a password in a proxy's URL.
        """
        place = self.location(key)
        try:
            yield
        except ClientError as error:
            raise self._refusal(error, place) from None
        except NO_CREDENTIALS as error:
            raise Denied(
                f"{place}: boto3 found no usable credentials ({type(error).__name__}); set "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the pod a role"
            ) from None
        except BotoCoreError as error:
            raise Unavailable(
                f"{place}: {self._server} could not be asked, in at most {self._attempts} "
                f"attempts ({type(error).__name__})"
            ) from None

    def _refusal(self, error: ClientError, place: str) -> StoreError:
        code = error.response["Error"].get("Code", "")
        status = error.response["ResponseMetadata"]["HTTPStatusCode"]
        if code == "NoSuchBucket":
            return StoreError(f"there is no bucket {self._bucket} at {self._server}")
        if status == MISSING:
            return NotFound(f"there is no {place}")
        if status in CONFLICTS:
            return Conflict(f"{place} was written by somebody else")
        said = ADVICE.get(code) or error.response["Error"].get("Message", "")
        answer = code if code.startswith(str(status)) else f"{status} {code}"
        text = f"{place}: {self._server} answered {answer} to {error.operation_name}: {said}"
        if status in REFUSED or code in ADVICE:
            return Denied(text)
        if status >= 500 or status == TOO_MANY_REQUESTS:
            attempts = 1 + error.response["ResponseMetadata"].get("RetryAttempts", 0)
            return Unavailable(f"{text} (after {attempts} attempt{'s'[: attempts - 1]})")
        return StoreError(text)


def _client(config: StoreConfig) -> "S3Client":
    try:
        # A session of its own: the default one is shared with whoever else uses boto3.
        return boto3.Session().client(
            "s3",
            endpoint_url=config.endpoint,
            region_name=config.region,
            config=Config(
                max_pool_connections=config.connections,
                connect_timeout=config.connect_timeout,
                read_timeout=config.read_timeout,
                retries={"mode": "standard", "total_max_attempts": config.attempts},
            ),
        )
    except (BotoCoreError, ValueError) as error:
        raise StoreError(
            f"{config.url}: boto3 cannot work with the endpoint, the region or the profile that is "
            f"given ({type(error).__name__}); see AWS_ENDPOINT_URL_S3, AWS_DEFAULT_REGION, "
            "AWS_PROFILE"
        ) from None


def _encryption(config: StoreConfig) -> dict[str, Any]:
    values = {"ServerSideEncryption": config.encryption, "SSEKMSKeyId": config.kms_key}
    return {name: value for name, value in values.items() if value}


def _if_new(params: dict[str, Any], **_: object) -> None:
    params["IfNoneMatch"] = "*"
