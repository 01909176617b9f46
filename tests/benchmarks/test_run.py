"""The harness: plans, failed runs, continuing, stopping."""

from __future__ import annotations

import csv
import errno
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import run
from published import load_published, split_env_id
from records import SAME_STEP
from rich.console import Console
from scores import nearest
from suites import REMARKS, SUITES, Experiment, experiments

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


def execute(jobs: list[run.Job], parallel: int = 2, hours: float | None = None) -> str:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        with open(os.devnull, "w") as out:
            console = Console(file=out, record=True, width=200)
            stopped = run.execute(jobs, parallel, console, hours)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return stopped + console.export_text()


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
        (["--tasks", "Ant-v5"], "--tasks Ant-v5 is not in suite quick"),
        (["--time-budget", "0"], "--time-budget 0.0 is out of range"),
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
    command = [sys.executable, str(ROOT / "benchmarks/run.py"), "--dry-run", "--output", str(tmp_path / "o")]
    lines = subprocess.run([*command, "--seeds", "2"], capture_output=True, text=True, check=True).stdout.splitlines()
    runs = 2 * len(SUITES["quick"])
    assert len(lines) == runs + 1
    # the committed runs tell how long it will take
    assert re.fullmatch(rf"# {runs} runs: {runs} waiting; about (\d+:)?\d+:\d\d left, \d+ at a time", lines[-1])
    assert not (tmp_path / "o").exists()
    process = subprocess.Popen([*command, "--seeds", "999"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == lines[0] + "\n"
    process.stdout.close()  # as `| head -1` does
    assert process.stderr.read() == ""
    process.wait()


def test_the_table_is_whole_where_there_is_no_terminal(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks/run.py"), "--status", "--suite", "fetch"]
    out = subprocess.run([*command, "--output", str(tmp_path)], capture_output=True, text=True, check=True).stdout
    for label, env_id in {(e.label, e.env_id) for e in SUITES["fetch"]}:
        assert any(f" {label} " in line and f" {env_id} " in line and "waiting" in line for line in out.splitlines())


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
    assert "the same command continues" in " ".join(output.split())
    assert json.loads((folders[0] / "status.json").read_text())["state"] == "stopped"
    assert (folders[0] / "checkpoint.pt").exists()
    assert not list(tmp_path.glob("quick/*/*/2")), "a run was started after the interruption"


def test_every_suite_evaluates_often_enough_and_gives_reasons():
    for name, members in SUITES.items():
        assert len({(e.label, e.env_id) for e in members}) == len(members), name
        for e in members:
            assert (ROOT / "algorithms" / f"{e.algorithm}.py").exists()
            assert int(e.flags.get("eval-every", 20_000)) * 20 <= e.total_timesteps
            measured = {"eval-every", "no-compile"}  # how it is measured and executed, not what is learned
            assert e.reason or not set(e.flags) - measured, f"{name}: {e} needs a reason"
    planned = {(name, e.label, e.env_id) for name, members in SUITES.items() for e in members}
    assert not REMARKS.keys() - planned, "remarks on what is in no suite"


def test_a_run_that_outlived_its_harness_counts_as_done(suite):
    jobs = suite(ppo(steps=256))
    execute(jobs)
    path, finished = jobs[0].folder / "status.json", status(jobs[0])
    left = finished | {"state": "running", "seconds": 0.0, "algorithm_sha256": "then", "exit_code": None}
    path.write_text(json.dumps(left))  # what a killed harness leaves behind
    again = suite(ppo(steps=256))
    assert again[0].state == "done" and status(again[0])["state"] == "running", "planning writes nothing"
    execute(again)
    assert status(again[0])["state"] == "done" and status(again[0])["exit_code"] == 0
    assert status(again[0])["algorithm_sha256"] == "then"
    assert status(again[0])["seconds"] > 0  # from the run's own log
    # not so where the run failed, or the last evaluation was not followed by a checkpoint
    path.write_text(json.dumps(left | {"state": "failed"}))
    assert not again[0].is_done()
    path.write_text(json.dumps(left))
    assert again[0].is_done()
    os.utime(jobs[0].folder / "eval.csv")
    assert not again[0].is_done()


def test_a_run_still_going_is_waited_for(suite):
    job = suite(ppo(steps=256))[0]
    job.folder.mkdir(parents=True)
    descriptor = os.open(job.folder, os.O_RDONLY)
    run.fcntl.flock(descriptor, run.fcntl.LOCK_EX)
    assert job.is_busy() and not job.is_done()
    assert execute([job], hours=2 / 3600).startswith("the time budget")
    assert job.state == "running" and not (job.folder / "status.json").exists(), "it was not started"
    os.close(descriptor)
    assert not job.is_busy()
    again = suite(ppo(steps=256))
    execute(again)
    assert again[0].state == "done"


def test_a_run_refused_by_one_still_starting_waits_and_leaves_its_process_known(suite, monkeypatch):
    (job,) = suite(ppo(steps=256))
    job.folder.mkdir(parents=True)
    (job.folder / "status.json").write_text(json.dumps({"state": "running", "pid": 123456}))
    descriptor = os.open(job.folder, os.O_RDONLY)
    run.fcntl.flock(descriptor, run.fcntl.LOCK_EX)
    job.start()
    assert status(job)["pid"] == job.process.pid
    assert job.process.wait(60) == 2 and "is being trained by another process" in job.error_text()
    os.close(descriptor)  # as where --status looked for an instant
    assert job.poll() and job.state == "waiting"
    assert status(job) == {"state": "running", "pid": 123456}
    execute([job])
    assert job.state == status(job)["state"] == "done"


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
    figures = load_published()
    for e in SUITES["quick"]:
        task, _ = split_env_id(e.env_id)
        steps = [r.env_steps for r in figures if (r.kind, r.algorithm, r.task) == ("reference", e.algorithm, task)]
        comparable = nearest(steps, e.total_timesteps, SAME_STEP) is not None
        assert comparable == (e.algorithm in ("reinforce", "a2c", "trpo", "ppo")), e  # suites.py says why others stop


def test_a_variant_has_its_own_folder_and_switch(suite):
    plain, ablated = suite(Experiment("her_ddpg", "FetchPush-v4", 800), *variant())
    assert plain.folder.parts[-3:] == ("her_ddpg", "FetchPush-v4", "1")
    assert ablated.folder.parts[-3:] == ("her_ddpg-no-her", "FetchPush-v4", "1")
    assert "--no-her" in ablated.command() and "--no-her" not in plain.command()
    assert any(e.label == "her_ddpg-no-her" and e.env_id == "FetchPush-v4" for e in SUITES["fetch"])


def variant() -> list[Experiment]:
    return experiments("her_ddpg", ("FetchPush-v4",), 800, variant="no-her")


def test_the_time_budget_stops_runs_so_that_they_can_be_continued(suite):
    jobs = suite(ppo(steps=4_000_000), ppo("tiny_envs:Crash-v0", 4096))
    text = execute(jobs, parallel=1, hours=20 / 3600)
    assert text.startswith("the time budget is used up")
    assert jobs[0].state == status(jobs[0])["state"] == "stopped"
    assert jobs[1].state == "waiting" and not jobs[1].folder.exists()
    (again,) = suite(ppo(steps=4_000_000))
    assert again.state == "waiting" and "--resume" in again.command()
    reached, _, _ = again.progress()
    assert reached > 0 and (again.folder / "checkpoint.pt").exists()
    execute([again], hours=20 / 3600)
    assert again.progress()[0] > reached
    history = json.loads((again.folder / "config.json").read_text())["history"]
    assert len(history) == 2 and history[1]["from_step"] > 0


def test_a_killed_harness_and_a_killed_run_are_continued(tmp_path):
    """SIGKILL to the harness, then to the run that it leaves behind; the same command finishes exactly the run."""
    words = ["--suite", "quick", "--algorithms", "ppo", "--seeds", "1", "--jobs", "1", "--output", str(tmp_path)]
    command = [sys.executable, str(ROOT / "benchmarks/run.py"), *words]
    folder = tmp_path / "quick" / "ppo" / "InvertedPendulum-v5" / "1"
    harness = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(1200):
        if (folder / "metrics.csv").exists() and (folder / "metrics.csv").read_text().count("\n") > 2:
            break
        time.sleep(0.1)
    harness.kill()
    harness.wait()
    left = json.loads((folder / "status.json").read_text())
    assert left["state"] == "running" and left["exit_code"] is None
    job = run.Job(next(e for e in SUITES["quick"] if e.algorithm == "ppo"), 1, folder)
    assert job.is_busy(), "the run goes on without its harness"
    (child,) = subprocess.check_output(["pgrep", "-f", "--", f"--run-dir {folder}"], text=True).split()
    os.kill(int(child), signal.SIGKILL)
    for _ in range(100):
        if not job.is_busy():
            break
        time.sleep(0.1)
    assert not job.is_done()
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert json.loads((folder / "status.json").read_text())["state"] == "done" and job.is_done()
    assert not list(folder.glob("*.tmp"))


@pytest.mark.parametrize("by", ["the time budget", "interrupted"])
def test_a_run_that_outlived_its_harness_is_stopped_like_the_others(suite, monkeypatch, by):
    (left,) = suite(ppo(steps=10**6))
    left.start()
    try:
        for _ in range(3000):
            if (left.folder / "checkpoint.pt").exists():
                break
            time.sleep(0.1)
        assert left.is_busy()
        (job,) = suite(ppo(steps=10**6))
        if by == "interrupted":
            threading.Timer(2, signal.raise_signal, [signal.SIGINT]).start()
        text = execute([job], hours=2 / 3600 if by == "the time budget" else None)
        assert text.startswith(by) and "earlier start" in text
        assert not job.is_busy() and job.state == "waiting"
        assert left.process.wait(60) != 0 and (job.folder / "checkpoint.pt").exists()
    finally:
        left.process.kill()
        left.process.wait()
    path, content = job.folder / "status.json", status(job)
    assert content["pid"] == left.process.pid and not job.stop_survivor(), "it is gone"
    path.write_text(json.dumps(content | {"pid": os.getpid()}))
    assert not job.stop_survivor(), "the number has gone to another process, which goes on"
    del content["pid"]
    path.write_text(json.dumps(content))
    assert not job.stop_survivor()
    monkeypatch.setenv("PATH", "")
    assert not job.stop_survivor(), "where there is no ps"


def test_a_full_disk_stops_the_benchmark_with_one_line_and_without_a_process(suite, monkeypatch, capsys):
    jobs = suite(ppo(steps=10**6), ppo("tiny_envs:Chain-v0", 256))
    write, calls = run.write_atomically, []

    def full(path: Path, text: str) -> None:
        calls.append(path)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # as a write fails, without a name
        write(path, text)

    monkeypatch.setattr(run, "write_atomically", full)
    with pytest.raises(SystemExit) as stopped:
        run.main(run.Args(suite="test", jobs=2, output=str(jobs[0].folder.parents[3])))
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    where = jobs[0].folder.parents[2]
    assert error == f"error: No space left on device: {where}; put it right, and the same command continues\n"
    assert not jobs[0].is_busy() and status(jobs[0])["state"] == "running", "the last status that could be written"
    left = subprocess.run(["ps", "-ww", "-A", "-o", "args="], capture_output=True, text=True).stdout
    assert str(jobs[0].folder) not in left, "its process is gone"
    monkeypatch.undo()
    assert not jobs[0].is_done()


def test_a_script_that_finds_the_disk_full_stops_the_benchmark(suite, monkeypatch):
    jobs = suite(ppo(), ppo("tiny_envs:Chain-v1"))
    monkeypatch.setattr(run.Job, "command", lambda job: ["python", "-c", f"raise SystemExit({os.EX_IOERR})"])
    with pytest.raises(OSError, match="No space left on device") as raised:
        execute(jobs, parallel=1)
    assert raised.value.filename == str(jobs[0].folder)
    assert [job.state for job in jobs] == ["failed", "waiting"]


def test_failed_runs_show_in_the_exit_code_though_the_time_is_up(suite, monkeypatch):
    (job,) = suite(ppo())

    def out_of_time(jobs: list[run.Job], *_: object) -> str:
        jobs[0].state = "failed"
        jobs[0].folder.mkdir(parents=True)
        jobs[0].write_status(["python"])
        return "the time budget is used up"

    monkeypatch.setattr(run, "execute", out_of_time)
    assert run.main(run.Args(suite="test", output=str(job.folder.parents[3]))) == 1


def test_status_shows_every_state_staleness_and_the_time_left(suite, monkeypatch, capsys):
    jobs = suite(*(ppo(f"tiny_envs:Chain-v{i}", 1000) for i in range(5)))
    done, stale, failed, stopped, waiting = jobs
    sha = run.algorithm_sha256(done.script)
    for job, state, algorithm, step in (
        (done, "done", sha, 1000), (stale, "done", "another", 1000), (failed, "failed", sha, 500),
        (stopped, "running", sha, 500),  # says its status, but there is no process
    ):  # fmt: skip
        job.folder.mkdir(parents=True)
        record = {"state": state, "exit_code": int(state == "failed"), "total_timesteps": 1000, "flags": ppo().flags}
        (job.folder / "eval.csv").write_text("step,episode,return,length\n")
        (job.folder / "status.json").write_text(json.dumps(record | {"algorithm_sha256": algorithm}))
        (job.folder / "config.json").write_text("{}")
        (job.folder / "metrics.csv").write_text(f"step,seconds,steps_per_second\n{step},{step * 3.6},1\n")
    before = sorted(done.folder.parents[3].rglob("*"))
    monkeypatch.setenv("COLUMNS", "250")
    assert run.main(run.Args(suite="test", jobs=2, output=str(done.folder.parents[3]), status=True)) == 0
    assert sorted(done.folder.parents[3].rglob("*")) == before
    out = capsys.readouterr().out
    lines = {line.split("│")[2].strip(): line for line in out.splitlines() if "Chain" in line}
    for job, text in (
        (done, "done "), (stale, "done, stale: ppo.py has changed since"), (failed, "failed (exit 1), see"),
        (stopped, "stopped"), (waiting, "waiting"),
    ):  # fmt: skip
        assert text in lines[job.experiment.env_id], out
    # 500 + 500 + 1000 steps of 3.6 s, two at a time
    assert "1 of the done ones stale" in out and "about 1:00:00 left, 2 at a time" in " ".join(out.split())
    for text in ("2 done", "1 failed", "1 stopped", "1 waiting"):
        assert text in " ".join(out.split())


def test_time_left_of_a_finished_suite(suite):
    jobs = suite(ppo(steps=256))
    execute(jobs)
    assert run.time_left(jobs, 2) == "nothing left to do"


def test_a_resumed_run_keeps_the_hash_of_the_algorithm_that_began_it(suite, monkeypatch):
    execute(suite(ppo(steps=256)))
    longer = suite(ppo(steps=512))
    begun = status(longer[0])["algorithm_sha256"]
    execute(longer)
    assert status(longer[0])["state"] == "done" and status(longer[0])["algorithm_sha256"] == begun
    assert status(longer[0])["flags"] == ppo().flags
    assert longer[0].stale() == "begun for 256 steps, over which its learning rate decayed"
    # a flag that the suite no longer has stays with the run, which keeps its value
    longest = suite(Experiment("ppo", "tiny_envs:Chain-v0", 768, dict(list(ppo().flags.items())[:-1])))
    monkeypatch.setattr(run, "algorithm_sha256", lambda script: "changed meanwhile")
    execute(longest)
    assert status(longest[0])["state"] == "done" and status(longest[0])["flags"] == ppo().flags
    assert status(longest[0])["algorithm_sha256"] == "changed while the run was made"
