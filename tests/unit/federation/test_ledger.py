"""Traffic up to a model, by hand."""

import pytest

from benchmarks.federation.ledger import Entry, totals, traffic_to_model

CLIENTS = 10


def sent(parameters: int, rounds: int) -> list[Entry]:
    """Ten clients that take part in each round, with four bytes for a parameter and 256 for a header."""
    return [
        Entry(number, client, way, parameters, 4 * parameters + 256)
        for number in range(1, rounds + 1)
        for client in range(CLIENTS)
        for way in ("up", "down")
        if parameters
    ]


def up_to_model(parameters: int, rounds: int, receivers: int) -> dict[str, int]:
    entries = sent(parameters, rounds)
    last = totals([entry for entry in entries if entry.round == rounds], ("up",))
    downlinks = [
        Entry(rounds + 1, client, "down", parameters, 4 * parameters + 256) for client in range(receivers) if parameters
    ]
    return traffic_to_model(totals(entries), last, downlinks)


@pytest.mark.parametrize(
    ("parameters", "rounds", "receivers", "expected"),
    [
        (203_530, 2, 10, 10_176_500),  # fedavg: 8,141,200 and a downlink to each
        (203_530, 1, 10, 6_105_900),  # fedavg-ft
        (200_960, 2, 0, 6_028_800),  # fedper: 8,038,400 without the second round's uplink
        (59_570, 5, 0, 5_361_300),  # pfedpara
        (200_960, 2, 3, 8_641_280),  # three clients never trained: they need the aggregate, and it the uplink
        (0, 3, 0, 0),  # local
    ],
)
def test_what_is_sent_until_the_judged_models_are_on_the_clients(
    parameters: int, rounds: int, receivers: int, expected: int
) -> None:
    found = up_to_model(parameters, rounds, receivers)
    messages = 2 * CLIENTS * rounds + (receivers or -CLIENTS) if parameters else 0
    assert found == {"parameters": expected, "bytes": 4 * expected + 256 * messages}
