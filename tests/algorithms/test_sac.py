"""SAC's policy, targets, losses and temperature against numbers worked by hand, and what it learns."""

from __future__ import annotations

import copy
import csv
import itertools
import math
from statistics import NormalDist

import numpy as np
import ppo
import pytest
import sac
import torch
from conftest import final_return
from gymnasium.spaces import Box
from sac import SAC, Args, RunArgs, SquashedGaussianActor
from torch import nn

OBSERVATIONS = Box(-np.inf, np.inf, (3,), np.float32)
ACTIONS = Box(np.float32([-1, 0]), np.float32([1, 4]))  # half ranges 1 and 2, centres 0 and 2


def agent(**settings) -> SAC:
    torch.manual_seed(0)
    return SAC(OBSERVATIONS, ACTIONS, Args(run=RunArgs(device="cpu", compile=False), **settings))


def batch(n: int = 8) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    low, high = torch.tensor(ACTIONS.low), torch.tensor(ACTIONS.high)
    return {
        "s": torch.randn(n, 3), "a": low + (high - low) * torch.rand(n, 2), "r": torch.randn(n),
        "s2": torch.randn(n, 3), "terminal": (torch.rand(n) < 0.3).float(),
    }  # fmt: skip


def fix(actor: SquashedGaussianActor, mu: list[float], log_std: list[float]) -> None:
    """Make the policy the same in every state."""
    with torch.no_grad():
        actor.net[-1].weight.zero_()
        actor.net[-1].bias.copy_(torch.tensor([*mu, *log_std]))


class Value(nn.Module):
    """Q(s, a) = a . weights, with the weights as parameter."""

    def __init__(self, *weights: float):
        super().__init__()
        self.weights = nn.Parameter(torch.tensor(weights))

    def forward(self, s, a):
        return a @ self.weights.to(a.dtype)


class Constant(nn.Module):
    """V(s) = value for every state, [n, 1]."""

    def __init__(self, value: float):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))

    def forward(self, s):
        return self.value.expand(len(s), 1)


@pytest.fixture
def double():
    """float64 everywhere, so that finite differences are exact enough."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


# ---- the squashed Gaussian -------------------------------------------------------------------------------------------


def numerical_density(a: float, mu: float, std: float, scale: float, centre: float, h: float) -> float:
    """Density at a of centre + scale tanh(u), u ~ N(mu, std^2): the probability of [a - h, a + h] over its length."""
    cdf = [NormalDist(mu, std).cdf(math.atanh((x - centre) / scale)) for x in (a - h, a + h)]
    return (cdf[1] - cdf[0]) / (2 * h)


@pytest.mark.parametrize("low, high", [(-1.0, 1.0), (-0.4, 0.4), (0.0, 4.0), (-3.0, 1.0)])
def test_log_density_against_the_numerical_change_of_variables(double, low, high):
    scale, centre, mu, log_std = (high - low) / 2, (high + low) / 2, [0.3, -0.8], [-0.5, 0.4]
    actor = SquashedGaussianActor(3, torch.tensor([low, -1.0]), torch.tensor([high, 1.0]))
    fix(actor, mu, log_std)
    eps = torch.tensor([[0.0, 0.0], [1.2, -0.4], [-2.0, 1.5], [0.7, 2.5]])
    a, logp = actor.sample(torch.zeros(4, 3), eps)
    assert ((a > torch.tensor([low, -1.0])) & (a < torch.tensor([high, 1.0]))).all()
    for (a1, a2), value in zip(a.tolist(), logp.tolist(), strict=True):
        p1 = numerical_density(a1, mu[0], math.exp(log_std[0]), scale, centre, scale * 1e-5)
        p2 = numerical_density(a2, mu[1], math.exp(log_std[1]), 1.0, 0.0, 1e-5)
        # log pi is that of tanh(u): the density of the scaled action times the half range
        assert value == pytest.approx(math.log(p1 * scale) + math.log(p2), abs=1e-5)


def test_samples_have_the_density_that_log_prob_says():
    """E[1 / p(y)] over a set is its length: here over y = tanh(u) between -0.8 and 0.8, length 1.6."""
    torch.manual_seed(0)
    actor = SquashedGaussianActor(3, torch.tensor([0.0]), torch.tensor([4.0]))
    fix(actor, [0.3], [-0.2])
    a, logp = actor.sample(torch.zeros(200_000, 3), torch.randn(200_000, 1))
    inside = ((a.squeeze(1) - 2) / 2).abs() < 0.8
    assert ((-logp).exp() * inside).mean().item() == pytest.approx(1.6, abs=0.02)


@pytest.mark.parametrize("u", [-20.0, 20.0])
def test_saturated_actions_have_exact_finite_log_densities_and_gradients(u):
    actor = SquashedGaussianActor(3, torch.tensor([0.0]), torch.tensor([4.0]))
    fix(actor, [u], [0.0])
    a, logp = actor.sample(torch.zeros(1, 3), torch.zeros(1, 1))
    # 1 - tanh(u)^2 = 4 e^(-2 |u|) to float precision, although tanh(u) rounds to 1
    assert logp.item() == pytest.approx(-0.5 * math.log(2 * math.pi) - (math.log(4) - 40), rel=1e-6)
    assert a.item() == pytest.approx(2 + 2 * math.copysign(1, u))
    (logp.sum() + a.sum()).backward()
    gradient = actor.net[-1].bias.grad
    assert gradient.isfinite().all()
    assert gradient[0].item() == pytest.approx(2 * math.copysign(1, u))  # d/du of - log 4 + 2 |u|


def test_log_std_is_clamped():
    actor = SquashedGaussianActor(3, torch.tensor([-1.0]), torch.tensor([1.0]))
    for log_std, want in ((-100.0, -20.0), (100.0, 2.0)):
        fix(actor, [0.0], [log_std])
        _, logp = actor.sample(torch.zeros(1, 3), torch.zeros(1, 1))
        assert logp.item() == pytest.approx(-want - 0.5 * math.log(2 * math.pi), rel=1e-5)


def test_deterministic_action_is_tanh_of_mu_and_all_actions_are_inside_bounds():
    a = agent()
    fix(a.actor, [0.5, -1.0], [0.0, 0.0])
    torch.testing.assert_close(a.act(torch.randn(4, 3)), torch.tensor([[math.tanh(0.5), 2 - 2 * math.tanh(1)]] * 4))
    fix(a.actor, [0.0, 0.0], [2.0, 2.0])
    wild, uniform = a.explore(torch.zeros(5000, 3)), a.explore_uniformly(20_000)
    for x in (wild, uniform):
        torch.testing.assert_close(x.amin(0), a.low, atol=0.02, rtol=0)
        torch.testing.assert_close(x.amax(0), a.high, atol=0.02, rtol=0)
        assert ((x >= a.low) & (x <= a.high)).all()
    torch.testing.assert_close(uniform.std(0), torch.tensor([2.0, 4.0]) / 12**0.5, atol=0.02, rtol=0)


def test_likelihood_ratio_and_pathwise_gradients_agree():
    """Both estimate grad E[f(a)], a = centre + scale tanh(u), u ~ N(mu, std^2), with respect to mu and log std: one
    from f and log pi (PPO's Gaussian), the other, less noisy, through the sampled action (SAC's reparameterisation)."""
    torch.manual_seed(0)
    mu, log_std, n = [0.4, -0.3], [-0.5, -0.5], 4000
    low, high = torch.tensor(ACTIONS.low), torch.tensor(ACTIONS.high)
    squashed, gaussian = SquashedGaussianActor(3, low, high), ppo.GaussianActor(3, ACTIONS, -0.5)
    fix(squashed, mu, log_std)
    with torch.no_grad():
        gaussian.mu[-1].weight.zero_()
        gaussian.mu[-1].bias.copy_(torch.tensor(mu))

    def f(a):
        return 1 - (a[:, 0] - 0.5).square() - 0.3 * (a[:, 1] - 1).square() + 0.2 * a[:, 0] * a[:, 1]

    def expectation(theta):
        """E[f(a)] by Gauss-Hermite quadrature in both dimensions."""
        x, w = (torch.tensor(y, dtype=torch.float32) for y in np.polynomial.hermite_e.hermegauss(40))
        u = theta[:2] + theta[2:].exp() * torch.cartesian_prod(x, x)
        weights = torch.outer(w, w).flatten() / (2 * math.pi)
        return (weights * f(squashed.centre + squashed.scale * torch.tanh(u))).sum()

    exact = torch.autograd.functional.jacobian(expectation, torch.tensor([*mu, *log_std]))
    estimates = {"likelihood ratio": [], "pathwise": []}
    s = torch.zeros(n, 3)
    for _ in range(50):
        eps = torch.randn(n, 2)
        a, _ = squashed.sample(s, eps)
        (gradient,) = torch.autograd.grad(f(a).mean(), squashed.net[-1].bias)
        estimates["pathwise"].append(gradient)
        u = gaussian.sample(s).detach()
        logp, _ = gaussian.log_prob(s, u)
        weighted = (f(squashed.centre + squashed.scale * torch.tanh(u)) * logp).mean()
        gradient = torch.autograd.grad(weighted, [gaussian.mu[-1].bias, gaussian.log_std])
        estimates["likelihood ratio"].append(torch.cat(gradient))
    spread = {}
    for name, gradients in estimates.items():
        stacked = torch.stack(gradients)
        spread[name] = stacked.std(0)
        error = (stacked.mean(0) - exact).abs() / (spread[name] / 50**0.5)
        assert error.max() < 4, (name, stacked.mean(0), exact)
    assert exact.abs().min() > 0.02
    assert (spread["pathwise"] < spread["likelihood ratio"]).all()


# ---- targets and losses ----------------------------------------------------------------------------------------------


def normal_tanh_logp(u: list[float]) -> float:
    """log density of tanh(u) for u ~ N(0, I), written out."""
    return sum(-0.5 * x * x - 0.5 * math.log(2 * math.pi) - math.log(1 - math.tanh(x) ** 2) for x in u)


def test_target_with_entropy_worked_by_hand():
    a = agent(gamma=0.9, alpha="0.5")
    fix(a.actor, [0.0, 0.0], [0.0, 0.0])  # u = eps
    a.target_network = nn.ModuleList([Value(1.0, 1.0), Value(3.0, 0.0)])
    a.critics = nn.ModuleList([Value(-100.0, 0.0), Value(-100.0, 0.0)])  # must not matter
    eps = [[0.5, -1.0], [-2.0, 0.3], [0.5, -1.0]]
    y = a.target(torch.tensor([1.0, -2.0, 1.0]), torch.randn(3, 3), torch.tensor([0.0, 0.0, 1.0]), torch.tensor(eps))
    want = []
    for r, u in ((1.0, eps[0]), (-2.0, eps[1])):
        action = math.tanh(u[0]), 2 + 2 * math.tanh(u[1])
        q = min(action[0] + action[1], 3 * action[0])
        want.append(r + 0.9 * (q - 0.5 * normal_tanh_logp(u)))
    torch.testing.assert_close(y, torch.tensor([*want, 1.0]))


def test_critic_and_actor_loss_worked_by_hand():
    a = agent(gamma=0.9, alpha="0.5")
    fix(a.actor, [0.0, 0.0], [0.0, 0.0])
    a.target_network = nn.ModuleList([Value(1.0, 1.0), Value(3.0, 0.5)])
    a.critics = nn.ModuleList([Value(1.0, 0.0), Value(0.0, 1.0)])
    logp = normal_tanh_logp([0.0, 0.0])
    y = 1 + 0.9 * (1 - 0.5 * logp)  # at (0, 2): Q'_1 = 2, Q'_2 = 1
    loss, info = a.critic_loss(
        torch.zeros(2, 3), torch.tensor([[0.5, 3.0], [-1.0, 1.0]]), torch.ones(2), torch.zeros(2, 3),
        torch.tensor([0.0, 1.0]), torch.zeros(2, 2),
    )  # fmt: skip
    # Q_1 = 0.5, -1;  Q_2 = 3, 1;  targets y and 1
    assert loss.item() == pytest.approx(((y - 0.5) ** 2 + 2**2) / 2 + ((y - 3) ** 2 + 0) / 2)
    assert info["q"].item() == pytest.approx(-0.25)
    assert info["q_target"].item() == pytest.approx((y + 1) / 2)
    loss, info = a.actor_loss(torch.zeros(4, 3), torch.zeros(4, 2))  # Q_1 = 0, Q_2 = 2
    assert loss.item() == pytest.approx(0.5 * logp - 0)
    assert info["entropy"].item() == pytest.approx(-logp)
    torch.testing.assert_close(info["v"], torch.full((4,), -0.5 * logp))


def test_value_network_form_worked_by_hand():
    a = agent(gamma=0.9, alpha="0.5", value_network=True)
    a.target_network, a.value = Constant(3.0), Constant(7.0)
    y = a.target(torch.tensor([1.0, 1.0]), torch.randn(2, 3), torch.tensor([0.0, 1.0]), torch.randn(2, 2))
    torch.testing.assert_close(y, torch.tensor([1 + 0.9 * 3, 1.0]))
    loss, _ = a.value_loss(torch.randn(2, 3), torch.tensor([6.0, 9.0]))
    assert loss.item() == pytest.approx((1 + 4) / 2)


@pytest.mark.parametrize("which", ["critics", "actor", "alpha", "value"])
def test_gradients_against_finite_differences(double, which):
    a, data = agent(alpha="auto", value_network=which == "value"), {k: x.double() for k, x in batch().items()}
    noise = torch.randn(8, 2)
    gradient_of, loss, arguments = {
        "critics": (a.critic_gradient, a.critic_loss, (*data.values(), noise)),
        "actor": (a.actor_gradient, a.actor_loss, (data["s"], noise)),
        "alpha": (a.alpha_gradient, a.alpha_loss, (torch.tensor(1.3),)),
        "value": (which == "value" and a.value_gradient, a.value_loss, (data["s"], data["r"])),
    }[which]
    gradient, _, norm = gradient_of(*arguments)
    assert norm.item() == pytest.approx(gradient.square().sum().item() ** 0.5)
    theta = a.optimizers[which].param_groups[0]["params"][0].data  # moves the networks, too
    assert len(theta) == len(gradient)
    for k in [*torch.randint(len(theta), (30,)).tolist(), *gradient.abs().topk(min(10, len(theta))).indices.tolist()]:
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


@pytest.mark.parametrize("value_network", [False, True])
def test_update_moves_each_part_and_the_target_by_tau(value_network):
    a = agent(tau=0.25, learning_rate=1e-2, alpha="auto", value_network=value_network)
    source = a.value if value_network else a.critics
    parts = {"actor": a.actor, "critics": a.critics, "temperature": a.temperature, "source": source}
    before, old = {name: snapshot(part) for name, part in parts.items()}, snapshot(a.target_network)
    info = a.update(**batch())
    assert not any(same(part, before[name]) for name, part in parts.items())
    for t, s, o in zip(a.target_network.parameters(), source.parameters(), old, strict=True):
        torch.testing.assert_close(t, 0.75 * o + 0.25 * s)
    assert set(info) == set(a.metrics)
    assert all(x.dim() == 0 and not x.requires_grad for x in info.values())


def test_actor_step_leaves_the_critics_alone_and_ascends_the_soft_value():
    a = agent()
    a.optimizers["critics"].param_groups[0]["lr"] = 0.0
    data, before, noise = batch(), snapshot(a.critics), torch.randn(8, 2)
    first = a.actor_loss(data["s"], noise)[0].item()
    for _ in range(30):
        a.update(**data)
    assert same(a.critics, before)
    assert a.actor_loss(data["s"], noise)[0].item() < first
    assert len(a.actor_gradient(data["s"], noise)[0]) == sum(p.numel() for p in a.actor.parameters())


# ---- temperature -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("log_std, direction", [(-6.0, 1), (-0.5, -1)])
def test_learned_temperature_rises_below_the_target_entropy_and_falls_above(log_std, direction):
    a = agent(alpha="auto")
    assert a.target_entropy == -2
    a.optimizers["actor"].param_groups[0]["lr"] = 0.0
    fix(a.actor, [0.0, 0.0], [log_std, log_std])  # entropy about 2 (log_std + 1.4): -9 and 1.3
    alphas = [1.0] + [a.update(**batch(64))["alpha"].item() for _ in range(5)]
    assert all((after - before) * direction > 0 for before, after in itertools.pairwise(alphas))


def test_alpha_loss_vanishes_at_the_target_entropy():
    a = agent(alpha="auto")
    assert a.alpha_gradient(torch.tensor(-2.0))[0].item() == 0
    assert a.alpha_gradient(torch.tensor(-3.0))[0].item() == pytest.approx(-1)  # alpha = 1: descending raises alpha


@pytest.mark.parametrize("alpha", [0.3, 0.0])
def test_fixed_temperature_stays_fixed(alpha):
    a = agent(alpha=str(alpha))
    for _ in range(5):
        info = a.update(**batch())
        assert info["alpha"].item() == pytest.approx(alpha)
    assert all(x.isfinite() for x in info.values())
    assert "alpha" not in a.optimizers
    assert all(p.isfinite().all() for p in a.parameters())


@pytest.mark.parametrize("alpha", ["-0.1", "nan", "inf", "warm", ""])
def test_a_temperature_that_is_none_is_refused(alpha):
    with pytest.raises(sac.UserError, match=f"--alpha {alpha} .*auto"):
        Args(alpha=alpha).check()


def test_checkpoint_holds_temperature_and_all_optimisers():
    a = agent(alpha="auto", value_network=True)
    for _ in range(3):
        a.update(**batch())
    b = agent(alpha="auto", value_network=True)
    b.load_state_dict(copy.deepcopy(a.state_dict()))
    assert b.temperature().item() == a.temperature().item() != 1
    for x in (a, b):
        torch.manual_seed(5)
        x.update(**batch())
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_compiled_gradients_equal_eager_ones():
    torch._dynamo.config.trace_autograd_ops = True
    eager, compiled = agent(), agent()
    compiled.actor_gradient = sac.gradient_function(compiled.actor_loss, compiled.actor, RunArgs(compile=True))
    arguments = batch(16)["s"], torch.randn(16, 2)
    (x, info, _), (y, info2, _) = eager.actor_gradient(*arguments), compiled.actor_gradient(*arguments)
    assert x.abs().max() > 1e-3
    torch.testing.assert_close(x, y, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(info["v"], info2["v"], atol=1e-6, rtol=1e-4)


# ---- learning --------------------------------------------------------------------------------------------------------


def settings(folder, env_id: str, total: int, **changes) -> Args:
    run = RunArgs(device="cpu", compile=False, run_dir=str(folder), eval_every=10**9)
    defaults = {"learning_starts": 100, "batch_size": 64, "buffer_size": 5000, "learning_rate": 1e-3}
    return Args(env_id=env_id, total_timesteps=total, run=run, **(defaults | changes))


def chain_value(tmp_path, **changes) -> float:
    """Value that SAC learns for the endless chain (gamma 0.8). Without entropy it is 5."""
    folder = sac.train(settings(tmp_path / "run", "tiny_envs:Chain-v0", 704, **({"gamma": 0.8, "tau": 0.05} | changes)))
    with open(folder / "metrics.csv") as file:
        return float(list(csv.DictReader(file))[-1]["q"])


# The widest policy has an entropy of 0.68 on [-1, 1] (log 2 if it were uniform): Q = (1 + 0.8 alpha 0.68) / 0.2
@pytest.mark.parametrize("alpha, value_network, worth", [("0", False, 5), ("1", False, 7.7), ("1", True, 7.7)])
def test_endless_chain_is_worth_its_rewards_and_entropies(tmp_path, alpha, value_network, worth):
    assert chain_value(tmp_path, alpha=alpha, value_network=value_network) == pytest.approx(worth, abs=0.4)


def test_the_chain_test_notices_an_entropy_of_the_wrong_sign(tmp_path, monkeypatch):
    sample = SquashedGaussianActor.sample

    def wrong(self, s, eps):
        a, logp = sample(self, s, eps)
        return a, -logp

    monkeypatch.setattr(SquashedGaussianActor, "sample", wrong)
    assert abs(chain_value(tmp_path, alpha="1") - 7.7) > 1


def test_the_chain_test_notices_truncation_stored_as_termination(tmp_path, monkeypatch):
    step = sac.VectorEnvs.step

    def wrong(envs, actions):
        s2, r, _, done = step(envs, actions)
        return s2, r, done, done

    monkeypatch.setattr(sac.VectorEnvs, "step", wrong)
    assert chain_value(tmp_path, alpha="0") < 4


@pytest.mark.parametrize("num_envs", [1, 4])
def test_one_update_per_environment_step_whatever_num_envs(tmp_path, num_envs):
    folder = sac.train(settings(tmp_path / "run", "tiny_envs:Match-v0", 240, num_envs=num_envs, batch_size=4))
    checkpoint = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert checkpoint["envs"]["steps"] == 240
    for optimizer in checkpoint["agent"]["_extra_state"].values():
        assert optimizer["state"][0]["step"] == 240 - 100


@pytest.mark.parametrize("changes", [{}, {"alpha": "auto"}, {"value_network": True}], ids=["fixed", "auto", "value"])
def test_learns_asymmetric_actions_in_seconds(tmp_path, changes):
    folder = sac.train(settings(tmp_path / "run", "tiny_envs:Match-v0", 1504, **changes))
    assert final_return(folder) > -0.2  # the best constant action gets about -0.8


def test_the_learning_test_notices_an_actor_of_the_wrong_sign(tmp_path, monkeypatch):
    loss = SAC.actor_loss
    monkeypatch.setattr(SAC, "actor_loss", lambda self, s, eps: (-loss(self, s, eps)[0], loss(self, s, eps)[1]))
    folder = sac.train(settings(tmp_path / "run", "tiny_envs:Match-v0", 1504))
    assert final_return(folder) < -1


def test_learns_the_inverted_pendulum(tmp_path):
    quick = {"tau": 0.01, "learning_starts": 2000, "buffer_size": 20_000}
    folder = sac.train(settings(tmp_path / "run", "InvertedPendulum-v5", 12_000, **quick))
    assert final_return(folder) >= 900
