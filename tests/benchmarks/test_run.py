"""The harness: plans, failed runs, continuing, stopping."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import run
from rich.console import Console
from suites import SUITES, Experiment

ROOT = Path(run.__file__).resolve().parent.parent


@pytest.fixture
def suite(monkeypatch, tmp_path):
    """A suite of the given experiments, planned into tmp_path/out, with the tiny environments importable."""
    monkeypatch.chdir(ROOT / "tests")

    def plan(*experiments: Experiment, seeds: int = 1) -> list[run.Job]:
        monkeypatch.setitem(SUITES, "test", list(experiments))
        jobs = run.plan(run.Args(suite="test", seeds=seeds, output=str(tmp_path / "out")))
        for job in jobs:
            job.state = "done" if job.is_done() else "waiting"
        return jobs

    return plan


def ppo(env_id: str = "tiny_envs:Chain-v0", steps: int = 512) -> Experiment:
    flags = {"no-compile": "", "num-steps": "32", "eval-episodes": "1", "log-every": "1", "checkpoint-every": "256"}
    return Experiment("ppo", env_id, steps, flags)


def status(job: run.Job) -> dict:
    return json.loads((job.folder / "status.json").read_text())


def execute(jobs: list[run.Job], parallel: int = 2) -> str:
    with open(os.devnull, "w") as out:
        console = Console(file=out, record=True, width=200)
        run.execute(jobs, parallel, console)
    return console.export_text()


def test_a_crashing_run_is_recorded_and_the_others_go_on(suite):
    jobs = suite(ppo("tiny_envs:Crash-v0", 4096), ppo())
    text = execute(jobs, parallel=1)
    crashed, fine = jobs
    assert (crashed.state, fine.state) == ("failed", "done")
    assert status(crashed)["state"] == "failed" and status(crashed)["exit_code"] == 1
    assert "RuntimeError: the simulator broke" in status(crashed)["stderr_tail"]
    assert status(fine)["exit_code"] == 0 and status(fine)["seconds"] > 0
    assert status(fine)["versions"]["torch"] and len(status(fine)["script_sha256"]) == 64
    assert "failed (exit 1)" in text
    with open(fine.folder / "eval.csv") as file:
        assert list(csv.DictReader(file))[-1]["step"] == "512"


def test_finished_runs_are_skipped_and_partial_ones_resumed(suite):
    execute(suite(ppo(steps=256)))
    again = suite(ppo(steps=256))
    assert again[0].state == "done"
    longer = suite(ppo(steps=768))
    assert longer[0].state == "waiting" and "--resume" in longer[0].command()
    execute(longer)
    assert longer[0].state == "done"
    config = json.loads((longer[0].folder / "config.json").read_text())
    assert [session["from_step"] for session in config["history"]] == [0, 256]
    assert suite(ppo(steps=768))[0].state == "done"


def test_a_run_with_other_settings_is_not_overwritten(suite):
    execute(suite(ppo(steps=256)))
    other = suite(Experiment("ppo", "tiny_envs:Chain-v0", 512, ppo().flags | {"gamma": "0.5"}))
    before = (other[0].folder / "eval.csv").read_bytes()
    execute(other)
    assert other[0].state == "failed" and other[0].exit_code == 2
    assert "--gamma 0.5 differs from the run's 0.99" in status(other[0])["stderr_tail"]
    assert (other[0].folder / "eval.csv").read_bytes() == before


def test_plan_has_every_experiment_and_seed_once(suite):
    jobs = suite(ppo(), Experiment("td3", "Reacher-v5", 1000), seeds=3)
    assert [(job.experiment.algorithm, job.seed) for job in jobs] == [
        (algorithm, seed) for seed in (1, 2, 3) for algorithm in ("ppo", "td3")
    ]
    assert len({job.folder for job in jobs}) == 6
    words = jobs[0].command()
    assert words[words.index("--seed") + 1] == "1" and "--no-compile" in words and "" not in words
    assert words[words.index("--run-dir") + 1] == str(jobs[0].folder)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--suite", "nope"], "--suite nope does not exist"),
        (["--algorithms", "dqn"], "--algorithms dqn is not in suite quick"),
        (["--seeds", "0"], "--seeds 0 is out of range"),
        (["--jobs", "0"], "--jobs 0 is out of range"),
    ],
)
def test_bad_input_is_one_line(flags, message, tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks/run.py"), *flags, "--output", str(tmp_path / "out")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1 and message in result.stderr
    assert not (tmp_path / "out").exists()


def test_dry_run_prints_the_plan_and_writes_nothing(tmp_path):
    command = [
        sys.executable,
        str(ROOT / "benchmarks/run.py"),
        "--dry-run",
        "--seeds",
        "2",
        "--output",
        str(tmp_path / "o"),
    ]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(lines) == 2 * len(SUITES["quick"])
    assert not (tmp_path / "o").exists()


def test_interrupting_stops_the_children_with_a_checkpoint_and_a_second_harness_is_refused(tmp_path):
    command = [
        sys.executable, str(ROOT / "benchmarks/run.py"), "--suite", "quick", "--algorithms", "td3", "--seeds", "2",
        "--jobs", "1", "--output", str(tmp_path),
    ]  # fmt: skip
    harness = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    folders = []
    for _ in range(600):  # until the first run has logged steps
        folders = [path.parent for path in tmp_path.glob("quick/*/*/*/metrics.csv") if path.read_text().count("\n") > 2]
        if folders:
            break
        time.sleep(0.1)
    assert folders, "no run started"
    second = subprocess.run(command, capture_output=True, text=True)
    assert second.returncode == 2 and "is in use by another benchmark" in second.stderr
    harness.send_signal(signal.SIGINT)
    output, _ = harness.communicate(timeout=60)
    assert harness.returncode == 130
    assert "the same command continues" in output
    assert json.loads((folders[0] / "status.json").read_text())["state"] == "stopped"
    assert (folders[0] / "checkpoint.pt").exists()
    assert not list(tmp_path.glob("quick/*/*/2")), "a run was started after the interruption"


def test_every_suite_evaluates_often_enough_and_gives_reasons():
    for name, experiments in SUITES.items():
        assert len({(e.algorithm, e.env_id) for e in experiments}) == len(experiments), name
        for e in experiments:
            assert (ROOT / "algorithms" / f"{e.algorithm}.py").exists()
            assert int(e.flags.get("eval-every", 20_000)) * 20 <= e.total_timesteps
            measured = {"eval-every", "no-compile"}  # how it is measured and executed, not what is learned
            assert e.reason or not set(e.flags) - measured, f"{name}: {e} needs a reason"


def test_a_run_that_outlived_its_harness_counts_as_done(suite):
    jobs = suite(ppo(steps=256))
    execute(jobs)
    path = jobs[0].folder / "status.json"
    path.write_text(json.dumps(status(jobs[0]) | {"state": "running"}))  # what a killed harness leaves behind
    again = suite(ppo(steps=256))
    assert again[0].state == "done" and status(again[0])["state"] == "running", "planning writes nothing"
    execute(again)
    assert status(again[0])["state"] == "done" and status(again[0])["exit_code"] == 0


def test_a_run_still_going_is_waited_for(suite):
    job = suite(ppo(steps=256))[0]
    job.folder.mkdir(parents=True)
    descriptor = os.open(job.folder, os.O_RDONLY)
    run.fcntl.flock(descriptor, run.fcntl.LOCK_EX)
    assert job.is_busy() and not job.is_done()
    os.close(descriptor)
    assert not job.is_busy()


def test_a_run_stopped_while_it_starts_is_stopped_not_failed(suite):
    job = suite(ppo(steps=10**6))[0]
    job.start()
    job.stop()
    job.process.wait(60)
    assert job.poll() and job.state == "stopped"
    assert status(job)["state"] == "stopped" and status(job)["exit_code"] != 0


def test_an_output_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    command = [sys.executable, str(ROOT / "benchmarks/run.py"), "--output", str(tmp_path / "file")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2 and result.stderr.count("\n") == 1
    assert "--output" in result.stderr and "Traceback" not in result.stderr


def test_the_quick_suite_can_be_compared_with_published_figures_at_equal_steps():
    import report

    published = report.load_published()
    for e in SUITES["quick"]:
        task, _ = report.split_env_id(e.env_id)
        steps = [r.env_steps for r in published if (r.kind, r.algorithm, r.task) == ("reference", e.algorithm, task)]
        comparable = report.nearest(steps, e.total_timesteps, report.SAME_STEP) is not None
        assert comparable == (e.algorithm in ("reinforce", "a2c", "trpo", "ppo")), e  # suites.py says why others stop
