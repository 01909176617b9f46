"""benchmarks/scores.py: statistics against values worked out by hand."""

import numpy as np
import pytest
import records
import scores
from fake_runs import make_run
from rliable import metrics

MATRIX = np.array([[0.0, 0.2, 2.0], [0.4, 0.6, 4.0]])  # 2 seeds on 3 tasks


def test_mean_median_iqm_and_their_intervals():
    for values, iqm in (
        ([1, 2, 6], 3), ([100, 0, 1, 2], 1.5),  # floor(n / 4) = 0 or 1 dropped on each side
        ([1000, 0, 0, 10, 20, 30, 40, 50], 25),  # 2 dropped on each side: (10 + 20 + 30 + 40) / 4
    ):  # fmt: skip
        estimate = scores.estimate(np.array(values, dtype=float))
        assert (estimate.iqm, estimate.mean) == pytest.approx((iqm, sum(values) / len(values)))
    for values, interval in (
        ([0, 10], (0, 10)),  # means 0, 5, 10 with probabilities 1/4, 1/2, 1/4
        ([0, 0, 0, 40], (0, 30)),  # 10 k with k ~ Binomial(4, 1/4): P(k = 4) < 2.5 % < P(k >= 3)
    ):  # fmt: skip
        assert scores.estimate(np.array(values, dtype=float)).mean_interval == pytest.approx(interval)
    estimate = scores.estimate(np.array([0.0, 1.0, 50.0]))
    # a resample's median is 0 with probability 7/27, 1 with 13/27 and 50 with 7/27
    assert estimate.median == 1 and estimate.median_interval == (0, 50)
    estimate = scores.estimate(np.array([1.0, 2, 3, 4, 5, 6, 7, 1e6]))
    assert estimate.iqm_interval[1] < 3e5 < estimate.mean_interval[1], "an outlier does not count"
    assert scores.estimate(np.array([3.0])) == scores.Estimate(1, 3.0, None, 3.0, None, 3.0, None)


def test_intervals_are_reproducible_and_leave_the_global_generator_alone():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(4, 3)), rng.normal(size=(5, 3))

    def drawn() -> np.ndarray:
        scores.cached_estimate.cache_clear()
        parts = scores.aggregates(x)[1], scores.profile(x, np.linspace(-1, 1, 5))[1], scores.improvement(x, y)[1]
        estimate = scores.estimate(x[:, 0])
        return np.concatenate([np.ravel(part) for part in (*parts, scores.band(x), estimate.mean_interval)])

    np.random.seed(1)
    first, after = drawn(), np.random.random()
    np.random.seed(1)
    assert np.random.random() == after
    np.testing.assert_array_equal(drawn(), first)


def test_aggregates_and_their_intervals():
    points, bounds = scores.aggregates(MATRIX)
    iqm = (0.2 + 0.4 + 0.6 + 2.0) / 4  # of 6 scores the lowest and the highest are dropped
    median, mean = 0.4, (0.2 + 0.4 + 3.0) / 3  # of the tasks' means 0.2, 0.4, 3
    assert points == pytest.approx([iqm, median, mean, (1 + 0.6 + 0.8 + 0.4 + 0 + 0) / 6])
    assert scores.AGGREGATES == ("IQM", "median", "mean", "optimality gap")
    assert bounds.shape == (2, 4) and (bounds[0] <= points).all() and (points <= bounds[1]).all()
    _, bounds = scores.aggregates(np.tile([[0.0], [1.0]], 16))
    assert 0.2 < bounds[0, 2] < 0.4 < 0.6 < bounds[1, 2] < 0.8  # 16 independent draws; 0 and 1 if tasks shared them


@pytest.mark.parametrize(
    ("x", "y", "probability", "interval"),
    [
        ([[1, 2], [3, 4]], [[2, 0], [2, 0]], (2 / 4 + 4 / 4) / 2, None),
        ([[1], [1]], [[1], [0]], (0.5 + 1 + 0.5 + 1) / 4, None),  # ties count half
        ([[0], [1]], [[0.5], [0.5]], 0.5, (0, 1)),  # 0, 1/2, 1 with probabilities 1/4, 1/2, 1/4
        ([[0]] * 4 + [[1]] * 4, [[0.5]] * 8, 0.5, (1 / 8, 7 / 8)),  # as in the profile
        ([[2], [3]], [[0], [1]], 1, (1, 1)),
    ],
)
def test_probability_of_improvement(x, y, probability, interval):
    x, y = np.array(x, dtype=float), np.array(y, dtype=float)
    chance, bounds = scores.improvement(x, y)
    assert chance == pytest.approx(probability) == pytest.approx(metrics.probability_of_improvement(x, y))
    assert scores.improvement(y, x)[0] == pytest.approx(1 - probability)
    assert bounds[0] <= chance <= bounds[1] and (interval is None or bounds == pytest.approx(interval))


def test_normalised_scores(tmp_path):
    tasks = ("A-v5", "B-v5", "C-v5")
    for algorithm, task, finals in (
        ("td3", "A-v5", (10, 20, 30)), ("td3", "B-v5", (0, 100)),  # one seed fewer
        ("sac", "A-v5", (110, 10)), ("sac", "B-v5", (50, 50)), ("sac", "C-v5", (1, 2)),  # which only one of the two has
        ("ppo", "A-v5", (1, 2)), ("ddpg", "A-v5", (1,)), ("ddpg", "B-v5", (1,)),  # one task; one seed
        *(("a2c", task, (1, 2)) for task in tasks[2:]),  # none in common with others
    ):  # fmt: skip
        for seed, final in enumerate(finals, 1):
            make_run(tmp_path / "s", algorithm, task, seed, evaluations={1000: [final]})
    results = scores.summarise(records.load_runs(tmp_path, "s"))
    chosen, matrices = scores.normalised(
        results, dict(zip(tasks, ((10.0, 110.0), (0.0, 50.0), (0.0, 1.0)), strict=True))
    )
    assert chosen == ["A-v5", "B-v5"] and set(matrices) == {"td3", "sac"}
    np.testing.assert_allclose(matrices["td3"], [[0, 0], [0.1, 2]])
    np.testing.assert_allclose(matrices["sac"], [[1, 1], [0, 1]])
    assert scores.normalised(results, {"A-v5": (0.0, 1.0)}) == ([], {})
