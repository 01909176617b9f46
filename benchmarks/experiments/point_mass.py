"""A point mass whose expected return is known exactly, for the experiments on gradient estimates.

x_{t+1} = x_t + 0.2 a_t,  r_t = -x_t^2 - 0.1 a_t^2,  x_0 ~ N(1, 0.5^2),  t = 0 ... horizon - 1, no discount.
The policy is Gaussian with a mean that is linear in s_t = (x_t, t / horizon), so that x_t is Gaussian too, and two
numbers, its mean m and variance v, tell E[r_t].
"""

import copy

import numpy as np
import reinforce
import torch
from gymnasium.spaces import Box
from reinforce import REINFORCE
from torch import Tensor, nn

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
        gradient.append((exact_return(actor, horizon) - j) / eps)
    return torch.tensor(gradient, dtype=torch.float64)
