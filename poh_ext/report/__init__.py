"""Results of a benchmark: the data model, its statistics, tables, plots and the written report."""

from poh_ext.report.ablation import ablation_table
from poh_ext.report.claims import claims
from poh_ext.report.environment import describe_environment
from poh_ext.report.report import FILES, write_report
from poh_ext.report.results import Results, Row
from poh_ext.report.routing import entropy_curves
from poh_ext.report.routing_record import routing_record
from poh_ext.report.sheet import MazeSample
from poh_ext.report.statistics import compare, estimate
from poh_ext.report.tables import results_table
from poh_ext.report.verdicts import verdicts

__all__ = [
    "FILES",
    "MazeSample",
    "Results",
    "Row",
    "ablation_table",
    "claims",
    "compare",
    "describe_environment",
    "entropy_curves",
    "estimate",
    "results_table",
    "routing_record",
    "verdicts",
    "write_report",
]
