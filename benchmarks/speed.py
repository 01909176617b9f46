"""Speed of the scripts, beside Stable-Baselines3 where it is installed, and TD3's share of what the machine can do.

    python benchmarks/speed.py                     # needs about 10 quiet minutes
    python benchmarks/speed.py --memory            # also the memory of a TD3 run with a full replay of 1M transitions
    pip install stable-baselines3==2.9.2           # the peer; without it only our own figures are printed

HalfCheetah-v5, one thread each, in alternation (ours, theirs, ours, ...), each measurement in a fresh process.
Compilation, the first rollouts or updates, evaluation and checkpoints are not counted. Both sides use the same
networks, batch size, rollout length, normalisation and update ratio. PPO's peer is measured as it comes, with one
environment (sb3), and with the 8 environments that our script uses (sb3_8_envs).
"""

from __future__ import annotations

import contextlib
import csv
import importlib.metadata
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

ROOT = Path(__file__).resolve().parent.parent
ENV_ID = "HalfCheetah-v5"


@dataclass
class Args:
    """What to measure."""

    algorithms: tuple[str, ...] = ("ppo", "td3")
    """Scripts to measure."""
    repeats: int = 3
    """Measurements of each side (>= 1); the median is reported."""
    seconds: float = 30.0
    """Length of one measurement, after warm-up (seconds, > 0)."""
    memory: bool = False
    """Also measure TD3's memory with a full replay of 1M transitions (about 3 minutes)."""


# Steps of warm-up that are not counted, and a first guess of steps/s that sets the length of a measurement.
WARM_UP = {"ppo": 3 * 2048, "td3": 400}
GUESS = {"ppo": {"ours": 6000, "sb3": 1600, "sb3_8_envs": 2500}, "td3": {"ours": 160, "sb3": 110}}
LEARNING_STARTS = 300  # TD3: steps with random actions, inside the warm-up


def ours(algorithm: str, steps: int) -> float:
    """Steps/s of our script over `steps` steps after the warm-up, from its own metrics.csv."""
    sys.path.insert(0, str(ROOT / "algorithms"))
    module = __import__(algorithm)
    with tempfile.TemporaryDirectory() as folder:
        run = module.RunArgs(
            device="cpu",
            run_dir=f"{folder}/run",
            eval_every=10**9,
            eval_episodes=1,
            checkpoint_every=10**9,
            log_every=100,
        )
        own = {"learning_starts": LEARNING_STARTS} if algorithm == "td3" else {}
        total = WARM_UP[algorithm] + steps
        total -= total % 2048 if algorithm == "ppo" else 0
        with contextlib.redirect_stdout(None):
            module.train(module.Args(env_id=ENV_ID, total_timesteps=total, run=run, **own))
        with open(f"{folder}/run/metrics.csv") as file:
            rows = [(int(row["step"]), float(row["seconds"])) for row in csv.DictReader(file)]
    (first, t0), (last, t1) = next(row for row in rows if row[0] >= WARM_UP[algorithm]), rows[-1]
    return (last - first) / (t1 - t0)


def sb3_8_envs(algorithm: str, steps: int) -> float:
    """Steps/s of Stable-Baselines3 with 8 environments, which is not its default but ours."""
    return sb3(algorithm, steps, num_envs=8)


def sb3(algorithm: str, steps: int, num_envs: int = 1) -> float:
    """Steps/s of Stable-Baselines3 with the same networks, batch, rollout length, normalisation and update ratio."""
    import numpy as np
    import stable_baselines3 as peer
    import torch
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.noise import NormalActionNoise
    from stable_baselines3.common.vec_env import VecNormalize

    torch.set_num_threads(1)
    clock: list[tuple[int, float]] = []

    class Clock(BaseCallback):
        """Time at the first step after the warm-up and at every step after it."""

        def _on_step(self) -> bool:
            if self.num_timesteps >= WARM_UP[algorithm]:
                clock[1:] = [(self.num_timesteps, time.perf_counter())] if clock else []
                if not clock:
                    clock.append((self.num_timesteps, time.perf_counter()))
            return True

    if algorithm == "ppo":
        envs = VecNormalize(make_vec_env(ENV_ID, n_envs=num_envs))
        model = peer.PPO("MlpPolicy", envs, n_steps=2048 // num_envs, batch_size=64, n_epochs=10, device="cpu")
    else:
        envs = make_vec_env(ENV_ID, n_envs=1)
        noise = NormalActionNoise(np.zeros(6), 0.1 * np.ones(6))
        model = peer.TD3(
            "MlpPolicy", envs, learning_rate=3e-4, batch_size=256, learning_starts=LEARNING_STARTS, train_freq=1,
            gradient_steps=1, action_noise=noise, policy_kwargs={"net_arch": [256, 256]}, device="cpu",
        )  # fmt: skip
    model.learn(WARM_UP[algorithm] + steps, callback=Clock())
    (first, t0), (last, t1) = clock
    return (last - first) / (t1 - t0)


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
    sys.path.insert(0, str(ROOT / "algorithms"))
    import gymnasium as gym
    import td3
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    env = gym.make(ENV_ID)
    args = td3.Args(run=td3.RunArgs(device="cpu", compile=False))
    agent = td3.TD3(env.observation_space, env.action_space, args)
    n, obs, act = args.batch_size, env.observation_space.shape[0], env.action_space.shape[0]
    batch = torch.randn(n, obs), torch.rand(n, act), torch.randn(n), torch.randn(n, obs), torch.zeros(n)
    with FlopCounterMode(display=False) as counter:
        for _ in range(args.policy_delay):
            agent.update(*batch)
    return counter.get_total_flops() / args.policy_delay


def td3_memory() -> float:
    """Peak resident memory in MB of a TD3 run with a full replay of 1M HalfCheetah transitions, checkpoint included."""
    sys.path.insert(0, str(ROOT / "algorithms"))
    import td3

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(None):
        run = td3.RunArgs(device="cpu", run_dir=f"{folder}/run", eval_every=10**9, checkpoint_every=500_000)
        td3.train(td3.Args(env_id=ENV_ID, learning_starts=1_000_000, total_timesteps=1_000_300, run=run))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def fresh(function: Any, *arguments: Any) -> Any:
    """Call the function in a new process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def installed(package: str) -> str | None:
    """Version of a package, None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def main(args: Args) -> None:
    """Measure in alternation and print."""
    os.environ["OMP_NUM_THREADS"] = "1"
    peer = installed("stable-baselines3")
    print(f"{ENV_ID}, one thread, torch {installed('torch')}, stable-baselines3 {peer or 'not installed'}")
    for algorithm in args.algorithms:
        sides = {"ours": ours}
        if peer:
            sides |= {"sb3": sb3, "sb3_8_envs": sb3_8_envs} if algorithm == "ppo" else {"sb3": sb3}
        rates: dict[str, list[float]] = {side: [] for side in sides}
        matrix: list[float] = []
        for _ in range(args.repeats):
            matrix.append(fresh(matrix_rate))
            for side, measure in sides.items():
                rates[side].append(fresh(measure, algorithm, int(args.seconds * GUESS[algorithm][side])))
        for side in sides:
            listed = ", ".join(f"{rate:.0f}" for rate in rates[side])
            print(f"{algorithm} {side}: {statistics.median(rates[side]):.0f} steps/s  (of {listed})")
        for side in list(sides)[1:]:
            ratios = [a / b for a, b in zip(rates["ours"], rates[side], strict=True)]
            print(
                f"{algorithm} ours / {side}: {statistics.median(ratios):.2f}  ({', '.join(f'{r:.2f}' for r in ratios)})"
            )
        if algorithm == "td3":
            flops = fresh(td3_update_flops)
            shares = [rate * flops / m for rate, m in zip(rates["ours"], matrix, strict=True)]
            best = statistics.median(matrix)
            print(
                f"td3 update: {flops / 1e9:.3f} GFLOP; matrix products {best / 1e9:.0f} GFLOP/s, "
                f"so at most {best / flops:.0f} steps/s; ours reaches {statistics.median(shares):.0%} of that"
            )
    if args.memory:
        print(f"td3 with a full replay of 1M transitions: {fresh(td3_memory):.0f} MB resident at most")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
