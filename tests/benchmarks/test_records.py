"""benchmarks/records.py: run folders, whole and broken, staleness, export."""

import json

import numpy as np
import published
import pytest
import records
import report
from fake_runs import make_run, result_of
from suites import Experiment


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
    assert "success 0.75" in report.summary_row(result, published.compare(result, []))[4]


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
    text = report.render_report("s", [result], [], [])
    assert "| HalfCheetah-v5 | td3 | 2 | failed: exit 1 | ValueError: no \\| way |" in text
    assert result.estimates["return"].mean == 15


@pytest.mark.parametrize("name", ["config.json", "eval.csv", "metrics.csv", "status.json"])
@pytest.mark.parametrize("content", [None, "{", "[1]\nx,y"])
def test_missing_and_damaged_files(tmp_path, name, content):
    folder = make_run(tmp_path / "s")
    (folder / name).unlink() if content is None else (folder / name).write_text(content)
    result = result_of(tmp_path / "s")
    assert len(result.scored) == (name == "metrics.csv")
    assert "HalfCheetah-v5" in report.render_report("s", [result], published.load_published(), [])
    assert "curves" in report.draw(tmp_path, [result], published.load_published())


def test_everything_missing_fails_with_its_exit_code(tmp_path):
    folder = tmp_path / "s" / "td3" / "Ant-v5" / "1"
    folder.mkdir(parents=True)
    status = {"state": "failed", "exit_code": 2, "stderr_tail": "boom", "total_timesteps": 1_000_000}
    (folder / "status.json").write_text(json.dumps(status))
    text = report.render_report("s", [result_of(tmp_path / "s")], published.load_published(), [])
    assert "| Ant-v5 | td3 | 1M | 0 of 1 seeds; seed 1 failed: exit 2 |" in text
    assert "| boom |" in text and "no finished run" in text


def test_a_row_cut_short_is_left_out(tmp_path):
    folder = make_run(tmp_path / "s")
    with (folder / "eval.csv").open("a") as file:
        file.write("1000,2")
    assert result_of(tmp_path / "s").estimates["return"].mean == 15


@pytest.mark.parametrize(
    ("steps", "text"),
    [(None, "?"), (64, "64"), (60_000, "60k"), (983_040, "983k"), (999_960, "1M"), (1_500_000, "1.5M")],
)
def test_count(steps, text):
    assert records.count(steps) == text


def test_time_of_an_evaluation_is_interpolated(tmp_path):
    folder = make_run(tmp_path / "s")
    (folder / "metrics.csv").write_text("step,seconds\n500,60\n1000,80\n")
    run = records.load_run(folder, "s")
    assert run.seconds_at(np.array([0, 250, 500, 750, 1000])) == pytest.approx([0, 30, 60, 70, 80])


# ---- staleness -------------------------------------------------------------------------------------------------------

SCRIPT = '''"""Docstring."""

GAMMA = 0.99  # a comment


def target(r, v):
    """Target."""
    return r + GAMMA * v


# ==========
# 5 Shared blocks
# ==========

PACKAGES = 1
'''


@pytest.mark.parametrize(
    ("old", "new", "stale"),
    [
        ("0.99", "0.98", True),
        ("r + GAMMA", "r - GAMMA", True),
        ("# a comment", "# another", False),
        ('"""Target."""', '"""The target."""', False),
        ("PACKAGES = 1", "PACKAGES = 2", False),
    ],
)
def test_a_result_is_stale_when_the_code_above_the_shared_blocks_has_changed(tmp_path, old, new, stale):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    before = records.algorithm_sha256(script)
    script.write_text(SCRIPT.replace(old, new))
    assert (records.algorithm_sha256(script) != before) == stale


def test_every_script_has_the_banner_that_bounds_its_algorithm():
    for script in sorted((records.ROOT / "algorithms").glob("*.py")):
        above, _, below = script.read_text().partition("\n# 5 ")
        assert "def train(" in above and "class Run:" in below, script


def test_stale_results_are_marked(tmp_path):
    make_run(tmp_path / "s", seed=1)
    make_run(tmp_path / "s", seed=2, algorithm_sha256="another")
    result = result_of(tmp_path / "s")
    assert [run.stale for run in result.runs] == [None, "td3.py has changed since"]
    assert report.seeds_text(result) == "2 seeds; stale: seed 2"
    assert report.provenance_row(result.runs[1], 1000)[3] == "done, stale: td3.py has changed since"


def test_a_change_of_the_suites_settings_makes_a_result_stale():
    sha = records.algorithm_sha256(records.ROOT / "algorithms" / "td3.py")
    status = {"algorithm_sha256": sha, "flags": {"gamma": "0.9"}, "total_timesteps": 1000}
    for steps, gamma, stale in ((1000, "0.9", False), (1000, "0.99", True), (800, "0.9", True)):
        planned = [Experiment("td3", "Hopper-v5", steps, {"gamma": gamma})]
        assert records.staleness(status, "td3", planned) == (
            "the suite's settings have changed since" if stale else None
        )
    assert records.staleness(status, "td3", []) is None
    for begun_for in (500, None):  # td3 does not depend on a run's length, and older results do not tell
        assert records.staleness(status | {"begun_for": begun_for}, "td3", []) is None
    of_ppo = {"algorithm_sha256": records.algorithm_sha256(records.ROOT / "algorithms" / "ppo.py")}
    for begun_for, stale in ((500, True), (1000, False), (None, False)):
        found = records.staleness(status | of_ppo | {"begun_for": begun_for}, "ppo", [])
        assert found == ("begun for 500 steps, over which its learning rate decayed" if stale else None)


# ---- export ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "kept"), [(0, []), (3, [0, 1, 2]), (4, [1, 3]), (7, [0, 3, 6])])
def test_thinned_rows_are_even_and_end_with_the_last(rows, kept):
    text = "step\n" + "".join(f"{i}\n" for i in range(rows))
    assert records.thin(text, 3) == "step\n" + "".join(f"{i}\n" for i in kept)


def test_export_copies_finished_runs_in_compact_form(tmp_path, monkeypatch, capsys):
    folder = make_run(tmp_path / "runs" / "s", seed=1)
    make_run(tmp_path / "runs" / "s", seed=2, state="failed")
    stale = make_run(tmp_path / "runs" / "s", seed=3, algorithm_sha256="another")
    (stale / "train.csv").write_text("step,return,length\n")
    make_run(tmp_path / "results" / "s", seed=3)  # a good result, which the stale one must not replace
    kept = (tmp_path / "results/s/td3/HalfCheetah-v5/3/status.json").read_text()
    (folder / "checkpoint.pt").write_bytes(b"large")
    (folder / "train.csv").write_text("step,return,length\n" + "5,1.0,5\n" * 10_000 + "1000,2.0,5\n")
    monkeypatch.setattr(records, "COMMITTED", tmp_path / "results")
    monkeypatch.setattr("sys.argv", ["records.py", "--results", str(tmp_path / "runs"), "--suite", "s"])
    for _ in range(2):  # the second time, the first copy is replaced
        assert records.main() == 0
        assert "1 of 3 runs" in capsys.readouterr().out
    assert (tmp_path / "results/s/td3/HalfCheetah-v5/3/status.json").read_text() == kept
    copies = list((tmp_path / "results").rglob("1/*.*"))
    names = {"config.json", "eval.csv", "status.json", "train.csv", "metrics.csv"}
    assert {path.name for path in copies} == names and len(copies) == len(names)
    copy = tmp_path / "results" / "s" / "td3" / "HalfCheetah-v5" / "1"
    train = (copy / "train.csv").read_text().splitlines()
    assert len(train) <= 1 + records.THINNED_ROWS and train[0] == "step,return,length" and train[-1] == "1000,2.0,5"
    assert (copy / "eval.csv").read_text() == (folder / "eval.csv").read_text()


def test_an_export_that_was_killed_leaves_nothing_that_counts(tmp_path, monkeypatch):
    source, target = make_run(tmp_path / "runs" / "s"), tmp_path / "s" / "td3" / "HalfCheetah-v5" / "1"
    (source / "train.csv").write_text("step,return,length\n")
    records.export(source, target)
    replace, calls = records.os.replace, []
    for fatal in (1, 2):  # of the renames: the old copy aside, the new one into its place

        def killed(a, b, fatal=fatal):
            calls.append(a)
            if len(calls) == fatal:
                raise KeyboardInterrupt
            replace(a, b)

        calls.clear()
        monkeypatch.setattr(records.os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            records.export(source, target)
        monkeypatch.undo()
        if fatal == 1:  # hidden folders are no seeds
            assert [run.seed for run in records.load_runs(tmp_path, "s")] == ["1"]
        else:
            assert not target.exists()
        assert list(target.parent.glob("*/eval.csv")), "the old or the new copy is there"
    records.export(source, target)
    assert [path.name for path in target.parent.iterdir()] == ["1"]


def test_export_of_a_run_without_its_logs_is_one_line(tmp_path, monkeypatch, capsys):
    make_run(tmp_path / "runs" / "s")  # has no train.csv
    monkeypatch.setattr(records, "COMMITTED", tmp_path / "results")
    monkeypatch.setattr("sys.argv", ["records.py", "--results", str(tmp_path / "runs"), "--suite", "s"])
    assert records.main() == 2
    assert "train.csv (No such file or directory)" in capsys.readouterr().err


def test_export_without_runs_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["records.py", "--results", str(tmp_path), "--suite", "s"])
    assert records.main() == 2
    assert "no suite folder" in capsys.readouterr().err
