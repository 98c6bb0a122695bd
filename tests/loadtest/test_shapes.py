import pytest

from loadtest.shapes import FEWEST_CALLERS, SHAPES, day, ramp, soak, spike, step

TIMES = [i / 1000 for i in range(1000)]


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_stays_within_its_peak_and_reaches_it(name: str) -> None:
    values = [SHAPES[name](time) for time in TIMES]
    assert min(values) >= 0
    assert max(values) == pytest.approx(1, abs=2e-3)


def test_ramp_and_steps_only_rise() -> None:
    for shape in (ramp, step):
        values = [shape(time) for time in TIMES]
        assert values == sorted(values)
    assert len({step(time) for time in TIMES}) == 6


def test_a_spike_returns_to_where_it_came_from() -> None:
    assert spike(0) == spike(0.39) == spike(0.6) == spike(0.99) == 0.25
    assert spike(0.4) == spike(0.59) == 1


def test_a_soak_is_flat_but_for_its_start() -> None:
    assert {soak(time) for time in TIMES if time >= 0.02} == {1}


def test_a_day_has_no_jump_and_ends_as_it_begins() -> None:
    values = [day(time) for time in TIMES]
    steps = [abs(a - b) for a, b in zip(values, [*values[1:], values[0]], strict=True)]
    assert max(steps) < 0.01
    assert values.index(max(values)) == pytest.approx(1000 * 10 / 24, abs=1)


@pytest.mark.parametrize("name", SHAPES)
def test_the_fewest_callers_show_the_shape(name: str) -> None:
    fewest = FEWEST_CALLERS[name]
    seen = {max(1, round(fewest * SHAPES[name](time))) for time in TIMES}
    assert len(seen) == {"ramp": 6, "step": 6, "spike": 2, "soak": 1, "day": 10}[name]
