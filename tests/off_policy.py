"""What the tests of the four off-policy algorithms share: agents that can be worked by hand."""

from typing import Any

import conftest
import torch
from conftest import OBSERVATIONS, make_agent
from torch import Tensor, nn

ACTIONS = conftest.ACTIONS["continuous"]  # half ranges 1 and 2, centres 0 and 2
TWO = (  # s, a, r, s2, terminal of two transitions, of which the second terminates
    torch.zeros(2, 3), torch.tensor([[0.5, 3.0], [-1.0, 1.0]]), torch.ones(2),
    torch.zeros(2, 3), torch.tensor([0.0, 1.0]),
)  # fmt: skip


def agent(algorithm: str, **changes: Any) -> Any:
    """A fresh agent for the spaces above."""
    return make_agent(algorithm, OBSERVATIONS, ACTIONS, **changes)


def batch(n: int = 8, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """s, a, r, s2, terminal drawn from seed 1."""
    torch.manual_seed(1)
    low, high = torch.tensor(ACTIONS.low), torch.tensor(ACTIONS.high)
    s, a, r, s2 = torch.randn(n, 3), low + (high - low) * torch.rand(n, 2), -torch.rand(n), torch.randn(n, 3)
    return tuple(x.to(dtype) for x in (s, a, r, s2, torch.rand(n) < 0.3))


def pair(first: Any, second: Any) -> nn.ModuleList:
    """Twin critics."""
    return nn.ModuleList([first, second])


class Value(nn.Module):
    """Q(s, a) = a . weights, with the weights as parameter."""

    def __init__(self, *weights: float):
        super().__init__()
        self.weights = nn.Parameter(torch.tensor(weights))

    def forward(self, s, a):
        return a @ self.weights


def fix(actor: nn.Module, *tanh_output: float) -> None:
    """Make an actor return centre + tanh_output * scale everywhere."""
    with torch.no_grad():
        actor.net[-1].weight.zero_()
        actor.net[-1].bias.copy_(torch.tensor(tanh_output).atanh())


def snapshot(module: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def same(module: nn.Module, before: list[Tensor]) -> bool:
    return all(torch.equal(p, q) for p, q in zip(module.parameters(), before, strict=True))
