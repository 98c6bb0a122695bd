"""What the management API says about the model. In a pod it is on loopback and without tokens."""

from dataclasses import dataclass

import requests

from handler.loopback import direct

DEFAULT_URL = "http://127.0.0.1:8081"
MODEL = "asr"
# With a GPU, TorchServe runs nvidia-smi for each worker before it answers.
TIMEOUT_SECONDS = 10.0


class ManagementError(RuntimeError):
    """The management API cannot be reached, or does not know the model."""


@dataclass(frozen=True)
class ModelState:
    """The model as TorchServe describes it now.

    Attributes:
        ready: workers that have loaded the model.
        workers: workers that there are, in whatever state.
        pending: requests that wait; those in a worker's hands are not among them.
        capacity: how many may wait.
        batch_delay: seconds for which java gathers a batch (`maxBatchDelay`); what it has gathered
            is neither pending nor in a worker's hands.
    """

    ready: int
    workers: int
    pending: int
    capacity: int
    batch_delay: float


def describe(url: str = DEFAULT_URL, timeout: float = TIMEOUT_SECONDS) -> ModelState:
    """Ask for the model's state.

    Raises:
        ManagementError: nothing listens, the model is not registered (yet), or the answer is not
            one of TorchServe 0.12.
    """
    address = f"{url}/models/{MODEL}"
    try:
        with direct() as http:
            response = http.get(address, timeout=timeout)
        response.raise_for_status()
        model = response.json()[0]
        statuses = [worker["status"] for worker in model["workers"]]
        queue = model["jobQueueStatus"]
        return ModelState(
            ready=statuses.count("READY"),
            workers=len(statuses),
            pending=queue["pendingRequests"],
            capacity=queue["pendingRequests"] + queue["remainingCapacity"],
            batch_delay=model["maxBatchDelay"] / 1000,
        )
    except (requests.RequestException, ValueError, KeyError, IndexError, TypeError) as error:
        raise ManagementError(f"{address}: {type(error).__name__}: {error}") from error
