"""Results of a benchmark: the data model, its statistics, tables, plots and the written report."""

from poh_ext.report.environment import describe_environment
from poh_ext.report.results import Results, Row

__all__ = ["Results", "Row", "describe_environment"]
