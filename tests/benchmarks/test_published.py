"""benchmarks/published.py and published.csv: verdicts, versions, and the figures themselves."""

import re

import numpy as np
import published
import pytest
import records
import report
import scores
from fake_runs import make_run, published_row, result_of, three_seeds

FIGURES = published.load_published()


def test_verdict_and_difference(tmp_path):
    """Ten seeds: Student's t with 9 degrees of freedom is 2.26216 at 97.5 %, and sqrt(10 - 1) is 3."""
    result = three_seeds(tmp_path / "s")  # mean 110
    assert result.estimates["return"].mean_interval == pytest.approx((100, 120))
    for reference, spread, interval, verdict, difference in (
        (99.0, "", (99, 99), "above", "+11.0"), (112.0, "", (112, 112), "within", "-2.00"),
        (121.0, "0.0", (121, 121), "below", "-11.0"), (98.0, "2", (96.49189, 99.50811), "above", "+12.0"),
        (98.0, "3", (95.73784, 100.26216), "within", "+12.0"), (130.0, "13", (120.19731, 139.80269), "below", "-20.0"),
        (130.0, "14", (119.44325, 140.55675), "within", "-20.0"), (130.0, "121|140", (121, 140), "below", "-20.0"),
        (130.0, "119|140", (119, 140), "within", "-20.0"),
    ):  # fmt: skip
        row = published_row(reference, spread=spread)
        assert row.interval == pytest.approx(interval, rel=1e-5)
        comparison = published.compare(result, [row, published_row(500.0, kind="headline")])
        assert (comparison.verdict, comparison.headline.mean) == (verdict, 500), (reference, spread)
        assert report.summary_row(result, comparison)[-2] == difference


def test_only_equal_steps_are_judged(tmp_path):
    result = three_seeds(tmp_path / "s", total=300_000)
    rows = [published_row(s / 1000, env_steps=s) for s in (100_000, 294_912, 1_000_000)]
    assert published.compare(result, rows).reference.env_steps == 294_912
    comparison = published.compare(result, [rows[0], rows[2]])
    assert comparison.verdict == "published at 100k, ours at 300k: not comparable at equal steps"  # the nearest
    assert comparison.difference is None
    assert report.summary_row(result, comparison)[7].startswith("100.0 at 100k (v5, 10 seeds")


def test_what_is_not_judged(tmp_path):
    make_run(tmp_path / "one")
    result = result_of(tmp_path / "one")
    comparison = published.compare(result, [published_row(10.0)])
    assert (comparison.verdict, comparison.difference) == ("1 seed, no interval", 5.0)
    assert report.summary_row(result, comparison)[3:6] == ["1 seed", "15.0 (1 seed, no interval)", "15.0"]
    comparison = published.compare(result, [published_row(1.0, task="Hopper")])
    assert (comparison.reference, comparison.verdict) == (None, "no published figure")
    for seed in (1, 2):
        make_run(tmp_path / "two", seed=seed, evaluations={1000: [float("nan")]})
    comparison = published.compare(result_of(tmp_path / "two"), [published_row(10.0)])
    assert (comparison.verdict, comparison.difference) == ("our mean is not finite", None)
    make_run(tmp_path / "three")
    (tmp_path / "three" / "td3").rename(tmp_path / "three" / "td3-no-delay")
    variant = result_of(tmp_path / "three")
    assert variant.label == "td3-no-delay"
    assert published.compare(variant, [published_row(10.0)]).verdict == "no published figure"


def test_success_is_compared_with_success(tmp_path):
    for seed, solved in ((1, 1), (2, 1), (3, 0)):
        evaluations = {1000: [(-10.0, 1), (-20.0, solved)]}
        make_run(tmp_path / "s", env_id="FetchPush-v4", seed=seed, evaluations=evaluations)
    result = result_of(tmp_path / "s")
    rows = [published_row(0.4, task="FetchPush", env_version="v4", metric="success_rate")]
    comparison = published.compare(result, rows)
    assert comparison.difference == pytest.approx((1 + 1 + 0.5) / 3 - 0.4) and comparison.verdict == "above"
    assert "success 0.83" in report.summary_row(result, comparison)[4]


def test_versions():
    for text, effect in {
        "HalfCheetah v5 v2": None, "HalfCheetah v5 v1": "roughly", "Swimmer v5 v3": None, "Hopper v5 v3": "roughly",
        "Hopper v4 v2": None, "Reacher v5 v2": "roughly", "InvertedDoublePendulum v5 v4": "roughly",
        "Walker2d v5 v4": "caveat", "Walker2d v4 v5": "caveat", "Walker2d v4 v3": None, "Ant v5 v5": None,
        "Ant v5 v4": "not comparable", "Ant v4 v3": "not comparable", "Ant v3 v2": None,
        "Humanoid v5 v3": "not comparable", "FetchPush v4 v1": "roughly", "Unknown v1 v0": "not comparable",
        "Unknown v1 v1": None,
    }.items():  # fmt: skip
        assert published.version_effect(*text.split())[0] == effect, text
    assert published.split_env_id("my_module:My-Env-v0") == ("My-Env", "v0")


def test_versions_in_the_verdict(tmp_path):
    for task, verdict, change in (
        ("Hopper", "above (roughly)", "healthy_reward"), ("Walker2d", "above (caveat)", "friction"),
        ("Ant", "not comparable: Ant v5 against v4", "contact_cost"),
    ):  # fmt: skip
        result = three_seeds(tmp_path / task, env_id=f"{task}-v5")
        rows = [published_row(10.0, task=task, env_version="v4")]
        comparison = published.compare(result, rows)
        assert comparison.verdict == verdict and (comparison.difference is None) == (task == "Ant")
        assert change in comparison.note and comparison.note in report.render_summary("s", [result], rows)
    rows = [published_row(10.0, task="Ant", caveat="actions are sampled", spread="2.5")]
    assert published.compare(result, rows).verdict == "above (protocol)"
    text = report.render_summary("s", [result], rows)
    assert "- source, td3: actions are sampled\n" in text and "| 10.0 ± 2.50 (v5, 10 seeds, source" in text


def test_published_rows_are_complete_and_unique():
    assert len(FIGURES) > 300
    for row in FIGURES:
        assert row.kind in ("reference", "headline", "v5", "random") and row.metric in records.METRICS, row
        assert re.fullmatch(r"v\d", row.env_version) and np.isfinite(row.mean), row
        assert (row.env_steps == 0) == (row.kind == "random" == row.algorithm), row
        assert not row.seeds or int(row.seeds) >= 1, row
        assert row.protocol and row.source and row.source_location, row
        assert bool(row.spread) == bool(row.spread_kind), row
        assert all(np.isfinite(float(number)) for number in row.spread.split("|") if row.spread), row
        assert not row.spread or int(row.seeds) > 1, row
        assert row.kind != "v5" or row.env_version == "v5", row
    keys = [(row.kind, row.algorithm, row.task, row.env_steps) for row in FIGURES]
    assert len(set(keys)) == len(keys)


def test_references_are_many_seeds_no_maxima_and_say_how_their_protocol_differs():
    generous = re.compile(r"\bmax\b|maximum|\bbest\b|TRAINING|training returns", re.IGNORECASE)
    differs = {"last 10": "last 10", "variant": "settings of", "inferred": "inferred"}
    for row in [row for row in FIGURES if row.kind == "reference"]:
        assert all(text in row.caveat for sign, text in differs.items() if sign in row.protocol), row
        assert row.task != "Swimmer" or "gamma" in row.caveat, row
        sampled = row.source.startswith("tianshou") and row.algorithm in ("reinforce", "a2c", "trpo", "ppo")
        assert sampled == ("sample the actions" in row.caveat), row
        if row.metric == "return":
            assert not generous.search(row.protocol) and int(row.seeds) >= 8, row
            known = [r for r in FIGURES if (r.kind, r.algorithm, r.task) == ("headline", row.algorithm, row.task)]
            assert row.env_steps > 1_000_000 or row.mean <= max(r.mean for r in known), row
    for algorithm in ("reinforce", "a2c", "trpo", "ppo", "ddpg", "td3", "sac"):
        for task in [task for task in published.CHANGES if not task.startswith("Fetch")]:
            for kind in ("reference", "headline"):
                steps = [r.env_steps for r in FIGURES if (r.kind, r.algorithm, r.task) == (kind, algorithm, task)]
                assert scores.nearest(steps, 1_000_000, records.SAME_STEP) is not None, (algorithm, task, kind)
