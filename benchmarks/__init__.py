"""The benchmark's commands. Standard output takes any text: what its encoding lacks is written as an escape."""

import sys
from io import TextIOWrapper

if isinstance(sys.stdout, TextIOWrapper):  # standard error does so by itself
    sys.stdout.reconfigure(errors="backslashreplace")
