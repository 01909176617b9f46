"""benchmarks/scores.py: statistics against values worked out by hand."""

import numpy as np
import pytest
import records
import scores
from fake_runs import make_run
from rliable import metrics


@pytest.mark.parametrize(
    ("values", "iqm"),
    [
        ([5], 5),
        ([1, 2, 6], 3),  # floor(3 / 4) = 0 dropped on each side: the mean
        ([100, 0, 1, 2], 1.5),  # 1 dropped on each side
        ([1, 2, 3, 4, 100], 3),
        ([1000, 0, 0, 10, 20, 30, 40, 50], 25),  # 2 dropped on each side: (10 + 20 + 30 + 40) / 4
    ],
)
def test_iqm(values, iqm):
    estimate = scores.estimate(np.array(values, dtype=float))
    assert (estimate.iqm, estimate.mean) == pytest.approx((iqm, sum(values) / len(values)))


@pytest.mark.parametrize(
    ("final", "low", "high"),
    [
        ([0, 10], 0, 10),  # means 0, 5, 10 with probabilities 1/4, 1/2, 1/4
        ([0, 0, 0, 40], 0, 30),  # 10 k with k ~ Binomial(4, 1/4): P(k = 4) < 2.5 % < P(k >= 3)
        ([7, 7, 7], 7, 7),
    ],
)
def test_interval_of_the_mean(final, low, high):
    assert scores.estimate(np.array(final, dtype=float)).mean_interval == pytest.approx((low, high))


def test_median_and_its_interval():
    estimate = scores.estimate(np.array([0.0, 1.0, 50.0]))
    assert estimate.median == 1
    # a resample's median is 0 with probability 7/27, 1 with 13/27 and 50 with 7/27
    assert estimate.median_interval == (0, 50)


def test_interval_of_the_iqm_ignores_an_outlier():
    estimate = scores.estimate(np.array([1.0, 2, 3, 4, 5, 6, 7, 1e6]))
    assert estimate.iqm_interval[1] < 3e5 < estimate.mean_interval[1]


def test_intervals_are_reproducible_and_leave_the_global_generator_alone():
    values = np.random.default_rng(0).normal(size=8)
    np.random.seed(1)
    first, drawn = scores.estimate(values), np.random.random()
    np.random.seed(1)
    assert np.random.random() == drawn
    np.random.seed(2)
    scores.cached_estimate.cache_clear()
    assert scores.estimate(values) == first


def test_band_is_the_interval_of_the_mean_at_each_evaluation():
    curves = np.random.default_rng(0).normal(size=(5, 3))
    band = scores.band(curves)
    assert band.shape == (2, 3)
    for e in range(3):  # rliable draws seeds anew for each evaluation, so the last digits differ
        assert band[:, e] == pytest.approx(scores.estimate(curves[:, e]).mean_interval, abs=0.1 * np.ptp(curves[:, e]))
    assert scores.band(curves[:1]) is None


def test_one_seed_has_no_interval():
    assert scores.estimate(np.array([3.0])) == scores.Estimate(1, 3.0, None, 3.0, None, 3.0, None)


# ---- across tasks ----------------------------------------------------------------------------------------------------

MATRIX = np.array([[0.0, 0.2, 2.0], [0.4, 0.6, 4.0]])  # 2 seeds on 3 tasks


def test_aggregates():
    points, bounds = scores.aggregates(MATRIX)
    assert dict(zip(scores.AGGREGATES, points, strict=True)) == pytest.approx(
        {
            "IQM": (0.2 + 0.4 + 0.6 + 2.0) / 4,  # of 6 scores the lowest and the highest are dropped
            "median": 0.4,  # of the tasks' means 0.2, 0.4, 3
            "mean": (0.2 + 0.4 + 3.0) / 3,
            "optimality gap": (1 + 0.6 + 0.8 + 0.4 + 0 + 0) / 6,
        }
    )
    assert bounds.shape == (2, 4) and (bounds[0] <= points).all() and (points <= bounds[1]).all()


def test_intervals_of_aggregates():
    """On each task a resample is (0, 0), (0, .4), (.4, 0), (.4, .4) with probability 1/4 each, ten times that on B."""
    points, (low, high) = scores.aggregates(np.array([[0.0, 0.0], [0.4, 4.0]]))
    assert points == pytest.approx(
        [0.2, 1.1, 1.1, 0.65]
    )  # 0, 0, .4, 4: IQM of the middle two; gap (1 + .6 + 1 + 0) / 4
    assert low == pytest.approx([0, 0, 0, 0.3]) and high == pytest.approx([2.2, 2.2, 2.2, 1])
    # their probabilities are 1/16 each, above 2.5 %; of 8 seeds on each task half score 0 and half 1
    _, (low, high) = scores.aggregates(np.array([[0.0, 1.0]] * 4 + [[1.0, 0.0]] * 4))
    # k / 16, k ~ Binomial(16, 1/2): P(k < 4) = 1.1 %, P(k < 5) = 3.8 %
    assert low[2:] == pytest.approx([4 / 16, 4 / 16]) and high[2:] == pytest.approx([12 / 16, 12 / 16])


def test_seeds_are_resampled_within_each_task():
    """Tasks of two seeds each that differ by 1: the mean over two tasks then takes the values 0, 1/4, ..., 1."""
    _, bounds = scores.aggregates(np.array([[0.0, 0.0], [1.0, 1.0]]))
    assert bounds[:, 2] == pytest.approx([0, 1])  # each with probability 1/16 > 2.5 %
    _, bounds = scores.aggregates(np.array([[0.0] * 8, [1.0] * 8]))
    assert 0.2 < bounds[0, 2] < 0.4 < 0.6 < bounds[1, 2] < 0.8  # 16 independent draws; 0 and 1 if tasks shared them


def test_profile_is_the_share_of_runs_above_each_threshold():
    shares, bounds = scores.profile(MATRIX, np.array([-1.0, 0.0, 0.5, 1.0, 4.0]))
    assert shares == pytest.approx([1, 5 / 6, 3 / 6, 2 / 6, 0])
    assert bounds.shape == (2, 5) and bounds[:, 0] == pytest.approx([1, 1])


def test_interval_of_a_profile():
    """Half of 8 runs lie above 0.5: k ~ Binomial(8, 1/2) of a resample do; P(k < 1) = 0.4 %, P(k < 2) = 3.5 %."""
    shares, bounds = scores.profile(np.array([[0.0]] * 4 + [[1.0]] * 4), np.array([0.5]))
    assert shares == pytest.approx([0.5]) and bounds[:, 0] == pytest.approx([1 / 8, 7 / 8])


@pytest.mark.parametrize(
    ("x", "y", "probability"),
    [
        ([[1, 2], [3, 4]], [[2, 0], [2, 0]], (2 / 4 + 4 / 4) / 2),
        ([[1], [1]], [[1], [0]], (0.5 + 1 + 0.5 + 1) / 4),  # ties count half
        ([[1], [2]], [[1], [2]], 0.5),
        ([[0], [0]], [[1], [2]], 0),
    ],
)
def test_probability_of_improvement(x, y, probability):
    x, y = np.array(x, dtype=float), np.array(y, dtype=float)
    chance, (low, high) = scores.improvement(x, y)
    assert chance == pytest.approx(probability) and low <= chance <= high
    assert scores.improvement(y, x)[0] == pytest.approx(1 - probability)
    assert metrics.probability_of_improvement(x, y) == pytest.approx(probability)


@pytest.mark.parametrize(
    ("x", "y", "low", "high"),
    [
        ([0, 1], [0.5, 0.5], 0, 1),  # 0, 1/2, 1 with probabilities 1/4, 1/2, 1/4
        ([0] * 4 + [1] * 4, [0.5] * 8, 1 / 8, 7 / 8),  # k / 8, k ~ Binomial(8, 1/2): P(k < 1) = 0.4 %, P(k < 2) = 3.5 %
        ([2, 3], [0, 1], 1, 1),
    ],
)
def test_interval_of_the_probability_of_improvement(x, y, low, high):
    _, bounds = scores.improvement(np.array(x, dtype=float)[:, None], np.array(y, dtype=float)[:, None])
    assert bounds == pytest.approx((low, high))


def test_scores_across_tasks_are_reproducible():
    rng = np.random.default_rng(0)
    x, y, curves = rng.normal(size=(4, 3)), rng.normal(size=(5, 3)), rng.normal(size=(5, 3))

    def drawn() -> np.ndarray:
        _, of_profile = scores.profile(x, np.linspace(-1, 1, 5))
        return np.concatenate([
            scores.aggregates(x)[1].ravel(), of_profile.ravel(), scores.band(curves).ravel(),
            scores.improvement(x, y)[1],
        ])  # fmt: skip

    np.random.seed(1)
    first = drawn()
    np.random.seed(2)
    np.testing.assert_array_equal(drawn(), first)


def test_normalised_scores(tmp_path):
    root = tmp_path / "s"

    def runs(algorithm, env_id, *finals):
        for seed, final in enumerate(finals, 1):
            make_run(root, algorithm, env_id, seed, evaluations={1000: [final]})

    runs("td3", "Hopper-v5", 10, 20, 30)
    runs("td3", "Swimmer-v5", 0, 100)  # one seed fewer
    runs("sac", "Hopper-v5", 110, 10)
    runs("sac", "Swimmer-v5", 50, 50)
    runs("sac", "Ant-v5", 1, 2)  # only one of the two has it
    runs("ppo", "Hopper-v5", 1, 2)  # one task
    runs("ddpg", "Hopper-v5", 1)  # one seed
    runs("ddpg", "Swimmer-v5", 1)
    results = scores.summarise(records.load_runs(tmp_path, "s"))
    anchors = {"Hopper-v5": (10.0, 110.0), "Swimmer-v5": (0.0, 50.0), "Ant-v5": (0.0, 1.0)}
    tasks, matrices = scores.normalised(results, anchors)
    assert tasks == ["Hopper-v5", "Swimmer-v5"] and set(matrices) == {"td3", "sac"}
    np.testing.assert_allclose(matrices["td3"], [[0, 0], [0.1, 2]])
    np.testing.assert_allclose(matrices["sac"], [[1, 1], [0, 1]])
    assert scores.normalised(results, {"Hopper-v5": (0.0, 1.0)}) == ([], {})


def test_more_results_do_not_shrink_what_is_compared_across_tasks(tmp_path):
    """Two algorithms on four tasks are more than three on two; algorithms without a common task do not empty it."""
    tasks = ("A-v5", "B-v5", "C-v5", "D-v5")
    for algorithm, having in (("a2c", tasks), ("ppo", tasks), ("sac", tasks[:2]), ("td3", tasks[2:])):
        for task in having:
            for seed in (1, 2):
                make_run(tmp_path / "s", algorithm, task, seed)
    results = scores.summarise(records.load_runs(tmp_path, "s"))
    chosen, matrices = scores.normalised(results, dict.fromkeys(tasks, (0.0, 1.0)))
    assert chosen == [*tasks] and set(matrices) == {"a2c", "ppo"}
    assert all(matrix.shape == (2, 4) for matrix in matrices.values())


# ---- evaluations near a step -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "step", "index"),
    [
        ([0, 100_352, 200_704], 100_000, 1),
        ([0, 97_500, 102_500], 100_000, 1),  # at the tolerance of 2.5 %
        ([0, 97_499, 102_501], 100_000, None),
        ([99_000, 100_352], 100_000, 1),
        ([], 100_000, None),
    ],
)
def test_nearest(steps, step, index):
    assert scores.nearest(np.array(steps), step, records.SAME_STEP) == index
