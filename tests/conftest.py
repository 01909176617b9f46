"""What the contract tests share: the algorithm files as modules, cheap settings for each, two ways to run them."""

import csv
import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

ROOT = Path(__file__).parent.parent
ON_POLICY = ["reinforce", "a2c", "ppo", "trpo"]
HAS_REPLAY = ["ddpg", "td3", "sac", "her_ddpg"]  # with --buffer-size, --batch-size, --learning-starts; continuous only
ALGORITHMS = [*ON_POLICY, *HAS_REPLAY]
AGENTS = {name: name.upper() for name in ALGORITHMS}
FIXED_ROLLOUTS = ["a2c", "ppo", "trpo"]  # learn after every num_envs x num_steps steps; REINFORCE after whole episodes
# for what the shared blocks, the same text everywhere, decide alone: one on-policy, one off-policy algorithm
of_shared_blocks = pytest.mark.parametrize("algorithm", ["ppo", "td3"])
REPLAY = {"learning_starts": 64, "batch_size": 16, "buffer_size": 2000}
ROLLOUTS = {"num_steps": 32}
CHEAP: dict[str, dict[str, Any]] = {  # settings with which a few hundred steps hold many gradient steps
    "reinforce": {"value_epochs": 2},
    "a2c": {"num_steps": 8},
    "ppo": ROLLOUTS | {"num_minibatches": 4, "update_epochs": 2},
    "trpo": ROLLOUTS,
    "ddpg": REPLAY,
    "td3": REPLAY,
    "sac": REPLAY,
    "her_ddpg": REPLAY | {"episodes_per_cycle": 1, "updates_per_cycle": 4, "clip_target": False},
}
CHEAP_RUN = {
    "device": "cpu", "compile": False, "eval_episodes": 2, "eval_every": 128, "checkpoint_every": 128, "log_every": 64,
    "total_timesteps": 256, "num_envs": 1, "env_id": "Reacher-v5",
}  # fmt: skip
FINISHED = {"env_id": "contract_envs:Success-v0", "num_envs": 4, "eval_episodes": 6, "seed": 3}


def load(algorithm: str) -> ModuleType:
    """The algorithm's file as a module of that name."""
    if algorithm not in sys.modules:
        spec = importlib.util.spec_from_file_location(algorithm, ROOT / "algorithms" / f"{algorithm}.py")
        sys.modules[algorithm] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[algorithm])
    return sys.modules[algorithm]


def task(algorithm: str, env_id: str) -> str:
    """The environment; for her_ddpg, which needs goals, its goal-conditioned form in contract_envs.py."""
    if algorithm != "her_ddpg" or "Goal" in env_id or env_id.startswith("Fetch"):
        return env_id
    return f"contract_envs:Goal{env_id.split(':')[-1]}"


def settings(algorithm: str, **changes: Any) -> Any:
    """Args of a cheap run."""
    values = CHEAP_RUN | CHEAP[algorithm] | changes
    return load(algorithm).Args(**values | {"env_id": task(algorithm, values["env_id"])})


def flags(algorithm: str, **changes: Any) -> list[str]:
    """The same as settings(), as command-line flags."""
    args, words = vars(settings(algorithm, **changes)), []
    for name in sorted({*CHEAP[algorithm], *CHEAP_RUN, *changes}):
        flag, value = name.replace("_", "-"), args[name]
        words += [f"--{'' if value else 'no-'}{flag}"] if isinstance(value, bool) else [f"--{flag}", str(value)]
    return words


def make_agent(algorithm: str, observation_space: Any, action_space: Any, **changes: Any) -> Any:
    """A fresh agent with cheap settings, its weights drawn from seed 0."""
    torch.manual_seed(0)
    agent_class = getattr(load(algorithm), AGENTS[algorithm])
    return agent_class(observation_space, action_space, settings(algorithm, **changes))


def train(algorithm: str, **changes: Any) -> Path:
    """Train in this process with cheap settings; returns the run folder."""
    return load(algorithm).train(settings(algorithm, **changes))


def learn(algorithm: str, folder: Path, env_id: str, steps: int, **changes: Any) -> Path:
    """Train on a small task, of tiny_envs.py unless it is Gymnasium's, without pauses; returns the run folder."""
    values = {"num_envs": 8, "eval_every": 10**9, "eval_episodes": 20, "log_every": 10**9, "checkpoint_every": 10**6}
    values |= {"learning_starts": 100, "batch_size": 32, "learning_rate": 3e-3} if algorithm in HAS_REPLAY else {}
    values |= {"env_id": env_id if env_id.endswith("v5") else f"tiny_envs:{env_id}", "total_timesteps": steps}
    return train(algorithm, **values | {"run_dir": str(folder / "run")} | changes)


def resume(algorithm: str, folder: Path, **changes: Any) -> Path:
    """Continue a run folder in this process, with the settings in it, as --resume does."""
    saved = json.loads((folder / "config.json").read_text())["args"]
    return load(algorithm).train(load(algorithm).Args(**saved | {"resume": str(folder)} | changes))


def start_script(algorithm: str, *words: str, cwd: Path, script: Path | None = None, **environ: str):
    """Start `python algorithm.py words...` in the folder cwd; the tests' own environments can be imported."""
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, str(script or ROOT / "algorithms" / f"{algorithm}.py"), *map(str, words)],
        cwd=cwd, env=os.environ | {"PYTHONPATH": path} | environ, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def run_script(algorithm: str, *words: str, cwd: Path, script: Path | None = None, **environ: str):
    """Run it to its end; returns a CompletedProcess with returncode, stdout and stderr."""
    process = start_script(algorithm, *words, cwd=cwd, script=script, **environ)
    out, err = process.communicate(timeout=200)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def rows(path: Path) -> list[dict[str, str]]:
    """A csv file as dictionaries."""
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def final_value(folder: Path, column: str = "return") -> float:
    """Mean over the episodes of the last evaluation."""
    table = rows(folder / "eval.csv")
    return float(np.mean([float(row[column]) for row in table if row["step"] == table[-1]["step"]]))


def logs(folder: Path) -> dict[str, bytes]:
    """The files that resuming must not change, byte for byte."""
    return {name: (folder / name).read_bytes() for name in ("eval.csv", "train.csv")}


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, byte for byte."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def snapshot_during(monkeypatch: pytest.MonkeyPatch, algorithm: str, folder: Path, at: dict[int, Path]) -> None:
    """Copy `folder` as it is on the disk just before steps `at` (counted over all environments), as a SIGKILL then
    would leave it."""
    module = load(algorithm)
    step = module.VectorEnvs.step

    def step_with_snapshot(envs, actions):
        if envs.cut_at < math.inf or algorithm == "reinforce":  # the training environments, not those of evaluations
            for wanted in [w for w in at if envs.steps >= w]:
                shutil.copytree(folder, at.pop(wanted))
        return step(envs, actions)

    monkeypatch.setattr(module.VectorEnvs, "step", step_with_snapshot)


def variant(algorithm: str, name: str, *changes: tuple[str, str], file: bool = True) -> ModuleType:
    """The algorithm's source with texts replaced, as a module of another name; file=False: as in a notebook."""
    path, module = ROOT / "algorithms" / f"{algorithm}.py", ModuleType(name)
    source = path.read_text()
    for old, new in changes:
        assert source.count(old) == 1, old
        source = source.replace(old, new)
    if file:
        module.__file__ = str(path)
    sys.modules[name] = module
    exec(compile(source, str(path), "exec"), vars(module))
    return module


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory):
    """finished(algorithm): the folder of a complete run with a success rate; tests must not change it."""
    made: dict[str, Path] = {}

    def run(algorithm: str) -> Path:
        if algorithm not in made:
            folder = tmp_path_factory.mktemp(algorithm) / "deep" / "run"
            made[algorithm] = train(algorithm, run_dir=str(folder), **FINISHED)
        return made[algorithm]

    return run


@pytest.fixture
def copied(tmp_path: Path):
    """A folder with copies of the files in algorithms/, and a function that doctors one of them."""
    folder = shutil.copytree(ROOT / "algorithms", tmp_path / "copied", ignore=shutil.ignore_patterns("__pycache__"))

    def doctor(file: str, old: str, new: str) -> None:
        text = (folder / file).read_text()
        assert old in text
        (folder / file).write_text(text.replace(old, new, 1))

    return folder, doctor


@pytest.fixture(params=ALGORITHMS)
def algorithm(request: pytest.FixtureRequest) -> str:
    """Name of an algorithm; the test runs once for each."""
    return request.param


@pytest.fixture
def command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    """command_line(algorithm, *words) -> (exit code, stdout, stderr) of the script's main, in this process."""

    def call(algorithm: str, *words: Any) -> tuple[int, str, str]:
        module = load(algorithm)
        monkeypatch.setattr(sys, "argv", [f"{algorithm}.py", *map(str, words)])
        capsys.readouterr()
        code = 0
        try:
            module.main(module.Args, getattr(module, AGENTS[algorithm]), module.train)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
        out, err = capsys.readouterr()
        return code, out, err

    return call


# ---- for the tests of the algorithms' mathematics --------------------------------------------------------------------

OBSERVATIONS = Box(-np.inf, np.inf, (3,), np.float32)
ACTIONS = {"continuous": Box(np.float32([-1, 0]), np.float32([1, 4])), "discrete": Discrete(3, start=2)}
by_space = pytest.mark.parametrize("space", ACTIONS.values(), ids=ACTIONS)


def rollout(agent: Any, t: int = 16, n: int = 8) -> list[torch.Tensor]:
    """s, a, r, s2, terminal, done, random but for the actions, which are the agent's."""
    torch.manual_seed(1)
    s, s2 = torch.randn(2, t, n, 3)
    a = agent.explore(s.flatten(0, 1)).unflatten(0, (t, n))
    done = (torch.rand(t, n) < 0.2).float()
    return [s, a, torch.randn(t, n), s2, done * (torch.rand(t, n) < 0.5), done]


@pytest.fixture
def double():
    """float64 everywhere, so that derivatives can be compared closely."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def assert_gradients(grads: dict[torch.nn.Parameter, torch.Tensor], loss: Callable[[], float]) -> None:
    """Each against finite differences along a random direction; with the fixture double."""
    for p, grad in grads.items():
        direction, values = torch.randn_like(p), []
        for move in (1e-6, -2e-6):
            p.data += move * direction
            values.append(loss())
        p.data += 1e-6 * direction
        slope = (values[0] - values[1]) / 2e-6
        assert (grad * direction).sum().item() == pytest.approx(slope, rel=1e-4, abs=1e-7)
