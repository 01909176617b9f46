"""TRPO's Fisher matrix, conjugate gradient and line search against explicit ones; see test_on_policy.py too."""

import copy
import math
from functools import partial

import pytest
import torch
from conftest import ACTIONS, OBSERVATIONS, by_space, make_agent, rollout
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from trpo import TRPO, SoftmaxActor, conjugate_gradient

CONTINUOUS, DISCRETE = ACTIONS.values()
agent = partial(make_agent, "trpo", OBSERVATIONS, num_envs=8)


def batch(a: TRPO, n: int = 256, seed: int = 1) -> tuple[Tensor, ...]:
    """s, a, logp_old, adv."""
    torch.manual_seed(seed)
    s = torch.randn(n, 3)
    actions = a.explore(s)
    return s, actions, a.actor.log_prob(s, actions)[0].detach(), torch.randn(n)


def theta(a: TRPO) -> Tensor:
    return parameters_to_vector(a.actor.parameters()).detach().clone()


def reference(a: TRPO, s: Tensor) -> torch.distributions.Distribution:
    """pi(. | s) as PyTorch has it."""
    if isinstance(a.actor, SoftmaxActor):
        return torch.distributions.Categorical(logits=a.actor.logits(s))
    return torch.distributions.Independent(torch.distributions.Normal(a.actor.mu(s), a.actor.log_std.exp()), 1)


def divergence(old: TRPO, new: TRPO, s: Tensor) -> float:
    return torch.distributions.kl_divergence(reference(old, s), reference(new, s)).mean().item()


@by_space
def test_surrogate_gradient_is_the_policy_gradient_at_the_old_policy(space):
    a = agent(space)
    s, actions, logp_old, adv = batch(a)
    g, info = a.surrogate_gradient(s, actions, logp_old, adv)
    wanted = torch.autograd.grad((reference(a, s).log_prob(actions) * adv).mean(), list(a.actor.parameters()))
    torch.testing.assert_close(g, torch.cat([x.flatten() for x in wanted]), atol=1e-6, rtol=1e-4)
    assert info["grad_norm"].item() == pytest.approx(g.norm().item()) and len(g) == len(theta(a))


@by_space
def test_fisher_vector_product_against_the_explicit_hessian(double, space):
    a, s = agent(space, cg_damping=0.1), torch.randn(40, 3)
    discrete = isinstance(a.actor, SoftmaxActor)
    small = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3 if discrete else 2))
    setattr(a.actor, "logits" if discrete else "mu", small)
    parameters, old = list(a.actor.parameters()), reference(copy.deepcopy(a), s)
    kl = torch.distributions.kl_divergence(old, reference(a, s)).mean()
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(kl, parameters, create_graph=True)])
    rows = [torch.autograd.grad(g, parameters, retain_graph=True) for g in gradient]
    hessian = torch.stack([torch.cat([x.flatten() for x in row]) for row in rows])
    for v in torch.randn(5, len(gradient)):
        torch.testing.assert_close(a.fisher_vector_product(s, v), hessian @ v + 0.1 * v)


def test_conjugate_gradient(double):
    matrix, b = torch.tensor([[4.0, 1.0], [1.0, 3.0]]), torch.tensor([1.0, 2.0])
    torch.testing.assert_close(conjugate_gradient(lambda v: matrix @ v, b, 1), 5 / 20 * b)  # alpha = b . b / b . F b
    for steps in (2, 3, 30):  # exact after two; more change nothing
        torch.testing.assert_close(conjugate_gradient(lambda v: matrix @ v, b, steps), torch.tensor([1 / 11, 7 / 11]))


@by_space
def test_the_full_step_is_natural_gradient_ascent_to_the_edge_of_the_trust_region(space):
    a = agent(space, max_kl=0.02, cg_damping=1e-3)
    data, before = batch(a), copy.deepcopy(a)
    step, _ = a.natural_step(*data)
    image, g = a.fisher(data[0], step), a.gradient(*data)[0]
    assert (0.5 * step @ image).item() == pytest.approx(0.02, rel=1e-3)
    assert torch.cosine_similarity(image, g, dim=0).item() > 0.99  # F step is along g
    vector_to_parameters(theta(a) + step, a.actor.parameters())
    assert divergence(before, a, data[0]) == pytest.approx(0.02, rel=0.3)  # to second order


@by_space
def test_every_accepted_step_keeps_the_kl_bound_and_improves_the_surrogate(space):
    accepted, a = 0, agent(space, max_kl=0.01)
    for k in range(8):
        s, actions, logp_old, adv = data = batch(a, 64, seed=k)
        before = copy.deepcopy(a)
        info = a.take(5 * a.natural_step(*data)[0], *data)
        kl = divergence(before, a, s)
        assert info["kl"].item() == pytest.approx(kl, abs=3e-7) and kl <= 0.01 + 1e-6
        improvement = ((reference(a, s).log_prob(actions) - logp_old).exp() * adv).mean() - adv.mean()
        assert info["improvement"].item() == pytest.approx(improvement.item(), abs=1e-6)
        assert info["policy_loss"].item() == pytest.approx(-(improvement + adv.mean()).item(), abs=1e-6)
        accepted += info["step_size"] > 0 and improvement.item() > 0 and info["step_size"] < 1
    assert accepted >= 6


@by_space
@pytest.mark.parametrize(("multiple", "bound"), [(-0.5, 1e9), (1.0, 1e-9), (math.nan, 1e9)])
def test_a_rejected_step_leaves_the_policy_bit_by_bit_and_logs_no_kl(space, multiple, bound):
    """The surrogate falls, the KL exceeds its bound, there is no number."""
    a = agent(space)
    data = batch(a)
    step, before = multiple * a.natural_step(*data)[0], theta(a)
    a.args.max_kl = bound
    info = a.take(step, *data)
    assert torch.equal(theta(a), before)
    assert info["kl"].item() == info["improvement"].item() == info["step_size"] == 0


def test_line_search_takes_the_first_share_that_passes():
    a = agent(CONTINUOUS, line_search_shrinking_factor=0.5, line_search_max_iter=4)
    data, before = batch(a), copy.deepcopy(a)
    step, old, kls = a.natural_step(*data)[0], theta(a), []
    for share in (1, 0.5, 0.25):
        vector_to_parameters(old + share * step, a.actor.parameters())
        kls.append(divergence(before, a, data[0]))
    for bound, wanted in ((kls[0] * 1.01, 1), ((kls[1] + kls[2]) / 2, 0.25), (kls[2] / 1e4, 0)):  # 0: not in 4 trials
        vector_to_parameters(old, a.actor.parameters())
        a.args.max_kl = bound
        assert a.take(step, *data)["step_size"] == wanted
        assert torch.equal(theta(a), old + wanted * step)


def test_without_line_search_the_full_step_is_taken_whatever_it_does():
    a = agent(CONTINUOUS, line_search=False)
    data, before = batch(a), theta(a)
    step = -3 * a.natural_step(*data)[0]  # to a worse policy, beyond the bound
    info = a.take(step, *data)
    assert torch.equal(theta(a), before + step)
    assert all(p.untyped_storage().nbytes() == p.nbytes for p in a.actor.parameters()), "views: a resume differs"
    assert info["step_size"] == 1 and info["improvement"].item() < 0 and info["kl"].item() > 0.01
    assert not a.natural_step(*data[:3], 0 * data[3])[0].any()  # without advantages nothing moves


def test_critic_steps_leave_the_policy_alone_and_the_other_way_round():
    s = torch.ones(1, 3)
    for changes, policy_moves in (({"max_kl": 0.0}, False), ({"learning_rate": 0.0}, True)):
        a = agent(CONTINUOUS, **changes)
        before, value, log_std = theta(a), a.critic(s).item(), a.actor.log_std.detach().clone()
        info = a.update(*rollout(a), 0.0)
        assert (not torch.equal(theta(a), before)) == (not torch.equal(a.actor.log_std, log_std)) == policy_moves
        assert (a.critic(s).item() == value) == policy_moves and (info["kl"].item() > 0) == policy_moves


def test_an_update_is_a_policy_step_on_the_whole_rollout_and_epochs_of_critic_steps():
    """Advantages are standardised over the rollout; the critic uses every row once an epoch, target beside it."""
    a, seen, fitted = agent(CONTINUOUS, update_epochs=2, num_minibatches=3, num_steps=16, norm_reward=False), [], []
    gradient, value_step = a.gradient, a.value_step
    a.gradient = lambda *x: seen.append(x) or gradient(*x)
    a.value_step = lambda *x: fitted.append(x) or value_step(*x)
    s, actions, r, s2, terminal, done = data = rollout(a)
    adv, v_target = a.advantages(s, r, s2, terminal, done)  # the statistics are still mean 0 and std 1
    s, actions, adv, v_target = (x.flatten(0, 1) for x in (s, actions, adv, v_target))
    logp = a.actor.log_prob(s, actions)[0].detach()
    a.update(*data, 0.0)
    assert len(seen) == 1
    for x, wanted in zip(seen[0], (s, actions, logp, (adv - adv.mean()) / adv.std()), strict=True):
        torch.testing.assert_close(x, wanted)
    assert [len(x[0]) for x in fitted] == [43, 43, 42] * 2  # of 128
    for epoch in (fitted[:3], fitted[3:]):
        x, y = (torch.cat(column) for column in zip(*epoch, strict=True))
        found, wanted = x[:, 0].argsort(), s[:, 0].argsort()
        assert torch.equal(x[found], s[wanted]) and not torch.equal(x, s)
        torch.testing.assert_close(y[found], v_target[wanted])
