"""benchmarks/report.py: tables, README, and that what is committed is what the runs give."""

import csv
import re
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import report
from fake_runs import make_run, published_row, result_of, three_seeds

ROOT = Path(__file__).resolve().parents[2]
COMMITTED = ROOT / "benchmarks" / "results"
SOLVED = {"InvertedPendulum-v5": ("return", 900), "FetchReach-v4": ("success", 0.95), "Reacher-v5": ("return", -8.5)}


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
    # 290 000 is 3.3 % before 300 000, 520 000 is 4 % after 500 000, and 1M is beyond the run
    assert row[2:] == ["12.0 [10.0, 14.0] vs 7.00 (v5 at 92.2k, source)", "- vs -", "- vs 9.00 (v5, source)", ""]


def test_report_is_deterministic_and_replaces_the_readme_table(tmp_path):
    three_seeds(tmp_path / "s")
    make_run(tmp_path / "s", algorithm="ppo", env_id="Hopper-v5", state="failed", exit_code=1, stderr_tail="boom")
    readme, before = tmp_path / "README.md", "top\n<!-- results:other -->\nkept\n<!-- /results -->\n"
    readme.write_text(f"{before}<!-- results:s -->\nold\n<!-- /results -->\nend\n")
    names, seen = ["report.md", "curves.png", "wallclock.png"], []
    for _ in range(2):
        result = run_report(tmp_path, "s", "--readme", readme)
        assert result.returncode == 0, result.stderr
        assert result.stdout.splitlines()[-3:] == [str(tmp_path / "s" / name) for name in names]
        seen.append([readme.read_text(), *((tmp_path / "s" / name).read_bytes() for name in names)])
    assert seen[0] == seen[1]
    head, table = readme.read_text().split("<!-- results:s -->")
    assert head == before and table.endswith("<!-- /results -->\nend\n") and "old" not in table
    row, value = "| HalfCheetah-v5 | td3 | 1k | 3 seeds |", " 110.0 [100.0, 120.0] |"
    reference = r" [0-9.]+ ± [0-9.]+ at 100k \(v1, 10 seeds"
    assert re.search(re.escape(row + value) + reference, table)
    assert re.search(re.escape(row + 3 * value) + reference, (tmp_path / "s" / "report.md").read_text())
    assert "| 0 of 1 seeds; seed 1 failed: exit 1 |" in table


def test_bad_input_is_one_line(tmp_path, capsys, monkeypatch):
    make_run(tmp_path / "s")
    (tmp_path / "empty").mkdir()
    readme = tmp_path / "README.md"
    readme.write_text("<!-- results:s -->\n<!-- results:other -->\n<!-- /results -->")
    for suite, words, message in (
        ("other", [], "no suite folder"), ("empty", [], "holds no run folders"),
        ("s", ["--readme", str(readme)], "README.md has no markers"),
        ("s", ["--readme", str(tmp_path)], "cannot read --readme"),
    ):  # fmt: skip
        monkeypatch.setattr(sys, "argv", ["report.py", "--results", str(tmp_path), "--suite", suite, *words])
        assert report.main() == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and message in error and error.count("\n") == 1


def test_without_a_suite_all_suites_are_reported_and_other_runs_left_alone(tmp_path, monkeypatch):
    three_seeds(tmp_path / "runs" / "one")
    three_seeds(tmp_path / "runs" / "two")
    (tmp_path / "runs" / "Hopper-v5" / "td3" / "1-20260101").mkdir(parents=True)  # made by a script alone
    readme = tmp_path / "README.md"
    readme.write_text("<!-- results:two -->\n<!-- /results -->\n")
    monkeypatch.setattr(sys, "argv", ["report.py", "--results", str(tmp_path / "runs"), "--readme", str(readme)])
    assert report.main() == 0
    assert {path.parent.name for path in tmp_path.rglob("report.md")} == {"one", "two"}
    assert "110.0" in readme.read_text()


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


def test_the_committed_results_are_compact_and_every_algorithm_learns_its_task_of_the_quick_suite():
    """8 algorithms on 9 tasks with 10 seeds stay below 100 MB. An untrained Reacher gets about -11 to -13."""
    for folder in COMMITTED.glob("*/*/*/*/"):
        assert sum(path.stat().st_size for path in folder.iterdir()) < 100e6 / (8 * 9 * 10), folder
        assert {path.suffix for path in folder.iterdir()} == {".csv", ".json"}, folder
    folders = sorted(COMMITTED.glob("quick/*/*/*/"))
    assert len({folder.parts[-3] for folder in folders}) == 8 and len(folders) == 24
    for folder in folders:
        column, least = SOLVED[folder.parts[-2]]
        with open(folder / "eval.csv") as file:
            rows = list(csv.DictReader(file))
        last = [float(row[column]) for row in rows if row["step"] == rows[-1]["step"]]
        assert len(last) == 10 and np.mean(last) >= least, folder
