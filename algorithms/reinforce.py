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

Symbols: pi = actor, V = value, alpha = learning_rate, N = num_envs, G = g, sum_t grad log pi = score. With
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
  * The mean and the optimal b come from the trajectories that they are subtracted from, which shortens the estimate:
    for the mean total return to (N - 1) / N of its length exactly. V is fitted after the policy's step, so it has not
    seen them, in minibatches of 256 of their steps drawn with replacement.
  * The slides' setting is a finite horizon: an episode that a time limit cuts is a whole trajectory, and its rewards
    end there. With the value baseline V(s_T) stands for the rest (`--bootstrap`), as V cannot know the time left.
  * Environments whose episodes of a batch are over go on until the last one's are; these steps count, but nothing is
    learned from them. To take the first N episodes that end instead would favour short ones.

    python reinforce.py --env-id Hopper-v5 --seed 1
    python reinforce.py --evaluate runs/Hopper-v5/reinforce/RUN --eval-episodes 20
"""

from __future__ import annotations

import contextlib
import copy
import csv
import hashlib
import importlib.util
import io
import json
import math
import os
import random
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_type_hints

import gymnasium as gym
import numpy as np
import torch
import tyro
from filelock import FileLock
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
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
    """Environment steps of the whole run, counted over all environments; rounded up to steps that all of them take
    (reinforce: to whole episodes)."""
    num_envs: Annotated[int, Range(1)] = 4
    """Environments stepped side by side, and episodes per gradient step of the policy, one in each (>= 1); at this
    learning rate short episodes need more: 16 of Reacher's 50 steps."""
    learning_rate: Annotated[float, Range(0)] = 5e-3
    """Step size of the optimiser (>= 0)."""
    anneal_lr: bool = True
    """Decay the learning rate linearly to 0 at total-timesteps (raised on resume, it starts from a higher rate)."""
    estimator: Literal["total-return", "reward-to-go"] = "reward-to-go"
    """What weighs grad log pi(a_t | s_t): the return of the whole trajectory, or what it earns from time t on."""
    baseline: Literal["none", "mean", "optimal", "value"] = "value"
    """What is subtracted from it: nothing, the average, the constant of least variance, or a learned V(s_t)."""
    value_epochs: Annotated[int, Range(1)] = 4
    """How often V is fitted to each step on average, if it is the baseline, in minibatches of 256 (>= 1)."""
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
    # where and how it runs, the same in every algorithm
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where the networks live; auto is cuda where there is one, else cpu."""
    threads: Annotated[int, Range(1)] = 1
    """CPU threads of PyTorch (>= 1); two runs of one thread finish more work than one run of two."""
    compile: bool = True
    """Compile the gradients with torch.compile: 10 to 40 s at the start, faster steps after."""
    matmul_precision: Literal["highest", "high", "medium"] = "highest"
    """Products of matrices: highest is float32, high is TF32 on a GPU, medium bfloat16 on a CPU that has it: faster."""
    run_dir: str | None = None
    """Run folder; default runs/ENV_ID/ALGORITHM/SEED-CHANGES-TIME. An existing run is never overwritten."""
    eval_every: Annotated[int, Range(1)] = 20_000
    """Environment steps between evaluations (>= 1); the first is at step 0, the last at the end."""
    eval_episodes: Annotated[int, Range(1)] = 10
    """Episodes of an evaluation: deterministic policy, own environments, the same start seeds each time (>= 1)."""
    checkpoint_every: Annotated[int, Range(1)] = 100_000
    """Environment steps between checkpoints (>= 1), rounded up to whole rollouts; running episodes are cut there
    (reinforce: rounded up to whole episodes)."""
    log_every: Annotated[int, Range(1)] = 1_000
    """Environment steps between rows of metrics.csv (>= 1)."""
    resume: str | None = None
    """Run folder to continue with its own settings; only total-timesteps (not below the steps done), device, threads,
    compile, checkpoint-every, log-every, capture-video, render and the options of Weights & Biases may change."""
    evaluate: str | None = None
    """Run folder whose saved policy to evaluate, instead of training."""
    capture_video: bool = False
    """Film as mp4, in the folder's videos/: the evaluated episodes, or one episode of a finished training."""
    render: bool = False
    """Show these episodes on the screen (not while they are filmed)."""
    track: bool = False
    """Also log to Weights & Biases (`pip install wandb`; WANDB_MODE=offline works)."""
    wandb_project_name: str = "gradus"
    """Weights & Biases project."""
    wandb_entity: str | None = None
    """Weights & Biases team; default your own."""

    def check(self) -> None:
        """Raise UserError where two settings contradict each other."""
        if self.num_envs == 1 and self.baseline in ("mean", "optimal"):
            raise UserError(f"--baseline {self.baseline} compares episodes, but --num-envs 1 gives only one: raise it")
        if self.gamma == 1 and self.baseline == "value" and self.bootstrap:
            raise UserError("--gamma 1 makes the value of an endless episode infinite: lower it or use --no-bootstrap")


# ======================================================================================================================
# 2 Networks
# ======================================================================================================================


def flat_size(space: gym.Space) -> int:
    """Length of an observation. Raises UserError unless observations are vectors."""
    if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1:
        raise UserError(f"observations {space} are not vectors: use gymnasium's FlattenObservation in make_env")
    return space.shape[0]


def mlp(inputs: int, outputs: int, gain: float) -> nn.Sequential:
    """Two hidden layers of 64 tanh units, orthogonal weights (the last layer's scaled by gain), zero biases."""
    net = nn.Sequential(nn.Linear(inputs, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, outputs))
    for layer, scale in zip(net[::2], (2**0.5, 2**0.5, gain), strict=True):
        nn.init.orthogonal_(layer.weight, scale)
        nn.init.zeros_(layer.bias)
    return net  # f(x; theta), theta as initialised above   [NET.1]


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
        return torch.addcmul(mu, self.log_std.exp(), torch.randn_like(mu))  # a = mu + std z, z ~ N(0, I)   [GAUSS.1]

    def log_prob(self, s: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        """log pi(a | s) [n] and the entropy S[pi](s) [n]."""
        z = (a - self.mu(s)) / self.log_std.exp()
        logp = (-0.5 * z.square() - self.log_std - 0.5 * math.log(2 * math.pi)).sum(-1)  # log N(mu, std^2)   [GAUSS.2]
        entropy = (self.log_std + 0.5 * math.log(2 * math.pi * math.e)).sum()  # sum log(std sqrt(2 pi e))   [GAUSS.3]
        return logp, entropy.expand_as(logp)

    def to_env(self, a: Tensor) -> Tensor:
        """The action in the environment's units, inside its bounds."""
        return torch.addcmul(self.centre, self.scale, a).clamp(self.low, self.high)  # centre + scale a, clipped


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
        z = self.logits(s)
        return (z - torch.empty_like(z).exponential_().log()).argmax(-1)  # Gumbel: argmax ~ pi   [SOFTMAX.1]

    def log_prob(self, s: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        """log pi(a | s) [n] and the entropy S[pi](s) [n]."""
        logp = self.logits(s).log_softmax(-1)  # log pi(a | s) = z_a - log sum_j e^z_j   [SOFTMAX.2]
        entropy = -(logp.exp() * logp).sum(-1)  # S = - sum_a pi(a | s) log pi(a | s)   [SOFTMAX.3]
        return logp.gather(-1, a.unsqueeze(-1)).squeeze(-1), entropy

    def to_env(self, a: Tensor) -> Tensor:
        """The action in the environment's numbering."""
        return a + self.start


def make_actor(obs_dim: int, space: gym.Space, log_std: float) -> GaussianActor | SoftmaxActor:
    """The policy for an action space. Raises UserError unless actions are discrete or vectors."""
    if isinstance(space, gym.spaces.Discrete):
        return SoftmaxActor(obs_dim, space)
    if isinstance(space, gym.spaces.Box) and len(space.shape) == 1:
        return GaussianActor(obs_dim, space, log_std)
    raise UserError(f"actions {space} are neither discrete nor vectors: wrap the environment in make_env")


class RunningMoments(nn.Module):
    """Mean and variance of all rows seen so far, per column; buffers, so that a saved policy holds them."""

    def __init__(self, size: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("var", torch.zeros(size))
        self.register_buffer("std", torch.ones(size))
        self.register_buffer("count", torch.zeros(()))

    def update(self, x: Tensor) -> None:
        """Take in the rows of x [n, size] (Chan, Golub, LeVeque 1979: moments of two samples combined)."""
        var, mean = torch.var_mean(x, 0, correction=0)
        self.count += len(x)
        weight, delta = len(x) / self.count, mean - self.mean
        self.mean += weight * delta
        self.var += weight * (var - self.var + (1 - weight) * delta.square())
        self.std.copy_((self.var + 1e-8).sqrt())


# ======================================================================================================================
# 3 Algorithm
# ======================================================================================================================


def gradient_step(loss: Callable, optimizer: torch.optim.Optimizer, compile: bool, max_norm=math.inf) -> Callable:
    """Return step(*batch) -> info: one step of the optimiser down the gradient of loss(*batch) -> (scalar, info).

    Only the optimiser's own parameters get a gradient (an actor's loss leaves the critic alone), frozen ones
    (requires_grad False) none. A gradient longer than max_norm is scaled down to it; its Euclidean norm before that is
    in info, as critic_grad_norm for a critic_loss. Raises RuntimeError if a parameter that is not frozen has no part in
    the loss, as after replacing a module.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm_name = loss.__name__.replace("loss", "grad_norm")

    def gradients(*batch: Tensor) -> tuple[list[Tensor], dict[str, Tensor]]:
        value, info = loss(*batch)  # L(theta)   [GRAD.1]
        trained = [p for p in parameters if p.requires_grad] if value.requires_grad else []
        found = torch.autograd.grad(value, trained, allow_unused=True) if trained else ()  # grad L   [GRAD.2]
        grads = [g for g in found if g is not None]
        norm = torch.stack([g.norm() for g in grads] or [value.detach() * 0]).norm()
        if max_norm < math.inf:
            scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
            grads = [scale * g for g in grads]
        return grads, {name: x.detach() for name, x in info.items()} | {norm_name: norm}

    if compile:  # one graph of forward and backward; each shape for itself, so that no result depends on earlier ones
        gradients = torch.compile(gradients, fullgraph=True, dynamic=False)

    def step(*batch: Tensor) -> dict[str, Tensor]:
        grads, info = gradients(*batch)
        trained = [p for p in parameters if p.requires_grad]
        if len(grads) < len(trained):
            torch.compiler.reset()  # what was compiled would leave them out in the next agent, too
            unused = f"{len(trained) - len(grads)} of {len(trained)} parameters have no part in {loss.__name__}"
            raise RuntimeError(f"{unused}: after replacing a module make its target, optimizer and step anew")
        for p in parameters:
            p.grad = grads.pop(0) if p.requires_grad else None
        optimizer.step()  # theta <- theta - learning_rate * (what the optimiser makes of grad L)   [GRAD.3]
        return info

    return step


def rewards_to_go(r: Tensor, gamma: float) -> Tensor:
    """G_t [t, n] of rewards r [t, n], which are 0 after the end of an episode."""
    g = [torch.zeros_like(r[0])]
    for r_t in reversed(r.unbind()):
        g.append(r_t + gamma * g[-1])  # G_t = r_t + gamma G_{t+1}   [REINFORCE.2]
    return torch.stack(g[:0:-1])


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
        "value_grad_norm": "Euclidean norm of V's gradient, if V is the baseline",
        "explained_variance": "1 - Var(G - V) / Var(G) before V is fitted; 1 is a perfect V, empty without V",
        "learning_rate": "Adam step size of the update",
    }
    training_only = ("critic", "return_stats")  # what act does without: not in policy.pt

    def __init__(self, observation_space: gym.Space, action_space: gym.Space, args: Args):
        super().__init__()
        self.args, obs_dim = args, flat_size(observation_space)
        self.actor = make_actor(obs_dim, action_space, args.log_std_init)  # initialise theta   [INIT.1]
        self.critic = mlp(obs_dim, 1, gain=1.0)
        self.obs_stats = RunningMoments(obs_dim)
        self.return_stats = RunningMoments(1)
        self.to(args.device)
        self.optimizer = torch.optim.Adam(self.actor.parameters(), args.learning_rate, eps=1e-5, fused=True)
        self.value_optimizer = torch.optim.Adam(self.critic.parameters(), args.learning_rate, eps=1e-5, fused=True)
        self.value_step = gradient_step(self.value_loss, self.value_optimizer, args.compile)

    def normalise(self, s: Tensor) -> Tensor:
        """Observations as the networks see them."""
        return ((s - self.obs_stats.mean) / self.obs_stats.std).clamp(-10, 10) if self.args.norm_obs else s

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
        return self.return_stats.mean + self.return_stats.std * self.critic(s).squeeze(-1)  # V(s; theta)   [V.1]

    def value_loss(self, s: Tensor, g: Tensor):
        """L(V) [REINFORCE.6] and its metric; s is normalised, g [n] standardised."""
        loss = (self.critic(s).squeeze(-1) - g).square().mean()  # L(V) = mean (V(s_t) - G_t)^2   [REINFORCE.6]
        return loss, {"value_loss": loss}

    def returns(self, r: Tensor, s_end: Tensor, terminal: Tensor, running: Tensor) -> Tensor:
        """G_t [t, n] of rewards r [t, n]; s_end [n, obs] is normalised, it and terminal [n], running as in update."""
        r = r * running
        if self.args.baseline == "value" and self.args.bootstrap:
            last = running.sum(0).long() - 1
            r[last, torch.arange(len(last), device=last.device)] += self.args.gamma * (1 - terminal) * self.value(s_end)
        return rewards_to_go(r, self.args.gamma)

    def advantages(self, s: Tensor, g: Tensor, running: Tensor) -> Tensor:
        """G - b [t, n] of the returns G_t [t, n]; s is normalised, running as in update.

        The optimal b differs for every parameter: policy_gradient subtracts it, and here it is that of the mean.
        """
        if self.args.estimator == "total-return":
            g = g[:1].expand_as(g)  # G(tau) = sum_t gamma^t r_t   [REINFORCE.1]
        if self.args.baseline == "value":
            return g - self.value(s)  # b = V(s_t)   [REINFORCE.6]
        if self.args.baseline in ("mean", "optimal"):
            return g - ((g * running).sum(0) / running.sum(0)).mean()  # b = mean G   [REINFORCE.4]
        return g

    def theta(self) -> list[nn.Parameter]:
        """The policy's parameters, less frozen ones."""
        return [p for p in self.optimizer.param_groups[0]["params"] if p.requires_grad]

    def score(self, logp: Tensor, w: Tensor) -> Tensor:
        """sum_t w_t grad log pi(a_t | s_t), as one vector of theta's length."""
        if not (theta := self.theta()):
            return logp.new_zeros(0)  # all of the policy is frozen
        grads = [None]
        if logp.requires_grad:
            grads = torch.autograd.grad((w * logp).sum(), theta, retain_graph=True, allow_unused=True)
        if any(g is None for g in grads):
            raise RuntimeError("a parameter has no part in log pi: after replacing a module make its optimizer anew")
        return torch.cat([g.flatten() for g in grads])  # grad of sum_t w_t log pi(a_t | s_t)   [REINFORCE.8]

    def optimal_baseline(self, score: Tensor, weighted: Tensor) -> Tensor:
        """The b of each parameter with which the gradient's variance is least; both [N, parameters].

        score holds x = sum_t grad log pi(a_t | s_t) of each trajectory and weighted y = sum_t grad log pi(a_t | s_t) G,
        so y - b x has the least variance at b = E[x y] / E[x^2], since E[x] = 0; with G(tau), y = x G.
        """
        x2 = score.square().sum(0)
        b = (score * weighted).sum(0) / x2  # b = E[(sum_t grad log pi)^2 G] / E[(sum_t grad log pi)^2]   [REINFORCE.5]
        return b.where(x2 > 0, 0.0)

    def policy_gradient(self, logp: Tensor, adv: Tensor, running: Tensor) -> Tensor:
        """The estimate of grad J as one vector of theta's length; logp, adv and running are [t, n]."""
        if self.args.baseline == "optimal":
            score = torch.stack([self.score(*x) for x in zip(logp.unbind(1), running.unbind(1), strict=True)])
            weighted = [self.score(*x) for x in zip(logp.unbind(1), (running * adv).unbind(1), strict=True)]
            weighted = torch.stack(weighted)
            total = (weighted - self.optimal_baseline(score, weighted) * score).sum(0)
        else:
            total = self.score(logp, running * adv)  # sum_tau sum_t grad log pi(a_t | s_t) (G - b)   [REINFORCE.3]
        gradient = total / logp.shape[1]  # grad J = 1/N sum_tau sum_t grad log pi(a_t | s_t) (G - b)   [REINFORCE.3]
        if self.args.scale_gradient:
            rms = ((running * adv.square()).sum() / running.sum()).sqrt()
            gradient = gradient / (running.sum(0).mean() * rms + 1e-8)
        return gradient

    def fit_value(self, s: Tensor, g: Tensor) -> dict[str, Tensor]:
        """Fit V to the returns g [k] of normalised s [k, obs] in minibatches of 256; returns the mean metrics."""
        self.return_stats.update(g.unsqueeze(-1))
        g = (g - self.return_stats.mean) / self.return_stats.std
        infos = []
        for _ in range(self.args.value_epochs * -(-len(g) // 256)):
            rows = torch.randint(len(g), (256,), device=g.device)  # of one size, so that it is compiled once
            infos.append(self.value_step(s[rows], g[rows]))
        return {name: torch.stack([info[name] for info in infos]).mean() for name in infos[0]}

    def update(
        self, s: Tensor, a: Tensor, r: Tensor, running: Tensor, s_end: Tensor, terminal: Tensor, progress: float
    ) -> dict[str, Any]:
        """One policy step on whole episodes, then the fit of V.

        s, a, r are [t, n, ...]; running [t, n] is 1 up to the end of an episode and 0 after it; s_end [n, obs] is the
        state that it led to, terminal [n] tells termination from truncation; progress (0 to 1) is the share of the run
        that is over.
        """
        args, rows = self.args, running.bool()
        lr = args.learning_rate * (1 - progress if args.anneal_lr else 1)
        self.optimizer.param_groups[0]["lr"] = self.value_optimizer.param_groups[0]["lr"] = lr
        seen, s = s[rows], self.normalise(s)
        g = self.returns(r, self.normalise(s_end), terminal, running)
        adv = self.advantages(s, g, running)
        logp, entropy = self.actor.log_prob(s, a)
        gradient = self.policy_gradient(logp, adv, running)
        self.optimizer.zero_grad()
        theta = self.theta()
        for p, g_p in zip(theta, gradient.split([p.numel() for p in theta]), strict=True):
            p.grad = -g_p.view_as(p)  # an optimiser descends
        self.optimizer.step()  # theta <- theta + alpha grad J   [REINFORCE.7]
        with torch.no_grad():
            log_ratio = (self.actor.log_prob(s, a)[0] - logp)[rows]
            info = {
                "policy_loss": -(logp * adv)[rows].mean(),
                "entropy": entropy[rows].mean(),
                "kl": (log_ratio.exp() - 1 - log_ratio).mean(),
                "grad_norm": gradient.norm(),
                "episode_length": running.sum(0).mean(),
                "learning_rate": lr,
            }
        if args.baseline == "value":  # after the policy's step: V must not know the returns it is subtracted from
            s, g = s[rows], g[rows]
            info["explained_variance"] = 1 - (g - self.value(s)).var(correction=0) / (g.var(correction=0) + 1e-8)
            info |= self.fit_value(s, g)
        if args.norm_obs:  # after the update: the episodes were made with the old statistics
            self.obs_stats.update(seen)
        return info


# ======================================================================================================================
# 4 Training loop
# ======================================================================================================================


def collect(agent: nn.Module, envs: VectorEnvs, device: str) -> list[Tensor]:
    """One whole episode of every environment, all started together; the first to end go on until the last does.

    Returns what REINFORCE.update takes: s, a, r, running, s_end, terminal.
    """
    envs.reset()
    rows, a, running = [], [], np.ones(envs.num_envs, dtype=bool)
    s_end, terminal_end = envs.obs.copy(), running.copy()
    while running.any():
        s = envs.obs  # s_t   [LOOP.2]
        a.append(agent.explore(torch.from_numpy(s).to(device)))
        s2, r, terminal, done = envs.step(agent.actor.to_env(a[-1]))  # execute a_t, observe r_t and s_{t+1}   [LOOP.3]
        rows.append((s, r, running))
        ended = running & done
        s_end[ended], terminal_end[ended] = s2[ended], terminal[ended]
        running = running & ~done
    arrays = *(np.stack(column) for column in zip(*rows, strict=True)), s_end, terminal_end
    s, r, was_running, s_end, terminal = (torch.from_numpy(x).float().to(device) for x in arrays)
    return [s, torch.stack(a), r, was_running, s_end, terminal]


def train(args: Args) -> Path:
    """Train from scratch or from `args.resume`; returns the run folder."""
    args = prepare(args)
    envs = VectorEnvs(args.env_id, args.num_envs)
    if getattr(envs.vector.get_attr("spec")[0], "max_episode_steps", None) is None:
        raise UserError(f"--env-id {args.env_id} has no time limit: register it with max_episode_steps")
    agent = REINFORCE(envs.observation_space, envs.action_space, args)
    with Run(args, agent, envs) as run:
        for end in run.segments(None):
            while envs.steps < end:  # for k = 1, 2, ...   [LOOP.1]
                progress = envs.steps / run.total
                # collect: the last batch of episodes is finished, even if the run gets a little longer
                episodes = collect(agent, envs, args.device)  # N trajectories D_k   [LOOP.4]
                # learn
                info = agent.update(*episodes, progress)
                # report
                run.report(info)
    return run.folder  # theta, in policy.pt   [LOOP.6]


# ======================================================================================================================
# 5 Machinery: environments, evaluation, run folder, command line; the same text in every file
# ======================================================================================================================


class Range(NamedTuple):
    """Closed interval of a setting's valid values, written in its annotation."""

    low: float
    high: float = math.inf


class UserError(Exception):
    """Input that cannot work: the message says what, the value and the remedy. The command line exits with 2."""


class RunFailed(Exception):
    """The run cannot go on: a number became NaN or infinite, say. The command line exits with 1."""


def require_finite(step: int, /, **values: Any) -> None:
    """Raise RunFailed, with its name, if one of the values (tensors, arrays, numbers) is NaN or infinite."""
    for name, value in values.items():
        if not (value.isfinite() if isinstance(value, Tensor) else np.isfinite(value)).all():
            raise RunFailed(f"{name} became NaN or infinite at step {step}: lower --learning-rate or check the task")


def seeds(*entropy: int, n: int) -> list[int]:
    """n well-separated seeds that follow from the given numbers; the first of them do not depend on n.

    The second number keeps apart training environments (1), evaluation (2), initialisation (3) and segments (4); none
    is 0, as zeros at the end change nothing.
    """
    return [int(x) for x in np.random.SeedSequence(entropy).generate_state(n)]


# ---- environments ----------------------------------------------------------------------------------------------------


def make_env(env_id: str, evaluation: bool = False, **kwargs: Any) -> gym.Env:
    """The environment `Name-v0` or `module:Name-v0`. Wrappers belong here, that shape rewards `if not evaluation`.

    Observations that are a dictionary (of goals, say) are joined to one vector, in the order of their keys. Raises
    UserError if there is no such environment.
    """
    if env_id not in gym.registry and env_id.rpartition(":")[0] in ("", "gymnasium_robotics"):
        with contextlib.suppress(ImportError), contextlib.redirect_stderr(io.StringIO()):
            importlib.import_module("gymnasium_robotics")  # Fetch and the like register themselves, with a notice
    try:
        env = gym.make(env_id, **kwargs)
    except (gym.error.Error, ImportError, AttributeError, TypeError, ValueError) as error:
        malformed = env_id.count(":") > 1 or env_id.startswith((":", "."))
        lacking = f"{getattr(getattr(error, 'obj', None), '__name__', '')}:{getattr(error, 'name', '')}"
        lacks_class = lacking in [spec.entry_point for spec in gym.registry.values()]
        if not (isinstance(error, gym.error.Error | ImportError) or malformed or lacks_class):
            raise  # a fault inside the environment
        remedy = "`gymnasium.pprint_registry()` lists what there is, own modules are looked for in the current folder"
        raise UserError(f"--env-id {env_id}: {' '.join(str(error).split()).rstrip('.')}; {remedy}") from error
    return gym.wrappers.FlattenObservation(env) if isinstance(env.observation_space, gym.spaces.Dict) else env


class FinalInfo(gym.Wrapper):
    """Drops the info of all steps but an episode's last: gathering it from every environment takes long."""

    def step(self, action: Any) -> tuple[Any, ...]:
        obs, r, terminal, truncated, info = self.env.step(action)
        return obs, r, terminal, truncated, info if terminal or truncated else {}


class VectorEnvs:
    """`num_envs` copies of an environment stepped together.

    obs [n, obs] (float32) is where each environment is now, steps the number of steps so far over all of them, finished
    the episodes that ended since the list was last emptied, as (environment, step, {return, length[, success]}). When
    steps reach cut_at, every episode is cut, as by a time limit.
    """

    def __init__(self, env_id: str, num_envs: int, **kwargs: Any):
        make, mode = lambda: FinalInfo(make_env(env_id, **kwargs)), gym.vector.AutoresetMode.SAME_STEP
        self.vector = gym.vector.SyncVectorEnv([make] * num_envs, copy=False, autoreset_mode=mode)  # or AsyncVectorEnv
        self.observation_space = self.vector.single_observation_space
        self.action_space = self.vector.single_action_space
        self.num_envs, self.steps, self.cut_at = num_envs, 0, math.inf
        self.finished: list[tuple[int, int, dict[str, float]]] = []

    def reset(self, env_seeds: list[int] | None = None) -> None:
        """Start a new episode in every environment."""
        self.obs = np.array(self.vector.reset(seed=env_seeds)[0], dtype=np.float32)
        self.returns, self.lengths = np.zeros(self.num_envs), np.zeros(self.num_envs, dtype=np.int64)

    def step(self, actions: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Step every environment and start a new episode where one ended (Gymnasium's SAME_STEP autoreset).

        actions: [n, act] in environment units, or [n] integers.
        Returns (s2 [n, obs], r [n] (float64), terminal [n], done [n]): s2 is the state that the step led to, the final
        one of an episode included; terminal is true termination, done termination or truncation. Raises RunFailed.
        """
        a = actions.cpu().numpy()
        require_finite(self.steps, action=a)
        obs, r, terminal, truncated, info = self.vector.step(a)
        self.obs = s2 = np.array(obs, dtype=np.float32)
        self.steps += self.num_envs
        self.returns += r
        self.lengths += 1
        done = terminal | truncated
        if done.any():
            s2 = s2.copy()
            for i in np.flatnonzero(done):
                s2[i] = info["final_obs"][i]
                episode = {"return": float(self.returns[i]), "length": int(self.lengths[i])}
                if "is_success" in info["final_info"]:
                    episode["success"] = int(info["final_info"]["is_success"][i])
                self.finished.append((i, self.steps, episode))
                self.returns[i] = self.lengths[i] = 0
        require_finite(self.steps, observation=s2, reward=r)
        return s2, r, terminal, done | (self.steps >= self.cut_at)


def evaluate(agent: nn.Module, envs: VectorEnvs, seed: int, n: int, device: str) -> list[dict[str, float]]:
    """n episodes of the deterministic policy, as many at a time as there are environments."""
    agent.eval()
    episodes = []
    for k in range(0, n, envs.num_envs):
        envs.reset(seeds(seed, 2, n=k + envs.num_envs)[k:])
        envs.finished.clear()
        first: dict[int, dict[str, float]] = {}  # what an environment does after its first episode does not count
        while len(first) < envs.num_envs:
            envs.step(agent.act(torch.from_numpy(envs.obs).to(device)))
            first = {i: episode for i, _, episode in reversed(envs.finished)}
            if envs.lengths.max() == 100_000:
                raise RunFailed("an episode has no end after 100000 steps: register it with max_episode_steps")
        episodes += [first[i] for i in range(envs.num_envs)]
    agent.train()
    return episodes[:n]


def summary(episodes: list[dict[str, float]]) -> str:
    """Mean and standard deviation of everything that is known of evaluated episodes."""
    columns = {name: [x.get(name, 0) for x in episodes] for name in dict.fromkeys(k for x in episodes for k in x)}
    return ", ".join(f"{name} {np.mean(x):.2f} +- {np.std(x):.2f}" for name, x in columns.items())


def evaluation_envs(args: Any, folder: Path, step: int) -> VectorEnvs:
    """Environments for evaluation; one that is filmed (--capture-video) or shown (--render), where that is possible."""
    if args.capture_video or args.render:
        headless = sys.platform == "linux" and not {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys()
        if headless:
            os.environ.setdefault("MUJOCO_GL", "egl")
        try:
            if headless and not args.capture_video:
                raise RuntimeError("there is no screen")
            mode = "rgb_array" if args.capture_video else "human"
            envs = VectorEnvs(args.env_id, 1, evaluation=True, render_mode=mode)
            envs.reset()
            envs.vector.render()
            if args.capture_video:  # every other episode: between them are those that follow the end of one
                film = {"episode_trigger": lambda k: k % 2 == 0, "name_prefix": f"step-{step}-{time.time():.0f}"}
                envs.vector = gym.wrappers.vector.RecordVideo(envs.vector, str(folder / "videos"), **film)
            return envs
        except Exception as error:  # whatever a renderer may lack: a run is not to fail for its film
            needs = "MuJoCo's films need libegl1, or libosmesa6 and MUJOCO_GL=osmesa; --render needs a screen"
            print(f"no video: {' '.join(str(error).split())} ({needs})")
    return VectorEnvs(args.env_id, min(args.eval_episodes, 10), evaluation=True)


# ---- the run folder --------------------------------------------------------------------------------------------------

# settings that change nothing in what is computed
FREE = {"device", "threads", "compile", "log_every", "capture_video", "render", "track", "wandb_project_name",
        "wandb_entity", "run_dir", "resume", "evaluate"}  # fmt: skip
LOGS = ("eval.csv", "train.csv", "metrics.csv")


class Run(contextlib.AbstractContextManager):
    """The run folder of a training: logs, evaluations, checkpoints, resume, progress. Used as `with Run(...) as run:`.

    Made last, when everything else is known to work: it creates the folder, or with `args.resume` brings the agent, its
    optimisers, the replay memory and the logs back to the last checkpoint. Raises UserError if the folder holds a
    run already, is in use, or does not fit.
    """

    def __init__(self, args: Any, agent: nn.Module, envs: VectorEnvs, memory: Any = None):
        self.args, self.agent, self.envs, self.started = args, agent, envs, time.perf_counter()
        self.total = -(-args.total_timesteps // args.num_envs) * args.num_envs
        optimizers = {name: x for name, x in vars(agent).items() if isinstance(x, torch.optim.Optimizer)}
        self.parts = {"agent": agent, **optimizers} | ({"memory": memory} if memory else {})
        self.eval_envs = VectorEnvs(args.env_id, min(args.eval_episodes, 10), evaluation=True)
        if args.evaluate:
            raise UserError("evaluate is for the command line: use load_policy")
        config = {"algorithm": type(agent).__name__.lower(), "id": f"{time.time_ns():x}"}
        self.folder = Path(args.resume or args.run_dir or new_folder(args, config["algorithm"]))
        if args.resume:
            config, before = read(self.folder / "config.json"), read_args(self.folder, type(agent), type(args))
            refuse_changes(before, args, {"total_timesteps", "checkpoint_every"})
            if not (self.folder / "checkpoint.pt").exists():
                raise UserError(f"{self.folder} has no checkpoint.pt to go on from: restore a copy, or evaluate it")
        elif any((self.folder / name).exists() for name in ("config.json", "policy.pt", *LOGS)):
            raise UserError(f"{self.folder} holds a run already: choose another --run-dir, or continue with --resume")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.lock = FileLock(self.folder / ".lock", is_singleton=True)
            self.lock.acquire(timeout=0)
        except OSError as error:  # a time-out, too
            reason = error.strerror or "another process trains there"
            raise UserError(f"cannot use {self.folder} ({reason}): choose another --run-dir") from error
        if args.resume:
            self.restore(before.total_timesteps)
        else:
            self.save()  # before config.json, so that a run to resume has a checkpoint
        self.record(config)
        for name in LOGS:
            (self.folder / name).touch()
        print(f"{self.folder}: from step {envs.steps} on")
        self.wandb = None
        if args.track:
            names = {"project": args.wandb_project_name, "entity": args.wandb_entity, "name": self.folder.name}
            keep = {"id": config["id"], "resume": "allow", "config": config["args"], "dir": self.folder}
            self.wandb = importlib.import_module("wandb").init(**names, **keep, sync_tensorboard=True)
        self.tensorboard = SummaryWriter(str(self.folder), purge_step=envs.steps and envs.steps + 1)
        self.bar = tqdm(total=self.total, initial=envs.steps, unit=" steps", disable=not sys.stderr.isatty())
        self.reported, self.logged = envs.steps, (envs.steps, time.perf_counter())

    def restore(self, planned: int) -> None:
        """Go back to the last checkpoint of a run that was to have `planned` steps.

        Raises UserError, with every file as it was, if the checkpoint is missing or does not fit.
        """
        path = self.folder / "checkpoint.pt"
        saved, steps = read(path), self.args.total_timesteps
        try:
            for name, part in self.parts.items():
                part.load_state_dict(saved[name] if name == "memory" else copy.deepcopy(saved[name]))  # frees the file
            step, seconds = saved["step"], saved["seconds"]
            logs = {name: text.encode() for name, text in saved["logs"].items()}
        except (AttributeError, KeyError, RuntimeError, ValueError) as error:
            why = str(error).splitlines()[-1].strip()
            raise UserError(f"{path} does not fit ({why}): use the script as it was") from error
        if steps < (least := min(step, planned)):
            raise UserError(f"--total-timesteps {steps}: {step} steps are done, give at least {least}")
        for name, content in logs.items():  # rows written after the checkpoint are written again
            (self.folder / name).write_bytes(content)
        self.envs.steps, self.started = step, self.started - seconds

    def record(self, config: dict[str, Any]) -> None:
        """Write config.json: settings, versions, the script's hash and the command of every start."""
        script = globals().get("__file__")  # a notebook has none
        sha256 = script and hashlib.sha256(Path(script).read_bytes()).hexdigest()
        if config.get("script_sha256", sha256) != sha256:
            print("the script has changed since this run was started, so results may differ")
        packages = sorted({"torch", "numpy", "gymnasium", "gymnasium_robotics", "mujoco"} & sys.modules.keys())
        versions = {"python": sys.version.split()[0]} | {x: sys.modules[x].__version__ for x in packages}
        settings = asdict(replace(self.args, run_dir=str(self.folder), resume=None))
        commands = [*config.get("commands", []), ["python", *sys.argv]]
        config |= {"args": settings, "script_sha256": sha256, "versions": versions, "commands": commands}
        write_atomically(self.folder / "config.json", lambda file: file.write(json.dumps(config, indent=2).encode()))

    def __exit__(self, error: type | None, *_: Any) -> None:
        """Close the run; after Ctrl-C or an error, say how to go on."""
        step = self.envs.steps
        if error is RunFailed:
            print(f"\nstopped: the last good checkpoint is in {self.folder}")
        elif error:
            how = f"--resume {self.folder} (from Python: the same Args with resume=...)"
            print(f"\nstopped at step {step}: {how} goes on from the last checkpoint")
        else:
            print(f"done at step {step}: everything is in {self.folder}")
        for part in (self.bar, self.tensorboard, self.envs.vector, self.eval_envs.vector):
            part.close()
        if self.wandb:
            self.wandb.finish(exit_code=int(error is not None))
        self.lock.release()

    def segments(self, unit: int | None) -> Iterator[int]:
        """Yield the step at which each segment of about `checkpoint_every` steps ends, and save when it has ended.

        A segment begins with seeding and resetting everything from (seed, step) and ends like a time limit, so that
        there is nothing to restore but the checkpoint. Its length is a multiple of `unit` steps; None is for a loop
        that looks at its end between whole episodes only: then none is cut.
        """
        args, limit = self.args, getattr(self.eval_envs.vector.get_attr("spec")[0], "max_episode_steps", None)
        size = -(-args.checkpoint_every // (unit or 1)) * (unit or 1)
        if unit and size < min(self.total - self.envs.steps, 5 * args.num_envs * (limit or math.inf)):
            print(f"note: all episodes are cut every {size} steps, for a checkpoint: raise --checkpoint-every")
        if not self.envs.steps:
            self.evaluate()
        while self.envs.steps < self.total:
            seed_generators(args.seed, 4, self.envs.steps)
            self.envs.reset(seeds(args.seed, 1, self.envs.steps, n=args.num_envs))
            end = min((self.envs.steps // size + 1) * size, self.total)
            self.envs.cut_at = end if unit else math.inf
            yield end
            self.tensorboard.flush()
            self.save()
        if args.capture_video or args.render:
            film = evaluation_envs(args, self.folder, self.envs.steps)
            evaluate(self.agent, film, args.seed, 1, args.device)
            film.vector.close()

    def report(self, info: dict[str, Any]) -> None:
        """After every step or rollout: log and evaluate what is due; info holds the latest metrics."""
        step, before, args = self.envs.steps, self.reported, self.args
        self.bar.update(step - before)
        self.reported = step
        for _, ended, episode in self.envs.finished:
            self.write("train.csv", [{"step": ended} | episode])
        self.envs.finished.clear()
        if step // args.log_every > before // args.log_every or step >= self.total:
            metrics = {name: float(value) for name, value in info.items()}
            require_finite(step, **metrics)
            (logged, then), now = self.logged, time.perf_counter()
            row = {"step": step, "seconds": now - self.started, "steps_per_second": (step - logged) / (now - then)}
            self.write("metrics.csv", [row | dict.fromkeys(self.agent.metrics) | metrics])
            self.logged = step, now
        if step // args.eval_every > before // args.eval_every or step >= self.total:
            self.evaluate()

    def write(self, log: str, rows: list[dict[str, Any]]) -> None:
        """Add rows of a step to a csv file, whose header grows with new columns, and their means to TensorBoard."""
        with open(self.folder / log, "a+", newline="") as file:
            file.seek(0)
            before = csv.DictReader(file)
            names = [*(before.fieldnames or []), *(name for row in rows for name in row)]
            writer = csv.DictWriter(file, list(dict.fromkeys(names)))
            if writer.fieldnames != before.fieldnames:  # the first rows, or a new column
                earlier = list(before)
                file.truncate(0)
                writer.writeheader()
                writer.writerows(earlier)
            writer.writerows(rows)
        for name in writer.fieldnames:
            if name not in ("step", "episode") and rows[0].get(name, 0) is not None:
                mean = np.mean([row.get(name, 0) for row in rows])
                self.tensorboard.add_scalar(f"{log[:-4]}/{name}", mean, rows[0]["step"])

    def evaluate(self) -> None:
        """Evaluate the deterministic policy: a row per episode in eval.csv, means elsewhere; save it as policy.pt."""
        step, args, self.eval_envs.steps = self.envs.steps, self.args, self.envs.steps
        require_finite(step, **dict(self.agent.named_parameters()))
        episodes = evaluate(self.agent, self.eval_envs, args.seed, args.eval_episodes, args.device)
        kept = {k: v for k, v in self.agent.state_dict().items() if not k.startswith(self.agent.training_only)}
        write_atomically(self.folder / "policy.pt", lambda file: torch.save({"step": step, "policy": kept}, file))
        self.write("eval.csv", [{"step": step, "episode": k} | x for k, x in enumerate(episodes)])
        self.bar.write(f"step {step}/{self.total}: {summary(episodes)}")

    def save(self) -> None:
        """Write the checkpoint, whole or not at all; never one with a parameter that is NaN or infinite."""
        require_finite(self.envs.steps, **dict(self.agent.named_parameters()))
        paths = [self.folder / name for name in LOGS]
        checkpoint = {"step": self.envs.steps, "seconds": time.perf_counter() - self.started,
                      "logs": {path.name: path.read_bytes().decode() if path.exists() else "" for path in paths},
                      **{name: part.state_dict() for name, part in self.parts.items()}}  # fmt: skip
        write_atomically(self.folder / "checkpoint.pt", lambda file: torch.save(checkpoint, file))


def new_folder(args: Any, algorithm: str) -> Path:
    """A folder for a run, named after task, algorithm, seed, time, and the settings (100 characters of them) that
    differ from the defaults and change results."""
    defaults, known = asdict(type(args)()), FREE | {"env_id", "seed"}
    changes = "".join(f"-{name}={x}" for name, x in asdict(args).items() if x != defaults[name] and name not in known)
    now = f"{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() // 1000 % 10**6:06d}"
    return Path("runs", args.env_id.replace(":", "-"), algorithm, f"{args.seed}{changes[:100].replace('/', '_')}-{now}")


def write_atomically(path: Path, write: Callable) -> None:
    """write(file) to a temporary name, flush to disk, rename: path is the old file or the new one, never half of it."""
    with open(path.with_name(path.name + ".tmp"), "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(file.name, path)


def read(path: Path) -> dict[str, Any]:
    """A .json or .pt file of a run folder. Raises UserError if it is missing or damaged."""
    try:
        json_file = path.suffix == ".json"
        return json.loads(path.read_text()) if json_file else torch.load(path, "cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise UserError(f"{path} is missing or damaged: name a run's folder, or restore a copy") from error


def read_args(folder: Path, agent_class: type, args_class: type) -> Any:
    """The settings of a run, from its config.json. Raises UserError unless that is there and fits this script."""
    config = read(folder / "config.json")
    try:
        if config["algorithm"] != agent_class.__name__.lower():
            raise UserError(f"{folder} is a run of {config['algorithm']}: use {config['algorithm']}.py")
        return args_class(**config["args"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder}/config.json does not fit ({error}): use the script that made the run") from error


def refuse_changes(before: Any, after: Any, free: set[str]) -> None:
    """Raise UserError if two settings differ in a field that changes what is computed and is not free to change."""
    for name, value in asdict(after).items():
        if value != getattr(before, name) and name not in FREE | free:
            flag = f"--{name.replace('_', '-')} {value}"
            raise UserError(f"{flag} differs from the run's {getattr(before, name)}: keep that, or start a new run")


def load_policy(folder: str, agent_class: type, args_class: type, device: str = "cpu") -> tuple[Any, gym.Env, int]:
    """The last evaluated policy of a run folder (config.json and policy.pt are enough), its environment, its step."""
    args, saved = read_args(Path(folder), agent_class, args_class), read(Path(folder, "policy.pt"))
    env = make_env(args.env_id, evaluation=True)
    agent = agent_class(env.observation_space, env.action_space, replace(args, device=device, compile=False))
    fresh = {k: v for k, v in agent.state_dict().items() if k.startswith(agent.training_only)}
    try:
        agent.load_state_dict(fresh | saved["policy"])
    except RuntimeError as error:
        raise UserError(f"{folder}/policy.pt: {str(error).splitlines()[1].strip()} Use the run's script") from error
    return agent.eval(), env, saved["step"]


# ---- command line ----------------------------------------------------------------------------------------------------


def seed_generators(*entropy: int) -> None:
    """Seed the global generators of PyTorch, NumPy and Python."""
    for seed_one, value in zip((torch.manual_seed, np.random.seed, random.seed), seeds(*entropy, n=3), strict=True):
        seed_one(value)


def prepare(args: Any) -> Any:
    """The settings, checked, with device and compile decided; seeds everything. Raises UserError; creates nothing."""
    for name, hint in get_type_hints(type(args), include_extras=True).items():
        value, flag, kind = getattr(args, name), name.replace("_", "-"), getattr(hint, "__origin__", None)
        if kind is Literal and value not in hint.__args__:
            raise UserError(f"--{flag} {value} is unknown: choose from {', '.join(map(str, hint.__args__))}")
        if int in (hint, kind) and isinstance(value, float):
            if not value.is_integer():
                raise UserError(f"--{flag} {value} is no whole number: use one")
            setattr(args, name, int(value))  # 1e6 is one, too
        # tuples: on Python 3.10 Annotated may hand out the equal Range of another algorithm's file
        for low, high in (x for x in getattr(hint, "__metadata__", ()) if isinstance(x, tuple)):
            if value is not None and (not low <= value <= high or value == math.inf):
                valid = f"at least {low}" if high == math.inf else f"{low} to {high}"
                raise UserError(f"--{flag} {value} is out of range: use {valid}")
        if value == "":
            raise UserError(f"--{flag} '' is empty: leave it out or give it a value")
    args.check()
    device = args.device if args.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    if device != "cpu" and not getattr(torch, device).is_available():
        raise UserError(f"--device {device} is not present here: use --device cpu or auto")
    if args.track:
        try:
            importlib.import_module("wandb").login()
        except Exception as error:
            raise UserError(f"--track: {error}; `pip install wandb`, `wandb login` or WANDB_MODE=offline") from error
    torch._dynamo.config.trace_autograd_ops = True  # lets torch.autograd.grad be part of a compiled function
    torch._inductor.config.compile_threads = 1  # no pool of compile processes, which would double the memory
    torch._inductor.config.cpp_wrapper = device == "cpu"  # no Python between the kernels
    torch.set_num_threads(args.threads)
    torch.set_float32_matmul_precision(args.matmul_precision)
    torch.set_flush_denormal(True)  # Adam's moments of dead units decay into denormal numbers, which are slow
    # warnings that tell nothing: denormals are off, an older version of a task was chosen, how films end
    warnings.filterwarnings("ignore", ".*(smallest subnormal|is out of date|the last frame|Overwriting existing)")
    seed_generators(args.seed, 3)
    args = replace(args, device=device)
    if args.compile:
        try:
            torch.compile(torch.neg)(torch.ones(1, device=device))
        except Exception as error:  # whatever a compiler may lack
            print(f"not compiling ({' '.join(str(error).split())[:200]}): slower, otherwise the same")
            args.compile = False
    return args


def parse(args_class: type, agent_class: type) -> Any:
    """Settings from the command line; what it leaves out of a run to resume or evaluate comes from its config.json."""
    # 1e6 is a whole number, too
    words = [re.sub(r"(^|=)(\d+\.?\d*[eE]\+?\d+)$", lambda m: f"{m[1]}{float(m[2]):.15g}", x) for x in sys.argv[1:]]
    args = tyro.cli(args_class, args=words, description=__doc__)
    if sum(x is not None for x in (args.resume, args.evaluate, args.run_dir)) > 1:
        raise UserError("--resume, --evaluate and --run-dir exclude each other: use one")
    if args.resume or args.evaluate:
        saved = read_args(Path(args.resume or args.evaluate), agent_class, args_class)
        own = {} if args.resume else {"device": "auto", "compile": False, "capture_video": False, "render": False}
        args = tyro.cli(args_class, args=words, description=__doc__, default=replace(saved, **own))
    if args.evaluate:
        refuse_changes(saved, args, {"seed", "eval_episodes"})
    return args


def main(args_class: type, agent_class: type, train: Callable) -> None:
    """Entry point of the command line: trains, or with --evaluate prints the returns of the saved policy."""
    sys.path.append(os.getcwd())  # for own environments
    try:
        args = parse(args_class, agent_class)
        if args.evaluate:
            args = prepare(args)
            agent, _, step = load_policy(args.evaluate, agent_class, args_class, args.device)
            envs = evaluation_envs(args, Path(args.evaluate), step)
            episodes = evaluate(agent, envs, args.seed, args.eval_episodes, args.device)
            envs.vector.close()
            print(f"{args.env_id}, step {step}, {len(episodes)} episodes: {summary(episodes)}")
        else:
            train(args)
    except (UserError, RunFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UserError) else 1)
    except KeyboardInterrupt:
        sys.exit(130)


# ======================================================================================================================
# 6 Entry
# ======================================================================================================================

if __name__ == "__main__":
    main(Args, REINFORCE, train)
