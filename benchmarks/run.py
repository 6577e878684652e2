"""Runs methods of personalized federated learning side by side. Start it with mpirun, or alone as a single process.

Rank 0 is the server, every other rank trains a share of the clients. See ``--help``, and options.py for what it takes.
"""

import contextlib
import logging
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:  # run as a file: no installation is needed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.runtime.launch import fail, launch
from benchmarks.terminal import printable

if TYPE_CHECKING:
    from pydantic import TypeAdapter

    from benchmarks.federation.experiment import Experiment


def load() -> None:
    """Imports what every rank needs, torch and FedML first of all."""
    import benchmarks.federation.planning
    import benchmarks.runtime.screen
    import benchmarks.runtime.server

    if "fedml" in sys.argv:  # as a --runtime; a suite's is imported later, by each rank
        with contextlib.suppress(ModuleNotFoundError):  # which planning says
            import benchmarks.runtime.stock  # noqa: F401


def form() -> "TypeAdapter[list[Experiment]]":
    """Returns the form in which experiments go from rank 0 to the others, as JSON."""
    from pydantic import TypeAdapter

    from benchmarks.federation.experiment import Experiment

    return TypeAdapter(list[Experiment])


def plan(ranks: int) -> bytes:
    """Returns the experiments that the command line asks for and that are due; nothing where there is none."""
    from benchmarks.federation.command_line import parser
    from benchmarks.federation.suites import UsageError
    from data_partitions import DataError

    try:
        chosen = parser().parse_args()
        from benchmarks.federation import options, planning  # PyTorch with them, which --help does without

        if "help" in (algos := getattr(chosen, "algo", ())):
            print(options.explain_methods(name for name in algos if name != "help"))
        else:
            due, finished = planning.plan(chosen, ranks)
            if finished:
                print("finished before and kept (--overwrite runs anew):", flush=True)
            for directory in finished:
                print(printable(f"  {directory}"), flush=True)
            if due:
                print(planning.explain_tuning(due), flush=True)
                if line := planning.explain_head(due):
                    print(line, flush=True)
                return form().dump_json(due)
    except (UsageError, DataError) as error:
        fail(str(error), 2)
    except SystemExit:  # --help
        pass
    return b""


def explain(error: BaseException) -> str:
    """Says what went wrong, and in which line of the user's own file where a plug-in did."""
    from data_partitions import plugins

    return plugins.explain(error)


def main() -> None:
    verbose = "--verbose" in sys.argv
    if verbose:
        logging.basicConfig(level=logging.INFO)
    else:
        warnings.simplefilter("ignore")
    nodes: list[Any] = []

    def busy() -> str:
        return next((node.busy for node in nodes if node.busy), "between rounds") if nodes else "start"

    group = launch(load, busy, verbose, explain, "; the same command goes on from the last checkpoint")

    planned = group.broadcast(lambda: plan(group.comm.size))
    if not planned:
        group.leave()

    import torch

    from benchmarks.runtime.job import work

    experiments = form().validate_json(planned)
    torch.set_num_threads(1)
    work(group, experiments, group.launched if group.comm.rank == 0 else 0, nodes)
    group.leave()


if __name__ == "__main__":
    main()
