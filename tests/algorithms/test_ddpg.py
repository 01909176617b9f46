"""DDPG's target, losses, noise and updates against numbers worked by hand, and what it learns."""

from __future__ import annotations

import csv

import ddpg
import numpy as np
import pytest
import torch
from conftest import final_return
from ddpg import DDPG, Args, RunArgs
from gymnasium.spaces import Box
from torch import nn

OBSERVATIONS = Box(-np.inf, np.inf, (3,), np.float32)
ACTIONS = Box(np.float32([-1, 0]), np.float32([1, 4]))  # half ranges 1 and 2, centres 0 and 2
LILLICRAP = {"network": "lillicrap", "actor_learning_rate": 1e-4, "critic_weight_decay": 1e-2}


def agent(**settings) -> DDPG:
    torch.manual_seed(0)
    return DDPG(OBSERVATIONS, ACTIONS, Args(run=RunArgs(device="cpu", compile=False), **settings))


def batch(n: int = 8) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    low, high = torch.tensor(ACTIONS.low), torch.tensor(ACTIONS.high)
    return {
        "s": torch.randn(n, 3), "a": low + (high - low) * torch.rand(n, 2), "r": torch.randn(n),
        "s2": torch.randn(n, 3), "terminal": (torch.rand(n) < 0.3).float(),
    }  # fmt: skip


class Value(nn.Module):
    """Q(s, a) = a . weights, with the weights as parameter."""

    def __init__(self, *weights: float):
        super().__init__()
        self.weights = nn.Parameter(torch.tensor(weights))

    def forward(self, s, a):
        return a @ self.weights.to(a.dtype)


def fix(actor: nn.Module, *tanh_output: float) -> None:
    """Make an actor return centre + tanh_output * scale everywhere."""
    with torch.no_grad():
        actor.net[-1].weight.zero_()
        actor.net[-1].bias.copy_(torch.tensor(tanh_output).atanh())


def test_target_worked_by_hand():
    a = agent(gamma=0.9)
    fix(a.actor, 0.9, 0.9)  # must not matter
    fix(a.actor_target, 0.5, -0.5)  # mu' = (0.5, 1)
    a.critic_target = Value(3.0, 1.0)  # Q' = 2.5
    y = a.target(torch.tensor([1.0, 1.0, -2.0]), torch.randn(3, 3), torch.tensor([0.0, 1.0, 0.0]))
    torch.testing.assert_close(y, torch.tensor([1 + 0.9 * 2.5, 1.0, -2 + 0.9 * 2.5]))


def test_losses_worked_by_hand():
    a = agent(gamma=0.9)
    fix(a.actor_target, 0.5, -0.5)
    fix(a.actor, -0.5, 0.5)  # mu = (-0.5, 3)
    a.critic_target, a.critic = Value(3.0, 1.0), Value(1.0, 2.0)
    # y = 3.25 and 1;  Q = 0.5 + 6, -1 + 2;  errors -3.25 and 0
    actions, terminal = torch.tensor([[0.5, 3.0], [-1.0, 1.0]]), torch.tensor([0.0, 1.0])
    loss, info = a.critic_loss(torch.zeros(2, 3), actions, torch.ones(2), torch.zeros(2, 3), terminal)
    assert loss.item() == pytest.approx(3.25**2 / 2)
    assert (info["q"].item(), info["q_target"].item()) == pytest.approx((3.75, 2.125))
    assert a.actor_loss(torch.randn(4, 3))[0].item() == pytest.approx(-5.5)


@pytest.fixture
def double():
    """float64 everywhere, so that finite differences are exact enough."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("network", ["fujimoto", "lillicrap"])
@pytest.mark.parametrize("which", ["critic", "actor"])
def test_gradients_against_finite_differences(double, which, network):
    a, data = agent(network=network), {name: x.double() for name, x in batch().items()}
    if which == "critic":
        optimizer, gradient_of, loss, arguments = a.critic_optimizer, a.critic_gradient, a.critic_loss, data.values()
    else:
        optimizer, gradient_of, loss, arguments = a.actor_optimizer, a.actor_gradient, a.actor_loss, [data["s"]]
    gradient, _, norm = gradient_of(*arguments)
    assert norm.item() == pytest.approx(gradient.square().sum().item() ** 0.5)
    theta = optimizer.param_groups[0]["params"][0].data  # moves the networks, too
    assert len(theta) == len(gradient)
    for k in [*torch.randint(len(theta), (20,)).tolist(), *gradient.abs().topk(10).indices.tolist()]:
        theta[k] += 1e-6
        up = loss(*arguments)[0]
        theta[k] -= 2e-6
        down = loss(*arguments)[0]
        theta[k] += 1e-6
        assert gradient[k].item() == pytest.approx((up - down).item() / 2e-6, rel=1e-4, abs=1e-7)


def test_actor_gradient_is_the_pathwise_derivative():
    """grad L(mu) = - mean dQ/da dmu/dtheta, assembled from its two factors as the lectures write it."""
    a, s = agent(), batch()["s"]
    mu = a.actor(s)
    action = mu.detach().requires_grad_()
    (dq_da,) = torch.autograd.grad(a.critic(s, action).sum(), action)
    pathwise = torch.autograd.grad(mu, list(a.actor.parameters()), grad_outputs=-dq_da / len(s))
    torch.testing.assert_close(a.actor_gradient(s)[0], torch.cat([g.flatten() for g in pathwise]))


def snapshot(module: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def same(module: nn.Module, before: list[torch.Tensor]) -> bool:
    return all(torch.equal(p, q) for p, q in zip(module.parameters(), before, strict=True))


def test_targets_follow_by_tau_with_every_update():
    a = agent(tau=0.25, learning_rate=1e-2)
    for _ in range(2):
        old_actor, old_critic = snapshot(a.actor_target), snapshot(a.critic_target)
        a.update(**batch())
        for target, source, old in ((a.actor_target, a.actor, old_actor), (a.critic_target, a.critic, old_critic)):
            assert not same(target, old)
            for t, s, o in zip(target.parameters(), source.parameters(), old, strict=True):
                torch.testing.assert_close(t, 0.75 * o + 0.25 * s)


def test_actor_step_leaves_the_critic_alone_and_ascends_q():
    a = agent(learning_rate=0.0, actor_learning_rate=1e-3)
    data, before, losses = batch(), snapshot(a.critic), []
    for _ in range(20):
        losses.append(a.update(**data)["actor_loss"].item())
    assert same(a.critic, before)
    assert losses[-1] < losses[0]
    assert len(a.actor_gradient(data["s"])[0]) == sum(p.numel() for p in a.actor.parameters())


def test_lillicraps_network_and_settings():
    a = agent(**LILLICRAP)
    assert [tuple(p.shape) for p in a.actor.parameters() if p.dim() == 2] == [(400, 3), (300, 400), (2, 300)]
    assert [tuple(p.shape) for p in a.critic.parameters() if p.dim() == 2] == [(400, 3), (300, 402), (1, 300)]
    for last in (a.actor.net[-1], a.critic.net[-1]):
        assert 2.5e-3 < last.weight.abs().max() <= 3e-3 and last.bias.abs().max() <= 3e-3
    s = torch.randn(5, 3)
    assert not torch.equal(a.critic(s, torch.zeros(5, 2)), a.critic(s, torch.ones(5, 2)))
    assert a.actor_optimizer.param_groups[0]["lr"] == 1e-4
    assert a.critic_optimizer.param_groups[0]["lr"] == 1e-3


def test_weight_decay_is_l2_of_the_critic_only():
    """Adam's first step is lr * sign of (gradient + decay * theta), for the critic; the actor has no decay."""
    decayed, plain = agent(critic_weight_decay=1e6, learning_rate=1e-4), agent(learning_rate=1e-4)
    before = decayed.critic_theta.clone()
    decayed.update(**batch())
    plain.update(**batch())
    torch.testing.assert_close(decayed.critic_theta, before - 1e-4 * before.sign(), atol=1e-6, rtol=0)
    assert not torch.allclose(plain.critic_theta, before - 1e-4 * before.sign(), atol=1e-6, rtol=0)
    assert decayed.actor_optimizer.param_groups[0]["weight_decay"] == 0


def test_normal_noise_stays_inside_bounds_and_has_the_right_size_in_each_dimension():
    a = agent(exploration_noise=0.1)
    fix(a.actor, 0.0, 0.0)
    actions = a.explore(torch.zeros(20_000, 3))
    torch.testing.assert_close(actions.mean(0), torch.tensor([0.0, 2.0]), atol=0.01, rtol=0)
    torch.testing.assert_close(actions.std(0), torch.tensor([0.1, 0.2]), atol=0.005, rtol=0)
    wild = agent(exploration_noise=5.0).explore(torch.zeros(1000, 3))
    uniform = a.explore_uniformly(20_000)
    for x in (wild, uniform):
        torch.testing.assert_close(x.amin(0), a.low, atol=0.02, rtol=0)
        torch.testing.assert_close(x.amax(0), a.high, atol=0.02, rtol=0)
        assert ((x >= a.low) & (x <= a.high)).all()
    torch.testing.assert_close(uniform.std(0), torch.tensor([2.0, 4.0]) / 12**0.5, atol=0.02, rtol=0)


def ou_actions(steps: int, **settings) -> torch.Tensor:
    """Actions [steps, envs, act] of an actor fixed at the centre, with Ornstein-Uhlenbeck noise, less the centre."""
    a = agent(noise="ou", num_envs=1000, **settings)
    fix(a.actor, 0.0, 0.0)
    s = torch.zeros(1000, 3)
    return torch.stack([a.explore(s) for _ in range(steps)]) - a.actor.centre


def test_ou_noise_has_its_stationary_deviation_and_autocorrelation():
    """An AR(1) process with factor 1 - theta: std = sigma / sqrt(1 - (1 - theta)^2), correlation (1 - theta)^lag."""
    x = ou_actions(150, ou_theta=0.15, exploration_noise=0.1)
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


def test_ou_theta_1_is_normal_noise_and_0_a_random_walk():
    fresh = ou_actions(100, ou_theta=1.0, exploration_noise=0.1)
    torch.testing.assert_close(fresh.std((0, 1)), torch.tensor([0.1, 0.2]), rtol=0.02, atol=0)
    assert (fresh[1:] * fresh[:-1]).mean().abs() < 0.001
    walk = ou_actions(25, ou_theta=0.0, exploration_noise=0.01)
    torch.testing.assert_close(walk[24].std(0), torch.tensor([0.05, 0.1]), rtol=0.1, atol=0)  # 0.01 sqrt(25)


def test_ou_noise_stays_inside_bounds():
    x = ou_actions(50, ou_theta=0.05, exploration_noise=2.0)
    torch.testing.assert_close(x.amin((0, 1)), torch.tensor([-1.0, -2.0]))
    torch.testing.assert_close(x.amax((0, 1)), torch.tensor([1.0, 2.0]))


def test_ou_noise_restarts_where_an_episode_ended_and_there_only():
    a = agent(noise="ou", num_envs=3)
    a.explore(torch.zeros(3, 3))
    before = a.ou_state.clone()
    assert before.abs().min() > 0
    a.restart_noise(torch.tensor([False, True, False]))
    assert torch.equal(a.ou_state[[0, 2]], before[[0, 2]])
    assert torch.equal(a.ou_state[1], torch.zeros(2))


def test_ou_noise_of_a_run_restarts_at_every_episode_end(tmp_path, monkeypatch):
    """The chain's episodes are cut after 5 steps: just before each first step of an episode the state must be 0."""
    states, explore = [], DDPG.explore

    def watched(self, s):
        states.append(self.ou_state.clone())
        return explore(self, s)

    monkeypatch.setattr(DDPG, "explore", watched)
    args = settings(tmp_path / "run", "tiny_envs:Chain-v0", 240, noise="ou", batch_size=4, num_envs=4)
    folder = ddpg.train(args)
    zero = [
        bool((state == 0).all()) for state in states
    ]  # steps 25 to 59 of each environment: 25 is an episode's first
    assert zero == [k % 5 == 0 for k in range(35)]
    checkpoint = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert checkpoint["agent"]["ou_state"].shape == (4, 1)


def test_compiled_gradients_equal_eager_ones():
    torch._dynamo.config.trace_autograd_ops = True
    eager = agent()
    compiled = agent()
    compiled.actor_gradient = ddpg.gradient_function(compiled.actor_loss, compiled.actor, RunArgs(compile=True))
    s = batch(16)["s"]
    x, y = eager.actor_gradient(s)[0], compiled.actor_gradient(s)[0]
    assert x.abs().max() > 1e-3
    torch.testing.assert_close(x, y, atol=1e-6, rtol=1e-4)


def settings(folder, env_id: str, total: int, **changes) -> Args:
    run = RunArgs(device="cpu", compile=False, run_dir=str(folder), eval_every=10**9)
    defaults = {"learning_starts": 100, "batch_size": 64, "buffer_size": 5000, "learning_rate": 1e-3}
    return Args(env_id=env_id, total_timesteps=total, run=run, **(defaults | changes))


def chain_value(tmp_path, **changes) -> float:
    """Value that DDPG learns for the endless chain (gamma 0.8, so 5)."""
    folder = ddpg.train(settings(tmp_path / "run", "tiny_envs:Chain-v0", 704, gamma=0.8, **({"tau": 0.05} | changes)))
    with open(folder / "metrics.csv") as file:
        return float(list(csv.DictReader(file))[-1]["q"])


def test_endless_chain_is_worth_one_over_one_minus_gamma(tmp_path):
    assert chain_value(tmp_path) == pytest.approx(5, abs=0.3)


def test_the_chain_test_notices_truncation_stored_as_termination(tmp_path, monkeypatch):
    step = ddpg.VectorEnvs.step

    def wrong(envs, actions):
        s2, r, _, done = step(envs, actions)
        return s2, r, done, done

    monkeypatch.setattr(ddpg.VectorEnvs, "step", wrong)
    assert chain_value(tmp_path) < 4


def test_the_chain_test_notices_targets_that_never_move(tmp_path):
    assert chain_value(tmp_path, tau=0.0) < 2


@pytest.mark.parametrize("num_envs", [1, 4])
def test_one_update_per_environment_step_whatever_num_envs(tmp_path, num_envs):
    folder = ddpg.train(settings(tmp_path / "run", "tiny_envs:Match-v0", 240, num_envs=num_envs, batch_size=4))
    checkpoint = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert checkpoint["envs"]["steps"] == 240
    for name in ("actor_optimizer", "critic_optimizer"):
        assert checkpoint["agent"]["_extra_state"][name]["state"][0]["step"] == 240 - 100
    assert checkpoint["memory"]["rows"].shape == (240, 2 + 2 + 1 + 2 + 1)


@pytest.mark.parametrize("noise", ["normal", "ou"])
def test_learns_asymmetric_actions_in_seconds(tmp_path, noise):
    folder = ddpg.train(settings(tmp_path / "run", "tiny_envs:Match-v0", 1504, noise=noise))
    assert final_return(folder) > -0.15  # the best constant action gets about -0.8


def test_lillicraps_variant_learns(tmp_path):
    lillicrap = LILLICRAP | {"actor_learning_rate": 1e-3, "critic_weight_decay": 1e-3, "noise": "ou"}
    folder = ddpg.train(settings(tmp_path / "run", "tiny_envs:Match-v0", 1504, **lillicrap))
    assert final_return(folder) > -0.3


def test_the_learning_test_notices_an_actor_of_the_wrong_sign(tmp_path, monkeypatch):
    loss = DDPG.actor_loss
    monkeypatch.setattr(DDPG, "actor_loss", lambda self, s: (-loss(self, s)[0], loss(self, s)[1]))
    folder = ddpg.train(settings(tmp_path / "run", "tiny_envs:Match-v0", 1504))
    assert final_return(folder) < -1


def test_learns_the_inverted_pendulum(tmp_path):
    quick = {"tau": 0.01, "exploration_noise": 0.3, "learning_starts": 2000, "buffer_size": 20_000}
    folder = ddpg.train(settings(tmp_path / "run", "InvertedPendulum-v5", 20_000, **quick))
    assert final_return(folder) >= 900
