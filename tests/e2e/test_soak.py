"""Many requests, good and bad: every one answered, and the worker's memory flat."""

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import numpy as np
import psutil
import pytest
import requests

from handler.server import TorchServe
from tests.e2e.inputs import Sent, bad, encoded, form, good, raw, speech

REQUESTS = 1000
CONCURRENCY = 8
LENGTHS = 400  # each comes once: what a worker keeps for a length shows to the end
SAMPLE_EVERY = 25
WARM_UP = REQUESTS // 4  # allocators reach their size with the first batches of each shape
GROWTH_LIMIT_MB = 40.0


def mixture() -> list[Sent]:
    """Three good for two bad, without the slow and huge ones.

    Two of three good ones have a length of their own, in no order: were they sorted, memory would grow
    to the end since the longest came last.
    """
    samples = speech()
    seconds = np.random.default_rng(1).permutation(np.linspace(0.3, 7, LENGTHS))
    lengths = [raw(f"{s:.2f} s", encoded(np.resize(samples, int(s * 16_000)))) for s in seconds]
    fast = form("fast", encoded(samples), mode="fast", response_format="srt")
    bad_ones = [sent for sent in bad() if sent.status != 413]
    others = itertools.cycle([*good()[:6], fast, *good()[7:]])
    wrong = itertools.cycle(bad_ones)
    mixed: list[Sent] = []
    for one, other in zip(lengths[::2], lengths[1::2], strict=True):
        mixed += [one, next(wrong), next(others), next(wrong), other]
    return mixed


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_thousand_mixed_requests_are_all_answered_and_memory_stays_flat(
    server: TorchServe,
) -> None:
    worker = psutil.Process(cast(int, server.workers()[0]["pid"]))
    sent = list(itertools.islice(itertools.cycle(mixture()), REQUESTS))
    authorization = server.authorization
    memory: list[tuple[int, float]] = []
    done = itertools.count(1)
    lock = threading.Lock()

    def call(request: Sent) -> str | None:
        headers = {**authorization, **request.arguments.get("headers", {})}
        response = requests.post(
            server.predictions_url, **{**request.arguments, "headers": headers}, timeout=600
        )
        with lock:
            number = next(done)
            if number % SAMPLE_EVERY == 0:
                memory.append((number, worker.memory_info().rss / 1e6))
        if response.status_code != request.status:
            return f"{request.name}: {response.status_code} {response.text[:200]}"
        return None

    with ThreadPoolExecutor(CONCURRENCY) as pool:
        wrong = [problem for problem in pool.map(call, sent) if problem]
    assert wrong == []
    assert worker.is_running(), "the worker was restarted"

    numbers, megabytes = np.array([sample for sample in memory if sample[0] > WARM_UP]).T
    slope = float(np.polyfit(numbers, megabytes, 1)[0]) * 1000
    print(
        f"\nworker memory over {REQUESTS} requests: {memory[0][1]:.0f} MB at first, "
        f"{megabytes[-1]:.0f} MB at the end, slope {slope:+.1f} MB per 1,000 requests"
    )
    third = len(megabytes) // 3
    assert np.median(megabytes[-third:]) - np.median(megabytes[:third]) < GROWTH_LIMIT_MB
