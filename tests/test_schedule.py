"""When what happens in a training run."""

import pytest

from tax_lightning.modules.schedule import Schedule

SCHEDULE = Schedule(start=0.1, full=0.3, trials=(0.6, 0.7), final=0.85)
OFF = Schedule(enabled=False)


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        (SCHEDULE, {0.0: 0, 0.1: 0, 0.15: 0.25, 0.2: 0.5, 0.3: 1, 0.31: 1, 1.0: 1}),
        (Schedule(start=0.2, full=0.2), {0.19: 0, 0.2: 1, 0.21: 1}),  # without length, a step
        (OFF, {0: 1, 0.05: 1, 1: 1}),
    ],
)
def test_ramp_by_hand(schedule, factors):
    assert {share: schedule.ramp(share) for share in factors} == pytest.approx(factors)


def test_events_are_due_once_and_in_order():
    done: list[str] = []
    happened = []
    for step in range(20):
        events = SCHEDULE.due(step / 20, done)
        happened += [(step, *event) for event in events]
        done += [name for name, _ in events]
    assert happened == [
        *((2, "start", "start"), (12, "trial 1", "trial")),
        *((14, "trial 2", "trial"), (17, "final", "final")),
    ]


@pytest.mark.parametrize(
    ("schedule", "progress", "done", "names"),
    [
        (SCHEDULE, 1.0, [], ["start", "trial 1", "trial 2", "final"]),  # of a very short run
        (SCHEDULE, 0.9, ["start", "trial 1", "trial 2"], ["final"]),  # of a resumed one
        (Schedule(trials=()), 1.0, [], ["start", "final"]),
        (OFF, 1.0, [], []),
    ],
)
def test_what_is_due(schedule, progress, done, names):
    assert [name for name, _ in schedule.due(progress, done)] == names


DISORDER = [{"start": 0.4, "full": 0.3}, {"final": 1.1}, {"start": -0.1}]
DISORDER += [{"trials": trials} for trials in ((0.7, 0.6), (0.2,), (1.05,))]


@pytest.mark.parametrize("shares", DISORDER)
def test_shares_out_of_order_are_named(shares):
    with pytest.raises(ValueError, match="expected shares of the run in rising order") as error:
        Schedule(**shares)
    assert all(f"{name}={value}" in str(error.value) for name, value in shares.items())
