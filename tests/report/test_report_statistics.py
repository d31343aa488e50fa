"""Intervals, tests and sample sizes against closed forms, enumeration and published numbers; the table."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from poh_ext.report.statistics import compare, estimate, estimate_rows, group_rows, mazes_needed, mcnemar, seeds_needed
from poh_ext.report.tables import COLUMNS, results_table
from tests.cases.reports import make_results, make_row, make_run, markdown


def outcomes(solved, n):
    return [True] * solved + [False] * (n - solved)


def pair(first, second, seed=0):
    return [make_row("poh", True, seed, first), make_row("baseline", True, seed, second)]


def paired_results(*seeds):
    """One (only poh, only baseline, both, neither) per seed."""
    rows, sets = [], {}
    for seed, (wins, losses, both, neither) in enumerate(seeds):
        first = outcomes(wins, wins + losses) + [True] * both + [False] * neither
        second = [i >= wins for i in range(wins + losses)] + [True] * both + [False] * neither
        rows += pair(first, second, seed)
        sets[seed] = {"n": len(first), "path_lengths": [50] * len(first), "n_train": 400}
    return make_results(rows, test_sets=sets)


class TestEstimate:
    # R. G. Newcombe (1998), Statistics in Medicine 17, 857-872, table I, method 3
    @pytest.mark.parametrize(
        ("k", "n", "low", "high"),
        [(81, 263, 25.53, 36.62), (15, 148, 6.24, 16.05), (0, 20, 0.0, 16.11), (1, 29, 0.61, 17.18)],
    )
    def test_one_seed_is_wilson_as_published(self, k, n, low, high):
        p = estimate({3: outcomes(k, n)})
        assert p.percent == pytest.approx(100 * k / n)
        assert p.t is None
        assert p.interval == p.wilson == pytest.approx((low, high), abs=0.006)

    def test_all_solved_mirrors_none_solved(self):
        none, every = estimate({0: outcomes(0, 57)}), estimate({0: outcomes(57, 57)})
        assert every.percent == 100 and every.interval[1] == pytest.approx(100)
        assert every.interval[0] == pytest.approx(100 - none.interval[1])
        z = 1.959963984540054
        assert none.interval[1] == pytest.approx(100 * z * z / (57 + z * z))

    def test_seeds_that_differ_widen_the_interval(self):
        p = estimate({s: outcomes(k, 100) for s, k in enumerate((50, 60, 70))})
        half = 4.302652729911275 * 10 / math.sqrt(3)  # t quantile at 2 degrees of freedom, standard deviation 10
        assert p.t == pytest.approx((60 - half, 60 + half))
        assert p.interval == p.t
        assert p.per_seed == {0: 50.0, 1: 60.0, 2: 70.0}

    def test_seeds_that_agree_by_chance_do_not_narrow_it(self):
        p = estimate({s: outcomes(60, 100) for s in range(3)})
        assert p.t == (60.0, 60.0)
        assert p.interval == p.wilson == estimate({0: outcomes(180, 300)}).wilson

    def test_t_interval_stays_within_0_and_100(self):
        p = estimate({0: outcomes(100, 100), 1: outcomes(60, 100)})
        assert p.interval[1] == 100 and p.interval[0] == 0

    def test_the_random_policy_has_no_training_to_vary(self):
        rows = [make_row("random", False, s, outcomes(k, 100)) for s, k in enumerate((30, 50))]
        assert estimate_rows(rows, "reached").interval == estimate({0: outcomes(80, 200)}).wilson
        rows = [make_row("poh", False, s, outcomes(k, 100)) for s, k in enumerate((30, 50))]
        assert estimate_rows(rows, "reached").interval == estimate_rows(rows, "reached").t

    def test_no_mazes(self):
        p = estimate({0: []})
        assert math.isnan(p.percent) and p.interval == (0, 100)

    def test_wilson_covers_the_truth_about_95_times_in_100(self):
        n, truth = 57, 0.6
        inside = sum(
            scipy_stats.binom.pmf(k, n, truth)
            for k in range(n + 1)
            if estimate({0: outcomes(k, n)}).interval[0] <= 60 <= estimate({0: outcomes(k, n)}).interval[1]
        )
        assert 0.93 < inside < 0.97


class TestComparison:
    @pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (3, 3), (9, 2), (0, 10), (8, 5)])
    def test_mcnemar_by_enumeration(self, b, c):
        n, gap = b + c, abs(b - c)
        flips = [abs(n - 2 * sum(signs)) for signs in itertools.product((0, 1), repeat=n)]
        assert mcnemar(b, c) == pytest.approx(sum(f >= gap for f in flips) / len(flips))

    def test_counts_are_paired_by_maze(self):
        c = compare(paired_results((12, 9, 24, 12)), "reached")
        assert (c.only_first, c.only_second, c.n) == (12, 9, 57)
        assert c.difference == pytest.approx(100 * 3 / 57)
        assert c.p_value == pytest.approx(2 * sum(math.comb(21, k) for k in range(12, 22)) / 2**21)
        assert not c.resolved and c.t is None and c.seeds_needed is None

    def test_bootstrap_against_its_exact_distribution(self):
        counts = np.array([9, 24 + 12, 12]) / 57  # d = -1, 0, 1
        exact = np.ones(1)
        for _ in range(57):
            exact = np.convolve(exact, counts)
        cdf = exact.cumsum()
        low, high = (100 * (np.searchsorted(cdf, q) - 57) / 57 for q in (0.025, 0.975))
        c = compare(paired_results((12, 9, 24, 12)), "reached")
        step = 100 / 57
        assert c.bootstrap[0] == pytest.approx(low, abs=1.01 * step)
        assert c.bootstrap[1] == pytest.approx(high, abs=1.01 * step)
        assert c.bootstrap == compare(paired_results((12, 9, 24, 12)), "reached").bootstrap

    def test_an_interval_alone_does_not_resolve_what_the_exact_test_does_not(self):
        c = compare(paired_results((5, 0, 2, 3)), "reached")
        assert c.interval[0] > 0 and c.p_value == pytest.approx(2 / 2**5) and not c.resolved

    def test_a_clear_difference_is_resolved_in_the_right_direction(self):
        c = compare(paired_results((5, 60, 100, 100)), "reached")
        assert c.resolved and c.difference < 0
        assert "Resolved: baseline is better than PoH" in c.sentence()
        assert "other training seeds were not tried" in c.sentence()

    def test_seeds_that_disagree_are_not_resolved_though_mazes_alone_would_be(self):
        c = compare(paired_results((300, 0, 100, 600), (0, 150, 100, 750)), "reached")
        assert c.p_value < 1e-6 and c.bootstrap[0] > 0
        assert c.t[0] < 0 and not c.resolved
        assert c.per_seed[1] == (-15.0, 0, 150, pytest.approx(2.0**-149))
        assert c.mazes_needed < c.n == 2000
        assert c.sentence().endswith(
            f"Not resolved: to see a difference of this size with 80 % power, {c.seeds_needed:,} seeds of as many "
            "mazes as here would be needed."
        )

    @pytest.mark.parametrize("shapes, between", [(1, " between these trained models"), (4, "")])
    def test_what_was_measured_already_is_not_asked_for(self, shapes, between):
        c = compare(paired_results(*[(4, 4, 600, 392)] * shapes), "reached")
        assert not c.resolved and c.mazes_needed < c.n
        said = f"Not resolved: a difference of 2 points{between} would have been seen with 80 % power."
        assert c.sentence().endswith(said)
        few = compare(paired_results((5, 0, 0, 0)), "reached")  # of 5 mazes the exact test resolves nothing
        assert not few.resolved and few.mazes_needed < few.n and "more than 5 mazes (and several" in few.sentence()

    def test_seeds_that_agree_by_chance_do_not_make_few_seeds_enough(self):
        c = compare(paired_results((31, 26, 20, 37), (31, 26, 20, 37)), "reached")
        assert not c.resolved
        assert c.seeds_needed * 114 >= c.mazes_needed > 2 * 114

    @pytest.mark.parametrize(("shape", "low", "high"), [((57, 0, 0, 0), 0, 100), ((0, 0, 40, 17), -100, 100)])
    def test_constant_differences_keep_an_honest_width(self, shape, low, high):
        c = compare(paired_results(shape), "reached")
        assert low < c.interval[0] <= c.difference <= c.interval[1] <= high
        assert c.interval[0] < c.interval[1]
        assert c.resolved == (c.difference > 0)
        assert str(c.mazes_needed) in c.sentence() or c.resolved

    def test_only_seeds_that_both_have(self):
        results = paired_results((5, 1, 2, 2), (1, 5, 2, 2))
        results.rows = [r for r in results.rows if not (r.seed == 1 and r.model == "baseline")]
        assert list(compare(results, "reached").per_seed) == [0]
        results.rows = [r for r in results.rows if r.model == "poh"]
        assert compare(results, "reached") is None

    def test_sizes_are_not_mixed_and_random_serves_all(self):
        rows = pair((1, 1, 1, 1), (0, 0, 0, 0)) + pair((0, 0, 0, 0), (1, 1, 1, 1))
        rows += [make_row("random", False, reached=(1, 0, 0, 0))]
        for row, scale in zip(rows, ("tiny", "tiny", "xl", "xl"), strict=False):
            row.scale = scale
        results = make_results(rows)
        assert compare(results, "reached", scale="tiny").difference == 100
        assert compare(results, "reached", scale="xl").difference == -100
        assert compare(results, "reached", second=("random", False), scale="xl").difference == -25

    def test_unknown_measure(self):
        with pytest.raises(ValueError, match="measure is 'speed'; accepted: reached, optimal"):
            compare(make_results(), "speed")


class TestSampleSize:
    @pytest.mark.parametrize(("psi", "delta"), [(0.37, 0.1), (0.2, 0.08), (0.3, -0.06)])
    def test_mazes_give_80_percent_power_by_enumeration(self, psi, delta):
        n = mazes_needed(psi, delta)
        up, down = (psi + delta) / 2, (psi - delta) / 2
        power = 0.0
        for discordant in range(n + 1):
            weight = scipy_stats.binom.pmf(discordant, n, psi)
            wins = np.arange(discordant + 1)
            rejects = np.abs(2 * wins - discordant) > 1.959964 * math.sqrt(discordant)
            power += weight * (scipy_stats.binom.pmf(wins, discordant, up / (up + down)) * rejects).sum()
        assert 0.78 < power < 0.82

    def test_seeds_give_80_percent_power_of_the_t_test(self):
        for differences in ([1.0, 9.0, 2.0, 8.0], [4.0, 5.0, 7.0], [-2.0, 30.0, 3.0]):
            planned = float(np.mean(differences))
            spread = float(np.std(differences, ddof=1))
            n = seeds_needed(spread, planned)
            shift = planned * math.sqrt(n) / spread
            power = scipy_stats.nct.sf(scipy_stats.t.ppf(0.975, n - 1), n - 1, shift)
            assert 0.77 < power < 0.95, (differences, n)


class TestTable:
    def test_rows_are_pooled_and_in_order(self):
        results = make_run(seeds=(0, 1), looped=True)
        results.rows.reverse()
        assert [row[:2] for row in results_table(results).rows] == [
            ["baseline", "yes"], ["looped baseline", "yes"], ["PoH", "yes"],
            ["baseline", "no"], ["looped baseline", "no"], ["PoH", "no"], ["random policy", "no"],
        ]  # fmt: skip
        assert [r.seed for r in group_rows(results)[("", "poh", True)]] == [0, 1]

    def test_cells(self):
        rows = [make_row("poh", reached=(1, 1, 1, 1), optimal=(0, 0, 0, 0), note="slow disk"),
                make_row("random", False, reached=(0, 0, 0, 0), moves_correct=0, moves_total=0)]  # fmt: skip
        table = results_table(make_results(rows))
        full = "100 [51.0-100]"
        assert table.rows[0] == [
            "PoH", "yes", "7,412,688", "1.09", full, "0.0 [0.0-49.0]", "-", "75.0", "81.5", "148", "911",
        ]  # fmt: skip
        assert table.rows[1][3] == "-" and table.rows[1][6:9] == ["-", "-", "-"]
        assert "PoH, seed 0: slow disk" in table.notes
        lines = markdown(table).splitlines()
        assert lines[0].count("|") == len(COLUMNS) + 1 == lines[2].count("|")

    @pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
    def test_text_fits_a_terminal(self, seeds):
        results = make_run(seeds=seeds, looped=True)
        for row in results.rows:
            row.params, row.train_seconds = 111_935_985, 12345.6
        text = results_table(results).text()
        assert text.isascii()
        assert max(map(len, text.splitlines())) <= 100
        lines = text.splitlines()[: 3 + 7]
        assert all("[" in line for line in lines[3:])
        assert lines[2] == "-" * len(lines[2])
        narrow = results_table(results).text(width=70).splitlines()[:3]
        assert len(narrow[2]) < len(lines[2])

    def test_sizes_have_a_heading_each_and_a_column(self):
        rows = pair((1, 1, 1, 1), (0, 0, 0, 0)) + pair((1, 0, 1, 1), (1, 0, 0, 0))
        for row, scale in zip(rows, ("tiny", "tiny", "xl", "xl"), strict=True):
            row.scale = scale
        table = results_table(make_results(rows))
        lines = table.text().splitlines()
        assert lines.count("tiny:") == lines.count("xl:") == 1
        assert markdown(table).startswith("| size | model |")

    @pytest.mark.parametrize(
        "solver, baseline, config, told",
        [
            (90, 10, {"valid_heads": 0, "supervision": "path"}, True),
            (90, 10, {}, True),  # of a file that does not say it
            (2, 0, {}, False),
            (89, 0, {}, False),
            (100, 11, {}, False),
            (100, 0, {"valid_heads": 2}, False),
            (100, 0, {"supervision": "all"}, False),
        ],
    )
    def test_why_solvers_solve_is_told_where_it_is_so(self, solver, baseline, config, told):
        solved = {"looped_solver": solver, "baseline": baseline}
        rows = [make_row(name, reached=[True] * 100, exact=[i < n for i in range(100)]) for name, n in solved.items()]
        notes = results_table(make_results(rows, lengths=[50] * 100, config=config)).notes
        said = f"Why looped solver ({solver}.0 % exact) solves mazes and baseline ({baseline}.0 % exact) does not: "
        assert [note.startswith(said) for note in notes if note.startswith("Why")] == [True] * told

    def test_nothing_finished(self):
        table = results_table(make_results([]))
        assert "No model was finished." in table.text() and markdown(table).startswith("| model |")


def test_missing_scipy_names_the_extra(monkeypatch):
    def no_scipy(name, *args):
        raise ImportError("No module named 'scipy'")

    monkeypatch.setattr("importlib.import_module", no_scipy)
    with pytest.raises(ImportError, match=r"needs scipy.*pip install 'poh_ext\[experiments\]"):
        estimate({0: [True]})
