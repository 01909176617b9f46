"""The run folder: what is in it, and that an interrupted and resumed run leaves the same bytes as an uninterrupted one.

Interruption is tested in two ways: real processes killed by SIGKILL, and copies of the folder made while a run is going
on: such a copy is what a SIGKILL at that instant would leave behind.
"""

import hashlib
import json
import math
import multiprocessing
import os
import random
import re
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box

from conftest import (  # isort: skip
    AGENTS, ALGORITHMS, FINISHED, FIXED_ROLLOUTS, HAS_REPLAY, ON_POLICY, ROOT, contents, flags, load, logs, make_agent,
    of_shared_blocks, resume, rows, run_script, settings, snapshot_during, start_script, task, train,
)  # fmt: skip
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

COUNTDOWN, HIDDEN, ANT = (f"contract_envs:{name}-v0" for name in ("Countdown", "Hidden", "Ant20"))


def saved(folder: Path, name: str = "checkpoint") -> dict:
    """The run's checkpoint or policy, read without running any code in it."""
    return torch.load(folder / f"{name}.pt", weights_only=True)


def late(algorithm: str) -> dict[str, int]:
    """Settings with which there are few updates, where they do not matter."""
    return {"learning_starts": 200} if algorithm in HAS_REPLAY else {}


def countdown_episodes(algorithm: str, num_envs: int, total: int, segment: int = 128) -> list[tuple[str, str, str]]:
    """What train.csv must hold of Countdown, worked out without the algorithm: rows (step, return, length).

    Every segment begins with episode 0; what is unfinished at its end does not count. REINFORCE starts all environments
    anew for every batch, after they did so themselves, and finishes the last batch.
    """
    found, step, batches = [], 0, algorithm == "reinforce"
    while step < total:
        k, t, ret, end = int(batches), 0, 0.0, min((step // segment + 1) * segment, total)
        while step < end or (batches and t):
            t, step = t + 1, step + num_envs
            ret += k + t / 8
            if t == 3 + k % 4:
                found += [(str(step), str(ret), str(t))] * num_envs
                k, t, ret = k + 1 + batches, 0, 0.0
    return found


def episodes(folder: Path) -> list[tuple[str, ...]]:
    """The rows of train.csv."""
    return [tuple(row.values()) for row in rows(folder / "train.csv")]


# ---- what is in it ---------------------------------------------------------------------------------------------------


def test_files_and_config(algorithm: str, finished):
    folder, names = finished(algorithm), {path.name for path in finished(algorithm).iterdir()}
    assert {name for name in names if not name.startswith("events.out.tfevents.")} == {
        ".lock", "config.json", "checkpoint.pt", "policy.pt", "eval.csv", "train.csv", "metrics.csv",
    }  # fmt: skip
    config, script = json.loads((folder / "config.json").read_text()), ROOT / "algorithms" / f"{algorithm}.py"
    assert config["args"] == vars(settings(algorithm, run_dir=str(folder), **FINISHED))
    assert config["algorithm"] == algorithm and config["id"] and len(config["commands"]) == 1
    assert config["script_sha256"] == hashlib.sha256(script.read_bytes()).hexdigest()
    assert config["versions"]["torch"] == torch.__version__
    assert config["versions"]["gymnasium"] == gymnasium.__version__ and config["versions"]["python"]


def test_tables(algorithm: str, finished):
    folder = finished(algorithm)
    table = rows(folder / "eval.csv")
    assert list(table[0]) == ["step", "episode", "return", "length", "success"]
    steps = sorted({int(row["step"]) for row in table})
    assert len(steps) == 3 and steps[0] == 0 and 128 <= steps[1] < 200 and 256 <= steps[2] < 300
    assert [row["episode"] for row in table] == list("012345") * 3 and {row["success"] for row in table} == {"0", "1"}
    for row in [*table, *rows(folder / "train.csv")]:  # a lucky episode earns 100 more at every step
        assert (row["success"] == "1") == (float(row["return"]) > 100)
    assert list(rows(folder / "train.csv")[0]) == ["step", "return", "length", "success"]
    metrics, table = list(getattr(load(algorithm), AGENTS[algorithm]).metrics), rows(folder / "metrics.csv")
    assert list(table[0]) == ["step", "seconds", "steps_per_second", *metrics]
    assert int(table[-1]["step"]) == steps[2]
    if algorithm != "reinforce":
        every = 4 * settings(algorithm).num_steps if algorithm in FIXED_ROLLOUTS else 64
        assert [int(row["step"]) for row in table] == list(range(max(64, every), 257, max(64, every)))
    assert all(math.isfinite(float(table[-1][name])) for name in metrics), table[-1]
    seconds = [float(row["seconds"]) for row in table]
    assert seconds == sorted(seconds) and seconds[0] > 0 and all(float(row["steps_per_second"]) > 0 for row in table)


@pytest.mark.parametrize("num_envs, total", [(1, 250), (4, 256), (4, 250)])
def test_train_csv_holds_every_finished_episode(algorithm: str, num_envs: int, total: int, tmp_path):
    """Also where nothing divides; the last evaluation, metrics and checkpoint are at the end."""
    changes = late(algorithm) | {"eval_every": 96, "log_every": 90, "num_envs": num_envs, "total_timesteps": total}
    folder = train(algorithm, env_id=COUNTDOWN, run_dir=tmp_path / "run", **changes)
    assert episodes(folder) == countdown_episodes(algorithm, num_envs, total)
    end = saved(folder)["step"]
    assert end == (int(episodes(folder)[-1][0]) if algorithm == "reinforce" else -(-total // num_envs) * num_envs)
    for name in ("eval", "metrics"):
        assert rows(folder / f"{name}.csv")[-1]["step"] == str(end)
    before = logs(folder)
    with open(folder / "train.csv", "a") as file:  # later than the checkpoint: a run that is refused keeps it
        file.write("a row\n")
    with pytest.raises(load(algorithm).UserError, match=f"--total-timesteps 240: {end} steps are done"):
        resume(algorithm, folder, total_timesteps=240)
    assert logs(folder)["train.csv"] == before["train.csv"] + b"a row\n"
    resume(algorithm, folder)
    assert logs(folder) == before, "it is complete"
    resume(algorithm, folder, total_timesteps=300)
    assert all(logs(folder)[name].startswith(before[name]) for name in before)
    assert 300 <= saved(folder)["step"] < 330 and len(json.loads((folder / "config.json").read_text())["commands"]) == 3


@of_shared_blocks
def test_tensorboard_holds_the_tables(algorithm: str, tmp_path, monkeypatch):
    """Nothing that was logged up to the checkpoint is lost by resuming, nothing after it is there twice."""
    at = {40: tmp_path / "40", 200: tmp_path / "200"}
    snapshot_during(monkeypatch, algorithm, tmp_path / "run", dict(at))
    changes = {"env_id": "contract_envs:Success-v0", "eval_every": 32, "log_every": 32} | late(algorithm)
    train(algorithm, run_dir=tmp_path / "run", **changes)
    time.sleep(1.1)  # TensorBoard tells the writers of a folder apart by the second
    for folder in at.values():
        resume(algorithm, folder)
    for folder in (tmp_path / "run", *at.values()):
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
        want: dict[tuple[str, int], list[float]] = {}
        for log in ("train", "metrics", "eval"):
            for row in rows(folder / f"{log}.csv"):
                for name in row.keys() - {"step", "episode"}:
                    if row[name]:
                        want.setdefault((f"{log}/{name}", int(row["step"])), []).append(float(row[name]))
        logged = [(tag, e.step, e.value) for tag in events.Tags()["scalars"] for e in events.Scalars(tag)]
        assert sorted(x[:2] for x in logged) == sorted(want)
        np.testing.assert_allclose([x[2] for x in logged], [np.mean(want[x[:2]]) for x in logged], rtol=1e-6)


def test_what_is_saved(algorithm: str, finished):
    """Of an agent whose every parameter was trained; critics and targets are not part of the policy."""
    checkpoint, policy = saved(finished(algorithm)), saved(finished(algorithm), "policy")
    envs = load(algorithm).VectorEnvs(task(algorithm, "contract_envs:Success-v0"), 1)
    fresh = make_agent(algorithm, envs.observation_space, envs.action_space)
    for name, parameter in fresh.named_parameters():
        assert not torch.equal(parameter, checkpoint["agent"][name]), f"{name} was not trained"
    assert policy["step"] == checkpoint["step"]
    assert not any("critic" in name or "target" in name or "return" in name for name in policy["policy"])


def test_a_policy_is_below_1_mb(algorithm: str):
    args = vars(load(algorithm).Args()) | {"device": "cpu", "compile": False}
    a = make_agent(algorithm, Box(-np.inf, np.inf, (348,)), Box(-1, 1, (17,)), **args)  # Humanoid-v5, the largest task
    kept = [x.nbytes for name, x in a.state_dict().items() if not name.startswith(a.training_only)]
    assert 1e5 < sum(kept) < 0.99e6


@of_shared_blocks
def test_a_policy_of_other_networks_is_refused(algorithm: str, finished, command_line, tmp_path):
    """What act needs is never filled up with new weights."""
    path = shutil.copytree(finished(algorithm), tmp_path / "run") / "policy.pt"
    policy = saved(path.parent, "policy")
    name = next(name for name in policy["policy"] if name.endswith("weight"))
    weight = policy["policy"].pop(name)
    for changed, fault in (({}, "Missing key"), ({name: weight[1:]}, "size mismatch")):
        torch.save({"step": 1, "policy": policy["policy"] | changed}, path)
        code, out, err = command_line(algorithm, "--evaluate", path.parent)
        assert (code, out) == (2, "") and re.fullmatch(f"error: {path}: {fault}.*{name}.*Use the run's script\n", err)


@of_shared_blocks
def test_a_checkpoint_that_does_not_fit_the_script(algorithm: str, finished, command_line, tmp_path):
    """Other networks, an optimiser that the run did not have, another kind of file: refused, every log as it was."""
    folder = shutil.copytree(finished(algorithm), tmp_path / "run")
    state = saved(folder)
    with open(folder / "eval.csv", "a") as file:
        file.write("999,0,later than the checkpoint")
    agent, optimizer = state["agent"], next(name for name in state if name.endswith("optimizer"))
    name = next(name for name in agent if name.endswith("weight"))
    without = {key: value for key, value in state.items() if key != optimizer}
    other_networks, policy = state | {"agent": agent | {name: agent[name][1:]}}, saved(folder, "policy")
    old = state | {"logs": {"eval.csv": 152}}  # lengths, as they once were
    for fault, changed in ((name, other_networks), (optimizer, without), ("'agent'", policy), ("'int'", old)):
        torch.save(changed, folder / "checkpoint.pt")
        before = contents(folder)
        code, _, err = command_line(algorithm, "--resume", folder)
        wanted = f"error: {folder}/checkpoint.pt does not fit .*{fault}.*: use the script as it was\n"
        assert code == 2 and re.fullmatch(wanted, err), err
        assert contents(folder) == before


@of_shared_blocks
def test_a_checkpoint_is_read_when_nobody_else_can_write_it(algorithm: str, finished, tmp_path, monkeypatch):
    module, read, locked = load(algorithm), load(algorithm).read, []
    folder = shutil.copytree(finished(algorithm), tmp_path / "run")

    def watched(path: Path):
        if path.name == "checkpoint.pt":
            locked.append(module.FileLock(folder / ".lock", is_singleton=True).is_locked)
        return read(path)

    monkeypatch.setattr(module, "read", watched)
    resume(algorithm, folder)
    assert locked == [True]


@of_shared_blocks
def test_training_from_python_does_not_pass_over_evaluate(algorithm: str, finished, tmp_path):
    with pytest.raises(load(algorithm).UserError, match="load_policy"):
        train(algorithm, evaluate=str(finished(algorithm)), run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@of_shared_blocks
def test_the_header_grows_with_new_columns(algorithm: str, tmp_path):
    """As when an environment tells of successes only, or a metric is added before a resume."""
    told: list = []
    board = SimpleNamespace(add_scalar=lambda *x: told.append(x))
    run, write = SimpleNamespace(folder=tmp_path, tensorboard=board), load(algorithm).Run.write
    write(run, "train.csv", [{"step": 1, "return": 2.0}])
    write(run, "train.csv", [{"step": 2, "return": 3.0}, {"step": 2, "return": 3.5, "success": 1}])
    write(run, "train.csv", [{"return": 4.0, "step": 3}])
    table = (tmp_path / "train.csv").read_bytes().decode().split("\r\n")
    assert table == ["step,return,success", "1,2.0,", "2,3.0,", "2,3.5,1", "3,4.0,", ""]
    assert told[1:3] == [("train/return", 3.25, 2), ("train/success", 0.5, 2)]
    assert told[3:] == [("train/return", 4.0, 3), ("train/success", 0, 3)]
    summary = load(algorithm).summary([{"return": 3.0}, {"return": 3.0, "success": 1}])
    assert summary == "return 3.00 +- 0.00, success 0.50 +- 0.50"


@pytest.mark.parametrize("algorithm", HAS_REPLAY)
def test_a_checkpoint_holds_the_filled_rows_of_the_memory_alone(algorithm: str, tmp_path):
    folder = train(algorithm, run_dir=tmp_path / "run", total_timesteps=128, buffer_size=1_000_000)  # 100 MB
    assert (folder / "checkpoint.pt").stat().st_size < 2e7 and len(saved(folder)["memory"]["rows"]) == 128


def test_evaluations_are_alike_and_apart(algorithm: str, tmp_path, monkeypatch):
    """With a policy that stays, every evaluation gives the same numbers: training in between, and other training
    environments, leave them alone. They have environments of their own, made for evaluation."""
    module, made, evaluations = load(algorithm), [], []
    agent_class, make_env = getattr(module, AGENTS[algorithm]), module.make_env
    monkeypatch.setattr(agent_class, "update", lambda agent, *_: {})
    monkeypatch.setattr(agent_class, "cycle", lambda agent, *_: {}, raising=False)
    monkeypatch.setattr(module, "make_env", lambda *a, **k: made.append("evaluation" in k) or make_env(*a, **k))
    for num_envs in (1, 4):
        made.clear()
        folder = train(algorithm, env_id=ANT, num_envs=num_envs, run_dir=tmp_path / str(num_envs))
        assert made.count(True) == 2 and made.count(False) >= num_envs
        table = [(row["return"], row["length"]) for row in rows(folder / "eval.csv")]
        evaluations += zip(table[::2], table[1::2], strict=True)  # two episodes each
    assert len(evaluations) == 6 and len(set(evaluations)) == 1
    assert evaluations[0][0] != evaluations[0][1], "but the episodes of one evaluation differ"


@of_shared_blocks
@pytest.mark.parametrize(
    "changes, warned",
    [({"checkpoint_every": 96}, True), ({"checkpoint_every": 224}, False), ({"env_id": "Endless-v0"}, True)],
)
def test_a_line_about_short_segments(algorithm: str, changes, warned: bool, tmp_path, monkeypatch, capsys):
    """Less than 5 episodes for each environment (of 20 steps here), or no time limit; not with the defaults."""
    module = load(algorithm)
    args = module.Args(env_id="HalfCheetah-v5")
    assert args.checkpoint_every >= 5 * args.num_envs * gymnasium.spec(args.env_id).max_episode_steps
    monkeypatch.setattr(module.Run, "evaluate", lambda run: None)
    changes = {"env_id": "Countdown-v0", "total_timesteps": 448, "num_envs": 2} | changes
    changes["env_id"] = f"contract_envs:{changes['env_id']}"
    train(algorithm, run_dir=tmp_path / "run", **changes)
    assert len(re.findall("^note: .*--checkpoint-every", capsys.readouterr().out, re.MULTILINE)) == warned


# ---- exact resume ----------------------------------------------------------------------------------------------------

TASKS = [(a, e, n) for a in ALGORITHMS for e in (HIDDEN, ANT) for n in (1, 8)]
TASKS += [("her_ddpg", "FetchReach-v4", n) for n in (1, 8)]


@pytest.mark.parametrize("algorithm, env_id, n", TASKS)
def test_interrupted_run_continues_byte_for_byte(algorithm: str, env_id: str, n: int, tmp_path, monkeypatch):
    """In the first segment, at a checkpoint and between two; after an odd number of updates, for TD3's delay."""
    segment = {1: 61, 8: 416 if "Fetch" in env_id else 176}[n]
    changes = {"env_id": env_id, "num_envs": n, "checkpoint_every": segment, "total_timesteps": {1: 150, 8: 480}[n]}
    changes |= {"eval_every": 48 * n} | ({"noise": "ou"} if algorithm == "ddpg" else {})
    changes |= {"learning_starts": 30 * n} if algorithm in HAS_REPLAY else {}
    changes |= {"num_steps": 8} if algorithm in FIXED_ROLLOUTS else {}
    at = {step: tmp_path / str(step) for step in ((20, 61, 100) if n == 1 else (80, 440))}
    snapshot_during(monkeypatch, algorithm, tmp_path / "run", dict(at))
    train(algorithm, **changes, run_dir=tmp_path / "run")
    assert saved(tmp_path / str(20 if n == 1 else 80))["step"] == 0 and len(episodes(tmp_path / "run")) > 1
    for folder in at.values():
        resume(algorithm, folder)
        assert logs(folder) == logs(tmp_path / "run"), folder
        agents = [saved(f)["agent"] for f in (tmp_path / "run", folder)]
        assert all(torch.equal(x, agents[1][name]) for name, x in agents[0].items() if isinstance(x, torch.Tensor))


@pytest.mark.parametrize("algorithm, num_envs", [(a, 1 + 7 * (i % 2)) for i, a in enumerate(ALGORITHMS)])
def test_sigkill_at_random_instants(algorithm: str, num_envs: int, tmp_path, monkeypatch):
    """Real processes, killed anywhere from their start on, then let finish."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "tests"), str(ROOT / "algorithms")]))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch._dynamo", "contract_envs", "conftest", *ALGORITHMS])
    total = 2400 if algorithm in ON_POLICY else 500
    changes = {"num_envs": num_envs, "total_timesteps": total, "env_id": HIDDEN}
    changes |= {"checkpoint_every": total // 6, "eval_every": total // 9}

    def run(seconds: float | None, folder: Path) -> tuple[float, int]:
        """Start or resume a run and kill it after so many seconds; returns seconds and exit code."""
        start, changed = time.monotonic(), changes | {"run_dir": folder}
        resuming = (folder / "config.json").exists()
        what = {"target": resume, "args": [algorithm, folder]} if resuming else {"target": train, "args": [algorithm]}
        process = context.Process(**what, kwargs={} if resuming else changed)
        process.start()
        process.join(seconds)
        process.kill()
        process.join()
        return time.monotonic() - start, process.exitcode

    run(0, tmp_path / "none")  # starts the server, which takes seconds
    duration, code = run(None, tmp_path / "whole")
    assert code == 0
    codes = [run(random.uniform(0.1, 0.5) * duration, tmp_path / "killed")[1] for _ in range(3)]
    assert -9 in codes and set(codes) <= {0, -9}
    assert run(None, tmp_path / "killed")[1] == 0
    assert logs(tmp_path / "killed") == logs(tmp_path / "whole") and not list((tmp_path / "killed").glob("*.tmp"))


def test_sigkill_of_the_compiled_script(tmp_path):
    changes = {"env_id": HIDDEN, "num_envs": 4, "total_timesteps": 512, "compile": True, "eval_every": 64}
    whole = train("a2c", **changes, run_dir=tmp_path / "whole")
    process = start_script("a2c", *flags("a2c", **changes, run_dir="killed"), cwd=tmp_path)
    while process.poll() is None and not (tmp_path / "killed" / "config.json").exists():
        time.sleep(0.001)
    process.kill()
    process.communicate()
    assert process.returncode == -9
    result = run_script("a2c", "--resume", "killed", cwd=tmp_path)
    assert result.returncode == 0 and "error" not in result.stderr.lower(), result.stderr  # CUDA's builds may warn
    assert logs(tmp_path / "killed") == logs(whole)


@of_shared_blocks
def test_killed_while_writing_a_checkpoint(algorithm: str, tmp_path, monkeypatch):
    """Half a file under its temporary name, rows on the disk that are ahead of the checkpoint and one of them half."""
    folder, save, copies = tmp_path / "run", torch.save, []

    def save_with_snapshot(state, file):
        file.write(b"half a file")
        file.flush()
        copies.append(tmp_path / f"copy{len(copies)}")
        shutil.copytree(folder, copies[-1])
        file.seek(0)
        save(state, file)

    monkeypatch.setattr(torch, "save", save_with_snapshot)
    train(algorithm, env_id=HIDDEN, run_dir=folder, **late(algorithm))
    monkeypatch.undo()
    assert len(copies) == 6, "three policies and three checkpoints, the first of them at the start"
    assert rows(copies[4] / "eval.csv")[-1]["step"] < "256", "the policy first: the last rows say that all is done"
    for copy in copies:
        assert list(copy.glob("*.tmp"))
        if copy == copies[0]:  # there is no run yet, and the same command begins it
            train(algorithm, env_id=HIDDEN, run_dir=copy, **late(algorithm))
            continue
        for name in ("eval.csv", "train.csv", "metrics.csv"):
            with open(copy / name, "a") as file:
                file.write("223,0.5,half a ro")
        resume(algorithm, copy)
        assert logs(copy) == logs(folder) and not list(copy.glob("*.tmp"))
        tables = [rows(f / "metrics.csv") for f in (folder, copy)]
        for a, b in zip(*tables, strict=True):
            assert {name for name in a if a[name] != b[name]} <= {"seconds", "steps_per_second"}


@of_shared_blocks
def test_a_folder_that_was_moved_and_whose_logs_lost_rows(algorithm: str, tmp_path, monkeypatch):
    snapshot_during(monkeypatch, algorithm, tmp_path / "run", {200: tmp_path / "copy"})
    folder = train(algorithm, env_id=HIDDEN, run_dir=tmp_path / "run", **late(algorithm))
    shutil.move(folder, tmp_path / "elsewhere")
    copy = tmp_path / "copy"
    (copy / "notes.csv").write_text("my own")
    os.truncate(copy / "train.csv", (copy / "train.csv").stat().st_size - 1)
    (copy / "eval.csv").unlink()
    assert resume(algorithm, copy) == copy
    assert logs(copy) == logs(tmp_path / "elsewhere") and not folder.exists()
    assert (copy / "notes.csv").read_text() == "my own"


@of_shared_blocks
@pytest.mark.parametrize("step", [60, 200])
def test_ctrl_c_says_how_to_go_on(algorithm: str, step: int, command_line, tmp_path, monkeypatch):
    """From the last checkpoint, which may be that of the start."""
    module, uninterrupted = load(algorithm), train(algorithm, env_id=HIDDEN, run_dir=tmp_path / "whole")

    def interrupt(run, info, original=module.Run.report):
        original(run, info)
        if run.envs.steps >= step:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module.Run, "report", interrupt)
        code, out, err = command_line(algorithm, *flags(algorithm, env_id=HIDDEN, run_dir=tmp_path / "run"))
    assert code == 130 and "Traceback" not in err and f"--resume {tmp_path / 'run'}" in out
    assert out.startswith(f"{tmp_path / 'run'}: from step 0 on\n"), "the folder is told at once, for those who kill"
    assert out.splitlines()[-1].endswith("goes on from the last checkpoint")
    assert command_line(algorithm, "--resume", tmp_path / "run")[0] == 0
    assert logs(tmp_path / "run") == logs(uninterrupted)


@of_shared_blocks
def test_a_run_without_a_whole_episode_has_the_same_files_however_often_resumed(algorithm: str, tmp_path, monkeypatch):
    snapshot_during(monkeypatch, algorithm, tmp_path / "run", {100: tmp_path / "copy"})
    train(algorithm, checkpoint_every=32, run_dir=tmp_path / "run")  # Reacher's episodes have 50 steps
    resume(algorithm, tmp_path / "copy")
    assert logs(tmp_path / "run") == logs(tmp_path / "copy") and logs(tmp_path / "run")["train.csv"] == b""


# ---- seeds -----------------------------------------------------------------------------------------------------------


@of_shared_blocks
def test_the_seed_decides_the_generators_and_the_environments(algorithm: str, tmp_path, monkeypatch):
    """At the start of every segment, each with numbers of its own; initialisation and evaluation have others."""
    module = load(algorithm)
    step = module.VectorEnvs.step

    def watched(envs, actions):
        if envs.cut_at < math.inf and envs.steps % 128 == 0:  # the first step of a training segment
            starts[-1].append((torch.initial_seed(), envs.obs.tobytes()))
        return step(envs, actions)

    starts: list[list] = []
    monkeypatch.setattr(module.VectorEnvs, "step", watched)
    for run, seed in enumerate((1, 1, 2)):
        starts.append([])
        train(algorithm, seed=seed, run_dir=str(tmp_path / str(run)))
    assert starts[0] == starts[1] and len(starts[0]) == 2
    for part in (0, 1):
        assert len({x[part] for x in starts[0] + starts[2]}) == 4, "another seed and another segment, other numbers"
    initial = [(module.prepare(settings(algorithm, seed=seed)), torch.initial_seed())[1] for seed in (1, 1, 2)]
    assert initial[0] == initial[1] != initial[2] and initial[0] not in {x[0] for x in starts[0]}, "the weights"


# ---- numbers that are not, environments that break -------------------------------------------------------------------


def assert_good(folder: Path, step: int) -> None:
    """The last good checkpoint is kept."""
    agent = [x for x in saved(folder)["agent"].values() if isinstance(x, torch.Tensor)]
    assert saved(folder)["step"] == step and len(agent) > 10 and all(x.isfinite().all() for x in agent)


@pytest.mark.parametrize("what", ["reward", "observation", "crash"])
def test_an_environment_that_breaks(algorithm: str, what: str, tmp_path, command_line):
    """After 149 steps: one line for NaN, its own traceback for an exception."""
    changes = {"env_id": f"contract_envs:{what}-v0", "run_dir": tmp_path / "run", "checkpoint_every": 32}
    changes |= late(algorithm)
    if what == "crash":
        with pytest.raises(ValueError, match="the simulator broke"):
            command_line(algorithm, *flags(algorithm, **changes))
    else:
        code, out, err = command_line(algorithm, *flags(algorithm, **changes))
        assert code == 1 and re.fullmatch(rf"error: {what} became NaN or infinite at step 150\b.*\n", err), err
        assert "last good checkpoint is in" in out and "--resume" not in out, "which would end there again"
    assert_good(tmp_path / "run", 130 if algorithm == "reinforce" else 128)


@pytest.mark.parametrize("what, step", [("metric", 150), ("parameter", 256)])
def test_training_that_diverges(algorithm: str, what: str, step: int, tmp_path, command_line, monkeypatch):
    """The learning itself breaks after the first checkpoint, or just before the second; the message names what."""
    module = load(algorithm)
    metric = next(iter(getattr(module, AGENTS[algorithm]).metrics))

    def broken(run, info, report=module.Run.report):
        if run.envs.steps >= step and what == "parameter":
            next(run.agent.actor.parameters()).data.view(-1)[0] = math.nan
        report(run, info | {metric: math.inf} if run.envs.steps >= step and what == "metric" else info)

    monkeypatch.setattr(module.Run, "report", broken)
    changes = {"env_id": HIDDEN, "run_dir": tmp_path / "run", "eval_every": 1000, "total_timesteps": 384}
    code, _, err = command_line(algorithm, *flags(algorithm, **changes))
    name = metric if what == "metric" else r"actor\.\S+"
    assert code == 1 and re.fullmatch(rf"error: {name} became NaN or infinite at step \d+\b.*\n", err), err
    assert_good(tmp_path / "run", 130 if algorithm == "reinforce" else 128)


def test_every_algorithm_is_listed():
    """A new algorithm file must be added to ALGORITHMS, or nothing here looks at it."""
    assert sorted(ALGORITHMS) == sorted(path.stem for path in (ROOT / "algorithms").glob("*.py"))
