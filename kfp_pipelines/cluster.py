"""The API of the cluster that this pod is in, or that the kubeconfig names."""

import json
import time
from collections.abc import Callable
from typing import TypeVar

import urllib3
from kubernetes import client, config

REQUEST_SECONDS = 30
LONGEST_MESSAGE = 500

Answer = TypeVar("Answer")


def connect() -> bool:
    """Let the client of Kubernetes find the cluster; whether this is one of its pods.

    Raises:
        kubernetes.config.ConfigException: there is none.
    """
    try:
        config.load_incluster_config()
    except config.ConfigException:
        config.load_kube_config()
        return False
    return True


def passes(error: client.ApiException | urllib3.exceptions.HTTPError) -> bool:
    """Whether the same request may do later: the API is away, as when its node is renewed, or busy."""
    if isinstance(error, client.ApiException):
        return error.status >= 500 or error.status == 429
    return True


def patiently(request: Callable[[], Answer], seconds: float, poll: float) -> Answer:
    """Ask, and ask again while the API is away or busy, for so many seconds.

    Raises:
        client.ApiException: its refusal, or that it is away still.
        urllib3.exceptions.HTTPError: likewise.
    """
    began = time.monotonic()
    while True:
        try:
            return request()
        except (client.ApiException, urllib3.exceptions.HTTPError) as error:
            if not passes(error) or time.monotonic() - began > seconds:
                raise
        time.sleep(poll)


def refusal(error: client.ApiException, hints: dict[int, str]) -> str:
    """Why the API refused: a hint for the status, or its own words.

    A quota or an admission webhook refuses with 403, too, and only the API's words tell; those of a
    missing permission name what the account "cannot" do.
    """
    try:
        message = str(json.loads(error.body)["message"])[:LONGEST_MESSAGE]
    except (ValueError, KeyError, TypeError):
        message = ""
    hint = hints.get(error.status)
    if error.status == 403 and message and " cannot " not in message:
        hint = None
    return f"{hint or message or error.reason} ({error.status})"
