"""DDPG's target, losses, two networks and two noises against numbers worked by hand."""

import pytest
import torch
from conftest import learn
from ddpg import DDPG, LateActionCritic
from off_policy import TWO, Value, agent, batch, fix
from torch import nn


def test_target_and_losses_worked_by_hand():
    a = agent("ddpg", gamma=0.9)
    fix(a.actor_target, 0.5, -0.5)  # mu' = (0.5, 1)
    fix(a.actor, -0.5, 0.5)  # mu = (-0.5, 3)
    a.critic_target, a.critic = Value(3.0, 1.0), Value(1.0, 2.0)  # Q' = 2.5
    y = a.target(torch.tensor([1.0, 1.0, -2.0]), torch.randn(3, 3), torch.tensor([0.0, 1.0, 0.0]))
    torch.testing.assert_close(y, torch.tensor([3.25, 1.0, 0.25]))
    # y = 3.25 and 1;  Q = 0.5 + 6, -1 + 2;  errors -3.25 and 0
    loss, info = a.critic_loss(*TWO)
    assert loss.item() == pytest.approx(3.25**2 / 2)
    assert (info["q"].item(), info["q_target"].item()) == pytest.approx((3.75, 2.125))
    assert a.actor_loss(torch.randn(4, 3))[0].item() == pytest.approx(-5.5)


def test_lillicraps_network_and_settings():
    rates = {"actor_learning_rate": 1e-4, "learning_rate": 1e-3, "critic_weight_decay": 1e-2}
    a = agent("ddpg", network="lillicrap", **rates)
    assert [tuple(p.shape) for p in a.actor.parameters() if p.dim() == 2] == [(400, 3), (300, 400), (2, 300)]
    assert [tuple(p.shape) for p in a.critic.parameters() if p.dim() == 2] == [(400, 3), (300, 402), (1, 300)]
    for last in (a.actor.net[-1], a.critic.net[-1]):
        assert 2.5e-3 < last.weight.abs().max() <= 3e-3 and last.bias.abs().max() <= 3e-3
    s = torch.randn(5, 3)
    assert not torch.equal(a.critic(s, torch.zeros(5, 2)), a.critic(s, torch.ones(5, 2)))
    actor, critic = a.actor_optimizer.param_groups[0], a.critic_optimizer.param_groups[0]
    assert (actor["lr"], critic["lr"], actor["weight_decay"], critic["weight_decay"]) == (1e-4, 1e-3, 0, 1e-2)


def test_lillicraps_critic_worked_by_hand():
    q = LateActionCritic(1, 1, hidden=(2, 2))
    for layer, weight in ((q.first, [[1, -1]]), (q.net[0], [[1, 0], [1, 0], [1, -1]]), (q.net[-1], [[1], [10]])):
        layer.weight.data = torch.tensor(weight).float().T
        layer.bias.data.zero_()
    # s = 2: relu(2, -2) = (2, 0); with a = 3: relu(2 + 3, -3) = (5, 0), so Q = 5; with -4: relu(-2, 4), so Q = 40
    assert q(torch.full((2, 1), 2.0), torch.tensor([[3.0], [-4.0]])).tolist() == [5, 40]


def test_weight_decay_is_l2_of_the_critic_only():
    """Adam's first step is lr * sign of (gradient + decay * theta); decoupled decay would move theta much further."""
    a = agent("ddpg", critic_weight_decay=1e6, learning_rate=1e-4)
    before = [p.detach().clone() for p in a.critic.parameters()]
    a.update(*batch())
    for p, old in zip(a.critic.parameters(), before, strict=True):
        torch.testing.assert_close(p.data, old - 1e-4 * old.sign(), atol=1e-6, rtol=0)


def test_ou_noise_has_its_stationary_deviation_and_autocorrelation():
    """An AR(1) process with factor 1 - theta: std = sigma / sqrt(1 - (1 - theta)^2), correlation (1 - theta)^lag."""
    a, s = agent("ddpg", noise="ou", num_envs=1000, ou_theta=0.15, exploration_noise=0.1), torch.zeros(1000, 3)
    a.actor.net = nn.Sequential(nn.Linear(3, 2))  # fast
    fix(a.actor, 0.0, 0.0)
    x = torch.stack([a.explore(s) for _ in range(150)]) - a.actor.centre
    settled = x[50:]
    want = 0.1 / (1 - 0.85**2) ** 0.5
    torch.testing.assert_close(settled.std((0, 1)), torch.tensor([want, 2 * want]), rtol=0.03, atol=0)
    torch.testing.assert_close(settled.mean((0, 1)), torch.zeros(2), atol=0.01, rtol=0)
    for lag in (1, 5):
        correlation = (settled[lag:] * settled[:-lag]).mean((0, 1)) / settled.square().mean((0, 1))
        torch.testing.assert_close(correlation, torch.full((2,), 0.85**lag), atol=0.03, rtol=0)
    # the first step of an episode is one fresh draw, and environments and dimensions are independent of each other
    torch.testing.assert_close(x[0].std(0), torch.tensor([0.1, 0.2]), rtol=0.1, atol=0)
    assert (settled[:, ::2] * settled[:, 1::2]).mean().abs() < 0.002
    assert (settled[..., 0] * settled[..., 1]).mean().abs() < 0.002


def test_ou_noise_restarts_where_an_episode_ended_and_there_only():
    a = agent("ddpg", noise="ou", num_envs=3)
    a.explore(torch.zeros(3, 3))
    before = a.ou_state.clone()
    a.restart_noise(torch.tensor([False, True, False]))
    assert torch.equal(a.ou_state[[0, 2]], before[[0, 2]]) and before.abs().min() > 0
    assert torch.equal(a.ou_state[1], torch.zeros(2))


def test_ou_noise_of_a_run_restarts_at_every_episode_end(tmp_path, monkeypatch):
    """The chain's episodes are cut after 5 steps, and at the segment's end after 48 steps of each environment."""
    states, explore = [], DDPG.explore
    monkeypatch.setattr(DDPG, "explore", lambda self, s: (states.append(self.ou_state.clone()), explore(self, s))[1])
    learn("ddpg", tmp_path, "Chain-v0", 240, noise="ou", num_envs=4, batch_size=4, checkpoint_every=192)
    assert [k for k, state in zip(range(25, 60), states, strict=True) if (state == 0).all()] == [
        25, 30, 35, 40, 45, 48, 53, 58,
    ]  # fmt: skip
