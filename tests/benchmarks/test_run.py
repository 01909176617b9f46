"""The harness: plans, failed runs, kills of harness and run, two harnesses, pauses, a cluster that loses a machine."""

from __future__ import annotations

import ast
import errno
import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import executors
import pytest
import run
from run import Args, InputError
from suites import ALGORITHMS, PEERS, SUITES

ROOT = Path(run.__file__).resolve().parent.parent
STEPS = str(Path(__file__).with_name("steps.py"))
RUN = "steps/Task-v0/1"  # the run of the plan of `args`
linux = pytest.mark.skipif(sys.platform != "linux", reason="other systems do not end a child with its parent")


def args(folder: Path, **settings) -> Args:
    """A plan of one run of 300 steps of steps.py."""
    plan = {"script": (STEPS,), "tasks": ("Task-v0",), "total_timesteps": 300, "results": str(folder), "jobs": 2}
    return Args(**plan | settings)


def harness(folder: Path, *words: str) -> subprocess.Popen:
    """The same as a process: by default a run of 100,000 steps that takes 1000 seconds."""
    plan = ["--script", STEPS, "--tasks", "Task-v0", "--results", str(folder), "--total-timesteps", "1e5"]
    command = [sys.executable, run.__file__, *plan, "--flags=--delay 1", *words]
    heeds = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # what a job in the background ignores
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heeds)


def said(folder: Path, *words: str) -> str:
    """What `run.py ...` prints."""
    return harness(folder, *words).communicate()[0]


def status(folder: Path) -> dict:
    return json.loads((folder / "harness" / "status.json").read_text())


def started(folder: Path) -> list[dict]:
    """Start step and process of every start of the run."""
    return json.loads((folder / "config.json").read_text())["commands"]


def wait_for(condition, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_plan_is_every_algorithm_variant_task_and_seed_and_each_has_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    jobs = run.plan(
        args(
            tmp_path, algorithms=("ppo", "sb3-trpo"), tasks=("Hopper-v5", "my_module:a/MyEnv-v0"), seeds=("2",),
            variant=("clip0.1=--clip_coef 0.1 --no-norm-obs", "wide=--layers=64 64"),
            flags="--eval-every 50 --gamma 0.9",
        )
    )  # fmt: skip
    where = [str(job.folder.relative_to(tmp_path)) for job in jobs]
    labels = ["ppo", "sb3-trpo", "steps", *(f"{a}{v}" for v in ("-clip0.1", "-wide") for a in ("ppo", "steps"))]
    tasks = "Hopper-v5", "my_module-a-MyEnv-v0"
    assert where == [f"{label}/{task}/{seed}" for seed in (1, 2) for label in labels for task in tasks]
    words = "--env-id Hopper-v5 --seed 1 --total-timesteps 300 --eval-every 50"
    assert jobs[2].words()[2:] == words.split(), "a peer's settings are RL Zoo's"
    words += " --gamma 0.9 --clip-coef 0.1 --no-norm-obs --run-dir"
    assert " ".join(jobs[6].command()) == f"python algorithms/ppo.py {words} {tmp_path}/ppo-clip0.1/Hopper-v5/1"
    assert jobs[2].command()[1:4] == ["benchmarks/peers.py", "--algorithm", "sb3-trpo"]
    assert jobs[10].words()[-3:] == ["--layers", "64", "64"] and jobs[4].experiment.script == Path(STEPS)
    suite = run.plan(Args(suite="fetch", results=str(tmp_path), tasks=("FetchPush-v4",), total_timesteps=70))
    assert [job.experiment.label for job in suite] == ["her_ddpg", "her_ddpg-no-her"] * 3
    assert [job.seed for job in suite] == [1, 1, 2, 2, 3, 3]
    assert "--no-her" in suite[1].words() and suite[0].experiment.total_timesteps == 70


def test_seeds_are_a_count_a_list_or_ranges():
    meant = {"": [], "3": [1, 2, 3], "5 7 5": [5, 7], "11-13 20": [11, 12, 13, 20], "4-4": [4]}
    assert {words: run.parse_seeds(tuple(words.split())) for words in meant} == meant


def test_a_mistake_is_one_line_with_a_remedy_and_leaves_nothing(tmp_path):
    clash, broken, suite = tmp_path / "ppo.py", tmp_path / "broken.py", {"suite": "quick", "script": ()}
    clash.write_text("")
    broken.write_text("def")
    for settings, message in (
        (suite | {"suite": "nope"}, "--suite nope is unknown"), ({"suite": "quick", "tasks": ()}, "no such runs"),
        (suite | {"tasks": ("Ant-v5",)}, "--tasks Ant-v5 is unknown: choose from"), ({"tasks": ()}, "no plan"),
        (suite | {"algorithms": ("ppo",), "tasks": ("Reacher-v5",)}, "suite quick has no such runs"),
        ({"algorithms": ("dqn",)}, "--algorithms dqn is unknown: choose from"),
        ({"script": ("none.py",)}, "--script none.py is no Python file"), ({"script": (str(clash),)}, "taken for ours"),
        ({"script": (str(broken),)}, f"--script {broken} is not valid Python"), ({"flags": "1"}, "begin with"),
        ({"seeds": ("x",)}, "--seeds x is not a seed"), ({"seeds": ("0",)}, "--seeds 0 names none"),
        ({"algorithms": ("sb3-ppo",), "script": (), "flags": "--gamma 0.9"}, "--flags: peers do not take --gamma"),
        ({"jobs": 0}, "--jobs 0 is out of range"), ({"time_budget": 0.0}, "--time-budget 0.0 is out of range"),
        ({"variant": ("fast",)}, "--variant fast: write"), ({"variant": ("a=--seed 3",)}, "--seed is set by the plan"),
        ({"variant": ("a=--x 1", "a=--x 2")}, "steps-a on Task-v0 is in the plan twice"),
        ({"results": STEPS}, f"cannot write --results {STEPS}"), ({"pause": True}, "no benchmark is running in"),
        ({"status": True}, "holds neither run folders"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=re.escape(message)) as raised:
            run.main(args(tmp_path / "out", **settings))
        assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()
    said = harness(tmp_path / "out", "--seeds", "x").communicate()
    assert said == ("", "error: --seeds x is not a seed: write 3 (how many), 1 2 5 (which) or 11-14 (a range)\n")


def test_a_failed_run_is_told_and_the_others_go_on_and_it_is_not_tried_for_ever(tmp_path, capsys):
    settings = {"variant": ("bad=--crash-at 200", "early=--stop-at 300"), "attempts": 2}
    bad, early, fine = (tmp_path / f"steps{name}" / "Task-v0" / "1" for name in ("-bad", "-early", ""))
    assert run.main(args(tmp_path, **settings)) == 1
    assert (status(bad)["state"], status(bad)["exit_code"], status(bad)["failures"]) == ("failed", 1, 1)
    assert "RuntimeError: the simulator broke" in status(bad)["stderr_tail"]
    assert status(early)["stderr_tail"] == "ended before its last evaluation\n", "exit code 0 alone is not done"
    assert (status(fine)["state"], status(fine)["failures"]) == ("done", 0) and status(fine)["seconds"] > 0
    assert status(fine)["hardware"].endswith("cores, device cpu") and len(status(fine)["code_sha256"]) == 64
    out = capsys.readouterr().out
    assert re.search(r"seed 1: failed at step 100 \(\d s\): RuntimeError: the simulator broke\n", out), "told at once"
    assert f"3 runs: 1 done, 2 failed, in {tmp_path}" in out
    assert run.main(args(tmp_path, status=True)) == 0
    row = r"steps-bad +Task-v0 +1 +failed: exit 1 +\d+ +300 +1.0 +RuntimeError: the simulator broke\n"
    assert re.search(row, capsys.readouterr().out)
    for starts in (2, 2):  # tried a second time, and then left alone
        assert run.main(args(tmp_path, **settings)) == 1
        assert len(started(bad)) == starts and len(started(fine)) == 1
    assert [start["start"] for start in started(bad)] == [0, 100], "it went on from its checkpoint"
    assert "left alone after so many failures" in capsys.readouterr().out


def test_finished_runs_are_left_alone_and_other_settings_refused(tmp_path):
    folder = tmp_path / RUN
    assert run.main(args(tmp_path)) == 0
    before = {path: path.read_bytes() for path in folder.glob("*.*")}
    assert run.main(args(tmp_path, seeds=("2",))) == 0, "only seed 2 was made"
    for change in ({"total_timesteps": 400}, {"flags": "--delay 0"}):
        with pytest.raises(InputError, match=r"is a run with .* choose other --results"):
            run.main(args(tmp_path, **change))
    assert {path: path.read_bytes() for path in folder.glob("*.*")} == before
    (folder / "harness" / "status.json").unlink()  # as if started by hand: with which flags is not known
    with pytest.raises(InputError, match=r"is a run with \{'flags': 'unknown'"):
        run.main(args(tmp_path))


def test_a_run_whose_script_changes_in_between_says_so(tmp_path):
    script = tmp_path / "own.py"
    script.write_text(Path(STEPS).read_text())
    folder, plan = tmp_path / "own" / "Task-v0" / "1", args(tmp_path, script=(str(script),), flags="--crash-at 200")
    assert run.main(plan) == 1
    first = status(folder)["code_sha256"]
    script.write_text(Path(STEPS).read_text() + "\n# a remark\n")
    assert run.main(plan) == 1 and status(folder)["code_sha256"] == first
    script.write_text(Path(STEPS).read_text().replace("the simulator", "it"))
    assert run.main(plan) == 1 and status(folder)["code_sha256"] == "changed while the run was made"


@linux
def test_a_harness_is_alone_and_when_it_is_killed_its_run_ends_and_goes_on_later(tmp_path):
    folder = tmp_path / RUN
    first = harness(tmp_path)
    wait_for((folder / "checkpoint.pt").exists)
    assert re.search(r"1 running\n.* running +\d+ +100000", said(tmp_path, "--status"), re.S)
    second = harness(tmp_path)
    error = f"error: {tmp_path} is in use by another benchmark: wait for it, or choose other --results\n"
    assert second.communicate() == ("", error) and second.returncode == 2
    first.kill()
    first.communicate()
    (child,) = started(folder)
    wait_for(lambda: not alive(child["pid"]), 5)
    assert status(folder)["state"] == "running", "nobody was left to write"
    assert re.search(r"1 stopped\n.* stopped +\d+ +100000", said(tmp_path, "--status"), re.S)
    again = harness(tmp_path)
    wait_for(lambda: len(started(folder)) == 2)
    again.send_signal(signal.SIGINT)
    output, _ = again.communicate(timeout=30)
    assert again.returncode == 130 and "stopped: interrupted; the same command continues" in output
    assert started(folder)[1]["start"] >= 100 and not alive(started(folder)[1]["pid"])
    assert (status(folder)["state"], status(folder)["failures"]) == ("stopped", 0) and status(folder)["seconds"] >= 1


@linux
def test_a_run_that_is_killed_failed_and_goes_on_when_the_command_is_repeated(tmp_path):
    folder = tmp_path / RUN
    first = harness(tmp_path, "--total-timesteps", "300")
    wait_for((folder / "checkpoint.pt").exists)
    os.kill(started(folder)[0]["pid"], signal.SIGKILL)
    first.communicate(timeout=30)
    assert first.returncode == 1 and status(folder)["state"] == "failed"
    assert status(folder)["stderr_tail"] == "killed by SIGKILL\n" and status(folder)["exit_code"] == -9
    assert harness(tmp_path, "--total-timesteps", "300").wait(30) == 0
    assert status(folder)["state"] == "done" and started(folder)[1]["start"] >= 100
    rows = (folder / "eval.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["step", "100", "200", "300"]


@linux
def test_a_paused_benchmark_stands_still_goes_on_and_ends_with_its_harness(tmp_path):
    folder = tmp_path / RUN
    process = harness(tmp_path, "--flags=--delay 0.1")
    wait_for((folder / "checkpoint.pt").exists)
    assert "--resume goes on" in said(tmp_path, "--pause")
    time.sleep(2)
    step = run.reached(folder)
    time.sleep(2)
    assert run.reached(folder) == step
    assert said(tmp_path, "--resume") == "it goes on\n" and not list(tmp_path.glob(".pause*"))
    wait_for(lambda: run.reached(folder) > step)
    said(tmp_path, "--pause")
    time.sleep(2)
    process.kill()
    process.communicate()
    (child,) = started(folder)
    wait_for(lambda: not alive(child["pid"]), 5)


def test_no_run_begins_in_a_pause(tmp_path, monkeypatch):
    executor, begun = executors.Local(), []
    nothing = lambda *_: begun.append(True) or subprocess.Popen([sys.executable, "-c", ""])  # noqa: E731
    monkeypatch.setattr(executors, "launch", nothing)
    executor.pause(True)
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(executor.run, *run.plan(args(tmp_path)))
        time.sleep(0.3)
        assert not begun
        executor.pause(False)
        assert ended.result()[0] == 0 and begun


def test_the_clock_stands_still_in_a_pause(monkeypatch):
    executor, seen = executors.Local(), []
    for now in (10, 12, 20, 21, 25):
        monkeypatch.setattr(executors.time, "monotonic", lambda now=now: now)
        if now in (12, 21):
            executor.pause(now == 12)
        seen.append(executor.clock())
    assert seen == [10, 12, 12, 12, 16], "from 12 to 21 it was paused"
    assert executors.Ray.clock is not executors.Local.clock, "on a cluster the runs go on meanwhile"


def test_the_time_budget_stops_what_runs_and_begins_nothing(tmp_path, capsys):
    assert run.main(args(tmp_path, flags="--delay 60", seeds=("2",), jobs=1, time_budget=6 / 3600)) == 0
    assert "stopped: the time budget is used up" in capsys.readouterr().out
    begun, waiting = (tmp_path / "steps" / "Task-v0" / str(seed) for seed in (1, 2))
    assert status(begun)["state"] == "stopped" and status(waiting)["state"] == "waiting"
    assert not (waiting / "config.json").exists()


def test_a_full_disk_stops_the_benchmark_with_one_line_and_its_processes(tmp_path, monkeypatch):
    write, slow = run.write_atomically, tmp_path / "steps-slow" / "Task-v0" / "1"

    def full(path: Path, text: str) -> None:
        if '"done"' in text:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # as a write fails, without a name
        write(path, text)

    monkeypatch.setattr(run, "write_atomically", full)
    with pytest.raises(InputError, match=f"No space left on device: {tmp_path}; put it right, and the same command"):
        run.main(args(tmp_path, variant=("slow=--delay 60",), flags="--delay 0.5"))
    assert (tmp_path / RUN / "eval.csv").exists() and status(slow)["state"] == "stopped"
    assert not alive(started(slow)[0]["pid"])


def test_an_algorithm_is_stopped_at_a_checkpoint_and_continued_on_an_own_environment(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT / "tests")
    flags = "--no-compile --num-steps 32 --num-minibatches 1 --update-epochs 1 --eval-episodes 1 --checkpoint-every 256"
    plan = args(tmp_path, script=(), algorithms=("ppo",), tasks=("tiny_envs:Chain-v0",), total_timesteps=20_000)
    plan.flags = flags
    (job,) = run.plan(plan)
    begun = lambda: "seen" if (job.folder / "config.json").exists() else ""  # noqa: E731
    assert run.execute([job], executors.Local(), 1, tmp_path, watch=begun) == "seen"
    assert job.status["state"] == "stopped" and run.reached(job.folder) < 20_000
    assert run.main(plan) == 0
    assert status(job.folder)["state"] == "done" and len(started(job.folder)) == 2
    assert (job.folder / "eval.csv").read_text().splitlines()[-1].startswith("20000,")


@linux
def test_a_cluster_gives_runs_back_without_a_shared_disk_and_survives_the_loss_of_a_machine(tmp_path, capsys):
    ray = pytest.importorskip("ray", reason="ray is not installed: pip install -r requirements-extra.txt")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        cluster.add_node(num_cpus=1)
        plan = args(tmp_path, seeds=("2",), total_timesteps=1500, flags="--delay 0.8", jobs=None)
        jobs = run.plan(plan)
        with pytest.raises(InputError, match=r"--gpus 8: the cluster has 0; ask for less, or add some"):
            executors.Ray(cluster.address, 1, 8, 3, [])
        ray.shutdown()
        executor = executors.Ray(cluster.address, 1, 0, 3, [job.experiment.script for job in jobs])
        assert executor.slots == 2

        def lose_a_machine() -> str:
            if len(cluster.list_all_nodes()) == 2 and all((job.folder / "checkpoint.pt").exists() for job in jobs):
                assert all(job.status["state"] == "running" for job in jobs)
                cluster.remove_node(cluster.worker_nodes.copy().pop(), allow_graceful=False)
            return ""

        assert run.execute(jobs, executor, 2, tmp_path, watch=lose_a_machine) == ""
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert [job.status["state"] for job in jobs] == ["done", "done"]
    assert "its machine was lost" in capsys.readouterr().out
    starts = sorted([start["start"] for start in started(job.folder)] for job in jobs)
    assert starts[0] == [0], "the run on the other machine was left in peace"
    assert len(starts[1]) == 2 and starts[1][1] >= 100, "and this one went on from its last checkpoint"
    for job in jobs:
        rows = (job.folder / "eval.csv").read_text().splitlines()[1:]
        assert rows == [f"{step},0,{job.seed},9" for step in range(100, 1600, 100)]


def test_a_cluster_needs_ray(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"--executor ray needs Ray: pip install -r requirements-extra.txt"):
        run.main(args(tmp_path, executor="ray"))
    assert not list(tmp_path.iterdir())


def test_files_travel_whole_and_what_makes_a_run_of_them_last(tmp_path, monkeypatch):
    files = {"checkpoint.pt": b"1", "config.json": b"{}", "eval.csv": b"a\n", "harness/stderr.log": b""}
    executors.write_files(tmp_path, files)
    for name in (".lock", "harness/status.json", "checkpoint.pt.tmp"):
        (tmp_path / name).touch()
    sent = {}
    assert executors.files_of(tmp_path, sent) == files
    (tmp_path / "eval.csv").write_text("a\nb\n")
    assert [executors.files_of(tmp_path, sent) for _ in range(2)] == [{"eval.csv": b"a\nb\n"}, {}], "only what changed"
    written, replace = [], os.replace
    monkeypatch.setattr(executors.os, "replace", lambda old, new: written.append(new.name) or replace(old, new))
    executors.write_files(tmp_path, files)
    assert written[-1] == "config.json", "with it there is a run to resume, which needs a checkpoint"


def test_every_suite_evaluates_often_enough_gives_reasons_and_names_settings_that_exist():
    for name, members in SUITES.items():
        assert len({(e.label, e.env_id) for e in members}) == len(members), name
        for e in members:
            assert int(e.flags["eval-every"]) * 20 <= e.total_timesteps and e.script.is_file()
            assert e.reason or set(e.flags) == {"eval-every"}, f"{name}: {e} needs a reason"
            assert (e.algorithm in ALGORITHMS) != (e.algorithm in PEERS)
            body = next(n for n in ast.parse(e.script.read_text()).body if getattr(n, "name", "") == "Args").body
            fields = {n.target.id for n in body if isinstance(n, ast.AnnAssign)}
            known = {flag.removeprefix("no-").replace("-", "_") for flag in e.flags}
            assert known <= fields, f"{name}: {e.script.name} has no {known - fields}"
    runs = {name: sum(e.seeds for e in members) for name, members in SUITES.items()}
    assert runs == {"quick": 8, "on-policy": 230, "off-policy": 36, "fetch": 20, "peers": 27}
    assert {flag.replace("-", "_") for flag in run.PEERS_TAKE} < fields, "the last one's, a peer's"
