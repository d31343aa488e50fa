"""The number of mazes or seeds that a comparison needs to resolve a difference: two-sided tests at 5 %, power 80 %."""

from __future__ import annotations

import math

from poh_ext._optional import require

__all__ = ["mazes_needed", "seeds_needed"]

SIGNIFICANCE = 0.05
POWER = 0.80


def mazes_needed(discordant: float, difference: float) -> int:
    """Mazes for 80 % power of a two-sided 5 % McNemar test.

    Args:
        discordant: share of mazes that exactly one of the models solves.
        difference: difference of the two models' shares; not 0.

    Formula: (z_a sqrt(psi) + z_b sqrt(psi - delta^2))^2 / delta^2, from R. J. Connor (1987), Sample size for
    testing differences in proportions for the paired-sample design, Biometrics 43, 207-211.
    """
    z_a, z_b = _quantiles()
    psi, delta = max(discordant, abs(difference)), abs(difference)
    return math.ceil((z_a * math.sqrt(psi) + z_b * math.sqrt(psi - delta * delta)) ** 2 / delta**2)


def seeds_needed(spread: float, difference: float) -> int:
    """Seeds for 80 % power of a two-sided 5 % paired t test over seeds.

    Args:
        spread: standard deviation of the per-seed differences, in the unit of `difference`.
        difference: mean of the per-seed differences; not 0.

    Formula: (z_a + z_b)^2 spread^2 / difference^2 + z_a^2 / 2, from W. C. Guenther (1981), Sample size formulas for
    normal theory t tests, The American Statistician 35, 243-244.
    """
    z_a, z_b = _quantiles()
    return max(2, math.ceil(((z_a + z_b) * spread / difference) ** 2 + z_a**2 / 2))


def _quantiles() -> tuple[float, float]:
    norm = require("scipy.stats").norm
    return float(norm.ppf(1 - SIGNIFICANCE / 2)), float(norm.ppf(POWER))
