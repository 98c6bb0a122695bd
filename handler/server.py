"""A real TorchServe on this machine: started from a folder with asr.mar, and stopped for certain.

Everything it writes (logs, keys, sockets, the unpacked archive) lies in one temporary folder that
goes with it.
"""

import contextlib
import errno
import json
import os
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

import psutil  # type: ignore[import-untyped]
import requests

from handler import launch
from handler.loopback import direct

SignalHandler = Callable[[int, FrameType | None], Any] | int | signal.Handlers

ARCHIVE = "asr.mar"
MODEL = "asr"
HERE = Path(__file__).resolve().parent
LOOPBACK = "127.0.0.1"
ANY_ADDRESS = "0.0.0.0"
# The end of a terminal is the last of them; what ignores it (nohup) goes on ignoring it.
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LOG_TAIL_LINES = 40
STOP_SECONDS = 20.0
POLL_SECONDS = 0.25
REASON_SECONDS = 5.0
# What TorchServe logs when a worker died or could not load the model; it would try again for
# minutes, and the reason stands around the line.
CRASH_MARKS = ("Backend worker process died", "Load model failed", "Failed to load the model")


class ServerError(RuntimeError):
    """TorchServe could not be started; the message holds the end of its log."""


@dataclass(frozen=True)
class Ports:
    """The five ports of one TorchServe; only inference and metrics listen beyond 127.0.0.1."""

    inference: int = 8080
    management: int = 8081
    metrics: int = 8082
    grpc_inference: int = 7070
    grpc_management: int = 7071

    @classmethod
    def free(cls) -> Self:
        """Return five ports that nothing listens on now, at any address."""
        sockets = [socket.socket() for _ in range(5)]
        try:
            for item in sockets:
                item.bind((ANY_ADDRESS, 0))
            return cls(*(item.getsockname()[1] for item in sockets))
        finally:
            for item in sockets:
                item.close()

    @property
    def addresses(self) -> launch.Addresses:
        """The same for TorchServe's configuration."""
        return launch.Addresses(**asdict(self))

    def taken(self, host: str = LOOPBACK) -> list[int]:
        """Return those of the ports that cannot be bound now.

        Args:
            host: of inference and metrics.

        Raises:
            ServerError: this machine has no address `host`.
        """
        places = dict.fromkeys(astuple(self), LOOPBACK)
        places |= {self.inference: host, self.metrics: host}
        return [port for port, place in places.items() if not _can_bind(place, port)]


class TorchServe:
    """A running server, as a context manager.

    Entering returns when a worker is READY by the management API; `/ping` would answer before the
    model is loaded. Leaving, for whatever reason (SIGTERM, Ctrl-C and a closed terminal too), stops the
    wrapper, java and the workers, and removes the temporary folder.

    Args:
        model_store: a folder that holds asr.mar.
        ports: where to listen; free ports by default.
        host: the address to listen at for callers and for Prometheus.
        timeout: seconds in which a worker must be READY.
        environment: variables added to those of the server.

    Raises:
        ServerError: on entering, when there is no archive, `host` is not of this machine, a port is
            taken, a worker crashes, or the time is up.
    """

    def __init__(
        self,
        model_store: Path,
        *,
        ports: Ports | None = None,
        host: str = LOOPBACK,
        timeout: float = 180.0,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.model_store = model_store.resolve()
        self.ports = ports or Ports.free()
        self._host = host
        self.timeout = timeout
        self._environment = dict(environment or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._former: dict[signal.Signals, SignalHandler] = {}

    @property
    def predictions_url(self) -> str:
        """Where recordings are posted."""
        return f"http://{self._reached_at}:{self.ports.inference}/predictions/{MODEL}"

    @property
    def management_url(self) -> str:
        """Where the model's workers and queue are described, for holders of the other token."""
        return f"http://{LOOPBACK}:{self.ports.management}/models/{MODEL}"

    @property
    def metrics_url(self) -> str:
        """Where Prometheus reads, without a token."""
        return f"http://{self._reached_at}:{self.ports.metrics}/metrics"

    @property
    def inference_token(self) -> str:
        """The token for requests to `predictions_url`."""
        return self._token("inference")

    @property
    def authorization(self) -> dict[str, str]:
        """The header that an inference request needs."""
        return {"Authorization": f"Bearer {self.inference_token}"}

    @property
    def key_file(self) -> Path:
        """TorchServe's tokens, readable by their owner only."""
        return self._home() / "key_file.json"

    def workers(self) -> list[dict[str, object]]:
        """Return the workers as the management API describes them (id, status, pid, ...)."""
        headers = {"Authorization": f"Bearer {self._token('management')}"}
        with direct() as http:
            response = http.get(self.management_url, headers=headers, timeout=10)
        response.raise_for_status()
        return list(response.json()[0]["workers"])

    def log_tail(self, lines: int = LOG_TAIL_LINES) -> str:
        """Return the last lines of everything that TorchServe and its workers printed."""
        return "\n".join(self._log().splitlines()[-lines:])

    def __enter__(self) -> Self:
        if not (self.model_store / ARCHIVE).is_file():
            raise ServerError(f"there is no {ARCHIVE} in {self.model_store}; run `make package`")
        if taken := self.ports.taken(self._host):
            raise ServerError(f"ports {taken} are in use; stop what listens there, or use others")
        self._catch_signals()
        try:
            self._start()
            self._wait_until_ready()
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
        """Stop every process and remove the folder; harmless when nothing runs."""
        # An impatient second Ctrl-C must not leave java behind.
        restore = {number: _set(number, signal.SIG_IGN) for number in ENDING if _in_main_thread()}
        try:
            self._stop()
        finally:
            for number, former in {**restore, **self._former}.items():
                signal.signal(number, former)
            self._former = {}

    def _stop(self) -> None:
        if self._process is not None:
            _stop_group(self._process)
            self._process = None
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def wait(self) -> None:
        """Block until the server ends by itself."""
        if self._process is not None:
            self._process.wait()

    def _start(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="steno-", ignore_cleanup_errors=True)
        folder = self._home()
        addresses = replace(self.ports.addresses, host=self._host)
        with (folder / "output.log").open("wb") as log:
            self._process = subprocess.Popen(
                launch.command(self.model_store, HERE),
                cwd=folder,  # the keys are written to the working directory
                env={
                    **launch.variables(self.model_store, HERE, folder, addresses),
                    **self._environment,
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # one group for wrapper, java and workers
            )

    def _wait_until_ready(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + self.timeout
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise self._failure(f"TorchServe ended with code {self._process.returncode}")
            if any(mark in self._log() for mark in CRASH_MARKS):
                self._wait_for_the_reason()
                raise self._failure("the worker could not load the model")
            if self._is_ready():
                return
            time.sleep(POLL_SECONDS)
        raise self._failure(f"no worker was READY after {self.timeout:.0f} s")

    def _wait_for_the_reason(self) -> None:
        """Wait until the log stands still: the mark comes before the end of the worker's traceback."""
        deadline = time.monotonic() + REASON_SECONDS
        length = -1
        while length != len(self._log()) and time.monotonic() < deadline:
            length = len(self._log())
            time.sleep(2 * POLL_SECONDS)

    def _is_ready(self) -> bool:
        try:
            return any(worker["status"] == "READY" for worker in self.workers())
        except (requests.RequestException, OSError, ValueError):
            return False  # not listening yet, or the keys are not written yet

    def _failure(self, reason: str) -> ServerError:
        return ServerError(f"{reason}. The end of its log:\n{self.log_tail()}")

    def _token(self, kind: str) -> str:
        keys = json.loads(self.key_file.read_text())
        return str(keys[kind]["key"])

    def _log(self) -> str:
        return (self._home() / "output.log").read_text(errors="replace")

    def _home(self) -> Path:
        if self._folder is None:
            raise ServerError("the server is not running")
        return Path(self._folder.name)

    @property
    def _reached_at(self) -> str:
        return LOOPBACK if self._host == ANY_ADDRESS else self._host

    def _catch_signals(self) -> None:
        """Turn what would end the process into an exception, so that leaving the context stops all."""
        for number in (signal.SIGTERM, signal.SIGHUP):  # SIGINT is one already
            if _in_main_thread() and signal.getsignal(number) != signal.SIG_IGN:
                self._former[number] = _set(number, _leave)


def _in_main_thread() -> bool:
    """Whether signal handlers can be set here."""
    return threading.current_thread() is threading.main_thread()


def _set(number: signal.Signals, handler: SignalHandler) -> SignalHandler:
    """Set a signal's handler; return the former one."""
    return signal.signal(number, handler) or signal.SIG_DFL


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _can_bind(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                return False
            raise ServerError(
                f"cannot listen at {host!r}: {error}; give an IPv4 address of this machine, or "
                f"{ANY_ADDRESS} for all"
            ) from error
    return True


def _stop_group(leader: subprocess.Popen[bytes]) -> None:
    """End a process group: politely, then by force. Returns when no member is left."""
    deadline = time.monotonic() + STOP_SECONDS
    # The leader, TorchServe's wrapper, does nothing but wait for java: left alone it reaps it, so
    # that not even a zombie stays where process 1 reaps none.
    for process in _members(leader.pid):
        if process.pid != leader.pid:
            _signal(os.kill, process.pid, signal.SIGTERM)
    while (leader.poll() is None or _members(leader.pid)) and time.monotonic() < deadline:
        time.sleep(0.1)
    _signal(os.killpg, leader.pid, signal.SIGKILL)
    leader.wait()
    while _members(leader.pid):
        time.sleep(0.05)


def _signal(send: Callable[[int, int], None], target: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        send(target, number)


def _members(group: int) -> list[psutil.Process]:
    """Return the processes of a group that still run; a zombie has ended."""
    members = []
    for process in psutil.process_iter(["status"]):
        try:
            runs = process.info["status"] != psutil.STATUS_ZOMBIE
            if runs and os.getpgid(process.pid) == group:
                members.append(process)
        except ProcessLookupError:
            continue
    return members
