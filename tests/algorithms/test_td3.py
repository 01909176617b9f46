"""TD3's target, losses and updates against numbers worked by hand, and what it learns."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import td3
import torch
from conftest import final_return
from gymnasium.spaces import Box
from td3 import TD3, Args, RunArgs
from torch import nn

OBSERVATIONS = Box(-np.inf, np.inf, (3,), np.float32)
ACTIONS = Box(np.float32([-1, 0]), np.float32([1, 4]))  # half ranges 1 and 2, centres 0 and 2


def agent(**settings) -> TD3:
    torch.manual_seed(0)
    return TD3(OBSERVATIONS, ACTIONS, Args(run=RunArgs(device="cpu", compile=False), **settings))


def batch(n: int = 8, **changes) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    low, high = torch.tensor(ACTIONS.low), torch.tensor(ACTIONS.high)
    drawn = {
        "s": torch.randn(n, 3), "a": low + (high - low) * torch.rand(n, 2), "r": torch.randn(n),
        "s2": torch.randn(n, 3), "terminal": (torch.rand(n) < 0.3).float(),
    }  # fmt: skip
    return drawn | changes


class Value(nn.Module):
    """Q(s, a) = a . weights, with the weights as parameter."""

    def __init__(self, *weights: float):
        super().__init__()
        self.weights = nn.Parameter(torch.tensor(weights))

    def forward(self, s, a):
        return a @ self.weights.to(a.dtype)


def fixed_actor(td3_agent: TD3, tanh_output: float) -> None:
    """Make the target actor return centre + tanh_output * scale everywhere."""
    last = td3_agent.actor_target.net[4]
    last.weight.zero_()
    last.bias.fill_(np.arctanh(tanh_output))


def test_target_worked_by_hand():
    a = agent(gamma=0.9, policy_noise=0.2, noise_clip=0.5)
    fixed_actor(a, 0.0)  # mu' = (0, 2)
    a.critics_target = nn.ModuleList([Value(1.0, 1.0), Value(3.0, 0.0)])
    noise = torch.tensor([[3.0, -0.5], [3.0, -0.5], [-9.0, 9.0]])
    # eps = clip(0.2 noise, -0.5, 0.5) * (1, 2) = (0.5, -0.2), (0.5, -0.2), (-0.5, 1);  a~ = (0.5, 1.8) twice, (-0.5, 3)
    # Q'_1 = 2.3, 2.3, 2.5;  Q'_2 = 1.5, 1.5, -1.5;  the smaller: 1.5, 1.5, -1.5
    y = a.target(torch.tensor([1.0, 1.0, 2.0]), torch.zeros(3, 3), torch.tensor([0.0, 1.0, 0.0]), noise)
    torch.testing.assert_close(y, torch.tensor([1 + 0.9 * 1.5, 1.0, 2 - 0.9 * 1.5]))


def test_smoothed_target_action_stays_inside_the_bounds_of_each_dimension():
    a = agent(policy_noise=0.2, noise_clip=0.5)
    fixed_actor(a, 0.9)  # mu' = (0.9, 3.8)
    seen = []
    a.critics_target = nn.ModuleList([Value(0.0, 0.0), Value(0.0, 0.0)])
    a.critics_target[0].forward = lambda s, action: seen.append(action) or action.sum(-1)
    noise = torch.tensor([[9.0, 9.0], [0.1, 0.1], [-9.0, -9.0]])
    a.target(torch.zeros(3), torch.zeros(3, 3), torch.zeros(3), noise)
    torch.testing.assert_close(seen[0], torch.tensor([[1.0, 4.0], [0.92, 3.84], [0.4, 2.8]]))


def test_critic_loss_worked_by_hand():
    a = agent(gamma=0.9, policy_noise=0.0)
    fixed_actor(a, 0.0)
    a.critics_target = nn.ModuleList([Value(1.0, 1.0), Value(3.0, 0.5)])  # at (0, 2): 2 and 1 -> 1
    a.critics = nn.ModuleList([Value(1.0, 0.0), Value(0.0, 1.0)])
    # y = 1 + 0.9 * 1 = 1.9 and 1;  Q_1 = 0.5, -1;  Q_2 = 3, 1;  errors 1.4, 2 and -1.1, 0
    loss, info = a.critic_loss(
        torch.zeros(2, 3), torch.tensor([[0.5, 3.0], [-1.0, 1.0]]), torch.ones(2), torch.zeros(2, 3),
        torch.tensor([0.0, 1.0]), torch.zeros(2, 2),
    )  # fmt: skip
    assert loss.item() == pytest.approx((1.4**2 + 2**2) / 2 + (1.1**2 + 0) / 2)
    assert info["q"].item() == pytest.approx(-0.25)
    assert info["q_target"].item() == pytest.approx(1.45)


def test_actor_loss_is_minus_the_first_critics_value():
    a = agent()
    a.critics = nn.ModuleList([Value(1.0, 2.0), Value(100.0, 100.0)])
    with torch.no_grad():
        last = a.actor.net[4]
        last.weight.zero_()
        last.bias.copy_(torch.atanh(torch.tensor([0.5, -0.5])))  # mu = (0.5, 1)
    assert a.actor_loss(torch.randn(4, 3))[0].item() == pytest.approx(-2.5)


@pytest.fixture
def double():
    """float64 everywhere, so that finite differences are exact enough."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("which", ["critic", "actor"])
def test_gradients_against_finite_differences(double, which):
    a, data = agent(), batch()
    data = {name: x.double() for name, x in data.items()}
    noise = torch.randn(8, 2)
    if which == "critic":
        optimizer, gradient_of, loss, arguments = (
            a.critic_optimizer,
            a.critic_gradient,
            a.critic_loss,
            (*data.values(), noise),
        )
    else:
        optimizer, gradient_of, loss, arguments = a.actor_optimizer, a.actor_gradient, a.actor_loss, (data["s"],)
    gradient, _, norm = gradient_of(*arguments)
    assert norm.item() == pytest.approx(gradient.square().sum().item() ** 0.5)
    theta = optimizer.param_groups[0]["params"][0].data  # moves the networks, too
    assert len(theta) == len(gradient)
    for k in [*torch.randint(len(theta), (30,)).tolist(), *gradient.abs().topk(10).indices.tolist()]:
        theta[k] += 1e-6
        up = loss(*arguments)[0]
        theta[k] -= 2e-6
        down = loss(*arguments)[0]
        theta[k] += 1e-6
        assert gradient[k].item() == pytest.approx((up - down).item() / 2e-6, rel=1e-4, abs=1e-7)


def snapshot(module: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def same(module: nn.Module, before: list[torch.Tensor]) -> bool:
    return all(torch.equal(p, q) for p, q in zip(module.parameters(), before, strict=True))


def test_policy_and_targets_move_only_with_the_delayed_update():
    a = agent(policy_delay=3, tau=0.25, learning_rate=1e-2)
    parts = {"critics": a.critics, "actor": a.actor, "actor_target": a.actor_target, "targets": a.critics_target}
    for call in (1, 2, 3):
        before = {name: snapshot(module) for name, module in parts.items()}
        info = a.update(**batch())
        moved = {name for name, module in parts.items() if not same(module, before[name])}
        assert moved == ({"critics"} if call < 3 else set(parts))
        assert ("actor_loss" in info) == (call == 3)
    for target, source in ((a.actor_target, a.actor), (a.critics_target, a.critics)):
        old = before["actor_target" if target is a.actor_target else "targets"]
        for t, s, o in zip(target.parameters(), source.parameters(), old, strict=True):
            torch.testing.assert_close(t, 0.75 * o + 0.25 * s)


def test_actor_step_leaves_the_critics_alone_and_ascends_q():
    a = agent(policy_delay=1, learning_rate=1e-3)
    a.critic_optimizer.param_groups[0]["lr"] = 0.0
    data, before, losses = batch(), snapshot(a.critics), []
    for _ in range(20):
        losses.append(a.update(**data)["actor_loss"].item())
    assert same(a.critics, before)
    assert losses[-1] < losses[0]
    gradient, _, _ = a.actor_gradient(data["s"])
    assert len(gradient) == sum(p.numel() for p in a.actor.parameters())


def test_behaviour_stays_inside_bounds_and_has_the_right_noise_in_each_dimension():
    a = agent(exploration_noise=0.1)
    with torch.no_grad():
        a.actor.net[4].weight.zero_()
        a.actor.net[4].bias.zero_()
    actions = a.explore(torch.zeros(20_000, 3))
    torch.testing.assert_close(actions.mean(0), torch.tensor([0.0, 2.0]), atol=0.01, rtol=0)
    torch.testing.assert_close(actions.std(0), torch.tensor([0.1, 0.2]), atol=0.005, rtol=0)
    wild = agent(exploration_noise=5.0).explore(torch.zeros(1000, 3))
    uniform = a.explore_uniformly(20_000)
    for x in (wild, uniform):
        torch.testing.assert_close(x.amin(0), a.low, atol=0.02, rtol=0)
        torch.testing.assert_close(x.amax(0), a.high, atol=0.02, rtol=0)
        assert ((x >= a.low) & (x <= a.high)).all()
    torch.testing.assert_close(uniform.mean(0), torch.tensor([0.0, 2.0]), atol=0.05, rtol=0)
    torch.testing.assert_close(uniform.std(0), torch.tensor([2.0, 4.0]) / 12**0.5, atol=0.02, rtol=0)


def test_replay_overwrites_the_oldest_and_samples_all_that_is_left():
    memory = td3.Replay(5, 1, 1, "cpu")
    for k in range(4):  # two rows at a time: 0 1 | 2 3 | 4 5 | 6 7, so the last five are 3 to 7
        rows = np.array([[2.0 * k], [2.0 * k + 1]])
        memory.add(rows, rows + 100, rows[:, 0] + 200, rows + 300, np.array([k % 2 == 0, False]))
    assert (memory.size, memory.position) == (5, 3)
    s, a, r, s2, terminal = memory.sample(1000)
    assert sorted(set(s[:, 0].tolist())) == [3, 4, 5, 6, 7]
    assert torch.equal(a, s + 100) and torch.equal(r, s[:, 0] + 200) and torch.equal(s2, s + 300)
    assert torch.equal(terminal, (s[:, 0] == 4).float())
    counts = torch.bincount(s[:, 0].long())[3:]
    assert (counts > 140).all() and (counts < 260).all()  # 200 each, standard deviation 13


def test_compiled_gradients_equal_eager_ones():
    torch._dynamo.config.trace_autograd_ops = True
    eager = agent()
    compiled = agent()
    compiled.critic_gradient = td3.gradient_function(compiled.critic_loss, compiled.critics, RunArgs(compile=True))
    arguments = (*batch(16).values(), torch.randn(16, 2))
    x, y = eager.critic_gradient(*arguments)[0], compiled.critic_gradient(*arguments)[0]
    assert x.abs().max() > 1e-3
    torch.testing.assert_close(x, y, atol=1e-6, rtol=1e-4)


def settings(folder, env_id: str, total: int, **changes) -> Args:
    run = RunArgs(device="cpu", compile=False, run_dir=str(folder), eval_every=10**9)
    defaults = {"learning_starts": 100, "batch_size": 64, "buffer_size": 5000, "learning_rate": 1e-3}
    return Args(env_id=env_id, total_timesteps=total, run=run, **(defaults | changes))


def chain_value(tmp_path, monkeypatch, truncation_is_termination: bool) -> float:
    """Value that TD3 learns for the endless chain (gamma 0.8, so 5), optionally with the classical mistake."""
    if truncation_is_termination:
        step = td3.VectorEnvs.step

        def wrong(envs, actions):
            s2, r, _, done = step(envs, actions)
            return s2, r, done, done

        monkeypatch.setattr(td3.VectorEnvs, "step", wrong)
    folder = td3.train(settings(tmp_path / "run", "tiny_envs:Chain-v0", 704, gamma=0.8, tau=0.05))
    with open(folder / "metrics.csv") as file:
        return float(list(csv.DictReader(file))[-1]["q"])


def test_endless_chain_is_worth_one_over_one_minus_gamma(tmp_path, monkeypatch):
    assert chain_value(tmp_path, monkeypatch, truncation_is_termination=False) == pytest.approx(5, abs=0.3)


def test_the_chain_test_notices_truncation_stored_as_termination(tmp_path, monkeypatch):
    assert chain_value(tmp_path, monkeypatch, truncation_is_termination=True) < 4


@pytest.mark.parametrize("num_envs", [1, 4])
def test_one_update_per_environment_step_whatever_num_envs(tmp_path, num_envs):
    folder = td3.train(settings(tmp_path / "run", "tiny_envs:Match-v0", 240, num_envs=num_envs, batch_size=4))
    checkpoint = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert checkpoint["envs"]["steps"] == 240
    assert checkpoint["agent"]["_extra_state"]["updates"] == 240 - 100
    assert checkpoint["memory"]["rows"].shape == (240, 2 + 2 + 1 + 2 + 1)


def test_learns_asymmetric_actions_in_seconds(tmp_path):
    folder = td3.train(settings(tmp_path / "run", "tiny_envs:Match-v0", 1504))
    assert final_return(folder) > -0.15  # the best constant action gets about -0.8


def test_learns_the_inverted_pendulum(tmp_path):
    quick = {"batch_size": 64, "tau": 0.01, "exploration_noise": 0.3, "policy_noise": 0.1, "learning_starts": 2000}
    folder = td3.train(settings(tmp_path / "run", "InvertedPendulum-v5", 20_000, **quick, buffer_size=20_000))
    assert final_return(folder) >= 900
