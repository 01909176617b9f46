"""Speed of the scripts beside Stable-Baselines3's with as many environments, and where the time goes.

    python benchmarks/speed.py --output benchmarks/results/speed     # about 40 minutes on a quiet machine
    python benchmarks/speed.py --algorithms td3 sac --gradients      # also what lower precision does to gradients
    python benchmarks/speed.py --algorithms td3 --memory             # also a TD3 run's memory with a full replay
    pip install -r requirements-extra.txt                            # the peers; without them only our own figures

One thread each, in alternation (ours, theirs, ours, ...), each measurement in a fresh process, on HalfCheetah-v5
(her_ddpg: FetchPush-v4).
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, Literal

import gymnasium as gym
import pandas as pd
import torch
import tyro
from executors import hardware
from gymnasium.envs.mujoco import MujocoEnv
from records import InputError, write_atomically
from run import fail, require_at_least, require_known
from suites import ROOT

ON_POLICY = ("reinforce", "a2c", "trpo", "ppo")
OFF_POLICY = ("ddpg", "td3", "sac")
LEARNING_STARTS = 304  # off-policy: steps with random actions, inside the warm-up
WARM_UP = {**dict.fromkeys(ON_POLICY, 24_576), **dict.fromkeys(OFF_POLICY, 1_000), "her_ddpg": 4_000}  # not counted
PEERS = {"sb3": None, "sb3 with 1 env": 1}  # side -> number of environments, None: as many as ours
COLUMNS = ["algorithm", "env_id", "matmul_precision", "side", "repeat", "steps_per_second"]
READING = """
- Compilation, the first rollouts or updates, evaluation and checkpoints are not counted.
- Both sides use the same networks, batch size, rollout length in steps, normalisation, and numbers of updates per \
step and of epochs; the number of environments is our default (reinforce: 4, else 8), or 1, which is theirs.
- reinforce has no peer of its own and stands beside their A2C, which updates more often: every 128 steps, not \
after every four episodes.
- her_ddpg: theirs is DDPG with HerReplayBuffer, which does not normalise observations and moves its targets at \
every update.
"""


@dataclass
class Args:
    """What to measure."""

    algorithms: tuple[str, ...] = (*ON_POLICY, *OFF_POLICY, "her_ddpg")
    """Scripts to measure."""
    repeats: int = 3
    """Measurements of each side (>= 1); the median is reported."""
    seconds: float = 15.0
    """Length of one measurement, after warm-up (seconds, >= 0.1)."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where both sides compute."""
    matmul_precision: Literal["highest", "high", "medium"] = "highest"
    """Our side's setting of this name; the peer's is highest, PyTorch's default."""
    gradients: bool = False
    """Also measure the relative error of each loss's gradient, against float64, at each precision."""
    memory: bool = False
    """Also measure TD3's memory with a full replay of 1M transitions (about 3 minutes)."""
    output: str | None = None
    """Also write OUTPUT.md, the measurements to OUTPUT.csv, and a bar chart of them to OUTPUT-peers.png."""


def script(algorithm: str) -> Any:
    """The algorithm's file as a module."""
    sys.path.insert(0, str(ROOT / "algorithms"))
    return importlib.import_module(algorithm)


def task(algorithm: str) -> str:
    """The environment that an algorithm is measured on."""
    return "FetchPush-v4" if algorithm == "her_ddpg" else "HalfCheetah-v5"


def clock(spent: Counter, owner: Any, name: str, part: str) -> None:
    """From now on add the seconds of the calls of owner.name to a part of `spent`."""
    function = getattr(owner, name)

    def timed(*arguments: Any, **options: Any) -> Any:
        start = time.perf_counter()
        result = function(*arguments, **options)
        spent[part] += time.perf_counter() - start
        return result

    setattr(owner, name, timed)


class TimeIsUp(Exception):
    """Ends a measurement."""


def ours(algorithm: str, args: Args) -> tuple[float, dict[str, float]]:
    """Steps/s of our script after the warm-up, and the microseconds of a vector step, by part."""
    module, spent, marks = script(algorithm), Counter(), []
    agent = getattr(module, algorithm.upper())
    if algorithm == "her_ddpg":
        robots = importlib.import_module("gymnasium_robotics.envs.robot_env")
        clock(spent, robots.MujocoRobotEnv, "_mujoco_step", "physics")
    clock(spent, MujocoEnv, "do_simulation", "physics")
    clock(spent, gym.vector.SyncVectorEnv, "step", "gymnasium")
    clock(spent, module.VectorEnvs, "step", "VectorEnvs")
    clock(spent, agent, "explore", "explore")
    clock(spent, agent, "cycle" if algorithm == "her_ddpg" else "update", "update")
    report = module.Run.report

    def marked(run: Any, info: dict[str, Any]) -> None:
        now = time.perf_counter()
        if run.envs.steps >= WARM_UP[algorithm]:
            marks.append((run.envs.steps, now, spent.copy()))
        if marks and now - marks[0][1] >= args.seconds:
            raise TimeIsUp
        report(run, info)

    module.Run.report = marked
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(None), contextlib.suppress(TimeIsUp):
        settings = module.Args(
            env_id=task(algorithm), device=args.device, matmul_precision=args.matmul_precision, run_dir=f"{folder}/run",
            total_timesteps=10**9, eval_every=10**9, eval_episodes=1, checkpoint_every=10**9,
        )  # fmt: skip
        if algorithm in OFF_POLICY:
            settings.learning_starts = LEARNING_STARTS
        module.train(settings)
    (first, t0, before), (last, t1, after) = marks[0], marks[-1]
    parts = {part: after[part] - before[part] for part in ("physics", "gymnasium", "VectorEnvs", "explore", "update")}
    parts["rest"] = t1 - t0 - parts["VectorEnvs"] - parts["explore"] - parts["update"]
    parts["VectorEnvs"] -= parts["gymnasium"]  # each without the one inside it
    parts["gymnasium"] -= parts["physics"]
    vector_steps = (last - first) / module.Args().num_envs
    return (last - first) / (t1 - t0), {part: seconds / vector_steps * 1e6 for part, seconds in parts.items()}


def peer_settings(algorithm: str, num_envs: int) -> tuple[str, dict[str, Any]]:
    """The peer of an algorithm and our script's settings for it, as in peers.SETTINGS; see READING."""
    peer = {"reinforce": "a2c", "her_ddpg": "ddpg"}.get(algorithm, algorithm)
    args = script(peer if algorithm in ON_POLICY else algorithm).Args()
    if algorithm in ON_POLICY:
        batch = args.num_envs * args.num_steps
        settings = {"normalize": True, "n_steps": batch // num_envs}
        if peer == "ppo":
            settings |= {"batch_size": batch // args.num_minibatches, "n_epochs": args.update_epochs}
        if peer == "trpo":
            settings |= {"batch_size": batch // args.num_minibatches, "n_critic_updates": args.update_epochs}
            settings |= {"cg_max_steps": args.cg_max_steps}
        return peer, settings | {"num_envs": num_envs}
    settings = {"num_envs": num_envs, "learning_rate": args.learning_rate, "batch_size": args.batch_size}
    settings |= {"ent_coef": float(args.alpha)} if peer == "sac" else {"noise": args.exploration_noise}
    if algorithm != "her_ddpg":
        settings |= {"train_freq": 1, "gradient_steps": num_envs, "learning_starts": LEARNING_STARTS}
        return peer, settings | {"policy_kwargs": {"net_arch": [256, 256]}}
    from stable_baselines3 import HerReplayBuffer

    cycle = args.episodes_per_cycle * gym.spec(task(algorithm)).max_episode_steps
    return peer, settings | {
        "policy": "MultiInputPolicy", "policy_kwargs": {"net_arch": [256, 256, 256]}, "gamma": args.gamma,
        "tau": args.tau, "learning_starts": args.learning_starts, "train_freq": cycle // num_envs,
        "gradient_steps": args.updates_per_cycle, "replay_buffer_class": HerReplayBuffer,
        "replay_buffer_kwargs": {"n_sampled_goal": args.num_goals, "goal_selection_strategy": args.goal_strategy},
    }  # fmt: skip


def sb3(algorithm: str, args: Args, num_envs: int | None) -> float:
    """Steps/s of Stable-Baselines3 after the warm-up, with our settings; num_envs None: as many as ours."""
    from peers import build
    from stable_baselines3.common.callbacks import BaseCallback

    start, marks = min(WARM_UP[algorithm], 6_144), []

    class Clock(BaseCallback):
        """Notes the time between rollouts (off-policy: between steps), and ends the training."""

        def _on_rollout_start(self) -> None:
            if self.model.num_timesteps >= start:
                marks.append((self.model.num_timesteps, time.perf_counter()))

        def _on_step(self) -> bool:
            return not marks or marks[-1][1] - marks[0][1] < args.seconds

    torch.set_num_threads(1)
    module = script(algorithm)
    module.make_env(task(algorithm)).close()  # registers the Fetch tasks
    name, settings = peer_settings(algorithm, num_envs or module.Args().num_envs)
    model = build(f"sb3-{name}", lambda: gym.make(task(algorithm)), settings, args.device)
    model.learn(10**9, callback=Clock())
    (first, t0), (last, t1) = marks[0], marks[-1]
    return (last - first) / (t1 - t0)


def gradient_errors(algorithm: str) -> dict[str, list[float]]:
    """Relative error |g - g64| / |g64| of each loss's gradient on random data, at highest, high and medium precision.

    g64 is the gradient in float64; the loss is that of a new agent without compilation.
    """
    module = script(algorithm)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    obs, act, n = gym.spaces.Box(-9, 9, (17,)), gym.spaces.Box(-1, 1, (6,)), 256
    if algorithm == "her_ddpg":  # its spaces name the goal's places in the observation
        env = module.make_env(task(algorithm))
        obs, act = env.observation_space, env.action_space
    agent = getattr(module, algorithm.upper())(obs, act, module.Args(device="cpu", compile=False))
    wide = {"s": obs.shape[0], "s2": obs.shape[0], "a": act.shape[0], "noise": act.shape[0], "eps": act.shape[0]}
    errors = {}
    without_data = {"alpha_loss"} | ({"value_loss"} if algorithm == "sac" else set())  # SAC has V on request only
    for name in (name for name in dir(agent) if name.endswith("loss") and name not in without_data):
        loss = getattr(agent, name)
        data = {x: torch.randn(n, wide[x]) if x in wide else torch.rand(n) for x in inspect.signature(loss).parameters}
        if "terminal" in data:
            data["terminal"] = (data["terminal"] > 0.9).float()
        if name == "surrogate_loss":  # TRPO's step needs no optimiser
            parameters = list(agent.actor.parameters())
        else:
            optimizer = getattr(agent, name.replace("loss", "optimizer"), None) or agent.optimizer
            parameters = optimizer.param_groups[0]["params"]

        def gradient(dtype: Any, loss: Any = loss, data: Any = data, parameters: Any = parameters) -> Any:
            agent.to(dtype)
            grads = torch.autograd.grad(loss(*(x.to(dtype) for x in data.values()))[0], parameters)
            return torch.cat([g.flatten().double() for g in grads])

        true, errors[name] = gradient(torch.float64), []
        for precision in ("highest", "high", "medium"):
            torch.set_float32_matmul_precision(precision)
            errors[name].append(float((gradient(torch.float32) - true).norm() / true.norm()))
        torch.set_float32_matmul_precision("highest")
    return errors


def td3_memory(env_id: str) -> float:
    """Peak resident memory in MB of a TD3 run with a full replay of 1M transitions, checkpoint included."""
    td3 = script("td3")
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(None):
        args = td3.Args(
            env_id=env_id, learning_starts=1_000_000, total_timesteps=1_000_400, device="cpu",
            run_dir=f"{folder}/run", eval_every=10**9, checkpoint_every=500_000,
        )  # fmt: skip
        td3.train(args)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def fresh(function: Callable, *arguments: Any) -> Any:
    """Call the function in a new process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def compare(algorithm: str, args: Args, peers: dict[str, int | None]) -> tuple[dict[str, list[float]], pd.Series]:
    """Measure ourselves and the peers in alternation: steps/s by side, one per repeat, and our median parts."""
    rates, parts = {side: [] for side in ("ours", *peers)}, []
    for _ in range(args.repeats):
        rate, split = fresh(ours, algorithm, args)
        rates["ours"].append(rate)
        parts.append(split)
        for side, num_envs in peers.items():
            rates[side].append(fresh(sb3, algorithm, args, num_envs))
    return rates, pd.DataFrame(parts).median()


def cells(rates: dict[str, list[float]]) -> list[str]:
    """Medians of the ratios of neighbouring measurements, and medians, one after the other for the table."""
    made = []
    for side in PEERS:
        ratios = [a / b for a, b in zip(rates["ours"], rates.get(side, []), strict=False)]
        made.append(f"**{median(ratios):.2f}**" if ratios else "-")
    for side in ("ours", *PEERS):
        listed = ", ".join(f"{rate:.0f}" for rate in rates.get(side, []))
        made.append(f"{median(rates[side]):.0f} ({listed})" if listed else "-")
    return made


def draw(measured: pd.DataFrame, picture: str) -> None:
    """Bars of each side's steps/s (medians) in the table of measurements, as a png."""
    import matplotlib

    matplotlib.use("Agg")
    table = measured.groupby(["algorithm", "side"], sort=False)["steps_per_second"].median().unstack()
    axes = table[::-1].plot.barh(logx=True, figsize=(8.3, 4.5), width=0.8, color=["#0072B2", "#E69F00", "#999999"])
    for bars in axes.containers:
        axes.bar_label(bars, fmt="%.0f", padding=3, fontsize=8)
    axes.set(xlabel="environment steps per second (logarithmic)", ylabel="", title="Speed on one thread")
    axes.set_xlim(right=1.5 * table.max().max())  # room for the longest bar's label
    axes.legend(["ours", "Stable-Baselines3, as many environments", "Stable-Baselines3, 1 environment"][: len(table.T)])
    axes.figure.tight_layout()
    axes.figure.savefig(picture, dpi=100)


def bfloat16() -> str:
    """Whether this CPU multiplies in bfloat16 at medium precision: its products then have three digits."""
    x = torch.randn(256, 256)
    torch.set_float32_matmul_precision("medium")
    error = float((x @ x - x.double() @ x.double()).norm() / x.norm() ** 2)
    torch.set_float32_matmul_precision("highest")
    return f"where medium multiplies in {'bfloat16' if error > 1e-5 else 'float32'}"


def main(args: Args) -> None:
    """Measure in alternation, print as it goes, and write the files at the end. Raises InputError."""
    require_known("algorithms", args.algorithms, WARM_UP)
    require_at_least(args, repeats=1, seconds=0.1)
    if args.output and not os.access(Path(args.output).parent, os.W_OK):
        raise InputError(f"--output {args.output} cannot be written: choose another")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda was not found: use cpu")
    os.environ["OMP_NUM_THREADS"] = "1"
    lines: list[str] = []

    def say(line: str) -> None:
        print(line, flush=True)
        lines.append(line)

    def say_row(*columns: Any) -> None:
        say(f"| {' | '.join(map(str, columns))} |")

    peers, packages = PEERS, ["torch", "gymnasium", "mujoco", "stable-baselines3", "sb3-contrib"]
    if importlib.util.find_spec("sb3_contrib") is None:
        print("no peers: Stable-Baselines3 is missing (pip install -r requirements-extra.txt)", file=sys.stderr)
        peers, packages = {}, packages[:3]
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    say("# Speed\n")
    command = f"`{' '.join(['python', *sys.argv])}`, commit {git.stdout.strip() or 'unknown'}"
    say(f"{command}, {hardware()}, {bfloat16()}; device")
    python = f"Python {sys.version.split()[0]}, {versions}"
    say(f"{args.device}, matmul-precision {args.matmul_precision}, one thread, {python}.")
    say(f"Steps/s: median (each measurement of {args.seconds:g} s).\n")
    say_row("algorithm", "task", "ours / SB3", "ours / SB3 with 1 env", "ours", "SB3", "SB3 with 1 env")
    say_row(*["---"] * 7)
    measured, split = [], {}
    for algorithm in args.algorithms:
        rates, split[algorithm] = compare(algorithm, args, peers)
        say_row(algorithm, task(algorithm), *cells(rates))
        for side in rates:
            about = algorithm, task(algorithm), args.matmul_precision, side
            measured += [(*about, repeat, rate) for repeat, rate in enumerate(rates[side])]
    say(READING)
    say("## Microseconds of a vector step (all environments once), each part without the parts inside it\n")
    table = pd.DataFrame(split).T
    say_row("algorithm", *table)
    say_row(*["---"] * (1 + len(table.T)))
    for algorithm, parts in table.iterrows():
        say_row(algorithm, *(f"{x:.0f}" for x in parts))
    if args.gradients:
        say("\n## Relative error of gradients against float64, new agent, 256 random rows\n")
        say_row("algorithm", "loss", "highest", "high", "medium")
        say_row(*["---"] * 5)
        for algorithm in args.algorithms:
            for loss, errors in fresh(gradient_errors, algorithm).items():
                say_row(algorithm, loss, *(f"{x:.1e}" for x in errors))
    for env_id in ("HalfCheetah-v5", "Humanoid-v5") if args.memory else ():
        megabytes = fresh(td3_memory, env_id)
        say(f"\ntd3 with a full replay of 1M transitions of {env_id}: {megabytes:.0f} MB resident at most")
    if args.output:
        measured = pd.DataFrame(measured, columns=COLUMNS)
        write_atomically(Path(f"{args.output}.csv"), measured.to_csv(index=False))
        write_atomically(Path(f"{args.output}.md"), "\n".join(lines) + "\n")
        draw(measured, f"{args.output}-peers.png")


if __name__ == "__main__":
    try:
        main(tyro.cli(Args, description=__doc__))
    except InputError as error:
        fail(str(error))
