"""benchmarks/published.py and published.csv: like with like, versions, and the figures themselves."""

import re

import numpy as np
import published
import pytest
import records
from fake_runs import cells_of, finals, make_run, published_row

FIGURES = published.load_published()
RETURNS = ("reinforce", "a2c", "trpo", "ppo", "ddpg", "td3", "sac")


def test_deviations_are_those_of_a_sample():
    """Sources divide by n: 3 over 10 seeds is 3 sqrt(10 / 9). A 95 % bootstrap interval is 3.92 such over sqrt(10)."""
    assert published_row(5.0, sd=3).sd == pytest.approx(3.16228, rel=1e-5)
    row = published_row(5.0, sd="3|7", spread_kind="95% bootstrap CI (lo|hi)")
    assert row.sd == pytest.approx(4 / 3.92 * 10 / 3)
    assert published_row(5.0, sd=3, spread_kind="std over eval episodes").sd is None  # of one agent: nothing to test
    assert published_row(5.0, sd=3, seeds=1).sd is None and published_row(5.0).sd is None


def test_ours_are_compared_at_the_published_step(tmp_path):
    for seed, final in enumerate((100.0, 110.0, 120.0), 1):
        evaluations = {90_000: [final / 10], 110_000: [final / 5], 300_000: [final]}
        make_run(tmp_path, seed=seed, total=300_000, evaluations=evaluations)
    (cell,) = cells_of(tmp_path)
    rows = [published_row(mean, step=step, sd=1) for mean, step in ((3, 100_000), (1, 294_912), (9, 1_000_000))]
    made = published.reference(cell, rows, "return")
    assert (made.row.step, made.ours.tolist(), made.difference.verdict) == (294_912, [100, 110, 120], "higher")
    assert published.compare(cell, rows[0]).ours == pytest.approx([15, 16.5, 18])  # between evaluations
    made = published.reference(cell, rows[2:], "return")
    assert (made.difference, made.verdict) == (None, "published at 1M, ours are shorter")
    assert published.reference(cell, rows, "success") is None


@pytest.mark.parametrize(
    ("versions", "effect"),
    [
        ("HalfCheetah v5 v2", None), ("HalfCheetah v5 v1", "roughly"), ("Hopper v5 v3", "roughly"),
        ("Hopper v4 v2", None), ("Walker2d v5 v4", "caveat"), ("Walker2d v4 v5", "caveat"), ("Ant v5 v5", None),
        ("Ant v5 v4", "not comparable"), ("Ant v3 v2", None), ("Humanoid v5 v3", "not comparable"),
        ("FetchPush v4 v1", "roughly"), ("Unknown v1 v0", "not comparable"), ("Unknown v1 v1", None),
    ],
)  # fmt: skip
def test_versions(versions, effect):
    task, ours, theirs = versions.split()
    assert published.version_effect(f"{task}-{ours}", f"{task}-{theirs}")[0] == effect
    assert published.split_env_id("my_module:My-Env-v0") == ("My-Env", "v0")


def test_what_is_unlike_is_not_judged(tmp_path):
    ant = finals(tmp_path / "ant", 100.0, 110.0, env_id="Ant-v5")
    made = published.compare(ant, published_row(5.0, "Ant-v4", sd=1))
    assert made.difference is None and "contact_cost" in made.verdict and not made.notes
    walker = finals(tmp_path / "walker", 100.0, 110.0, 120.0, env_id="Walker2d-v5")
    made = published.compare(walker, published_row(5.0, "Walker2d-v4", sd=1, caveat="sampled"))
    assert made.difference.verdict == "higher" and "friction" in made.notes[0] and made.notes[1].endswith("sampled")
    swimmer = finals(tmp_path / "swimmer", 5.0, 6.0, env_id="Swimmer-v5", args={"gamma": 0.9999})
    made = published.compare(swimmer, published_row(5.0, "Swimmer-v3", sd=1, settings={"gamma": 0.99}))
    assert made.verdict == "not like with like: gamma 0.9999, there 0.99"
    other = finals(tmp_path / "like", 5.0, 6.0, env_id="Swimmer-v5")
    assert published.compare(other, published_row(5.0, "Swimmer-v3", sd=1, settings={"gamma": 0.99})).difference


@pytest.mark.parametrize(
    ("label", "args", "task", "kind", "sources"),
    [
        ("ppo", {}, "Hopper-v5 return", "reference", {"lqnew", "tianshou-curves", "mrq-paper"}),
        ("ppo-clip0.1", {"clip_coef": 0.1}, "Hopper-v5 return", "reference", set()),
        ("reinforce-mean", {"baseline": "mean"}, "Hopper-v5 return", "reference", {"tianshou-curves"}),
        ("sb3-ppo", {}, "Hopper-v5 return", "reference", {"sb3-zoo"}),
        ("her_ddpg", {}, "FetchPush-v4 success", "headline", {0.9917}),
        ("her_ddpg-no-her", {"her": False}, "FetchPush-v4 success", "headline", {0.05833}),
        ("unknown", {}, "Hopper-v5 return", "reference", set()),
    ],
)
def test_variants_and_peers_have_the_figures_made_like_them(tmp_path, label, args, task, kind, sources):
    env_id, metric = task.split()
    algorithm = label if label.startswith("sb3") else label.partition("-")[0]
    cell = finals(tmp_path, 1.0, algorithm=algorithm, label=label, args=args, env_id=env_id)
    rows = published.select(FIGURES, kind, cell, metric)
    assert {row.mean if metric == "success" else row.source for row in rows} == sources


def test_published_rows_are_complete_and_unique():
    assert len(FIGURES) > 350
    for row in FIGURES:
        assert row.kind in ("reference", "headline", "single", "v5", "random") and row.metric in records.METRICS, row
        assert re.fullmatch(r"\w+-v\d", row.env_id) and np.isfinite(row.mean), row
        assert (row.step == 0) == (row.kind == "random" == row.algorithm), row
        assert row.step >= 0 or row.kind == "headline", row  # others state their steps
        assert row.protocol and row.source and row.source_location and bool(row.spread) == bool(row.spread_kind), row
        assert row.kind != "single" or (row.seeds, row.sd) == (1, None), row
        assert row.kind != "v5" or row.env_id.endswith("-v5"), row
    keys = [
        (row.kind, row.algorithm, row.env_id.rpartition("-")[0], row.step, str(row.settings), row.metric)
        for row in FIGURES
    ]
    assert len(set(keys)) == len(keys)


def test_references_are_many_seeds_no_maxima_and_say_how_their_protocol_differs():
    generous = re.compile(r"\bmax\b|maximum|\bbest\b|TRAINING|training returns", re.IGNORECASE)
    differs = {"last 10": "last 10", "variant": "settings of", "inferred": "inferred"}
    references = [row for row in FIGURES if row.kind == "reference"]
    for row in references:
        assert all(text in row.caveat for sign, text in differs.items() if sign in row.protocol), row
        assert ("gamma" in row.settings) == row.env_id.startswith("Swimmer"), row
        assert ("baseline" in row.settings) == (row.algorithm == "reinforce"), row
        sampled = row.source.startswith("tianshou") and row.algorithm in RETURNS[:4]
        assert sampled == ("sample the actions" in row.caveat), row
        assert row.metric == "success" or (not generous.search(row.protocol) and row.seeds >= 8), row
    tasks = {task for task in published.CHANGES["task"] if not task.startswith("Fetch")}
    at_1m = {(row.algorithm, row.env_id.partition("-")[0]) for row in references if abs(row.step - 1e6) <= 25_000}
    assert {(algorithm, task) for algorithm in RETURNS for task in tasks} <= at_1m
