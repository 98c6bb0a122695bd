"""How the load changes over a test: shares of its peak, from 0 to 1, against the share of its time.

The load is the number of callers in the closed loop, and the arrival rate in the open one.
"""

from collections.abc import Callable

Shape = Callable[[float], float]

STEPS = 6
SPIKE = (0.4, 0.6)
SPIKE_BASE = 0.25
SOAK_START = 0.02
# A weekday of an office service, each hour's share of the busiest hour's; an assumption, see the docs.
DAY = (
    *(0.06, 0.04, 0.03, 0.03, 0.04, 0.08, 0.20, 0.45, 0.78, 0.96, 1.00, 0.95),
    *(0.78, 0.85, 0.97, 0.98, 0.90, 0.70, 0.45, 0.32, 0.26, 0.20, 0.14, 0.09),
)


def ramp(time: float) -> float:
    """Straight up, to find where it bends."""
    return time


def step(time: float) -> float:
    """Up in equal steps, so that each level can settle."""
    return min(int(time * STEPS) + 1, STEPS) / STEPS


def spike(time: float) -> float:
    """A quarter of the peak, the peak in the middle fifth, and the quarter again."""
    return 1.0 if SPIKE[0] <= time < SPIKE[1] else SPIKE_BASE


def soak(time: float) -> float:
    """The peak throughout, after a short start."""
    return min(time / SOAK_START, 1.0)


def day(time: float) -> float:
    """Twenty-four hours from midnight on, with a straight line between the full hours."""
    hour = time * 24
    before = int(hour) % 24
    return DAY[before] + (hour - int(hour)) * (DAY[(before + 1) % 24] - DAY[before])


# Callers are whole: with fewer than so many the closed loop cannot tell a shape's levels apart.
FEWEST_CALLERS = {
    "ramp": STEPS,
    "step": STEPS,
    "spike": round(1 / SPIKE_BASE),
    "soak": 1,
    "day": 10,
}
SHAPES: dict[str, Shape] = {"ramp": ramp, "step": step, "spike": spike, "soak": soak, "day": day}
