"""The simulation against what queueing theory and TorchServe's rules say."""

import numpy as np
import pytest

from loadtest.outcomes import quantiles
from loadtest.service_time import ServiceTime
from loadtest.simulation import Arrival, Autoscaling, Pods, poisson_arrivals, simulate

SERVICE = 0.1
FIXED = ServiceTime(
    per_batch=SERVICE,
    per_request=0.0,
    per_audio_second=0.0,
    per_longest_second=0.0,
    spread=0.0,
    piece_seconds=29.5,
    max_batch_seconds=120.0,
)
ALONE = Pods(workers=1, batch_size=1, max_batch_delay=0.0, queue_size=10_000)


def arrivals(rate: float, seconds: float, seed: int = 0) -> list[Arrival]:
    return poisson_arrivals(lambda _: rate, seconds, {"command": 1.0}, {"command": [2.0]}, seed)


def test_arrivals_follow_the_rate_and_the_mix() -> None:
    found = poisson_arrivals(
        lambda time: 10.0 if time < 500 else 30.0,
        1000.0,
        {"command": 3.0, "long": 1.0},
        {"command": [2.0, 4.0], "long": [60.0]},
        seed=0,
    )
    times = np.array([arrival.time for arrival in found])
    assert (np.diff(times) >= 0).all()
    assert (times < 500).sum() == pytest.approx(5_000, rel=0.05)
    assert (times >= 500).sum() == pytest.approx(15_000, rel=0.03)
    long = [arrival for arrival in found if arrival.kind == "long"]
    assert len(long) / len(found) == pytest.approx(0.25, rel=0.05)
    assert {arrival.audio_seconds for arrival in found} == {2.0, 4.0, 60.0}


@pytest.mark.parametrize("busy", [0.3, 0.6, 0.8])
def test_one_worker_without_batches_waits_as_pollaczek_and_khinchine_say(busy: float) -> None:
    sent = arrivals(busy / SERVICE, 20_000 * SERVICE / busy)
    found = simulate(sent, FIXED, ALONE, replicas=1)
    wait = np.mean([outcome.seconds for outcome in found.outcomes]) - SERVICE
    # M/D/1: the mean wait is service x utilization / (2 (1 - utilization)).
    assert wait == pytest.approx(SERVICE * busy / (2 * (1 - busy)), rel=0.1)
    assert found.busy_seconds() / found.pod_seconds() == pytest.approx(busy, rel=0.03)


def test_nothing_is_lost() -> None:
    sent = arrivals(200.0, 60.0)
    small = Pods(workers=1, batch_size=4, queue_size=8)
    found = simulate(sent, FIXED, small, replicas=2)
    assert len(found.outcomes) == len(sent)
    assert sorted(outcome.due for outcome in found.outcomes) == [a.time for a in sent]
    # Full batches of 4 in 0.1 s on 2 pods are 80 answers in a second.
    answered = sum(outcome.fate == "answered" for outcome in found.outcomes)
    assert answered == pytest.approx(80 * 60, rel=0.02)
    # A full queue bounds the wait: two batches before it, one under way, its own.
    waits = [o.seconds for o in found.outcomes if o.fate == "answered"]
    assert max(waits) <= 4 * SERVICE + 0.02
    assert {o.seconds for o in found.outcomes if o.fate == "refused"} == {0.0}


def test_a_lone_request_pays_the_delay_and_a_full_batch_does_not() -> None:
    pods = Pods(workers=1, batch_size=2, max_batch_delay=0.5)
    lone = simulate([Arrival(1.0, "command", 2.0)], FIXED, pods, replicas=1)
    assert lone.outcomes[0].seconds == pytest.approx(0.5 + SERVICE)
    pair = simulate([Arrival(1.0, "command", 2.0), Arrival(1.2, "command", 2.0)], FIXED, pods, 1)
    assert [o.seconds for o in pair.outcomes] == pytest.approx([0.3, 0.1])


def test_of_two_idle_workers_one_gathers() -> None:
    """As in TorchServe, whose workers poll under a lock: the second does not take what comes next."""
    pods = Pods(workers=2, batch_size=3, max_batch_delay=0.5)
    sent = [Arrival(time, "command", 2.0) for time in (1.0, 1.1, 1.2, 1.25)]
    found = simulate(sent, FIXED, pods, replicas=1)
    assert [o.seconds for o in found.outcomes[:3]] == pytest.approx([0.3, 0.2, 0.1])
    assert found.outcomes[3].seconds == pytest.approx(0.5 + SERVICE)


def test_two_workers_with_a_processor_each_wait_as_erlang_says() -> None:
    both = FIXED.model_copy(update={"speeds": (1.0, 1.0)})
    busy = 0.7
    found = simulate(
        arrivals(2 * busy / SERVICE, 20_000 * SERVICE / busy),
        both,
        ALONE.model_copy(update={"workers": 2}),
        replicas=1,
    )
    wait = np.mean([outcome.seconds for outcome in found.outcomes]) - SERVICE
    # M/D/2 has about half of M/M/2's wait, service x utilization^2 / (1 - utilization^2).
    assert wait == pytest.approx(SERVICE * busy**2 / (1 - busy**2) / 2, rel=0.1)


def test_two_workers_at_once_share_the_processors() -> None:
    halves = FIXED.model_copy(update={"speeds": (1.0, 0.5)})
    two = ALONE.model_copy(update={"workers": 2})
    sent = [Arrival(0.0, "command", 2.0), Arrival(0.06, "command", 2.0)]
    found = simulate(sent, halves, two, replicas=1)
    # The first has 0.04 s left when the second comes, which take 0.08; the second has done 0.04 then.
    assert [o.seconds for o in found.outcomes] == pytest.approx([0.14, 0.14])
    assert found.busy_seconds() == pytest.approx(0.28)


def test_more_workers_than_were_measured_share_what_the_most_had() -> None:
    service = FIXED.model_copy(update={"speeds": (1.0, 0.6)})
    assert [service.speed(n) for n in (1, 2, 3)] == pytest.approx([1.0, 0.6, 0.4])


def test_the_emptier_of_two_pods_is_better_than_any_pod() -> None:
    sent = arrivals(10 * 0.8 / SERVICE, 300.0)
    p95 = {
        routing: quantiles(
            [
                outcome.seconds
                for outcome in simulate(
                    sent, FIXED, ALONE.model_copy(update={"routing": routing}), replicas=10
                ).outcomes
            ]
        )["p95"]
        for routing in ("random", "least_request")
    }
    assert p95["least_request"] < 0.7 * p95["random"]


def test_the_autoscaler_adds_pods_after_their_start_and_removes_them_when_calm() -> None:
    def rate(time: float) -> float:
        return 30.0 if 300 <= time < 1200 else 2.0

    sent = poisson_arrivals(rate, 4000.0, {"command": 1.0}, {"command": [2.0]}, seed=0)
    pods = ALONE.model_copy(update={"start_seconds": 60.0})
    settings = Autoscaling(queue_per_worker=2, min_replicas=1, max_replicas=6)
    found = simulate(sent, FIXED, pods, 1, settings)
    counts = [count for _, count in found.replicas]
    first_added = next(time for time, count in found.replicas if count == 2)
    assert 300 < first_added <= 300 + 2 * settings.scrape_seconds + settings.sync_seconds
    assert max(counts) >= 4  # 30 in a second, of 10 that each pod can do
    assert counts[-1] < max(counts)
    falls = [
        time
        for (time, count), (_, before) in zip(found.replicas[1:], found.replicas, strict=False)
        if count < before
    ]
    assert min(falls) >= first_added + settings.down_stabilization_seconds
    assert min(np.diff(falls)) >= 240  # one pod in five minutes, give or take a batch
    assert len(found.outcomes) == len(sent)
    # Until the first added pod was ready, the queue grew by 20 in a second.
    early = [o.seconds for o in found.outcomes if 300 <= o.due < 360]
    late = [o.seconds for o in found.outcomes if 1000 <= o.due < 1200]
    assert np.median(early) > 3 * np.median(late)


def test_never_more_or_fewer_pods_than_allowed() -> None:
    sent = arrivals(50.0, 900.0)
    settings = Autoscaling(queue_per_worker=1, min_replicas=2, max_replicas=3)
    found = simulate(sent, FIXED, ALONE, 2, settings)
    assert {count for _, count in found.replicas[2:]} == {3}


def test_pods_are_paid_for_from_their_start_to_their_end() -> None:
    found = simulate([Arrival(100.0, "command", 2.0)], FIXED, ALONE, replicas=3)
    assert found.pod_seconds() == pytest.approx(3 * (100.0 + SERVICE))
    assert found.pod_seconds(90.0, 100.0) == pytest.approx(3 * 10.0)
    assert found.busy_seconds(0.0, 100.05) == pytest.approx(0.05)
