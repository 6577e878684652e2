"""The figures of each method: means over seeds, their intervals, differences, and what it sent to reach a target."""

from collections.abc import Sequence
from functools import reduce

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from benchmarks.analysis import TARGET
from benchmarks.analysis.load import EndedRun
from benchmarks.federation.metrics import recorded_metrics

FEWEST = 3
"""Seeds from which on there are intervals: that of two reaches 12.7 standard errors to either side."""

ROUNDING = 1e-9
"""Below a target that a mean over seeds still reaches it: the mean of three times 0.6 is a little less."""

REFERENCE = "pfedpara"
"""The method that all are compared with, seed by seed."""


def half_interval(values: Sequence[float]) -> float:
    """Returns half the width of the 95 % interval of the mean (Student's t); NaN for fewer than FEWEST values."""
    return float(half_intervals(np.reshape(values, (-1, 1)))[0])


def half_intervals(values: np.ndarray) -> np.ndarray:
    """Returns ``half_interval`` of each column of ``values``, (n, m): (m,)."""
    n = len(values)
    if n < FEWEST:
        return np.full(values.shape[1], np.nan)
    return stdtrit(n - 1, 0.975) * values.std(axis=0, ddof=1) / np.sqrt(n)


def mean_of_all(values: pd.Series) -> float:
    """Returns the mean; NaN where one value is."""
    return float(values.mean(skipna=False))


def align(runs: list[EndedRun]) -> list[pd.DataFrame]:
    """Returns the rounds that all of the ``runs`` recorded, a table for each run, indexed by round."""
    tables = [run.rounds.set_index("round") for run in runs]
    common = reduce(pd.Index.intersection, [table.index for table in tables])
    return [table.loc[common] for table in tables]


def mean_curve(runs: list[EndedRun]) -> pd.DataFrame:
    """Returns parameters, to_model, accuracy and half_interval, a row for each round that every run recorded.

    Means over the runs; NaN where one of them lacks the figure.
    """
    tables = align(runs)
    parameters, to_model, accuracies = (
        np.array([table[name] for table in tables]) for name in ("parameters", "to_model", "accuracy_mean")
    )
    return pd.DataFrame(
        {
            "parameters": parameters.mean(axis=0),
            "to_model": to_model.mean(axis=0),
            "accuracy": accuracies.mean(axis=0),
            "half_interval": half_intervals(accuracies),
        },
        index=tables[0].index,
    )


def differences_to_local(runs: list[EndedRun], local: list[EndedRun]) -> list[np.ndarray]:
    """Returns each client's accuracy less the same client's on its own: (clients,) for each run with a partner."""
    alone = {run.partition: run.summary["accuracy"]["per_client"] for run in local}
    return [
        np.subtract(run.summary["accuracy"]["per_client"], alone[run.partition])
        for run in runs
        if run.algo != "local" and run.partition in alone
    ]


def paired_differences(ours: list[EndedRun], theirs: list[EndedRun]) -> list[float]:
    """Returns each run's mean accuracy less its partner's, on the same seed and partition; of those that have one."""
    there = {run.partition: run.summary["accuracy"]["mean"] for run in theirs}
    return [run.summary["accuracy"]["mean"] - there[run.partition] for run in ours if run.partition in there]


def reached_alone(local: list[EndedRun]) -> float:
    """Returns the highest accuracy after any round of the ``local`` runs, a mean over them; NaN where there is none."""
    return float(mean_curve(local)["accuracy"].max()) if local else float("nan")


def choose_target(best: float, alone: float) -> float:
    """Returns the default target: TARGET of the ``best`` method's final accuracy, but above what training ``alone``
    reaches. Where that is not above, the middle between the two accuracies; NaN where no method is better than alone.
    """
    if not TARGET * best <= alone:
        return TARGET * best
    return (alone + best) / 2 if best > alone else float("nan")


def tabulate(runs: dict[str, list[EndedRun]], target: float | None) -> tuple[pd.DataFrame, float]:
    """Returns a row for each method of ``runs``, best first, and the target accuracy that its last column is about.

    Means over seeds: accuracy with half_interval, difference (to the REFERENCE on the same seed and partition) with
    half_interval_of_difference, worst_decile and below_local (share of clients), as fractions; up and down, parameters
    a client and round, and bytes_up and bytes_down; transmitted, parameters in all, and bytes; to_model and
    bytes_to_model, those to be sent until the models judged last are on the clients; to_target, these parameters for
    the round in which the mean over seeds first reaches the target; the other metrics by name, each with its
    half_interval_of; new_received and new_adapted, accuracies of clients that took no part. NaN where a method has no
    such figure. Without a ``target``, ``choose_target`` takes one.
    """
    columns = ["accuracy.mean", "accuracy.worst_decile", "parameters_per_client_round.up"]
    columns += ["parameters_per_client_round.down"]
    columns += [f"transmitted.{what}_{way}" for what in ("parameters", "bytes") for way in ("up", "down")]
    flat = pd.json_normalize([run.summary | {"label": run.algo} for finished in runs.values() for run in finished])
    to_model = ["traffic_to_model.parameters", "traffic_to_model.bytes"]
    summaries = [run.summary for finished in runs.values() for run in finished]
    others = [metric.name for metric in recorded_metrics(summaries) if metric.name != "accuracy"]
    newcomers = {f"new_{name}": f"new_clients.{name}.mean" for name in ("received", "adapted")}
    flat = flat.reindex(
        columns=["label", *columns, *to_model, *(f"{name}.mean" for name in others), *newcomers.values()]
    )
    for name in (*(f"{name}.mean" for name in others), *newcomers.values()):
        # null where a client's is missing, as in a run that began without this metric
        flat[name] = pd.to_numeric(flat[name], errors="coerce")
    seeds = flat.groupby("label")
    mean = seeds[columns].mean()
    if target is None:
        target = choose_target(mean["accuracy.mean"].max(), reached_alone(runs.get("local", [])))
    sent = {  # bytes of a message; 0 where none was sent
        way: mean[f"transmitted.bytes_{way}"]
        / mean[f"transmitted.parameters_{way}"].clip(lower=1)
        * mean[f"parameters_per_client_round.{way}"]
        for way in ("up", "down")
    }
    below, to_target, paired = {}, {}, {}
    for algo, finished in runs.items():
        if differences := differences_to_local(finished, runs.get("local", [])):
            below[algo] = np.mean(np.concatenate(differences) < 0)
        paired[algo] = [] if algo == REFERENCE else paired_differences(finished, runs.get(REFERENCE, []))
        if finished:
            curve = mean_curve(finished)
            to_target[algo] = curve.loc[curve["accuracy"] >= target - ROUNDING, "to_model"].head(1).min()
    table = pd.DataFrame(
        {
            "seeds": seeds.size(),
            "accuracy": mean["accuracy.mean"],
            "half_interval": seeds["accuracy.mean"].agg(half_interval),
            "difference": pd.Series({algo: np.mean(found) for algo, found in paired.items() if found}, dtype=float),
            "half_interval_of_difference": pd.Series(
                {algo: half_interval(found) for algo, found in paired.items()}, dtype=float
            ),
            "worst_decile": mean["accuracy.worst_decile"],
            "below_local": pd.Series(below, dtype=float),
            "up": mean["parameters_per_client_round.up"],
            "down": mean["parameters_per_client_round.down"],
            "bytes_up": sent["up"],
            "bytes_down": sent["down"],
            "transmitted": mean["transmitted.parameters_up"] + mean["transmitted.parameters_down"],
            "bytes": mean["transmitted.bytes_up"] + mean["transmitted.bytes_down"],
            "to_model": seeds["traffic_to_model.parameters"].agg(mean_of_all),
            "bytes_to_model": seeds["traffic_to_model.bytes"].agg(mean_of_all),
            "to_target": pd.Series(to_target, dtype=float),
            **{name: seeds[f"{name}.mean"].agg(mean_of_all) for name in others},
            **{name: seeds[column].agg(mean_of_all) for name, column in newcomers.items()},
            **{f"half_interval_of_{name}": seeds[f"{name}.mean"].agg(half_interval) for name in others},
        },
        index=pd.Index(runs, name="method"),
    )
    table["seeds"] = table["seeds"].fillna(0).astype(int)
    return table.sort_values("accuracy", ascending=False, kind="stable"), target
