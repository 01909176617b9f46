"""DDPG: Deep Deterministic Policy Gradient, in one file.

Find the policy mu that maximises J = E[sum_t gamma^t r_t] from replayed transitions (s, a, r, s2, terminal).

    y      = r + gamma (1 - terminal) Q'(s', mu'(s'))                              [DDPG.1]
    L(Q)   = mean (y - Q(s, a))^2                                                  [DDPG.2]
    L(mu)  = - mean Q(s, mu(s)),    grad L(mu) = - mean dQ/da dmu/dtheta           [DDPG.3]  pathwise derivative
    theta' <- (1 - tau) theta' + tau theta                                         [DDPG.4]
    a      = clip(mu(s) + eps, low, high)                                          [DDPG.5]  behaviour policy
    eps    = sigma N(0, I)                                or, with `--noise ou`,
    eps_t  = (1 - ou_theta) eps_{t-1} + sigma N(0, I),    eps_{-1} = 0   [DDPG.6], [DDPG.7]  Ornstein-Uhlenbeck

Symbols: mu = actor, Q = critic, primes = *_target, s' = s2, sigma = exploration_noise; the slides write N_t for eps.
terminal is true termination only: a truncated episode is bootstrapped from its real last state. The noise is in half
action ranges, per action dimension; an Ornstein-Uhlenbeck process has its own state in every environment, which starts
at 0 with every episode.

Paper: Lillicrap, Hunt, Pritzel, Heess, Erez, Tassa, Silver, Wierstra (2016), "Continuous Control with Deep
Reinforcement Learning".
Lectures: "Pathwise derivatives, DDPG", slides "Deep Deterministic Policy Gradients"; "Handling Continuous Action
Space", slides "Deep Deterministic Policy Gradient (DDPG)"; "Actor Critic II", slides "Deep Deterministic Policy
Gradient" and "Coding".

Of the two published variants the defaults are "Our DDPG" of the TD3 paper (Fujimoto et al. 2018) as in its authors'
later code, with one change: a learning rate of 1e-3, with which Tianshou published the best HalfCheetah score after 1M
steps (theirs is `--learning-rate 3e-4`). The variant of Lillicrap et al. is the last of the commands below. Deviations,
each with its reason:
  * From both: 8 environments, stepped together and followed by 8 updates, not 1 and 1: there is still one update per
    environment step, and more steps per second. `--num-envs 1` is the papers' loop.
  * From both: every `checkpoint_every` steps all episodes are cut, as by a time limit: nothing but the agent and its
    memory needs saving, and a resumed run is exactly the uninterrupted one.
  * From Lillicrap et al.: no batch normalisation, though they need it to do well on all of their tasks. It would make
    an action depend on the others in its batch; the TD3 authors' version of this variant is without it, too.
  * From Lillicrap et al.: the time step of the Ornstein-Uhlenbeck process, which they do not state, is 1.

    python ddpg.py --env-id Hopper-v5 --seed 1
    python ddpg.py --evaluate runs/Hopper-v5/ddpg/RUN --eval-episodes 20
    python ddpg.py --network lillicrap --actor-learning-rate 1e-4 --critic-weight-decay 1e-2 --tau 0.001 \
        --batch-size 64 --noise ou --exploration-noise 0.2 --learning-starts 64 --num-envs 1
"""

from __future__ import annotations

import contextlib
import copy
import csv
import hashlib
import importlib.util
import io
import itertools
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
    """Settings of a DDPG run; the defaults are meant for 1M steps of any MuJoCo task."""

    env_id: str = "HalfCheetah-v5"
    """Gymnasium environment; `my_module:MyEnv-v0` imports my_module (looked up in the current folder too) first."""
    seed: Annotated[int, Range(0)] = 1
    """Seed of everything random (>= 0)."""
    total_timesteps: Annotated[int, Range(1)] = 1_000_000
    """Environment steps of the whole run, counted over all environments; rounded up to steps that all of them take
    (reinforce: to whole episodes)."""
    num_envs: Annotated[int, Range(1)] = 8
    """Environments stepped side by side (>= 1)."""
    learning_rate: Annotated[float, Range(0)] = 1e-3
    """Step size of the optimiser (>= 0)."""
    actor_learning_rate: Annotated[float | None, Range(0)] = None
    """Adam step size of the actor, where it is not to be learning-rate (>= 0)."""
    critic_weight_decay: Annotated[float, Range(0)] = 0.0
    """L2 penalty of the critic: this times its parameters is added to their gradient (>= 0)."""
    gamma: Annotated[float, Range(0, 1)] = 0.99
    """Discount factor (0 to 1)."""
    tau: Annotated[float, Range(0, 1)] = 0.005
    """Step of the target networks towards the learned ones (0 to 1)."""
    batch_size: Annotated[int, Range(1)] = 256
    """Transitions per update (>= 1)."""
    buffer_size: Annotated[int, Range(1)] = 1_000_000
    """Transitions the replay memory holds before the oldest are overwritten (>= batch-size)."""
    learning_starts: Annotated[int, Range(1)] = 25_000
    """First environment steps, taken with uniformly random actions and without updates (>= 1)."""
    network: Literal["fujimoto", "lillicrap"] = "fujimoto"
    """Hidden layers: fujimoto 256-256; lillicrap 400-300, the action enters the critic's second layer, and the last
    layers start close to 0."""
    noise: Literal["normal", "ou"] = "normal"
    """Noise of the behaviour policy: normal is independent at every step; ou is an Ornstein-Uhlenbeck process, of which
    exploration-noise is the part that is new at every step."""
    exploration_noise: Annotated[float, Range(0)] = 0.1
    """Standard deviation of the behaviour policy's noise, in half action ranges (>= 0)."""
    ou_theta: Annotated[float, Range(0, 1)] = 0.15
    """Share of itself that Ornstein-Uhlenbeck noise loses at every step (0 to 1: random walk to normal noise)."""
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
        if max(self.batch_size, self.num_envs) > self.buffer_size:
            raise UserError(f"--buffer-size {self.buffer_size} is less than --batch-size or --num-envs: enlarge it")
        if self.learning_starts >= self.total_timesteps:
            raise UserError(f"--learning-starts {self.learning_starts} reaches --total-timesteps: change one of them")


# ======================================================================================================================
# 2 Networks
# ======================================================================================================================


def relu_mlp(*sizes: int) -> nn.Sequential:
    """Linear layers from sizes[0] inputs to sizes[-1] outputs with ReLU between them, initialised as PyTorch does."""
    layers = [layer for shape in itertools.pairwise(sizes) for layer in (nn.Linear(*shape), nn.ReLU())]
    return nn.Sequential(*layers[:-1])  # f(x; theta), theta as PyTorch starts it   [NET.1]


def flat_size(space: gym.Space) -> int:
    """Length of an observation. Raises UserError unless observations are vectors."""
    if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1:
        raise UserError(f"observations {space} are not vectors: use gymnasium's FlattenObservation in make_env")
    return space.shape[0]


def bounds(space: gym.Space) -> tuple[Tensor, Tensor]:
    """Lowest and highest action, each [act]. Raises UserError unless actions are bounded vectors."""
    if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1 or not space.is_bounded():
        raise UserError(f"actions {space} are not continuous and bounded: use ppo.py, or bound them in make_env")
    return torch.as_tensor(space.low, dtype=torch.float32), torch.as_tensor(space.high, dtype=torch.float32)


class DeterministicActor(nn.Module):
    """mu: s [n, obs] -> action [n, act] in the environment's units, inside its bounds, dimension by dimension."""

    def __init__(self, obs_dim: int, low: Tensor, high: Tensor, hidden: tuple[int, ...] = (256, 256)):
        super().__init__()
        self.net = relu_mlp(obs_dim, *hidden, len(low))
        self.register_buffer("scale", (high - low) / 2)  # half the action range
        self.register_buffer("centre", (high + low) / 2)

    def forward(self, s: Tensor) -> Tensor:
        return self.centre + self.scale * torch.tanh(self.net(s))  # a = mu(s) = centre + scale tanh(f(s))   [MU.1]


class Critic(nn.Module):
    """Q: s [n, obs], a [n, act] -> value [n]."""

    def __init__(self, obs_dim: int, act_dim: int, hidden: tuple[int, ...] = (256, 256)):
        super().__init__()
        self.net = relu_mlp(obs_dim + act_dim, *hidden, 1)

    def forward(self, s: Tensor, a: Tensor) -> Tensor:
        return self.net(torch.cat([s, a], -1)).squeeze(-1)  # Q(s, a; theta) ~ Q^pi(s, a)   [Q.1]


class LateActionCritic(nn.Module):
    """Q: s [n, obs], a [n, act] -> value [n]; the action enters the second layer only (Lillicrap et al. 2016)."""

    def __init__(self, obs_dim: int, act_dim: int, hidden: tuple[int, ...] = (400, 300)):
        super().__init__()
        self.first = nn.Linear(obs_dim, hidden[0])
        self.net = relu_mlp(hidden[0] + act_dim, *hidden[1:], 1)

    def forward(self, s: Tensor, a: Tensor) -> Tensor:
        return self.net(torch.cat([self.first(s).relu(), a], -1)).squeeze(-1)  # Q(s, a; theta) ~ Q^pi(s, a)   [Q.1]


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


@torch.no_grad()
def follow(target: nn.Module, source: nn.Module, tau: float) -> None:
    """Move a target network's parameters towards those of the learned one: theta' <- (1 - tau) theta' + tau theta."""
    torch._foreach_lerp_(list(target.parameters()), list(source.parameters()), tau)  # [TARGET.2]


class Replay:
    """Ring buffer of transitions on the training device, a row each: s [obs], a [act], r, s2 [obs], terminal; float32.

    `terminal` is true termination only, so that a truncated episode is bootstrapped from its real last state s2.
    Raises UserError if the memory for all rows cannot be had.
    """

    def __init__(self, capacity: int, obs_dim: int, act_dim: int, device: str):
        self.columns = [obs_dim, act_dim, 1, obs_dim, 1]
        self.position = self.size = 0
        try:
            self.rows = torch.empty(capacity, sum(self.columns), device=device)  # D   [REPLAY.1]
        except RuntimeError as error:
            raise UserError(f"--buffer-size {capacity} exceeds the memory of {device}: lower it") from error

    def add(self, *transition: Any) -> None:
        """Store one transition per environment: s [n, obs], a [n, act], r [n], s2 [n, obs], terminal [n]."""
        n, (capacity, _), device = len(transition[0]), self.rows.shape, self.rows.device
        columns = [torch.as_tensor(x, dtype=torch.float32, device=device).view(n, -1) for x in transition]
        self.rows[(self.position + torch.arange(n, device=device)) % capacity] = torch.cat(columns, 1)  # D   [REPLAY.2]
        self.position, self.size = (self.position + n) % capacity, min(self.size + n, capacity)

    def sample(self, n: int) -> tuple[Tensor, ...]:
        """n transitions drawn uniformly with replacement: s [n, obs], a [n, act], r [n], s2 [n, obs], terminal [n]."""
        where = torch.randint(self.size, (n,), device=self.rows.device)  # (s, a, r, s', terminal) ~ U(D)   [REPLAY.3]
        s, a, r, s2, terminal = self.rows.index_select(0, where).split(self.columns, 1)
        return s, a, r.squeeze(1), s2, terminal.squeeze(1)

    def state_dict(self) -> dict[str, Any]:
        """The filled part; on a CPU without copying it."""
        return {"position": self.position, "rows": torch.from_numpy(self.rows[: self.size].cpu().numpy())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Counterpart of state_dict."""
        self.position, self.size = state["position"], len(state["rows"])
        self.rows[: self.size] = state["rows"].to(self.rows.device)


class DDPG(nn.Module):
    """The DDPG agent: how it acts, its two losses, its update. s is [n, obs], a is [n, act] in environment units.

    Raises UserError if the environment's spaces do not fit: flat observations, bounded continuous actions.
    """

    metrics = {
        "critic_loss": "mean squared TD error [DDPG.2]",
        "q": "mean of Q over the batch",
        "q_target": "mean of the targets y over the batch [DDPG.1]",
        "critic_grad_norm": "Euclidean norm of the critic's gradient, without the weight decay's",
        "actor_loss": "minus the mean of Q(s, mu(s)) [DDPG.3]",
        "actor_grad_norm": "Euclidean norm of the actor's gradient",
    }
    training_only = ("critic", "actor_target")  # what act does without: not in policy.pt

    def __init__(self, observation_space: gym.Space, action_space: gym.Space, args: Args):
        super().__init__()
        obs_dim, (low, high) = flat_size(observation_space), bounds(action_space)
        self.gamma, self.tau = args.gamma, args.tau
        self.noise, self.exploration_noise, self.ou_theta = args.noise, args.exploration_noise, args.ou_theta
        self.register_buffer("low", low)
        self.register_buffer("high", high)
        self.register_buffer("ou_state", torch.zeros(args.num_envs, len(low)), persistent=False)
        if args.network == "lillicrap":
            self.actor = DeterministicActor(obs_dim, low, high, hidden=(400, 300))
            self.critic = LateActionCritic(obs_dim, len(low), hidden=(400, 300))
            for last in (self.actor.net[-1], self.critic.net[-1]):
                nn.init.uniform_(last.weight, -3e-3, 3e-3)
                nn.init.uniform_(last.bias, -3e-3, 3e-3)
        else:
            self.actor = DeterministicActor(obs_dim, low, high)  # initialise theta_mu   [INIT.1]
            self.critic = Critic(obs_dim, len(low))  # initialise theta_Q   [INIT.2]
        self.actor_target = copy.deepcopy(self.actor).requires_grad_(False)  # theta_mu' <- theta_mu   [TARGET.1]
        self.critic_target = copy.deepcopy(self.critic).requires_grad_(False)  # theta_Q' <- theta_Q   [TARGET.1]
        self.to(args.device)
        actor_lr = args.learning_rate if args.actor_learning_rate is None else args.actor_learning_rate
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), actor_lr, fused=True)
        self.critic_optimizer = torch.optim.Adam(
            self.critic.parameters(), args.learning_rate, weight_decay=args.critic_weight_decay, fused=True
        )
        self.critic_step = gradient_step(self.critic_loss, self.critic_optimizer, args.compile)
        self.actor_step = gradient_step(self.actor_loss, self.actor_optimizer, args.compile)

    @torch.no_grad()
    def act(self, s: Tensor) -> Tensor:
        """The deterministic policy mu(s), used in evaluation."""
        return self.actor(s).clamp(self.low, self.high)  # centre + scale may round to just outside

    @torch.no_grad()
    def explore(self, s: Tensor) -> Tensor:
        """The behaviour policy [DDPG.5]; with Ornstein-Uhlenbeck noise s has one row per environment."""
        mu = self.actor(s)
        eps = self.exploration_noise * torch.randn_like(mu)  # eps = sigma N(0, I)   [DDPG.5]
        if self.noise == "ou":
            eps += (1 - self.ou_theta) * self.ou_state  # eps_t = (1 - ou_theta) eps_{t-1} + sigma N(0, I)   [DDPG.6]
            self.ou_state.copy_(eps)
        return (mu + eps * self.actor.scale).clamp(self.low, self.high)  # a = clip(mu(s) + eps, low, high)   [DDPG.5]

    def restart_noise(self, done: Tensor) -> None:
        """Back to 0 with the noise of environments whose episode is over; done [n] is boolean."""
        self.ou_state.masked_fill_(done.unsqueeze(-1), 0.0)  # eps_{-1} = 0: a new process for every episode   [DDPG.7]

    def explore_uniformly(self, n: int) -> Tensor:
        """n actions drawn uniformly from the action space, [n, act]."""
        return self.low + (self.high - self.low) * torch.rand(n, len(self.low), device=self.low.device)

    def target(self, r: Tensor, s2: Tensor, terminal: Tensor) -> Tensor:
        """The target y [n] of the critic [DDPG.1]."""
        q2 = self.critic_target(s2, self.actor_target(s2))  # Q'(s', mu'(s'))   [DDPG.1]
        return r + self.gamma * (1 - terminal) * q2  # y = r + gamma (1 - terminal) Q'(s', mu'(s'))   [DDPG.1]

    def critic_loss(self, s: Tensor, a: Tensor, r: Tensor, s2: Tensor, terminal: Tensor):
        """L(Q) [DDPG.2] and its metrics; r and terminal are [n]."""
        with torch.no_grad():
            y = self.target(r, s2, terminal)
        q = self.critic(s, a)  # Q(s, a)   [DDPG.2]
        loss = (y - q).square().mean()  # L(Q) = mean (y - Q(s, a))^2   [DDPG.2]
        return loss, {"critic_loss": loss, "q": q.mean(), "q_target": y.mean()}

    def actor_loss(self, s: Tensor):
        """L(mu) [DDPG.3] and its metrics."""
        loss = -self.critic(s, self.actor(s)).mean()  # L(mu) = - mean Q(s, mu(s))   [DDPG.3]
        return loss, {"actor_loss": loss}

    def update(self, s: Tensor, a: Tensor, r: Tensor, s2: Tensor, terminal: Tensor) -> dict[str, Tensor]:
        """One critic step, one actor step and one target step on a batch."""
        info = self.critic_step(s, a, r, s2, terminal) | self.actor_step(s)
        follow(self.actor_target, self.actor, self.tau)  # theta' <- (1 - tau) theta' + tau theta   [DDPG.4]
        follow(self.critic_target, self.critic, self.tau)  # the same for Q'   [DDPG.4]
        return info


# ======================================================================================================================
# 4 Training loop
# ======================================================================================================================


def train(args: Args) -> Path:
    """Train from scratch or from `args.resume`; returns the run folder."""
    args = prepare(args)
    envs = VectorEnvs(args.env_id, args.num_envs)
    agent = DDPG(envs.observation_space, envs.action_space, args)
    memory = Replay(args.buffer_size, envs.observation_space.shape[0], envs.action_space.shape[0], args.device)
    info: dict[str, Tensor] = {}
    with Run(args, agent, envs, memory) as run:
        for end in run.segments(args.num_envs):
            while envs.steps < end:  # for t = 1, 2, ...   [LOOP.1]
                learning = envs.steps >= args.learning_starts
                # collect
                s = torch.from_numpy(envs.obs).to(args.device)  # s_t   [LOOP.2]
                a = agent.explore(s) if learning else agent.explore_uniformly(args.num_envs)
                s2, r, terminal, done = envs.step(a)  # execute a_t, observe r_t and s_{t+1}   [LOOP.3]
                if args.noise == "ou":
                    agent.restart_noise(torch.from_numpy(done).to(args.device))
                # remember
                memory.add(s, a, r, s2, terminal)
                # learn: one update per environment step, whatever num_envs
                for _ in range(args.num_envs if learning else 0):  # for each gradient step   [LOOP.5]
                    info = agent.update(*memory.sample(args.batch_size))
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
    main(Args, DDPG, train)
