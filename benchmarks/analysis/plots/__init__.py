"""The plots of a report, in its order: each is one object in a file of its own."""

from benchmarks.analysis.plots.accuracy_per_client import ACCURACY_PER_CLIENT
from benchmarks.analysis.plots.accuracy_vs_parameters import ACCURACY_VS_PARAMETERS

PLOTS = (
    ACCURACY_VS_PARAMETERS,
    ACCURACY_PER_CLIENT,
)
