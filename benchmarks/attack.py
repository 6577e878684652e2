"""What a client's update gives away to an honest-but-curious server: reconstructed pictures, labels and members.

    python benchmarks/attack.py RUN [RUN …]        # the folder of a finished run, with its checkpoint

The server knows the model, the method, and the shared tensors before and after. Pictures are reconstructed from an
update on one batch: a step of the first round, a step of the round after the checkpoint, and that whole round, all
epochs on this batch, which the attack takes for one step. Members are told from the update of a round on all of a
client's samples. docs/privacy.md says what the figures mean.
"""

import argparse
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if not __package__:  # run as a file: no installation is needed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.federation.command_line import Parser
from benchmarks.federation.suites import UsageError
from benchmarks.runtime.launch import defer_packages
from benchmarks.terminal import printable
from data_partitions import DataError

if TYPE_CHECKING:
    from torch import Tensor

    from benchmarks.privacy.inversion import Attack, Guess
    from benchmarks.privacy.subject import Batch, Subject

SHOWN = 8  # batches in the picture


class Source(NamedTuple):
    words: str
    first: bool  # of the first round, or the one after the checkpoint
    whole: bool  # all epochs, or one


SOURCES = (
    Source("a step of the first round", True, False),
    Source("a step", False, False),
    Source("a round", False, True),
)


class Result(NamedTuple):
    """One attack on all batches."""

    source: str
    guess: "Guess | None"  # None where nothing is private
    attack: "Attack"
    pictures: "Tensor"  # (N, B, …), in the order of the true ones
    psnr: list[float]  # dB, of each batch; likewise the next two
    ssim: list[float]
    labels: list[float]  # the share that was recovered


def positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"a whole number above 0 is right, got {text}")
    return int(text)


def parser() -> argparse.ArgumentParser:
    p = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    p.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of finished runs")
    p.add_argument("--batch", type=positive, default=1, metavar="B", help="samples a batch (default: 1)")
    p.add_argument("--batches", type=positive, default=20, metavar="N", help="attacked at once (default: 20)")
    p.add_argument("--iterations", type=positive, default=100, metavar="N", help="of an attack (default: 100)")
    p.add_argument("--seed", type=int, default=0, metavar="N", help="of batches and starts (default: 0)")
    p.add_argument("--data-dir", type=Path, default=Path("data"), metavar="DIR", help="as for run.py")
    p.add_argument("--picture", type=Path, metavar="FILE", help="where the pictures go (default: RUN/attack.png)")
    return p


def invert_all(subject: "Subject", batches: Sequence["Batch"], iterations: int, seed: int) -> Iterator[Result]:
    """Yields what each attack makes of each source."""
    from benchmarks.privacy.inversion import ATTACKS, invert
    from benchmarks.privacy.measures import judge

    for source in SOURCES:
        target = subject.target(batches, subject.hyper.epochs if source.whole else 1, source.first)
        known = source.first or not target.private  # the first round's start is everybody's
        guesses: tuple[Guess, ...] = ("start",) if known else ("start", "optimised")
        for guess in guesses:
            for attack in ATTACKS:
                if attack == "idlg" and target.head is None:
                    continue
                found = invert(target, attack, guess, iterations, seed)
                shown = guess if target.private else None
                yield Result(source.words, shown, attack, *judge(*found, batches))


def table(results: Sequence[tuple[str, list[Result]]]) -> str:
    """Returns a row for each attack: means over batches, with 95 % intervals."""
    from benchmarks.analysis.statistics import half_interval
    from benchmarks.analysis.tables import with_half

    heads = ["method", "from", "private tensors", "attack", "PSNR dB", "SSIM", "labels %"]
    lines = [f"| {' | '.join(heads)} |", "|---|---|---|---|---:|---:|---:|"]
    for name, found in results:
        for each in found:
            columns = {"{:.1f}": each.psnr, "{:.2f}": each.ssim, "{:.0f}": [100 * share for share in each.labels]}
            figures = [
                with_half(form.format(sum(column) / len(column)), half_interval(column), form.format)
                for form, column in columns.items()
            ]
            cells = [f"`{name}`", each.source, each.guess or "none", each.attack, *figures]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def table_of_members(subjects: Sequence["Subject"], seed: int) -> str:
    """Returns a row for each method and score, with 95 % intervals."""
    from benchmarks.privacy.membership import judge

    lines = ["| method | score | AUC | true positives at 1 % false ones, % |", "|---|---|---:|---:|"]
    for subject in subjects:
        for score, clients in subject.membership().items():
            area, rate = judge(clients, seed)
            cells = f"{area.value:.3f} ({area.low:.3f} to {area.high:.3f})"
            cells += f" | {100 * rate.value:.1f} ({100 * rate.low:.1f} to {100 * rate.high:.1f})"
            lines.append(f"| `{subject.name}` | {score} | {cells} |")
    return "\n".join(lines)


def draw(results: Sequence[tuple[str, list[Result]]], truth: Sequence["Tensor"], path: Path) -> None:
    """Writes the first picture of some batches, and below it what the cosine attack makes of it, as a PNG."""
    from matplotlib.figure import Figure

    rows = []
    for (name, found), true in zip(results, truth, strict=True):
        rows.append((f"{name}: true", true))
        rows += [
            (each.source + (f", private {each.guess}" if each.guess else ""), each.pictures)
            for each in found
            if each.attack == "cosine"
        ]
    columns = min(SHOWN, min(len(pictures) for _, pictures in rows))
    figure = Figure(figsize=(2.6 + 0.45 * columns, 0.45 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), columns + 1, squeeze=False, width_ratios=[5, *[1] * columns])
    for axes in grid.flat:
        axes.set_axis_off()
    for line, (words, pictures) in zip(grid, rows, strict=True):
        line[0].text(1, 0.5, words, ha="right", va="center", fontsize=7, transform=line[0].transAxes)
        for axes, batch in zip(line[1:], pictures, strict=False):
            axes.imshow(batch[0].squeeze().clamp(0, 1).numpy(), cmap="gray", vmin=0, vmax=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=72)


def study(subjects: Sequence["Subject"], options: argparse.Namespace) -> None:
    """Prints both tables, and writes the pictures."""
    import torch

    batches = [subject.draw(options.batches, options.batch, options.seed) for subject in subjects]
    truth = [torch.stack([each.pictures for each in own]) for own in batches]
    results: list[tuple[str, list[Result]]] = []
    for subject, own in zip(subjects, batches, strict=True):
        results.append((subject.name, []))
        for each in invert_all(subject, own, options.iterations, options.seed):
            print(f"{subject.name}: {each.attack}, {each.source}", file=sys.stderr, flush=True)
            results[-1][1].append(each)
    print(table(results))
    print("\n" + table_of_members(subjects, options.seed))
    picture = options.picture or options.runs[0] / "attack.png"
    draw(results, truth, picture)
    print("\n" + printable(f"The pictures are in {picture}."))


def main() -> None:
    try:
        options = parser().parse_args()  # --help ends here, before PyTorch is imported

        warnings.simplefilter("ignore")
        defer_packages()
        import torch

        from benchmarks.privacy.measures import check_installed
        from benchmarks.privacy.subject import Subject

        torch.set_num_threads(1)
        check_installed()
        with ExitStack() as opened:
            subjects = [Subject(folder, options.data_dir) for folder in options.runs]
            for subject in subjects:
                opened.enter_context(subject.store)
            study(subjects, options)
    except (UsageError, DataError, OSError) as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
