"""Putting a version into production, and taking it back if it does not do its work.

The pointer in the store is moved first, because that is what pods read when they start; then the
serving release takes the version up, and a recording whose text is known is sent through its endpoint.
Whatever fails, the pointer and the release go back to the version before.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import jiwer
import requests
from pydantic import BaseModel, ConfigDict
from whisper_normalizer.english import EnglishTextNormalizer

from store import Conflict, ModelStore, patiently

PROBE = "probe.json"
PROBE_SECONDS = 120.0
# Packets that a network policy drops are never answered.
CONNECT_SECONDS = 10.0
# A busy release may have no free place, and a gateway may not have heard of new pods: no verdict on a
# version. After these attempts, with pauses of 1, 2, 4 ... 30 s (about 3 minutes), it is one.
ATTEMPTS = 10
LONGEST_PAUSE = 30.0
TRY_AGAIN = frozenset({429, 502, 503, 504})


class RollOutError(RuntimeError):
    """The version does not serve; the message says why, and what serves now."""


class ServingError(RuntimeError):
    """The serving release does not do what it was asked for."""


class Probe(BaseModel):
    """A recording to send through the endpoint, and the text that has to come back."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recording: str
    """Name of the file, which lies beside."""
    text: str
    """What the candidate wrote when it was evaluated."""
    tolerance: float = 0.2
    """Share of the words that may differ: batches and machines round differently."""


@dataclass(frozen=True)
class Endpoint:
    """Where recordings are posted, and with which headers."""

    url: str
    headers: dict[str, str] = field(repr=False)  # the token
    first_pause: float = 1.0  # seconds

    def transcribe(self, recording: Path) -> str:
        """Return the text of a recording.

        Raises:
            ServingError: with the endpoint's own words, or why there are none.
        """
        pause = self.first_pause
        for attempt in range(1, ATTEMPTS + 1):
            try:
                response = self._post(recording)
            except requests.ConnectionError as error:
                trouble = type(error).__name__
            except requests.RequestException as error:
                raise self._silent(type(error).__name__) from None
            else:
                if response.status_code not in TRY_AGAIN or attempt == ATTEMPTS:
                    return self._text(response)
                trouble = str(response.status_code)
            if attempt < ATTEMPTS:
                print(f"the probe is sent again: {self.url}: {trouble}", flush=True)
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
        raise self._silent(trouble)

    def require_token(self) -> None:
        """Ask without a recording whether the token opens; whether a version works is no matter of it.

        Raises:
            ServingError: it does not. An endpoint that does not answer yet is tried with a version.
        """
        timeout = (CONNECT_SECONDS, CONNECT_SECONDS)
        try:
            status = requests.post(self.url, headers=self.headers, timeout=timeout).status_code
        except requests.RequestException:
            return
        if status in (401, 403):
            raise ServingError(
                f"{self.url} answered {status}: the pipeline's token (secret steno-token) is none of"
                " the release's, or what stands before it refuses this namespace. Mend it, and repeat"
                " this step"
            )

    def _post(self, recording: Path) -> requests.Response:
        return requests.post(
            self.url,
            headers=self.headers,
            files={"file": (recording.name, recording.read_bytes())},
            data={"response_format": "json"},
            timeout=(CONNECT_SECONDS, PROBE_SECONDS),
        )

    def _silent(self, trouble: str) -> ServingError:
        return ServingError(
            f"{self.url} does not answer ({trouble}); is the address right, and does the release's"
            " networkPolicy.from let this namespace in?"
        )

    def _text(self, response: requests.Response) -> str:
        if not response.ok:
            raise ServingError(f"{self.url} answered {response.status_code}: {response.text[:300]}")
        try:
            return str(response.json()["text"])
        except (ValueError, KeyError, TypeError):
            raise ServingError(f"{self.url} gave no transcript: {response.text[:300]}") from None


class Serving(ABC):
    """A serving release that takes up what the production pointer names."""

    @abstractmethod
    def require_pods(self) -> None:
        """Raises ServingError where the release could not take a version up, or would not be heard."""

    @abstractmethod
    def take_up(self, version: str) -> Endpoint:
        """Have the version served, and return when all of the release does.

        Raises:
            ServingError: it does not, or not in time.
        """


@dataclass(frozen=True)
class Outcome:
    """What a roll-out came to, or has come to so far: `going back`."""

    state: Literal["not started", "serving", "going back", "rolled back", "not serving"]
    version: str
    serves: str | None
    """The version that does, or is to again."""
    reason: str
    heard: str | None = None


def roll_out(
    store: ModelStore,
    serving: Serving,
    version: str,
    expected: str | None,
    probe: Path,
    note: Callable[[Outcome], object],
) -> Outcome:
    """Make a version serve, or leave what was there before serving.

    A call that was killed can be repeated, until it has noted that it goes back: then `go_back`.

    Args:
        expected: the version in production that the candidate was compared with.
        probe: folder with probe.json and its recording.
        note: keeps what was found before the pointer goes back: from there on the pointer looks as if
            nothing had been tried.

    Raises:
        StoreError: the pointer cannot be moved. Conflict: another run moved it meanwhile, so that
            the comparison no longer holds; nothing was changed.
    """
    try:
        serving.require_pods()
    except ServingError as error:
        reason = f"{version} cannot be tried: {error}. Production was not changed"
        return Outcome("not started", version, expected, reason)
    previous = store.promote(version, expected=expected).previous
    try:
        heard = check(serving.take_up(version), probe)
    except ServingError as error:
        reason = f"{version} does not work: {error}"
    else:
        current = patiently(store.production)
        if current is not None and current.version == version:
            return Outcome("serving", version, version, f"{version} serves", heard)
        now = current.version if current else None
        reason = (
            f"{version} works, but somebody else put {now} into production meanwhile; it is left so"
        )
        return Outcome("not serving", version, now, reason)
    if previous is None:
        reason += "; there is no version to go back to"
        return Outcome("not serving", version, None, reason)
    note(Outcome("going back", version, previous, reason))
    return go_back(store, serving, version, previous, reason)


def go_back(
    store: ModelStore, serving: Serving, version: str, previous: str, reason: str
) -> Outcome:
    """Let the version before serve again; also what an earlier attempt was killed in the midst of.

    Raises:
        StoreError: the pointer cannot be moved.
    """
    try:
        store.promote(previous, expected=version)
    except Conflict as error:
        reason += f". Somebody else moved the pointer meanwhile, where it was left: {error}"
        return Outcome("not serving", version, None, reason)
    try:
        serving.take_up(previous)
    except ServingError as error:
        reason += f". The pointer is back at {previous}, but the release does not serve it: {error}"
        return Outcome("not serving", version, None, reason)
    return Outcome("rolled back", version, previous, f"{reason}. {previous} serves")


def check(endpoint: Endpoint, folder: Path) -> str:
    """Send the probe and return what was heard. Raises ServingError if it is not as it was."""
    probe = Probe.model_validate_json((folder / PROBE).read_text(encoding="utf-8"))
    heard = endpoint.transcribe(folder / probe.recording)
    normalize = EnglishTextNormalizer()
    expected, found = normalize(probe.text), normalize(heard)
    if expected and jiwer.wer(expected, found) > probe.tolerance:
        raise ServingError(f"the probe came back as {heard!r}, evaluated it was {probe.text!r}")
    return heard
