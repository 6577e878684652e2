"""Who trains next: plans by measured speed, and what is taken over where a plan was wrong."""

import heapq
from collections import Counter
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.runtime.dispatch import GUESS, Plan, Speeds, balance, largest_first, place

SIZES = st.dictionaries(st.integers(0, 50), st.integers(0, 500), max_size=30)
WORKERS = range(1, 4)
EQUAL = dict.fromkeys(WORKERS, 1.0)


def loads(sizes: dict[int, int], clients: dict[int, list[int]]) -> list[int]:
    return [sum(sizes[client] for client in own) for own in clients.values()]


def test_the_largest_client_goes_first_to_who_is_done_first() -> None:
    sizes = largest_first({0: 2, 1: 7, 2: 5, 3: 4, 4: 4})
    assert list(sizes) == [1, 2, 3, 4, 0]
    assert place(sizes, {}, {1: 1, 2: 1}, 0) == ({1: [1, 4], 2: [2, 3, 0]}, 11)
    # The second is three times as slow: 7 and 5 end at 12 on the first, 4 at 12 there; 4 at 16 and 2 at 18.
    assert place(sizes, {}, {1: 1, 2: 3}, 0) == ({1: [1, 2, 4, 0], 2: [3]}, 18)


def test_a_client_stays_where_its_state_is_unless_that_costs_time() -> None:
    sizes, paces = {0: 10, 1: 10, 2: 10, 3: 10}, {1: 1.0, 2: 1.0}
    assert balance(sizes, {0: 2, 1: 2, 2: 1, 3: 1}, paces) == {1: [2, 3], 2: [0, 1]}
    assert balance(sizes, {0: 1, 1: 1, 2: 1, 3: 2}, paces) == {1: [0, 1], 2: [2, 3]}
    # Three at home end at 30, two at 20: the move of a state that takes 10 would not pay.
    assert balance(sizes, {0: 1, 1: 1, 2: 1, 3: 2}, paces, move=10) == {1: [0, 1, 2], 2: [3]}


@given(SIZES, st.data())
def test_each_client_is_planned_once_and_no_worker_by_more_than_one_client_above_the_mean(
    sizes: dict[int, int], data: st.DataObject
) -> None:
    home = data.draw(st.dictionaries(st.sampled_from(sorted(sizes)), st.sampled_from(WORKERS))) if sizes else {}
    clients = balance(largest_first(sizes), home, EQUAL)
    assert Counter(client for own in clients.values() for client in own) == Counter(list(sizes))
    assert max(loads(sizes, clients)) <= sum(sizes.values()) / len(WORKERS) + max(sizes.values(), default=0)


def test_a_worker_that_was_not_measured_counts_as_the_mean() -> None:
    speeds = Speeds([1, 2, 3])
    assert speeds.pace(1) == GUESS
    speeds.measure(1, 1.0, 10)
    speeds.measure(2, 3.0, 10)
    speeds.measure(3, 5.0, 0)  # says nothing
    assert [speeds.pace(worker) for worker in (1, 2, 3)] == pytest.approx([0.1, 0.3, 0.2])


def test_as_many_train_as_a_host_has_cores_and_a_slow_one_makes_way() -> None:
    speeds = Speeds(range(1, 6))
    for worker, host, own in ((1, "a", [0]), (2, "a", [1]), (3, "a", [0, 1]), (4, "b", [7]), (5, "b", [7])):
        speeds.join(worker, host, own)
    speeds.choose(threads=1)
    assert speeds.active == [1, 2, 4]
    for worker, seconds in ((1, 1.0), (2, 3.0), (4, 1.1)):
        speeds.measure(worker, seconds, 10)
    speeds.choose(threads=1)
    assert speeds.active == [1, 3, 4]  # 3 is taken for the mean, 0.17, and stays worth it with a quarter on top
    speeds.choose(threads=2)
    assert speeds.active == [1, 4]


def simulate(plan: Plan, paces: dict[int, float]) -> tuple[float, int]:
    """Returns when the round ends whose workers have these seconds a sample, and how many updates waited at most."""
    events: list[tuple[float, int, int]] = []
    free, number, now, waited = dict.fromkeys(paces, 0.0), count(), 0.0, 0
    answered: set[int] = set()
    order = list(plan.sizes)
    while True:
        for worker in plan.speeds.active:
            while (client := plan.next(worker, now)) is not None:
                free[worker] = max(free[worker], now) + paces[worker] * plan.sizes[client]
                heapq.heappush(events, (free[worker], next(number), client))
        if not events:
            break
        now, _, client = heapq.heappop(events)
        assert client not in answered
        plan.answer(client, now)
        answered.add(client)
        turn = next((k for k, c in enumerate(order) if c not in answered), len(order))
        waited = max(waited, len(answered) - turn)
    assert answered == set(order)
    return now, waited


def plan_for(paces: dict[int, float], sizes: dict[int, int], rounds: int = 3, **about: int) -> tuple[float, int]:
    """Returns what ``simulate`` does of the last of so many rounds, of clients whose states stay with the workers."""
    speeds, home = Speeds(paces), dict.fromkeys(sizes, min(paces))
    for _ in range(rounds):
        plan = Plan(speeds, sizes, dict(home), set(sizes) if "state_bytes" in about else (), **about)
        ended = simulate(plan, paces)
        home = plan.at
    return ended


@pytest.mark.parametrize("states", [{}, {"state_bytes": 8}])
def test_a_slow_worker_gets_less(states: dict[str, int]) -> None:
    sizes = dict.fromkeys(range(10), 100)
    # 10 clients at 1 and 3 seconds each: eight and two take 8 seconds, where five and five take 15.
    assert plan_for({1: 0.01, 2: 0.03}, sizes, **states)[0] == pytest.approx(8)
    # In the first round nobody knows, and three of them start on the slow one.
    assert plan_for({1: 0.01, 2: 0.03}, sizes, rounds=1, **states)[0] <= 9.01


@given(
    st.lists(st.floats(0.2, 3), min_size=1, max_size=6),
    st.lists(st.integers(1, 300), min_size=1, max_size=40),
    st.sampled_from([0, 10_000_000]),
    st.sampled_from([{}, {"state_bytes": 1000}]),
)
def test_no_round_takes_longer_than_the_capacity_and_two_clients(
    paces: list[float], sizes: list[int], update_bytes: int, states: dict[str, int]
) -> None:
    own = dict(enumerate(paces, 1))
    end, waited = plan_for(own, dict(enumerate(sizes)), update_bytes=update_bytes, **states)
    capacity = sum(sizes) / sum(1 / pace for pace in paces)
    assert waited < max(2 * len(paces), 3 if update_bytes else len(sizes))
    if not update_bytes and not states:
        assert end <= 1.05 * capacity + 2 * max(sizes) * max(paces)


def test_large_updates_are_handed_out_in_the_order_of_the_sum() -> None:
    sizes = {client: 10 + client % 7 for client in range(100)}
    _, waited = plan_for({1: 1.0, 2: 1.1}, sizes, update_bytes=60_000_000)
    assert waited <= 2
    _, waited = plan_for({1: 1.0, 2: 3.0}, sizes, update_bytes=60_000_000)
    assert waited <= 3


@pytest.mark.parametrize("with_state", [False, True])
def test_who_stops_in_the_midst_of_a_round_loses_what_it_has_not_been_sent(with_state: bool) -> None:
    sizes = dict.fromkeys(range(8), 10)
    plan = Plan(Speeds([1, 2]), sizes, dict.fromkeys(sizes, 1), sizes if with_state else ())
    assert plan.unsent == {1: [0, 1, 2, 3], 2: [4, 5, 6, 7]}
    assert plan.moving == (dict.fromkeys([4, 5, 6, 7], 1) if with_state else {})
    assert [plan.next(worker, 0.0) for worker in (1, 1, 1, 2, 2, 2)] == [0, 1, None, 4, 5, None]  # two at a time
    for now in range(1, 7):
        plan.answer(plan.sent[1][0], now)
        plan.next(1, now)
    assert plan.sent == {1: [], 2: [4, 5]}
    assert plan.unsent == {1: [], 2: []}
    assert [plan.at[client] for client in sizes] == [1, 1, 1, 1, 2, 2, 1, 1]
    # Where states move they come from where they were to go: the last two were on their way to 2.
    assert plan.moving == ({4: 1, 5: 1, 6: 2, 7: 2} if with_state else {})
