"""benchmarks/records.py: run folders, whole and broken, staleness, export."""

import json

import published
import pytest
import records
import report
from fake_runs import make_run, result_of
from suites import Experiment


def test_score_is_the_mean_of_the_last_evaluation(tmp_path):
    make_run(tmp_path / "s", seed=1, evaluations={0: [99.0], 500: [500.0], 1000: [10.0, 20.0, 60.0]})
    folder = make_run(tmp_path / "s", seed=2, evaluations={0: [99.0], 500: [500.0], 1004: [50.0]})  # a little longer
    with (folder / "eval.csv").open("a") as file:
        file.write("1004,2")  # a row cut short
    result = result_of(tmp_path / "s")
    assert result.total == 1000 and set(result.estimates) == {"return"}
    assert result.estimates["return"].mean == pytest.approx((30 + 50) / 2)


def test_failed_and_unfinished_runs_stay_visible(tmp_path):
    root = tmp_path / "s"
    make_run(root, seed=1)
    make_run(root, seed=2, state="failed", exit_code=1, stderr_tail="Traceback\nValueError: no | way\n\n")
    make_run(root, seed=3, state="running", evaluations={0: [1.0], 400: [2.0]})
    make_run(root, seed=4, evaluations={0: [1.0], 400: [2.0]})
    make_run(root, seed=10, total=400, evaluations={400: [1e9]})
    (root / "td3" / "HalfCheetah-v5" / "5").mkdir()
    result = result_of(root)
    assert report.seeds_text(result) == (
        "1 of 6 seeds; seed 2 failed: exit 1; seed 3 running at step 500; seed 4 done, but no evaluation at step 1k; "
        "seed 5 failed: no status.json; seed 10 done, but no evaluation at step 1k"
    )
    text = report.render_report("s", [result], [], [])
    assert "| HalfCheetah-v5 | td3 | 2 | failed: exit 1 | ValueError: no \\| way |" in text
    assert result.estimates["return"].mean == 15


@pytest.mark.parametrize("name", ["config.json", "eval.csv", "metrics.csv", "harness/status.json"])
@pytest.mark.parametrize("content", [None, "{", "[1]\nx,y"])
def test_missing_and_damaged_files(tmp_path, name, content):
    folder = make_run(tmp_path / "s")
    (folder / name).unlink() if content is None else (folder / name).write_text(content)
    result = result_of(tmp_path / "s")
    assert len(result.scored) == (name == "metrics.csv")
    assert "HalfCheetah-v5" in report.render_report("s", [result], published.load_published(), [])
    assert "curves" in report.draw(tmp_path, [result], published.load_published())


def test_results_of_older_scripts_are_read(tmp_path):
    folder = make_run(tmp_path / "s")
    (folder / "harness" / "status.json").rename(folder / "status.json")
    config = json.loads((folder / "config.json").read_text())
    session = {name: config.pop(name) for name in ("versions", "script_sha256")} | {
        "command": config.pop("commands")[0]
    }
    resumed = session | {"command": ["python", "td3.py", "--resume", "a folder"]}
    (folder / "config.json").write_text(json.dumps(config | {"history": [session, resumed]}))
    (run,) = records.load_runs(tmp_path, "s")
    row = ["done", "1k", "2.0 min", "torch 2.13.0", "01234567", "?"]
    assert report.provenance_row(run, 1000)[3:] == [*row, "python td3.py; then python td3.py --resume 'a folder'"]


def test_a_result_is_stale_when_the_code_above_the_machinery_has_changed(tmp_path):
    text = '"""A script."""\nGAMMA = 0.99  # a comment\n\ndef target(r, v):\n    """y."""\n    return r + GAMMA * v\n'
    text += "\n# =====\n# 5 Machinery\n# =====\nPACKAGES = 1\n"
    script = tmp_path / "script.py"
    script.write_text(text)
    before = records.algorithm_sha256(script)
    for old, new, stale in (
        ("0.99", "0.98", True), ("r + GAMMA", "r - GAMMA", True), ("# a comment", "# another", False),
        ('"""y."""', '"""The target."""', False), ("PACKAGES = 1", "PACKAGES = 2", False),
    ):  # fmt: skip
        records.sha256_of.cache_clear()
        script.write_text(text.replace(old, new))
        assert (records.algorithm_sha256(script) != before) == stale, old
    for script in sorted((records.ROOT / "algorithms").glob("*.py")):
        above, _, below = script.read_text().partition("\n# 5 ")
        assert "def train(" in above and "class Run(" in below, script


def test_stale_results_are_marked(tmp_path):
    make_run(tmp_path / "s", seed=1)
    make_run(tmp_path / "s", seed=2, algorithm_sha256="another")
    result = result_of(tmp_path / "s")
    assert [run.stale for run in result.runs] == [None, "td3.py has changed since"]
    assert report.seeds_text(result) == "2 seeds; stale: seed 2"
    assert report.provenance_row(result.runs[1], 1000)[3] == "done, stale: td3.py has changed since"


def test_a_change_of_the_suites_settings_makes_a_result_stale():
    sha = {name: records.algorithm_sha256(records.ROOT / "algorithms" / f"{name}.py") for name in ("td3", "ppo")}
    status = {"algorithm_sha256": sha["td3"], "flags": {"gamma": "0.9"}, "total_timesteps": 1000}
    for steps, gamma, stale in ((1000, "0.9", False), (1000, "0.99", True), (800, "0.9", True)):
        found = records.staleness(status, "td3", [Experiment("td3", "Hopper-v5", steps, {"gamma": gamma})])
        assert found == ("the suite's settings have changed since" if stale else None)
    for begun_for, stale in ((500, True), (1000, False), (None, False)):  # older results do not tell
        of_ppo = status | {"algorithm_sha256": sha["ppo"], "begun_for": begun_for}
        found = records.staleness(of_ppo, "ppo", [])
        assert found == ("begun for 500 steps, over which its learning rate decayed" if stale else None)
        assert records.staleness(of_ppo | {"algorithm_sha256": sha["td3"]}, "td3", []) is None  # whatever its length


def test_export_copies_finished_runs_in_compact_form(tmp_path, monkeypatch, capsys):
    folder = make_run(tmp_path / "runs" / "s", seed=1)
    make_run(tmp_path / "runs" / "s", seed=2, state="failed")
    make_run(tmp_path / "runs" / "s", seed=3, algorithm_sha256="another")
    good = make_run(tmp_path / "results" / "s", seed=3)  # which the stale one must not replace
    kept = (good / "harness" / "status.json").read_text()
    (folder / "checkpoint.pt").write_bytes(b"large")
    monkeypatch.setattr(records, "COMMITTED", tmp_path / "results")
    monkeypatch.setattr("sys.argv", ["records.py", "--results", str(tmp_path / "runs"), "--suite", "s"])
    assert records.main() == 2 and "train.csv (No such file or directory)" in capsys.readouterr().err
    (folder / "train.csv").write_text("step,return,length\n" + "5,1.0,5\n" * 10_000 + "1000,2.0,5\n")
    for _ in range(2):  # the second time, the first copy is replaced
        assert records.main() == 0 and "1 of 3 runs" in capsys.readouterr().out
    assert (good / "harness" / "status.json").read_text() == kept
    copy = tmp_path / "results" / "s" / "td3" / "HalfCheetah-v5" / "1"
    assert sorted(path.name for path in copy.parent.iterdir()) == ["1", "3"]
    names = {"config.json", "eval.csv", "status.json", "train.csv", "metrics.csv"}
    assert {path.name for path in copy.iterdir()} == names
    train = (copy / "train.csv").read_text().splitlines()
    assert len(train) <= 1 + records.THINNED_ROWS and train[0] == "step,return,length" and train[-1] == "1000,2.0,5"
    first, second = records.load_run(folder, "s"), records.load_run(copy, "s")
    assert (first.status, first.config, list(first.steps)) == (second.status, second.config, list(second.steps))
    assert records.thin("step\n0\n1\n2\n3\n4\n5\n6\n", 3) == "step\n0\n3\n6\n" and records.thin("step\n", 3) == "step\n"
