"""TRPO's surrogate, Fisher matrix, conjugate gradient and line search against explicit ones, and what it learns."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
import trpo
from conftest import final_return
from gymnasium.spaces import Box, Discrete
from torch import nn
from trpo import TRPO, Args, Rollout, RunArgs, conjugate_gradient

OBSERVATIONS = Box(-np.inf, np.inf, (3,), np.float32)
ACTIONS = Box(np.float32([-1, 0]), np.float32([1, 4]))  # half ranges 1 and 2, centres 0 and 2
SPACES = pytest.mark.parametrize("space", [ACTIONS, Discrete(3)], ids=["continuous", "discrete"])


def agent(actions=ACTIONS, **settings) -> TRPO:
    torch.manual_seed(0)
    return TRPO(OBSERVATIONS, actions, Args(run=RunArgs(device="cpu", compile=False), **settings))


def rollout(a: TRPO, t: int = 32, n: int = 8) -> Rollout:
    torch.manual_seed(1)
    s = torch.randn(t, n, 3)
    actions = torch.stack([a.explore(row) for row in s])
    done = (torch.rand(t, n) < 0.2).float()
    return Rollout(s, actions, torch.randn(t, n), torch.randn(t, n, 3), done * (torch.rand(t, n) < 0.5), done)


def batch(a: TRPO, n: int = 256) -> tuple[torch.Tensor, ...]:
    """s, a, logp_old, adv."""
    torch.manual_seed(1)
    s = torch.randn(n, 3)
    actions = a.actor.sample(s).detach()
    return s, actions, a.actor.log_prob(s, actions)[0].detach(), torch.randn(n)


def reference(a: TRPO, s: torch.Tensor) -> torch.distributions.Distribution:
    """pi(. | s) as PyTorch has it."""
    if isinstance(a.actor, trpo.SoftmaxActor):
        return torch.distributions.Categorical(logits=a.actor.logits(s))
    return torch.distributions.Independent(torch.distributions.Normal(a.actor.mu(s), a.actor.log_std.exp()), 1)


# ---- surrogate, KL, Fisher matrix ------------------------------------------------------------------------------------


def test_surrogate_worked_by_hand():
    a = agent()
    ratio = torch.tensor([1.5, 0.5, 2.0])
    a.actor.log_prob = lambda s, x: (ratio.log(), torch.tensor([3.0, 3.0, 3.0]))
    loss, info = a.surrogate_loss(torch.zeros(3, 3), None, torch.zeros(3), torch.tensor([1.0, 2.0, -1.0]))
    assert loss.item() == pytest.approx(-(1.5 + 1.0 - 2.0) / 3)  # no clipping
    assert info["entropy"].item() == 3.0


@SPACES
def test_surrogate_gradient_is_the_policy_gradient_at_the_old_policy(space):
    a = agent(space)
    s, actions, logp_old, adv = batch(a)
    gradient, _, norm = a.gradient(s, actions, logp_old, adv)
    policy_gradient = torch.autograd.grad((a.actor.log_prob(s, actions)[0] * adv).mean(), list(a.actor.parameters()))
    torch.testing.assert_close(-gradient, torch.cat([g.flatten() for g in policy_gradient]), atol=1e-6, rtol=1e-4)
    assert norm.item() == pytest.approx(gradient.norm().item(), rel=1e-5)


@SPACES
def test_kl_divergence(space):
    a = agent(space)
    s = torch.randn(20, 3)
    old, before = a.distribution(s), copy.deepcopy(a)
    assert a.kl(old, old).item() == pytest.approx(0, abs=1e-7)
    a.theta += 0.1 * torch.randn_like(a.theta)
    wanted = torch.distributions.kl_divergence(reference(before, s), reference(a, s)).mean()
    assert a.kl(old, a.distribution(s)).item() == pytest.approx(wanted.item(), rel=1e-4)
    assert a.kl(a.distribution(s), old).item() != pytest.approx(wanted.item(), rel=1e-3)  # it is not symmetric


@pytest.fixture
def double():
    """float64 everywhere, so that derivatives can be compared closely."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@SPACES
def test_fisher_vector_product_against_the_explicit_hessian(double, space):
    a = agent(space, cg_damping=0.1)
    small = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3 if isinstance(space, Discrete) else 2))
    setattr(a.actor, "logits" if isinstance(space, Discrete) else "mu", small)
    theta, s = list(a.actor.parameters()), torch.randn(40, 3)
    old = reference(copy.deepcopy(a), s)
    kl = torch.distributions.kl_divergence(old, reference(a, s)).mean()
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(kl, theta, create_graph=True)])
    torch.testing.assert_close(gradient, torch.zeros_like(gradient))
    rows = [torch.autograd.grad(g, theta, retain_graph=True) for g in gradient]
    hessian = torch.stack([torch.cat([x.flatten() for x in row]) for row in rows])
    assert torch.linalg.eigvalsh(hessian).min() > -1e-9
    for v in torch.randn(5, len(gradient)):
        torch.testing.assert_close(a.fisher(s, v), hessian @ v + 0.1 * v)
    if space is ACTIONS:
        assert hessian[0, 0].item() == pytest.approx(2)  # first of theta: log std, of which the Fisher information is 2


@SPACES
def test_fisher_matrix_is_the_covariance_of_the_score(double, space):
    a = agent(space, cg_damping=0.0)
    s = torch.randn(1, 3).expand(20_000, 3)
    actions, v = a.actor.sample(s).detach(), torch.randn_like(a.theta)
    with torch.enable_grad():
        weights = torch.ones(len(s), requires_grad=True)  # the gradient of the scores' products with v
        score = torch.autograd.grad(a.actor.log_prob(s, actions)[0] @ weights, list(a.actor.parameters()),
                                    create_graph=True)  # fmt: skip
        projected = torch.autograd.grad(torch.cat([g.flatten() for g in score]) @ v, weights)[0]
    assert (v @ a.fisher(s, v)).item() == pytest.approx(projected.square().mean().item(), rel=0.05)


def test_compiled_gradients_and_products_equal_eager_ones():
    torch._dynamo.config.trace_autograd_ops = True
    eager, compiled = agent(), agent()
    compiled.fisher = torch.compile(compiled.fisher_vector_product, fullgraph=True, dynamic=False)
    s, v = torch.randn(16, 3), torch.randn_like(eager.theta)
    torch.testing.assert_close(eager.fisher(s, v), compiled.fisher(s, v), atol=1e-5, rtol=1e-4)


# ---- conjugate gradient ----------------------------------------------------------------------------------------------


def test_conjugate_gradient_on_a_known_matrix():
    matrix, b = torch.tensor([[4.0, 1.0], [1.0, 3.0]]), torch.tensor([1.0, 2.0])
    first = conjugate_gradient(lambda v: matrix @ v, b, 1)
    torch.testing.assert_close(first, 5 / 20 * b)  # alpha = b . b / b . F b
    for steps in (2, 3, 30):  # exact after two; more change nothing
        torch.testing.assert_close(conjugate_gradient(lambda v: matrix @ v, b, steps), torch.tensor([1 / 11, 7 / 11]))
    assert torch.equal(conjugate_gradient(lambda v: matrix @ v, torch.zeros(2), 5), torch.zeros(2))


def test_conjugate_gradient_on_random_matrices(double):
    torch.manual_seed(0)
    root = torch.randn(12, 12)
    matrix, b = root @ root.T + 0.1 * torch.eye(12), torch.randn(12)
    x = conjugate_gradient(lambda v: matrix @ v, b, 14)
    torch.testing.assert_close(x, torch.linalg.solve(matrix, b), rtol=1e-4, atol=1e-6)


# ---- the step --------------------------------------------------------------------------------------------------------


@SPACES
def test_the_full_step_is_natural_gradient_ascent_to_the_edge_of_the_trust_region(space):
    a = agent(space, max_kl=0.02)
    data = batch(a)
    step, _ = a.natural_step(*data)
    assert (0.5 * step @ a.fisher(data[0], step)).item() == pytest.approx(0.02, rel=1e-3)
    gradient = a.gradient(*data)[0]
    assert (gradient @ step).item() < 0  # the loss falls, the surrogate rises
    direction = a.fisher(data[0], step)  # F step is along -gradient, but for the iterations not made
    assert torch.cosine_similarity(direction, -gradient, dim=0).item() > 0.95


@SPACES
def test_every_accepted_step_keeps_the_kl_bound_and_improves_the_surrogate(space):
    accepted = 0
    a = agent(space, max_kl=0.01)
    for k in range(8):
        torch.manual_seed(k)
        s, actions, logp_old, adv = batch(a, 64)
        before = copy.deepcopy(a)
        info = a.take(5 * a.natural_step(s, actions, logp_old, adv)[0], s, actions, logp_old, adv)
        kl = torch.distributions.kl_divergence(reference(before, s), reference(a, s)).mean().item()
        assert info["kl"].item() == pytest.approx(kl, abs=1e-6)
        assert kl <= 0.01 + 1e-6
        if info["step_size"]:
            accepted += 1
            assert info["improvement"].item() > 0 and info["step_size"] < 1
            improvement = ((a.actor.log_prob(s, actions)[0] - logp_old).exp() * adv).mean() - adv.mean()
            assert info["improvement"].item() == pytest.approx(improvement.item(), abs=1e-6)
    assert accepted >= 6


REJECTED = {
    "surrogate falls": (-0.5, 1e9),  # the step's multiple, the KL bound
    "KL exceeds its bound": (1.0, 1e-9),
    "no number": (math.nan, 1e9),
}


@pytest.mark.parametrize("case", REJECTED)
@SPACES
def test_a_rejected_step_leaves_the_policy_bit_by_bit_and_logs_no_kl(space, case):
    multiple, bound = REJECTED[case]
    a = agent(space)
    data = batch(a)
    step = multiple * a.natural_step(*data)[0]
    a.args.max_kl = bound
    before, s = a.theta.clone(), data[0]
    distribution = a.distribution(s)
    info = a.take(step, *data)
    assert torch.equal(a.theta, before)
    assert all(torch.equal(x, y) for x, y in zip(a.distribution(s), distribution, strict=True))
    assert info["kl"].item() == info["improvement"].item() == info["step_size"] == 0


def test_line_search_takes_the_first_share_that_passes():
    a = agent(line_search_shrinking_factor=0.5, line_search_max_iter=4)
    data = batch(a)
    step = a.natural_step(*data)[0]
    before, kls = a.theta.clone(), []
    for share in (1, 0.5, 0.25):
        a.theta.copy_(before)
        old = a.distribution(data[0])
        a.theta.copy_(before + share * step)
        kls.append(a.kl(old, a.distribution(data[0])).item())
    a.theta.copy_(before)
    assert kls[0] > kls[1] > kls[2]
    a.args.max_kl = (kls[1] + kls[2]) / 2  # the third passes
    info = a.take(step, *data)
    assert info["step_size"] == 0.25
    assert torch.equal(a.theta, before + 0.25 * step)


def test_without_line_search_the_full_step_is_taken_whatever_it_does():
    a = agent(line_search=False)
    data = batch(a)
    before, step = a.theta.clone(), -3 * a.natural_step(*data)[0]  # to a worse policy, beyond the bound
    info = a.take(step, *data)
    assert torch.equal(a.theta, before + step)
    assert info["step_size"] == 1 and info["improvement"].item() < 0 and info["kl"].item() > 0.01


def test_without_advantages_nothing_moves():
    for line_search in (True, False):
        a = agent(line_search=line_search)
        s, actions, logp_old, adv = batch(a)
        before = a.theta.clone()
        step = a.natural_step(s, actions, logp_old, 0 * adv)[0]
        assert torch.equal(step, torch.zeros_like(step))
        a.take(step, s, actions, logp_old, 0 * adv)
        assert torch.equal(a.theta, before)


# ---- update ----------------------------------------------------------------------------------------------------------


def test_theta_is_all_of_the_policy_and_none_of_the_critic():
    a = agent()
    assert len(a.theta) == sum(p.numel() for p in a.actor.parameters()) == 3 * 64 + 64 + 64 * 64 + 64 + 65 * 2 + 2
    assert len(a.optimizer.param_groups[0]["params"][0]) == sum(p.numel() for p in a.critic.parameters())
    log_std = a.actor.log_std.detach().clone()
    a.update(rollout(a), 0.0)
    assert not torch.equal(a.actor.log_std, log_std)


def test_critic_steps_leave_the_policy_alone_and_the_other_way_round():
    a = agent(max_kl=0.0)  # no policy step can be accepted
    before, values = a.theta.clone(), a.critic(torch.ones(1, 3)).item()
    info = a.update(rollout(a), 0.0)
    assert torch.equal(a.theta, before) and info["kl"].item() == info["step_size"] == 0
    assert a.critic(torch.ones(1, 3)).item() != values
    b = agent(learning_rate=0.0, anneal_lr=False)
    before, values = b.theta.clone(), b.critic(torch.ones(1, 3)).item()
    b.update(rollout(b), 0.0)
    assert not torch.equal(b.theta, before) and b.critic(torch.ones(1, 3)).item() == values


def test_advantages_are_standardised_over_the_rollout_but_value_targets_are_not():
    a, seen = agent(), []
    gradient, value_gradient = a.gradient, a.value_gradient
    a.gradient = lambda *x: seen.append(x) or gradient(*x)
    a.value_gradient = lambda *x: seen.append(x) or value_gradient(*x)
    info = a.update(rollout(a), 0.0)
    assert set(info) == set(TRPO.metrics)
    adv = seen[0][3]
    assert adv.mean().item() == pytest.approx(0, abs=1e-6) and adv.std().item() == pytest.approx(1, rel=1e-4)
    assert abs(seen[1][1].std().item() - 1) > 1e-3


def test_the_critic_uses_every_sample_once_an_epoch_the_smaller_last_minibatch_too():
    a, seen = agent(update_epochs=2, num_minibatches=3, num_envs=8, num_steps=32), []  # 256 samples: 86, 86, 84
    value_gradient = a.value_gradient
    a.value_gradient = lambda *x: seen.append(x[0]) or value_gradient(*x)
    data = rollout(a)
    a.update(data, 0.0)
    assert [len(s) for s in seen] == [86, 86, 84] * 2
    for epoch in (seen[:3], seen[3:]):
        wanted = data.s.flatten(0, 1).clamp(-10, 10)
        torch.testing.assert_close(torch.cat(epoch).sort(0).values, wanted.sort(0).values, atol=1e-6, rtol=1e-6)


def test_a_rollout_of_one_step_is_learned_from():
    a = agent(num_envs=1, num_steps=64)
    info = a.update(rollout(a, t=1, n=1), 0.0)
    assert all(math.isfinite(float(value)) for value in info.values())


@SPACES
def test_a_saved_agent_goes_on_as_it_would_have(space):
    a, b = agent(space), agent(space)
    a.update(rollout(a), 0.0)
    b.load_state_dict(copy.deepcopy(a.state_dict()))
    data = rollout(a)
    for x in (a, b):
        torch.manual_seed(2)
        x.update(data, 0.5)
    assert torch.equal(a.theta, b.theta)
    s = torch.randn(5, 3)
    assert torch.equal(a.act(s), b.act(s)) and torch.equal(a.critic(s), b.critic(s))


# ---- learning --------------------------------------------------------------------------------------------------------


def settings(folder, env_id: str, total: int, **changes) -> Args:
    run = RunArgs(device="cpu", compile=False, run_dir=str(folder), eval_every=10**9)
    return Args(env_id=env_id, total_timesteps=total, run=run, **changes)


def chain_value(tmp_path, env_id: str) -> float:
    """Value that TRPO's critic learns for the endless chain (gamma 0.8, so 5)."""
    s = settings(tmp_path / "run", env_id, 8192, gamma=0.8, norm_reward=False, num_steps=32, learning_rate=3e-3)
    folder = trpo.train(s)
    state = torch.load(folder / "checkpoint.pt", weights_only=True)["agent"]
    envs = trpo.VectorEnvs(env_id, 1, 0)
    a = TRPO(envs.observation_space, envs.action_space, s)
    a.load_state_dict(state)
    return a.critic(a.normalise(torch.ones(1, 1))).item()


@pytest.mark.parametrize("env_id", ["tiny_envs:Chain-v0", "tiny_envs:DiscreteChain-v0"])
def test_endless_chain_is_worth_one_over_one_minus_gamma(tmp_path, env_id):
    assert chain_value(tmp_path, env_id) == pytest.approx(5, abs=0.3)


def test_the_chain_test_notices_truncation_stored_as_termination(tmp_path, monkeypatch):
    collect = trpo.collect
    monkeypatch.setattr(trpo, "collect", lambda *x: (data := collect(*x))._replace(terminal=data.done))
    assert chain_value(tmp_path, "tiny_envs:Chain-v0") < 4


TINY = {"num_steps": 32, "max_kl": 0.05, "update_epochs": 10}


@pytest.mark.parametrize(
    ("env_id", "line_search"),
    [("tiny_envs:Match-v0", True), ("tiny_envs:DiscreteMatch-v0", True), ("tiny_envs:Match-v0", False)],
    ids=["continuous", "discrete", "tnpg"],
)
def test_learns_a_tiny_environment_in_seconds(tmp_path, env_id, line_search):
    folder = trpo.train(settings(tmp_path / "run", env_id, 12_288, line_search=line_search, **TINY))
    assert final_return(folder) > -0.2  # continuous: the best constant action gets about -0.8, discrete: -0.5


def test_the_learning_test_notices_advantages_of_the_wrong_sign(tmp_path, monkeypatch):
    gae = trpo.gae
    monkeypatch.setattr(trpo, "gae", lambda *x: -gae(*x))
    assert final_return(trpo.train(settings(tmp_path / "run", "tiny_envs:DiscreteMatch-v0", 12_288, **TINY))) < -0.5


def test_learns_the_inverted_pendulum(tmp_path):
    folder = trpo.train(settings(tmp_path / "run", "InvertedPendulum-v5", 98_304))
    assert final_return(folder) >= 900


def test_learns_the_cart_pole(tmp_path):
    folder = trpo.train(settings(tmp_path / "run", "CartPole-v1", 196_608))
    assert final_return(folder) >= 450
