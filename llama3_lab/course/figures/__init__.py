"""Figures of the lessons, one module a lesson; each figure_x() has its text twin describe_x()."""
