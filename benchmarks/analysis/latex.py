"""The tables in LaTeX, for a paper: booktabs, and every name as it is."""

import re
from collections.abc import Sequence

import pandas as pd

from benchmarks.analysis.compare import Comparison
from benchmarks.analysis.statistics import REFERENCE
from benchmarks.analysis.tables import wording
from benchmarks.terminal import printable

COLUMNS = (
    "method",
    "accuracy",
    f"difference to {REFERENCE}",
    "worst decile",
    "clients below",
    "parameters",
    "sent to reach",
)
"""How the headings begin of the columns that fit a page."""

SIGNS = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "[": "{[}", "]": "{]}", "*": "{*}"},
    **{"±": r"$\pm$", "–": "--"},
}
"""What LaTeX would obey or shows otherwise; after a row's end, [ and * would be read as its options."""


def latex_text(text: str) -> str:
    escaped = "".join(SIGNS.get(character, character) for character in printable(text))
    return re.sub(r"^-(?=\d)", "$-$", escaped)


def latex(comparisons: Sequence[Comparison]) -> str:
    """Returns a table for each of the ``comparisons``; a document needs the package booktabs."""
    return "\n".join(_table(comparison.title, wording(comparison)) for comparison in comparisons)


def _table(title: str, words: pd.DataFrame) -> str:
    words = words[[heading for heading in words if heading.startswith(COLUMNS)]]
    rows = [" & ".join(map(latex_text, row)) + r" \\" for row in (words.columns, *words.to_numpy())]
    return "\n".join(
        [
            r"\begin{table}",
            rf"\caption{{{latex_text(title)}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(words.columns) - 1)}}}",
            *(r"\toprule", rows[0], r"\midrule", *rows[1:], r"\bottomrule"),
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )
