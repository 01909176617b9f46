"""The multi-goal environment of the slides: a point in the plane, stepped in 16 directions to one of four goals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from ddpg import Replay
from torch import Tensor

GOALS = torch.tensor([[5.0, 0.0], [0.0, 5.0], [-5.0, 0.0], [0.0, -5.0]])  # four, all worth the same   [GOALS.1]
ANGLES = torch.arange(16) * torch.pi / 8  # of the actions; a step has length 1 and a reward of -1


def move(s: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """Where the actions a [n] (integers) lead from s [n, 2], and the goal it is within 1 of: 0 to 3, or -1 for none."""
    s2 = (s + torch.stack([ANGLES[a].cos(), ANGLES[a].sin()], -1)).clamp(-7, 7)
    distance, goal = torch.cdist(s2, GOALS).min(-1)
    return s2, torch.where(distance < 1, goal, -1)


def random_memory(n: int) -> Replay:
    """A replay memory of n random actions in random places; the episode is over at a goal."""
    memory, s, a = Replay(n, 2, 1, "cpu"), 14 * torch.rand(n, 2) - 7, torch.randint(len(ANGLES), (n,))
    s2, goal = move(s, a)
    memory.add(s, a, -torch.ones(n), s2, goal >= 0)
    return memory


@torch.no_grad()
def walk(act: Callable, n: int) -> tuple[Tensor, Tensor]:
    """n paths from the middle [31, n, 2] by the actions act(s) [n], and the share of each goal, the highest first."""
    path, reached = [torch.zeros(n, 2)], torch.full((n,), -1)
    for _ in range(30):
        s2, goal = move(path[-1], act(path[-1]))
        path.append(torch.where((reached < 0).unsqueeze(-1), s2, path[-1]))
        reached = torch.where(reached < 0, goal, reached)
    return torch.stack(path), torch.bincount(reached + 1, minlength=5)[1:].sort(descending=True).values / n


def draw(axis: Any, path: Tensor, colour: str, title: str) -> None:
    """The paths [steps, n, 2] between the goals."""
    axis.plot(*path.permute(2, 0, 1), color=colour, alpha=0.5, linewidth=1)
    axis.plot(*GOALS.T, "k*")
    axis.set(xlabel="x", ylabel="y", title=title, aspect="equal")
