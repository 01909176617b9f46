"""The harness: plans, failed runs, continuing, stopping, kills, full disks."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
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
FLAGS = {
    "no-compile": "", "num-steps": "32", "num-minibatches": "1", "update-epochs": "1", "eval-episodes": "1",
    "log-every": "1", "checkpoint-every": "256",
}  # fmt: skip
LONG = 10**7  # steps that take longer than any test


@pytest.fixture
def suite(monkeypatch, tmp_path):
    """A suite of the given experiments, planned into tmp_path/test, with the tiny environments importable."""
    monkeypatch.chdir(ROOT / "tests")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}

    def plan(*experiments: Experiment, seeds: int = 1) -> list[run.Job]:
        monkeypatch.setitem(SUITES, "test", list(experiments))
        jobs = run.plan(run.Args(suite="test", seeds=seeds, output=str(tmp_path)))
        for job in jobs:
            job.state = "done" if job.is_done() else "waiting"
        return jobs

    yield plan
    for number, handler in handlers.items():
        signal.signal(number, handler)


def ppo(env_id: str = "tiny_envs:Chain-v0", steps: int = 256, **flags: str) -> Experiment:
    return Experiment("ppo", env_id, steps, FLAGS | flags)


def status(job: run.Job) -> dict:
    return json.loads((job.folder / "harness" / "status.json").read_text())


def commands(job: run.Job) -> list[list[str]]:
    return json.loads((job.folder / "config.json").read_text())["commands"]


def execute(jobs: list[run.Job], parallel: int = 2, hours: float | None = None) -> str:
    """Why it stopped, and all that it has printed."""
    with open(os.devnull, "w") as out:
        console = Console(file=out, record=True, width=200)
        return run.execute(jobs, parallel, console, hours) + console.export_text()


def wait_for(condition, seconds: int = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def test_a_crashing_run_is_recorded_and_the_others_go_on(suite, tmp_path, capsys):
    crashed, fine = suite(ppo("tiny_envs:Crash-v0", 4096), ppo())
    assert run.main(run.Args(suite="test", jobs=1, output=str(tmp_path))) == 1
    assert (status(crashed)["state"], status(crashed)["exit_code"]) == ("failed", 1)
    assert "RuntimeError: the simulator broke" in status(crashed)["stderr_tail"]
    out = " ".join(capsys.readouterr().out.split())
    assert "failed (exit 1)" in out and "RuntimeError: the simulator broke" in out
    assert (status(fine)["state"], status(fine)["exit_code"]) == ("done", 0) and status(fine)["seconds"] > 0
    assert status(fine)["versions"]["torch"] and len(status(fine)["script_sha256"]) == 64
    assert status(fine)["hardware"].endswith("device cpu")
    assert (fine.folder / "eval.csv").read_text().splitlines()[-1].startswith("256,")


def test_finished_runs_are_skipped_partial_ones_resumed_and_none_is_overwritten(suite, monkeypatch):
    execute(suite(ppo()))  # 256 steps
    (longer,) = suite(ppo(steps=500))  # rounded up to 504
    begun = status(longer)["algorithm_sha256"]
    assert longer.state == "waiting" and "--resume" in longer.command()
    execute([longer])
    assert longer.state == status(longer)["state"] == "done" and len(commands(longer)) == 2
    assert (longer.folder / "eval.csv").read_text().splitlines()[-1].startswith("504,")
    assert status(longer)["algorithm_sha256"] == begun and status(longer)["flags"] == FLAGS
    assert longer.stale() == "begun for 256 steps, over which its learning rate decayed"
    assert longer.is_done() and run.time_left([longer], 2) == "nothing left to do"
    # what a killed harness leaves behind: the run has outlived it and is complete
    left = status(longer) | {"state": "running", "seconds": 0.0, "algorithm_sha256": "then", "exit_code": None}
    longer.write(left)
    (again,) = suite(ppo(steps=500))
    assert again.state == "done" and status(again)["state"] == "running", "planning writes nothing"
    execute([again])
    assert (status(again)["state"], status(again)["exit_code"]) == ("done", 0) and status(again)["seconds"] > 0
    assert status(again)["algorithm_sha256"] == "then"
    again.write(left)
    os.utime(again.folder / "eval.csv")
    assert not again.is_done(), "the save that follows the last evaluation is missing"
    (other,) = suite(ppo(steps=800, gamma="0.5"))  # nor is one of other settings overwritten
    before = (other.folder / "eval.csv").read_bytes()
    monkeypatch.setattr(run, "algorithm_sha256", lambda script: "changed meanwhile")
    execute([other])
    assert (other.state, other.exit_code) == ("failed", 2)
    assert status(other)["algorithm_sha256"] == "changed while the run was made"
    assert "--gamma 0.5 differs from the run's 0.99" in " ".join(status(other)["stderr_tail"].split())
    assert (other.folder / "eval.csv").read_bytes() == before


def test_a_harness_is_alone_interrupted_killed_and_continued(suite, tmp_path):
    """Ctrl-C, then SIGKILL to the harness and to the run it leaves behind; the same command finishes the run."""
    job, never = suite(ppo(steps=LONG), ppo("tiny_envs:Crash-v0"))
    code = f"import run; from suites import *; SUITES['test'] = {SUITES['test']}; "
    code += f"raise SystemExit(run.main(run.Args(suite='test', jobs=1, output={str(tmp_path)!r})))"
    command, path = [sys.executable, "-c", code], os.environ | {"PYTHONPATH": str(ROOT / "benchmarks")}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": path}
    harness = subprocess.Popen(command, **streams)
    wait_for((job.folder / "checkpoint.pt").exists)
    second = subprocess.run(command, **streams)
    assert second.returncode == 2 and "is in use by another benchmark" in second.stderr
    harness.send_signal(signal.SIGINT)
    output, _ = harness.communicate(timeout=60)
    assert harness.returncode == 130 and "the same command continues" in " ".join(output.split())
    assert (status(job)["state"], status(job)["exit_code"]) == ("stopped", -signal.SIGTERM) and not job.is_busy()
    assert not never.folder.exists(), "a run was started after the interruption"

    harness = subprocess.Popen(command, **streams)
    wait_for(lambda: len(commands(job)) == 2 and job.is_busy())
    harness.kill()
    harness.communicate()
    assert (status(job)["state"], status(job)["exit_code"]) == ("running", None)
    assert job.is_busy(), "the run goes on without its harness"
    (waiting,) = suite(ppo(steps=LONG))
    text = execute([waiting], hours=1 / 3600)  # waits for the run, then ends it like its own
    assert text.startswith("the time budget") and "by a process of an earlier start" in text
    assert waiting.state == "waiting" and not job.is_busy() and not job.stop_survivor(), "it is gone"

    steps = job.progress()[0] + 512
    (again,) = suite(ppo(steps=steps))
    again.start()
    wait_for(lambda: len(commands(job)) == 3)
    again.process.kill()
    again.process.wait()
    assert again.poll() and (again.state, again.exit_code) == ("failed", -signal.SIGKILL)
    execute(suite(ppo(steps=steps)))
    assert status(job)["state"] == "done" and len(commands(job)) == 4 and not list(job.folder.rglob("*.tmp"))


def test_a_run_refused_by_one_still_starting_waits_and_leaves_its_process_known(suite):
    (job,) = suite(ppo())
    job.write({"state": "running", "pid": os.getpid()})
    assert not job.is_busy()
    with open(job.folder / ".lock", "w") as lock:
        run.fcntl.flock(lock, run.fcntl.LOCK_EX)  # as the script does, by filelock
        assert job.is_busy() and not job.is_done()
        job.start()
        assert status(job)["pid"] == job.process.pid
        assert job.process.wait(60) == 2 and "another process trains there" in job.error_text()
    assert not job.is_busy() and job.poll() and job.state == "waiting"
    assert status(job) == {"state": "running", "pid": os.getpid()}
    assert not job.stop_survivor(), "the number has gone to another process, which goes on"
    execute([job])
    assert job.state == status(job)["state"] == "done"


def test_the_time_budget_stops_what_runs_and_starts_nothing(suite, monkeypatch):
    monkeypatch.setattr(run.Job, "command", lambda job: ["python", "-c", "import time; time.sleep(100)"])
    begun, waiting = suite(ppo(), ppo("tiny_envs:Chain-v1"))
    assert execute([begun, waiting], parallel=1, hours=1 / 3600).startswith("the time budget is used up")
    assert begun.state == status(begun)["state"] == "stopped" and status(begun)["exit_code"] != 0
    assert waiting.state == "waiting" and not waiting.folder.exists()


def test_a_full_disk_stops_the_benchmark_with_one_line_and_without_a_process(suite, monkeypatch, capsys, tmp_path):
    (job,) = suite(ppo(steps=LONG))
    write = run.write_atomically

    def full(path: Path, text: str) -> None:
        if path.exists():  # the second write
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # as a write fails, without a name
        write(path, text)

    monkeypatch.setattr(run, "write_atomically", full)
    with pytest.raises(SystemExit) as stopped:
        run.main(run.Args(suite="test", jobs=2, output=str(tmp_path)))
    error = f"error: No space left on device: {tmp_path / 'test'}; put it right, and the same command continues\n"
    assert stopped.value.code == 2 and capsys.readouterr().err == error
    assert status(job)["state"] == "running", "the last status that could be written"
    left = subprocess.run(["ps", "-ww", "-A", "-o", "args="], capture_output=True, text=True).stdout
    assert str(job.folder) not in left, "its process is gone"


def test_a_script_that_finds_the_disk_full_stops_the_benchmark(suite, monkeypatch):
    jobs = suite(ppo(), ppo("tiny_envs:Chain-v1"))
    monkeypatch.setattr(
        run.Job, "command", lambda job: ["python", "-c", "raise OSError(28, 'No space left on device')"]
    )
    with pytest.raises(OSError, match="No space left on device") as raised:
        execute(jobs, parallel=1)
    assert raised.value.filename == str(jobs[0].folder)
    assert [job.state for job in jobs] == ["failed", "waiting"]


def test_status_shows_every_state_staleness_and_the_time_left_and_writes_nothing(suite, monkeypatch, capsys, tmp_path):
    done, stale, failed, stopped, waiting = suite(*(ppo(f"tiny_envs:Chain-v{i}", 1000) for i in range(5)))
    sha = run.algorithm_sha256(done.script)
    for job, state, algorithm, step in (
        (done, "done", sha, 1000), (stale, "done", "another", 1000), (failed, "failed", sha, 500),
        (stopped, "running", sha, 500),  # says its status, but there is no process
    ):  # fmt: skip
        record = {"state": state, "exit_code": int(state == "failed"), "total_timesteps": 1000, "flags": FLAGS}
        job.write(record | {"algorithm_sha256": algorithm})
        (job.folder / "eval.csv").write_text("step,episode,return,length\n")
        (job.folder / "config.json").write_text("{}")
        (job.folder / "metrics.csv").write_text(f"step,seconds,steps_per_second\n{step},{step * 3.6},1\n")
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setenv("COLUMNS", "250")
    assert run.main(run.Args(suite="test", jobs=2, output=str(tmp_path), status=True)) == 0
    out = capsys.readouterr().out
    assert run.main(run.Args(suite="test", jobs=2, output=str(tmp_path), dry_run=True)) == 0
    plan = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in plan] == ["skip", "skip", "python", "python", "python", "#"]
    assert "--resume" in plan[3] and "--run-dir" in plan[4] and sorted(tmp_path.rglob("*")) == before
    lines = {line.split("│")[2].strip(): line for line in out.splitlines() if "Chain" in line}
    texts = "done ", "done, stale: ppo.py has changed since", "failed (exit 1), see", "stopped", "waiting"
    for job, text in zip((done, stale, failed, stopped, waiting), texts, strict=True):
        assert text in lines[job.experiment.env_id], out
    counts = "2 done, 1 failed, 1 stopped, 1 waiting, 1 of the done ones stale"
    # 500 + 500 + 1000 steps of 3.6 s, two at a time
    assert f"{counts}; about 1:00:00 left, 2 at a time" in " ".join(out.split())


def test_plan_has_every_experiment_and_seed_once_and_variants_apart(suite, tmp_path):
    ablation = experiments("her_ddpg", ("FetchPush-v4",), 800, variant="no-her")
    jobs = suite(ppo(), Experiment("her_ddpg", "FetchPush-v4", 800), *ablation, seeds=3)
    where = [str(job.folder.relative_to(tmp_path / "test")) for job in jobs]
    labels = ("ppo/tiny_envs:Chain-v0", "her_ddpg/FetchPush-v4", "her_ddpg-no-her/FetchPush-v4")
    assert where == [f"{label}/{seed}" for seed in (1, 2, 3) for label in labels]
    words = jobs[3].command()
    assert words[words.index("--seed") + 1] == "2" and "--no-compile" in words and "" not in words
    assert words[words.index("--run-dir") + 1] == str(jobs[3].folder)
    assert "--no-her" in jobs[2].command() and "--no-her" not in jobs[1].command()


def test_bad_input_is_one_line(tmp_path, capsys):
    for settings, message in (
        ({"suite": "nope"}, "--suite nope does not exist"), ({"algorithms": ("dqn",)}, "--algorithms dqn is not in"),
        ({"tasks": ("Ant-v5",)}, "--tasks Ant-v5 is not in suite quick"), ({"seeds": 0}, "--seeds 0 is out of range"),
        ({"time_budget": 0.0}, "--time-budget 0.0 is out of range"), ({"jobs": 0}, "--jobs 0 is out of range"),
        ({"output": __file__}, "cannot write --output"),
    ):  # fmt: skip
        with pytest.raises(SystemExit) as stopped:
            run.main(run.Args(**{"output": str(tmp_path / "out")} | settings))
        error = capsys.readouterr().err
        assert stopped.value.code == 2 and error.startswith(f"error: {message}") and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_every_suite_evaluates_often_enough_and_gives_reasons():
    figures, on_policy = load_published(), ("reinforce", "a2c", "trpo", "ppo")
    for name, members in SUITES.items():
        assert len({(e.label, e.env_id) for e in members}) == len(members), name
        for e in members:
            assert int(e.flags.get("eval-every", 20_000)) * 20 <= e.total_timesteps
            measured = {"eval-every", "no-compile"}  # how it is measured and executed, not what is learned
            assert e.reason or not set(e.flags) - measured, f"{name}: {e} needs a reason"
    planned = {(name, e.label, e.env_id) for name, members in SUITES.items() for e in members}
    assert not REMARKS.keys() - planned, "remarks on what is in no suite"
    for e in SUITES["quick"]:
        task, _ = split_env_id(e.env_id)
        steps = [r.env_steps for r in figures if (r.kind, r.algorithm, r.task) == ("reference", e.algorithm, task)]
        comparable = nearest(steps, e.total_timesteps, SAME_STEP) is not None
        assert comparable == (e.algorithm in on_policy), e  # suites.py says why the others stop earlier
