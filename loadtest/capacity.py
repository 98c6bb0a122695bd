"""Capacity planning: how many pods, which autoscaling target, what latency, what cost.

    python -m loadtest.capacity plan [--config loadtest/capacity.yaml] [--document docs/capacity.md]
    python -m loadtest.capacity check runs/loadtest/results.json

`plan` simulates pods with the measured service time (`make bench-service-time`). `check` replays the
arrivals of an open-loop load test against one simulated pod, and says how far the simulation is off.
How fast the machine was during the load test is taken from its requests that met no other.
"""

import argparse
import json
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
import yaml
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from loadtest.objectives import Check, Latency, Objectives, judge
from loadtest.outcomes import Outcome, Summary, lone, summarize
from loadtest.recordings import Kind, parse_mix
from loadtest.report import read_outcomes
from loadtest.service_time import DEFAULT as SERVICE_TIME
from loadtest.service_time import ServiceTime, read_service_time
from loadtest.shapes import DAY
from loadtest.simulation import (
    Arrival,
    Autoscaling,
    Pods,
    Simulated,
    poisson_arrivals,
    simulate,
)
from training.documents import fill
from training.files import atomic_writer

HOUR = 3600.0
DEFAULT_CONFIG = Path(__file__).with_name("capacity.yaml")
# A rate is searched until its bounds are so close.
PRECISION = 1.03
# Refusals come in bursts, so a trial pools independent runs of so many requests: until its verdict is
# clear by so many standard errors, and at most so many, in which 0.1 % are 100 refusals.
RUN_REQUESTS = 2_500
RUNS = 40
FEWEST_RUNS = 8
CLEAR = 3.0
# Those of the hours of the day, which are longer.
DAYS = 8
FEWEST_DAYS = 4
# What holds only by less than so many standard errors counts as missed.
MARGIN = 2.0
# Each of more pods than so many is taken to be like one of so many.
MOST_SIMULATED = 30
# Where a pod may not even be so busy, the wait is not what misses the objectives.
LEAST_USE = 0.01
# Seconds in which the queues fill, which is no steady state: the work of a full pod several times over.
WARM_UP = 60.0
# So many requests that met no other tell how fast the machine was.
LEAST_LONE = 20


class Plan(BaseModel):
    """What is planned for; the YAML file's keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    peak: PositiveFloat = 6.0
    """Requests in a second at the busiest hour, where no curve is given."""
    curve: tuple[NonNegativeFloat, ...] | None = None
    """Requests in a second at each full hour from midnight on; None is `shapes.DAY` times the peak."""
    first_hour: float = Field(default=5.0, ge=0, lt=24)
    last_hour: float = Field(default=12.0, gt=0, le=24)
    mix: str = "command=45,sentence=40,long=10,bad=5"
    lengths: Mapping[Kind, tuple[float, ...]] = {
        "command": (2.0, 3.8, 3.9),
        "sentence": (7.0, 7.4, 9.9),
        "long": (60.0, 180.0),
        "bad": (0.0,),
    }
    objectives: Objectives = Objectives(
        latency={"command": Latency(p95=3.0), "sentence": Latency(p95=4.0)}, most_refused=0.001
    )
    pods: Pods = Pods()
    autoscaling: Autoscaling = Autoscaling(max_replicas=40)
    targets: tuple[PositiveFloat, ...] = Field(default=(0.25, 0.5, 1, 2), min_length=1)
    nodes: tuple[PositiveInt, ...] = (1, 2, 5, 10, 30, 100, 300, 1000)

    @model_validator(mode="after")
    def _fits(self) -> "Plan":
        shares = parse_mix(self.mix)
        if missing := [k for k, share in shares.items() if share and not self.lengths.get(k)]:
            raise ValueError(f"lengths has nothing for {', '.join(missing)}, which the mix has")
        if not any(length for k, share in shares.items() if share for length in self.lengths[k]):
            raise ValueError(f"mix is {self.mix} and has no audio, by which the cost is counted")
        most = self.pods.queue_size / 2 / self.pods.workers
        if refused := [f"{target:g}" for target in self.targets if target > most]:
            raise ValueError(
                f"targets has {', '.join(refused)}, which the chart refuses: a target times "
                f"pods.workers must be at most half of pods.queue_size, so give {most:g} at most"
            )
        if self.first_hour >= self.last_hour:
            raise ValueError("first_hour must be before last_hour")
        if self.curve is not None:
            if len(self.curve) != len(DAY):
                raise ValueError(
                    f"curve has {len(self.curve)} values; give one for each of 24 hours"
                )
            if "peak" in self.model_fields_set:
                raise ValueError("peak and curve are both given; the curve has its own peak")
            simulated = self.curve[int(self.first_hour) : math.ceil(self.last_hour)]
            if not any(simulated):
                raise ValueError(f"curve has no request from first_hour to last_hour: {simulated}")
        return self

    @property
    def rates(self) -> tuple[float, ...]:
        """Requests in a second at each full hour from midnight on."""
        return self.curve or tuple(self.peak * share for share in DAY)

    def arrivals(self, rate: float, duration: float, seed: int) -> list[Arrival]:
        """A constant rate for so many seconds."""
        return poisson_arrivals(lambda _: rate, duration, self.shares, self.lengths, seed)

    def day(self, seed: int) -> list[Arrival]:
        """The hours of the day, with a straight line between the full hours."""
        rates = self.rates

        def rate(time: float) -> float:
            return float(np.interp(self.first_hour + time / HOUR, range(25), (*rates, rates[0])))

        duration = (self.last_hour - self.first_hour) * HOUR
        return poisson_arrivals(rate, duration, self.shares, self.lengths, seed)

    @property
    def shares(self) -> dict[Kind, float]:
        """Those of the kinds that are in the mix."""
        return {kind: share for kind, share in parse_mix(self.mix).items() if share}


@dataclass(frozen=True)
class Trial:
    """One simulated setting.

    Attributes:
        met: whether the objectives hold, by MARGIN standard errors.
        summaries: latency and refusals by kind.
        refused: share of all requests.
        refused_margin: MARGIN standard errors of it.
        cost_per_hour: of the pods.
        audio_cost: of 1,000 answered hours of audio.
        mean_replicas: that were paid for.
        most_replicas: at once.
        busy: share of their time in which the workers worked.
    """

    met: bool
    summaries: dict[Kind, Summary]
    refused: float
    refused_margin: float
    cost_per_hour: float
    audio_cost: float
    mean_replicas: float
    most_replicas: int
    busy: float


class _Runs:
    """Simulations of one setting that differ in chance alone."""

    def __init__(self, plan: Plan, duration: float, skip: float) -> None:
        self._plan, self._duration, self._skip = plan, duration, skip
        self._found: list[Simulated] = []
        self._counted: list[list[Outcome]] = []

    def add(self, found: Simulated) -> None:
        self._found.append(found)
        self._counted.append([outcome for outcome in found.outcomes if outcome.due >= self._skip])

    def leads(self) -> list[float]:
        """By how many standard errors each objective is met; negative where it is missed."""
        runs = [self._judged(counted) for counted in self._counted]
        leads = []
        for index, check in enumerate(self._judged(self._pooled())):
            if check.measured is None:
                return [-math.inf]
            error = _error([own for run in runs if (own := run[index].measured) is not None])
            lead = check.limit - check.measured if check.at_most else check.measured - check.limit
            leads.append(lead / error if error else math.copysign(math.inf, lead))
        return leads

    def _judged(self, outcomes: Sequence[Outcome]) -> list[Check]:
        return judge(self._plan.objectives, outcomes, list(self._plan.shares), open_loop=True)

    def trial(self) -> Trial:
        """Judge them together.

        Cost and use are those from the end of the start on until nothing more is sent: what is answered
        later would cost the more, the shorter a run is.

        Raises:
            ValueError: no audio was answered.
        """
        pods = self._plan.pods
        pooled = self._pooled()
        window = self._skip, self._duration
        seconds = sum(found.pod_seconds(*window) for found in self._found)
        busy = sum(found.busy_seconds(*window) for found in self._found)
        audio = sum(outcome.audio_seconds for outcome in pooled if outcome.fate == "answered")
        if not audio:
            raise ValueError("no audio was answered: give a higher rate, or more pods")
        hours = (self._duration - self._skip) * len(self._found) / HOUR
        cost = seconds / HOUR * pods.price_per_hour
        shares = [_refused(counted) for counted in self._counted]
        return Trial(
            met=min(self.leads()) >= MARGIN,
            summaries=summarize(pooled),
            refused=_refused(pooled),
            refused_margin=MARGIN * _error(shares),
            cost_per_hour=cost / hours,
            audio_cost=1000 * cost / (audio / HOUR),
            mean_replicas=seconds / HOUR / hours,
            most_replicas=max(count for found in self._found for _, count in found.replicas),
            busy=busy / (seconds * pods.workers),
        )

    def _pooled(self) -> list[Outcome]:
        """Those of all runs, one run after the other: so audio in a second is that of one."""
        pooled: list[Outcome] = []
        start = 0.0
        for counted in self._counted:
            pooled += [outcome._replace(due=outcome.due + start) for outcome in counted]
            start = max((outcome.ended for outcome in pooled[-len(counted) :]), default=start)
        return pooled


def _refused(outcomes: Sequence[Outcome]) -> float:
    return sum(o.fate == "refused" for o in outcomes) / len(outcomes) if outcomes else 0.0


def _error(values: Sequence[float]) -> float:
    """The standard error of their mean."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def steady(plan: Plan, service: ServiceTime, rate: float, replicas: int, seed: int) -> Trial:
    """A constant rate on a fixed number of pods."""
    duration = WARM_UP + RUN_REQUESTS / rate
    runs = _Runs(plan, duration, WARM_UP)
    for run in range(1, RUNS + 1):
        own = seed * RUNS + run
        arrivals = plan.arrivals(rate, duration, own)
        runs.add(simulate(arrivals, service, plan.pods, replicas, seed=own))
        if run % FEWEST_RUNS == 0 and abs(min(runs.leads())) >= CLEAR:
            break
    return runs.trial()


def most_rate(plan: Plan, service: ServiceTime, replicas: int, seed: int) -> tuple[float, Trial]:
    """The highest rate that so many pods hold, to within PRECISION, and what it is like.

    Raises:
        ValueError: even a lone request does not meet the objectives.
    """
    # No pod can do more than full batches of the mix, one after the other.
    sample = [a.audio_seconds for a in plan.arrivals(1.0, 800.0, seed)]
    size = plan.pods.batch_size
    batches = [sample[i : i + size] for i in range(0, len(sample) - size, size)]
    seconds = sum(service.seconds(batch) for batch in batches)
    workers = plan.pods.workers
    high = replicas * workers * service.speed(workers) * size * len(batches) / seconds
    hopeless = LEAST_USE * high
    low, best = 0.0, None
    rate = high / 2
    while best is None or high / low > PRECISION:
        trial = steady(plan, service, rate, replicas, seed)
        if trial.met:
            low, best = rate, trial
        else:
            high = rate
        if high < hopeless:
            raise ValueError(
                "no rate meets the objectives: they are tighter than the time of a lone request"
            )
        rate = (low + high) / 2
    return low, best


def most_rates(
    plan: Plan, service: ServiceTime, alone: tuple[float, Trial], seed: int
) -> list[tuple[int, float, Trial]]:
    """For each number of nodes with one pod: the highest rate that they hold, and what it is like.

    Pods that are picked at random see nothing of each other, so one of them tells of all.

    Args:
        plan: with the numbers of nodes and the routing.
        service: of each pod.
        alone: what `most_rate` found for one pod.
        seed: of the simulations.
    """
    most = 1 if plan.pods.routing == "random" else MOST_SIMULATED
    found = {1: alone}
    rates = []
    for nodes in plan.nodes:
        simulated = min(nodes, most)
        if simulated not in found:
            found[simulated] = most_rate(plan, service, simulated, seed)
        rate, trial = found[simulated]
        rates.append((nodes, rate * nodes / simulated, trial))
    return rates


def replicas_for(
    plan: Plan, service: ServiceTime, rate: float, alone: float, seed: int
) -> tuple[int, Trial]:
    """The fewest pods that hold a constant rate; one holds `alone`."""
    count = max(1, int(rate / alone))
    trial = steady(plan, service, rate, count, seed)
    while trial.met and count > 1:
        fewer = steady(plan, service, rate, count - 1, seed)
        if not fewer.met:
            return count, trial
        count, trial = count - 1, fewer
    while not trial.met:
        count += 1
        trial = steady(plan, service, rate, count, seed)
    return count, trial


def scaled(plan: Plan, service: ServiceTime, target: float, seed: int) -> Trial:
    """The hours of the day, with the autoscaler aiming at `target` waiting requests a worker."""
    autoscaling = plan.autoscaling.model_copy(update={"queue_per_worker": target})
    fewest = autoscaling.min_replicas
    runs = _Runs(plan, (plan.last_hour - plan.first_hour) * HOUR, skip=0.0)
    for run in range(1, DAYS + 1):
        own = seed * DAYS + run
        runs.add(simulate(plan.day(own), service, plan.pods, fewest, autoscaling, own))
        if run % FEWEST_DAYS == 0 and abs(min(runs.leads())) >= CLEAR:
            break
    return runs.trial()


def compare(measured: Sequence[Outcome], simulated: Sequence[Outcome]) -> str:
    """A table: a load test's figures beside those of the simulation of its arrivals."""
    rows = []
    real, ours = summarize(measured), summarize(simulated)
    for kind, own in real.items():
        for name in ("p50", "p95"):
            if name in own.latency and name in ours[kind].latency:
                seen, made = own.latency[name], ours[kind].latency[name]
                rows.append(
                    [
                        kind,
                        name,
                        str(own.answered),
                        f"{seen:.3f}",
                        f"{made:.3f}",
                        f"{made / seen - 1:+.0%}",
                    ]
                )
    heading = ["kind", "", "answers", "measured, s", "simulated, s", "deviation"]
    return _table(heading, rows)


def slowness(outcomes: Sequence[Outcome], service: ServiceTime) -> tuple[float, int]:
    """How many times as long as measured lone requests took (median), and how many there were.

    Most are short and of quiet minutes, since the others seldom stay alone: where the machine's speed
    changes within the test, the figure is rather too low.

    Raises:
        ValueError: there are too few of them.
    """
    ratios = [
        outcome.seconds / service.seconds([outcome.audio_seconds])
        for outcome in lone(outcomes)
        if outcome.fate == "answered" and outcome.audio_seconds > 0
    ]
    if len(ratios) < LEAST_LONE:
        raise ValueError(
            f"{len(ratios)} requests met no other, and {LEAST_LONE} are needed to tell how fast the "
            "machine was; run a longer load test, or one with a lower --rate"
        )
    return statistics.median(ratios), len(ratios)


def check(arguments: argparse.Namespace) -> None:
    """Replay a load test's arrivals and compare."""
    results = json.loads(arguments.results.read_text(encoding="utf-8"))
    loop = results.get("facts", {}).get("loop") if isinstance(results, dict) else None
    if loop is None:
        raise ValueError(f"{arguments.results} is no results.json of a load test")
    if loop != "open":
        raise ValueError(
            f"{arguments.results} is of a {loop} loop, whose arrivals wait for answers; "
            "replay one made with --loop open"
        )
    plan = _read_plan(arguments.config)
    _same_server(results.get("server") or {}, plan.pods)
    outcomes = sorted(read_outcomes(arguments.results), key=lambda outcome: outcome.due)
    if not outcomes:
        raise ValueError(f"{arguments.results} has no request; give the results of a load test")
    start = outcomes[0].due
    arrivals = [Arrival(o.due - start, o.kind, o.audio_seconds) for o in outcomes]
    service = read_service_time(arguments.service_time)
    factor, alone = slowness(outcomes, service)
    found = simulate(arrivals, service.slowed(factor), plan.pods, 1, seed=arguments.seed)
    rate = len(arrivals) / (arrivals[-1].time or 1.0)
    busy = found.busy_seconds() / (found.pod_seconds() * plan.pods.workers)
    text = (
        f"{len(arrivals)} arrivals, {rate:.2f} in a second. The {alone} that met no other took "
        f"{factor:.2f} times the measured service times (median), and so the simulated workers do. They "
        f"were busy for {busy:.0%} of the time.\n\n{compare(outcomes, found.outcomes)}"
    )
    print(text)
    if arguments.document:
        fill(arguments.document, "check", text)


def _same_server(server: Mapping[str, int | None], pods: Pods) -> None:
    """Raise ValueError where the server of a load test is known to be another than the plan's pod."""
    planned = {"workers": pods.workers, "batch_size": pods.batch_size, "queue": pods.queue_size}
    other = [
        f"{name} {server[name]} and not {wanted}"
        for name, wanted in planned.items()
        if server.get(name) not in (None, wanted)
    ]
    if other:
        raise ValueError(
            f"the load test's server was not the pod of the plan: {', '.join(other)}; load an archive "
            "packed with the plan's settings (docs/capacity.md), or give a --config with the server's"
        )


def make_plan(arguments: argparse.Namespace) -> None:
    """Answer the questions of the config, and draw the plan from one node to a thousand."""
    plan, service = _read_plan(arguments.config), read_service_time(arguments.service_time)
    seed = arguments.seed
    alone = most_rate(plan, service, 1, seed)
    peak = max(plan.rates)
    count, trial = replicas_for(plan, service, peak, alone[0], seed)
    texts = {
        "service-time": _service_table(service),
        "peak": f"{peak:g} requests in a second need **{count} pods** all the time.\n\n"
        + _trials_table("pods", [(str(count), trial)]),
        "targets": _targets_table([(t, scaled(plan, service, t, seed)) for t in plan.targets]),
    }
    rates: dict[str, list[tuple[int, float, Trial]]] = {}
    for routing in ("random", "least_request"):
        routed = plan.model_copy(update={"pods": plan.pods.model_copy(update={"routing": routing})})
        rates[routing] = most_rates(routed, service, alone, seed)
    texts["nodes"] = _nodes_table(rates)
    print("\n\n".join(texts.values()))
    if arguments.document:
        for name, text in texts.items():
            fill(arguments.document, name, text)
    if arguments.plot:
        draw(rates, arguments.plot)


def draw(rates: Mapping[str, Sequence[tuple[int, float, Trial]]], path: Path) -> None:
    """Draw what each number of nodes holds, and how busy it is then, as an SVG."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    total, busy = figure.subplots(1, 2)
    for (routing, found), style in zip(rates.items(), ("o-", "s--"), strict=True):
        nodes = [count for count, _, _ in found]
        total.plot(nodes, [rate for _, rate, _ in found], style, label=routing.replace("_", " "))
        busy.plot(nodes, [100 * trial.busy for _, _, trial in found], style)
    total.set(ylabel="requests in a second within the objectives", yscale="log")
    total.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    busy.set(ylabel="workers busy then, %", ylim=(0, 100))
    for axes in (total, busy):
        axes.set(xlabel="nodes with one pod each", xscale="log")
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.grid(color="#dddddd", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    total.legend(title="routing", frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"svg.hashsalt": "capacity"}), atomic_writer(path) as file:
        figure.savefig(file, format="svg", metadata={"Date": None})


def _service_table(service: ServiceTime) -> str:
    facts = service.measured
    rows = [
        ["for a batch", f"{1000 * service.per_batch:.1f} ms"],
        ["for each request of it", f"{1000 * service.per_request:.1f} ms"],
        ["for each second of audio", f"{1000 * service.per_audio_second:.2f} ms"],
        ["for each second of a group's longest piece", f"{1000 * service.per_longest_second:.2f} ms"],
        ["median, largest deviation of the fit",
         f"{facts['median_relative_error']:.1%}, {facts['largest_relative_error']:.0%}"],
        *([f"speed of each of {count} workers at work", f"{speed:.2f}"]
          for count, speed in enumerate(service.speeds[1:], 2)),
    ]  # fmt: skip
    return (
        f"{_table(['', 'time of a lone worker'], rows)}\n\nMeasured on {facts['date']} with "
        f"`{facts['command']}` on {facts['machine']}; {facts['batches']} batches."
    )


def _trials_table(heading: str, trials: Sequence[tuple[str, Trial]]) -> str:
    kinds = [kind for kind in trials[0][1].summaries if kind != "bad"]
    rows = []
    for name, trial in trials:
        rows.append(
            [
                name,
                "yes" if trial.met else "**no**",
                *(
                    f"{trial.summaries[kind].latency.get('p95', float('nan')):.2f}"
                    for kind in kinds
                ),
                f"{100 * trial.refused:.2f} ± {100 * trial.refused_margin:.2f} %",
                f"{trial.mean_replicas:.1f}, {trial.most_replicas}",
                f"{trial.busy:.0%}",
                f"{trial.cost_per_hour:.2f}",
                f"{trial.audio_cost:.2f}",
            ]
        )
    columns = [
        heading,
        "within the objectives",
        *(f"p95 of {kind}, s" for kind in kinds),
        "refused",
        "pods: mean, most",
        "busy",
        "cost an hour",
        "cost of 1,000 h of audio",
    ]
    return _table(columns, rows)


def _targets_table(trials: Sequence[tuple[float, Trial]]) -> str:
    table = _trials_table("target", [(f"{target:g}", trial) for target, trial in trials])
    held = [(trial.cost_per_hour, target) for target, trial in trials if trial.met]
    if not held:
        return f"{table}\n\nNone meets the objectives: try a lower one, or more `min_replicas`."
    cost, target = min(held)
    return (
        f"{table}\n\nRecommended: `autoscaling.queuePerWorker={target:g}`, the cheapest that meets the "
        f"objectives, {cost:.2f} an hour."
    )


def _nodes_table(rates: Mapping[str, Sequence[tuple[int, float, Trial]]]) -> str:
    rows = []
    for own, other in zip(rates["random"], rates["least_request"], strict=True):
        nodes, rate, trial = own
        _, pooled, shared = other
        rows.append(
            [
                f"{nodes:,}",
                f"{rate:,.1f}",
                f"{trial.busy:.0%}",
                f"{pooled:,.1f}",
                f"{shared.busy:.0%}",
                f"{shared.audio_cost:.2f}",
            ]
        )
    heading = [
        "nodes",
        "requests in a second, random routing",
        "busy",
        "least-request routing",
        "busy",
        "cost of 1,000 h of audio",
    ]
    return _table(heading, rows)


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = (heading, ["---"] * len(heading), *rows)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _read_plan(path: Path) -> Plan:
    try:
        return Plan.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Plan or check; the exit status is 1 when a file is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.capacity",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True)
    planning = commands.add_parser("plan", help="how many pods, which target, what cost")
    planning.add_argument("--plot", type=Path, help="SVG of the plan")
    planning.set_defaults(run=make_plan)
    checking = commands.add_parser("check", help="against a load test")
    checking.add_argument("results", type=Path, help="results.json of an open-loop test")
    checking.set_defaults(run=check)
    for command in (planning, checking):
        command.add_argument("--config", type=Path, default=DEFAULT_CONFIG)
        command.add_argument("--service-time", type=Path, default=SERVICE_TIME)
        command.add_argument("--document", type=Path, help="page whose tables to fill")
        command.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
