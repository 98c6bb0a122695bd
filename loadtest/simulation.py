"""Pods of TorchServe with a queue, workers that batch, and an autoscaler: as discrete events.

Left out are networks, gateways, nodes that fail, and the time between worker and caller.
"""

import math
import random
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
import simpy
from pydantic import BaseModel, ConfigDict, NonNegativeFloat, PositiveFloat, PositiveInt

from loadtest.outcomes import Outcome
from loadtest.recordings import Kind
from loadtest.service_time import ServiceTime

Process = Generator[simpy.Event, None, None]
MINUTE = 60.0
# Kubernetes' autoscaler does nothing within a tenth of its target.
TOLERANCE = 0.1


class _Checked(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Pods(_Checked):
    """What every pod is like; the defaults are those of helm/steno/values/cpu-dev.yaml."""

    workers: PositiveInt = 2
    """They share the queue and the pod's processors."""
    batch_size: PositiveInt = 4
    max_batch_delay: NonNegativeFloat = 0.001
    """Seconds, from the first request of a batch."""
    queue_size: PositiveInt = 10
    """Requests that wait; the next one is refused."""
    start_seconds: NonNegativeFloat = 90.0
    """From the decision to add a pod to its first request: node, image, model, warm-up."""
    price_per_hour: NonNegativeFloat = 0.10
    """Of one pod, in any currency."""
    routing: Literal["random", "least_request"] = "random"
    """random: as kube-proxy divides connections; least_request: the emptier of two drawn at random,
    as Envoy's balancer of that name does."""


class Autoscaling(_Checked):
    """A HorizontalPodAutoscaler on waiting requests for each worker; the defaults are the chart's."""

    queue_per_worker: PositiveFloat = 4.0
    """The target."""
    min_replicas: PositiveInt = 2
    max_replicas: PositiveInt = 8
    scrape_seconds: PositiveFloat = 15.0
    """Age that the figure may have: how often it is collected."""
    sync_seconds: PositiveFloat = 15.0
    """How often the autoscaler decides."""
    up_pods_per_minute: PositiveInt = 4
    down_pods_per_five_minutes: PositiveInt = 1
    down_stabilization_seconds: NonNegativeFloat = 300.0


class Arrival(NamedTuple):
    """A request that comes `time` seconds after the start; a bad one has no audio."""

    time: float
    kind: Kind
    audio_seconds: float


@dataclass
class Simulated:
    """What happened.

    Attributes:
        outcomes: as a load test has them; `due` counts from the start.
        replicas: (time, pods that are paid for), at each change.
        batches: when each began, and its seconds.
        ended: when all was answered.
    """

    outcomes: list[Outcome] = field(default_factory=list)
    replicas: list[tuple[float, int]] = field(default_factory=list)
    batches: list[tuple[float, float]] = field(default_factory=list)
    ended: float = 0.0

    def pod_seconds(self, since: float = 0.0, until: float = math.inf) -> float:
        """Paid for between two moments."""
        until = min(until, self.ended)
        changes = [*self.replicas, (self.ended, 0)]
        return sum(
            count * max(0.0, min(following, until) - max(time, since))
            for (time, count), (following, _) in pairwise(changes)
        )

    def busy_seconds(self, since: float = 0.0, until: float = math.inf) -> float:
        """Of all workers between two moments."""
        return sum(
            max(0.0, min(begun + seconds, until) - max(begun, since))
            for begun, seconds in self.batches
        )


def poisson_arrivals(
    rate: Callable[[float], float],
    duration: float,
    mix: Mapping[Kind, float],
    lengths: Mapping[Kind, Sequence[float]],
    seed: int,
) -> list[Arrival]:
    """Independent arrivals of a changing rate.

    Args:
        rate: requests in a second at a time; taken as constant within each second.
        duration: seconds.
        mix: shares of the kinds.
        lengths: seconds of audio that a kind's recordings have, equally often.
    """
    rng = np.random.default_rng(seed)
    starts = np.arange(0.0, duration, 1.0)
    counts = rng.poisson([rate(start) for start in starts])
    times = np.sort(np.repeat(starts, counts) + rng.random(int(counts.sum())))
    kinds = list(mix)
    shares = np.array([mix[kind] for kind in kinds])
    chosen = rng.choice(len(kinds), size=len(times), p=shares / shares.sum())
    draws = rng.random(len(times))
    arrivals = []
    for time, which, draw in zip(times.tolist(), chosen.tolist(), draws.tolist(), strict=True):
        kind = kinds[which]
        own = lengths[kind]
        arrivals.append(Arrival(time, kind, own[int(draw * len(own))]))
    return arrivals


def simulate(
    arrivals: Iterable[Arrival],
    service: ServiceTime,
    pods: Pods,
    replicas: int,
    autoscaling: Autoscaling | None = None,
    seed: int = 0,
) -> Simulated:
    """Send arrivals, in order of time, to `replicas` pods; ends when all that came is answered."""
    cluster = _Cluster(service, pods, replicas, seed)
    if autoscaling is not None:
        cluster.env.process(cluster.scale(autoscaling))
    cluster.env.run(cluster.env.process(cluster.receive(arrivals)))
    return cluster.finish()


class _Pod:
    """One queue and its workers."""

    def __init__(self, cluster: "_Cluster") -> None:
        self.cluster = cluster
        self.queue: deque[Arrival] = deque()
        self.serving = 0
        self.leaving = False
        self._arrived = cluster.env.event()
        self._gathering = simpy.Resource(cluster.env)
        self._at_work = 0
        self._at_work_changed = cluster.env.event()
        workers = [cluster.env.process(self._work()) for _ in range(cluster.pods.workers)]
        cluster.env.process(self._end(workers))

    @property
    def load(self) -> int:
        return len(self.queue) + self.serving

    def offer(self, arrival: Arrival) -> bool:
        """Take a request into the queue, unless it is full."""
        if len(self.queue) >= self.cluster.pods.queue_size:
            return False
        self.queue.append(arrival)
        self.wake()
        return True

    def wake(self) -> None:
        """Let the workers look at the queue, or leave."""
        self._arrived.succeed()
        self._arrived = self.cluster.env.event()

    def _work(self) -> Process:
        env, settings = self.cluster.env, self.cluster.pods
        while True:
            # As in TorchServe one worker gathers at a time, from before the first request on.
            with self._gathering.request() as turn:
                yield turn
                while not self.queue:
                    if self.leaving:
                        return
                    yield self._arrived
                batch = [self._take()]
                latest = env.now + settings.max_batch_delay
                while len(batch) < settings.batch_size:
                    if self.queue:
                        batch.append(self._take())
                    elif env.now < latest:
                        yield self._arrived | env.timeout(latest - env.now)
                    else:
                        break
            begun = env.now
            yield from self._serve(self.cluster.service_seconds(batch))
            self.cluster.answered(batch, begun)
            self.serving -= len(batch)

    def _take(self) -> Arrival:
        self.serving += 1
        return self.queue.popleft()

    def _serve(self, seconds: float) -> Process:
        """What takes a lone worker so many seconds, and longer while others are at work."""
        env = self.cluster.env
        self._change_at_work(+1)
        while True:
            begun, speed = env.now, self.cluster.service.speed(self._at_work)
            done = env.timeout(seconds / speed)
            yield done | self._at_work_changed
            if done.processed:
                break
            seconds = max(seconds - (env.now - begun) * speed, 0.0)
        self._change_at_work(-1)

    def _change_at_work(self, by: int) -> None:
        self._at_work += by
        self._at_work_changed.succeed()
        self._at_work_changed = self.cluster.env.event()

    def _end(self, workers: Sequence[simpy.Process]) -> Process:
        yield simpy.AllOf(self.cluster.env, workers)
        self.cluster.gone(self)


class _Cluster:
    """The pods behind one address."""

    def __init__(self, service: ServiceTime, pods: Pods, replicas: int, seed: int) -> None:
        self.env = simpy.Environment()
        self.service, self.pods = service, pods
        self.found = Simulated()
        self._rng = random.Random(seed)
        self._starting = 0
        self._paid = 0
        self._expected: int | None = None  # requests, once all have come
        self._all_answered = self.env.event()
        self._ready: list[_Pod] = []
        for _ in range(replicas):
            self._pay(1)
            self._ready.append(_Pod(self))

    def receive(self, arrivals: Iterable[Arrival]) -> Process:
        """Route each arrival; ends when the last answer is out."""
        count = 0
        for arrival in arrivals:
            count += 1
            if arrival.time > self.env.now:
                yield self.env.timeout(arrival.time - self.env.now)
            if not self._route().offer(arrival):
                self._note(arrival, 0.0, refused=True)
        self._expected = count
        if len(self.found.outcomes) < count:
            yield self._all_answered

    def service_seconds(self, batch: Sequence[Arrival]) -> float:
        expected = self.service.seconds([arrival.audio_seconds for arrival in batch])
        return expected * math.exp(self._rng.gauss(0, self.service.spread))

    def answered(self, batch: Sequence[Arrival], begun: float) -> None:
        self.found.batches.append((begun, self.env.now - begun))
        for arrival in batch:
            self._note(arrival, self.env.now - arrival.time, refused=False)

    def gone(self, pod: _Pod) -> None:
        self._pay(-1)

    def scale(self, settings: Autoscaling) -> Process:
        """Add and remove pods as the autoscaler does."""
        seen = 0.0  # the figure that it knows: waiting requests of all ready pods
        collected = -math.inf
        wishes: deque[tuple[float, int]] = deque()
        changes: deque[tuple[float, int]] = deque()
        while True:
            yield self.env.timeout(settings.sync_seconds)
            now = self.env.now
            current = len(self._ready) + self._starting
            # What it reads was collected up to scrape_seconds ago: the value of the round before.
            known = seen
            if now - collected >= settings.scrape_seconds:
                seen = float(sum(len(pod.queue) for pod in self._ready))
                collected = now
            wanted = self._wanted(known, current, settings)
            wishes.append((now, wanted))
            while wishes[0][0] < now - settings.down_stabilization_seconds:
                wishes.popleft()
            while changes and changes[0][0] <= now - 5 * MINUTE:
                changes.popleft()
            added = sum(n for time, n in changes if n > 0 and time > now - MINUTE)
            removed = -sum(n for _, n in changes if n < 0)
            if wanted > current:
                step = min(wanted - current, settings.up_pods_per_minute - added)
            else:
                calm = max(wish for _, wish in wishes)
                most = min(settings.down_pods_per_five_minutes - removed, len(self._ready) - 1)
                step = -max(min(current - calm, most), 0)
            if step > 0:
                changes.append((now, step))
                for _ in range(step):
                    self.env.process(self._start())
            elif step < 0:
                changes.append((now, step))
                for _ in range(-step):
                    self._drain()

    def finish(self) -> Simulated:
        self.found.ended = self.env.now
        return self.found

    def _wanted(self, waiting: float, current: int, settings: Autoscaling) -> int:
        ratio = waiting / (settings.queue_per_worker * current * self.pods.workers)
        wanted = current if abs(ratio - 1) <= TOLERANCE else math.ceil(ratio * current)
        return min(max(wanted, settings.min_replicas), settings.max_replicas)

    def _start(self) -> Process:
        self._starting += 1
        self._pay(1)
        yield self.env.timeout(self.pods.start_seconds)
        self._starting -= 1
        self._ready.append(_Pod(self))

    def _drain(self) -> None:
        pod = self._ready.pop()
        pod.leaving = True
        pod.wake()

    def _route(self) -> _Pod:
        ready = self._ready
        first = ready[int(self._rng.random() * len(ready))]
        if self.pods.routing == "random" or len(ready) == 1:
            return first
        second = ready[int(self._rng.random() * len(ready))]
        return first if first.load <= second.load else second

    def _note(self, arrival: Arrival, seconds: float, *, refused: bool) -> None:
        self.found.outcomes.append(
            Outcome(
                arrival.kind,
                arrival.time,
                seconds,
                arrival.audio_seconds,
                "refused" if refused else "answered",
            )
        )
        if len(self.found.outcomes) == self._expected:
            self._all_answered.succeed()

    def _pay(self, pods: int) -> None:
        self._paid += pods
        self.found.replicas.append((self.env.now, self._paid))
