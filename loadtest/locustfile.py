"""Locust's way in: `locust -f loadtest/locustfile.py --host … --token …`, headless or with its web page.

One user is one caller in the closed loop: send, wait for the answer, think, send again. In the open
loop one user is a stream of Poisson arrivals that does not wait, so many users are a stream of
their summed rate. A shape changes the number of callers, and each stream's rate.
"""

import argparse
import contextlib
import itertools
import logging
import random
import time
from pathlib import Path
from typing import Any, ClassVar

import gevent
import grpc.experimental.gevent
from gevent.pool import Pool
from locust import LoadTestShape, User, events, task
from locust.env import Environment
from locust.rpc import Message
from locust.runners import (
    STATE_INIT,
    STATE_MISSING,
    STATE_STOPPED,
    STATE_STOPPING,
    MasterRunner,
    WorkerRunner,
)

from loadtest.objectives import (
    DEFAULT,
    Check,
    Objectives,
    judge,
    read_objectives,
    verdict_of,
)
from loadtest.outcomes import Fate, Outcome
from loadtest.recordings import Recording, deal, make_recordings, parse_mix
from loadtest.report import Results, write_results
from loadtest.shapes import FEWEST_CALLERS, SHAPES
from loadtest.transports import PROTOCOLS, Grpc, Http, Transport
from loadtest.watch import Watch

DEFAULT_MIX = "command=45,sentence=40,long=10,bad=5"
# Of a shape; Locust has one user, too, where it is not told.
DEFAULT_PEAK, DEFAULT_SECONDS = 1, 60.0
# Exit codes: objectives were missed or could not be decided; the test could not be made.
MISSED, BROKEN = 1, 2
# Of one user in the open loop, which waits for nothing.
OPEN_CONNECTIONS = 10_000
# Messages of our own: a master ends its workers' part, and each sends its last outcomes.
END, LAST = "steno_end", "steno_last"
# For the last outcomes, beyond what the workers wait for answers.
LAST_SECONDS = 30.0
FACTS = (
    *("host", "protocol", "loop", "rate", "think", "shape", "num_users", "run_time"),
    *("mix", "mode", "seed"),
)

logger = logging.getLogger(__name__)
# Their long files take seconds. A worker has them before it tells its master that it is ready, and
# `prepare` says what is wrong with them.
with contextlib.suppress(OSError):
    make_recordings()


@events.init_command_line_parser.add_listener
def add_options(parser: Any) -> None:
    """Add our options to Locust's; they stand in its web page, too."""
    add = parser.add_argument  # a group of arguments would not know `is_secret`
    add("--protocol", choices=PROTOCOLS, default=PROTOCOLS[0], env_var="STENO_PROTOCOL")
    add(
        "--loop",
        choices=["open", "closed"],
        default="open",
        help="open: a user is a fixed rate of arrivals; closed: a user waits for its answer",
    )
    add("--rate", type=float, default=0.5, help="open loop: requests in a second of one user")
    add("--think", type=float, default=0.0, help="closed loop: mean seconds between two requests")
    add(
        "--shape",
        choices=["flat", *SHAPES],
        default="flat",
        include_in_web_ui=False,  # Locust must know at its start whether there is one
        help="how callers (closed loop) or rate (open loop) change over --run-time, up to the full",
    )
    add("--mix", default=DEFAULT_MIX, help="shares of the kinds of recordings")
    add("--mode", choices=["accurate", "fast"], default="accurate")
    add("--seed", type=int, default=0, help="of the order and of the arrivals")
    add("--answer-timeout", type=float, default=600.0, help="seconds")
    add("--token", env_var="STENO_TOKEN", is_secret=True, help="for predictions")
    add("--management-url", env_var="STENO_MANAGEMENT_URL", help="…/models/asr")
    add("--management-token", env_var="STENO_MANAGEMENT_TOKEN", is_secret=True)
    add("--metrics-url", env_var="STENO_METRICS_URL", help="…/metrics")
    add("--objectives", default=str(DEFAULT), help="YAML file")
    add("--output", default="runs/loadtest", help="folder for report.html and results.json")


class Shape(LoadTestShape):
    """The shape that --shape names, up to --users within --run-time."""

    abstract = True  # chosen in `prepare`; Locust must not find it by itself
    use_common_options = True

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__()
        self._options = options

    def tick(self) -> tuple[int, float] | None:
        """Users now, and users to start in a second; None at the end."""
        passed = self.get_run_time() / self._options.shape_seconds
        if passed >= 1:
            return None
        peak = self._options.num_users or DEFAULT_PEAK
        share = 1.0 if self._options.loop == "open" else SHAPES[self._options.shape](passed)
        # At least one: Locust takes none for the end of the start.
        return max(1, round(peak * share)), float(peak)


class Test:
    """One process's part in a test: what to send, and what became of it."""

    def __init__(self, environment: Environment) -> None:
        assert environment.parsed_options is not None
        self.environment = environment
        self.options: argparse.Namespace = environment.parsed_options
        self.objectives: Objectives = read_objectives(Path(self.options.objectives))
        self.outcomes: list[Outcome] = []
        self.checks: list[Check] | None = None
        self.sent: dict[int, tuple[Recording, float]] = {}  # and not answered yet, by a number
        # Of a master: the workers that took part, and those that have sent their last outcomes.
        self.workers: set[str] = set()
        self.ended: set[str] = set()
        self.watch = Watch(
            self.load,
            self.options.management_url,
            self.options.management_token,
            self.options.metrics_url,
        )
        self.start()

    def load(self) -> float:
        """The load now: callers, or arrivals in a second."""
        users = self.environment.runner.user_count if self.environment.runner else 0
        if self.options.loop == "open":
            return float(users * self.options.rate * self.share(time.time()))
        return float(users)

    def share(self, moment: float) -> float:
        """The shape's share of its peak at a moment, in seconds since the epoch."""
        if self.options.shape == "flat":
            return 1.0
        passed = (moment - self.options.shape_began) / self.options.shape_seconds
        return SHAPES[self.options.shape](min(max(passed, 0.0), 1.0))

    def start(self) -> None:
        """Begin a new test with the options as they are now; the web page can change them.

        Raises:
            ValueError: an option that makes no sense, with what would.
        """
        if not self.options.rate > 0:
            raise ValueError(f"--rate is {self.options.rate:g}; it must be above 0")
        if not self.options.think >= 0:
            raise ValueError(f"--think is {self.options.think:g}; it must be at least 0")
        if self.options.headless and not self.options.host:
            raise ValueError("--host is missing; give the endpoint, as http://127.0.0.1:8080")
        if not isinstance(self.environment.runner, WorkerRunner):  # which the master tells
            self._check_shape()
            self.options.shape_began = time.time()
            self.options.shape_seconds = self.options.run_time or DEFAULT_SECONDS
        self.outcomes = []
        self.checks = None
        made = make_recordings(self.options.mode)
        # Each worker process deals in another order.
        process = getattr(self.environment.runner, "worker_index", 0)
        seed = 1009 * self.options.seed + process
        self.recordings = deal(made, parse_mix(self.options.mix), seed)
        self.seeds = itertools.count(seed << 20)
        self.numbers = itertools.count()
        self.sent = {}
        self.workers = set()
        self.ended = set()

    def _check_shape(self) -> None:
        users = self.options.num_users or DEFAULT_PEAK
        fewest = FEWEST_CALLERS.get(self.options.shape, 1)
        if self.options.loop == "closed" and users < fewest:
            raise ValueError(
                f"--users is {users}; in the closed loop --shape {self.options.shape} needs at "
                f"least {fewest} (in the open loop a shape changes the rate instead)"
            )

    def transport(self, host: str) -> Transport:
        """Connect one user."""
        token, timeout = self.options.token, self.options.answer_timeout
        if self.options.protocol == "grpc":
            return Grpc(host, token, timeout)
        return Http(host, token, timeout, 1 if self.options.loop == "closed" else OPEN_CONNECTIONS)

    def remember(self, context: dict[str, Any], **_: Any) -> None:
        """Keep what became of a request."""
        self.outcomes.append(context["outcome"])

    def take_outcomes(self) -> list[Outcome]:
        """Hand out what has not been handed out yet."""
        taken, self.outcomes = self.outcomes, []
        return taken

    def give_up(self) -> None:
        """What is not answered yet has failed."""
        now = time.time()
        self.outcomes += (
            Outcome(r.kind, due, now - due, r.seconds, "failed", "no answer when the test ended")
            for r, due in self.sent.values()
        )
        self.sent = {}

    def take_over(self, worker: str, outcomes: list[list[Any]]) -> None:
        """Take a worker's outcomes; what comes after its last ones is counted there already."""
        self.workers.add(worker)
        if worker not in self.ended:
            self.outcomes += (Outcome(*fields) for fields in outcomes)

    def end_workers(self, runner: MasterRunner, stop_timeout: float) -> None:
        """Stop the workers' users and wait for the last outcomes of each.

        Args:
            runner: ours.
            stop_timeout: seconds that a worker waits for the answers that are still out.
        """
        if self.checks is not None:
            return
        # Locust sets it after its event, and would give the users of a worker that leaves to others.
        runner.update_state(STATE_STOPPING)
        self.workers |= set(runner.clients)
        runner.send_message(END, {"stop_timeout": stop_timeout})
        latest = time.monotonic() + stop_timeout + LAST_SECONDS
        while time.monotonic() < latest and any(
            name in runner.clients and runner.clients[name].state != STATE_MISSING
            for name in self.workers - self.ended
        ):
            gevent.sleep(0.1)

    def finish(self) -> None:
        """Judge and report, once."""
        if self.checks is not None:
            return
        self.watch.stop()
        self.give_up()
        kinds = [kind for kind, share in parse_mix(self.options.mix).items() if share]
        self.checks = judge(self.objectives, self.outcomes, kinds, self.options.loop == "open")
        if self.workers:
            silent, count = len(self.workers - self.ended), len(self.workers)
            self.checks.append(Check("workers without their last outcomes", 0.0, silent, "", count))
        facts = {name: getattr(self.options, name) for name in FACTS}
        path = write_results(
            Path(self.options.output),
            Results(facts, self.outcomes, self.watch.samples, self.checks, self.watch.server),
        )
        print("\n" + "\n".join(map(str, self.checks)))
        if verdict_of(self.checks) == "too few":
            print("Too few answers for any quantile; a longer --run-time gives more.")
        print(f"Report: {path}", flush=True)


class Caller(User):
    """A caller of the endpoint, over either protocol and in either loop."""

    test: ClassVar[Test]

    def on_start(self) -> None:
        """Connect."""
        self._transport = self.test.transport(self.host or self.environment.host or "")
        self._rng = random.Random(next(self.test.seeds))
        self._sent = Pool()
        self._due = time.time()

    @task
    def call(self) -> None:
        """One request in the closed loop; one arrival in the open one."""
        options = self.test.options
        if options.loop == "closed":
            self._send(next(self.test.recordings), time.time())
            if options.think:
                gevent.sleep(self._rng.expovariate(1 / options.think))
            return
        self._due += self._rng.expovariate(options.rate)
        gevent.sleep(max(0.0, self._due - time.time()))
        # Of the arrivals at the peak's rate so many remain Poisson arrivals at the rate of now.
        if self._rng.random() < self.test.share(self._due):
            self._sent.spawn(self._send, next(self.test.recordings), self._due)

    def on_stop(self) -> None:
        """Wait for the answers that are still out: what was sent is counted."""
        self._sent.join(timeout=self.test.options.answer_timeout)
        self._transport.close()

    def _send(self, recording: Recording, due: float) -> None:
        # A late start of ours counts as the caller's wait, or a busy machine would hide the queue.
        started = time.perf_counter() - max(0.0, time.time() - due)
        fate: Fate = "answered"
        reason = ""
        size = 0
        number = next(self.test.numbers)
        self.test.sent[number] = recording, due
        try:
            answer = self._transport.send(recording)
            seconds = time.perf_counter() - started
            size = len(answer.body)
            if problem := recording.problem(answer.status, answer.body):
                fate = "refused" if answer.status == 503 else "failed"
                reason = problem
        except Exception as error:  # whatever the client raises, the caller has no answer
            seconds = time.perf_counter() - started
            fate, reason = "failed", f"no answer: {type(error).__name__}: {error}"
        self.test.sent.pop(number, None)
        outcome = Outcome(recording.kind, due, seconds, recording.seconds, fate, reason)
        self.environment.events.request.fire(
            request_type=self.test.options.protocol,
            name=recording.kind,
            response_time=1000 * seconds,
            response_length=size,
            exception=RuntimeError(reason) if reason else None,
            context={"outcome": outcome},
        )


@events.init.add_listener
def prepare(environment: Environment, **_: Any) -> None:
    """Check what was asked for before the first user starts."""
    grpc.experimental.gevent.init_gevent()
    try:
        Caller.test = Test(environment)
    except (OSError, ValueError) as error:
        logger.error("%s", error)
        raise SystemExit(BROKEN) from error
    options = Caller.test.options
    environment.events.request.add_listener(Caller.test.remember)
    if isinstance(environment.runner, MasterRunner):
        environment.runner.register_message(LAST, take_last)
    elif isinstance(environment.runner, WorkerRunner):
        # Beside Locust's other messages: heartbeats must be answered while it waits.
        environment.runner.register_message(END, end_part, concurrent=True)
    if options.shape != "flat":
        environment.shape_class = Shape(options)
        environment.shape_class.runner = environment.runner
    # A user waits for what it has sent.
    environment.stop_timeout = environment.stop_timeout or options.answer_timeout
    # Its clock stood still meanwhile, and --run-time would be counted from before all this.
    gevent.get_hub().loop.update_now()


@events.test_start.add_listener
def start(environment: Environment, **_: Any) -> None:
    """Begin a test; the web page can begin several."""
    Caller.test.start()
    if not isinstance(environment.runner, WorkerRunner):
        Caller.test.watch.start()


@events.test_stopping.add_listener
def end_workers(environment: Environment, **_: Any) -> None:
    """Let no worker's outcomes be missing when the master judges."""
    if isinstance(environment.runner, MasterRunner):
        Caller.test.end_workers(environment.runner, environment.stop_timeout)


@events.test_stop.add_listener
def finish(environment: Environment, **_: Any) -> None:
    """Report, where all outcomes are; a worker sends its last ones there."""
    if isinstance(environment.runner, WorkerRunner):
        send_last(environment.runner)
        environment.stop_timeout = 0  # Locust would sleep so long before the next test
    else:
        Caller.test.finish()


def end_part(environment: Environment, msg: Message) -> None:
    """On a worker: end, since the master says so."""
    runner = environment.runner
    assert isinstance(runner, WorkerRunner)
    if runner.state == STATE_STOPPED:  # it had no user in this test
        send_last(runner)
        return
    environment.stop_timeout = msg.data["stop_timeout"]
    runner.stop()


def send_last(runner: WorkerRunner) -> None:
    """Send a worker's last outcomes to its master."""
    Caller.test.give_up()
    runner.send_message(LAST, {"outcomes": Caller.test.take_outcomes()})


def take_last(environment: Environment, msg: Message) -> None:
    """Take a worker's last outcomes."""
    Caller.test.take_over(msg.node_id, msg.data["outcomes"])
    Caller.test.ended.add(msg.node_id)


@events.report_to_master.add_listener
def hand_over(client_id: str, data: dict[str, Any]) -> None:
    """Send a worker's outcomes to its master."""
    data["outcomes"] = Caller.test.take_outcomes()


@events.worker_report.add_listener
def take_over(client_id: str, data: dict[str, Any]) -> None:
    """Take a worker's outcomes."""
    Caller.test.take_over(client_id, data["outcomes"])


@events.quitting.add_listener
def say_verdict(environment: Environment, **_: Any) -> None:
    """Make the verdict the exit code."""
    runner = environment.runner
    if runner is None:
        return
    if isinstance(runner, WorkerRunner):
        environment.stop_timeout = 0
        runner.stop()  # before Locust tells the master that this worker is gone
        return
    if runner.state not in (STATE_INIT, STATE_STOPPED):  # Ctrl-C, SIGTERM
        environment.stop_timeout = 0  # or Locust would wait for all answers
        if isinstance(runner, MasterRunner):
            Caller.test.end_workers(runner, 0.0)
        Caller.test.finish()
    checks = Caller.test.checks
    if checks is None:
        environment.process_exit_code = BROKEN
    else:
        environment.process_exit_code = 0 if verdict_of(checks) == "met" else MISSED
