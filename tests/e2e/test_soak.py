"""Many requests, good and bad: every one answered, and the worker's memory flat."""

import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import numpy as np
import psutil
import pytest
import requests

from handler.kernels import CAPACITIES
from handler.server import TorchServe
from tests.e2e.inputs import Sent, bad, encoded, form, good, raw, speech

REQUESTS = 1000
CONCURRENCY = 8
LENGTHS = 400  # each comes once: what a worker keeps for a length shows to the end
SAMPLE_EVERY = 25
WARM_UP = REQUESTS // 4  # allocators reach their size with the first batches of each shape
WINDOW = 3  # samples, 75 requests: each has every kind of request, so a leak grows in all
WINDOW_GROWTH_LIMIT_MB = 8.0  # 110 KB a request; up to 3 without a leak
GROWTH_LIMIT_MB = 150.0  # whatever its shape


@pytest.fixture(scope="module")
def server(model_store: Path) -> Iterator[TorchServe]:
    """A server whose allocator gives back what is freed, so that memory shows what is kept.

    Its kernels are as many soon as they will ever be.
    """
    few = dict.fromkeys(CAPACITIES, "64")
    environment = {"MALLOC_MMAP_THRESHOLD_": str(2**20), **few}
    with TorchServe(model_store, environment=environment) as running:
        yield running


def mixture() -> list[Sent]:
    """Three good for two bad, without the slow and huge ones.

    Two of three good ones have a length of their own, in no order: were they sorted, memory would grow
    to the end since the longest came last.
    """
    samples = speech()
    seconds = np.random.default_rng(1).permutation(np.linspace(0.3, 3.5, LENGTHS))
    lengths = [raw(f"{s:.2f} s", encoded(np.resize(samples, int(s * 16_000)))) for s in seconds]
    fast = form("fast", encoded(samples), mode="fast", response_format="srt")
    bad_ones = [sent for sent in bad() if sent.status != 413]
    others = itertools.cycle([*good()[:6], fast, *good()[7:]])
    wrong = itertools.cycle(bad_ones)
    mixed: list[Sent] = []
    for one, other in zip(lengths[::2], lengths[1::2], strict=True):
        mixed += [one, next(wrong), next(others), next(wrong), other]
    return mixed


def window_growth(megabytes: np.ndarray) -> float:
    """How much the memory grows from one window to the next, in MB: the median over the windows.

    A leak grows in most of them. A batch that happens to hold more long recordings than any before
    lifts an allocator's high-water mark by 10 to 40 MB, a few times in a thousand requests: steps.
    """
    medians = np.median(megabytes.reshape(-1, WINDOW), axis=1)
    return float(np.median(np.diff(medians)))


def test_a_leak_is_told_from_steps() -> None:
    samples = np.arange((REQUESTS - WARM_UP) // SAMPLE_EVERY)
    chance = np.random.default_rng(1)
    noise = chance.normal(1150, 1.0, len(samples))
    for _ in range(100):
        steps = sum(
            size * (samples >= at)
            for size, at in zip(chance.uniform(10, 45, 4), chance.choice(samples, 4), strict=True)
        )
        assert window_growth(noise + steps) < WINDOW_GROWTH_LIMIT_MB
        every = (samples + 1) * SAMPLE_EVERY
        assert window_growth(noise + steps + 0.15 * every) > WINDOW_GROWTH_LIMIT_MB  # 150 KB each
    # 9 MB with one kind of request
    assert window_growth(noise + 9.0 * (samples // WINDOW)) > WINDOW_GROWTH_LIMIT_MB


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

    megabytes = np.array([size for number, size in memory if number > WARM_UP])
    print(
        f"\nworker memory every {SAMPLE_EVERY} requests, MB: {[round(size) for _, size in memory]}"
    )
    assert window_growth(megabytes) < WINDOW_GROWTH_LIMIT_MB
    assert megabytes.max() - megabytes[0] < GROWTH_LIMIT_MB
