"""Who is left out when a round closes after so many seconds, and what that does to them.

    python -m benchmarks.analysis.access runs/access --picture access.png

It reads the runs of the suite access.yaml, or any whose clients have --links. Accuracies are those of ``joined`` in
summary.json: a client that was never heard adapts the last aggregate. ± is the 95 % interval of the mean over seeds
(Student's t), from three seeds on.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from benchmarks.analysis.load import EndedRun, ReportError, load
from benchmarks.analysis.statistics import half_interval
from benchmarks.analysis.tables import with_half
from benchmarks.federation.fairness import by_decile
from benchmarks.federation.links import Links
from benchmarks.styles import style_of
from benchmarks.terminal import printable

REFERENCE = "fedavg-ft"
NONE = "–"
Runs = dict[str, dict[int, EndedRun]]  # by method and seed


def by_deadline(runs: Sequence[EndedRun]) -> dict[float, Runs]:
    """Returns the finished runs whose clients have links, by deadline; 0: none."""
    found: dict[float, Runs] = {}
    for run in runs:
        if "access" in run.summary:
            methods = found.setdefault(run.settings["deadline_seconds"], {})
            methods.setdefault(run.algo, {})[run.summary["seed"]] = run
    return dict(sorted(found.items(), reverse=True))


def accuracies(run: EndedRun) -> np.ndarray:
    """Returns each client's accuracy, (clients,); NaN where it diverged."""
    return np.array(run.summary["access"]["joined"]["per_client"], float)


def heard(run: EndedRun) -> np.ndarray:
    """Returns whether the server ever heard each client, bool (clients,)."""
    clients = np.arange(run.summary["clients"])
    return ~np.isin(clients, run.summary["access"]["never_heard"])


def links(run: EndedRun) -> Links:
    return Links(*(np.array(run.summary["access"][way]) for way in ("down", "up")))


def words(values: Sequence[float], sign: str = "", scale: float = 100, digits: int = 1) -> str:
    """Returns the mean of finite ``values`` times ``scale`` with its interval; a dash of none."""
    known = [scale * value for value in values if np.isfinite(value)]
    if not known:
        return NONE
    return with_half(f"{np.mean(known):{sign}.{digits}f}", half_interval(known), lambda half: f"{half:.{digits}f}")


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = "|---|" + "---:|" * (len(heads) - 1)
    return "\n".join([f"| {' | '.join(heads)} |", rule, *(f"| {' | '.join(row)} |" for row in rows)])


def who_is_left_out(methods: Runs) -> str:
    """Returns a row for each method: who is late, who is never heard, and how accuracy is spread by link."""

    def of(run: EndedRun, name: str) -> float:
        value = run.summary["access"]["joined"][name]
        return np.nan if value is None else value

    rows = []
    for method, seeds in methods.items():
        runs = list(seeds.values())
        tenths = np.array([run.summary["access"]["joined"]["by_speed"] for run in runs], float)
        rows.append(
            [
                f"`{printable(method)}`",
                f"{np.mean([100 * (1 - heard(run).mean()) for run in runs]):.0f}",
                words([of(run, "mean") for run in runs]),
                words(tenths[:, 0].tolist()),
                words(tenths[:, -1].tolist()),
                words([of(run, "worst_decile") for run in runs]),
                words([of(run, "gini") for run in runs], digits=2),
            ]
        )
    heads = ("method", "never heard %", "all %", "slowest tenth %", "fastest tenth %", "worst tenth %", "Gini × 100")
    return table(heads, rows)


def what_the_deadline_does(closed: Runs, waiting: Runs) -> str:
    """Returns a row for each method: accuracy with the deadline less without, same seed and clients, in points.

    In the last column the clients that were never heard deploy what they hold, and adapt as their method does.
    """
    rows = []
    for method in closed:
        without = waiting.get(method, {})
        changes = list[list[float]]()
        for seed in sorted(closed[method].keys() & without.keys()):
            one, other = closed[method][seed], without[seed]
            inside, change = heard(one), accuracies(one) - accuracies(other)
            as_deployed = np.subtract(*(run.summary["accuracy"]["per_client"] for run in (one, other)))
            groups = change, change[inside], change[~inside], as_deployed[~inside]
            changes.append([float(group.mean()) if len(group) else np.nan for group in groups])
        rows.append([f"`{printable(method)}`", *(words(column, "+") for column in zip(*changes, strict=True))])
    return table(("method", "all", "heard", "never heard", "never heard, as deployed"), rows)


def those_brought_in(closed: Runs, waiting: Runs) -> str:
    """Returns a row for each method: the clients that it hears and REFERENCE does not, and what they gain.

    The gain is over REFERENCE, on the same clients and seed, in points: with the deadline, without, and the change.
    """
    rows = []
    reference = closed.get(REFERENCE, {})
    for method in closed:
        count, gains = [], []
        for seed in sorted(closed[method].keys() & reference.keys()):
            group = heard(closed[method][seed]) & ~heard(reference[seed])
            count.append(int(group.sum()))
            both = [
                (accuracies(arm[method][seed]) - accuracies(arm[REFERENCE][seed]))[group].mean()
                if group.any() and seed in arm.get(method, {}) and seed in arm.get(REFERENCE, {})
                else np.nan
                for arm in (closed, waiting)
            ]
            gains.append([*both, both[0] - both[1]])
        if any(count):
            columns = [words(column, "+") for column in np.array(gains).T.tolist()]
            rows.append([f"`{printable(method)}`", f"{np.mean(count):.0f}", *columns])
    heads = ("method", "clients brought in", f"over {REFERENCE}, deadline", "without deadline", "the change")
    return table(heads, rows)


def other_fairness(methods: Runs) -> str:
    """Returns a row for each method: accuracy of the tenths with least and most samples, and classes."""
    rows = []
    for method, seeds in methods.items():
        cells = []
        for name in ("samples", "classes"):
            tenths = [by_decile(accuracies(run).tolist(), run.summary["access"][name]) for run in seeds.values()]
            cells += [words([each[place] for each in tenths]) for place in (0, -1)]
        rows.append([f"`{printable(method)}`", *cells])
    return table(("method", "fewest samples %", "most samples %", "fewest classes %", "most classes %"), rows)


def draw(methods: Runs) -> Figure:
    """Returns the share of clients heard, and their accuracy, by tenths of the clients from the slowest link on."""
    figure = Figure(figsize=(6.75, 3), layout="constrained")
    panels = figure.subplots(1, 2)
    figures: tuple[tuple[str, Callable[[EndedRun], np.ndarray]], ...] = (
        ("clients ever heard, %", heard),
        ("accuracy, %", accuracies),
    )
    for axes, (label, figure_of) in zip(panels, figures, strict=True):
        for method, seeds in methods.items():
            tenths = [by_decile(figure_of(run).tolist(), links(run).speed.tolist()) for run in seeds.values()]
            means = 100 * np.mean(tenths, axis=0)
            axes.plot(np.arange(1, len(means) + 1), means, label=printable(method), **style_of(method).line)
        axes.set(xlabel="tenth of the clients, slowest link first", ylabel=label)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=min(len(methods), 4))
    return figure


def report(arms: Mapping[float, Runs]) -> str:
    """Returns all tables. Raises ReportError where no run has links."""
    if not arms:
        raise ReportError("no run here was made with --links")
    parts = []
    waiting = arms.get(0, {})
    for deadline, methods in arms.items():
        said = f"Rounds close after {deadline:g} s" if deadline else "Rounds wait for everybody"
        parts += [said, who_is_left_out(methods)]
        if deadline and waiting:
            parts += ["What the deadline does, in points", what_the_deadline_does(methods, waiting)]
            parts += ["Those brought in, in points", those_brought_in(methods, waiting)]
        parts += ["By client size and class mix", other_fairness(methods)]
    return "\n\n".join(parts)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="runs, searched to any depth")
    p.add_argument("--picture", type=Path, metavar="FILE", help="draw the shortest deadline, by link speed")
    options = p.parse_args()
    try:
        arms = by_deadline(load(options.folders))
        print(report(arms))
        if options.picture:
            shortest = min((deadline for deadline in arms if deadline), default=0)
            draw(arms[shortest]).savefig(options.picture, dpi=150)
    except (ReportError, OSError) as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
