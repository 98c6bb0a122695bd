"""Work on a CPU's threads, of which there may be more or fewer from one moment to the next."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Event, local
from typing import Any, TypeVar

import torch
from torch import nn

# A CPU reads two groups at once, each with half of the threads: what a search computes in a step is too
# little for many (docs/experiments.md).
LANES = 2
PAUSE_SECONDS = 0.002

Group = TypeVar("Group")
Result = TypeVar("Result")


@dataclass
class _Call:
    """One call of `Lanes.map`: lanes at work, and whether the first has no more to do."""

    at_work: int = 1
    first_ended: Event = field(default_factory=Event)


class _Here(local):
    """What this thread is doing."""

    call: _Call | None = None
    may_pause: bool = False


class Lanes:
    """Two lanes for work in groups, while there are threads for two.

    Args:
        threads: how many may be used now.
        steps: modules of which the work is made: before each call of one of them a lane takes the
            threads that there are then. While there are too few for two lanes, the second pauses there.
    """

    def __init__(self, threads: Callable[[], int], steps: Iterable[nn.Module] = ()) -> None:
        self._threads = threads
        self._here = _Here()
        for module in steps:
            module.register_forward_pre_hook(self._before_step)

    @property
    def count(self) -> int:
        """Lanes that can be used now."""
        return LANES if self._threads() >= LANES else 1

    def map(self, work: Callable[[Group], Result], groups: Sequence[Group]) -> list[Result]:
        """Do the work for each group; results in order.

        A single group is worked on with all threads. What the work raises is raised when all that has
        begun has ended.
        """
        call = _Call()
        results: dict[int, Result] = {}
        left = iter(list(enumerate(groups)))  # of a list: two threads may share it

        def take_groups() -> None:
            self._here.call, self._here.may_pause = call, True
            try:
                while self.count == LANES and (item := next(left, None)):
                    self._take_threads(call)
                    results[item[0]] = work(item[1])
            finally:
                call.at_work = 1
                self._here.call = None

        before = torch.get_num_threads()
        self._here.call = call
        # Its thread ends with this call. One that has computed in parallel keeps helpers of its own, and
        # with more threads than processors OpenMP's idle ones sleep at once instead of waiting busily:
        # a lone clip took a sixth longer ever after (docs/experiments.md).
        second_lane = ThreadPoolExecutor(1, "lane")
        second: Future[None] | None = None
        try:
            for index, group in left:
                if second is not None and second.done():
                    second.result()  # raises what it raised
                    second = None
                if second is None and len(groups) > 1 and self.count == LANES:
                    call.at_work = LANES
                    second = second_lane.submit(take_groups)
                self._take_threads(call)
                results[index] = work(group)
            call.first_ended.set()
            call.at_work = 1
            if second is not None:
                second.result()
            return [results[index] for index in range(len(groups))]
        finally:
            # After an error nothing begins any more: the caller may try again.
            for _ in left:
                pass
            call.first_ended.set()
            second_lane.shutdown()
            self._here.call = None
            _use(before)
            # An error holds this frame, and with it what these hold.
            second = None
            results.clear()

    def _before_step(self, module: nn.Module, given: Any) -> None:
        call = self._here.call
        if call is None:  # somebody else's step
            return
        if self._here.may_pause:
            while self.count < LANES and not call.first_ended.wait(PAUSE_SECONDS):
                pass
        self._take_threads(call)

    def _take_threads(self, call: _Call) -> None:
        """Let torch use this lane's part of the threads for what it begins now."""
        _use(max(1, self._threads() // call.at_work))


def _use(threads: int) -> None:
    if torch.get_num_threads() != threads:  # setting it drops kernels
        torch.set_num_threads(threads)
