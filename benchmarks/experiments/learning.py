"""What the experiments that learn share: environments stepped side by side, runs of every seed, curves over them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import pandas as pd
import torch
from common import Args, curve, in_parallel, interval, plt
from torch import Tensor


class Envs:
    """n copies of an environment stepped together; an episode that ended starts anew in the same step.

    obs [n, obs] (float32) is where they are now, returns holds the undiscounted returns of the episodes that ended.
    """

    def __init__(self, env_id: str, n: int, seed: int, **kwargs: Any):
        same_step = gym.vector.AutoresetMode.SAME_STEP
        self.vector = gym.make_vec(env_id, n, "sync", vector_kwargs={"autoreset_mode": same_step}, **kwargs)
        self.spaces = self.vector.single_observation_space, self.vector.single_action_space
        self.returns: list[float] = []
        self.restart(seed)

    def restart(self, seed: int | None = None) -> Tensor:
        """Start a new episode in every environment; returns obs."""
        self.obs = torch.as_tensor(self.vector.reset(seed=seed)[0], dtype=torch.float32)
        self.running = np.zeros(self.vector.num_envs)
        return self.obs

    def step(self, actions: Tensor) -> list[Tensor]:
        """s2 [n, obs], the last state of an episode where one ended; r, terminal and done [n]; all are float32."""
        obs, r, terminal, truncated, info = self.vector.step(actions.numpy())
        s2, done = obs.copy(), terminal | truncated
        self.running += r
        for i in np.flatnonzero(done):
            s2[i] = info["final_obs"][i]
            self.returns.append(float(self.running[i]))
            self.running[i] = 0
        self.obs = torch.as_tensor(obs, dtype=torch.float32)
        return [torch.as_tensor(x, dtype=torch.float32) for x in (s2, r, terminal, done)]

    def play(self, act: Callable, gamma: float = 1.0) -> Tensor:
        """Discounted return [n] of the running episode of each environment, with the actions act(s)."""
        value, running, t = torch.zeros(len(self.obs)), torch.ones(len(self.obs)), 0
        while running.any():
            _, r, _, done = self.step(act(self.obs))
            value, running, t = value + gamma**t * running * r, running * (1 - done), t + 1
        return value


def rollout(agent: Any, envs: Envs, steps: int) -> list[Tensor]:
    """`steps` steps of all environments with the behaviour policy of an on-policy agent, as its `update` takes them.

    Returns s, a, r, s2, terminal, done, each [steps, n, ...].
    """
    rows = []
    for _ in range(steps):
        s, a = envs.obs, agent.explore(envs.obs)
        s2, r, terminal, done = envs.step(agent.actor.to_env(a))
        rows.append((s, a, r, s2, terminal, done))
    return [torch.stack(column) for column in zip(*rows, strict=True)]


def run(learn: Callable, name: str, seed: int, *settings: Any) -> list[dict[str, Any]]:
    """The rows that learn(name, seed, *settings) yields, with name and seed, which everything random follows from."""
    torch.manual_seed(seed)
    return [{"algorithm": name, "seed": seed} | row for row in learn(name, seed, *settings)]


def runs(args: Args, learn: Callable, names: Sequence[str], *settings: Any) -> pd.DataFrame:
    """The rows of all names and seeds."""
    tasks = [(learn, name, args.seed + k, *settings) for k in range(args.seeds) for name in names]
    return pd.DataFrame([row for rows in in_parallel(run, tasks) for row in rows])


def curves(axis: plt.Axes, frame: pd.DataFrame, y: str, **labels: str) -> None:
    """A line for each algorithm: mean of column y over the seeds at each step, with its 95 % interval and n."""
    for name, rows in frame.groupby("algorithm", sort=False):
        curve(axis, rows, "step", y, name)
    axis.set(**{"xlabel": "environment steps"} | labels)
    axis.locator_params(axis="x", nbins=6)  # more labels, of five or six digits, run into each other
    axis.legend(fontsize=8)


def over_seeds(values: Any) -> str:
    """Mean and 95 % confidence interval of one value per seed, for a sentence."""
    return "{:.3g} ({:.3g} to {:.3g})".format(*interval(list(values)))


def final(frame: pd.DataFrame, y: str, algorithm: str) -> str:
    """over_seeds of column y at the algorithm's last step."""
    rows = frame[frame.algorithm == algorithm]
    return over_seeds(rows[rows.step == rows.step.max()][y])
