"""benchmarks/published.py and published.csv: verdicts, versions, and the figures themselves."""

import re

import numpy as np
import published
import pytest
import records
import report
import scores
from fake_runs import make_run, published_row, result_of, three_seeds


@pytest.mark.parametrize(
    ("reference", "difference", "verdict"), [(99.0, 11.0, "above"), (112.0, -2.0, "within"), (121.0, -11.0, "below")]
)
def test_verdict_and_sign_of_the_difference(tmp_path, reference, difference, verdict):
    result = three_seeds(tmp_path / "s")  # mean 110, interval [100, 120]
    comparison = published.compare(result, [published_row(reference), published_row(500.0, kind="headline")])
    assert result.estimates["return"].mean_interval == pytest.approx((100, 120))
    assert comparison.difference == pytest.approx(difference)
    assert comparison.verdict == verdict
    assert comparison.headline.mean == 500
    assert report.summary_row(result, comparison)[-2] == f"{difference:+.{1 if abs(difference) >= 10 else 2}f}"


@pytest.mark.parametrize(
    ("spread", "low", "high"),
    [("", 50, 50), ("45|60", 45, 60), ("12", 50 - 2.26216 * 12 / 3, 50 + 2.26216 * 12 / 3), ("0.00", 50, 50)],
)
def test_interval_of_a_published_mean(spread, low, high):
    """Ten seeds: Student's t with 9 degrees of freedom is 2.26216 at 97.5 %, and sqrt(10 - 1) is 3."""
    assert published_row(50.0, spread=spread).interval == pytest.approx((low, high), rel=1e-5)


@pytest.mark.parametrize(
    ("reference", "spread", "verdict"),
    [
        (98.0, "", "above"),
        (98.0, "2", "above"),  # up to 99.51
        (98.0, "3", "within"),  # up to 100.26
        (130.0, "13", "below"),  # down from 120.20
        (130.0, "14", "within"),  # down from 119.44
        (130.0, "121|140", "below"),
        (130.0, "119|140", "within"),
        (110.0, "1", "within"),
    ],
)
def test_the_published_uncertainty_counts(tmp_path, reference, spread, verdict):
    result = three_seeds(tmp_path / "s")  # interval [100, 120]
    assert published.compare(result, [published_row(reference, spread=spread)]).verdict == verdict


def test_a_protocol_that_differs_is_told(tmp_path):
    result = three_seeds(tmp_path / "s", env_id="Hopper-v5")
    rows = [published_row(10.0, task="Hopper", env_version="v4", caveat="actions are sampled", spread="2.5")]
    assert published.compare(result, rows).verdict == "above (roughly, protocol)"
    text = report.render_summary("s", [result], rows)
    assert "- source, td3: actions are sampled\n" in text and "| 10.0 ± 2.50 (v4, 10 seeds, source" in text


def test_reference_at_our_step_is_preferred(tmp_path):
    result = three_seeds(tmp_path / "s", total=300_000)
    rows = [published_row(s / 1000, env_steps=s) for s in (100_000, 294_912, 1_000_000)]
    assert published.compare(result, rows).reference.env_steps == 294_912


def test_different_steps_are_not_judged(tmp_path):
    result = three_seeds(tmp_path / "s", total=60_000)
    rows = [published_row(50.0, env_steps=100_000), published_row(10_574.0, env_steps=1_000_000)]
    comparison = published.compare(result, rows)
    assert comparison.verdict == "published at 100k, ours at 60k: not comparable at equal steps"  # the nearest
    assert comparison.difference is None
    assert report.summary_row(result, comparison)[7].startswith("50.0 at 100k (v5, 10 seeds")


def test_one_seed_is_not_judged(tmp_path):
    make_run(tmp_path / "s")
    result = result_of(tmp_path / "s")
    comparison = published.compare(result, [published_row(10.0)])
    assert (comparison.verdict, comparison.difference) == ("1 seed, no interval", 5.0)
    assert report.summary_row(result, comparison)[3:6] == ["1 seed", "15.0 (1 seed, no interval)", "15.0"]


def test_a_return_that_is_not_finite_is_not_judged(tmp_path):
    for seed in (1, 2):
        make_run(tmp_path / "s", seed=seed, evaluations={1000: [float("nan")]})
    comparison = published.compare(result_of(tmp_path / "s"), [published_row(10.0)])
    assert (comparison.verdict, comparison.difference) == ("our mean is not finite", None)


def test_no_published_figure(tmp_path):
    comparison = published.compare(three_seeds(tmp_path / "s"), [published_row(1.0, task="Hopper")])
    assert (comparison.reference, comparison.verdict) == (None, "no published figure")


def test_success_is_compared_with_success(tmp_path):
    for seed, solved in ((1, 1), (2, 1), (3, 0)):
        evaluations = {1000: [(-10.0, 1), (-20.0, solved)]}
        make_run(tmp_path / "s", env_id="FetchPush-v4", seed=seed, evaluations=evaluations)
    rows = [published_row(0.4, task="FetchPush", env_version="v4", metric="success_rate")]
    comparison = published.compare(result_of(tmp_path / "s"), rows)
    assert comparison.difference == pytest.approx((1 + 1 + 0.5) / 3 - 0.4)
    assert comparison.verdict == "above"


@pytest.mark.parametrize(
    ("task", "ours", "theirs", "effect"),
    [
        ("HalfCheetah", "v5", "v2", None),
        ("HalfCheetah", "v5", "v1", "roughly"),
        ("Swimmer", "v5", "v3", None),
        ("Hopper", "v5", "v3", "roughly"),
        ("Hopper", "v4", "v2", None),
        ("Reacher", "v5", "v2", "roughly"),
        ("InvertedPendulum", "v5", "v2", "roughly"),
        ("InvertedDoublePendulum", "v5", "v4", "roughly"),
        ("Walker2d", "v5", "v4", "caveat"),
        ("Walker2d", "v5", "v1", "caveat"),
        ("Walker2d", "v4", "v5", "caveat"),
        ("Walker2d", "v4", "v3", None),
        ("Ant", "v5", "v5", None),
        ("Ant", "v5", "v4", "not comparable"),
        ("Ant", "v5", "v1", "not comparable"),
        ("Ant", "v4", "v3", "not comparable"),
        ("Ant", "v3", "v2", None),
        ("Humanoid", "v5", "v3", "not comparable"),
        ("FetchPush", "v4", "v1", "roughly"),
        ("Unknown", "v1", "v0", "not comparable"),
        ("Unknown", "v1", "v1", None),
    ],
)
def test_versions(task, ours, theirs, effect):
    assert published.version_effect(task, ours, theirs)[0] == effect


@pytest.mark.parametrize(
    ("task", "verdict", "change"),
    [
        ("Hopper", "above (roughly)", "healthy_reward"),
        ("Walker2d", "above (caveat)", "friction"),
        ("Ant", "not comparable: Ant v5 against v4", "contact_cost"),
    ],
)
def test_versions_in_the_verdict(tmp_path, task, verdict, change):
    result = three_seeds(tmp_path / "s", env_id=f"{task}-v5")
    comparison = published.compare(result, [published_row(10.0, task=task, env_version="v4")])
    assert comparison.verdict == verdict
    assert change in comparison.note and comparison.note in report.render_summary(
        "s", [result], [published_row(10.0, task=task, env_version="v4")]
    )
    assert (comparison.difference is None) == (task == "Ant")


@pytest.mark.parametrize(
    ("env_id", "parts"),
    [("Hopper-v5", ("Hopper", "v5")), ("my_module:My-Env-v0", ("My-Env", "v0")), ("Plain", ("Plain", ""))],
)
def test_split_env_id(env_id, parts):
    assert published.split_env_id(env_id) == parts


@pytest.mark.parametrize(("value", "text"), [(10574.3, "10574"), (96.24, "96.2"), (-3.874, "-3.87"), (0.0, "0.00")])
def test_number(value, text):
    assert published.number(value) == text


def test_published_rows_are_complete_and_unique():
    rows = published.load_published()
    assert len(rows) > 300
    for row in rows:
        assert row.kind in ("reference", "headline", "v5", "random") and row.metric in records.METRICS, row
        assert re.fullmatch(r"v\d", row.env_version) and np.isfinite(row.mean), row
        assert (row.env_steps == 0) == (row.kind == "random" == row.algorithm), row
        assert not row.seeds or int(row.seeds) >= 1, row
        assert row.protocol and row.source and row.source_location, row
        assert bool(row.spread) == bool(row.spread_kind), row
        assert all(np.isfinite(float(number)) for number in row.spread.split("|") if row.spread), row
        assert not row.spread or int(row.seeds) > 1, row
        sampled = row.source.startswith("tianshou") and row.algorithm in ("reinforce", "a2c", "trpo", "ppo")
        assert sampled == ("sample the actions" in row.caveat), row
        assert row.kind != "v5" or row.env_version == "v5", row
    keys = [(row.kind, row.algorithm, row.task, row.env_steps) for row in rows]
    assert len(set(keys)) == len(keys)
    order = [(row.algorithm, row.task, row.kind != "reference", row.env_steps, row.kind) for row in rows]
    assert order == sorted(order)


def test_references_are_no_maxima_over_training():
    generous = re.compile(r"\bmax\b|maximum|\bbest\b|TRAINING|training returns", re.IGNORECASE)
    for row in published.load_published():
        if row.kind == "reference" and row.metric == "return":
            assert not generous.search(row.protocol), row


def test_references_say_how_their_protocol_differs():
    differs = {"last 10": "last 10", "variant": "settings of", "inferred": "inferred"}
    found = set()
    for row in published.load_published():
        if row.kind == "reference":
            wanted = {text for sign, text in differs.items() if sign in row.protocol}
            wanted |= {"gamma"} if row.task == "Swimmer" else set()
            assert all(text in row.caveat for text in wanted), row
            found |= wanted
    assert found == {*differs.values(), "gamma"}


def test_references_have_many_seeds_and_do_not_exceed_the_best_claim():
    figures = published.load_published()
    for row in figures:
        if row.kind == "reference" and row.metric == "return":
            assert int(row.seeds) >= 8, row
            claims = [
                r.mean for r in figures if r.kind == "headline" and (r.algorithm, r.task) == (row.algorithm, row.task)
            ]
            assert row.env_steps > 1_000_000 or row.mean <= max(claims), row


def test_every_algorithm_and_task_has_both_kinds_at_a_million_steps():
    figures = published.load_published()
    for algorithm in ("reinforce", "a2c", "trpo", "ppo", "ddpg", "td3", "sac"):
        for task in [task for task in published.CHANGES if not task.startswith("Fetch")]:
            for kind in ("reference", "headline"):
                rows = [row for row in figures if (row.kind, row.algorithm, row.task) == (kind, algorithm, task)]
                assert scores.nearest([row.env_steps for row in rows], 1_000_000, records.SAME_STEP) is not None


def test_anchors_are_random_actions_and_the_best_reference_at_a_million_steps():
    rows = [
        published_row(-280.0, kind="random", env_steps=0),
        published_row(5000.0, env_steps=990_000),
        published_row(9000.0, env_steps=1_000_000),
        published_row(99_999.0, env_steps=500_000),
        published_row(99_999.0, env_steps=1_000_000, kind="headline"),
        published_row(-60.0, kind="random", task="Ant", env_version="v4", env_steps=0),
        published_row(4000.0, task="Ant", env_version="v4", env_steps=1_000_000),
        published_row(0.5, kind="random", task="Swimmer", env_steps=0),
    ]
    env_ids = {"HalfCheetah-v5", "Ant-v5", "Ant-v4", "Swimmer-v5", "my_module:MyEnv-v0"}
    assert published.anchors(env_ids, rows) == {"HalfCheetah-v5": (rows[0], rows[2]), "Ant-v4": (rows[5], rows[6])}


def test_a_variant_is_not_compared_with_what_was_published_for_the_algorithm(tmp_path):
    folder = make_run(tmp_path / "s")
    (tmp_path / "s" / "td3").rename(tmp_path / "s" / "td3-no-delay")
    assert not folder.exists()
    result = result_of(tmp_path / "s")
    assert result.label == "td3-no-delay"
    assert published.compare(result, [published_row(10.0)]).verdict == "no published figure"
