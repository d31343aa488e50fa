"""The figures that the as-published caveat quotes, measured again."""

import pytest

from poh_ext.report.published import PUBLISHED_MAZES, RANDOM_AS_PUBLISHED
from poh_ext.tasks import sample_tasks_as_published
from poh_ext.training.evaluate import evaluate_random

SETS = 20


@pytest.fixture(scope="module")
def test_sets():
    return [sample_tasks_as_published(240, 12, 51, 50_000 + k) for k in range(SETS)]


def test_the_filter_leaves_about_as_many_mazes_as_published(test_sets):
    sizes = [len(tasks) for tasks in test_sets]
    assert abs(sum(sizes) / SETS - PUBLISHED_MAZES) < 4


@pytest.fixture(scope="module")
def outcomes(test_sets):
    return [evaluate_random(tasks, k) for k, tasks in enumerate(test_sets)]


@pytest.mark.parametrize("measure", ["reached", "optimal"])
def test_a_random_policy_scores_what_is_quoted(outcomes, measure):
    mean, spread, _ = RANDOM_AS_PUBLISHED[measure]
    percent = [100 * getattr(outcome, measure).float().mean().item() for outcome in outcomes]
    standard_error = spread / SETS**0.5
    assert abs(sum(percent) / SETS - mean) < 4 * standard_error
