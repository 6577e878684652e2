"""What a person reads while a job runs and when it has ended, where its output is no terminal."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.federation.settings import Settings
from benchmarks.runtime import screen


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(screen.time, "monotonic", lambda: clock.now)
    monkeypatch.setattr(screen, "terminal", lambda: None)
    return clock


def ended(settings: Settings, **seconds: float) -> Any:
    progress = SimpleNamespace(diverged=None, seconds={"training": 1.0, "evaluation": 1.0} | seconds)
    return SimpleNamespace(settings=settings, progress=progress, newcomers=SimpleNamespace(figures={}), noise=None)


def test_a_long_round_says_each_half_minute_how_far_it_is(
    clock: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = screen.Screen(1)
    shown.begin(Settings(rounds=5), 0)
    capsys.readouterr()
    for clock.now in range(5, 75, 5):
        shown.within(1, "client", int(clock.now), 100)
    assert capsys.readouterr().out.splitlines() == [
        "  in round 1/5: client 35 of 100",
        "  in round 1/5: client 70 of 100",
    ]


def test_a_job_ends_with_where_its_results_are_and_what_to_type_next(
    clock: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    shown, settings = screen.Screen(2), Settings(out=Path("my runs"))
    shown.end(ended(settings))
    shown.leave(settings.out)
    next_ = ["  python benchmarks/report.py 'my runs'", "  tensorboard --logdir 'my runs'"]
    one = "results in my runs/mnist5k-dirichlet:0.5/pfedpara/seed0; next:"
    assert capsys.readouterr().out.splitlines() == [one, *next_]
    shown.end(ended(settings.model_copy(update={"seed": 1})))
    shown.leave(settings.out)
    assert capsys.readouterr().out.splitlines() == ["results of 2 runs in my runs; next:", *next_]


@pytest.mark.parametrize(
    ("every", "seconds", "said"),
    [(1, 61.0, True), (5, 61.0, False), (1, 59.0, False)],
)
def test_judging_less_often_is_suggested_where_it_takes_longer_than_training(
    clock: SimpleNamespace, capsys: pytest.CaptureFixture[str], every: int, seconds: float, said: bool
) -> None:
    shown = screen.Screen(1)
    shown.end(ended(Settings(eval_every=every), training=60.0, evaluation=seconds))
    line = "  judging took 61 s, training 60 s; --eval-every 5 judges each fifth round"
    assert capsys.readouterr().out.splitlines() == [line] * said
