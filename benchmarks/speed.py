"""Speed of the scripts beside Stable-Baselines3's with as many environments, and where the time goes.

    python benchmarks/speed.py --output benchmarks/results/speed     # about 40 minutes on a quiet machine
    python benchmarks/speed.py --algorithms td3 --memory             # also a TD3 run's memory with a full replay
    python benchmarks/speed.py --algorithms td3 sac --gradients      # also what lower precision does to gradients
    pip install -r requirements-extra.txt                            # the peers; without them only our own figures

One thread each, in alternation (ours, theirs, ours, ...), each measurement in a fresh process, on HalfCheetah-v5
(her_ddpg: FetchPush-v4).
"""

from __future__ import annotations

import collections
import contextlib
import csv
import functools
import importlib
import importlib.metadata
import inspect
import io
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro
from records import write_atomically
from run import fail, hardware

ROOT = Path(__file__).resolve().parent.parent
ON_POLICY = ("reinforce", "a2c", "trpo", "ppo")
OFF_POLICY = ("ddpg", "td3", "sac")
LEARNING_STARTS = 304  # off-policy: steps with random actions, inside the warm-up
WARM_UP = {**dict.fromkeys(ON_POLICY, 24_576), **dict.fromkeys(OFF_POLICY, 1_000), "her_ddpg": 4_000}  # not counted
GUESS = {  # steps/s that set the length of a measurement: ours, theirs
    "reinforce": (9000, 6000), "a2c": (11000, 6000), "trpo": (8000, 5000), "ppo": (6500, 2500),
    "ddpg": (230, 140), "td3": (210, 130), "sac": (150, 85), "her_ddpg": (600, 320),
}  # fmt: skip
READING = (
    "Compilation, the first rollouts or updates, evaluation and checkpoints are not counted.",
    "Both sides use the same networks, batch size, rollout length in steps, normalisation, and numbers of updates per "
    "step and of epochs; the number of environments is our default (reinforce: 4, else 8), or 1, which is theirs.",
    "reinforce has no peer of its own and stands beside their A2C, which updates more often: every 128 steps, not "
    "after every four episodes.",
    "her_ddpg: theirs is DDPG with HerReplayBuffer, which does not normalise observations and moves its targets at "
    "every update.",
)


@dataclass
class Args:
    """What to measure."""

    algorithms: tuple[str, ...] = (*ON_POLICY, *OFF_POLICY, "her_ddpg")
    """Scripts to measure."""
    repeats: int = 3
    """Measurements of each side (>= 1); the median is reported."""
    seconds: float = 15.0
    """Length of one measurement, after warm-up (seconds, > 0)."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where both sides compute."""
    matmul_precision: Literal["highest", "high", "medium"] = "highest"
    """Our side's setting of this name; the peer's is highest, PyTorch's default."""
    memory: bool = False
    """Also measure TD3's memory with a full replay of 1M transitions (about 3 minutes)."""
    gradients: bool = False
    """Also measure the relative error of each loss's gradient, against float64, at each precision."""
    output: str | None = None
    """Also write OUTPUT.md, the measurements to OUTPUT.csv, and a bar chart of them to OUTPUT-peers.png."""


def script(algorithm: str) -> Any:
    """The algorithm's file as a module."""
    sys.path.insert(0, str(ROOT / "algorithms"))
    return __import__(algorithm)


def task(algorithm: str) -> str:
    """The environment that an algorithm is measured on."""
    return "FetchPush-v4" if algorithm == "her_ddpg" else "HalfCheetah-v5"


class Clock:
    """Self-time of calls: a call's seconds, less those of the timed calls inside it, added up by part."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = collections.Counter()
        self.spent_at_mark: dict[str, float] = {}
        self.inside: list[float] = []  # seconds in the timed calls of each call that is running, innermost last

    def time(self, owner: Any, name: str, part: str) -> None:
        """From now on add the calls of owner.name to a part."""
        function = getattr(owner, name)

        @functools.wraps(function)
        def call(*arguments: Any, **options: Any) -> Any:
            self.inside.append(0.0)
            start = time.perf_counter()
            result = function(*arguments, **options)
            seconds = time.perf_counter() - start
            self.spent[part] += seconds - self.inside.pop()
            if self.inside:
                self.inside[-1] += seconds
            return result

        setattr(owner, name, call)


def ours(algorithm: str, steps: int, device: str, precision: str, parts: bool = False) -> float | dict[str, float]:
    """Steps/s of our script over `steps` steps after the warm-up; or the microseconds of a vector step, by part."""
    module, clock, marks = script(algorithm), Clock(), []
    report = module.Run.report

    def marked(run: Any, info: dict[str, Any]) -> None:
        if run.envs.steps >= WARM_UP[algorithm]:  # before the report, whose last one evaluates
            marks.append((run.envs.steps, time.perf_counter()))
            if len(marks) == 1:
                clock.spent.clear()
            clock.spent_at_mark = dict(clock.spent)
        report(run, info)

    module.Run.report = marked
    if parts:
        from gymnasium.envs.mujoco import MujocoEnv

        agent = next(x for x in vars(module).values() if getattr(x, "__name__", "").lower() == algorithm)
        if algorithm == "her_ddpg":
            robots = importlib.import_module("gymnasium_robotics.envs.robot_env")
            clock.time(robots.MujocoRobotEnv, "_mujoco_step", "physics")
        clock.time(MujocoEnv, "do_simulation", "physics")
        clock.time(module.gym.vector.SyncVectorEnv, "step", "gymnasium")
        clock.time(module.VectorEnvs, "step", "VectorEnvs")
        clock.time(agent, "explore", "explore")
        clock.time(agent, "cycle" if algorithm == "her_ddpg" else "update", "update")
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(None):
        args = module.Args(
            env_id=task(algorithm), device=device, matmul_precision=precision, run_dir=f"{folder}/run",
            eval_every=10**9, eval_episodes=1, checkpoint_every=10**9,
        )  # fmt: skip
        if algorithm in OFF_POLICY:
            args.learning_starts = LEARNING_STARTS
        rollout = args.num_envs * getattr(args, "num_steps", 1)  # whole ones: a shorter last one would be compiled
        args.total_timesteps = -(-(WARM_UP[algorithm] + steps) // rollout) * rollout
        module.train(args)
    (first, t0), (last, t1) = marks[0], marks[-1]
    if not parts:
        return (last - first) / (t1 - t0)
    vector_steps = (last - first) / args.num_envs
    spent = {
        part: clock.spent_at_mark.get(part, 0.0) for part in ("physics", "gymnasium", "VectorEnvs", "explore", "update")
    }
    spent["rest"] = t1 - t0 - sum(spent.values())
    return {part: seconds / vector_steps * 1e6 for part, seconds in spent.items()}


def sb3(algorithm: str, steps: int, device: str, num_envs: int | None = None) -> float:
    """Steps/s of Stable-Baselines3 with the settings of our script, number of environments included; see READING."""
    import numpy as np
    import stable_baselines3 as peer
    import torch
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.noise import NormalActionNoise
    from stable_baselines3.common.vec_env import VecNormalize

    torch.set_num_threads(1)
    clock: list[tuple[int, float]] = []
    start = min(WARM_UP[algorithm], 6_144)
    num_envs = num_envs or script(algorithm).Args().num_envs

    class Clock(BaseCallback):
        """Time at the first step after the warm-up and at every step after it."""

        def _on_step(self) -> bool:
            if self.num_timesteps >= start:
                clock[1:] = [(self.num_timesteps, time.perf_counter())] if clock else []
                if not clock:
                    clock.append((self.num_timesteps, time.perf_counter()))
            return True

    if algorithm == "her_ddpg":
        importlib.import_module("gymnasium_robotics")  # registers the Fetch tasks
    envs = make_vec_env(task(algorithm), n_envs=num_envs)
    args = script(algorithm).Args()
    if algorithm in ON_POLICY:
        envs = VecNormalize(envs)
        if algorithm == "reinforce":  # beside A2C
            args = script("a2c").Args()
        rollout, batch = args.num_envs * args.num_steps // num_envs, args.num_envs * args.num_steps
        if algorithm == "ppo":
            model = peer.PPO("MlpPolicy", envs, n_steps=rollout, batch_size=batch // args.num_minibatches,
                             n_epochs=args.update_epochs, device=device)  # fmt: skip
        elif algorithm == "trpo":
            from sb3_contrib import TRPO

            model = TRPO(
                "MlpPolicy", envs, n_steps=rollout, batch_size=batch // args.num_minibatches, device=device,
                n_critic_updates=args.update_epochs, cg_max_steps=args.cg_max_steps,
            )  # fmt: skip
        else:
            model = peer.A2C("MlpPolicy", envs, n_steps=rollout, device=device)
    elif algorithm == "her_ddpg":
        steps_per_cycle = args.episodes_per_cycle * envs.get_attr("spec")[0].max_episode_steps
        model = peer.DDPG(
            "MultiInputPolicy", envs, learning_rate=args.learning_rate, batch_size=args.batch_size, gamma=args.gamma,
            tau=args.tau, learning_starts=args.learning_starts, train_freq=steps_per_cycle // num_envs,
            gradient_steps=args.updates_per_cycle, replay_buffer_class=peer.HerReplayBuffer,
            replay_buffer_kwargs={"n_sampled_goal": args.num_goals, "goal_selection_strategy": args.goal_strategy},
            action_noise=NormalActionNoise(np.zeros(4), args.exploration_noise * np.ones(4)),
            policy_kwargs={"net_arch": [256, 256, 256]}, device=device,
        )  # fmt: skip
    else:
        own = {"learning_rate": args.learning_rate}
        if algorithm == "sac":
            own["ent_coef"] = float(args.alpha)
        else:
            own["action_noise"] = NormalActionNoise(np.zeros(6), args.exploration_noise * np.ones(6))
        model = {"ddpg": peer.DDPG, "td3": peer.TD3, "sac": peer.SAC}[algorithm](
            "MlpPolicy", envs, batch_size=args.batch_size, learning_starts=LEARNING_STARTS, train_freq=1,
            gradient_steps=num_envs, policy_kwargs={"net_arch": [256, 256]}, device=device, **own,
        )  # fmt: skip
    model.learn(start + steps, callback=Clock())
    (first, t0), (last, t1) = clock
    return (last - first) / (t1 - t0)


def sb3_default(algorithm: str, steps: int, device: str) -> float:
    """Steps/s of Stable-Baselines3 with one environment, its default."""
    return sb3(algorithm, steps, device, num_envs=1)


def gradient_errors(algorithm: str) -> dict[str, list[float]]:
    """Relative error |g - g64| / |g64| of each loss's gradient on random data, at highest, high and medium precision.

    g64 is the gradient in float64; the loss is that of a new agent without compilation.
    """
    import gymnasium as gym
    import torch

    module = script(algorithm)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    obs, act, n = gym.spaces.Box(-9, 9, (17,)), gym.spaces.Box(-1, 1, (6,)), 256
    if algorithm == "her_ddpg":  # its spaces name the goal's places in the observation
        env = module.make_env(task(algorithm))
        obs, act = env.observation_space, env.action_space
    agent_class = next(x for x in vars(module).values() if getattr(x, "__name__", "").lower() == algorithm)
    agent = agent_class(obs, act, module.Args(device="cpu", compile=False))
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


def fresh(function: Any, *arguments: Any) -> Any:
    """Call the function in a new process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def cuda_is_available() -> bool:
    """Whether PyTorch finds a GPU."""
    import torch

    return torch.cuda.is_available()


def bfloat16() -> str:
    """Whether the CPU multiplies matrices in bfloat16, as Linux tells it."""
    flags = Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").exists() else []
    found = [flag for flag in ("amx_bf16", "avx512_bf16") if flag in flags]
    return f"which multiplies bfloat16 ({', '.join(found)})" if found else "which does not multiply bfloat16"


def installed(package: str) -> str | None:
    """Version of a package, None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def compare(algorithm: str, args: Args, peer: bool) -> dict[str, list[float]]:
    """Steps/s of our script and its peers, measured in alternation: side -> one figure per repeat."""
    sides = {"ours": ours} | ({"sb3": sb3, "sb3 with 1 env": sb3_default} if peer else {})
    rates: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(args.repeats):
        for side, measure in sides.items():
            steps = int(args.seconds * GUESS[algorithm][side != "ours"])
            precision = [args.matmul_precision] if side == "ours" else []
            rates[side].append(fresh(measure, algorithm, steps, args.device, *precision))
    return rates


def row(algorithm: str, rates: dict[str, list[float]]) -> str:
    """A line of the table: medians, and medians of the ratios of neighbouring measurements."""
    cells = [algorithm, task(algorithm)]
    for side in ("sb3", "sb3 with 1 env"):
        ratios = [a / b for a, b in zip(rates["ours"], rates.get(side, []), strict=False)]
        cells.append(f"**{statistics.median(ratios):.2f}**" if ratios else "-")
    for side in ("ours", "sb3", "sb3 with 1 env"):
        listed = ", ".join(f"{rate:.0f}" for rate in rates.get(side, []))
        cells.append(f"{statistics.median(rates[side]):.0f} ({listed})" if side in rates else "-")
    return f"| {' | '.join(cells)} |"


def draw(measured: Path, picture: Path) -> None:
    """Bars of each side's steps/s (medians) in a table of measurements that main wrote, as a png."""
    import matplotlib

    matplotlib.use("Agg")
    import pandas as pd

    table = pd.read_csv(measured).groupby(["algorithm", "side"], sort=False)["steps_per_second"].median().unstack()
    axes = table[::-1].plot.barh(logx=True, figsize=(8.3, 4.5), width=0.8, color=["#0072B2", "#E69F00", "#999999"])
    for bars in axes.containers:
        axes.bar_label(bars, fmt="%.0f", padding=3, fontsize=8)
    axes.set(xlabel="environment steps per second (logarithmic)", ylabel="", title="Speed on one thread")
    axes.set_xlim(right=1.5 * table.max().max())  # room for the longest bar's label
    axes.legend(["ours", "Stable-Baselines3, as many environments", "Stable-Baselines3, 1 environment"][: len(table.T)])
    axes.figure.tight_layout()
    axes.figure.savefig(picture, dpi=100)


def check(args: Args) -> None:
    """Exit with 2 and one line where an argument cannot work."""
    for name in args.algorithms:
        if name not in GUESS:
            fail(f"--algorithms {name} is not one of {', '.join(GUESS)}")
    if args.repeats < 1:
        fail(f"--repeats {args.repeats} is out of range: use at least 1")
    if not args.seconds > 0:
        fail(f"--seconds {args.seconds} is out of range: use more than 0")
    if args.output and not os.access(Path(args.output).parent, os.W_OK):
        fail(f"--output {args.output} cannot be written: choose another")
    if args.device == "cuda" and not fresh(cuda_is_available):
        fail("--device cuda was not found: use cpu")


def main(args: Args) -> None:
    """Measure in alternation, print as it goes, and write the files at the end."""
    check(args)
    os.environ["OMP_NUM_THREADS"] = "1"
    peer = bool(installed("stable-baselines3") and installed("sb3-contrib"))
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    lines: list[str] = []

    def say(line: str = "") -> None:
        print(line, flush=True)
        lines.append(line)

    packages = ("torch", "gymnasium", "mujoco", "stable-baselines3", "sb3-contrib")
    versions = ", ".join(f"{name} {installed(name) or 'not installed'}" for name in packages)
    say("# Speed\n")
    say(
        f"`{' '.join(['python', *sys.argv])}`, commit {commit.strip() or 'unknown'}, {hardware()}, {bfloat16()}; device"
    )
    python = f"Python {sys.version.split()[0]}, {versions}"
    say(f"{args.device}, matmul-precision {args.matmul_precision}, one thread, {python}.")
    say(f"Steps/s: median (each measurement of {args.seconds:g} s).\n")
    say("| algorithm | task | ours / SB3 | ours / SB3 with 1 env | ours | SB3 | SB3 with 1 env |")
    say(f"|---|---|{'---|' * 5}")
    rows = []
    for algorithm in args.algorithms:
        rates = compare(algorithm, args, peer)
        say(row(algorithm, rates))
        rows += [
            (algorithm, task(algorithm), args.matmul_precision, side, *x)
            for side in rates
            for x in enumerate(rates[side])
        ]
    say("\n" + "\n".join(f"- {note}" for note in READING))
    say("\n## Microseconds of a vector step (all environments once), each part without the parts inside it\n")
    for k, algorithm in enumerate(args.algorithms):
        steps = int(args.seconds * GUESS[algorithm][0])
        parts = fresh(ours, algorithm, steps, args.device, args.matmul_precision, True)
        if k == 0:
            say(f"| algorithm | {' | '.join(parts)} |\n|---|{'---|' * len(parts)}")
        say(f"| {algorithm} | {' | '.join(f'{x:.0f}' for x in parts.values())} |")
    if args.gradients:
        say("\n## Relative error of gradients against float64, new agent, 256 random rows\n")
        say("| algorithm | loss | highest | high | medium |\n|---|---|---|---|---|")
        for algorithm in args.algorithms:
            for loss, errors in fresh(gradient_errors, algorithm).items():
                say(f"| {algorithm} | {loss} | {' | '.join(f'{x:.1e}' for x in errors)} |")
    if args.memory:
        say()
        for env_id in ("HalfCheetah-v5", "Humanoid-v5"):
            megabytes = fresh(td3_memory, env_id)
            say(f"- td3 with a full replay of 1M transitions of {env_id}: {megabytes:.0f} MB resident at most")
    if args.output:
        table = io.StringIO()
        csv.writer(table, lineterminator="\n").writerows(
            [("algorithm", "env_id", "matmul_precision", "side", "repeat", "steps_per_second"), *rows]
        )
        write_atomically(Path(f"{args.output}.csv"), table.getvalue())
        write_atomically(Path(f"{args.output}.md"), "\n".join(lines) + "\n")
        draw(Path(f"{args.output}.csv"), Path(f"{args.output}-peers.png"))


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
