"""REINFORCE: the Monte-Carlo policy gradient from whole trajectories, in one file.

Find the policy pi that maximises J = E[sum_t gamma^t r_t] from N trajectories tau of the current policy per update.

    G(tau) = sum_t gamma^t r_t                   `--estimator total-return`            [REINFORCE.1]
    G_t    = r_t + gamma G_{t+1}                 `--estimator reward-to-go`            [REINFORCE.2]
    grad J = 1/N sum_tau sum_t grad log pi(a_t | s_t) (G - b)                          [REINFORCE.3]  G of .1 or .2
    b      = mean G                              `--baseline mean`                     [REINFORCE.4]
    b      = E[(sum_t grad log pi)^2 G] / E[(sum_t grad log pi)^2]
                                                 `--baseline optimal`, per parameter   [REINFORCE.5]
    b      = V(s_t),  L(V) = mean (V(s_t) - G_t)^2      `--baseline value`             [REINFORCE.6]
    theta <- theta + alpha grad J                                                      [REINFORCE.7]  theta of pi

Symbols: pi = actor, V = value, alpha = learning_rate, N = episodes_per_update, G = g, sum_t grad log pi = score. With
`--estimator total-return --baseline none --gamma 1 --no-scale-gradient` [REINFORCE.3] is the slides' Algorithm 1.

Paper: Williams (1992), "Simple statistical gradient-following algorithms for connectionist reinforcement learning".
Lecture: "Policy Gradient Methods", slides "The Policy Gradient Theorem", "The REINFORCE Algorithm", "REINFORCE with
Baseline", for the loss "Automatic Policy Differentiation", for the policies "Policy Gradient Methods".

Deviations from the slides, each with its reason, and what to know of the estimates:
  * Adam, learning rate decayed to 0, orthogonal initialisation, observations normalised by statistics that are fixed
    during a batch and its update: one setting for tasks of all sizes.
  * The gradient is divided by the mean length of its trajectories and the root mean square of G - b: episodes that grow
    from 20 to 1000 steps would multiply it. Its direction stays: the baseline alone moves the advantages' mean.
  * With gamma < 1 the reward-to-go estimator lacks the factor gamma^t, as usual: late actions count as much as early
    ones. At gamma = 1, and with the total return at any gamma, the estimate is the gradient of J.
  * The mean and the optimal b come from the trajectories that they are subtracted from, which shortens the estimate
    a little: for the mean total return by (N - 1) / N exactly. V is fitted after the policy's step, so it has not seen
    them.
  * The slides' setting is a finite horizon: an episode that a time limit cuts is a whole trajectory, and its rewards
    end there. With the value baseline V(s_T) stands for the rest (`--bootstrap`), as V cannot know the time left.
  * Environments whose episodes of a batch are over go on until the last one's are; these steps count, but nothing is
    learned from them. To take the first N episodes that end instead would favour short ones.

    python reinforce.py --env-id Hopper-v5 --seed 1
    python reinforce.py --evaluate runs/Hopper-v5/reinforce/RUN --eval-episodes 20
"""

from __future__ import annotations

import contextlib
import csv
import datetime
import errno
import fcntl
import hashlib
import importlib
import importlib.metadata
import io
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
    """Settings of a REINFORCE run; the defaults are meant for 1M steps of any MuJoCo task."""

    env_id: str = "HalfCheetah-v5"
    """Gymnasium environment; `my_module:MyEnv-v0` imports my_module (looked up in the current folder too) first."""
    seed: Annotated[int, Range(0)] = 1
    """Seed of everything random (>= 0)."""
    total_timesteps: Annotated[int, Range(1)] = 1_000_000
    """Environment steps of the whole run, counted over all environments (a multiple of num-envs)."""
    num_envs: Annotated[int, Range(1)] = 4
    """Environments stepped side by side (>= 1)."""
    learning_rate: Annotated[float, Range(0)] = 5e-3
    """Step size of the optimiser (>= 0)."""
    anneal_lr: bool = True
    """Decay the learning rate linearly to 0 at total-timesteps (raised on resume, it starts from a higher rate)."""
    episodes_per_update: Annotated[int, Range(1)] = 4
    """Whole trajectories per gradient step of the policy (>= num-envs)."""
    estimator: Literal["total-return", "reward-to-go"] = "reward-to-go"
    """What weighs grad log pi(a_t | s_t): the return of the whole trajectory, or what it earns from time t on."""
    baseline: Literal["none", "mean", "optimal", "value"] = "value"
    """What is subtracted from it: nothing, the average, the constant of least variance, or a learned V(s_t)."""
    value_epochs: Annotated[int, Range(1)] = 4
    """Passes over the trajectories in which V is fitted, if it is the baseline (>= 1)."""
    bootstrap: bool = True
    """With the value baseline, count V of a truncated trajectory's last state as its further reward."""
    scale_gradient: bool = True
    """Divide the policy gradient by the mean trajectory length and the root mean square of the advantages."""
    gamma: Annotated[float, Range(0, 1)] = 0.99
    """Discount factor (0 to 1)."""
    log_std_init: Annotated[float, Range(-20, 2)] = -0.5
    """Initial log standard deviation of the Gaussian policy, in half action ranges (-20 to 2)."""
    norm_obs: bool = True
    """Normalise observations by their running mean and standard deviation, clipped to +-10."""
    run: RunArgs = field(default_factory=lambda: RunArgs())

    def check(self) -> None:
        """Raise UserError where two settings contradict each other."""
        if self.num_envs > self.episodes_per_update:
            raise UserError(
                f"--num-envs {self.num_envs} exceeds --episodes-per-update {self.episodes_per_update}, so some "
                "environments would run for nothing: lower the first or raise the second"
            )
        if self.episodes_per_update == 1 and self.baseline in ("mean", "optimal"):
            raise UserError(
                f"--baseline {self.baseline} compares trajectories, but --episodes-per-update 1 is alone: raise it"
            )
        if self.gamma == 1 and self.baseline == "value" and self.bootstrap:
            raise UserError(
                "--gamma 1.0 makes the value of an episode without end infinite: lower it or use --no-bootstrap"
            )


# ======================================================================================================================
# 2 Networks
# ======================================================================================================================


def mlp(inputs: int, outputs: int, gain: float) -> nn.Sequential:
    """Two hidden layers of 64 tanh units, orthogonal weights (the last layer's scaled by gain), zero biases."""
    net = nn.Sequential(nn.Linear(inputs, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, outputs))
    for layer, scale in zip(net[::2], (2**0.5, 2**0.5, gain), strict=True):
        nn.init.orthogonal_(layer.weight, scale)
        nn.init.zeros_(layer.bias)
    return net


class GaussianActor(nn.Module):
    """pi(a | s) = N(mu(s), diag(std)^2) with a std that does not depend on s. s is [n, obs], a is [n, act].

    Actions are in units in which the environment's bounds are -1 and 1; to_env clips and scales them.
    """

    def __init__(self, obs_dim: int, space: gym.spaces.Box, log_std: float):
        super().__init__()
        low, high = (torch.as_tensor(bound, dtype=torch.float32) for bound in (space.low, space.high))
        bounded = low.isfinite() & high.isfinite()
        self.mu = mlp(obs_dim, len(low), gain=0.01)
        self.log_std = nn.Parameter(torch.full((len(low),), log_std))
        self.register_buffer("low", low)
        self.register_buffer("high", high)
        self.register_buffer("scale", torch.where(bounded, (high - low) / 2, 1.0))  # an unbounded action stays as it is
        self.register_buffer("centre", torch.where(bounded, (high + low) / 2, 0.0))

    def mode(self, s: Tensor) -> Tensor:
        """The most likely action."""
        return self.mu(s)

    def sample(self, s: Tensor) -> Tensor:
        """A random action, not clipped."""
        mu = self.mu(s)
        return mu + self.log_std.exp() * torch.randn_like(mu)

    def log_prob(self, s: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        """log pi(a | s) [n] and the entropy S[pi](s) [n]."""
        z = (a - self.mu(s)) / self.log_std.exp()
        logp = (-0.5 * z.square() - self.log_std - 0.5 * math.log(2 * math.pi)).sum(-1)  # log N(a; mu, std^2)
        entropy = (self.log_std + 0.5 * math.log(2 * math.pi * math.e)).sum()  # S[N] = sum log std + log(2 pi e) / 2
        return logp, entropy.expand_as(logp)

    def to_env(self, a: Tensor) -> Tensor:
        """The action in the environment's units, inside its bounds."""
        return (self.centre + self.scale * a).clamp(self.low, self.high)


class SoftmaxActor(nn.Module):
    """pi(a | s) = softmax(z(s))_a over discrete actions. s is [n, obs], a is [n] (integers from 0)."""

    def __init__(self, obs_dim: int, space: gym.spaces.Discrete):
        super().__init__()
        self.start = int(space.start)
        self.logits = mlp(obs_dim, int(space.n), gain=0.01)

    def mode(self, s: Tensor) -> Tensor:
        """The most likely action."""
        return self.logits(s).argmax(-1)

    def sample(self, s: Tensor) -> Tensor:
        """A random action."""
        return torch.multinomial(self.logits(s).softmax(-1), 1).squeeze(-1)

    def log_prob(self, s: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        """log pi(a | s) [n] and the entropy S[pi](s) [n]."""
        logp = self.logits(s).log_softmax(-1)
        entropy = -(logp.exp() * logp).sum(-1)  # S = - sum_a pi(a | s) log pi(a | s)
        return logp.gather(-1, a.unsqueeze(-1)).squeeze(-1), entropy

    def to_env(self, a: Tensor) -> Tensor:
        """The action in the environment's numbering."""
        return a + self.start


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


class Trajectory(NamedTuple):
    """An episode of T steps: s [T, obs], a [T, act] or [T], r [T], the state s_end [obs] that it led to.

    terminal tells true termination from truncation.
    """

    s: Tensor
    a: Tensor
    r: Tensor
    s_end: Tensor
    terminal: bool


def rewards_to_go(r: Tensor, g_end: float, gamma: float) -> Tensor:
    """G_t [T] of one trajectory's rewards r [T]; g_end is the return after its last step."""
    g = [g_end]
    for r_t in reversed(r.tolist()):
        g.append(r_t + gamma * g[-1])  # G_t = r_t + gamma G_{t+1}   [REINFORCE.2]
    return torch.tensor(g[:0:-1], device=r.device)


CHUNK = 256  # rows of one gradient call: trajectories differ in length, but a compiled function's shapes are fixed


def chunks(*columns: Tensor) -> list[tuple[Tensor, ...]]:
    """Columns [n, ...] cut into pieces of CHUNK rows, the last one filled up with zeros."""
    missing = -len(columns[0]) % CHUNK
    filled = [torch.cat([x, x.new_zeros(missing, *x.shape[1:])]) for x in columns]
    return list(zip(*(x.split(CHUNK) for x in filled), strict=True))


class REINFORCE(nn.Module):
    """The REINFORCE agent: how it acts, its gradient, its update. s is [n, obs] as the environment gives it.

    Raises UserError if the environment's spaces do not fit: flat observations, continuous or discrete actions.
    """

    metrics = {
        "policy_loss": "minus the mean of log pi(a_t | s_t) (G - b) over the update's steps [REINFORCE.3]",
        "entropy": "S[pi], in nats, of the unclipped action in half action ranges",
        "kl": "estimate mean((ratio - 1) - log ratio) of the KL divergence between old and new policy",
        "grad_norm": "Euclidean norm of the policy gradient",
        "episode_length": "mean length of the update's trajectories",
        "value_loss": "L(V) of the standardised returns, if V is the baseline [REINFORCE.6]",
        "explained_variance": "1 - Var(G - V) / Var(G) before V is fitted; 1 is a perfect V, empty without V",
        "learning_rate": "Adam step size of the update",
    }

    def __init__(self, observation_space: gym.Space, action_space: gym.Space, args: Args):
        super().__init__()
        obs_dim = flat_size(observation_space)
        self.args = args
        if isinstance(action_space, gym.spaces.Discrete):
            self.actor = SoftmaxActor(obs_dim, action_space)
        elif isinstance(action_space, gym.spaces.Box) and len(action_space.shape) == 1:
            self.actor = GaussianActor(obs_dim, action_space, args.log_std_init)
        else:
            raise UserError(f"actions {action_space} are neither discrete nor vectors: wrap the environment")
        self.critic = mlp(obs_dim, 1, gain=1.0)
        self.obs_stats = RunningMoments(obs_dim)
        self.return_stats = RunningMoments(1)
        self.to(args.run.device)
        # flat: all parameters of a network as one vector, which moves the network; actor and critic share none
        self.optimizer = torch.optim.Adam([flat(self.actor)], args.learning_rate, eps=1e-5, fused=True)
        self.value_optimizer = torch.optim.Adam([flat(self.critic)], args.learning_rate, eps=1e-5, fused=True)
        self.gradient = gradient_function(self.loss, self.actor, args.run)
        self.value_gradient = gradient_function(self.value_loss, self.critic, args.run)

    def normalise(self, s: Tensor) -> Tensor:
        """Observations as the networks see them."""
        return self.obs_stats.standardise(s).clamp(-10, 10) if self.args.norm_obs else s

    @torch.no_grad()
    def act(self, s: Tensor) -> Tensor:
        """The deterministic policy in environment units, used in evaluation: the most likely action."""
        return self.actor.to_env(self.actor.mode(self.normalise(s)))

    @torch.no_grad()
    def explore(self, s: Tensor) -> Tensor:
        """The behaviour policy: a sample of pi(. | s), not yet clipped and scaled by actor.to_env."""
        return self.actor.sample(self.normalise(s))

    @torch.no_grad()
    def value(self, s: Tensor) -> Tensor:
        """V(s) [n] of normalised s, in units of the return; the critic's output is standardised."""
        return self.return_stats.mean + self.return_stats.std() * self.critic(s).squeeze(-1)

    def loss(self, s: Tensor, a: Tensor, w: Tensor):
        """Minus sum_t w_t log pi(a_t | s_t): not J, but its gradient is that of J; s is normalised, w is [n]."""
        logp, _ = self.actor.log_prob(s, a)
        return -(w * logp).sum(), {}

    def value_loss(self, s: Tensor, g: Tensor, weight: Tensor):
        """L(V) [REINFORCE.6] and its metric; s is normalised, g [n] standardised, weight [n] 0 for filled-up rows."""
        error = (self.critic(s).squeeze(-1) - g).square()
        loss = (weight * error).sum() / weight.sum()  # L(V) = mean (V(s_t) - G_t)^2   [REINFORCE.6]
        return loss, {"value_loss": loss}

    def score(self, s: Tensor, a: Tensor, w: Tensor) -> Tensor:
        """sum_t w_t grad log pi(a_t | s_t), as long as theta; s is normalised, w is [n]."""
        return -sum(self.gradient(*chunk)[0] for chunk in chunks(s, a, w))

    def returns(self, trajectories: list[Trajectory]) -> list[Tensor]:
        """G_t [T] of each trajectory [REINFORCE.2]."""
        if self.args.baseline == "value" and self.args.bootstrap:
            v_end = self.value(self.normalise(torch.stack([tau.s_end for tau in trajectories]))).tolist()
        else:
            v_end = [0.0] * len(trajectories)
        return [
            rewards_to_go(tau.r, 0.0 if tau.terminal else v, self.args.gamma)
            for tau, v in zip(trajectories, v_end, strict=True)
        ]

    def optimal_baseline(self, score: Tensor, weighted: Tensor) -> Tensor:
        """The b of each parameter with which the gradient's variance is least; both [N, parameters].

        score holds x = sum_t grad log pi(a_t | s_t) of each trajectory and weighted y = sum_t grad log pi(a_t | s_t) G,
        so y - b x has the least variance at b = E[x y] / E[x^2], since E[x] = 0; with G(tau), y = x G.
        """
        x2 = score.square().sum(0)
        b = (score * weighted).sum(0) / x2  # b = E[(sum_t grad log pi)^2 G] / E[(sum_t grad log pi)^2]   [REINFORCE.5]
        return b.where(x2 > 0, 0.0)

    def policy_gradient(self, s: Tensor, a: Tensor, g: list[Tensor]) -> tuple[Tensor, Tensor]:
        """The estimate of grad J, as long as theta, and the advantages G - b [n] in it.

        s [n, obs], normalised, and a are the steps of all trajectories, g holds the G_t of each. The optimal b, which
        is different for every parameter, is subtracted in the gradient; the advantages that go with it, which set the
        gradient's scale, are those of the mean.
        """
        lengths = [len(g_t) for g_t in g]
        if self.args.estimator == "total-return":
            g = [g_t[:1].expand(len(g_t)) for g_t in g]  # G(tau) = sum_t gamma^t r_t   [REINFORCE.1]
        adv = torch.cat(g)
        if self.args.baseline in ("mean", "optimal"):
            adv = adv - torch.stack([g_t.mean() for g_t in g]).mean()  # b = mean G   [REINFORCE.4]
        elif self.args.baseline == "value":
            adv = adv - self.value(s)  # b = V(s_t)   [REINFORCE.6]
        if self.args.baseline == "optimal":
            tau = list(zip(s.split(lengths), a.split(lengths), g, strict=True))
            score = torch.stack([self.score(s_t, a_t, torch.ones_like(g_t)) for s_t, a_t, g_t in tau])
            weighted = torch.stack([self.score(s_t, a_t, g_t) for s_t, a_t, g_t in tau])
            total = (weighted - self.optimal_baseline(score, weighted) * score).sum(0)
        else:
            total = self.score(s, a, adv)
        gradient = total / len(g)  # grad J = 1/N sum_tau sum_t grad log pi(a_t | s_t) (G - b)   [REINFORCE.3]
        if self.args.scale_gradient:
            gradient = gradient / (len(adv) / len(g) * adv.square().mean().sqrt() + 1e-8)
        return gradient, adv

    def fit_value(self, s: Tensor, g: Tensor) -> Tensor:
        """Fit V to the returns g [n] of normalised s; returns L(V), averaged over the minibatches."""
        self.return_stats.update(g.unsqueeze(-1))
        g = self.return_stats.standardise(g.unsqueeze(-1)).squeeze(-1)
        losses = []
        for _ in range(self.args.value_epochs):
            order = torch.randperm(len(g), device=g.device)
            for minibatch in chunks(s[order], g[order], torch.ones_like(g)):
                gradient, info, _ = self.value_gradient(*minibatch)
                descend(self.value_optimizer, gradient)
                losses.append(info["value_loss"])
        return torch.stack(losses).mean()

    def update(self, trajectories: list[Trajectory], progress: float) -> dict[str, Any]:
        """One policy step on whole trajectories, then the fit of V; progress (0 to 1) is the share of the run over."""
        args = self.args
        lr = args.learning_rate * (1 - progress) if args.anneal_lr else args.learning_rate
        self.optimizer.param_groups[0]["lr"] = self.value_optimizer.param_groups[0]["lr"] = lr
        seen, a = (torch.cat([tau[k] for tau in trajectories]) for k in (0, 1))
        s, g = self.normalise(seen), self.returns(trajectories)
        with torch.no_grad():
            logp_old, entropy = self.actor.log_prob(s, a)
        gradient, adv = self.policy_gradient(s, a, g)
        descend(self.optimizer, -gradient)  # theta <- theta + alpha grad J   [REINFORCE.7]
        with torch.no_grad():
            log_ratio = self.actor.log_prob(s, a)[0] - logp_old
        info = {
            "policy_loss": -(logp_old * adv).mean(), "entropy": entropy.mean(), "grad_norm": gradient.norm(),
            "kl": (log_ratio.exp() - 1 - log_ratio).mean(), "episode_length": len(s) / len(g), "learning_rate": lr,
        }  # fmt: skip
        if args.baseline == "value":  # after the policy's step: V must not know the returns it is subtracted from
            g = torch.cat(g)
            info["explained_variance"] = 1 - (g - self.value(s)).var(correction=0) / (g.var(correction=0) + 1e-8)
            info["value_loss"] = self.fit_value(s, g)
        if args.norm_obs:  # after the update: the trajectories were made with the old statistics
            self.obs_stats.update(seen)
        return info

    def get_extra_state(self) -> dict[str, Any]:
        """What state_dict() holds beside parameters and buffers."""
        return {"optimizer": self.optimizer.state_dict(), "value_optimizer": self.value_optimizer.state_dict()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Counterpart of get_extra_state."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.value_optimizer.load_state_dict(state["value_optimizer"])


# ======================================================================================================================
# 4 Training loop
# ======================================================================================================================


class Episodes:
    """Collects the trajectories of one update: the first `wanted` episodes that are *started*, however long they last.

    Taking the first that end would prefer short episodes, and so would dropping those that a fixed number of steps
    cuts. An environment whose episode ends starts another that counts as long as fewer than `wanted` are started; what
    it does after that, until the last counted episode ends, is discarded (but counted as environment steps, and its
    finished episodes are in train.csv). Part of the checkpoint, so that a run may be interrupted inside a batch.
    """

    def __init__(self, wanted: int, num_envs: int, device: str):
        self.wanted, self.num_envs, self.device = wanted, num_envs, device
        self.clear()

    def clear(self) -> None:
        """Start a batch: nothing counts before an environment's next first step."""
        self.rows: list[tuple[Tensor, Tensor, Tensor]] = []  # s [n, obs], a [n, ...], r [n] of every step
        self.started = 0
        self.first_row: list[int | None] = [None] * self.num_envs  # of the counted episode that an environment is in
        self.ended: list[tuple[int, int, int, Tensor, bool]] = []  # environment, rows from, to; s_end, terminal

    def add(self, first: np.ndarray, s: Tensor, a: Tensor, r: np.ndarray, s2: np.ndarray, terminal, done) -> None:
        """Take in one step of every environment, arguments [n, ...]; first tells where s begins an episode."""
        for i in np.flatnonzero(first):
            interrupted = self.first_row[i] is not None  # by a resume that had to start a new episode: that one counts
            if interrupted or self.started < self.wanted:
                self.started += not interrupted
                self.first_row[i] = len(self.rows)
        self.rows.append((s, a.cpu(), torch.from_numpy(r)))
        for i in np.flatnonzero(done):
            if self.first_row[i] is not None:
                s_end = torch.from_numpy(s2[i].copy())
                self.ended.append((int(i), self.first_row[i], len(self.rows), s_end, bool(terminal[i])))
                self.first_row[i] = None

    def complete(self) -> bool:
        """Whether all counted episodes have ended."""
        return len(self.ended) == self.wanted

    def take(self) -> list[Trajectory]:
        """The trajectories of a complete batch; starts the next one."""
        s, a, r = (torch.stack(column).to(self.device) for column in zip(*self.rows, strict=True))
        trajectories = [
            Trajectory(s[begin:end, i], a[begin:end, i], r[begin:end, i], s_end.to(self.device), terminal)
            for i, begin, end, s_end, terminal in self.ended
        ]
        self.clear()
        return trajectories

    def state_dict(self) -> dict[str, Any]:
        """The unfinished batch."""
        columns = [torch.stack(column) for column in zip(*self.rows, strict=True)]
        return {"columns": columns, "started": self.started, "first_row": self.first_row, "ended": self.ended}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Counterpart of state_dict."""
        self.rows = list(zip(*(column.unbind() for column in state["columns"]), strict=True))
        self.started, self.first_row, self.ended = state["started"], state["first_row"], state["ended"]


def train(args: Args) -> Path:
    """Train from scratch or from `args.run.resume`; returns the run folder."""
    prepare(args)
    envs = VectorEnvs(args.env_id, args.num_envs, args.seed)
    agent = REINFORCE(envs.observation_space, envs.action_space, args)
    episodes = Episodes(args.episodes_per_update, args.num_envs, args.run.device)
    run = Run(args, agent, envs, episodes=episodes)
    info: dict[str, Tensor] = {}
    while envs.steps < args.total_timesteps:
        # collect: an unfinished last batch ends with the run and is not learned from
        first, s = envs.lengths == 0, torch.from_numpy(envs.obs)
        a = agent.explore(s.to(args.run.device))
        s2, r, terminal, done = envs.step(agent.actor.to_env(a))
        # remember
        episodes.add(first, s, a, r, s2, terminal, done)
        # learn
        if episodes.complete():
            begun = envs.steps - len(episodes.rows) * args.num_envs
            info = agent.update(episodes.take(), begun / args.total_timesteps)
            if not done.all():  # some are inside an episode that was begun with the old policy
                envs.restart(seeds(args.seed, 3 + envs.steps, args.num_envs))
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
    main(Args, REINFORCE, train)
