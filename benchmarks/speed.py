"""Speed of the scripts, beside Stable-Baselines3 where it is installed, and TD3's share of what the machine can do.

    python benchmarks/speed.py                               # a quiet hour; with --seconds 8 a third of it
    python benchmarks/speed.py --algorithms td3 --memory     # also a TD3 run's memory with a full replay
    pip install stable-baselines3==2.9.2 sb3-contrib==2.9.2  # the peers; without them only our own figures are printed

One thread each, in alternation (ours, theirs, ours, ...), each measurement in a fresh process, on HalfCheetah-v5
(her_ddpg: FetchPush-v4).
"""

from __future__ import annotations

import contextlib
import csv
import importlib
import importlib.metadata
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
from typing import Any

import tyro
from records import write_atomically
from run import fail, hardware

ROOT = Path(__file__).resolve().parent.parent
ON_POLICY = ("reinforce", "a2c", "trpo", "ppo")
OFF_POLICY = ("ddpg", "td3", "sac")
LEARNING_STARTS = 304  # off-policy: steps with random actions, inside the warm-up
WARM_UP = 1_000  # off-policy: steps that are not counted; HER: its first updates follow some episodes
READING = (
    "Compilation, the first rollouts or updates, evaluation and checkpoints are not counted.",
    "Both sides use the same networks, batch size, rollout length in steps, normalisation, and numbers of updates per "
    "step and of epochs. The peers are measured with one environment, which is their default, and with the 8 "
    "environments of ours (reinforce: 4).",
    "reinforce has no peer of its own and stands beside their A2C, which updates more often: every 128 steps, not "
    "after every four episodes.",
    "her_ddpg: theirs is DDPG with HerReplayBuffer, which does not normalise observations and moves its targets at "
    "every update.",
)
GUESS = {  # steps/s that set the length of a measurement: ours, theirs
    "reinforce": (8000, 1400), "a2c": (6000, 1400), "trpo": (7000, 2200), "ppo": (6000, 1600),
    "ddpg": (180, 130), "td3": (150, 110), "sac": (110, 80), "her_ddpg": (600, 400),
}  # fmt: skip


@dataclass
class Args:
    """What to measure."""

    algorithms: tuple[str, ...] = (*ON_POLICY, *OFF_POLICY, "her_ddpg")
    """Scripts to measure."""
    repeats: int = 3
    """Measurements of each side (>= 1); the median is reported."""
    seconds: float = 30.0
    """Length of one measurement, after warm-up (seconds, > 0)."""
    device: str = "cpu"
    """Where both sides compute: cpu or cuda."""
    memory: bool = False
    """Also measure TD3's memory with a full replay of 1M transitions (about 3 minutes)."""
    output: str | None = None
    """Also write the table to this file (markdown)."""


def script(algorithm: str) -> Any:
    """The algorithm's file as a module."""
    sys.path.insert(0, str(ROOT / "algorithms"))
    return __import__(algorithm)


def task(algorithm: str) -> str:
    """The environment that an algorithm is measured on."""
    return "FetchPush-v4" if algorithm == "her_ddpg" else "HalfCheetah-v5"


def warm_up(algorithm: str) -> int:
    """Steps that are not counted."""
    return WARM_UP if algorithm in OFF_POLICY else 4_000 if algorithm == "her_ddpg" else 24_576  # 3 long rollouts


def ours(algorithm: str, steps: int, device: str) -> float:
    """Steps/s of our script over `steps` steps after the warm-up, from its own metrics.csv."""
    module = script(algorithm)
    with tempfile.TemporaryDirectory() as folder:
        args = module.Args(
            env_id=task(algorithm),
            device=device,
            run_dir=f"{folder}/run",
            eval_every=10**9,
            eval_episodes=1,
            checkpoint_every=10**9,
            log_every=100 if algorithm in OFF_POLICY else 1000,
        )
        if algorithm in OFF_POLICY:
            args.learning_starts = LEARNING_STARTS
        rollout = args.num_envs * getattr(args, "num_steps", 1)  # whole ones: a shorter last one would be compiled
        args.total_timesteps = -(-(warm_up(algorithm) + steps) // rollout) * rollout
        with contextlib.redirect_stdout(None):
            module.train(args)
        with open(f"{folder}/run/metrics.csv") as file:
            rows = [(int(row["step"]), float(row["seconds"])) for row in csv.DictReader(file)]
    (first, t0), (last, t1) = next(row for row in rows if row[0] >= warm_up(algorithm)), rows[-1]
    return (last - first) / (t1 - t0)


def sb3_8_envs(algorithm: str, steps: int, device: str) -> float:
    """Steps/s of Stable-Baselines3 with 8 environments, which is not its default but ours."""
    return sb3(algorithm, steps, device, num_envs=8)


def sb3(algorithm: str, steps: int, device: str, num_envs: int = 1) -> float:
    """Steps/s of Stable-Baselines3 with the settings of our script; see READING."""
    import numpy as np
    import stable_baselines3 as peer
    import torch
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.noise import NormalActionNoise
    from stable_baselines3.common.vec_env import VecNormalize

    torch.set_num_threads(1)
    clock: list[tuple[int, float]] = []
    start = min(warm_up(algorithm), 6_144)

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


def her_shares(steps: int, device: str) -> tuple[float, float]:
    """Shares of her_ddpg's time that are spent in the environments, and in updates and sampling.

    Counted from the first update on; evaluation and checkpoints are switched off as in `ours`.
    """
    module = script("her_ddpg")
    spent = {"step": 0.0, "update": 0.0}
    clock: list[float] = []  # when counting began, and the last report

    def timed(name: str, function: Any) -> Any:
        def call(self: Any, *arguments: Any) -> Any:
            start = time.perf_counter()
            result = function(self, *arguments)
            if clock:
                spent[name] += time.perf_counter() - start
            return result

        return call

    report = module.Run.report

    def reported(self: Any, info: dict) -> None:
        report(self, info)
        if clock or self.envs.steps >= warm_up("her_ddpg"):
            clock[min(len(clock), 1) :] = [time.perf_counter()]

    module.VectorEnvs.step = timed("step", module.VectorEnvs.step)
    module.HER_DDPG.cycle = timed("update", module.HER_DDPG.cycle)
    module.HindsightReplay.sample = timed("update", module.HindsightReplay.sample)
    module.Run.report = reported
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(None):
        args = module.Args(
            env_id=task("her_ddpg"), total_timesteps=warm_up("her_ddpg") + steps, device=device,
            run_dir=f"{folder}/run", eval_every=10**9, eval_episodes=1, checkpoint_every=10**9,
        )  # fmt: skip
        module.train(args)
    seconds = clock[1] - clock[0]
    return spent["step"] / seconds, spent["update"] / seconds


def matrix_rate() -> float:
    """Float32 operations per second that one thread sustains over 2 seconds of products of 1024 x 1024 matrices."""
    import torch

    torch.set_num_threads(1)
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    products, start = 0, time.perf_counter()
    while time.perf_counter() < start + 2:
        a @ b
        products += 1
    return products * 2 * 1024**3 / (time.perf_counter() - start)


def td3_update_flops() -> float:
    """Float32 operations of one TD3 update (the mean of one with and one without the actor), counted by PyTorch."""
    import gymnasium as gym
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    td3, env = script("td3"), gym.make(task("td3"))
    args = td3.Args(device="cpu", compile=False)
    agent = td3.TD3(env.observation_space, env.action_space, args)
    n, obs, act = args.batch_size, env.observation_space.shape[0], env.action_space.shape[0]
    batch = torch.randn(n, obs), torch.rand(n, act), torch.randn(n), torch.randn(n, obs), torch.zeros(n)
    with FlopCounterMode(display=False) as counter:
        for _ in range(args.policy_delay):
            agent.update(*batch)
    return counter.get_total_flops() / args.policy_delay


def td3_memory() -> float:
    """Peak resident memory in MB of a TD3 run with a full replay of 1M HalfCheetah transitions, checkpoint included."""
    td3 = script("td3")
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(None):
        args = td3.Args(
            env_id=task("td3"), learning_starts=1_000_000, total_timesteps=1_000_400, device="cpu",
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


def installed(package: str) -> str | None:
    """Version of a package, None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def compare(algorithm: str, args: Args, peer: bool) -> tuple[list[str], list[float]]:
    """Measure our script and its peers in alternation: the cells of its row, and our figures one by one."""
    sides = {"ours": ours} | ({"sb3": sb3, "sb3_8_envs": sb3_8_envs} if peer else {})
    rates: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(args.repeats):
        for side, measure in sides.items():
            guess = GUESS[algorithm][side != "ours"]
            rates[side].append(fresh(measure, algorithm, int(args.seconds * guess), args.device))
    cells = [algorithm, task(algorithm)]
    for side in ("ours", "sb3", "sb3_8_envs"):
        listed = ", ".join(f"{rate:.0f}" for rate in rates.get(side, []))
        cells.append(f"{statistics.median(rates[side]):.0f} ({listed})" if side in rates else "-")
    for side in ("sb3", "sb3_8_envs"):
        ratios = [a / b for a, b in zip(rates["ours"], rates.get(side, []), strict=False)]
        cells.append(f"{statistics.median(ratios):.2f}" if ratios else "-")
    return cells, rates["ours"]


def check(args: Args) -> None:
    """Exit with 2 and one line where an argument cannot work."""
    for name in args.algorithms:
        if name not in GUESS:
            fail(f"--algorithms {name} is not one of {', '.join(GUESS)}")
    if args.repeats < 1:
        fail(f"--repeats {args.repeats} is out of range: use at least 1")
    if not args.seconds > 0:
        fail(f"--seconds {args.seconds} is out of range: use more than 0")
    if args.output and (Path(args.output).is_dir() or not os.access(Path(args.output).parent, os.W_OK)):
        fail(f"--output {args.output} cannot be written: choose another")
    if args.device not in ("cpu", "cuda"):
        fail(f"--device {args.device} is not one of cpu, cuda")
    if args.device == "cuda" and not fresh(cuda_is_available):
        fail("--device cuda was not found: use cpu")


def main(args: Args) -> None:
    """Measure in alternation, print as it goes, and write the file at the end."""
    check(args)
    os.environ["OMP_NUM_THREADS"] = "1"
    peer = bool(installed("stable-baselines3") and installed("sb3-contrib"))
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    lines: list[str] = []

    def say(line: str = "") -> None:
        print(line, flush=True)
        lines.append(line)

    versions = ", ".join(f"{name} {installed(name) or 'not installed'}" for name in
                         ("torch", "gymnasium", "mujoco", "stable-baselines3", "sb3-contrib"))  # fmt: skip
    say("# Speed")
    say()
    command = " ".join(["python", *sys.argv])
    say(f"`{command}`, commit {commit.strip() or 'unknown'}, {hardware()}, device {args.device}, one thread,")
    say(f"Python {sys.version.split()[0]}, {versions}. Steps/s: median (each measurement of {args.seconds:g} s).")
    say()
    say("| algorithm | task | ours | SB3, 1 env | SB3, 8 envs | ours / SB3 | ours / SB3 with 8 envs |")
    say("|---|---|---|---|---|---|---|")
    notes = []
    for algorithm in args.algorithms:
        if algorithm == "her_ddpg":
            stepping, updating = fresh(her_shares, int(args.seconds * GUESS[algorithm][0]), args.device)
            notes.append(f"her_ddpg: {stepping:.0%} of the time is spent stepping the environments, {updating:.0%} in "
                         "sampling and updates")  # fmt: skip
        before = [fresh(matrix_rate) for _ in range(2)] if algorithm == "td3" else []
        cells, rates = compare(algorithm, args, peer)
        say(f"| {' | '.join(cells)} |")
        if algorithm == "td3" and args.device == "cpu":
            matrix, flops = statistics.median([*before, fresh(matrix_rate)]), fresh(td3_update_flops)
            notes.append(
                f"td3: an update takes {flops / 1e9:.3f} GFLOP; matrix products run at {matrix / 1e9:.0f} GFLOP/s, so "
                f"at most {matrix / flops:.0f} steps/s; ours reaches {statistics.median(rates) * flops / matrix:.0%}"
            )
    if args.memory:
        notes.append(f"td3 with a full replay of 1M transitions: {fresh(td3_memory):.0f} MB resident at most")
    say()
    for note in (*READING, *notes):
        say(f"- {note}")
    if args.output:
        write_atomically(Path(args.output), "\n".join(lines) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
