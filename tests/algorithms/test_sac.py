"""SAC's policy, targets, losses and temperature against numbers worked by hand."""

import itertools
import math

import pytest
import torch
from off_policy import TWO, Value, agent, batch, pair
from sac import SquashedGaussianActor
from torch import nn


def fix(actor: SquashedGaussianActor, mu: list[float], log_std: list[float]) -> None:
    """Make the policy the same in every state."""
    with torch.no_grad():
        actor.net[-1].weight.zero_()
        actor.net[-1].bias.copy_(torch.tensor([*mu, *log_std]))


def constant(value: float) -> nn.Linear:
    """V(s) = value for every state, [n, 1]."""
    net = nn.Linear(3, 1)
    nn.init.zeros_(net.weight)
    nn.init.constant_(net.bias, value)
    return net


# ---- the squashed Gaussian -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("low, high", [(-1.0, 1.0), (-0.4, 0.4), (0.0, 4.0), (-3.0, 1.0)])
def test_log_density_against_torch(low, high):
    """log pi is that of tanh(u): the density of the scaled action times the half range."""
    scale, centre, mu, std = (high - low) / 2, (high + low) / 2, [0.3, -0.8], [0.6, 1.5]
    actor = SquashedGaussianActor(3, torch.tensor([low, -1.0]), torch.tensor([high, 1.0])).double()
    fix(actor, mu, [math.log(x) for x in std])
    eps = torch.tensor([[0.0, 0.0], [1.2, -0.4], [-2.0, 1.5], [0.7, 1.1]]).double()
    a, logp = actor.sample(torch.zeros(4, 3).double(), eps)
    u = torch.tensor(mu) + torch.tensor(std) * eps
    torch.testing.assert_close(a, torch.tensor([centre, 0.0]) + torch.tensor([scale, 1.0]) * u.tanh())
    normal = torch.distributions.Normal(torch.tensor(mu).double(), torch.tensor(std).double())
    squashed = torch.distributions.TransformedDistribution(normal, torch.distributions.TanhTransform())
    torch.testing.assert_close(logp, squashed.log_prob(u.tanh()).sum(-1), atol=1e-6, rtol=1e-6)


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


@pytest.mark.parametrize(("log_std", "want"), [(-100.0, -20.0), (100.0, 2.0)])
def test_log_std_is_clamped(log_std, want):
    actor = SquashedGaussianActor(3, torch.tensor([-1.0]), torch.tensor([1.0]))
    fix(actor, [0.0], [log_std])
    _, logp = actor.sample(torch.zeros(1, 3), torch.zeros(1, 1))
    assert logp.item() == pytest.approx(-want - 0.5 * math.log(2 * math.pi), rel=1e-5)


def test_acts_with_tanh_of_mu_and_explores_with_the_whole_distribution():
    a = agent("sac")
    fix(a.actor, [0.5, -1.0], [-1.0, -1.0])
    torch.testing.assert_close(a.act(torch.randn(4, 3)), torch.tensor([[math.tanh(0.5), 2 - 2 * math.tanh(1)]] * 4))
    u = ((a.explore(torch.zeros(20_000, 3)) - a.actor.centre) / a.actor.scale).atanh()
    torch.testing.assert_close(u.mean(0), torch.tensor([0.5, -1.0]), atol=0.02, rtol=0)
    torch.testing.assert_close(u.std(0), torch.full((2,), math.exp(-1)), atol=0.01, rtol=0)


# ---- targets and losses ----------------------------------------------------------------------------------------------


def normal_tanh_logp(u: list[float]) -> float:
    """log density of tanh(u) for u ~ N(0, I), written out."""
    return sum(-0.5 * x * x - 0.5 * math.log(2 * math.pi) - math.log(1 - math.tanh(x) ** 2) for x in u)


def test_target_with_entropy_worked_by_hand():
    a = agent("sac", gamma=0.9, alpha="0.5")
    fix(a.actor, [0.0, 0.0], [0.0, 0.0])  # u = eps
    a.target_network = pair(Value(1.0, 1.0), Value(3.0, 0.0))
    a.critics = pair(Value(-100.0, 0.0), Value(-100.0, 0.0))  # must not matter
    eps = [[0.5, -1.0], [-2.0, 0.3], [0.5, -1.0]]
    y = a.target(torch.tensor([1.0, -2.0, 1.0]), torch.randn(3, 3), torch.tensor([0.0, 0.0, 1.0]), torch.tensor(eps))
    want = []
    for r, u in ((1.0, eps[0]), (-2.0, eps[1])):
        action = math.tanh(u[0]), 2 + 2 * math.tanh(u[1])
        want.append(r + 0.9 * (min(action[0] + action[1], 3 * action[0]) - 0.5 * normal_tanh_logp(u)))
    torch.testing.assert_close(y, torch.tensor([*want, 1.0]))


def test_critic_and_actor_loss_worked_by_hand():
    a = agent("sac", gamma=0.9, alpha="0.5")
    fix(a.actor, [0.0, 0.0], [0.0, 0.0])
    a.target_network = pair(Value(1.0, 1.0), Value(3.0, 0.5))
    a.critics = pair(Value(1.0, 0.0), Value(0.0, 1.0))
    logp = normal_tanh_logp([0.0, 0.0])
    y = 1 + 0.9 * (1 - 0.5 * logp)  # at (0, 2): Q'_1 = 2, Q'_2 = 1
    loss, info = a.critic_loss(*TWO, torch.zeros(2, 2))
    # Q_1 = 0.5, -1;  Q_2 = 3, 1;  targets y and 1
    assert loss.item() == pytest.approx(((y - 0.5) ** 2 + 2**2) / 2 + ((y - 3) ** 2 + 0) / 2)
    assert (info["q"].item(), info["q_target"].item()) == pytest.approx((-0.25, (y + 1) / 2))
    loss, info = a.actor_loss(torch.zeros(4, 3), torch.zeros(4, 2))  # Q_1 = 0, Q_2 = 2
    assert loss.item() == pytest.approx(0.5 * logp - 0)
    assert info["entropy"].item() == pytest.approx(-logp)
    torch.testing.assert_close(info["v"], torch.full((4,), -0.5 * logp))


def test_value_network_form_worked_by_hand():
    a = agent("sac", gamma=0.9, alpha="0.5", value_network=True)
    a.target_network, a.value = constant(3.0), constant(7.0)
    y = a.target(torch.tensor([1.0, 1.0]), torch.randn(2, 3), torch.tensor([0.0, 1.0]), torch.randn(2, 2))
    torch.testing.assert_close(y, torch.tensor([1 + 0.9 * 3, 1.0]))
    assert a.value_loss(torch.randn(2, 3), torch.tensor([6.0, 9.0]))[0].item() == pytest.approx((1 + 4) / 2)


@pytest.mark.parametrize("changes", [{}, {"alpha": "auto"}, {"value_network": True}])
def test_an_update_reports_what_metrics_describe_and_v_learns_soft_values_of_the_batch(changes):
    a, seen, data = agent("sac", **changes), [], batch()
    step = getattr(a, "value_step", None)
    a.value_step = lambda s, v: seen.append((s, v)) or step(s, v)
    info = a.update(*data)
    assert set(info) == set(a.metrics) and len(seen) == ("value_network" in changes)
    for s, v in seen:
        assert s is data[0] and v.mean().item() == pytest.approx(-info["actor_loss"].item())


# ---- temperature -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("log_std, direction", [(-6.0, 1), (-0.5, -1)])
def test_learned_temperature_rises_below_the_target_entropy_and_falls_above(log_std, direction):
    a = agent("sac", alpha="auto")
    assert a.target_entropy == -2 and a.temperature().item() == 1
    a.actor_optimizer.param_groups[0]["lr"] = 0.0
    fix(a.actor, [0.0, 0.0], [log_std, log_std])  # entropy about 2 (log_std + 1.4): -9 and 1.3
    alphas = [1.0] + [a.update(*batch(64))["alpha"].item() for _ in range(4)]
    assert all((after - before) * direction > 0 for before, after in itertools.pairwise(alphas))


@pytest.mark.parametrize("alpha", [0.3, 0.0])
def test_fixed_temperature_stays_fixed(alpha):
    a = agent("sac", alpha=str(alpha))
    for _ in range(3):
        info = a.update(*batch())
        assert info["alpha"].item() == pytest.approx(alpha)
    assert all(x.isfinite() for x in info.values()) and all(p.isfinite().all() for p in a.parameters())
    assert not hasattr(a, "alpha_optimizer")
