"""benchmarks/scores.py: statistics against values worked out by hand, and against simulated seeds."""

import itertools

import numpy as np
import pytest
import scipy.stats
import scores
from fake_runs import cells_of, finals, make_csv, make_run

MATRIX = np.array([[0.0, 0.2, 2.0], [0.4, 0.6, 4.0]])  # 2 seeds on 3 tasks


@pytest.mark.parametrize("n", [3, 5, 10])
def test_the_t_interval_of_normal_seeds_covers_95_percent(n):
    seeds = np.random.default_rng(n).normal(7.0, 2.0, (20_000, n))
    bounds = [scores.t_interval(mean, sd, n) for mean, sd in zip(seeds.mean(1), seeds.std(1, ddof=1), strict=True)]
    covered = np.mean([low <= 7 <= high for low, high in bounds])
    assert abs(covered - 0.95) < 0.015


@pytest.mark.parametrize(("n", "cut", "covers"), [(3, 0, 75), (5, 0, 85), (10, 0, 90), (5, 1, 91), (10, 2, 94)])
def test_what_the_bootstrap_covers_is_what_the_documentation_says(n, cut, covers):
    """Of the mean, and of the interquartile mean, for which `cut` = floor(n / 4) scores are dropped on each side."""
    rng = np.random.default_rng(n)
    seeds = rng.normal(size=(4_000, n))
    drawn = np.sort(seeds[:, rng.integers(n, size=(500, n))], axis=-1)  # 500 resamples, the same for all
    low, high = np.quantile(drawn[..., cut : n - cut].mean(-1), [0.025, 0.975], axis=1)
    assert 100 * np.mean((low <= 0) & (high >= 0)) == pytest.approx(covers, abs=1.5)
    assert f"{covers} %" in scores.__doc__


def test_welch_by_hand():
    """Ours 1, 2, 3 (variance 1), theirs 4 and 1.5 (n = 9, variance 2.25): squared errors 1/3 and 1/4."""
    made = scores.welch(np.array([1.0, 2, 3]), 4.0, 1.5, 9)
    df = (7 / 12) ** 2 / ((1 / 3) ** 2 / 2 + (1 / 4) ** 2 / 8)  # 5.4
    half = scipy.stats.t.ppf(0.975, df) * (7 / 12) ** 0.5
    assert df == pytest.approx(5.3698, rel=1e-4) and made.interval == pytest.approx((-2 - half, -2 + half))
    assert made.verdict == "lower" and str(made) == "lower (n = 3 | 9): -2.00 [-3.92, -0.08]"


@pytest.mark.parametrize(
    ("ours", "mean", "sd", "n", "text"),
    [
        ([110, 110, 113], 100.0, 1.0, 10, "higher (n = 3 | 10): +11.0 ["),
        ([90, 110, 130], 100.0, 9.0, 10, "not separable (n = 3 | 10): +10.0 ["),
        ([110.0], 100.0, 1.0, 10, "not tested (n = 1 | 10): +10.0, 1 seed"),
        ([110, 110, 110], 100.0, 0.0, 10, "not separable (n = 3 | 10): +10.0, no spread"),  # no interval of width zero
        ([110, 110, 110], 100.0, 1.0, 10, "higher (n = 3 | 10): +10.0 [9.28, 10.7]"),  # 2.262 / sqrt(10)
        ([110, 110, 113], 10.0, None, None, "not tested (n = 3 | ?): +101 [96.7, 105], no spread over"),
    ],
)
def test_verdicts(ours, mean, sd, n, text):
    """A verdict comes with its difference; where one side has no spread over seeds, nothing is tested."""
    assert str(scores.welch(np.array(ours, dtype=float), mean, sd, n)).startswith(text)


def test_welch_agrees_with_scipy_on_the_verdict():
    rng = np.random.default_rng(0)
    for _ in range(200):
        ours, theirs = rng.normal(0, 1, 4), rng.normal(1, 2, 6)
        made = scores.welch(ours, theirs.mean(), theirs.std(ddof=1), 6)
        p = scipy.stats.ttest_ind(ours, theirs, equal_var=False).pvalue
        assert (made.verdict != "not separable") == (p < 0.05)


def test_seeds_with_the_same_settings_are_pooled_and_tuning_seeds_are_apart(tmp_path):
    for seed in (1, 2, 10, 11, 12):
        make_run(tmp_path, seed=seed)
    make_run(tmp_path / "other", seed=3, args={"gamma": 0.5})
    make_run(tmp_path / "longer", seed=4, total=2000)
    found = cells_of(tmp_path)
    assert [(cell.name, cell.total, cell.seeds) for cell in found] == [
        ("td3", 1000, [1, 2, 10]), ("td3 gamma 0.5", 1000, [3]), ("td3", 2000, [4])
    ]  # fmt: skip
    assert [cell.seeds for cell in cells_of(tmp_path, tuning=True)] == [[11, 12]]
    assert [(cell.name, cell.total) for cell in scores.longest(found)] == [("td3", 2000), ("td3 gamma 0.5", 1000)]
    path = make_csv(tmp_path / "other.csv", ("dqn", "My-v0", 1234, 9, 2))  # another program's seeds may be any
    make_run(tmp_path / "unfinished", total=3000, state="running", evaluations={0: [0.0]})
    assert scores.longest(cells_of(tmp_path / "longer", tmp_path / "unfinished"))[0].total == 2000
    assert [(cell.name, cell.seeds) for cell in cells_of(path)] == [("dqn (other)", [1234])]


def test_earlier_code_with_other_settings_leaves_todays_its_plain_name(tmp_path):
    make_run(tmp_path / "today", args={"gamma": 0.5})
    make_run(tmp_path / "earlier", args={"gamma": 0.25}, code_sha256="of other code")
    assert [(cell.name, cell.settings) for cell in cells_of(tmp_path / "today", tmp_path / "earlier")] == [
        ("td3", {"gamma": 0.5}), ("td3 gamma 0.25", {"gamma": 0.25})
    ]  # fmt: skip


def test_runs_of_earlier_code_are_not_pooled_with_those_of_today(tmp_path):
    for seed in (1, 2):
        for task in ("HalfCheetah-v5", "Hopper-v5", "Reacher-v5"):
            make_run(tmp_path, seed=seed, env_id=task, code_sha256="of other code")
    for seed in (3, 4):
        make_run(tmp_path, seed=seed, env_id="HalfCheetah-v5")
    make_run(tmp_path, seed=3, env_id="Hopper-v5")
    make_run(tmp_path, seed=3, env_id="Reacher-v5", state="failed", exit_code=1, evaluations={0: [1.0]})
    found = {cell.env_id: (cell.seeds, len(cell.runs), cell.runs["stale"].all()) for cell in cells_of(tmp_path)}
    assert found == {
        "HalfCheetah-v5": ([3, 4], 2, False),
        "Hopper-v5": ([1, 2], 2, True),
        "Reacher-v5": ([1, 2], 2, True),
    }


def test_values_at_a_step_and_curves(tmp_path):
    make_run(tmp_path, seed=1, evaluations={0: [0.0], 500: [10.0], 1000: [30.0]})
    make_run(tmp_path, seed=2, evaluations={0: [2.0], 510: [20.0], 1010: [50.0]})  # ends of batches
    (cell,) = cells_of(tmp_path)
    assert cell.at(500, "return").tolist() == [10, 20]  # within 2.5 %
    assert cell.at(755, "return") is None  # too far from both
    assert cell.at(1020, "return").tolist() == [30, 50] and cell.at(1030, "return") is None
    assert cell.at(float("nan"), "return") is None and cell.at(500, "success") is None
    assert cell.curve("return").index.tolist() == [0, 500, 1000]
    assert cell.curve("return").loc[500].tolist() == pytest.approx([10, 2 + 18 * 500 / 510])
    make_run(tmp_path / "often", seed=3, evaluations={0: [0.0], 900: [1.0], 1000: [3.0]})
    assert cells_of(tmp_path / "often")[0].at(950, "return").tolist() == [2]  # between evaluations


def test_aggregates():
    points, bounds = scores.aggregates(MATRIX)
    iqm = (0.2 + 0.4 + 0.6 + 2.0) / 4  # of 6 scores the lowest and the highest are dropped
    assert points == pytest.approx([iqm, 1.2, (1 + 0.6 + 0.8 + 0.4 + 0 + 0) / 6])
    errors = np.array([0.08, 0.08, 2.0]) / 2 / 9  # variances 0.08, 0.08, 2; 2 seeds; a third of each task's mean
    half = scipy.stats.t.ppf(0.975, errors.sum() ** 2 / (errors**2).sum()) * errors.sum() ** 0.5
    assert bounds[:, 1] == pytest.approx([1.2 - half, 1.2 + half]) and np.isnan(bounds[:, [0, 2]]).all()
    ten = np.random.default_rng(0).normal(size=(10, 2))
    state = np.random.get_state()[1].copy()
    points, bounds = scores.aggregates(ten)
    assert (bounds[0] < points).all() and (points < bounds[1]).all()
    np.testing.assert_array_equal(bounds, scores.aggregates(ten)[1])  # the same scores, the same digits
    assert (np.random.get_state()[1] == state).all() and scores.bootstrap(ten[:9], np.mean) is None


def test_normalised_scores(tmp_path):
    tasks = ("A-v5", "B-v5", "C-v5")
    for algorithm, task, values in (
        ("td3", "A-v5", (10, 20, 30)), ("td3", "B-v5", (0, 100)),  # one seed fewer
        ("sac", "A-v5", (110, 10)), ("sac", "B-v5", (50, 50)), ("sac", "C-v5", (1, 2)),  # which only one of the two has
        ("ppo", "A-v5", (1, 2)), ("ddpg", "A-v5", (1,)), ("ddpg", "B-v5", (1,)), ("a2c", "C-v5", (1, 2)),
    ):  # fmt: skip
        finals(tmp_path, *values, algorithm=algorithm, env_id=task)
    levels = dict(zip(tasks, ((10.0, 110.0), (0.0, 50.0), (0.0, 1.0)), strict=True))
    chosen, matrices = scores.normalised(cells_of(tmp_path), levels)
    assert chosen == ["A-v5", "B-v5"] and set(matrices) == {"td3", "sac"}
    np.testing.assert_allclose(matrices["td3"], [[0, 0], [0.1, 2]])
    np.testing.assert_allclose(matrices["sac"], [[1, 1], [0, 1]])
    assert scores.normalised(cells_of(tmp_path), {"A-v5": (0.0, 1.0)}) == ([], {})
    for algorithm, env_id in itertools.product(("td3", "sac"), ("A-v5", "B-v5", "C-v5", "D-v5")):
        if (algorithm == "td3") == (env_id < "C"):  # no task in common, and as many of each
            finals(tmp_path / "tie", 1.0, 2.0, algorithm=algorithm, env_id=env_id)
    assert scores.normalised(cells_of(tmp_path / "tie"), levels | {"D-v5": (0.0, 1.0)})[0] == ["C-v5", "D-v5"]
