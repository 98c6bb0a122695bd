"""The API of the cluster that this pod is in, or that the kubeconfig names."""

import urllib3
from kubernetes import client, config

REQUEST_SECONDS = 30


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
