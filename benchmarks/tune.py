"""Chooses each method's hyper-parameters: the same number of trials for each, judged on validation data.

    python benchmarks/tune.py                       # every method, 6 trials each; writes benchmarks/tuned.yaml
    python benchmarks/tune.py --algo fedavg scaffold --parameterization lowrank fedpara

What is searched, and where, stands beside each hyper-parameter (``search`` in baselines/hyper.py). A method's first
trial is its defaults; Optuna's sampler, a Gaussian process with a fixed seed, proposes the others. A trial's score is
the mean over partitions and seeds of the last round's mean validation accuracy, 0 where a run diverged. The test split
is never looked at, and trials see the half of the data set alone that is set aside for them (``run.py --tuning``): no
other run tests on a sample of it, whatever its seed and partition.

One process group runs the k-th trial of all methods. The same command goes on where it was stopped: the same trials
come up again, and what they gave lies in --out.
"""

import argparse
import sys
import warnings
from pathlib import Path
from typing import get_args

if not __package__:  # run as a file: no installation is needed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from baselines.hyper import Name
from benchmarks.federation.command_line import Parser
from benchmarks.federation.names import METHODS
from benchmarks.federation.settings import FACTORS, TUNED, Settings
from benchmarks.federation.suites import TuneSection, UsageError
from benchmarks.runtime.launch import defer_packages
from benchmarks.terminal import printable
from data_partitions import Choices, DataError
from data_partitions.partitioners import parse


def parser() -> argparse.ArgumentParser:
    p = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    defaults = {name: field.default for name, field in Settings.model_fields.items()}
    budget = TuneSection()
    p.add_argument("--suite", metavar="NAME|FILE", help="methods, data and model of a suite, and its tuning budget")
    p.add_argument("--algo", nargs="+", default=[*METHODS, *FACTORS], metavar="NAME", help="methods")
    p.add_argument("--parameterization", nargs="+", default=[None], metavar="NAME", help="weights, as for run.py")
    p.add_argument("--optimizer", default="sgd", choices=get_args(Name), metavar="NAME", help="local, as for run.py")
    p.add_argument("--trials", type=int, default=budget.trials, metavar="N", help="for each method (default: 6)")
    p.add_argument("--rounds", type=int, default=budget.rounds, metavar="N", help="of a trial (default: 10)")
    p.add_argument("--dataset", default=defaults["dataset"], metavar="NAME")
    p.add_argument("--data-dir", type=Path, default=defaults["data_dir"], metavar="DIR")
    for name, kind in {"image_size": int, "label_column": str, "client_column": str}.items():
        p.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar="X", help="as for run.py")
    p.add_argument("--model", default=defaults["model"], metavar="NAME")
    p.add_argument("--partition", nargs="+", default=budget.partition, metavar="SPEC")
    p.add_argument("--seed", nargs="+", type=int, default=budget.seed, metavar="N", help="of partition and start")
    p.add_argument("--out", type=Path, default=Path("runs/tuning"), metavar="DIR", help="where the trials go")
    p.add_argument("--record", type=Path, default=TUNED, metavar="FILE", help="what is written")
    p.set_defaults(settings={}, fixed=[])
    return p


def main() -> None:
    try:
        p = parser()
        suite = p.parse_known_args()[0].suite  # --help ends here, before PyTorch is imported

        warnings.simplefilter("ignore")
        defer_packages()
        import optuna
        import torch

        from benchmarks.federation.models import find_model
        from benchmarks.federation.registry import find_method
        from benchmarks.federation.tuning import take_suite, tune

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        torch.set_num_threads(1)
        if suite:
            p.set_defaults(**take_suite(suite))
        options = p.parse_args()
        for algo in options.algo:
            find_method(algo)
        find_model(options.model)
        chosen = {name: getattr(options, name) for name in Choices._fields}
        options.settings |= {name: value for name, value in chosen.items() if value is not None}
        options.partition = list(dict.fromkeys(parse(spec).spec for spec in options.partition))
        options.seed = list(dict.fromkeys(options.seed))
        if options.trials < 1:
            raise UsageError(f"--trials: at least 1, got {options.trials}")
        tune(options)
    except (UsageError, DataError, OSError) as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
