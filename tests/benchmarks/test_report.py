"""benchmarks/report.py: tables, files, and that what is committed is what the results give."""

import json
import re
import shutil
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import records
import report
from fake_runs import cells_of, finals, make_csv, make_run, published_row

ROOT = Path(__file__).resolve().parents[2]
COMMITTED = ROOT / "benchmarks" / "results"
SOLVED = {"InvertedPendulum-v5": ("return", 900), "FetchReach-v4": ("success", 0.95), "Reacher-v5": ("return", -8.5)}


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs report.py; returns the exit code, what it printed and its errors."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["report.py", *map(str, words)])
        return report.main(), *capsys.readouterr()

    return run


def test_the_matrix_tells_what_is_separable(tmp_path):
    for k, (algorithm, values, env_id) in enumerate([
        ("td3", (100.0, 110.0, 120.0), "HalfCheetah-v5"), ("sac", (100.0, 110.0, 120.0), "HalfCheetah-v5"),
        ("ddpg", (100.0, 110.0, 120.0), "HalfCheetah-v5"), ("ppo", (100.0, 110.0), "HalfCheetah-v5"),
        ("a2c", (110.0, 111.0, 112.0), "Ant-v5"), ("dqn", (7.0, 8.0, 9.0), "HalfCheetah-v5"),
    ]):  # fmt: skip
        finals(tmp_path / str(k), *values, algorithm=algorithm, env_id=env_id)
    make_run(tmp_path / "7", "trpo", evaluations={}, state="failed", exit_code=1)
    rows = [
        published_row(50.0, sd=5), published_row(500.0, sd=5, algorithm="sac"),
        published_row(105.0, sd=50, algorithm="ddpg"), published_row(50.0, sd=5, algorithm="ppo"),
        published_row(5.0, "Ant-v4", sd=5, algorithm="a2c"),
        published_row(9.0, kind="headline", algorithm="dqn", step=float("nan")),
    ]  # fmt: skip
    text = report.matrix(cells_of(tmp_path), rows, {})
    cells = {row.split(" | ")[0].strip("| "): row.split(" | ")[1:3] for row in text.splitlines()[2:] if row[:1] == "|"}
    assert text.startswith("| algorithm | Ant-v5<br>1k | HalfCheetah-v5<br>1k | steps/s |")
    assert cells == {
        "td3": ["", "**110 / 50.0**"], "sac": ["", "▾ 110 / 500"], "ddpg": ["", "110 / 105"],
        "ppo": ["", "<sub>**105 / 50.0**</sub>"], "a2c": ["111 / (5.00)", ""], "dqn": ["", "8.00 / (9.00)"],
        "trpo": ["", "failed"],
    }  # fmt: skip
    assert "3 of 4 tested differences are separable" in text and "earlier code" not in text
    make_run(tmp_path / "8")
    make_run(tmp_path / "8", seed=2, args={"gamma": 0.9})  # other settings have a row, but not those of earlier code
    make_run(tmp_path / "8", seed=3, args={"gamma": 0.8}, code_sha256="0" * 64)
    text = report.matrix(cells_of(tmp_path / "8"), rows, {})
    assert "| td3 |" in text and "| td3 gamma 0.9 |" in text and "0.8" not in text and "1 of 3 runs are of" in text


def test_results_tell_what_was_lost_what_failed_and_how_it_compares(tmp_path):
    hopper, failed = {"env_id": "Hopper-v5"}, {"state": "failed", "exit_code": 1, "stderr_tail": "a|b"}
    for seed in (1, 2):
        make_run(tmp_path, seed=seed, evaluations={0: [0.0], 500: [100.0 + seed], 1000: [9.0 + seed]}, **hopper)
    make_run(tmp_path, seed=3, evaluations={0: [1.0]}, **failed, **hopper)
    make_run(tmp_path, seed=4, evaluations={0: [0.0], 1000: [9.0]}, **hopper)
    figures = {"sd": 1, "env_id": "Hopper-v3"}
    rows = [published_row(90.0, step=500, **figures), published_row(10.0, caveat="sampled", **figures)]
    claim = published_row(99.0, kind="headline", step=float("nan"), **figures)
    texts, notes = report.result_rows(cells_of(tmp_path), [*rows, claim])
    (row,) = texts.to_dict("records")
    assert row["seeds"] == "3 of 4; seed 3 failed: exit 1"
    assert row["claims"].startswith("99.0 ± 1.00 at unstated steps (v3, 10 seeds")
    assert row["best over training"].endswith(", then lost (there too)")
    assert row[report.VERDICT].startswith("not separable (n = 3 | 10): +0.00 [") and row["notes"] == "n1, n2"
    assert "healthy_reward" in notes and notes.endswith("\nn2: source, td3: sampled\n")
    assert "| 3 | failed: exit 1 | a\\|b |" in report.troubles(cells_of(tmp_path), 0)
    assert "| 1k |" in report.points(cells_of(tmp_path), rows)
    kept = finals(tmp_path / "kept", 9.0, **hopper)  # only the published curve was lost
    assert report.best_text(kept, "return", rows) == "9.00 at 1k (lost there)"


def test_an_unknown_algorithm_stands_beside_ours(tmp_path, command):
    finals(tmp_path / "runs", 100.0, 110.0, 120.0)
    rows = [("dqn", "HalfCheetah-v5", seed, k, k / 100 + seed) for seed in (1, 2, 42) for k in (0, 500, 1000)]
    mine = make_csv(tmp_path / "mine.csv", *rows)
    make_run(tmp_path / "runs", seed=5, total=2000)  # longer than theirs
    make_run(tmp_path / "more", env_id="Swimmer-v5")
    words = ["--results", tmp_path / "runs", mine, tmp_path / "more", "--compare", "td3", "dqn (mine)"]
    code, out, _ = command(*words, "--output", tmp_path / "out")
    assert code == 0 and "25.0" in out and "Swimmer" not in out, "printed are the tasks of what is named first"
    text = (tmp_path / "out" / "report.md").read_text()
    difference = r"higher \(n = 3 \\\| 3\): \+85\.0 \[[\d.]+, [\d.]+\]"  # 110 - 25
    assert re.search(r"HalfCheetah-v5 \| return \| 1k \| 110 .* \| 25\.0 .* \| " + difference, text)
    assert "| HalfCheetah-v5 | dqn (mine) | 1k | 3 | return | 25.0" in text and "![curves](curves.png)" in text
    assert "of whole runs" in text  # not the speeds of the committed speed.md
    scores = pd.read_csv(tmp_path / "out" / "scores.csv").set_index("algorithm")
    assert scores.loc["dqn (mine)", ["mean", "last_ten", "seeds"]].tolist() == [25, 20, 3]
    seen = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    command(*words, "--output", tmp_path / "again")
    assert seen == {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()}  # always the same bytes


def test_results_without_a_finished_run_can_be_reported(tmp_path, command):
    make_run(tmp_path, state="failed", exit_code=1, evaluations={}, stderr_tail="ValueError: boom")
    code, out, _ = command("--results", tmp_path)
    assert code == 0 and "failed: exit 1" in out
    assert "| failed: exit 1 | ValueError: boom |" in (tmp_path / "report.md").read_text()


def test_texts_between_markers_are_renewed_and_results_merged(tmp_path, command):
    finals(tmp_path / "runs", 100.0, 110.0)
    make_run(tmp_path / "runs", seed=11)
    make_run(tmp_path / "runs", seed=3, state="stopped", evaluations={0: [1.0]})
    code, out, _ = command("--results", tmp_path / "runs", "--export", tmp_path / "kept")
    assert code == 0 and "now holds 3 runs, 0 of them of earlier code; 1 unfinished ones left out" in out
    page = tmp_path / "page.md"
    page.write_text("top\n<!-- report:troubles -->\nold\n<!-- /report -->\nend\n")
    assert command("--results", tmp_path / "kept", "--into", page)[0] == 0
    text = page.read_text()
    assert text.startswith("top\n<!-- report:troubles -->\n") and text.endswith("<!-- /report -->\nend\n")
    assert "old" not in text and "1 runs on seeds from 11 on" in text and not (tmp_path / "kept" / "report.md").exists()
    scores = (tmp_path / "kept" / "scores.csv").read_text()
    assert command("--results", tmp_path / "kept", "--tuning-seeds", "--into", page)[0] == 0
    assert "Nothing." in page.read_text()  # the others are not for tuning
    assert (tmp_path / "kept" / "scores.csv").read_text() == scores and (tmp_path / "kept" / "tuning").is_dir()


def test_bad_input_is_one_line(tmp_path, command):
    make_run(tmp_path / "runs", seed=11)
    make_run(tmp_path / "two", seed=1)
    page = tmp_path / "page.md"
    page.write_text("<!-- report:nothing -->\n<!-- /report -->")
    for words, message in (
        (["--results", tmp_path / "none"], "holds neither run folders nor results.csv"),
        (["--results", tmp_path / "runs"], "only runs for tuning: add --tuning-seeds"),
        (["--results", tmp_path / "two", "--into", page], "page.md has no markers, or unknown ones"),
        (["--results", tmp_path / "two", "--into", tmp_path], "cannot read --into"),
        (["--results", tmp_path / "two", "--compare", "td3", "dqn"], "--compare dqn is not in the results"),
        (["--results", tmp_path / "two", "--output", page / "x"], "cannot write"),
    ):  # fmt: skip
        code, _, error = command(*words)
        assert code == 2 and error.startswith("error: ") and message in error and error.count("\n") == 1, error
    assert not list((tmp_path / "two").glob("*.*"))


def test_readme_tables_and_pictures_are_those_of_the_committed_results(tmp_path, command):
    """Else: make report."""
    pages = ROOT / "README.md", COMMITTED / "README.md"
    copies = [Path(shutil.copy(page, tmp_path / f"{k}.md")) for k, page in enumerate(pages)]
    code, _, error = command("--results", COMMITTED, "--output", tmp_path / "out", "--into", *copies)
    assert code == 0, error
    speeds = report.measured_speeds(COMMITTED / "speed.csv")
    assert speeds.keys() == {x.stem for x in ROOT.glob("algorithms/*.py")}
    assert f" {speeds['ppo']} (" in (COMMITTED / "speed.md").read_text() and speeds["ppo"] in pages[0].read_text()
    assert [copy.read_text() for copy in copies] == [page.read_text() for page in pages]
    assert len(pages[0].read_text().splitlines()) <= 130
    assert (tmp_path / "out" / "scores.csv").read_text() == (COMMITTED / "scores.csv").read_text()
    for path in (tmp_path / "out").glob("*.png"):
        drawn, kept = plt.imread(path), plt.imread(COMMITTED / path.name)
        assert drawn.shape == kept.shape, path
        differing = (np.abs(drawn - kept) > 0.1).any(-1)  # other processors may round a few edges differently
        assert differing.mean() < 1e-4, path


def test_every_algorithm_learns_its_task_of_the_quick_suite():
    """In the committed results of at most 300k steps. An untrained Reacher gets about -11 to -13."""
    evaluations, runs = records.read([COMMITTED])
    quick = runs[(runs["total_timesteps"] < 300_000) & (runs["seed"] < 11) & ~runs["algorithm"].str.contains("-")]
    last = evaluations[evaluations["run"].isin(quick["run"])].groupby("run").last()
    assert set(last["algorithm"]) == {path.stem for path in (ROOT / "algorithms").glob("*.py")} and len(last) >= 24
    for row in last.to_dict("records"):
        column, least = SOLVED[row["env_id"]]
        assert row["episodes"] == 10 and row[column] >= least, row


def test_the_policy_nearest_the_median_is_kept(tmp_path):
    policies = tmp_path / "kept" / "policies" / "td3" / "HalfCheetah-v5"

    def export(name, returns):
        for seed, value in returns.items():
            folder = make_run(tmp_path / name, seed=seed, evaluations={0: [0.0], 1000: [value]})
            (folder / "policy.pt").write_text(f"policy of seed {seed}")
        report.merge(report.Options((tmp_path / name,), export=tmp_path / "kept"))
        config = json.loads((policies / "config.json").read_text())
        return config["args"]["seed"], (policies / "policy.pt").read_text()

    assert export("first", {1: 100.0, 2: 300.0, 3: 200.0, 11: 200.0}) == (3, "policy of seed 3")
    assert export("second", {4: 500.0, 5: 400.0}) == (3, "policy of seed 3")  # 300 is the median, seed 2 not at hand
    assert export("third", {6: 310.0, 7: 600.0}) == (6, "policy of seed 6")


def test_runs_of_earlier_code_are_kept_until_there_are_as_many_of_today(tmp_path):
    def kept(name, seeds, **status):
        for seed in seeds:
            make_run(tmp_path / name, seed=seed, **status)
        report.merge(report.Options((tmp_path / name,), export=tmp_path / "kept"))
        _, runs = records.read([tmp_path / "kept"])
        return [*zip(runs["seed"], runs["stale"], strict=True)]

    kept("earlier", (1, 2, 11), code_sha256="of other code")
    assert sorted(kept("today", (1,))) == [(1, False), (1, True), (2, True), (11, True)]
    assert sorted(kept("later", (2,))) == [(1, False), (2, False), (11, True)]
