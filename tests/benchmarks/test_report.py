"""benchmarks/report.py: tables, README, and that what is committed is what the runs give."""

import csv
import json
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import records
import report
import scores
from fake_runs import make_run, published_row, result_of, three_seeds
from suites import SUITES, TRIALS, experiments

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("report.md", "curves.png", "wallclock.png")


def run_report(results, suite, *options):
    return subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "report.py", "--results", results, "--suite", suite, *options],
        capture_output=True, text=True,
    )  # fmt: skip


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


def test_milestones_of_a_variant_are_of_its_task_s_metric(tmp_path):
    for label, solved in (("her_ddpg", 1), ("her_ddpg-no-her", 0)):
        evaluations = {100_000: [(-10.0, solved), (-50.0, 0)]}
        make_run(tmp_path / "s", label, "FetchPush-v4", total=100_000, evaluations=evaluations)
    results = scores.summarise(records.load_runs(tmp_path, "s"))
    rows = [published_row(0.4, task="FetchPush", env_version="v4", env_steps=100_000, metric="success_rate")]
    cells = {row[1]: row[2] for row in report.milestone_rows(results, rows)}
    assert cells["her_ddpg-no-her"] == "success 0.00 (1 seed) vs -"
    assert cells["her_ddpg"].startswith("success 0.50 (1 seed) vs ")


def test_a_trial_has_no_verdict(tmp_path, monkeypatch):
    results = [three_seeds(tmp_path / "s")]
    assert "| verdict |" in report.render_report("s", results, [published_row(10.0)], [])
    monkeypatch.setitem(TRIALS, "s", "Why.")
    text = report.render_report("s", results, [published_row(10.0)], [])
    assert text.startswith("# Trial s\n\nWhy. These are trials on seeds 1, 2, 3, which are not reported.\n")
    assert "| verdict |" not in text and "| above |" not in text and "tuned on" not in text


def test_figures_for_the_same_version_are_shown_without_a_verdict(tmp_path):
    result = three_seeds(tmp_path / "s")
    rows = [
        published_row(10.0, kind="v5", caveat="training episodes"),
        published_row(11.0, kind="v5", env_steps=9000),
        published_row(12.0, kind="v5", task="Hopper"),
    ]
    (line,) = report.render_same_version([result], rows).splitlines()[6:]
    assert line.startswith("| HalfCheetah-v5 | td3 | 110.0 [100.0, 120.0] | 10.0 (v5, 10 seeds, source")
    assert line.endswith("| training episodes |")
    assert report.render_same_version([result], rows[1:]) == ""


def test_provenance(tmp_path):
    make_run(tmp_path / "s", hardware="2 cores | 8 GB", script_sha256="fedcba9876543210")
    (run,) = records.load_runs(tmp_path, "s")
    row = report.provenance_row(run, 1000)
    assert row[2:] == ["1", "done", "1k", "2.0 min", "torch 2.13.0", "fedcba98", "2 cores | 8 GB", "python td3.py"]
    (line,) = report.markdown_table(["h"] * len(row), [row], folded=1).splitlines()[2:]
    assert "2 cores \\| 8 GB" in line
    assert line.endswith("<details><summary>show</summary><code>python td3.py</code></details> |")


def test_a_resumed_run_shows_all_its_commands(tmp_path):
    folder = make_run(tmp_path / "s")
    config = json.loads((folder / "config.json").read_text())
    config["history"].append({"command": ["python", "td3.py", "--resume", "a folder"]})
    (folder / "config.json").write_text(json.dumps(config))
    (run,) = records.load_runs(tmp_path, "s")
    assert report.provenance_row(run, 1000)[-1] == "python td3.py; then python td3.py --resume 'a folder'"


def test_what_has_not_been_run_is_told(tmp_path, monkeypatch):
    tasks = ("Ant-v5", "Hopper-v5", "Swimmer-v5")
    planned = [*experiments("sac", tasks, 1000), *experiments("td3", tasks[:2], 1000)]
    monkeypatch.setitem(SUITES, "s", planned)
    make_run(tmp_path / "s", "sac", "Hopper-v5")
    make_run(tmp_path / "s", "td3", "Hopper-v5", state="failed")
    results = scores.summarise(records.load_runs(tmp_path, "s"))
    text = "1 of the suite's 5 rows have been finished: nothing on Ant-v5, Swimmer-v5; no td3 on Hopper-v5."
    assert report.coverage("s", results) == text and f"\n{text}\n" in report.render_summary("s", results, [])
    monkeypatch.setitem(SUITES, "s", planned[1:2])
    assert report.coverage("s", results) == report.coverage("unknown", results) == ""


def test_report_is_deterministic_and_replaces_the_readme_table(tmp_path):
    three_seeds(tmp_path / "s")
    make_run(tmp_path / "s", algorithm="ppo", env_id="Hopper-v5", state="failed", exit_code=1, stderr_tail="boom")
    readme = tmp_path / "README.md"
    readme.write_text(
        "top\n<!-- results:other -->\nkept\n<!-- /results -->\n<!-- results:s -->\nold\n<!-- /results -->\nend\n"
    )
    readme.chmod(0o640)
    first = run_report(tmp_path, "s", "--readme", readme)
    written = [(tmp_path / "s" / name).read_bytes() for name in NAMES]
    text = readme.read_text()
    second = run_report(tmp_path, "s", "--readme", readme)
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert first.stdout.splitlines()[-3:] == [str(tmp_path / "s" / name) for name in NAMES]
    assert written == [(tmp_path / "s" / name).read_bytes() for name in NAMES]
    assert text == readme.read_text()
    assert written[1].startswith(b"\x89PNG")
    head, table = text.split("<!-- results:s -->")
    assert head == "top\n<!-- results:other -->\nkept\n<!-- /results -->\n"
    assert table.endswith("<!-- /results -->\nend\n") and "old" not in table
    row, value = "| HalfCheetah-v5 | td3 | 1k | 3 seeds |", " 110.0 [100.0, 120.0] |"
    reference = r" [0-9.]+ ± [0-9.]+ at 100k \(v1, 10 seeds"
    assert re.search(re.escape(row + value) + reference, table)
    assert re.search(re.escape(row + 3 * value) + reference, (tmp_path / "s" / "report.md").read_text())
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
    assert re.fullmatch(r"error: .*README\.md has no markers .*: add both.*\n", capsys.readouterr().err)
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


def test_without_a_suite_all_suites_are_reported_and_other_runs_left_alone(tmp_path, capsys, monkeypatch):
    three_seeds(tmp_path / "runs" / "one")
    three_seeds(tmp_path / "runs" / "two")
    (tmp_path / "runs" / "Hopper-v5" / "td3" / "1-20260101").mkdir(parents=True)  # made by a script alone
    readme = tmp_path / "README.md"
    readme.write_text("<!-- results:two -->\n<!-- /results -->\n")
    monkeypatch.setattr(sys, "argv", ["report.py", "--results", str(tmp_path / "runs"), "--readme", str(readme)])
    assert report.main() == 0
    assert {path.parent.name for path in tmp_path.rglob("report.md")} == {"one", "two"}
    assert "110.0" in readme.read_text()
    readme.unlink()
    assert report.main() == 2 and "cannot read --readme" in capsys.readouterr().err


COMMITTED = ROOT / "benchmarks" / "results"


@pytest.mark.parametrize("suite", sorted(path.parent.name for path in COMMITTED.glob("*/report.md")))
def test_readme_and_report_are_those_of_the_committed_results(suite, tmp_path):
    """Else: make report."""
    shutil.copytree(COMMITTED / suite, tmp_path / suite)
    for picture in (tmp_path / suite).glob("*.png"):
        picture.unlink()
    readme = Path(shutil.copy(ROOT / "README.md", tmp_path))
    shown = f"<!-- results:{suite} -->" in readme.read_text()
    result = run_report(tmp_path, suite, *(["--readme", readme] if shown else []))
    assert result.returncode == 0, result.stderr
    assert readme.read_text() == (ROOT / "README.md").read_text()
    assert (tmp_path / suite / "report.md").read_text() == (COMMITTED / suite / "report.md").read_text()
    pictures = {path.name for path in (tmp_path / suite).glob("*.png")}
    assert pictures == {path.name for path in (COMMITTED / suite).glob("*.png")}
    for name in pictures:
        drawn, kept = plt.imread(tmp_path / suite / name), plt.imread(COMMITTED / suite / name)
        assert drawn.shape == kept.shape, name
        differing = (np.abs(drawn - kept) > 0.1).any(-1)  # other processors may round a few edges differently
        assert differing.mean() < 1e-4, name


def test_the_committed_results_are_compact():
    """8 algorithms on 9 tasks with 10 seeds stay below 100 MB."""
    runs = list(COMMITTED.glob("*/*/*/*/"))
    assert len(runs) >= 24
    for run in runs:
        assert sum(path.stat().st_size for path in run.iterdir()) < 100e6 / (8 * 9 * 10), run
        assert not list(run.glob("*.pt")) and not list(run.glob("events.*"))


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
