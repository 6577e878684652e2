"""The model of a round's cost against sums done by hand."""

import pytest

from benchmarks.perf.cost import Constants, cluster_round, fit, local_round, phones_round

SECONDS_A_BYTE, WAIT, TRAIN = 1e-9, 0.004, 0.02


def test_the_fit_finds_the_constants_that_the_figures_were_made_with() -> None:
    sent = 800_000
    exchanges = {n: 20 * 4 * n * SECONDS_A_BYTE + 0.001 for n in (200_000, 1_600_000, 15_000_000)}
    # Ten clients on one worker take ten turns, on two or more workers five: there are two cores.
    rounds = {1: 10 * TRAIN, 2: 5 * TRAIN, 5: 5 * TRAIN, 10: 5 * TRAIN}
    rounds = {workers: seconds + 20 * sent * SECONDS_A_BYTE + WAIT for workers, seconds in rounds.items()}
    constants, train = fit(rounds, exchanges, 10, sent, cores=2)
    assert constants.serialise == pytest.approx(SECONDS_A_BYTE)
    assert constants.wait == pytest.approx(WAIT)
    assert train == pytest.approx(TRAIN)
    model = local_round(constants, train, 10, sent, 2)
    assert model.total == pytest.approx(rounds[2])
    assert model.compute == pytest.approx(5 * TRAIN)


def test_no_constant_is_negative() -> None:
    """Rounds that get slower with more workers say nothing of compute."""
    constants, train = fit({1: 0.18, 2: 0.19, 10: 0.22}, {200_000: 0.01, 15_000_000: 0.2}, 10, 800_000, cores=2)
    assert train >= 0
    assert min(constants) >= 0


def test_links_are_counted_in_bits() -> None:
    constants = Constants(SECONDS_A_BYTE, WAIT)
    cluster = cluster_round(constants, TRAIN, 1_250_000)  # 10 Mb each way
    assert cluster.compute == TRAIN
    assert cluster.transfer == pytest.approx(2 * 100 * 10e6 / 10e9)
    assert cluster.serialise == pytest.approx(2 * 100 * 1_250_000 * SECONDS_A_BYTE)
    phones = phones_round(constants, TRAIN, 1_250_000)
    assert phones.transfer == pytest.approx(2 * 10_000 * 10e6 / 10e9 + 2 * 10e6 / 10e6)
    assert phones.total == pytest.approx(sum(phones))
