"""A2C's loss, networks, optimisers and single step; see test_on_policy.py too."""

import math
from functools import partial

import pytest
import torch
from conftest import ACTIONS, OBSERVATIONS, by_space, make_agent, rollout
from torch import nn

CONTINUOUS, DISCRETE = ACTIONS.values()
agent = partial(make_agent, "a2c", OBSERVATIONS, num_envs=8)


def test_loss_worked_by_hand():
    a, logp = agent(CONTINUOUS, vf_coef=0.4, ent_coef=0.1), torch.tensor([-1.0, -2.0, -0.5], requires_grad=True)
    a.actor.log_prob = lambda s, a: (logp, torch.full((3,), 2.0))
    a.critic = nn.Linear(3, 1)
    a.critic.weight.data, a.critic.bias.data = torch.zeros(1, 3), torch.ones(1)
    loss, info = a.loss(torch.zeros(3, 3), None, torch.tensor([1.0, -2.0, 3.0]), torch.tensor([1.0, 2.0, 3.0]))
    # log pi A = -1, 4, -1.5;  V - target = 0, -1, -2
    wanted = {"policy_loss": -1.5 / 3, "value_loss": 5 / 3, "entropy": 2.0}
    assert {name: x.item() for name, x in info.items()} == pytest.approx(wanted)
    assert loss.item() == pytest.approx(-(1.5 / 3 - 0.4 * 5 / 3 + 0.1 * 2.0))
    loss.backward()
    torch.testing.assert_close(logp.grad, torch.tensor([-1.0, 2.0, -3.0]) / 3)  # d loss / d log pi = - A / n
    assert a.critic.bias.grad.item() == pytest.approx(0.4 * 2 * (0 - 1 - 2) / 3)


@by_space
@pytest.mark.parametrize("shared", [False, True])
def test_only_shared_networks_have_hidden_layers_in_common(space, shared):
    a = agent(space, shared_network=shared, vf_coef=0.0)
    hidden, head = 3 * 64 + 64 + 64 * 64 + 64, 65 * 3 if space is DISCRETE else 65 * 2 + 2
    trained = sum(p.numel() for p in a.optimizer.param_groups[0]["params"])
    assert trained == (1 if shared else 2) * hidden + head + 65
    value = a.critic(torch.ones(1, 3)).item()
    a.update(*rollout(a), 0.0)  # by the policy's loss alone
    assert (a.critic(torch.ones(1, 3)).item() != value) == shared


def test_rmsprop_adds_epsilon_outside_the_square_root_and_adam_is_the_other_optimiser():
    a, b, adam = (agent(CONTINUOUS, learning_rate=1e-3, optimizer=x) for x in ("rmsprop", "rmsprop", "adam"))
    for x, g, steps in ((a, 1e-4, 2), (adam, 1.0, 1)):
        for _ in range(steps):
            for p in x.parameters():
                p.grad = torch.full_like(p, g)
            x.optimizer.step()
    v1 = 0.01 * 1e-4**2  # v <- 0.99 v + 0.01 g^2, from 0
    v2 = 0.99 * v1 + 0.01 * 1e-4**2
    outside = sum(1e-3 * 1e-4 / (math.sqrt(v) + 1e-5) for v in (v1, v2))  # inside, it would be 20 times less
    for p, q, r in zip(a.parameters(), b.parameters(), adam.parameters(), strict=True):
        torch.testing.assert_close(q - p, torch.full_like(p, outside), rtol=1e-3, atol=1e-7)
        torch.testing.assert_close(q - r, torch.full_like(p, 1e-3))  # Adam's first step is along the gradient's sign
    assert adam.optimizer.defaults["eps"] == 1e-5


@pytest.mark.parametrize("norm_adv", [False, True])
def test_an_update_is_one_gradient_step_on_the_whole_rollout(norm_adv):
    a, seen = agent(CONTINUOUS, norm_adv=norm_adv, norm_reward=False), []
    step = a.step
    a.step = lambda *x: seen.append(x) or step(*x)
    s, actions, r, s2, terminal, done = data = rollout(a)
    adv, v_target = a.advantages(s, r, s2, terminal, done)  # the statistics are still mean 0 and std 1
    a.update(*data, 0.0)
    adv = (adv - adv.mean()) / adv.std() if norm_adv else adv
    assert len(seen) == 1
    for x, wanted in zip(seen[0], (s, actions, adv, v_target), strict=True):
        torch.testing.assert_close(x, wanted.flatten(0, 1))
