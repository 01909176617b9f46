"""Small tasks whose answers are known, for the experiments.

The point mass: x_{t+1} = x_t + 0.2 a_t,  r_t = -x_t^2 - 0.1 a_t^2,  x_0 ~ N(1, 0.5^2),  t = 0 ... horizon - 1, no
discount. The policy is Gaussian with a mean that is linear in s_t = (x_t, t / horizon), so that x_t is Gaussian too,
and two numbers, its mean m and variance v, tell E[r_t].

The random walk of Sutton and Barto: 19 states in a row, rewards -1 at the left end and 1 at the right.

Point-v0: a point in the plane starts in the middle, moves by up to 0.1 per dimension and step and earns 0 within 0.05
of its goal, else -1; 25 steps.
"""

import copy

import common  # noqa: F401  puts algorithms/ on the import path
import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces import Box, Dict
from torch import Tensor, nn

# isort: split
import reinforce
from reinforce import REINFORCE

OBSERVATIONS = Box(-np.inf, np.inf, (2,), np.float32)
ACTIONS = Box(-np.inf, np.inf, (1,), np.float32)


def agent(trajectories: int) -> REINFORCE:
    """REINFORCE in its plainest form, with N = trajectories per update and a linear policy of four parameters."""
    plain = {"gamma": 1.0, "bootstrap": False, "scale_gradient": False, "norm_obs": False}
    args = reinforce.Args(num_envs=trajectories, device="cpu", compile=False, **plain)
    made = REINFORCE(OBSERVATIONS, ACTIONS, args)
    made.actor.mu = nn.Linear(2, 1)
    with torch.no_grad():
        made.actor.mu.weight.copy_(torch.tensor([[-1.0, 0.0]]))
        made.actor.mu.bias.zero_()
    made.optimizer = torch.optim.Adam(made.actor.parameters(), args.learning_rate)
    return made


def simulate(actor: nn.Module, n: int, horizon: int) -> tuple[Tensor, Tensor, Tensor]:
    """n episodes: s [horizon, n, 2], a [horizon, n, 1], r [horizon, n]; all of it differentiable by the policy."""
    x, rows = 1 + 0.5 * torch.randn(n), []
    for t in range(horizon):
        s = torch.stack([x, torch.full_like(x, t / horizon)], -1)
        a = actor.sample(s)
        rows.append((s, a, -x.square() - 0.1 * a.squeeze(-1).square()))
        x = x + 0.2 * a.squeeze(-1)
    s, a, r = (torch.stack(column) for column in zip(*rows, strict=True))
    return s, a, r


def exact_return(actor: nn.Module, horizon: int) -> float:
    """J = sum_t E[r_t]: E[a] = w m + c and Var[a] = w^2 v + std^2, where the mean action is w x + c at time t."""
    (w, drift), bias, std = actor.mu.weight[0].tolist(), actor.mu.bias.item(), actor.log_std.exp().item()
    m, v, total = 1.0, 0.25, 0.0
    for t in range(horizon):
        c = drift * t / horizon + bias
        total -= m**2 + v + 0.1 * ((w * m + c) ** 2 + w**2 * v + std**2)
        m, v = m + 0.2 * (w * m + c), (1 + 0.2 * w) ** 2 * v + (0.2 * std) ** 2
    return total


def finite_differences(actor: nn.Module, horizon: int, eps: float = 1e-6) -> Tensor:
    """(J(theta + eps e_k) - J(theta)) / eps for every parameter k, in the order of actor.parameters(); float64."""
    actor = copy.deepcopy(actor).double()
    theta, gradient = nn.utils.parameters_to_vector(actor.parameters()).detach(), []
    j = exact_return(actor, horizon)
    for e_k in torch.eye(len(theta), dtype=torch.float64):
        nn.utils.vector_to_parameters(theta + eps * e_k, actor.parameters())
        gradient.append((exact_return(actor, horizon) - j) / eps)  # (J(theta + eps e_k) - J(theta)) / eps   [FD.1]
    return torch.tensor(gradient, dtype=torch.float64)


def random_walk() -> Tensor:
    """The states of an episode of the random walk: from 10 on, a step to either side at a time, to 0 or 20."""
    states = [10]
    while 0 < states[-1] < 20:
        states.append(states[-1] + 2 * int(torch.rand(()) < 0.5) - 1)
    return torch.tensor(states)


def accuracy(gradients: list[Tensor], truth: Tensor) -> dict[str, float]:
    """What a list of independent estimates of the gradient says, in units of |truth|.

    Total variance, root mean square error, length of the mean along the truth (1 without bias), and by how many
    standard errors the mean's worst component is off.
    """
    x, square = torch.stack(gradients).double(), truth.square().sum()
    off = (x.mean(0) - truth) / (x.std(0) / len(x) ** 0.5)
    numbers = {"variance": x.var(0).sum() / square, "error": ((x - truth).square().sum(1).mean() / square).sqrt()}
    numbers |= {"length": x.mean(0) @ truth / square, "standard_errors_off": off.abs().max()}
    return {name: number.item() for name, number in numbers.items()}


class Point(gym.Env):
    """Goals are places; the observation is where the point is."""

    action_space = Box(-1, 1, (2,), np.float32)
    observation_space = Dict({name: Box(-1, 1, (2,)) for name in ("observation", "achieved_goal", "desired_goal")})

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.point, self.goal = np.zeros(2, np.float32), self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return self.observe(), {}

    def step(self, action):
        self.point = np.clip(self.point + 0.1 * action, -1, 1).astype(np.float32)
        return self.observe(), float(self.compute_reward(self.point, self.goal, {})), False, False, {}

    def observe(self):
        return {"observation": self.point.copy(), "achieved_goal": self.point.copy(), "desired_goal": self.goal.copy()}

    def compute_reward(self, achieved_goal, desired_goal, info):
        return -(np.linalg.norm(achieved_goal - desired_goal, axis=-1) > 0.05).astype(np.float32)


gym.register("Point-v0", Point, max_episode_steps=25)
