"""Shows recorded runs side by side: a table and two plots for each data set and partition, on screen and as files.

    python benchmarks/report.py runs
    python benchmarks/report.py --suite quick      # the folder that the suite's runs are in, and what it says to show

Reads what benchmarks/run.py wrote; needs neither torch nor FedML.
"""

import argparse
import sys
from pathlib import Path

if not __package__:  # run as a file: no installation is needed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.analysis import TARGET, WIDTHS
from benchmarks.federation.settings import Settings
from benchmarks.federation.suites import UsageError, read_suite
from benchmarks.terminal import printable

DEFAULT = Settings.model_fields["out"].default


def accuracy(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"an accuracy is a fraction above 0 and at most 1, got {text}")
    return value


def out_of(words: list[str] | None) -> Path | None:
    """Returns the folder that run.py was told to write to."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--out", type=Path)
    return parser.parse_known_args(words or [])[0].out


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks/report.py", description="Compares recorded runs.")
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER", help="folder of runs, searched to any depth")
    parser.add_argument("--suite", metavar="NAME|FILE", help="a suite, whose folder of runs is the default")
    parser.add_argument(
        "--target",
        type=accuracy,
        metavar="ACC",
        help=f"accuracy of the last column, a fraction (default: {100 * TARGET:.0f} %% of the best method's final one, "
        "above what local training reaches)",
    )
    parser.add_argument(
        "--methods", nargs="+", metavar="NAME", help="show these methods only, by their name in the table"
    )
    parser.add_argument("--highlight", nargs="+", default=(), metavar="NAME", help="colour these, and the others grey")
    parser.add_argument(
        "--width",
        type=float,
        choices=WIDTHS,
        default=WIDTHS[1],
        help="inches of a figure: a column of a paper, or both (default: %(default)s)",
    )
    parser.add_argument("--legend", action="store_true", help="explain the columns of the tables on the screen")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the report goes (default: FOLDER/report)")
    parser.add_argument(
        "--grid", action="store_true", help="set optimizers against weights and bits: accuracy, and megabytes sent"
    )
    parser.add_argument(
        "--command", default="", metavar="TEXT", help="what the runs come from, printed above the tables"
    )
    parser.add_argument("--page", type=Path, metavar="FILE", help="write the tables to this Markdown file as well")
    parser.add_argument(
        "--run",
        nargs=argparse.REMAINDER,
        metavar="OPTION",
        help="what run.py took beside --suite: its --out is the folder; nothing: the suite's own page is written too",
    )
    options = parser.parse_args()  # --help ends here, before pandas, Matplotlib and Bokeh are imported

    from benchmarks.analysis.compare import check_names, compare
    from benchmarks.analysis.load import ReportError, find_unfinished, load
    from benchmarks.analysis.page import show, write
    from benchmarks.analysis.tables import wording, wording_of_grid

    try:
        if options.suite:
            suite = read_suite(options.suite)
            shown = suite["report"]
            options.folders = options.folders or [out_of(options.run) or Path(suite.get("out", DEFAULT))]
            options.target, options.grid = options.target or shown.target, options.grid or shown.grid
            if options.run == []:
                options.page, options.command = options.page or shown.page, options.command or shown.command
        elif not options.folders:
            raise ReportError("name a FOLDER of runs, or a --suite")
        words_of = wording_of_grid if options.grid else wording
        out = options.out or options.folders[0] / "report"
        comparisons = compare(load(options.folders), options.target, options.methods)
        check_names([method for each in comparisons for method in each.table.index], options.highlight)
        written = write(comparisons, out, words_of, options.command, options.highlight, options.width)
        if options.page:
            options.page.parent.mkdir(parents=True, exist_ok=True)
            options.page.write_text("# Results\n\n" + (out / "table.md").read_text(encoding="utf-8"), encoding="utf-8")
            written.append(options.page)
    except (ReportError, UsageError, OSError) as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        sys.exit(2)
    show(comparisons, words_of, options.legend)
    for folder in find_unfinished(options.folders):
        print(printable(f"Not finished, left out: {folder}"))
    print("\n" + printable(f"The report is {written[0]}; its tables and pictures also lie in {out}:"))
    for path in written[1:]:
        print(printable(f"  {path.name}"))


if __name__ == "__main__":
    main()
