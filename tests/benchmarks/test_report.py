"""benchmarks/report.py and published.csv: hand-worked statistics, verdicts, and what becomes of broken runs."""

import csv
import json
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
import report  # noqa: E402  (after the path)

SHA = "0123456789abcdef"


def make_run(root, algorithm="td3", env_id="HalfCheetah-v5", seed=1, total=1000, evaluations=None, **status):
    """A run folder; evaluations maps step -> episode returns, or pairs of return and success; status None: no file."""
    folder = root / algorithm / env_id / str(seed)
    folder.mkdir(parents=True)
    history = [{"versions": {"torch": "2.13.0"}, "script_sha256": SHA, "platform": "Linux", "device": "cpu"}]
    settings = {"env_id": env_id, "seed": seed, "total_timesteps": total}
    config = {"algorithm": algorithm, "args": settings, "history": history}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "metrics.csv").write_text("step,seconds,loss\n500,60,\n")
    rows = []
    for step, episodes in ({0: [0.0, 0.0], total: [10.0, 20.0]} if evaluations is None else evaluations).items():
        rows += [
            [step, k, *np.atleast_1d(episode)[:1], 9, *np.atleast_1d(episode)[1:]] for k, episode in enumerate(episodes)
        ]
    header = ["step", "episode", "return", "length", "success"][: len(rows[0]) if rows else 4]
    with (folder / "eval.csv").open("w") as file:
        csv.writer(file).writerows([header, *rows])
    status = {"state": "done", "exit_code": 0, "seconds": 120.0, "command": ["python", "td3.py"]} | status
    (folder / "status.json").write_text(json.dumps(status))
    return folder


def published_row(mean, kind="reference", task="HalfCheetah", env_version="v5", env_steps=1000, metric="return"):
    return report.Published(
        kind, "td3", task, env_version, env_steps, metric, mean, "", "", "10", "evaluation at that step",
        "source", "table 1",
    )  # fmt: skip


def result_of(root):
    (result,) = report.summarise(report.load_runs(root.parent, root.name))
    return result


def three_seeds(root, **settings):
    """Three runs with the final returns 100, 110 and 120."""
    total = settings.get("total", 1000)
    for seed, final in enumerate([100.0, 110.0, 120.0], 1):
        make_run(root, seed=seed, evaluations={0: [0.0, 0.0], total: [final - 5, final + 5]}, **settings)
    return result_of(root)


def run_report(results, suite, *options):
    return subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "report.py", "--results", results, "--suite", suite, *options],
        capture_output=True, text=True,
    )  # fmt: skip


# ---- statistics ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "iqm"),
    [
        ([5], 5),
        ([1, 2, 6], 3),  # floor(3 / 4) = 0 dropped on each side: the mean
        ([100, 0, 1, 2], 1.5),  # 1 dropped on each side
        ([1, 2, 3, 4, 100], 3),
        ([1000, 0, 0, 10, 20, 30, 40, 50], 25),  # 2 dropped on each side: (10 + 20 + 30 + 40) / 4
    ],
)
def test_iqm(scores, iqm):
    assert report.iqm(np.array(scores, dtype=float)) == pytest.approx(iqm)
    assert report.estimate(np.array(scores, dtype=float)).mean == pytest.approx(sum(scores) / len(scores))


@pytest.mark.parametrize(
    ("scores", "low", "high"),
    [
        ([0, 10], 0, 10),  # means 0, 5, 10 with probabilities 1/4, 1/2, 1/4
        ([0, 0, 0, 40], 0, 30),  # 10 k with k ~ Binomial(4, 1/4): P(k = 4) < 2.5 % < P(k >= 3)
        ([7, 7, 7], 7, 7),
    ],
)
def test_interval_of_the_mean(scores, low, high):
    assert report.interval(np.array(scores, dtype=float)) == pytest.approx([low, high])


def test_interval_of_the_iqm_ignores_an_outlier():
    scores = np.array([1.0, 2, 3, 4, 5, 6, 7, 1e6])
    assert report.interval(scores, report.iqm)[1] < report.interval(scores)[1]


def test_interval_is_reproducible_and_taken_per_column():
    scores = np.random.default_rng(0).normal(size=(5, 3))
    np.random.seed(1)
    first = report.interval(scores)
    np.random.seed(2)
    np.testing.assert_array_equal(first, report.interval(scores))
    np.testing.assert_array_equal(first[:, 1], report.interval(scores[:, 1]))
    assert (first[0] < scores.mean(0)).all() and (scores.mean(0) < first[1]).all()


def test_one_seed_has_no_interval():
    estimate = report.estimate(np.array([3.0]))
    assert estimate == report.Estimate(seeds=1, mean=3.0, mean_interval=None, iqm=3.0, iqm_interval=None)


# ---- loading ---------------------------------------------------------------------------------------------------------


def test_score_is_the_mean_of_the_last_evaluation(tmp_path):
    make_run(tmp_path / "s", seed=1, evaluations={0: [99.0], 500: [500.0], 1000: [10.0, 20.0, 60.0]})
    make_run(tmp_path / "s", seed=2, evaluations={0: [99.0], 500: [500.0], 1000: [50.0]})
    result = result_of(tmp_path / "s")
    assert result.total == 1000
    assert result.estimates["return"].mean == pytest.approx((30 + 50) / 2)
    assert set(result.estimates) == {"return"}


def test_success_rate(tmp_path):
    make_run(tmp_path / "s", evaluations={1000: [(-50.0, 0), (-10.0, 1), (-9.0, 1), (-11.0, 1)]})
    result = result_of(tmp_path / "s")
    assert result.estimates["success_rate"].mean == 0.75
    assert result.estimates["return"].mean == -20
    assert "success 0.75" in report.summary_row(result, report.compare(result, []))[4]


def test_failed_and_unfinished_runs_stay_visible(tmp_path):
    root = tmp_path / "s"
    make_run(root, seed=1)
    make_run(root, seed=2, state="failed", exit_code=1, stderr_tail="Traceback\nValueError: no | way\n\n")
    make_run(root, seed=3, state="running", evaluations={0: [1.0], 400: [2.0]})
    make_run(root, seed=4, evaluations={0: [1.0], 400: [2.0]})
    make_run(root, seed=10, total=400, evaluations={400: [1e9]})
    (root / "td3" / "HalfCheetah-v5" / "5").mkdir()
    result = result_of(root)
    assert [run.seed for run in result.runs] == ["1", "2", "3", "4", "5", "10"]
    assert [run.seed for run in result.scored] == ["1"]
    assert report.seeds_text(result) == (
        "1 of 6 seeds; seed 2 failed: exit 1; seed 3 running at step 500; seed 4 done, but no evaluation at step 1k; "
        "seed 5 failed: no status.json; seed 10 done, but no evaluation at step 1k"
    )
    text = report.render_report("s", [result], [])
    assert "| HalfCheetah-v5 | td3 | 2 | failed: exit 1 | ValueError: no \\| way |" in text
    assert result.estimates["return"].mean == 15


@pytest.mark.parametrize("name", ["config.json", "eval.csv", "metrics.csv", "status.json"])
@pytest.mark.parametrize("content", [None, "{", "[1]\nx,y"])
def test_missing_and_damaged_files(tmp_path, name, content):
    folder = make_run(tmp_path / "s")
    (folder / name).unlink() if content is None else (folder / name).write_text(content)
    result = result_of(tmp_path / "s")
    assert len(result.scored) == (name == "metrics.csv")
    assert "HalfCheetah-v5" in report.render_report("s", [result], report.load_published())
    report.draw_curves(tmp_path / "curves.png", [result], report.load_published())


def test_everything_missing_fails_with_its_exit_code(tmp_path):
    folder = tmp_path / "s" / "td3" / "Ant-v5" / "1"
    folder.mkdir(parents=True)
    status = {"state": "failed", "exit_code": 2, "stderr_tail": "boom", "total_timesteps": 1_000_000}
    (folder / "status.json").write_text(json.dumps(status))
    text = report.render_report("s", [result_of(tmp_path / "s")], report.load_published())
    assert "| Ant-v5 | td3 | 1M | 0 of 1 seeds; seed 1 failed: exit 2 |" in text
    assert "| boom |" in text and "no finished run" in text


def test_a_row_cut_short_is_left_out(tmp_path):
    folder = make_run(tmp_path / "s")
    with (folder / "eval.csv").open("a") as file:
        file.write("1000,2")
    assert result_of(tmp_path / "s").estimates["return"].mean == 15


# ---- nearest steps ---------------------------------------------------------------------------------------------------


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
    assert report.nearest(np.array(steps), step, report.SAME_STEP) == index


def test_milestones_use_the_evaluations_near_them(tmp_path):
    for seed, offset in ((1, 0.0), (2, 4.0)):
        evaluations = {0: [0.0], 100_352: [10 + offset], 290_000: [20 + offset], 520_000: [30 + offset]}
        make_run(tmp_path / "s", seed=seed, total=520_000, evaluations=evaluations)
    references = [published_row(7.0, env_steps=92_160), published_row(9.0, env_steps=491_520)]
    (row,) = report.milestone_rows([result_of(tmp_path / "s")], references)
    assert row[2] == "12.0 [10.0, 14.0] vs 7.00 (v5 at 92.2k, source)"
    assert row[3] == "- vs -"  # 290 000 is 3.3 % before 300 000
    assert row[4] == "- vs 9.00 (v5, source)"  # 520 000 is 4 % after 500 000
    assert row[5] == ""  # beyond the run


# ---- comparison ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reference", "difference", "verdict"), [(99.0, 11.0, "above"), (112.0, -2.0, "within"), (121.0, -11.0, "below")]
)
def test_verdict_and_sign_of_the_difference(tmp_path, reference, difference, verdict):
    result = three_seeds(tmp_path / "s")  # mean 110, interval [100, 120]
    comparison = report.compare(result, [published_row(reference), published_row(500.0, kind="headline")])
    assert result.estimates["return"].mean_interval == pytest.approx((100, 120))
    assert comparison.difference == pytest.approx(difference)
    assert comparison.verdict == verdict
    assert comparison.headline.mean == 500
    assert report.summary_row(result, comparison)[-2] == f"{difference:+.{1 if abs(difference) >= 10 else 2}f}"


def test_reference_at_our_step_is_preferred(tmp_path):
    result = three_seeds(tmp_path / "s", total=300_000)
    rows = [published_row(s / 1000, env_steps=s) for s in (100_000, 294_912, 1_000_000)]
    assert report.compare(result, rows).reference.env_steps == 294_912


def test_different_steps_are_not_judged(tmp_path):
    result = three_seeds(tmp_path / "s", total=60_000)
    rows = [published_row(50.0, env_steps=100_000), published_row(10_574.0, env_steps=1_000_000)]
    comparison = report.compare(result, rows)
    assert comparison.verdict == "published at 100k, ours at 60k: not comparable at equal steps"  # the nearest
    assert comparison.difference is None
    assert report.summary_row(result, comparison)[6].startswith("50.0 at 100k (v5, 10 seeds")


def test_one_seed_is_not_judged(tmp_path):
    make_run(tmp_path / "s")
    result = result_of(tmp_path / "s")
    comparison = report.compare(result, [published_row(10.0)])
    assert (comparison.verdict, comparison.difference) == ("1 seed, no interval", 5.0)
    assert report.summary_row(result, comparison)[3:5] == ["1 seed", "15.0 (1 seed, no interval)"]


def test_a_return_that_is_not_finite_is_not_judged(tmp_path):
    for seed in (1, 2):
        make_run(tmp_path / "s", seed=seed, evaluations={1000: [float("nan")]})
    comparison = report.compare(result_of(tmp_path / "s"), [published_row(10.0)])
    assert (comparison.verdict, comparison.difference) == ("our mean is not finite", None)


def test_no_published_figure(tmp_path):
    comparison = report.compare(three_seeds(tmp_path / "s"), [published_row(1.0, task="Hopper")])
    assert (comparison.reference, comparison.verdict) == (None, "no published figure")


def test_success_is_compared_with_success(tmp_path):
    for seed, solved in ((1, 1), (2, 1), (3, 0)):
        evaluations = {1000: [(-10.0, 1), (-20.0, solved)]}
        make_run(tmp_path / "s", env_id="FetchPush-v4", seed=seed, evaluations=evaluations)
    rows = [published_row(0.4, task="FetchPush", env_version="v4", metric="success_rate")]
    comparison = report.compare(result_of(tmp_path / "s"), rows)
    assert comparison.difference == pytest.approx((1 + 1 + 0.5) / 3 - 0.4)
    assert comparison.verdict == "above"


@pytest.mark.parametrize(
    ("task", "ours", "published", "effect"),
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
def test_versions(task, ours, published, effect):
    assert report.version_effect(task, ours, published)[0] == effect


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
    comparison = report.compare(result, [published_row(10.0, task=task, env_version="v4")])
    assert comparison.verdict == verdict
    assert change in comparison.note and comparison.note in report.render_summary(
        [result], [published_row(10.0, task=task, env_version="v4")]
    )
    assert (comparison.difference is None) == (task == "Ant")


@pytest.mark.parametrize(
    ("env_id", "parts"),
    [("Hopper-v5", ("Hopper", "v5")), ("my_module:My-Env-v0", ("My-Env", "v0")), ("Plain", ("Plain", ""))],
)
def test_split_env_id(env_id, parts):
    assert report.split_env_id(env_id) == parts


# ---- rendering -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "text"),
    [(None, "?"), (64, "64"), (60_000, "60k"), (983_040, "983k"), (999_960, "1M"), (1_500_000, "1.5M")],
)
def test_count(steps, text):
    assert report.count(steps) == text


@pytest.mark.parametrize(("value", "text"), [(10574.3, "10574"), (96.24, "96.2"), (-3.874, "-3.87"), (0.0, "0.00")])
def test_number(value, text):
    assert report.number(value) == text


def test_provenance(tmp_path):
    make_run(tmp_path / "s", hardware="2 cores | 8 GB", script_sha256="fedcba9876543210")
    (run,) = report.load_runs(tmp_path, "s")
    row = report.provenance_row(run, 1000)
    assert row[2:] == ["1", "done", "1k", "2.0 min", "torch 2.13.0", "fedcba98", "2 cores | 8 GB", "python td3.py"]
    (line,) = report.markdown_table(["h"] * len(row), [row], folded=1).splitlines()[2:]
    assert "2 cores \\| 8 GB" in line
    assert line.endswith("<details><summary>show</summary><code>python td3.py</code></details> |")


def test_report_is_deterministic_and_replaces_the_readme_table(tmp_path):
    three_seeds(tmp_path / "s")
    make_run(tmp_path / "s", algorithm="ppo", env_id="Hopper-v5", state="failed", exit_code=1, stderr_tail="boom")
    readme = tmp_path / "README.md"
    readme.write_text(
        "top\n<!-- results:other -->\nkept\n<!-- /results -->\n<!-- results:s -->\nold\n<!-- /results -->\nend\n"
    )
    readme.chmod(0o640)
    first = run_report(tmp_path, "s", "--readme", readme)
    written = [(tmp_path / "s" / name).read_bytes() for name in ("report.md", "curves.png")]
    text = readme.read_text()
    second = run_report(tmp_path, "s", "--readme", readme)
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert first.stdout.splitlines()[-2:] == [str(tmp_path / "s" / name) for name in ("report.md", "curves.png")]
    assert written == [(tmp_path / "s" / name).read_bytes() for name in ("report.md", "curves.png")]
    assert text == readme.read_text()
    assert written[1].startswith(b"\x89PNG")
    head, table = text.split("<!-- results:s -->")
    assert head == "top\n<!-- results:other -->\nkept\n<!-- /results -->\n"
    assert table.endswith("<!-- /results -->\nend\n") and "old" not in table
    row = "| HalfCheetah-v5 | td3 | 1k | 3 seeds | 110.0 [100.0, 120.0] | 110.0 [100.0, 120.0] | "
    assert re.search(re.escape(row) + r"[0-9.]+ at 100k \(v1, 10 seeds", table)
    assert "| 0 of 1 seeds; seed 1 failed: exit 1 |" in table
    assert stat.S_IMODE(readme.stat().st_mode) == 0o640
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "s"]


@pytest.mark.parametrize(
    "text", ["none", "<!-- results:s -->", "<!-- results:s -->\n<!-- results:other -->\n<!-- /results -->"]
)
def test_readme_without_markers(tmp_path, capsys, monkeypatch, text):
    make_run(tmp_path / "s")
    readme = tmp_path / "README.md"
    readme.write_text(text)
    options = ["report.py", "--results", str(tmp_path), "--suite", "s", "--readme", str(readme)]
    monkeypatch.setattr(sys, "argv", options)
    assert report.main() == 2
    assert re.fullmatch(r"report\.py: .*README\.md has no markers .*: add both.*\n", capsys.readouterr().err)
    assert readme.read_text() == text


@pytest.mark.parametrize(
    ("folder", "message"),
    [("other", "no suite folder"), ("s", "holds no run folders")],
    ids=["no suite", "empty suite"],
)
def test_bad_input_is_one_line(tmp_path, capsys, monkeypatch, folder, message):
    (tmp_path / folder).mkdir()
    monkeypatch.setattr(sys, "argv", ["report.py", "--results", str(tmp_path), "--suite", "s"])
    assert report.main() == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


# ---- published.csv ---------------------------------------------------------------------------------------------------


def test_published_rows_are_complete_and_unique():
    rows = report.load_published()
    assert len(rows) > 300
    for row in rows:
        assert row.kind in ("reference", "headline") and row.metric in report.METRICS, row
        assert re.fullmatch(r"v\d", row.env_version) and row.env_steps > 0 and np.isfinite(row.mean), row
        assert not row.seeds or int(row.seeds) >= 1, row
        assert row.protocol and row.source and row.source_location, row
        assert bool(row.spread) == bool(row.spread_kind), row
        assert all(np.isfinite(float(number)) for number in row.spread.split("|") if row.spread), row
    keys = [(row.kind, row.algorithm, row.task, row.env_steps) for row in rows]
    assert len(set(keys)) == len(keys)
    order = [(row.algorithm, row.task, row.kind != "reference", row.env_steps) for row in rows]
    assert order == sorted(order)


def test_references_are_no_maxima_over_training():
    generous = re.compile(r"\bmax\b|maximum|\bbest\b|TRAINING|training returns", re.IGNORECASE)
    for row in report.load_published():
        if row.kind == "reference" and row.metric == "return":
            assert not generous.search(row.protocol), row


def test_every_algorithm_and_task_has_both_kinds_at_a_million_steps():
    published = report.load_published()
    for algorithm in ("reinforce", "a2c", "trpo", "ppo", "ddpg", "td3", "sac"):
        for task in [task for task in report.CHANGES if not task.startswith("Fetch")]:
            for kind in ("reference", "headline"):
                rows = [row for row in published if (row.kind, row.algorithm, row.task) == (kind, algorithm, task)]
                assert report.nearest([row.env_steps for row in rows], 1_000_000, report.SAME_STEP) is not None


def test_the_table_in_readme_is_that_of_the_committed_results(tmp_path):
    shutil.copytree(ROOT / "benchmarks" / "results" / "quick", tmp_path / "quick")
    committed = (tmp_path / "quick" / "report.md").read_text()
    readme = Path(shutil.copy(ROOT / "README.md", tmp_path))
    result = run_report(tmp_path, "quick", "--readme", readme)
    assert result.returncode == 0, result.stderr
    assert readme.read_text() == (ROOT / "README.md").read_text()  # else: report.py --readme README.md
    assert (tmp_path / "quick" / "report.md").read_text() == committed


SOLVED = {"InvertedPendulum-v5": ("return", 900), "FetchReach-v4": ("success", 0.95), "Reacher-v5": ("return", -8.5)}


def test_every_algorithm_learns_its_task_of_the_quick_suite():
    """In the committed results, every seed; an untrained Reacher gets about -11 to -13."""
    folders = sorted((ROOT / "benchmarks/results/quick").glob("*/*/*/"))
    assert len({folder.parts[-3] for folder in folders}) == 8 and len(folders) == 24
    for folder in folders:
        column, least = SOLVED[folder.parts[-2]]
        with open(folder / "eval.csv") as file:
            rows = list(csv.DictReader(file))
        last = [float(row[column]) for row in rows if row["step"] == rows[-1]["step"]]
        assert len(last) == 10 and np.mean(last) >= least, folder
