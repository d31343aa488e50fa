"""The pictures of a report: their files, the functions that draw them, and their texts."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from poh_ext.report import plots
from poh_ext.report.routing import entropy_curves, routing_heatmaps
from poh_ext.report.routing_heads import head_curves
from poh_ext.report.scaling import scaling_panels
from poh_ext.report.training_accuracy import accuracy_curves
from poh_ext.results import Results

__all__ = ["ACCURACY_PNG", "MAZES_PNG", "PICTURES", "PictureKind"]


class PictureKind(NamedTuple):
    """`about` describes the picture in lists of files, `alt` replaces it, and `caption` stands below it."""

    draw: Callable | None
    about: str
    alt: str
    caption: str


def _entropy(results: Results):
    return entropy_curves({"": results})


ACCURACY_PNG = "accuracy_over_training.png"  # has a section of its own
MAZES_PNG = "mazes.png"  # drawn from a MazeSample, not from Results
PICTURES = {
    "scaling.png": PictureKind(
        scaling_panels,
        "reached, optimal and the advantages of PoH against parameters",
        "Four panels against parameters: reached, optimal, and PoH's advantage in each. The results table and the "
        "verdict hold the same numbers.",
        "Against parameters. Above: shares of test mazes, pooled over seeds, with 95 % intervals; trained models are "
        "thick, untrained ones thin and hollow, the random policy is dotted with its interval as a band. Below: PoH "
        "minus each other model on the same mazes, in points; filled markers are resolved differences, hollow ones "
        "are not.",
    ),
    "outcomes.png": PictureKind(
        plots.outcome_bars,
        "reached and optimal with intervals and controls",
        "Bars of the share of test mazes each model reached and solved optimally. The results table holds the same "
        "numbers.",
        "Share of test mazes whose goal was reached (left) and reached by a path of at most 1.05 times the shortest "
        "(right), with 95 % intervals. White bars are controls.",
    ),
    "accuracy_by_path_length.png": PictureKind(
        plots.accuracy_by_length,
        "reached and optimal against the length of the shortest path",
        "Lines of the share of test mazes reached and solved optimally, against the length of the shortest path.",
        "The same shares by the length of the shortest path; n is the number of mazes in a bin, and the intervals are "
        "Wilson's, 95 %, over its mazes.",
    ),
    ACCURACY_PNG: PictureKind(
        accuracy_curves,
        "validation mazes solved against the time of training",
        "Lines of the share of validation mazes each model reached, solved optimally and solved exactly, against the "
        "time of training.",
        "Share of validation mazes reached, solved optimally and (where it is measured) solved exactly while training, "
        "against its time alone. Of several seeds each is a thin line and their mean a thick one; a single seed has "
        "Wilson's 95 % interval as a band.",
    ),
    "learning_curves.png": PictureKind(
        plots.learning_curves,
        "training loss against the step",
        "Lines of the training loss of each model against the optimiser step.",
        "Training loss against the optimiser step; of PoH it includes the weighted routing entropy.",
    ),
    MAZES_PNG: PictureKind(
        None,
        "test mazes with the shortest path and each model's path",
        "Drawings of test mazes, one row or column per model, with the shortest path and the path the "
        "model walked; below each stands whether the goal was reached and at which move the model first strayed.",
        "The first test mazes. The broad light line is a shortest path; the model's own path is solid until it first "
        "steps away from the goal (cross) and dashed from there on.",
    ),
    "routing_weights.png": PictureKind(
        routing_heatmaps,
        "PoH's routing weights over refinement passes, on one test maze",
        "Heat maps of PoH's routing weights on one test maze, one per block: refinement passes down, heads across.",
        "How PoH weighs its attention heads in each refinement pass on the first test maze; darker is heavier. Token "
        "routing is averaged over the cells.",
    ),
    "routing_heads.png": PictureKind(
        head_curves,
        "PoH's routing weights over refinement passes, over all test mazes",
        "Lines of the mean routing weight of a head against the refinement pass, one panel per block of PoH. Where "
        "some heads see neighbours only, these against the wide heads.",
        "Routing weight of a head in each refinement pass: mean over the test mazes, with the band in which the middle "
        "80 % of them lie. Heads that see only neighbours are told from wide ones where a planner has both; else each "
        "head has its line. Dotted: uniform routing.",
    ),
    "routing_entropy.png": PictureKind(
        _entropy,
        "PoH's routing entropy against the step",
        "Lines of PoH's routing entropy against the optimiser step, and of its distance from uniform routing.",
        "Routing entropy while training (left), and how far it is below that of uniform routing (right).",
    ),
}
