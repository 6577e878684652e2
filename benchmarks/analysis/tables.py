"""The tables as a person reads them, and what their columns mean."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.ticker import EngFormatter

from benchmarks.analysis import TARGET
from benchmarks.analysis.compare import Comparison, arrange
from benchmarks.analysis.statistics import FEWEST, REFERENCE
from benchmarks.federation.metrics import recorded_metrics
from benchmarks.federation.names import WEIGHTS
from benchmarks.perf import cost

LEGEND = (
    "Accuracy: each client's own model on its own test split after the last round, mean over clients; "
    f"± the 95 % interval of the mean over seeds (Student's t), from {FEWEST} seeds on.",
    f"Difference to {REFERENCE}: in points, on the same partition and seed, ± the 95 % interval of the mean of these "
    "paired differences (Student's t).",
    "Worst decile: mean over the worst tenth of the clients.",
    "Below local: clients worse off than with local-only training, compared one by one on the same partition and seed.",
    "Parameters per client and round: each way. Total sent: parameters, up and down, of all clients, in all rounds. "
    "MB: 10⁶ bytes handed to MPI, headers included.",
    "Sent up to the model: what of this the judged models need. A client that is judged on what it receives needs one "
    "more downlink; where all are judged on what they trained, the last round's uplink is not needed.",
    "Sent to reach: the same for the first round in which the mean over seeds reaches the target accuracy. The target "
    f"is {100 * TARGET:.0f} % of the best method's final accuracy, or as given; where local training reaches that, the "
    "middle between what local training reaches and the best.",
)
LEGEND_OF_METRICS = (
    "Loss, balanced accuracy and macro F1: as accuracy. The latter two are means over the classes that a client's test "
    "split holds. Success of the trigger: the share of test samples of other classes that it turns to its own."
)
LEGEND_OF_NEWCOMERS = (
    "New clients: clients that took no part, on their own test splits after the last round; as received: the new "
    "aggregate with initial private tensors; adapted: the model that such a client then deploys. Each receives these "
    "parameters, and takes gradients of so many samples' losses to adapt."
)
LEGEND_OF_ACCESS = (
    "Too late: updates that the deadline shut out, of those asked for. Never heard: clients whose update arrived in no "
    "round; for the other columns they adapt the last aggregate as new clients do. Slowest and fastest tenth: by link. "
    "Gini: of the clients' accuracies, 0 where all are alike."
)
LEGEND_OF_COST = (
    "Seconds of a round: what benchmarks/perf/cost.py computes from these bytes and the recorded run of "
    "benchmarks/perf/runtime.py, for a client on each of 100 ranks, and for 10,000 phones with 10 Mb/s each way, the "
    "server at 10 Gb/s; training "
    f"takes what it took there on one core, one local epoch of {cost.SAMPLES} samples of 28 × 28 in batches of "
    f"{cost.BATCH} on the {cost.MODEL}, whatever the runs did. Other models, and methods not measured, are left out."
)
LEGEND_OF_PRIVACY = (
    "Privacy: of one client among those that take part, towards whoever sees what the server gives back; the server is "
    "trusted. ε at δ is dp-accounting's for clients that are replaced by others; not private: noise was drawn from "
    "--dp-seed. Norm of the noise: its standard deviation times the square root of the parameters that it was added to."
)
LEGEND_OF_WORK = (
    "Gradients: of how many samples' losses a client takes them, a batch of B counting B times, as a mean over clients "
    "and rounds; before use: where a client adapts its model before it is judged, once, which training does not see. "
    "GFLOP: 10⁹ floating-point operations of their matrix products and convolutions, forward and backward."
)
NONE = "–"


def amount(parameters: float) -> str:
    if np.isnan(parameters):
        return NONE
    return f"{parameters:,.0f}" if parameters < 1e5 else EngFormatter(places=1)(parameters)


def percent(fraction: float) -> str:
    return NONE if np.isnan(fraction) else f"{100 * fraction:.1f}"


def megabytes(count: float) -> str:
    return NONE if np.isnan(count) else f"{count / 1e6:,.0f}"


def with_half(mean: str, half: float, show: Callable[[float], str] = percent) -> str:
    """Returns the ``mean`` with half the width of its interval as ``show`` words it; alone where that is NaN."""
    return mean if np.isnan(half) else f"{mean} ± {show(half)}"


def difference(fraction: float, half: float) -> str:
    return NONE if np.isnan(fraction) else with_half(f"{100 * fraction:+.1f}", half)


def wording(comparison: Comparison) -> pd.DataFrame:
    """Returns the comparison's table as a person reads it, with headings that explain themselves."""
    rows = []
    for row in comparison.table.reset_index().itertuples():
        accuracy = percent(row.accuracy) if row.seeds else "diverged"
        exchanged = [f"{row.up:,.0f}"] if row.up == row.down else [f"{row.up:,.0f} up", f"{row.down:,.0f} down"]
        rows.append(
            {
                "method": row.method,
                "seeds": f"{row.seeds}/{row.seeds + row.diverged}" if row.diverged else row.seeds,
                "accuracy %": with_half(accuracy, row.half_interval),
                f"difference to {REFERENCE}": difference(row.difference, row.half_interval_of_difference),
                "worst decile %": percent(row.worst_decile),
                "clients below local %": percent(row.below_local),
                "parameters per client and round": ", ".join(exchanged) if row.seeds else NONE,
                "total sent": amount(row.transmitted),
                "sent up to the model": amount(row.to_model),
                "MB sent": megabytes(row.bytes),
                f"sent to reach {percent(comparison.target)} %": amount(row.to_target),
            }
        )
    return pd.DataFrame(rows).astype(str)


def wording_of_grid(comparison: Comparison) -> pd.DataFrame:
    """Returns a row for each optimizer and a column for each choice of weights and bits: accuracy, and MB sent."""
    found = arrange(comparison)
    order = {"dense": 0, "lowrank": 1, "fedpara": 2, "pfedpara": 3, "fedsa": 4}
    optimizers = sorted({optimizer for optimizer, *_ in found})
    columns = sorted(
        {tuple(column) for _, *column in found}, key=lambda c: (order[c[0]], *(-int(b.lstrip("float")) for b in c[1:]))
    )
    rows = []
    for optimizer in optimizers:
        row = {"optimizer": optimizer}
        for weights, up, down in columns:
            cell = NONE
            if method := found.get((optimizer, weights, up, down)):
                figures = comparison.table.loc[method]
                accuracy = with_half(percent(figures["accuracy"]), figures["half_interval"])
                cell = f"{accuracy} ({megabytes(figures['bytes'])} MB)"
            way_up, way_down = (f"{form} bits" if form.isdigit() else form for form in (up, down))
            row[f"{weights}, {way_up}" + (f" up, {way_down} down" if down != "32" else "")] = cell
        rows.append(row)
    return pd.DataFrame(rows)


def wording_of_metrics(comparison: Comparison) -> pd.DataFrame:
    """Returns a row for each finished method and a column for each metric beside accuracy; none where none is known."""
    table = comparison.table.loc[list(comparison.runs)]
    words = {"method": list(table.index)}
    for metric in recorded_metrics(run.summary for runs in comparison.runs.values() for run in runs):
        if metric.name != "accuracy" and table[metric.name].notna().any():
            halves = table[f"half_interval_of_{metric.name}"]
            words[metric.label] = [
                NONE if np.isnan(mean) else with_half(metric.show(mean), half, metric.show)
                for mean, half in zip(table[metric.name], halves, strict=True)
            ]
    return pd.DataFrame(words if len(words) > 1 else {})


def seconds_of_rounds(comparison: Comparison, method: str) -> dict[str, float]:
    """Returns the seconds of a round on a cluster and with phones; empty where perf.py did not measure its training."""
    constants, train = cost.recorded() or (None, {})
    summary = comparison.runs[method][0].summary
    algo, weights = summary["algo"], summary.get("parameterization", "dense")
    own = weights in ("dense", WEIGHTS.get(algo, algo))
    if not constants or algo not in train or not own or summary["model"] != cost.MODEL:
        return {}
    figures = comparison.table.loc[method]
    round_of = constants, train[algo], (figures["bytes_up"] + figures["bytes_down"]) / 2
    return {"cluster": cost.cluster_round(*round_of).total, "phones": cost.phones_round(*round_of).total}


def wording_of_cost(comparison: Comparison) -> pd.DataFrame:
    """Returns a row for each method whose training perf.py measured; none where no run of it is recorded."""
    rows = []
    for method in comparison.runs:
        if seconds := seconds_of_rounds(comparison, method):
            figures = comparison.table.loc[method]
            rows.append(
                {
                    "method": method,
                    "bytes up per client and round": f"{figures['bytes_up']:,.0f}",
                    "bytes down per client and round": f"{figures['bytes_down']:,.0f}",
                    "seconds a round, 100 ranks, 10 Gb/s": f"{seconds['cluster']:.3f}",
                    "seconds a round, 10,000 phones, 10 Mb/s": f"{seconds['phones']:.2f}",
                }
            )
    return pd.DataFrame(rows)


def wording_of_work(comparison: Comparison) -> pd.DataFrame:
    """Returns a row for each method whose runs counted their gradients; none where no run did."""
    rows = []
    for method, runs in comparison.runs.items():
        found = [each for run in runs if isinstance(each := run.summary.get("work"), dict)]
        if len(found) < len(runs):
            continue
        clients, rounds = runs[0].summary["clients"], runs[0].summary["rounds"]
        taking_part = rounds * runs[0].settings.get("clients_per_round", clients)

        def mean(unit: str, of: str, count: int, scale: float = 1, found: list[dict[str, Any]] = found) -> str:
            values = [each[unit][of] for each in found]
            return NONE if None in values else f"{np.mean(values) / count / scale:,.{0 if scale == 1 else 3}f}"

        rows.append(
            {
                "method": method,
                "gradients per client and round": mean("gradients", "training", taking_part),
                "GFLOP per client and round": mean("flops", "training", taking_part, 1e9),
                "gradients per client before use": mean("gradients", "adaptation", clients),
                "GFLOP per client before use": mean("flops", "adaptation", clients, 1e9),
            }
        )
    return pd.DataFrame(rows)


def wording_of_privacy(comparison: Comparison) -> pd.DataFrame:
    """Returns a row for each method whose updates were clipped; none where no method's were."""
    rows = []
    for method, runs in comparison.runs.items():
        if not (found := [known for run in runs if isinstance(known := run.summary.get("privacy"), dict)]):
            continue
        known, figures = found[0], comparison.table.loc[method]
        spent = [each["epsilon"] for each in found]
        deviation = known["noise"] * known["clip"] / known["participants"]
        promised = "not private" if None in spent else f"{max(spent):.3g}"
        rows.append(
            {
                "method": method,
                "accuracy %": with_half(percent(figures["accuracy"]), figures["half_interval"]),
                "ε": promised if known["noise"] else NONE,
                "δ": f"{known['delta']:.2g}" if known["noise"] else NONE,
                "clip C": f"{known['clip']:g}",
                "noise σ": f"{known['noise']:g}",
                "participants": f"{known['participants']} of {known['clients']}",
                "norm of the noise": f"{deviation * figures['up'] ** 0.5:.3g}",
            }
        )
    return pd.DataFrame(rows)


def wording_of_newcomers(comparison: Comparison) -> pd.DataFrame:
    """Returns a row for each method that was judged on clients that took no part; none where there are none."""
    table = comparison.table.loc[list(comparison.runs)]
    known = table[table["new_received"].notna()]

    def each(method: str, *keys: str) -> str:
        """Returns the mean over runs of what one new client receives or computes."""
        found = []
        for new in (run.summary["new_clients"] for run in comparison.runs[method]):
            value: Any = new
            for key in keys:
                value = value.get(key, {})  # an earlier version did not count
            found.append(np.nan if value == {} else value / len(new["received"]["per_client"]))
        return amount(float(np.mean(found)))

    return pd.DataFrame(
        {
            "method": known.index,
            "new clients, as received %": known["new_received"].map(percent).to_list(),
            "new clients, adapted %": known["new_adapted"].map(percent).to_list(),
            "parameters to each": [each(method, "transmitted", "parameters_down") for method in known.index],
            "gradients of each": [each(method, "gradients") for method in known.index],
        }
    )


def wording_of_access(comparison: Comparison) -> pd.DataFrame:
    """Returns a row for each method whose clients have links; none where they have none."""
    rows = []
    for method, runs in comparison.runs.items():
        found = [each for run in runs if isinstance(each := run.summary.get("access"), dict)]
        if len(found) < len(runs):
            continue
        clients = runs[0].summary["clients"]
        asked = runs[0].summary["rounds"] * runs[0].settings.get("clients_per_round", clients)
        joined = [{name: np.array(value, float) for name, value in each["joined"].items()} for each in found]
        rows.append(
            {
                "method": method,
                "updates too late %": percent(float(np.mean([run.summary["absent"]["late"] for run in runs])) / asked),
                "clients never heard %": percent(
                    float(np.mean([len(each["never_heard"]) for each in found])) / clients
                ),
                "all clients %": percent(float(np.mean([each["mean"] for each in joined]))),
                "slowest tenth %": percent(float(np.mean([each["by_speed"][0] for each in joined]))),
                "fastest tenth %": percent(float(np.mean([each["by_speed"][-1] for each in joined]))),
                "worst tenth %": percent(float(np.mean([each["worst_decile"] for each in joined]))),
                "Gini": f"{np.mean([each['gini'] for each in joined]):.4f}",
            }
        )
    return pd.DataFrame(rows)


FURTHER = {
    **{wording_of_metrics: LEGEND_OF_METRICS, wording_of_newcomers: LEGEND_OF_NEWCOMERS},
    **{wording_of_privacy: LEGEND_OF_PRIVACY},
    **{wording_of_access: LEGEND_OF_ACCESS},
    **{wording_of_work: LEGEND_OF_WORK, wording_of_cost: LEGEND_OF_COST},
}
"""The tables after the first one, where they have rows, and what their columns mean."""


def further_tables(comparison: Comparison) -> list[pd.DataFrame]:
    return [words for words_of in FURTHER if not (words := words_of(comparison)).empty]


def legend(comparisons: Sequence[Comparison]) -> tuple[str, ...]:
    shown = (line for words_of, line in FURTHER.items() if not all(words_of(each).empty for each in comparisons))
    return *LEGEND, *shown
