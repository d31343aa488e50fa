"""The report of a benchmark: statistics, tables and figures of its results, and the written pages."""

from poh_ext.report.effects import ablation_table
from poh_ext.report.headline import headline
from poh_ext.report.report import FILES, write_report
from poh_ext.report.statistics import compare, estimate
from poh_ext.report.tables import results_table
from poh_ext.report.training_figures import entropy_curves
from poh_ext.report.verdicts import claims, verdicts

__all__ = [
    "FILES",
    "ablation_table",
    "claims",
    "compare",
    "entropy_curves",
    "estimate",
    "headline",
    "results_table",
    "verdicts",
    "write_report",
]
