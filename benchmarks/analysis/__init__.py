"""Reports of recorded runs. What they show unless something else is asked for stands here: it imports nothing."""

TARGET = 0.95
"""The default target accuracy, as a share of the best method's final accuracy."""

WIDTHS = (3.25, 6.75)
"""Inches: a column of a paper, and both."""
