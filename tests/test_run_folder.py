"""The run folder: what is in it, and that an interrupted and resumed run leaves the same bytes as an uninterrupted one.

Interruption is tested in two ways: real processes killed by SIGKILL, and, for every task, copies of the folder made
while a run is going on: such a copy is what a SIGKILL at that instant would leave behind.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from conftest import (
    AGENTS,
    ALGORITHMS,
    FIXED_ROLLOUTS,
    HAS_REPLAY,
    MUJOCO_TASKS,
    ROOT,
    flags,
    load,
    logs,
    of_shared_blocks,
    resume,
    rows,
    run_script,
    settings,
    snapshot_during,
    start_script,
    train,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

COUNTDOWN = "contract_envs:Countdown-v0"


def checkpoint(folder: Path) -> dict:
    """The run's checkpoint, read without running any code in it."""
    return torch.load(folder / "checkpoint.pt", weights_only=True)


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """TensorBoard's values: tag -> [(step, value)]."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def countdown_episodes(num_envs: int, total: int) -> list[tuple[str, str, str]]:
    """What train.csv must hold of Countdown, worked out without the algorithm: rows (step, return, length)."""
    found, k, t, ret = [], 0, 0, 0.0
    for n in range(1, total // num_envs + 1):
        t += 1
        ret += k + t / 8
        if t == 3 + k % 4:
            found += [(str(n * num_envs), str(ret), str(t))] * num_envs
            k, t, ret = k + 1, 0, 0.0
    return found


# ---- what is in it ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cli_run(tmp_path_factory: pytest.TempPathFactory):
    """cli_run(algorithm): the folder of a run made by the script as a user starts it (once per algorithm)."""
    made: dict[str, Path] = {}

    def run(algorithm: str) -> Path:
        if algorithm not in made:
            folder = tmp_path_factory.mktemp(algorithm)
            words = flags(algorithm, run_dir="deep/er/run", num_envs=4, env_id="Hopper-v5", seed=3)
            result = run_script(algorithm, *words, cwd=folder)
            assert result.returncode == 0 and result.stderr == "", result.stderr
            made[algorithm] = folder / "deep" / "er" / "run"
            assert re.search(r"done: evaluation -?[\d.]+ at step 256; everything is in deep/er/run\n$", result.stdout)
        return made[algorithm]

    return run


def test_files(algorithm: str, cli_run):
    names = {path.name for path in cli_run(algorithm).iterdir()}
    assert names - {n for n in names if n.startswith("events.out.tfevents.")} == {
        "config.json", "checkpoint.pt", "eval.csv", "train.csv", "metrics.csv",
    }  # fmt: skip
    assert not list(cli_run(algorithm).rglob("*.tmp"))


def test_config(algorithm: str, cli_run):
    config = json.loads((cli_run(algorithm) / "config.json").read_text())
    module = load(algorithm)
    expected = settings(algorithm, run_dir="deep/er/run", num_envs=4, env_id="Hopper-v5", seed=3, device="cpu")
    if torch.cuda.is_available():
        expected.run.device = "cuda"
    want = {name: getattr(expected, name) for name in module.Args.__dataclass_fields__}
    assert config["args"] == want | {"run": vars(expected.run)}, "every argument, and nothing else"
    assert config["algorithm"] == algorithm
    (session,) = config["history"]
    script = ROOT / "algorithms" / f"{algorithm}.py"
    assert session["script_sha256"] == hashlib.sha256(script.read_bytes()).hexdigest()
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    assert session["git_commit"] == (git.stdout.strip() if git.returncode == 0 else None)
    assert session["device"] == expected.run.device
    assert session["versions"]["python"] == platform.python_version()
    assert session["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert session["versions"]["gymnasium"] == gymnasium.__version__
    assert session["versions"]["numpy"] == np.__version__
    assert session["versions"]["mujoco"]
    assert session["from_step"] == 0
    assert Path(session["command"][1]).name == script.name and "--env-id" in session["command"]


def test_eval_csv(algorithm: str, cli_run):
    table = rows(cli_run(algorithm) / "eval.csv")
    assert list(table[0]) == ["step", "episode", "return", "length"]
    steps = [int(row["step"]) for row in table]
    assert steps[:2] == [0, 0] and steps[-2:] == [256, 256] and [row["episode"] for row in table] == list("010101")
    assert steps[2:4] == [128, 128]
    for row in table:
        assert math.isfinite(float(row["return"])) and 1 <= int(row["length"]) <= 1000


def test_every_evaluation_has_the_same_start_seeds_and_its_own_environments(algorithm: str, tmp_path, monkeypatch):
    """With a learning rate of 0 the policy stays, so every evaluation gives the same numbers; training in between, and
    other training environments, leave them alone."""
    still = {"learning_rate": 0.0}
    if algorithm == "trpo":  # its policy's step has no learning rate
        still = {"max_kl": 0.0}
    if hasattr(module := load(algorithm), "RunningMoments"):
        monkeypatch.setattr(module.RunningMoments, "update", lambda self, x: None)
    evaluations = []
    for num_envs in (1, 4):
        folder = train(algorithm, num_envs=num_envs, run_dir=str(tmp_path / str(num_envs)), seed=4, **still)
        table = rows(folder / "eval.csv")
        for step in sorted({int(row["step"]) for row in table}):
            evaluations.append([(row["return"], row["length"]) for row in table if row["step"] == str(step)])
    assert len(evaluations) == 6
    assert evaluations[0] == evaluations[1] == evaluations[2]
    assert evaluations[0][0] != evaluations[0][1], "but the episodes of one evaluation differ"
    assert evaluations[3] == evaluations[4] == evaluations[5]


def test_success_column(algorithm: str, tmp_path):
    folder = train(algorithm, env_id="contract_envs:Success-v0", run_dir=str(tmp_path / "run"), eval_episodes=6)
    table = rows(folder / "eval.csv")
    assert list(table[0]) == ["step", "episode", "return", "length", "success"]
    assert len(table) == 3 * 6
    assert {row["success"] for row in table} == {"0", "1"}
    for row in table:  # a lucky episode earns 100 more at every step
        assert (row["success"] == "1") == (float(row["return"]) > 100)


@pytest.mark.parametrize("num_envs", [1, 4])
def test_train_csv_holds_every_finished_episode(algorithm: str, num_envs: int, tmp_path):
    folder = train(algorithm, env_id=COUNTDOWN, num_envs=num_envs, run_dir=str(tmp_path / "run"))
    table = rows(folder / "train.csv")
    assert list(table[0]) == ["step", "return", "length"]
    assert [tuple(row.values()) for row in table] == countdown_episodes(num_envs, 256)
    assert checkpoint(folder)["envs"]["steps"] == 256


def test_last_evaluation_and_checkpoint_where_nothing_divides(algorithm: str, tmp_path):
    folder = train(
        algorithm, env_id=COUNTDOWN, total_timesteps=250, eval_every=96, checkpoint_every=101, log_every=90,
        run_dir=str(tmp_path / "run"),
    )  # fmt: skip
    steps = [row["step"] for row in rows(folder / "eval.csv") if row["episode"] == "0"]
    assert steps == ["0", "96", "192", "250"]
    assert rows(folder / "metrics.csv")[-1]["step"] == "250"
    assert checkpoint(folder)["envs"]["steps"] == 250
    assert [tuple(row.values()) for row in rows(folder / "train.csv")] == countdown_episodes(1, 250)


def test_metrics_csv(algorithm: str, cli_run):
    table, module = rows(cli_run(algorithm) / "metrics.csv"), load(algorithm)
    agent_metrics = list(getattr(module, AGENTS[algorithm]).metrics)
    assert list(table[0]) == ["step", "seconds", "steps_per_second", *agent_metrics]
    rollout = 4 * settings(algorithm).num_steps if algorithm in FIXED_ROLLOUTS else 1
    assert [int(row["step"]) for row in table] == [s for s in range(64, 257, 64) if s % rollout == 0]
    for row in table:
        if algorithm in FIXED_ROLLOUTS or int(row["step"]) > 128:  # learning has started
            assert all(math.isfinite(float(row[name])) for name in agent_metrics), row
    seconds = [float(row["seconds"]) for row in table]
    assert seconds == sorted(seconds) and seconds[0] > 0
    assert all(float(row["steps_per_second"]) > 0 for row in table)


def assert_tensorboard_holds_the_tables(folder: Path) -> None:
    logged = scalars(folder)
    train_rows = [(int(row["step"]), float(row["return"])) for row in rows(folder / "train.csv")]
    evaluations: dict[int, list[float]] = {}
    for row in rows(folder / "eval.csv"):
        evaluations.setdefault(int(row["step"]), []).append(float(row["return"]))
    want = {"train/return": train_rows, "eval/return": [(step, np.mean(r)) for step, r in evaluations.items()]}
    table = rows(folder / "metrics.csv")
    for name in set(table[0]) - {"step", "seconds"}:
        want[f"metrics/{name}"] = [(int(row["step"]), float(row[name])) for row in table if row[name]]
    assert logged.keys() == {name for name, values in want.items() if values}
    for name, values in logged.items():
        assert [step for step, _ in values] == [step for step, _ in want[name]], name
        tolerance = 0.1 if name.endswith("per_second") else 0  # rounded in the table
        np.testing.assert_allclose(
            [v for _, v in values], [v for _, v in want[name]], rtol=1e-6, atol=tolerance, err_msg=name
        )


def test_tensorboard(algorithm: str, cli_run):
    assert_tensorboard_holds_the_tables(cli_run(algorithm))


@of_shared_blocks
def test_tensorboard_after_resume(algorithm: str, tmp_path, monkeypatch):
    """Nothing that was logged up to the checkpoint is lost, nothing after it is there twice."""
    at = {40: tmp_path / "40", 200: tmp_path / "200"}
    snapshot_during(monkeypatch, algorithm, tmp_path / "run", dict(at))
    train(algorithm, run_dir=str(tmp_path / "run"))
    for folder in at.values():
        resume(algorithm, folder)
        assert_tensorboard_holds_the_tables(folder)


def test_checkpoint_holds_the_trained_parameters(algorithm: str, cli_run):
    """Real gradient steps: every tensor that is learned differs from the initial one, and is finite."""
    module, folder = load(algorithm), cli_run(algorithm)
    args = settings(algorithm, env_id="Hopper-v5", num_envs=4, seed=3, device="cpu")
    module.prepare(args)
    envs = module.VectorEnvs(args.env_id, 4, 3)
    agent = getattr(module, AGENTS[algorithm])(envs.observation_space, envs.action_space, args)
    saved = checkpoint(folder)["agent"]
    names = [name for name, _ in agent.named_parameters()]
    assert len(names) >= 12
    for name, initial in agent.named_parameters():
        assert saved[name].shape == initial.shape and saved[name].isfinite().all()
        assert not torch.equal(saved[name], initial), f"{name} was not trained"


def test_compiled_learning_equals_eager(algorithm: str, tmp_path, monkeypatch):
    """Every gradient function is one graph, traced and differentiated as for the compiler, then run by eager kernels:
    all but the generated code is compared, over a whole run."""
    plain = train(algorithm, run_dir=str(tmp_path / "plain"))
    compiler = torch.compile
    traced = []

    def with_eager_kernels(function, **options):
        traced.append(function)
        return compiler(function, backend="aot_eager", **options)

    monkeypatch.setattr(torch, "compile", with_eager_kernels)
    compiled = train(algorithm, run_dir=str(tmp_path / "compiled"), compile=True)
    assert len(traced) >= 1 + (algorithm not in ("ppo", "a2c"))
    a, b = (checkpoint(folder)["agent"] for folder in (plain, compiled))
    for name in a:
        if isinstance(a[name], torch.Tensor):
            torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("algorithm", HAS_REPLAY)
def test_the_actors_gradient_is_asked_for_its_own_parameters_only(algorithm: str, monkeypatch):
    """No gradient of the critics' weights is computed on the way to the actor."""
    module, args = load(algorithm), settings(algorithm)
    module.prepare(args)
    envs = module.VectorEnvs(args.env_id, 2, 0)
    agent = getattr(module, AGENTS[algorithm])(envs.observation_space, envs.action_space, args)
    asked, grad = [], torch.autograd.grad

    def recorded(value, inputs):
        asked.append(inputs)
        return grad(value, inputs)

    monkeypatch.setattr(torch.autograd, "grad", recorded)
    s = torch.from_numpy(envs.obs)
    agent.actor_gradient(*((s, torch.zeros(2, *envs.action_space.shape)) if algorithm == "sac" else (s,)))
    ((*inputs,),) = asked
    assert {id(p) for p in inputs} == {id(p) for p in agent.actor.parameters()}


# ---- exact resume: every task ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_envs", [1, 4])
@pytest.mark.parametrize("env_id", [*MUJOCO_TASKS, "Pendulum-v1", "CartPole-v1"])
def test_interrupted_run_continues_byte_for_byte(algorithm: str, env_id: str, num_envs: int, tmp_path, monkeypatch):
    """Interrupted between two checkpoints, after gradient steps (an odd number of them, so that also what happens on
    every second one must go on in time); episodes end before and after."""
    if algorithm in HAS_REPLAY and env_id == "CartPole-v1":
        pytest.skip("discrete actions")
    module, make_env = load(algorithm), load(algorithm).make_env
    steps, cut = (112, 93) if env_id == "Pusher-v5" else (72, 61)  # of each environment: the whole run, the interrupted
    # episodes of at most 20 steps; two tasks have 100 and 50, too many only for REINFORCE, which updates after them
    if env_id not in ("Pusher-v5", "Reacher-v5") or algorithm == "reinforce":
        monkeypatch.setattr(module, "make_env", lambda name, **kw: make_env(name, max_episode_steps=20, **kw))
    changes = {
        "env_id": env_id, "num_envs": num_envs, "total_timesteps": steps * num_envs, "eval_every": 32 * num_envs,
        "checkpoint_every": 16 * num_envs, "run_dir": str(tmp_path / "run"), "eval_episodes": 2,
        **({"learning_starts": 23 * num_envs} if algorithm in HAS_REPLAY else {}),
        **({"num_steps": 16} if algorithm in FIXED_ROLLOUTS else {}),
        **({"episodes_per_update": num_envs} if algorithm == "reinforce" else {}),
    }  # fmt: skip
    snapshot_during(monkeypatch, algorithm, tmp_path / "run", {cut * num_envs: tmp_path / "copy"})
    uninterrupted = logs(train(algorithm, **changes))
    start = checkpoint(tmp_path / "copy")["envs"]["steps"] // num_envs
    assert start == cut // 16 * 16
    ends = [int(row["step"]) // num_envs for row in rows(tmp_path / "run" / "train.csv")]
    assert any(end > start for end in ends), "an episode must end after the checkpoint"
    resume(algorithm, tmp_path / "copy")
    assert logs(tmp_path / "copy") == uninterrupted
    agents = [checkpoint(folder)["agent"] for folder in (tmp_path / "run", tmp_path / "copy")]
    for name, value in agents[0].items():
        assert not isinstance(value, torch.Tensor) or torch.equal(value, agents[1][name]), name


@of_shared_blocks
def test_interrupted_before_the_first_checkpoint(algorithm: str, tmp_path, monkeypatch):
    """It starts again; the rows that were already written do not stay."""
    at = {0: tmp_path / "0", 100: tmp_path / "100"}
    snapshot_during(monkeypatch, algorithm, tmp_path / "run", dict(at))
    uninterrupted = logs(train(algorithm, run_dir=str(tmp_path / "run"), eval_every=64))
    for folder in at.values():
        assert not (folder / "checkpoint.pt").exists()
        resume(algorithm, folder)
        assert logs(folder) == uninterrupted


@of_shared_blocks
def test_rows_after_the_last_checkpoint_are_dropped(algorithm: str, tmp_path, monkeypatch):
    """The copy is made when the logs on the disk are ahead of the checkpoint, and more is written to their ends."""
    snapshot_during(monkeypatch, algorithm, tmp_path / "run", {230: tmp_path / "copy"})
    folder = train(
        algorithm, env_id=COUNTDOWN, checkpoint_every=96, log_every=32, eval_every=32, run_dir=str(tmp_path / "run")
    )
    steps = checkpoint(tmp_path / "copy")["envs"]["steps"]
    assert steps == 192 and max(int(row["step"]) for row in rows(tmp_path / "copy" / "eval.csv")) > steps
    for name in ("eval.csv", "train.csv", "metrics.csv"):
        with open(tmp_path / "copy" / name, "a") as file:
            file.write("223,0.5,half a ro")
    resume(algorithm, tmp_path / "copy")
    assert logs(tmp_path / "copy") == logs(folder)
    ignored = {"seconds", "steps_per_second"}
    tables = [rows(f / "metrics.csv") for f in (folder, tmp_path / "copy")]
    for a, b in zip(*tables, strict=True):
        assert {name for name in a if a[name] != b[name]} <= ignored


def test_checkpoints_do_not_change_the_run(algorithm: str, tmp_path):
    many = train(algorithm, env_id="Hopper-v5", checkpoint_every=8, run_dir=str(tmp_path / "many"))
    one = train(algorithm, env_id="Hopper-v5", checkpoint_every=10**6, run_dir=str(tmp_path / "one"))
    assert logs(many) == logs(one)


@of_shared_blocks
def test_killed_while_writing_a_checkpoint(algorithm: str, tmp_path, monkeypatch):
    """Half a checkpoint under its temporary name; the whole one before it is used, and no *.tmp stays."""
    folder, save = tmp_path / "run", torch.save
    copies = []

    def save_with_snapshot(state, file):
        save(state, file)
        end = file.tell()
        file.truncate(end // 2)
        file.flush()
        copies.append(tmp_path / f"copy{len(copies)}")
        shutil.copytree(folder, copies[-1])
        file.seek(0)
        save(state, file)

    monkeypatch.setattr(torch, "save", save_with_snapshot)
    train(algorithm, env_id="Hopper-v5", run_dir=str(folder))
    monkeypatch.undo()
    assert len(copies) == 2
    for copy in copies:
        assert (copy / "checkpoint.pt.tmp").stat().st_size > 1000
        resume(algorithm, copy)
        assert logs(copy) == logs(folder)
        assert not list(copy.glob("*.tmp"))


def test_resume_with_more_steps_trains_on(algorithm: str, tmp_path):
    folder = train(algorithm, env_id=COUNTDOWN, run_dir=str(tmp_path / "run"), num_envs=4)
    before = logs(folder)
    resume(algorithm, folder, total_timesteps=512)
    after = logs(folder)
    assert all(after[name].startswith(before[name]) and len(after[name]) > len(before[name]) for name in before)
    assert [tuple(row.values()) for row in rows(folder / "train.csv")] == countdown_episodes(4, 512)
    assert checkpoint(folder)["envs"]["steps"] == 512
    config = json.loads((folder / "config.json").read_text())
    assert config["args"]["total_timesteps"] == 512
    assert [session["from_step"] for session in config["history"]] == [0, 256]


@of_shared_blocks
def test_resume_after_the_folder_was_moved(algorithm: str, tmp_path, monkeypatch):
    snapshot_during(monkeypatch, algorithm, tmp_path / "run", {200: tmp_path / "copy"})
    folder = train(algorithm, run_dir=str(tmp_path / "run"))
    expected = logs(folder)
    shutil.rmtree(folder)
    shutil.move(tmp_path / "copy", tmp_path / "elsewhere")
    assert resume(algorithm, tmp_path / "elsewhere") == tmp_path / "elsewhere"
    assert logs(tmp_path / "elsewhere") == expected and not folder.exists()


@of_shared_blocks
def test_environment_that_cannot_be_saved(algorithm: str, tmp_path, monkeypatch, capsys):
    """It resumes with new episodes and says so in one line; each episode has 10 steps."""
    snapshot_during(monkeypatch, algorithm, tmp_path / "run", {205: tmp_path / "copy"})
    train(algorithm, env_id="contract_envs:Hidden-v0", run_dir=str(tmp_path / "run"), checkpoint_every=96)
    capsys.readouterr()
    resume(algorithm, tmp_path / "copy")
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("resume: ")]
    assert len(said) == 1 and "cannot be saved" in said[0] and "new episodes" in said[0]
    steps = [int(row["step"]) for row in rows(tmp_path / "copy" / "train.csv")]
    assert steps == [*range(10, 191, 10), *range(202, 257, 10)], "the checkpoint was at step 192"


# ---- exact resume: real processes ------------------------------------------------------------------------------------


def wait_for(process: subprocess.Popen, condition) -> None:
    """Until the condition holds or the process has ended."""
    limit = time.monotonic() + 120
    while process.poll() is None and not condition():
        assert time.monotonic() < limit
        time.sleep(0.001)


def kill(process: subprocess.Popen) -> None:
    """SIGKILL, and check that nothing was written to stderr before."""
    process.kill()
    assert process.communicate()[1] == ""


def written_evaluations(folder: Path) -> int:
    """Number of rows in eval.csv on the disk."""
    path = folder / "eval.csv"
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.parametrize(
    "algorithm, env_id, num_envs, compiled",
    [(a, "Hopper-v5", 1, False) for a in ALGORITHMS] + [(a, "Reacher-v5", 4, True) for a in ("ppo", "td3")],
)
def test_killed_and_resumed_processes(algorithm: str, env_id: str, num_envs: int, compiled: bool, tmp_path):
    """One run killed again and again: as soon as config.json is there, before the first checkpoint, after a checkpoint,
    while one is written; then let finish. The uninterrupted run is made by one process."""
    changes = {
        "env_id": env_id, "num_envs": num_envs, "total_timesteps": 768, "checkpoint_every": 128, "eval_every": 64,
        "compile": compiled, "device": "cpu",
    }  # fmt: skip
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    result = run_script(algorithm, *flags(algorithm, **changes, run_dir=whole), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    instants = [
        lambda: (killed / "config.json").exists(),
        lambda: written_evaluations(killed) >= 4,
        lambda: (killed / "checkpoint.pt").exists(),
        lambda: (killed / "checkpoint.pt.tmp").exists(),
    ]
    if compiled or algorithm not in ("ppo", "td3"):  # fewer starts: they take time, most of all where each compiles
        instants = instants[2:3]
    words, deaths = flags(algorithm, **changes, run_dir=killed), 0
    for reached in instants:
        process = start_script(algorithm, *words, cwd=tmp_path)
        wait_for(process, reached)
        deaths += process.poll() is None
        kill(process)
        words = ["--resume", killed]
    assert deaths >= 1
    result = run_script(algorithm, "--resume", killed, cwd=tmp_path)
    if result.returncode == 2 and "is complete" in result.stderr:
        assert deaths < len(instants), "it was killed and yet it is complete"
    else:
        assert result.returncode == 0 and result.stderr == "", result.stderr
    assert logs(killed) == logs(whole)
    assert not list(killed.glob("*.tmp"))


@of_shared_blocks
@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_stopped_by_signal(algorithm: str, number: signal.Signals, code: int, tmp_path, monkeypatch):
    """A checkpoint at once, a line that says how to go on, the customary exit code; then the same bytes."""
    changes = {"env_id": "Hopper-v5", "total_timesteps": 1024, "checkpoint_every": 10**6, "num_envs": 4}
    process = start_script(algorithm, *flags(algorithm, **changes, run_dir="run"), cwd=tmp_path)
    wait_for(process, lambda: written_evaluations(tmp_path / "run") >= 5)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (code, "")
    stopped = re.search(r"^stopped at step (\d+); to continue: python (\S+) (.+)$", out, re.MULTILINE)
    assert stopped, out
    assert 0 < checkpoint(tmp_path / "run")["envs"]["steps"] == int(stopped[1]) < 1024
    assert Path(stopped[2]).name == f"{algorithm}.py"
    monkeypatch.chdir(tmp_path)
    resume(algorithm, Path(stopped[3].removeprefix("--resume ")))
    whole = train(algorithm, **changes, run_dir=str(tmp_path / "whole"))
    assert logs(tmp_path / "run") == logs(whole)


# ---- numbers that are not --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("env_id", ["BrokenReward-v0", "BrokenObs-v0", "BrokenObsDiscrete-v0"])
def test_nan_stops_the_run(algorithm: str, env_id: str, tmp_path, command_line):
    """One line, an exit code that is not 0, and the checkpoint before it is good and can be evaluated."""
    if algorithm in HAS_REPLAY and "Discrete" in env_id:
        pytest.skip("discrete actions")
    words = flags(algorithm, env_id=f"contract_envs:{env_id}", run_dir=tmp_path / "run", checkpoint_every=32)
    code, out, err = command_line(algorithm, *words)
    assert code == 1 and re.fullmatch(
        r"error: .*NaN.*step 150.*last checkpoint is kept \(look into the environment\)\n", err
    ), err
    assert "Traceback" not in out
    saved = checkpoint(tmp_path / "run")
    assert saved["envs"]["steps"] == 128
    tensors = [value for value in saved["agent"].values() if isinstance(value, torch.Tensor)]
    assert len(tensors) > 10 and all(tensor.isfinite().all() for tensor in tensors)


@of_shared_blocks
@pytest.mark.parametrize("where", ["parameter", "metric"])
def test_diverged_training_keeps_the_last_good_checkpoint(algorithm: str, where: str, tmp_path, command_line):
    """The learning itself breaks, not the environment: the update just before a checkpoint leaves NaN behind."""
    module = load(algorithm)
    agent_class = getattr(module, AGENTS[algorithm])
    update = agent_class.update

    def broken(agent, *args):
        info = update(agent, *args)
        steps = broken.run.envs.steps
        if steps >= 192:
            if where == "metric":
                info = {name: torch.tensor(math.nan) for name in info}
            else:
                with torch.no_grad():
                    list(agent.parameters())[-1].fill_(math.nan)
        return info

    init = module.Run.__init__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.Run, "__init__", lambda self, *a, **k: setattr(broken, "run", self) or init(self, *a, **k))
        patch.setattr(agent_class, "update", broken)
        words = flags(
            algorithm, run_dir=tmp_path / "run", checkpoint_every=64, log_every=64 if where == "metric" else 1000
        )
        code, _, err = command_line(algorithm, *words)
    assert code == 1 and re.fullmatch(r"error: .*NaN.*checkpoint is kept.*\n", err), err
    saved = checkpoint(tmp_path / "run")
    assert saved["envs"]["steps"] == 128
    assert all(value.isfinite().all() for value in saved["agent"].values() if isinstance(value, torch.Tensor))


def test_every_algorithm_is_listed():
    """A new algorithm file must be added to ALGORITHMS, or nothing here looks at it."""
    assert sorted(ALGORITHMS) == sorted(path.stem for path in (ROOT / "algorithms").glob("*.py"))
