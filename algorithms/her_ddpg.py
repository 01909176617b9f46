"""HER-DDPG: Hindsight Experience Replay with DDPG, in one file.

Find the policy mu that maximises J = E[sum_t gamma^t r_t] for whatever goal g an episode is given. A state is the
concatenation s = achieved || g || observation. A transition whose goal was missed is replayed as if another goal g',
one that was reached, had been the goal.

    g'     = m(episode): what a later s2 of the same episode achieved              [HER.1]  goal strategy "future"
    r'     = r(achieved(s2), g')                                                   [HER.2]
    y      = clip(r + gamma (1 - terminal) Q'(s2, mu'(s2)), -1 / (1 - gamma), 0)   [HER.3]
    L(Q)   = mean (y - Q(s, a))^2                                                  [HER.4]
    L(mu)  = - mean Q(s, mu(s)) + c mean mu(s)^2, mu(s) in half action ranges      [HER.5]
    theta' <- (1 - tau) theta' + tau theta    once per cycle                       [HER.6]
    a      = clip(mu(s) + eps, low, high),    eps ~ N(0, sigma),                   [HER.7]  behaviour policy
             but uniformly random with probability random_eps

Symbols: mu = actor, Q = critic, primes of networks = *_target, c = action_l2, sigma = exploration_noise. terminal is
true termination only: a truncated episode is bootstrapped from its real last state. The noise is in half action ranges.

Goals are relabelled in a share k / (k + 1) of the drawn transitions, k = num_goals; the rest keep the goal they were
collected with. The slides instead store every transition once with its own goal and k times with goals g'. A uniform
draw from that memory gives a goal g' with the same probability k / (k + 1), and the same distribution of g'; but here
g' is drawn anew whenever the transition is, and memory holds the transition once.

Training goes in cycles: `episodes_per_cycle` episodes, counted over all environments, then `updates_per_cycle` updates
of actor and critic, then one step of the targets. With episodes of 50 steps the defaults make one update per 10
environment steps, whatever num_envs is.

Papers: Andrychowicz et al. (2017), "Hindsight Experience Replay", for the method and the cycle; Plappert et al. (2018),
"Multi-Goal Reinforcement Learning: Challenging Robotics Environments and Request for Research", for the networks and
all other settings.
Lecture: "Handling Continuous Action Space", slides "Hindsight Experience Replay (HER)", for DDPG "Deep Deterministic
Policy Gradient (DDPG)".

Deviations from the papers, each with its reason:
  * One process with 8 environments and batches of 256, not 8 or 19 processes that each collect and whose gradients are
    combined: it runs on one core. For the smaller batch a cycle follows 8 episodes, not 16 as in the first paper: about
    as many updates as leave stepping the environments the largest part of the time.
  * The normaliser takes in the states of a cycle's batches, relabelled as they are, before its updates; the authors
    take those of every new episode once. As in their code, standard deviations count as at least 0.01 and the result is
    clipped at 5. It belongs to the model, so that a saved policy is complete.
  * Networks start as PyTorch initialises them, not Glorot's way, and the first 1 000 steps are uniformly random.
  * [HER.3] is right for rewards from -1 to 0 only, so others are refused when they are seen, unless `--no-clip-target`
    is given.

A relabelled transition's terminal comes from the environment's `compute_terminated`, which Gymnasium-Robotics asks of
every environment of goals; without one it stays, as it should where goals do not decide when an episode ends.

    python her_ddpg.py --env-id FetchPush-v4 --seed 1
    python her_ddpg.py --evaluate runs/FetchPush-v4/her_ddpg/RUN --eval-episodes 20
"""

from __future__ import annotations

import contextlib
import copy
import csv
import datetime
import errno
import fcntl
import hashlib
import importlib
import importlib.metadata
import io
import itertools
import json
import math
import os
import pickle
import platform
import random
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import typing
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import gymnasium as gym
import numpy as np
import torch
import tyro
from torch import Tensor, nn
from tqdm import tqdm

# ======================================================================================================================
# 1 Settings
# ======================================================================================================================


@dataclass
class Args:
    """Settings of a HER-DDPG run; the defaults are meant for 1M steps of a Fetch task."""

    env_id: str = "FetchPush-v4"
    """Gymnasium environment; `my_module:MyEnv-v0` imports my_module (looked up in the current folder too) first."""
    seed: Annotated[int, Range(0)] = 1
    """Seed of everything random (>= 0)."""
    total_timesteps: Annotated[int, Range(1)] = 1_000_000
    """Environment steps of the whole run, counted over all environments (a multiple of num-envs)."""
    num_envs: Annotated[int, Range(1)] = 8
    """Environments stepped side by side (>= 1)."""
    learning_rate: Annotated[float, Range(0)] = 1e-3
    """Step size of the optimiser (>= 0)."""
    gamma: Annotated[float, Range(0, 1)] = 0.98
    """Discount factor (0 to 1)."""
    tau: Annotated[float, Range(0, 1)] = 0.05
    """Step of the target networks towards the learned ones (0 to 1)."""
    batch_size: Annotated[int, Range(1)] = 256
    """Transitions per update (>= 1)."""
    buffer_size: Annotated[int, Range(1)] = 1_000_000
    """Transitions the replay memory holds before the oldest are overwritten (>= batch-size)."""
    learning_starts: Annotated[int, Range(1)] = 1_000
    """First environment steps, taken with uniformly random actions and without updates (>= 1)."""
    episodes_per_cycle: Annotated[int, Range(1)] = 8
    """Episodes that end, counted over all environments, before the next updates (>= 1)."""
    updates_per_cycle: Annotated[int, Range(1)] = 40
    """Updates in a row; one step of the target networks follows them (>= 1)."""
    her: bool = True
    """Hindsight: relabel goals. Without it every transition keeps the goal it was collected with, as in plain DDPG."""
    goal_strategy: Literal["future", "final", "episode", "random"] = "future"
    """Where relabelled goals come from: later states of the episode, its last one, any of it, or any in memory."""
    num_goals: Annotated[int, Range(1)] = 4
    """Relabelled transitions per original one, on average: k of the paper (>= 1)."""
    exploration_noise: Annotated[float, Range(0)] = 0.2
    """Standard deviation of the behaviour policy's noise, in half action ranges (>= 0)."""
    random_eps: Annotated[float, Range(0, 1)] = 0.3
    """Probability that an action is drawn uniformly from the action space (0 to 1)."""
    action_l2: Annotated[float, Range(0)] = 1.0
    """Weight of the mean square of the policy's actions, in half action ranges, in its loss (>= 0)."""
    clip_target: bool = True
    """Clip the critic's targets to [-1 / (1 - gamma), 0], the range of the returns of rewards from -1 to 0."""
    run: RunArgs = field(default_factory=lambda: RunArgs())

    def check(self) -> None:
        """Raise UserError where two settings contradict each other."""
        if self.batch_size > self.buffer_size:
            raise UserError(f"--batch-size {self.batch_size} exceeds --buffer-size {self.buffer_size}: lower the batch")
        if self.num_envs > self.buffer_size:
            raise UserError(f"--num-envs {self.num_envs} exceeds --buffer-size {self.buffer_size}: enlarge the buffer")
        if self.learning_starts >= self.total_timesteps:
            raise UserError(
                f"--learning-starts {self.learning_starts} leaves nothing of --total-timesteps {self.total_timesteps}: "
                "lower the first or raise the second"
            )
        if self.clip_target and self.gamma == 1:
            raise UserError("--gamma 1 leaves returns without a bound to clip at: lower it or use --no-clip-target")


# ======================================================================================================================
# 2 Networks
# ======================================================================================================================


def relu_mlp(*sizes: int) -> nn.Sequential:
    """Linear layers from sizes[0] inputs to sizes[-1] outputs with ReLU between them, initialised as PyTorch does."""
    layers = [layer for shape in itertools.pairwise(sizes) for layer in (nn.Linear(*shape), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


class DeterministicActor(nn.Module):
    """mu: s [n, obs] -> action [n, act] in the environment's units, inside its bounds, dimension by dimension."""

    def __init__(self, obs_dim: int, low: Tensor, high: Tensor, hidden: tuple[int, ...] = (256, 256)):
        super().__init__()
        self.net = relu_mlp(obs_dim, *hidden, len(low))
        self.register_buffer("scale", (high - low) / 2)  # half the action range
        self.register_buffer("centre", (high + low) / 2)

    def forward(self, s: Tensor) -> Tensor:
        return self.centre + self.scale * torch.tanh(self.net(s))


class Critic(nn.Module):
    """Q: s [n, obs], a [n, act] -> value [n]."""

    def __init__(self, obs_dim: int, act_dim: int, hidden: tuple[int, ...] = (256, 256)):
        super().__init__()
        self.net = relu_mlp(obs_dim + act_dim, *hidden, 1)

    def forward(self, s: Tensor, a: Tensor) -> Tensor:
        return self.net(torch.cat([s, a], -1)).squeeze(-1)


class RunningMoments(nn.Module):
    """Mean and variance of all rows seen so far, per column; buffers, so that a saved policy holds them."""

    def __init__(self, size: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("var", torch.ones(size))
        self.register_buffer("count", torch.zeros(()))

    def update(self, x: Tensor) -> None:
        """Take in the rows of x [n, size] (Chan, Golub, LeVeque 1979: moments of two samples combined)."""
        n, delta = len(x), x.mean(0) - self.mean
        total = self.count + n
        m2 = self.var * self.count + x.var(0, correction=0) * n + delta.square() * self.count * n / total
        self.mean += delta * n / total
        self.var.copy_(m2 / total)
        self.count.copy_(total)

    def std(self) -> Tensor:
        """Standard deviation [size]."""
        return (self.var + 1e-8).sqrt()

    def standardise(self, x: Tensor) -> Tensor:
        """x [..., size] less the mean, over the standard deviation."""
        return (x - self.mean) / self.std()


# ======================================================================================================================
# 3 Algorithm
# ======================================================================================================================


class HindsightReplay:
    """Ring buffer of the transitions of whole episodes; goals are relabelled when transitions are drawn.

    Transition number j, counted over all episodes that have ended, is row j % capacity: s [obs], a [act], r, s2 [obs],
    terminal in float32; span holds the numbers of the first and the last transition of its episode, total the number
    of the next. current [env, t] are the transitions of episodes that have not ended. All of it lies in main memory,
    since the environment computes the rewards of relabelled transitions: `compute_reward(achieved_goal, desired_goal,
    info)` of goals [n, goal]. Drawn transitions are moved to the training device. Raises UserError if the environment
    is not one of goals, its rewards cannot be clipped as `args` wants, or memory does not suffice.
    """

    def __init__(self, args: Args, envs: VectorEnvs):
        env, obs_dim, act_dim = envs.vector.envs[0], envs.obs.shape[1], envs.action_space.shape[0]
        self.args, self.capacity = args, args.buffer_size
        self.achieved, self.desired = goal_columns(env, args.env_id)
        self.compute_reward = env.get_wrapper_attr("compute_reward")
        self.compute_terminated = None
        if env.has_wrapper_attr("compute_terminated"):
            self.compute_terminated = env.get_wrapper_attr("compute_terminated")
        goals, desired = envs.obs[:, self.achieved], envs.obs[:, self.desired]
        try:
            r = torch.cat([torch.as_tensor(self.compute_reward(goals, g, {})) for g in (goals, desired)])
        except Exception as error:
            raise UserError(
                f"--env-id {args.env_id}: compute_reward of {len(goals)} goals, one per row, failed "
                f"({type(error).__name__}: {' '.join(str(error).split()).rstrip('.')}): have it compute along the last "
                "axis, without anything in info"
            ) from error
        if r.shape != (2 * len(goals),):
            raise UserError(
                f"--env-id {args.env_id}: compute_reward of {len(goals)} goals, one per row, is not one number per "
                "row: have it compute along the last axis"
            )
        self.check_rewards(r)
        steps = env.spec.max_episode_steps
        if steps is None:
            raise UserError(f"--env-id {args.env_id} has no time limit: register it with max_episode_steps")
        if steps > self.capacity:
            raise UserError(f"--buffer-size {self.capacity} is less than an episode of {steps} steps: enlarge it")
        self.columns = [obs_dim, act_dim, 1, obs_dim, 1]
        self.total = 0
        self.current = torch.zeros(args.num_envs, steps, sum(self.columns))
        try:
            self.rows = torch.empty(self.capacity, sum(self.columns))
            self.span = torch.empty(self.capacity, 2, dtype=torch.int64)
        except RuntimeError as error:
            raise UserError(f"--buffer-size {self.capacity} exceeds the main memory: lower it") from error

    def add(self, t: np.ndarray, *transition: Any, done: np.ndarray) -> None:
        """Store one transition per environment, number t [n] of its episode, which is complete where done [n].

        s [n, obs], a [n, act], r [n], s2 [n, obs], terminal [n].
        """
        n = len(t)
        columns = [torch.as_tensor(x, dtype=torch.float32, device="cpu").view(n, -1) for x in transition]
        self.current[torch.arange(n), torch.from_numpy(t)] = torch.cat(columns, 1)
        for i in np.flatnonzero(done):
            length = int(t[i]) + 1
            where = torch.arange(self.total, self.total + length) % self.capacity
            self.rows[where] = self.current[i, :length]
            self.span[where] = torch.tensor([self.total, self.total + length - 1])
            self.total += length

    def draw(self, n: int) -> Tensor:
        """Numbers [n] of transitions, drawn uniformly with replacement from all episodes that are still whole."""
        begin = max(self.total - self.capacity, 0)
        first, last = self.span[begin % self.capacity].tolist()
        return torch.randint(begin if first == begin else last + 1, self.total, (n,))

    def goals(self, j: Tensor) -> Tensor:
        """A goal g' [n, goal] for each of the transitions j [n]: what was achieved by the s2 of another one, j2 [n]."""
        first, last = self.span[j % self.capacity].unbind(1)
        match self.args.goal_strategy:
            case "future":
                j2 = j + (torch.rand(len(j)) * (last - j + 1)).long()  # uniform over j, ..., last
            case "final":
                j2 = last
            case "episode":
                j2 = first + (torch.rand(len(j)) * (last - first + 1)).long()  # uniform over first, ..., last
            case "random":
                j2 = self.draw(len(j))
        _, _, _, s2, _ = self.rows[j2 % self.capacity].split(self.columns, 1)
        return s2[:, self.achieved]

    def sample(self, n: int) -> tuple[Tensor, ...]:
        """n transitions drawn uniformly with replacement, about k / (k + 1) of them relabelled.

        Returns s [n, obs], a [n, act], r [n], s2 [n, obs], terminal [n].
        """
        j = self.draw(n)
        rows = self.rows[j % self.capacity]
        s, _, r, s2, terminal = rows.split(self.columns, 1)  # views: what is written to them is written to rows
        if self.args.her:
            k = self.args.num_goals
            chosen = torch.rand(n) < k / (k + 1)
            goal = self.goals(j[chosen])  # g' = m(episode)   [HER.1]
            s[chosen, self.desired] = s2[chosen, self.desired] = goal
            pair = s2[chosen, self.achieved].numpy(), goal.numpy()
            r[chosen, 0] = torch.as_tensor(self.compute_reward(*pair, {})).float()  # r' = r(achieved(s2), g')   [HER.2]
            if self.compute_terminated:  # goal by goal: not every environment computes it along the last axis
                ends = [bool(self.compute_terminated(*goals, {})) for goals in zip(*pair, strict=True)]
                terminal[chosen, 0] = torch.tensor(ends).float()
        self.check_rewards(r)
        s, a, r, s2, terminal = rows.to(self.args.run.device).split(self.columns, 1)
        return s, a, r.squeeze(1), s2, terminal.squeeze(1)

    def check_rewards(self, r: Tensor) -> None:
        """Raise UserError if targets are to be clipped to a range that does not fit the rewards."""
        low, high = (x.item() for x in r.aminmax())
        if self.args.clip_target and not -1 <= low <= high <= 0:
            raise UserError(
                f"--clip-target is for rewards from -1 to 0, but {self.args.env_id} gives {low if low < -1 else high}: "
                "use --no-clip-target"
            )

    def state_dict(self) -> dict[str, Any]:
        """The filled part, without copying it."""
        filled = {"rows": self.rows[: self.total], "span": self.span[: self.total], "current": self.current}
        return {"total": self.total} | {name: torch.from_numpy(x.numpy()) for name, x in filled.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Counterpart of state_dict."""
        self.total = state["total"]
        self.rows[: self.total], self.span[: self.total] = state["rows"], state["span"]
        self.current.copy_(state["current"])


def goal_columns(env: gym.Env, env_id: str) -> tuple[slice, slice]:
    """Columns of the achieved and of the desired goal in the flat observations. Raises UserError if there are none."""
    spaces = [layer.observation_space for layer in wrappers(env)]
    columns, start = {}, 0
    for name, space in next((dict(x) for x in spaces if isinstance(x, gym.spaces.Dict)), {}).items():
        columns[name] = slice(start, start := start + gym.spaces.flatdim(space))
    if not {"achieved_goal", "desired_goal"} <= columns.keys() or not env.has_wrapper_attr("compute_reward"):
        raise UserError(
            f"--env-id {env_id} is not an environment of goals, with achieved_goal and desired_goal in its "
            "observations and a method compute_reward: use ddpg.py for others"
        )
    return columns["achieved_goal"], columns["desired_goal"]


class HER_DDPG(nn.Module):
    """The HER-DDPG agent: how it acts, its two losses, its updates. s is [n, obs] as the environment gives it, the goal
    included, and normalised inside; a is [n, act] in environment units.

    Raises UserError if the environment's spaces do not fit: flat observations, bounded continuous actions.
    """

    metrics = {
        "critic_loss": "mean squared TD error [HER.4]",
        "q": "mean of Q over the batch",
        "q_target": "mean of the targets y over the batch [HER.3]",
        "reward": "mean reward of the batch, relabelled transitions included [HER.2]",
        "critic_grad_norm": "Euclidean norm of the critic's gradient",
        "actor_loss": "minus the mean of Q(s, mu(s)), plus the penalty of large actions [HER.5]",
        "action_square": "mean square of the actions mu(s), in half action ranges",
        "actor_grad_norm": "Euclidean norm of the actor's gradient",
    }

    def __init__(self, observation_space: gym.Space, action_space: gym.Space, args: Args):
        super().__init__()
        obs_dim, (low, high) = flat_size(observation_space), bounds(action_space, "HER-DDPG")
        self.gamma, self.tau, self.batch_size = args.gamma, args.tau, args.batch_size
        self.episodes_per_cycle = args.episodes_per_cycle
        self.exploration_noise, self.random_eps = args.exploration_noise, args.random_eps
        self.action_l2 = args.action_l2
        self.return_range = (-1 / (1 - args.gamma), 0.0) if args.clip_target else (-math.inf, math.inf)
        self.register_buffer("low", low)
        self.register_buffer("high", high)
        self.obs_stats = RunningMoments(obs_dim)
        self.actor = DeterministicActor(obs_dim, low, high, hidden=(256, 256, 256))
        self.critic = Critic(obs_dim, len(low), hidden=(256, 256, 256))
        self.actor_target = copy.deepcopy(self.actor).requires_grad_(False)
        self.critic_target = copy.deepcopy(self.critic).requires_grad_(False)
        self.episodes = 0  # that ended since the last cycle
        self.to(args.run.device)
        # each theta is all parameters of a network as one vector: what moves it moves the network
        self.actor_theta, self.critic_theta = flat(self.actor), flat(self.critic)
        self.actor_target_theta, self.critic_target_theta = flat(self.actor_target), flat(self.critic_target)
        self.actor_optimizer = torch.optim.Adam([self.actor_theta], args.learning_rate, fused=True)
        self.critic_optimizer = torch.optim.Adam([self.critic_theta], args.learning_rate, fused=True)
        # gradients of a loss with respect to the named network alone, compiled to one graph of forward and backward
        self.critic_gradient = gradient_function(self.critic_loss, self.critic, args.run)
        self.actor_gradient = gradient_function(self.actor_loss, self.actor, args.run)

    def normalise(self, s: Tensor) -> Tensor:
        """States as the networks see them."""
        return ((s - self.obs_stats.mean) / self.obs_stats.std().clamp(min=0.01)).clamp(-5, 5)

    @torch.no_grad()
    def act(self, s: Tensor) -> Tensor:
        """The deterministic policy mu(s), used in evaluation."""
        return self.actor(self.normalise(s)).clamp(self.low, self.high)  # centre + scale may round to just outside

    @torch.no_grad()
    def explore(self, s: Tensor) -> Tensor:
        """The behaviour policy [HER.7]."""
        mu = self.actor(self.normalise(s))
        eps = self.exploration_noise * self.actor.scale * torch.randn_like(mu)
        a = (mu + eps).clamp(self.low, self.high)  # a = clip(mu(s) + eps, low, high) or, if so drawn, uniform   [HER.7]
        return torch.where(torch.rand_like(a[:, :1]) < self.random_eps, self.explore_uniformly(len(s)), a)

    def explore_uniformly(self, n: int) -> Tensor:
        """n actions drawn uniformly from the action space, [n, act]."""
        return self.low + (self.high - self.low) * torch.rand(n, len(self.low), device=self.low.device)

    def target(self, r: Tensor, s2: Tensor, terminal: Tensor) -> Tensor:
        """The target y [n] of the critic [HER.3]."""
        q2 = self.critic_target(s2, self.actor_target(s2))
        y = r + self.gamma * (1 - terminal) * q2
        return y.clamp(*self.return_range)  # y = clip(r + gamma (1 - terminal) Q'(...), -1 / (1 - gamma), 0)   [HER.3]

    def critic_loss(self, s: Tensor, a: Tensor, r: Tensor, s2: Tensor, terminal: Tensor):
        """L(Q) [HER.4] and its metrics; r and terminal are [n], s and s2 are normalised."""
        with torch.no_grad():
            y = self.target(r, s2, terminal)
        q = self.critic(s, a)
        loss = (y - q).square().mean()  # L(Q) = mean (y - Q(s, a))^2   [HER.4]
        return loss, {"critic_loss": loss, "q": q.mean(), "q_target": y.mean(), "reward": r.mean()}

    def actor_loss(self, s: Tensor):
        """L(mu) [HER.5] and its metrics; s is normalised."""
        mu = self.actor(s)
        square = ((mu - self.actor.centre) / self.actor.scale).square().mean()
        loss = self.action_l2 * square - self.critic(s, mu).mean()  # L(mu) = - mean Q(s, mu(s)) + c |mu(s)|^2   [HER.5]
        return loss, {"actor_loss": loss, "action_square": square}

    def update(self, s: Tensor, a: Tensor, r: Tensor, s2: Tensor, terminal: Tensor) -> dict[str, Tensor]:
        """One critic step and one actor step on a batch."""
        s, s2 = self.normalise(s), self.normalise(s2)
        gradient, info, critic_norm = self.critic_gradient(s, a, r, s2, terminal)
        descend(self.critic_optimizer, gradient)
        gradient, actor_info, actor_norm = self.actor_gradient(s)
        descend(self.actor_optimizer, gradient)
        return info | actor_info | {"critic_grad_norm": critic_norm, "actor_grad_norm": actor_norm}

    def cycle(self, *transitions: Tensor) -> dict[str, Tensor]:
        """A step of the normaliser, an update for each `batch_size` of the transitions, a step of the targets."""
        self.obs_stats.update(transitions[0])
        for batch in zip(*(x.split(self.batch_size) for x in transitions), strict=True):
            info = self.update(*batch)
        self.actor_target_theta.lerp_(self.actor_theta, self.tau)  # theta' <- (1 - tau) theta' + tau theta   [HER.6]
        self.critic_target_theta.lerp_(self.critic_theta, self.tau)
        return info

    def cycles_due(self, episodes: int) -> int:
        """Number of cycles that are to follow now that so many more episodes have ended."""
        cycles, self.episodes = divmod(self.episodes + episodes, self.episodes_per_cycle)
        return cycles

    def get_extra_state(self) -> dict[str, Any]:
        """What state_dict() holds beside parameters and buffers."""
        return {
            "episodes": self.episodes,
            "actor_optimizer": self.actor_optimizer.state_dict(),
            "critic_optimizer": self.critic_optimizer.state_dict(),
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Counterpart of get_extra_state."""
        self.episodes = state["episodes"]
        self.actor_optimizer.load_state_dict(state["actor_optimizer"])
        self.critic_optimizer.load_state_dict(state["critic_optimizer"])


# ======================================================================================================================
# 4 Training loop
# ======================================================================================================================


def train(args: Args) -> Path:
    """Train from scratch or from `args.run.resume`; returns the run folder."""
    prepare(args)
    envs = VectorEnvs(args.env_id, args.num_envs, args.seed)
    agent = HER_DDPG(envs.observation_space, envs.action_space, args)
    memory = HindsightReplay(args, envs)
    run = Run(args, agent, envs, memory=memory)
    info: dict[str, Tensor] = {}
    while envs.steps < args.total_timesteps:
        learning = envs.steps >= args.learning_starts
        # collect
        s, t = torch.from_numpy(envs.obs).to(args.run.device), envs.lengths.copy()
        a = agent.explore(s) if learning else agent.explore_uniformly(args.num_envs)
        s2, r, terminal, done = envs.step(a)
        # remember: what an episode holds can be drawn once it has ended
        memory.add(t, s, a, r, s2, terminal, done=done)
        # learn: cycles of updates, as many as the episodes that have ended allow
        if learning:
            for _ in range(agent.cycles_due(int(done.sum()))):
                info = agent.cycle(*memory.sample(args.updates_per_cycle * args.batch_size))
        # report, save
        run.report(info)
    return run.finish()


# ======================================================================================================================
# 5 Shared blocks: the same text in every file that has them
# ======================================================================================================================


@dataclass
class RunArgs:
    """Where and how the run is executed, measured and saved; the same in every algorithm."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where the networks live; auto is cuda where there is one, else cpu."""
    threads: Annotated[int, Range(1)] = 1
    """CPU threads of PyTorch (>= 1); two runs of one thread finish more work than one run of two."""
    compile: bool = True
    """Compile the gradient functions with torch.compile: 10 to 40 s at the start, faster steps after."""
    run_dir: str | None = None
    """Run folder; default runs/ENV_ID/ALGORITHM/SEED-TIME. An existing run is never overwritten."""
    eval_every: Annotated[int, Range(1)] = 20_000
    """Environment steps between evaluations (>= 1); the first is at step 0, the last at total-timesteps."""
    eval_episodes: Annotated[int, Range(1)] = 10
    """Episodes of an evaluation: deterministic policy, own environments, the same start seeds each time (>= 1)."""
    checkpoint_every: Annotated[int, Range(1)] = 50_000
    """Environment steps between checkpoints (>= 1); one is also saved at the end and on Ctrl-C or SIGTERM."""
    log_every: Annotated[int, Range(1)] = 1_000
    """Environment steps between rows of metrics.csv (>= 1)."""
    resume: str | None = None
    """Run folder to continue with its own settings; only total-timesteps, device, threads, compile, checkpoint-every,
    log-every, capture-video and the options of Weights & Biases may change."""
    evaluate: str | None = None
    """Run folder whose saved policy to evaluate, instead of training."""
    capture_video: bool = False
    """Film as mp4, in the folder's videos/: the evaluated episodes, or one episode of a finished training."""
    track: bool = False
    """Also log to Weights & Biases (`pip install wandb`; WANDB_MODE=offline works)."""
    wandb_project_name: str = "gradus"
    """Weights & Biases project."""
    wandb_entity: str | None = None
    """Weights & Biases team; default your own."""


class Range(NamedTuple):
    """Closed interval of a setting's valid values, written in its annotation."""

    low: float
    high: float = float("inf")


class UserError(Exception):
    """Input that cannot work. The message says what, the value and the remedy; main prints it and exits with 2."""


# ---- learning --------------------------------------------------------------------------------------------------------


def flat(module: nn.Module) -> Tensor:
    """All parameters of a module as one vector theta, of which they become views: what moves theta moves the module.

    An optimiser makes one step on one vector several times faster than on many small tensors. Moving the module to
    another device or type afterwards would break the tie.
    """
    theta = nn.utils.parameters_to_vector(module.parameters()).detach()
    nn.utils.vector_to_parameters(theta, module.parameters())
    return theta


def gradient_function(loss: Callable, module: nn.Module, run: RunArgs, max_norm: float = float("inf")) -> Callable:
    """Return f(*batch) -> (gradient, info, norm) of a loss(*batch) -> (scalar, info), compiled if the run says so.

    The gradient is that with respect to all parameters of `module`, as one vector; what the loss merely passes through
    (a critic, on the way to the actor) gets none. norm is its Euclidean norm before it is scaled down to `max_norm`.
    """

    def gradient_of(*batch: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        value, info = loss(*batch)
        gradient = torch.cat([g.flatten() for g in torch.autograd.grad(value, list(module.parameters()))])
        norm = gradient.norm()
        if max_norm < float("inf"):
            gradient = gradient * (max_norm / (norm + 1e-6)).clamp(max=1.0)
        return gradient, {name: x.detach() for name, x in info.items()}, norm

    # One graph of forward and backward; a shape is compiled for itself, so that results never depend on earlier shapes.
    return torch.compile(gradient_of, fullgraph=True, dynamic=False) if run.compile else gradient_of


def descend(optimizer: torch.optim.Optimizer, gradient: Tensor) -> None:
    """One step of an optimiser of a single vector along the given gradient."""
    optimizer.param_groups[0]["params"][0].grad = gradient
    optimizer.step()


# ---- environments ----------------------------------------------------------------------------------------------------


def flat_size(space: gym.Space) -> int:
    """Length of a flat observation. Raises UserError for images and other spaces."""
    if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1:
        raise UserError(f"observations {space} are not flat vectors: wrap the environment in FlattenObservation")
    return space.shape[0]


def bounds(space: gym.Space, algorithm: str) -> tuple[Tensor, Tensor]:
    """Lowest and highest action, each [act]. Raises UserError unless actions are continuous and bounded."""
    if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1:
        raise UserError(f"actions {space} are not continuous vectors, which {algorithm} needs: use ppo.py for discrete")
    if not space.is_bounded():
        raise UserError(f"actions {space} are not bounded, which {algorithm} needs: wrap the environment to bound them")
    return torch.as_tensor(space.low, dtype=torch.float32), torch.as_tensor(space.high, dtype=torch.float32)


def make_env(env_id: str, **kwargs: Any) -> gym.Env:
    """gymnasium.make, with the current folder importable. Raises UserError if there is no such environment.

    Observations that are a dictionary of vectors (goals, say) are joined to one vector, in the order of their keys.
    """
    module, _, name = env_id.rpartition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        if module:
            importlib.import_module(module)
        elif name not in gym.registry and version("gymnasium-robotics"):
            with contextlib.redirect_stderr(io.StringIO()):  # a notice on tasks of other versions than is installed
                importlib.import_module("gymnasium_robotics")  # Fetch and the like register themselves when imported
        env = gym.make(name, **kwargs)
    except (gym.error.Error, ImportError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        remedy = "`gymnasium.pprint_registry()` lists what there is"
        if isinstance(error, ModuleNotFoundError):
            remedy = "install it or run from the folder that holds it"
        raise UserError(f"--env-id {env_id}: {reason}; {remedy}") from error
    space = env.observation_space
    vectors = isinstance(space, gym.spaces.Dict) and all(
        isinstance(x, gym.spaces.Box) and len(x.shape) == 1 for x in space.values()
    )
    return gym.wrappers.FlattenObservation(env) if vectors else env


def seeds(seed: int, stream: int, n: int) -> list[int]:
    """n well-separated seeds; streams keep training (0), evaluation (1) and restarts (2 and up) apart."""
    return [int(x) for x in np.random.SeedSequence([seed, stream]).generate_state(n)]


class VectorEnvs:
    """`num_envs` copies of an environment stepped together, each with its own seed; counts steps over all of them.

    obs [n, obs] (float32) is where each environment is now, steps the number of steps so far over all of them, and
    finished the episodes (steps, return, length) that ended since the list was last emptied. Raises UserError if there
    is no such environment or its observations are not flat vectors.
    """

    def __init__(self, env_id: str, num_envs: int, seed: int):
        make = [lambda: make_env(env_id)] * num_envs
        self.vector = gym.vector.SyncVectorEnv(make, copy=False, autoreset_mode=gym.vector.AutoresetMode.SAME_STEP)
        self.observation_space = self.vector.single_observation_space
        self.action_space = self.vector.single_action_space
        flat_size(self.observation_space)
        self.seed, self.steps = seed, 0
        self.finished: list[tuple[int, float, int]] = []
        self.restart(seeds(seed, 0, num_envs))

    def restart(self, env_seeds: list[int]) -> None:
        """Start a new episode in every environment."""
        for env, env_seed in zip(self.vector.envs, env_seeds, strict=True):
            env.action_space.seed(env_seed)
        self.obs = np.array(self.vector.reset(seed=env_seeds)[0], dtype=np.float32)
        self.returns, self.lengths = np.zeros(len(env_seeds)), np.zeros(len(env_seeds), dtype=np.int64)

    def step(self, actions: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Step every environment and start a new episode where one ended (Gymnasium's SAME_STEP autoreset).

        actions: [n, act] in environment units, or [n] integers.
        Returns (s2 [n, obs], r [n], terminal [n], done [n]): s2 is the state that the step led to, the final one of an
        episode included; terminal is true termination, done is termination or truncation.
        """
        a = actions.cpu().numpy()
        if not np.isfinite(a).all():
            sys.exit(
                f"error: the policy gave an action of NaN or inf after step {self.steps}: the run stops; its last "
                "checkpoint is kept (a lower --learning-rate may help)"
            )
        obs, r, terminal, truncated, info = self.vector.step(a)
        self.obs = np.array(obs, dtype=np.float32)
        s2, done = self.obs, terminal | truncated
        self.steps += len(r)
        self.returns += r
        self.lengths += 1
        if done.any():
            s2 = self.obs.copy()
            for i in np.flatnonzero(done):
                s2[i] = info["final_obs"][i]
                self.finished.append((self.steps, float(self.returns[i]), int(self.lengths[i])))
                self.returns[i] = self.lengths[i] = 0
        if not math.isfinite(r.sum() + s2.sum() + self.obs.sum()):
            sys.exit(
                f"error: the environment gave a reward or observation of NaN or inf at step {self.steps}: the run "
                "stops; its last checkpoint is kept (look into the environment)"
            )
        return s2, r.astype(np.float32), terminal.copy(), done

    def state_dict(self) -> dict[str, Any]:
        """Counters, and the state of each environment (None where one holds things that cannot be saved)."""
        try:
            envs = [environment_state(env) for env in self.vector.envs]
        except UnsavableState as error:
            envs = str(error)
        return {
            "steps": self.steps, "envs": envs, "obs": encode(self.obs),
            "returns": encode(self.returns), "lengths": encode(self.lengths),
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Counterpart of state_dict; starts new episodes, and says so, if the environments' state was not saved."""
        self.steps = state["steps"]
        if isinstance(state["envs"], str):
            print(f"resume: this environment's state cannot be saved ({state['envs']}), so new episodes start here")
            self.restart(seeds(self.seed + self.steps, 2, len(self.vector.envs)))
            return
        for env, env_state in zip(self.vector.envs, state["envs"], strict=True):
            restore_environment(env, env_state)
        self.obs, self.returns, self.lengths = (decode(state[name]) for name in ("obs", "returns", "lengths"))


class UnsavableState(Exception):
    """An environment holds an object that is neither plain data nor known to be constant."""


def encode(x: Any) -> Any:
    """Plain data with NumPy arrays as tensors (copied), as checkpoints hold it. Raises UnsavableState for the rest."""
    if isinstance(x, np.ndarray | np.generic) and x.dtype.kind in "biuf" and x.dtype.itemsize <= 8:
        return torch.from_numpy(np.array(x))
    if type(x) is dict and all(type(key) in (bool, int, float, str) for key in x):
        return {key: encode(value) for key, value in x.items()}
    if type(x) in (list, tuple):
        return type(x)(encode(value) for value in x)
    if x is None or type(x) in (bool, int, float, str):
        return x
    raise UnsavableState(f"it holds a {type(x).__name__}")


def decode(x: Any) -> Any:
    """Counterpart of encode; a tensor without dimensions becomes a NumPy scalar."""
    if isinstance(x, Tensor):
        return x.numpy().copy()[()]
    if isinstance(x, dict):
        return {key: decode(value) for key, value in x.items()}
    return type(x)(decode(value) for value in x) if isinstance(x, list | tuple) else x


CONSTANT_CLASSES = {"Space", "EnvSpec", "MjModel", "MujocoRenderer", "module", "function", "type", "MujocoModelNames"}


def environment_state(env: gym.Env) -> list[dict[str, Any]]:
    """Everything that decides an environment's future: for each wrapper, and the environment inside, its attributes.

    Of a simulator (MjData) every array is kept, not only mj_getState's: Ant and Humanoid also read body positions left
    by the last step. Raises UnsavableState if an attribute is not plain data.
    """
    layers = []
    for layer in wrappers(env):
        state = {}
        for name, value in (vars(layer) | {"action_space": layer.action_space}).items():
            kinds = {cls.__name__ for cls in type(value).__mro__}
            if isinstance(value, np.random.Generator):
                state[name] = encode(value.bit_generator.state)
            elif isinstance(value, gym.Space):
                state[name] = encode(value._np_random.bit_generator.state if value._np_random is not None else None)
            elif "MjData" in kinds:
                state[name] = {"time": value.time} | {key: encode(array) for key, array in simulator_arrays(value)}
            elif not isinstance(value, gym.Env) and not kinds & CONSTANT_CLASSES:
                state[name] = encode(value)
        layers.append(state)
    return layers


def restore_environment(env: gym.Env, layers: list[dict[str, Any]]) -> None:
    """Counterpart of environment_state, on a freshly reset environment of the same kind."""
    for layer, state in zip(wrappers(env), layers, strict=True):
        for name, saved in state.items():
            value = getattr(layer, name, None)
            if isinstance(value, np.random.Generator):
                value.bit_generator.state = decode(saved)
            elif isinstance(value, gym.Space):
                if saved is not None:
                    value.np_random.bit_generator.state = decode(saved)
            elif "MjData" in {cls.__name__ for cls in type(value).__mro__}:
                value.time = saved["time"]
                for key, array in simulator_arrays(value):
                    if key in saved and array.shape == saved[key].shape:  # others are rebuilt by the next step
                        array[...] = saved[key].numpy()
            else:
                new = decode(saved)
                arrays = isinstance(value, np.ndarray) and isinstance(new, np.ndarray) and value.flags.writeable
                if arrays and (value.shape, value.dtype) == (new.shape, new.dtype):
                    value[...] = new  # in place: another attribute may be a view of it
                else:
                    setattr(layer, name, new)


def wrappers(env: gym.Env) -> list[gym.Env]:
    """The environment's wrappers from the outside in, and last the environment itself."""
    return [env, *wrappers(env.env)] if isinstance(env, gym.Wrapper) else [env]


def simulator_arrays(data: Any) -> list[tuple[str, np.ndarray]]:
    """The named numeric arrays of a MuJoCo MjData, which are views of the simulator's memory."""
    values = [(name, getattr(data, name)) for name in dir(data) if not name.startswith("_")]
    return [(name, value) for name, value in values if isinstance(value, np.ndarray) and value.size]


# ---- evaluation ------------------------------------------------------------------------------------------------------


class Episode(NamedTuple):
    """Outcome of one evaluation episode; success is None where the environment does not report it."""

    ret: float
    length: int
    success: bool | None


def evaluate(agent: nn.Module, envs: list[gym.Env], episode_seeds: list[int], device: str) -> list[Episode]:
    """Run the deterministic policy for one episode per seed, on several environments at a time."""
    waiting = list(enumerate(episode_seeds))[::-1]
    episodes: dict[int, Episode] = {}
    active: dict[int, list] = {}  # environment -> [episode, observation, return, length]
    while waiting or active:
        for i in range(len(envs)):
            if i not in active and waiting:
                k, episode_seed = waiting.pop()
                active[i] = [k, envs[i].reset(seed=episode_seed)[0], 0.0, 0]
        s = torch.from_numpy(np.stack([obs for _, obs, _, _ in active.values()]).astype(np.float32))
        actions = agent.act(s.to(device)).cpu().numpy()
        for i, a in zip(list(active), actions, strict=True):
            obs, r, terminated, truncated, info = envs[i].step(a)
            k, _, ret, length = active[i]
            if length >= 100_000:
                sys.exit("error: an episode has not ended after 100000 steps: register it with max_episode_steps")
            active[i] = [k, obs, ret + float(r), length + 1]
            if terminated or truncated:
                success = bool(info["is_success"]) if "is_success" in info else None
                episodes[k] = Episode(ret + float(r), length + 1, success)
                del active[i]
    return [episodes[k] for k in sorted(episodes)]


def film(env_id: str, folder: Path, step: int) -> gym.Env | None:
    """An environment that films its episodes into folder; None, with one line of why, where that is impossible."""
    name = f"step-{step}-{time.strftime('%Y%m%d-%H%M%S')}"
    try:
        if "MUJOCO_GL" not in os.environ and "DISPLAY" not in os.environ and sys.platform == "linux":
            test = [sys.executable, "-c", "import mujoco; mujoco.GLContext(8, 8).make_current()"]
            for backend in ("egl", "osmesa"):  # tried in another process: a backend that fails may not be replaced
                if not subprocess.run(test, env=os.environ | {"MUJOCO_GL": backend}, capture_output=True).returncode:
                    os.environ["MUJOCO_GL"] = backend
                    break
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # for one, that the folder exists: the name tells the films apart
            env = make_env(env_id, render_mode="rgb_array")
            env.reset()
            env.render()
            return gym.wrappers.RecordVideo(env, str(folder), episode_trigger=lambda k: True, name_prefix=name)
    except Exception as error:  # whatever a renderer may lack: the run itself is not to fail for it
        reason = " ".join(str(error).split()).rstrip(".")
        print(f"no video: {reason} (MuJoCo's environments need the system library libegl1 or libosmesa6)")
        return None


# ---- the run folder --------------------------------------------------------------------------------------------------


class Run:
    """The run folder of a training: logs, evaluations, checkpoints, resume, progress.

    Built last, when everything else is known to work: it creates the folder, or with `args.run.resume` brings `agent`,
    `envs`, the other `parts` (anything with state_dict and load_state_dict), all random generators and the log files
    back to the last checkpoint. Raises UserError if the folder exists already, is in use, or does not fit.
    """

    def __init__(self, args: Any, agent: nn.Module, envs: VectorEnvs, **parts: Any):
        self.args, self.agent, self.envs = args, agent, envs
        self.parts = {"agent": agent, "envs": envs, **parts}
        self.algorithm = type(agent).__name__.lower()
        self.eval_envs = [make_env(args.env_id) for _ in range(min(args.run.eval_episodes, 10))]
        stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        default = f"runs/{args.env_id.replace(':', '-')}/{self.algorithm}/{args.seed}-{stamp}"
        self.folder = Path(args.run.resume or args.run.run_dir or default)
        checkpoint = self.open_folder()
        self.seconds = checkpoint["seconds"] if checkpoint else 0.0
        for name in self.logs:  # rows written after the checkpoint are written again
            if (path := self.folder / name).exists():
                os.truncate(path, checkpoint["logs"][name] if checkpoint else 0)
            self.logs[name] = open(path, "a", newline="")  # noqa: SIM115 (closed by finish)
        if checkpoint:
            for name, part in self.parts.items():
                part.load_state_dict(checkpoint[name])
        self.start_logging()
        if checkpoint:
            restore_generators(checkpoint["generators"], args.run.device)
        else:
            self.evaluate()

    def open_folder(self) -> dict[str, Any] | None:
        """Create the folder, or lock the one to resume and return its checkpoint if there is one."""
        config, history = {}, []
        self.logs: dict[str, Any] = {"eval.csv": None, "train.csv": None, "metrics.csv": None}
        if self.args.run.resume:
            config = read_config(self.folder)
            history = config["history"]
        elif any((self.folder / name).exists() for name in ("config.json", "checkpoint.pt", *self.logs)):
            raise UserError(f"{self.folder} exists already: choose another --run-dir, or continue it with --resume")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.lock = os.open(self.folder, os.O_RDONLY)
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.access(self.folder, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except BlockingIOError as error:
            raise UserError(f"{self.folder} is being trained by another process: wait for it or stop it") from error
        except OSError as error:
            raise UserError(f"cannot write {self.folder} ({error.strerror}): choose another --run-dir") from error
        checkpoint = load_checkpoint(self.folder) if (self.folder / "checkpoint.pt").exists() else None
        if self.args.run.resume and not checkpoint:
            print(f"resume: {self.folder} has no checkpoint yet, so it starts again from step 0")
        steps = checkpoint["envs"]["steps"] if checkpoint else 0
        if checkpoint and steps >= self.args.total_timesteps:
            raise UserError(f"{self.folder} is complete at step {steps}: raise --total-timesteps to train on")
        script = Path(sys.modules[type(self.agent).__module__].__file__)
        session = {
            "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "from_step": steps,
            "command": ["python", *sys.argv],
            "script_sha256": hashlib.sha256(script.read_bytes()).hexdigest(),
            "git_commit": git_commit(script.parent),
            "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
            "platform": f"{platform.system()} {platform.machine()}",
            "device": self.args.run.device,
        }
        if history and history[0]["script_sha256"] != session["script_sha256"]:
            print(f"resume: {script.name} has changed since this run was started, so results may differ")
        settings = asdict(self.args)
        settings["run"] |= {"resume": None, "run_dir": str(self.folder)}
        config |= {"algorithm": self.algorithm, "args": settings, "history": [*history, session]}
        write_atomically(self.folder / "config.json", lambda f: f.write(json.dumps(config, indent=2).encode()))
        return checkpoint

    def start_logging(self) -> None:
        """Open TensorBoard, Weights & Biases and the progress line, and catch Ctrl-C and SIGTERM."""
        args = self.args
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from torch.utils.tensorboard import SummaryWriter
        purge = self.envs.steps + 1 if self.envs.steps else 0  # forget the steps that are run again: after a checkpoint
        self.tensorboard = SummaryWriter(str(self.folder), purge_step=purge)
        self.wandb = None
        if args.run.track:
            import wandb

            name = f"{self.algorithm}-{args.env_id}-{args.seed}"
            run_id = hashlib.sha256(str(self.folder.resolve()).encode()).hexdigest()[:16]
            self.wandb = wandb.init(
                project=args.run.wandb_project_name, entity=args.run.wandb_entity, name=name, id=run_id,
                resume="allow", config=asdict(args), dir=str(self.folder),
            )  # fmt: skip
        for name, columns in {"train.csv": ["step", "return", "length"], "metrics.csv": self.metric_columns()}.items():
            if self.logs[name].tell() == 0:
                csv.writer(self.logs[name]).writerow(columns)
        self.stop = 0
        self.handlers = {number: signal.signal(number, self.request_stop) for number in (signal.SIGINT, signal.SIGTERM)}
        self.bar = tqdm(
            total=args.total_timesteps, initial=self.envs.steps, desc=f"{self.algorithm} {args.env_id}", unit=" steps",
            disable=not sys.stderr.isatty(), dynamic_ncols=True,
        )  # fmt: skip
        self.begun = self.reported = self.logged = self.envs.steps
        self.started = self.logged_at = time.perf_counter()
        self.last_return = self.last_evaluation = float("nan")

    def metric_columns(self) -> list[str]:
        """Columns of metrics.csv; the agent documents its own in `metrics`."""
        return ["step", "seconds", "steps_per_second", *self.agent.metrics]

    def request_stop(self, number: int, _frame: Any) -> None:
        """Signal handler: stop at the next report; a second signal ends the process at once."""
        self.stop = number
        signal.signal(number, signal.SIG_DFL)

    def report(self, info: dict[str, Tensor]) -> None:
        """After every step or rollout: log, evaluate and save what is due; `info` holds the latest metrics."""
        steps, run = self.envs.steps, self.args.run
        finished = steps >= self.args.total_timesteps

        def due(every: int) -> bool:
            return finished or steps // every > self.reported // every

        for step, ret, length in self.envs.finished:
            csv.writer(self.logs["train.csv"]).writerow([step, ret, length])
            self.tensorboard.add_scalar("train/return", ret, step)
            self.last_return = ret
        self.envs.finished.clear()
        self.bar.update(steps - self.reported)
        if due(run.log_every):
            self.log(info)
            self.bar.set_postfix_str(self.status(), refresh=False)
        if due(run.eval_every):
            self.evaluate()
        if due(run.checkpoint_every) or self.stop:
            self.save()
        self.reported = steps
        if self.stop and not finished:
            self.bar.close()
            print(f"\nstopped at step {steps}; to continue: python {sys.argv[0]} --resume {self.folder}")
            sys.exit(128 + self.stop)

    def log(self, info: dict[str, Tensor]) -> None:
        """One row of metrics.csv. Ends the run if a metric is not finite."""
        steps, now = self.envs.steps, time.perf_counter()
        metrics = {name: float(value) for name, value in info.items()}
        self.require_finite(metrics.items())
        speed = (steps - self.logged) / (now - self.logged_at)
        self.logged, self.logged_at = steps, now
        row = {"step": steps, "seconds": round(self.seconds + now - self.started, 3), **metrics}
        row["steps_per_second"] = round(speed, 1)
        csv.DictWriter(self.logs["metrics.csv"], self.metric_columns()).writerow(row)
        for name, value in (metrics | {"steps_per_second": speed}).items():
            self.tensorboard.add_scalar(f"metrics/{name}", value, steps)
        if self.wandb:
            returns = {} if np.isnan(self.last_return) else {"train/return": self.last_return}
            self.wandb.log({f"metrics/{name}": value for name, value in metrics.items()} | returns, step=steps)
        for file in self.logs.values():
            file.flush()

    def evaluate(self) -> None:
        """Evaluate the deterministic policy: one row per episode in eval.csv, and the mean everywhere else."""
        steps, run = self.envs.steps, self.args.run
        episodes = evaluate(self.agent, self.eval_envs, seeds(self.args.seed, 1, run.eval_episodes), run.device)
        with_success = episodes[0].success is not None
        writer = csv.writer(self.logs["eval.csv"])
        if self.logs["eval.csv"].tell() == 0:
            writer.writerow(["step", "episode", "return", "length"] + ["success"] * with_success)
        for k, (ret, length, success) in enumerate(episodes):
            writer.writerow([steps, k, ret, length] + [int(success or 0)] * with_success)
        self.logs["eval.csv"].flush()
        self.last_evaluation = float(np.mean([episode.ret for episode in episodes]))
        self.tensorboard.add_scalar("eval/return", self.last_evaluation, steps)
        if self.wandb:
            self.wandb.log({"eval/return": self.last_evaluation}, step=steps)
        if self.bar.disable:  # no terminal: a line now and then
            rate = (steps - self.begun) / (time.perf_counter() - self.started)
            left = tqdm.format_interval((self.args.total_timesteps - steps) / rate) if rate else "?"
            where = f"{self.algorithm} {self.args.env_id}: step {steps}/{self.args.total_timesteps}"
            print(f"{where}, {rate:.0f} steps/s, {left} left, {self.status()}", flush=True)

    def status(self) -> str:
        """The last returns, for the progress line."""
        returns = ["-" if np.isnan(x) else f"{x:.1f}" for x in (self.last_return, self.last_evaluation)]
        return f"last return {returns[0]}, evaluation {returns[1]}"

    def save(self) -> None:
        """Write the checkpoint, whole or not at all. Ends the run instead if a parameter is not finite."""
        self.require_finite(self.agent.named_parameters())
        for file in self.logs.values():
            file.flush()
            os.fsync(file.fileno())
        self.tensorboard.flush()
        checkpoint = {
            "algorithm": self.algorithm,
            "seconds": self.seconds + time.perf_counter() - self.started,
            "logs": {name: file.tell() for name, file in self.logs.items()},
            "generators": generator_states(self.args.run.device),
            **{name: part.state_dict() for name, part in self.parts.items()},
        }
        write_atomically(self.folder / "checkpoint.pt", lambda f: torch.save(checkpoint, f))

    def require_finite(self, values: Iterable[tuple[str, Any]]) -> None:
        """End the run, keeping the last good checkpoint, if one of the named values is NaN or infinite."""
        for name, value in values:
            if not torch.as_tensor(value).isfinite().all():
                sys.exit(
                    f"error: {name} became NaN or infinite before step {self.envs.steps}: the run stops; the last good "
                    f"checkpoint is kept in {self.folder} (a lower --learning-rate may help)"
                )

    def finish(self) -> Path:
        """Close the run; returns its folder."""
        self.bar.close()
        self.tensorboard.close()
        if self.args.run.capture_video and (env := film(self.args.env_id, self.folder / "videos", self.envs.steps)):
            evaluate(self.agent, [env], seeds(self.args.seed, 1, 1), self.args.run.device)
            env.close()
        if self.wandb:
            self.wandb.finish()
        for file in self.logs.values():
            file.close()
        os.close(self.lock)
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        print(f"done: evaluation {self.last_evaluation:.1f} at step {self.envs.steps}; everything is in {self.folder}")
        return self.folder


PACKAGES = ("torch", "gymnasium", "mujoco", "numpy")


def version(package: str) -> str | None:
    """Version of an installed package, None if it is not installed."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None


def git_commit(folder: Path) -> str | None:
    """Commit that the folder's repository is at, None outside a repository or without git."""
    if not shutil.which("git"):
        return None
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True)
    return None if git.returncode else git.stdout.strip()


def write_atomically(path: Path, write: Callable) -> None:
    """write(file) to a temporary name, flush to disk, rename: path is the old file or the new one, never half of it."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    os.replace(temporary, path)


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a run folder. Raises UserError if there is none or it is not one of ours."""
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} is not a run folder (no readable config.json): name the folder of a run") from error
    if not isinstance(config, dict) or not {"algorithm", "args", "history"} <= config.keys():
        raise UserError(f"{folder}/config.json is not that of a run: name the folder of a run")
    return config


def load_checkpoint(folder: Path) -> dict[str, Any]:
    """checkpoint.pt of a run folder, on the CPU. Raises UserError if it is missing or damaged."""
    try:
        return torch.load(folder / "checkpoint.pt", map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError as error:
        raise UserError(f"{folder} holds no checkpoint.pt yet: nothing to load") from error
    except (RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise UserError(f"{folder}/checkpoint.pt is damaged: restore a copy or train again in a new folder") from error


def generator_states(device: str) -> dict[str, Any]:
    """State of the global generators of Python, NumPy and PyTorch, that of the device included."""
    return {
        "python": random.getstate(),
        "numpy": encode(np.random.get_state(legacy=False)),
        "torch": torch.get_rng_state(),
        "device": {"cuda": torch.cuda, "mps": torch.mps}[device].get_rng_state() if device != "cpu" else None,
    }


def restore_generators(states: dict[str, Any], device: str) -> None:
    """Counterpart of generator_states; a run that goes on on another kind of device draws other numbers there."""
    random.setstate(states["python"])
    np.random.set_state(decode(states["numpy"]))
    torch.set_rng_state(states["torch"].clone())
    if device != "cpu" and states["device"] is not None:
        {"cuda": torch.cuda, "mps": torch.mps}[device].set_rng_state(states["device"].clone())


# ---- command line ----------------------------------------------------------------------------------------------------


def prepare(args: Any) -> None:
    """Check the settings, choose the device, seed all generators. Raises UserError; creates nothing."""
    for settings in (args, args.run):
        for name, hint in typing.get_type_hints(type(settings), include_extras=True).items():
            value = getattr(settings, name)
            for low, high in (m for m in getattr(hint, "__metadata__", ()) if isinstance(m, Range)):
                if value is not None and not low <= value <= min(high, sys.float_info.max):
                    valid = f"at least {low}" if high == float("inf") else f"{low} to {high}"
                    raise UserError(f"--{name.replace('_', '-')} {value} is out of range: use {valid}")
    if args.total_timesteps % args.num_envs:
        whole = -(-args.total_timesteps // args.num_envs) * args.num_envs
        raise UserError(
            f"--total-timesteps {args.total_timesteps} is not a multiple of --num-envs {args.num_envs}: use {whole}"
        )
    args.check()
    run = args.run
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if run.device == "auto":
        run.device = "cuda" if present["cuda"] else "cpu"
    if not present[run.device]:
        raise UserError(f"--device {run.device} is not present here: use --device cpu or auto")
    if run.track and version("wandb") is None:
        raise UserError("--track needs Weights & Biases: `pip install wandb`")
    if run.track and os.environ.get("WANDB_MODE", "online") == "online":
        import wandb

        if not wandb.api.api_key:
            raise UserError("--track: Weights & Biases knows no API key: run `wandb login`, or set WANDB_MODE=offline")
    if run.compile:
        header = Path(sysconfig.get_path("include"), "Python.h").exists()
        compiler = any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++"))
        if run.device == "mps" or not (header and compiler):
            print("not compiling (needs a C++ compiler, Python headers, and cpu or cuda): slower, otherwise the same")
            run.compile = False
    if run.compile:
        torch._dynamo.config.trace_autograd_ops = True  # lets torch.autograd.grad be part of the compiled graph
        torch._inductor.config.compile_threads = 1  # no pool of compile processes, which would double the memory
    torch.set_num_threads(run.threads)
    warnings.filterwarnings("ignore", message="The value of the smallest subnormal")  # true, because of the next line
    torch.set_flush_denormal(True)  # Adam's moments of dead units decay into denormal numbers, which are slow
    torch.manual_seed(args.seed % 2**63)
    np.random.seed(args.seed % 2**32)
    random.seed(args.seed)


def command_line(args_class: type, defaults: Any = None) -> Any:
    """tyro.cli, with its error box condensed to one line. Raises UserError."""
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            description = sys.modules[args_class.__module__].__doc__
            return tyro.cli(args_class, default=defaults, description=description, config=(tyro.conf.OmitArgPrefixes,))
    except SystemExit as exit:
        if not exit.code:
            raise
        # the text between the title's rule and the next one; the box is of ASCII where the terminal is not UTF-8
        box = re.search(
            r"^(?:╭| ---)[^\n]*\n(.*?)\n(?:╰|[ │]+(?:───|---)|\s*\Z)", errors.getvalue(), re.DOTALL | re.MULTILINE
        )
        message = " ".join((box[1] if box else errors.getvalue()).replace("│", " ").split())
        no_integer = r"invalid literal for int\(\) with base 10: (\S+)"  # 1e6, say
        message = re.sub(no_integer, r"\1 is no whole number, write digits only, as in 1000000", message)
        similar = re.search(r"Perhaps you meant:\s+\W*(--[\w-]+)", errors.getvalue())
        hint = f" (perhaps you meant {similar[1]})" if similar else ""
        raise UserError(f"{message.rstrip('.')}{hint}: see --help") from exit


def parse(args_class: type, algorithm: str) -> Any:
    """Settings from the command line; those of a run folder to resume or evaluate come from its config.json."""
    args = command_line(args_class)
    if args.run.resume and args.run.evaluate:
        raise UserError("--resume and --evaluate exclude each other: use one")
    for name in ("run_dir", "resume", "evaluate"):
        if getattr(args.run, name) == "":
            raise UserError(f"--{name.replace('_', '-')} '' is empty: name a folder")
    folder = args.run.resume or args.run.evaluate
    if not folder:
        return args
    config = read_config(Path(folder))
    if config["algorithm"] != algorithm:
        raise UserError(f"{folder} is a run of {config['algorithm']}, not {algorithm}: use {config['algorithm']}.py")
    try:
        saved = args_class(**{**config["args"], "run": RunArgs(**config["args"]["run"])})
    except TypeError as error:
        raise UserError(f"{folder}/config.json does not fit this script ({error}): use the one of then") from error
    if args.run.evaluate:  # may happen on another machine, and films only if this command line says so
        saved.run.device, saved.run.capture_video = "auto", False
    args = command_line(args_class, saved)
    before, after = (asdict(a)["run"] | asdict(a) | {"run": None} for a in (saved, args))
    free = {"device", "threads", "eval_episodes", "seed", "capture_video", "evaluate"}
    if args.run.resume:
        free = {"device", "threads", "compile", "checkpoint_every", "log_every", "capture_video", "resume",
                "total_timesteps", "track", "wandb_project_name", "wandb_entity"}  # fmt: skip
    for name in after:
        if before[name] != after[name] and name not in free:
            raise UserError(
                f"--{name.replace('_', '-')} {after[name]} differs from the run's {before[name]}: leave it out, "
                "or start a new run"
            )
    return args


def evaluate_saved(args: Any, agent_class: type[nn.Module]) -> None:
    """Evaluate the policy of the run folder `args.run.evaluate` and print the returns' statistics."""
    folder, run = Path(args.run.evaluate), args.run
    run.compile = False
    prepare(args)
    checkpoint = load_checkpoint(folder)
    steps = checkpoint["envs"]["steps"]
    env = film(args.env_id, folder / "videos", steps) if run.capture_video else None
    envs = [env] if env else [make_env(args.env_id) for _ in range(min(run.eval_episodes, 10))]
    agent = agent_class(envs[0].observation_space, envs[0].action_space, args)
    agent.load_state_dict(checkpoint["agent"])
    episodes = evaluate(agent, envs, seeds(args.seed, 1, run.eval_episodes), run.device)
    returns = np.array([episode.ret for episode in episodes])
    print(
        f"{args.env_id}, step {steps}, {len(returns)} episodes: return "
        f"mean {returns.mean():.2f}, std {returns.std():.2f}, min {returns.min():.2f}, max {returns.max():.2f}"
    )
    if episodes[0].success is not None:
        print(f"success rate {np.mean([episode.success for episode in episodes]):.2f}")
    if env:
        env.close()
        print(f"videos in {folder / 'videos'}")


def main(args_class: type, agent_class: type[nn.Module], train: Callable) -> None:
    """Entry point of the command line; user errors become one line and exit code 2."""
    try:
        args = parse(args_class, agent_class.__name__.lower())
        if args.run.evaluate:
            evaluate_saved(args, agent_class)
        else:
            train(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:  # before the run catches Ctrl-C itself
        sys.exit(128 + signal.SIGINT)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        with contextlib.suppress(OSError):  # where stderr is a file on the same disk
            message = "free some space, then continue with --resume (the last checkpoint is whole)"
            print(f"error: the disk is full: {message}", file=sys.stderr, flush=True)
        sys.exit(os.EX_IOERR)


# ======================================================================================================================
# 6 Entry
# ======================================================================================================================

if __name__ == "__main__":
    main(Args, HER_DDPG, train)
