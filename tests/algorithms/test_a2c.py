"""A2C's returns, loss, networks and optimisers against numbers worked by hand, and what it learns."""

from __future__ import annotations

import copy
import math

import a2c
import numpy as np
import pytest
import torch
from a2c import A2C, Args, Rollout, RunArgs
from conftest import final_return
from gymnasium.spaces import Box, Discrete
from torch import nn

OBSERVATIONS = Box(-np.inf, np.inf, (3,), np.float32)
ACTIONS = Box(np.float32([-1, 0]), np.float32([1, 4]))  # half ranges 1 and 2, centres 0 and 2


def agent(actions=ACTIONS, **settings) -> A2C:
    torch.manual_seed(0)
    return A2C(OBSERVATIONS, actions, Args(run=RunArgs(device="cpu", compile=False), **settings))


def rollout(a: A2C, t: int = 5, n: int = 8) -> Rollout:
    torch.manual_seed(1)
    s = torch.randn(t, n, 3)
    actions = torch.stack([a.explore(row) for row in s])
    done = (torch.rand(t, n) < 0.2).float()
    return Rollout(s, actions, torch.randn(t, n), torch.randn(t, n, 3), done * (torch.rand(t, n) < 0.5), done)


# ---- returns ---------------------------------------------------------------------------------------------------------

# gamma = 0.5, lambda = 1, r = 1 1 3, V(s2) = 2 3 4, so the rollout's end is worth 4, the second step's s2 3.
# The episode's state at its second step decides: (terminal, done) -> n-step returns V^targ by hand
RETURNS_TRUTH_TABLE = {
    "goes on": (0, 0, [1 + 0.5 * 1 + 0.25 * 3 + 0.125 * 4, 1 + 0.5 * 3 + 0.25 * 4, 3 + 0.5 * 4]),
    "truncated": (0, 1, [1 + 0.5 * 1 + 0.25 * 3, 1 + 0.5 * 3, 3 + 0.5 * 4]),  # bootstrapped with V(s2) = 3, cut
    "terminated": (1, 1, [1 + 0.5 * 1, 1, 3 + 0.5 * 4]),  # no bootstrap, cut
}


class FirstNumber(nn.Module):
    """V(s) = the first number of s."""

    def forward(self, s):
        return s[..., :1]


@pytest.mark.parametrize("case", RETURNS_TRUTH_TABLE)
def test_n_step_returns_truth_table(case):
    terminal, done, wanted = RETURNS_TRUTH_TABLE[case]
    a = agent(gamma=0.5, gae_lambda=1.0)
    a.critic = FirstNumber()
    column = lambda *x: torch.tensor(x, dtype=torch.float32).unsqueeze(-1)  # noqa: E731
    s, s2 = (torch.stack([x] * 3, -1) for x in (column(1, 2, 3), column(2, 3, 4)))
    adv, v_target = a.advantages(s, column(1, 1, 3), s2, column(0, terminal, 0), column(0, done, 0))
    torch.testing.assert_close(v_target, column(*wanted))
    torch.testing.assert_close(adv, column(*wanted) - column(1, 2, 3))


# ---- loss ------------------------------------------------------------------------------------------------------------


class Fixed(nn.Module):
    """A policy with given log-probabilities and entropy, whatever the state."""

    def __init__(self, logp: list[float], entropy: float):
        super().__init__()
        self.logp, self.entropy = nn.Parameter(torch.tensor(logp)), entropy

    def log_prob(self, s, a):
        return self.logp, torch.full((len(self.logp),), self.entropy)


def test_loss_worked_by_hand():
    a = agent(vf_coef=0.5, ent_coef=0.1)
    a.actor = Fixed([-1.0, -2.0, -0.5], 2.0)
    a.critic = nn.Linear(3, 1)
    nn.init.zeros_(a.critic.weight)
    nn.init.constant_(a.critic.bias, 1.0)
    loss, info = a.loss(
        torch.zeros(3, 3), None, torch.tensor([1.0, -2.0, 3.0]), torch.tensor([1.0, 2.0, 3.0])
    )  # fmt: skip
    # log pi A = -1, 4, -1.5;  V - target = 0, -1, -2
    l_pg, l_vf = 1.5 / 3, 5 / 3
    assert info["policy_loss"].item() == pytest.approx(-l_pg)
    assert info["value_loss"].item() == pytest.approx(l_vf)
    assert info["entropy"].item() == 2.0
    assert loss.item() == pytest.approx(-(l_pg - 0.5 * l_vf + 0.1 * 2.0))
    loss.backward()
    torch.testing.assert_close(a.actor.logp.grad, torch.tensor([-1.0, 2.0, -3.0]) / 3)  # d loss / d log pi = - A / n
    assert a.critic.bias.grad.item() == pytest.approx(0.5 * 2 * (0 - 1 - 2) / 3)


@pytest.fixture
def double():
    """float64 everywhere, so that finite differences are exact enough."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("shared", [False, True], ids=["separate", "shared"])
@pytest.mark.parametrize("space", [ACTIONS, Discrete(3)], ids=["continuous", "discrete"])
def test_gradients_against_finite_differences(double, space, shared):
    a = agent(space, ent_coef=0.01, max_grad_norm=1e9, shared_network=shared)
    s, adv, v_target = torch.randn(8, 3), torch.randn(8), torch.randn(8)
    arguments = (s, a.actor.sample(s).detach(), adv, v_target)
    gradient, _, _ = a.gradient(*arguments)
    theta = a.optimizer.param_groups[0]["params"][0].data  # moves the networks, too
    assert len(theta) == len(gradient)
    for k in [*torch.randint(len(theta), (30,)).tolist(), *gradient.abs().topk(10).indices.tolist()]:
        theta[k] += 1e-6
        up = a.loss(*arguments)[0]
        theta[k] -= 2e-6
        down = a.loss(*arguments)[0]
        theta[k] += 1e-6
        assert gradient[k].item() == pytest.approx((up - down).item() / 2e-6, rel=1e-4, abs=1e-7)


def test_compiled_gradients_equal_eager_ones():
    torch._dynamo.config.trace_autograd_ops = True
    eager, compiled = agent(shared_network=True), agent(shared_network=True)
    compiled.gradient = a2c.gradient_function(compiled.loss, compiled, RunArgs(compile=True), 0.5)
    arguments = torch.randn(16, 3), torch.randn(16, 2), torch.randn(16), torch.randn(16)
    x, y = eager.gradient(*arguments)[0], compiled.gradient(*arguments)[0]
    assert x.abs().max() > 1e-3
    torch.testing.assert_close(x, y, atol=1e-6, rtol=1e-4)


# ---- networks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", [ACTIONS, Discrete(3)], ids=["continuous", "discrete"])
def test_shared_networks_share_their_hidden_layers_and_separate_ones_nothing(space):
    hidden = 3 * 64 + 64 + 64 * 64 + 64
    head = 65 * 3 if isinstance(space, Discrete) else 65 * 2 + 2  # the Gaussian policy has log-stds as well
    for shared, wanted in ((False, 2 * hidden + head + 65), (True, hidden + head + 65)):
        a = agent(space, shared_network=shared)
        assert len(a.optimizer.param_groups[0]["params"][0]) == wanted
        common = {id(p) for p in a.actor.parameters()} & {id(p) for p in a.critic.parameters()}
        assert len(common) == (4 if shared else 0)
        assert a.critic(torch.ones(1, 3)).shape == (1, 1)


def test_the_policys_loss_moves_the_value_only_where_they_share():
    for shared in (False, True):
        a = agent(shared_network=shared, vf_coef=0.0)
        values = a.critic(torch.ones(1, 3)).item()
        a.update(rollout(a), 0.0)
        assert (a.critic(torch.ones(1, 3)).item() != values) == shared


# ---- update ----------------------------------------------------------------------------------------------------------


def test_rmsprop_adds_epsilon_outside_the_square_root():
    a = agent(learning_rate=1e-3)
    theta = a.optimizer.param_groups[0]["params"][0]
    before, g = theta.clone(), 1e-4
    for _ in range(2):
        a2c.descend(a.optimizer, torch.full_like(theta, g))
    v1 = 0.01 * g**2  # v <- 0.99 v + 0.01 g^2, from 0
    v2 = 0.99 * v1 + 0.01 * g**2
    outside = sum(1e-3 * g / (math.sqrt(v) + 1e-5) for v in (v1, v2))
    inside = sum(1e-3 * g / math.sqrt(v + 1e-5) for v in (v1, v2))
    assert outside > 20 * inside
    torch.testing.assert_close(before - theta, torch.full_like(theta, outside), rtol=1e-3, atol=0)


def test_adam_is_the_other_optimiser():
    a, b = agent(optimizer="adam", learning_rate=1e-3), agent()
    theta = a.optimizer.param_groups[0]["params"][0]
    a2c.descend(a.optimizer, torch.ones_like(theta))
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q - 1e-3)  # Adam's first step is the learning rate against the gradient's sign


@pytest.mark.parametrize("optimizer", ["rmsprop", "adam"])
def test_a_saved_agent_goes_on_as_it_would_have(optimizer):
    a, b = agent(optimizer=optimizer, shared_network=True), agent(optimizer=optimizer, shared_network=True)
    a.update(rollout(a), 0.0)
    b.load_state_dict(copy.deepcopy(a.state_dict()))
    data = rollout(a)
    for x in (a, b):
        x.update(data, 0.5)
    assert torch.equal(a.optimizer.param_groups[0]["params"][0], b.optimizer.param_groups[0]["params"][0])
    s = torch.randn(5, 3) * 4 + 2
    assert torch.equal(a.act(s), b.act(s))


@pytest.mark.parametrize("norm_adv", [False, True])
def test_an_update_is_one_gradient_step_on_the_whole_rollout(norm_adv):
    a, seen = agent(norm_adv=norm_adv), []
    gradient = a.gradient
    a.gradient = lambda *x: seen.append(x) or gradient(*x)
    data = rollout(a)
    info = a.update(data, 0.25)
    assert set(info) == set(A2C.metrics)
    assert len(seen) == 1
    s, actions, adv, v_target = seen[0]
    assert torch.equal(actions, data.a.flatten(0, 1))
    torch.testing.assert_close(s, data.s.flatten(0, 1).clamp(-10, 10))  # the statistics were still mean 0 and std 1
    raw = v_target - agent().critic(s).squeeze(-1)
    torch.testing.assert_close(adv, (raw - raw.mean()) / raw.std() if norm_adv else raw)
    assert info["learning_rate"] == a.optimizer.param_groups[0]["lr"] == pytest.approx(0.75 * a.args.learning_rate)
    assert a.obs_stats.count.item() == 40


def test_a_rollout_of_one_step_is_learned_from():
    a = agent(num_envs=1, num_steps=1)
    info = a.update(rollout(a, t=1, n=1), 0.0)
    assert all(math.isfinite(float(value)) for value in info.values())


# ---- learning --------------------------------------------------------------------------------------------------------


def settings(folder, env_id: str, total: int, **changes) -> Args:
    run = RunArgs(device="cpu", compile=False, run_dir=str(folder), eval_every=10**9)
    return Args(env_id=env_id, total_timesteps=total, run=run, **changes)


def chain_value(tmp_path, env_id: str) -> float:
    """Value that A2C's critic learns for the endless chain (gamma 0.8, so 5)."""
    s = settings(tmp_path / "run", env_id, 12_000, gamma=0.8, norm_reward=False, learning_rate=3e-3)
    folder = a2c.train(s)
    state = torch.load(folder / "checkpoint.pt", weights_only=True)["agent"]
    envs = a2c.VectorEnvs(env_id, 1, 0)
    a = A2C(envs.observation_space, envs.action_space, s)
    a.load_state_dict(state)
    return a.critic(a.normalise(torch.ones(1, 1))).item()


@pytest.mark.parametrize("env_id", ["tiny_envs:Chain-v0", "tiny_envs:DiscreteChain-v0"])
def test_endless_chain_is_worth_one_over_one_minus_gamma(tmp_path, env_id):
    assert chain_value(tmp_path, env_id) == pytest.approx(5, abs=0.3)


def test_the_chain_test_notices_truncation_stored_as_termination(tmp_path, monkeypatch):
    collect = a2c.collect
    monkeypatch.setattr(a2c, "collect", lambda *x: (data := collect(*x))._replace(terminal=data.done))
    assert chain_value(tmp_path, "tiny_envs:Chain-v0") < 4


TINY = {"learning_rate": 3e-3, "norm_reward": False}


@pytest.mark.parametrize("env_id", ["tiny_envs:Match-v0", "tiny_envs:DiscreteMatch-v0"])
def test_learns_a_tiny_environment_in_seconds(tmp_path, env_id):
    folder = a2c.train(settings(tmp_path / "run", env_id, 24_000, **TINY))
    assert final_return(folder) > -0.2  # continuous: the best constant action gets about -0.8, discrete: -0.5


def test_the_learning_test_notices_advantages_of_the_wrong_sign(tmp_path, monkeypatch):
    gae = a2c.gae
    monkeypatch.setattr(a2c, "gae", lambda *x: -gae(*x))
    assert final_return(a2c.train(settings(tmp_path / "run", "tiny_envs:DiscreteMatch-v0", 24_000, **TINY))) < -0.5


def test_learns_the_inverted_pendulum(tmp_path):
    folder = a2c.train(settings(tmp_path / "run", "InvertedPendulum-v5", 98_304))
    assert final_return(folder) >= 900


def test_learns_the_cart_pole(tmp_path):
    folder = a2c.train(settings(tmp_path / "run", "CartPole-v1", 196_608))
    assert final_return(folder) >= 450
