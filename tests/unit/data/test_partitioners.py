"""Partitioners and splits: what must hold for any labels, and small cases worked out by hand."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from data_partitions import DataError, check_partition, splits
from data_partitions import partitioners as p

LABELS = st.lists(st.integers(0, 6), min_size=12, max_size=300).map(lambda values: np.array(values, np.int64))
CLIENTS = st.integers(1, 8)
SEED = st.integers(0, 2**32)
ALPHA = st.floats(1e-6, 1e6)


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def check_owner(owner: np.ndarray, labels: np.ndarray, clients: int) -> np.ndarray:
    """One owner in range per sample; returns how many samples each client has."""
    assert owner.shape == labels.shape
    assert owner.min() >= 0
    assert owner.max() < clients
    return np.bincount(owner, minlength=clients)


@given(LABELS, CLIENTS, SEED)
def test_iid_sizes_differ_by_at_most_one(labels: np.ndarray, clients: int, seed: int) -> None:
    sizes = check_owner(p.iid(labels, clients, None, rng(seed)), labels, clients)
    assert sizes.max() - sizes.min() <= 1


@given(LABELS, CLIENTS, ALPHA, SEED, st.sampled_from([p.dirichlet, p.quantity]))
def test_random_sizes_keep_the_minimum(labels: np.ndarray, clients: int, alpha: float, seed: int, assign) -> None:
    sizes = check_owner(assign(labels, clients, alpha, rng(seed)), labels, clients)
    assert sizes.min() >= min(p.MINIMUM, len(labels) // clients)


@given(SEED)
def test_topping_up_takes_no_more_than_is_missing(seed: int) -> None:
    owner = p._top_up(np.array([0] * 90 + [1] * 50 + [2] * 4), 4, rng(seed))
    # 6 + 10 are missing; the largest gives all of them, as it stays the largest.
    assert np.bincount(owner).tolist() == [74, 50, 10, 10]


def test_dirichlet_follows_alpha() -> None:
    labels = np.repeat(np.arange(10), 1000)
    largest_share = {}
    for alpha in (0.1, 1.0, 100.0):
        owner = p.dirichlet(labels, 10, alpha, rng(0))
        counts = np.bincount(owner * 10 + labels, minlength=100).reshape(10, 10)
        shares = counts / 1000
        largest_share[alpha] = shares.max(axis=0).mean()
        # Dirichlet(α): every share has mean 1/10 and variance 0.09 / (10 α + 1).
        assert shares.std() == pytest.approx(np.sqrt(0.09 / (10 * alpha + 1)), rel=0.25)
    assert largest_share[0.1] > largest_share[1.0] > largest_share[100.0]


@given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 9), SEED)
def test_shards_are_equal_runs_of_the_sorted_labels(clients: int, per_client: int, size: int, seed: int) -> None:
    labels = rng(seed).integers(0, 5, clients * per_client * size)
    owner = p.shards(labels, clients, per_client, rng(seed))
    assert set(check_owner(owner, labels, clients)) == {per_client * size}
    # A shard is a run of the sorted labels: clients together see no more classes than the runs do.
    runs = np.sort(labels).reshape(-1, size)
    borders = sum(len(np.unique(run)) for run in runs)
    assert sum(len(np.unique(labels[owner == client])) for client in range(clients)) <= borders


def test_shards_of_even_classes_give_at_most_k_classes() -> None:
    labels = np.tile(np.arange(10), 100)
    owner = p.shards(labels, 10, 2, rng(3))
    assert all(len(np.unique(labels[owner == client])) <= 2 for client in range(10))


def test_shards_that_do_not_divide_say_what_would() -> None:
    with pytest.raises(DataError, match=r"30 shards.*do not divide 5000 samples; per client 1 or 2 or 4 would"):
        p.shards(np.zeros(5000, np.int64), 10, 3, rng(0))


@given(LABELS, CLIENTS, st.integers(1, 7), SEED)
def test_classes_gives_exactly_k(labels: np.ndarray, clients: int, per_client: int, seed: int) -> None:
    try:
        owner = p.classes(labels, clients, per_client, rng(seed))
    except DataError:
        present, counts = np.unique(labels, return_counts=True)
        holders = -(-clients * per_client // len(present))
        assert per_client > len(present) or clients * per_client < len(present) or counts.min() < holders
        return
    check_owner(owner, labels, clients)
    for client in range(clients):
        assert len(np.unique(labels[owner == client])) == per_client


@given(SEED)
def test_classes_shares_each_class_evenly(seed: int) -> None:
    labels = np.repeat(np.arange(10), 60)
    owner = p.classes(labels, 15, 2, rng(seed))
    assert set(np.bincount(owner * 10 + labels, minlength=150)) == {0, 20}


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=80), st.integers(1, 6), st.booleans())
def test_natural_keeps_whole_clients_the_largest(rows: list, clients: int, divided: bool) -> None:
    client, is_test = (np.array(column) for column in zip(*rows, strict=True))
    size, tests = np.bincount(client, minlength=6), np.bincount(client[is_test], minlength=6)
    usable = {c for c in range(6) if (tests[c] >= 1 and size[c] - tests[c] >= 2 if divided else size[c] >= 3)}
    if len(usable) < clients:
        sentence = f"{clients} natural clients asked for, but the data set has {len(usable)}|is split by user"
        with pytest.raises(DataError, match=sentence):
            p.natural(client, is_test if divided else None, clients)
        return
    owner = p.natural(client, is_test if divided else None, clients)
    chosen = {int(c) for c in np.unique(client[owner >= 0])}
    assert chosen <= usable
    assert len(chosen) == clients
    assert min(size[list(chosen)]) >= max((size[c] for c in usable - chosen), default=0)
    for c in chosen:
        assert len(np.unique(owner[client == c])) == 1


@given(LABELS, CLIENTS, SEED, st.floats(0.01, 1))
def test_split_keeps_the_class_mix(labels: np.ndarray, clients: int, seed: int, fraction: float) -> None:
    assume(len(labels) >= 3 * clients)
    owner = p.iid(labels, clients, None, rng(seed))
    whole = splits.split(labels, owner, None, 1.0, rng(seed))
    assert set(np.unique(whole)) == {0, 1, 2}
    for client in range(clients):
        mine = owner == client
        n, validation, test = mine.sum(), (whole[mine] == 1).sum(), (whole[mine] == 2).sum()
        assert (validation, test) == (max(1, (n + 5) // 10), max(1, (2 * n + 5) // 10))
        assert n - validation - test >= 1
        for label in np.unique(labels[mine]):
            of_class = mine & (labels == label)
            m = of_class.sum()
            assert abs((whole[of_class] == 2).sum() - m * test / n) < 1
            assert abs((whole[of_class] == 1).sum() - m * validation / n) < 1.5
    part = splits.split(labels, owner, None, fraction, rng(seed))
    kept = part >= 0
    assert (part[kept] == whole[kept]).all()
    assert (whole[~kept] == 0).all()
    for client in range(clients):
        train = (whole[owner == client] == 0).sum()
        assert (part[owner == client] == 0).sum() == max(1, int(fraction * train + 0.5))


@given(LABELS, SEED)
def test_half_of_each_class_is_set_aside(labels: np.ndarray, seed: int) -> None:
    aside = splits.set_aside(labels, None, None, rng(seed))
    assert (np.bincount(labels[aside], minlength=7) == np.bincount(labels, minlength=7) // 2).all()


@given(LABELS, SEED)
def test_half_of_each_natural_client_is_set_aside_and_nothing_of_the_sources_test_part(
    labels: np.ndarray, seed: int
) -> None:
    client, is_test = rng(seed).integers(0, 3, len(labels)), rng(seed + 1).random(len(labels)) < 0.3
    aside = splits.set_aside(labels, client, is_test, rng(seed))
    assert not (aside & is_test).any()
    assert (np.bincount(client[aside], minlength=3) == np.bincount(client[~is_test], minlength=3) // 2).all()


@given(LABELS, CLIENTS, SEED, ALPHA, st.sampled_from([p.iid, p.dirichlet, p.quantity]))
def test_nothing_set_aside_is_tested_on_and_classes_and_sizes_stay(
    labels: np.ndarray, clients: int, seed: int, alpha: float, assign
) -> None:
    assume(len(labels) >= 3 * clients)
    aside = splits.set_aside(labels, None, None, rng(seed))
    drawn = assign(labels, clients, alpha, rng(seed))
    owner = splits.exchange(labels, drawn, ~aside, rng(seed))
    cells = [np.bincount(who * 7 + labels, minlength=7 * clients).reshape(-1, 7) for who in (drawn, owner)]
    assert (cells[0] == cells[1]).all()
    part = splits.split(labels, owner, None, 1.0, rng(seed), ~aside)
    assert not (part[aside] == 2).any()
    for client, n in enumerate(cells[1].sum(axis=1)):
        mine = owner == client
        assert [(part[mine] == s).sum() for s in (1, 2)] == [max(1, (n + 5) // 10), max(1, (2 * n + 5) // 10)]
        test = np.bincount(labels[mine & (part == 2)], minlength=7)
        assert np.abs(test - cells[1][client] * test.sum() / n).max() < 3


def test_exchange_by_hand() -> None:
    """The first client's three are for tuning: it gets one to be tested on for one of its own class."""
    labels, owner = np.array([0, 0, 1, 0, 0, 1, 1, 1]), np.array([0, 0, 0, 1, 1, 1, 1, 1])
    testable = np.array([False, False, False, True, True, False, False, False])
    for seed in range(20):
        found = splits.exchange(labels, owner, testable, rng(seed))
        assert np.bincount(found * 2 + labels).tolist() == [2, 1, 2, 3]
        assert sorted(found[testable]) == [0, 1]


def test_exchange_says_where_too_few_can_be_tested_on() -> None:
    labels, owner = np.array([0, 0, 0, 1, 1, 1]), np.array([0, 0, 0, 1, 1, 1])
    with pytest.raises(DataError, match=r"2 clients are too many for 6 samples: half are for tuning alone, .* fewer"):
        splits.exchange(labels, owner, labels == 1, rng(0))


def test_the_test_split_is_spread_over_the_classes_that_may_be_tested_on() -> None:
    labels = np.repeat([0, 1], [10, 5])
    allowed = np.isin(np.arange(15), [3, 7, 8, 12])
    # At even distances: 2, 7, 12. The two in class 0 are its first and its last third of what is allowed.
    assert splits._stratified(labels, allowed, 3).tolist() == [3, 8, 12]
    assert sorted(splits._stratified(labels, labels == 0, 3)) == [2, 5, 7]  # class 1 has none: the middle of the others
    assert splits._stratified(labels, allowed, 9).tolist() == [3, 7, 8, 12]
    assert splits._stratified(labels, labels < 2, 3).tolist() == splits._spread(15, 3).tolist()


@given(LABELS, SEED)
def test_split_respects_the_sources_test_part(labels: np.ndarray, seed: int) -> None:
    is_test = rng(seed).random(len(labels)) < 0.2
    is_test[:3] = True, False, False
    part = splits.split(labels, np.zeros(len(labels), np.int64), is_test, 1.0, rng(seed))
    assert ((part == 2) == is_test).all()
    train = (~is_test).sum()
    assert (part == 1).sum() == max(1, (train + 4) // 8)
    assert (part == 0).any()


def test_split_ignores_samples_without_owner() -> None:
    owner = np.array([-1, 0, 0, 0, -1])
    part = splits.split(np.zeros(5, np.int64), owner, None, 1.0, rng(0))
    assert ((part == splits.UNUSED) == (owner == splits.UNUSED)).all()
    assert sorted(part[1:4]) == [0, 1, 2]


def test_spread_by_hand() -> None:
    assert splits._spread(10, 2).tolist() == [2, 7]
    assert splits._spread(3, 3).tolist() == [0, 1, 2]
    assert splits._spread(5, 0).tolist() == []


@settings(max_examples=30)
@given(st.sampled_from([p.iid, p.dirichlet, p.quantity, p.classes]), SEED)
def test_same_seed_same_owners_and_numpys_global_state_untouched(assign, seed: int) -> None:
    labels = np.repeat(np.arange(5), 20)
    before = np.random.get_state()[1].copy()
    first, second, other = (assign(labels, 5, 2, rng(s)) for s in (seed, seed, seed + 1))
    assert (first == second).all()
    assert (first != other).any()
    assert (np.random.get_state()[1] == before).all()


@pytest.mark.parametrize(
    ("spec", "canonical"),
    [("iid", "iid"), ("dirichlet:.50", "dirichlet:0.5"), ("shards:2", "shards:2"), ("quantity:1", "quantity:1.0")],
)
def test_specs_have_one_form(spec: str, canonical: str) -> None:
    assert p.parse(spec).spec == canonical


@pytest.mark.parametrize(
    ("dataset", "spec", "clients", "message"),
    [
        ("nist", "iid", 3, "--dataset: no 'nist', did you mean 'mnist'; there are mnist5k"),
        ("npz:", "iid", 3, "--dataset: no 'npz:'"),
        ("mnist5k", "random", 3, "partition 'random' is unknown; choose one of iid"),
        ("mnist5k", "iid:1", 3, "has a parameter; write 'iid'"),
        ("mnist5k", "dirichlet", 3, "ALPHA is a number above 0"),
        ("mnist5k", "dirichlet:0", 3, "ALPHA is a number above 0"),
        ("mnist5k", "dirichlet:-1", 3, "ALPHA is a number above 0"),
        ("mnist5k", "dirichlet:nan", 3, "ALPHA is a number above 0"),
        ("mnist5k", "quantity:inf", 3, "ALPHA is a number above 0"),
        ("mnist5k", "shards:2.5", 3, "K is a whole number from 1"),
        ("mnist5k", "classes:0", 3, "K is a whole number from 1"),
        ("mnist5k", "natural", 3, "mnist5k has no natural clients"),
        ("mnist5k", "iid", 0, "0 clients are not possible; give a whole number from 1"),
        ("mnist5k", "iid", None, "needs a number of clients"),
    ],
)
def test_check_rejects_in_one_sentence(dataset: str, spec: str, clients: int | None, message: str) -> None:
    with pytest.raises(DataError) as error:
        check_partition(dataset, spec, clients)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("alpha", [1e200, 1e308, 1.7e308])
def test_beyond_all_measure_alpha_shares_equally(alpha: float) -> None:
    """Whose sum over clients is beyond the largest float."""
    labels = np.repeat(np.arange(4), 100)
    owner = p.dirichlet(labels, 10, alpha, rng(0))
    assert (np.abs(np.bincount(owner * 4 + labels) - 10) <= 1).all()
    assert (np.abs(np.bincount(p.quantity(labels, 10, alpha, rng(0))) - 40) <= 1).all()


def test_the_smallest_alpha_gives_each_client_the_same_chance() -> None:
    """All of a class goes to one of four clients; of 400 classes each client gets 100 ± 9 of them."""
    labels = np.repeat(np.arange(400), 3)
    shares = [p._shares(3, 4, 5e-324, stream) for stream in [rng(0)] for _ in range(400)]
    assert all(len(set(share)) == 1 for share in shares)
    assert (np.abs(np.bincount([share[0] for share in shares]) - 100) < 4 * 9).all()
    assert len(labels) == len(p.dirichlet(labels, 4, 5e-324, rng(0)))
