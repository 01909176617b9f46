"""REINFORCE's estimates of the policy gradient against exact ones, its episodes; see test_on_policy.py too."""

from functools import partial

import pytest
import torch
from conftest import ACTIONS, OBSERVATIONS, by_space, make_agent
from gymnasium.spaces import Discrete
from reinforce import REINFORCE, VectorEnvs, collect, rewards_to_go
from torch import Tensor, nn

by_estimator = pytest.mark.parametrize("estimator", ["total-return", "reward-to-go"])
by_baseline = pytest.mark.parametrize("baseline", ["none", "mean", "optimal", "value"])

CONTINUOUS, DISCRETE = ACTIONS.values()
agent = partial(make_agent, "reinforce", OBSERVATIONS, num_envs=4)


def episodes(a: REINFORCE, *lengths: int) -> list[Tensor]:
    """s, a, r, running, s_end, terminal of episodes with these lengths; every other one terminates."""
    torch.manual_seed(1)
    t, n = max(lengths), len(lengths)
    s, actions = torch.randn(t, n, 3), a.explore(torch.randn(t * n, 3)).unflatten(0, (t, n))
    running = (torch.arange(t).unsqueeze(1) < torch.tensor(lengths)).to(s)
    return [s, actions, torch.randn(t, n), running, torch.randn(n, 3), torch.arange(n).to(s) % 2]


# Three states, two actions, at most three steps. NEXT[s][a]: equally likely successors, 3 ends the episode.
NEXT = torch.tensor([[(1, 2), (2, 2)], [(2, 2), (3, 3)], [(3, 0), (1, 1)]])
REWARD = torch.tensor([[7.0, 4.0], [3.0, 9.0], [5.0, 2.0]], dtype=torch.float64)
POLICY = torch.tensor([[0.25, 0.75], [0.5, 0.5], [0.75, 0.25]], dtype=torch.float64)  # pi(a | s)


def tabular(**changes) -> REINFORCE:
    """The agent with a table of logits, one row per state, instead of a network: its policy is POLICY."""
    exact = {"norm_obs": False, "scale_gradient": False, "gamma": 1.0, "bootstrap": False}
    a = agent(Discrete(2), **exact | changes)
    a.actor.logits = nn.Linear(3, 2, bias=False)
    a.actor.logits.weight.data = POLICY.log().T.contiguous()
    a.optimizer = torch.optim.Adam(a.actor.parameters(), 0.01)
    return a


def exhaustive() -> list[Tensor]:
    """What update takes, of 512 equally likely trajectories: every outcome of three dice with four sides for the action
    and two for the successor. So batch means are expectations. The rows after an episode's end must not count."""
    dice = torch.cartesian_prod(*[torch.arange(4), torch.arange(2)] * 3).T.view(3, 2, 512)
    s, rows = torch.zeros(512, dtype=torch.long), []
    for u, v in dice:
        at = s.clamp(max=2)
        a = (u >= 4 * POLICY[at, 0]).long()
        rows.append((torch.eye(3)[at], a, torch.where(s < 3, REWARD[at, a], 100.0), (s < 3).double()))
        s = torch.where(s < 3, NEXT[at, a, v], 3)
    return [*(torch.stack(x) for x in zip(*rows, strict=True)), torch.eye(3)[s.clamp(max=2)], (s == 3).double()]


def exact_gradient(a: REINFORCE) -> Tensor:
    """Gradient of J = E[sum_t gamma^t r_t] by dynamic programming."""
    v, theta = torch.zeros(3), a.actor.logits.weight
    for _ in range(3):
        v2 = torch.cat([v, torch.zeros(1)])[NEXT].mean(-1)
        v = (theta.T.softmax(-1) * (REWARD + a.args.gamma * v2)).sum(-1)
    return torch.autograd.grad(v[0], theta)[0].flatten()


def estimate(a: REINFORCE) -> Tensor:
    """The expectation of the agent's estimate of grad J."""
    s, actions, r, running, *end = exhaustive()
    adv = a.advantages(s, a.returns(r, *end, running), running)
    return a.policy_gradient(a.actor.log_prob(s, actions)[0], adv, running)


@by_baseline
@by_estimator
def test_expected_estimate_is_the_gradient_of_j(double, estimator, baseline):
    changes = {"estimator": estimator, "baseline": baseline, "gamma": 0.7 if estimator == "total-return" else 1.0}
    a = tabular(**changes)  # reward-to-go leaves gamma^t out
    wanted = exact_gradient(a)
    assert wanted.abs().min() > 0.01
    torch.testing.assert_close(estimate(a), wanted)
    s, _, r, running, *end = exhaustive()
    typical = a.advantages(s, a.returns(r, *end, running), running)[running.bool()].square().mean().sqrt()
    scaled = estimate(tabular(**changes, scale_gradient=True))
    torch.testing.assert_close(scaled, wanted / (running.sum(0).mean() * typical))


@by_estimator
def test_baselines_lower_the_variance_and_the_optimal_one_most(double, estimator):
    """Of the gradient that one trajectory contributes, parameter by parameter."""
    a = tabular(estimator=estimator, baseline="none")
    s, actions, r, running, *end = exhaustive()
    g = a.advantages(s, a.returns(r, *end, running), running)
    logp = a.actor.log_prob(s, actions)[0]
    score, weighted = (torch.stack([a.score(logp[:, i], w[:, i]) for i in range(512)]) for w in (running, running * g))
    b, mean = a.optimal_baseline(score, weighted), ((g * running).sum(0) / running.sum(0)).mean()
    best, *others = ((weighted - x * score).var(0, correction=0) for x in (b, 0.0, mean, 0.9 * b, 1.1 * b))
    assert all((best < x).all() for x in others) and (others[1] < others[0]).all()
    if estimator == "total-return":  # the slides' formula
        torch.testing.assert_close(b, (score.square() * g[:1].T).mean(0) / score.square().mean(0))
    a.args.baseline = "optimal"  # of some trajectories, whose scores are not 0 on average
    b = a.optimal_baseline(score[:99], weighted[:99])
    estimate = a.policy_gradient(logp[:, :99], g[:, :99], running[:, :99])
    torch.testing.assert_close(estimate, (weighted - b * score)[:99].mean(0))


def test_returns_by_hand_and_only_truncated_ends_are_bootstrapped():
    assert rewards_to_go(torch.tensor([[1.0], [2.0], [4.0]]), 0.5).flatten().tolist() == [1 + 0.5 * 4, 2 + 0.5 * 4, 4]
    r, running = torch.ones(3, 3), torch.tensor([[1.0, 1, 1], [1, 1, 1], [0, 1, 0]])
    s_end, terminal = torch.randn(3, 3), torch.tensor([1.0, 0, 0])
    for other in ({}, {"bootstrap": False}, {"baseline": "mean"}):
        a = agent(CONTINUOUS, gamma=0.5, **other)
        v = (not other) * a.value(s_end)
        wanted = torch.tensor([[1.5, 1.75, 1.5], [1, 1.5, 1], [0, 1, 0]])
        weights = torch.tensor([[0, 1 / 8, 1 / 4], [0, 1 / 4, 1 / 2], [0, 1 / 2, 0]])
        torch.testing.assert_close(a.returns(r, s_end, terminal, running) * running, wanted + weights * v)
    adv = a.advantages(s_end, torch.tensor([[6.0, 1], [2, 0]]), torch.tensor([[1.0, 1], [1, 0]]))  # baseline mean
    assert adv[:, 0].tolist() == [6 - 2.5, 2 - 2.5] and adv[0, 1] == 1 - 2.5


@by_space
@by_baseline
@by_estimator
def test_steps_after_an_episodes_end_have_no_influence_at_all(space, estimator, baseline):
    results = []
    for garbage in (0.0, 1e3):
        a = agent(space, estimator=estimator, baseline=baseline, learning_rate=0.1)
        s, actions, r, running, *end = episodes(a, 5, 12, 1, 9)
        over = (1 - running).bool()
        s, r, actions = s + garbage * over.unsqueeze(-1), r + garbage * over, actions.clone()
        actions[over] = actions[over] * 0 + bool(garbage)
        info = a.update(s, actions, r, running, *end, 0.0)
        results.append([*a.state_dict().values(), *(torch.as_tensor(x) for x in info.values())])
    assert info["episode_length"] == 27 / 4 and a.obs_stats.count == 27
    assert all(map(torch.equal, *results))


def test_the_policy_step_follows_the_gradient_upwards():
    """Without scaling: 1/N of the sum over all trajectories of log pi (G_t - V)."""
    a = agent(CONTINUOUS, learning_rate=1e-4, scale_gradient=False, gamma=0.9)
    s, actions, r, running, s_end, terminal = data = episodes(a, 30, 50, 20, 40)
    a.obs_stats.mean += 1
    s, s_end = a.normalise(s), a.normalise(s_end)
    adv = a.returns(r, s_end, terminal, running) - a.value(s)
    j = (running * adv * a.actor.log_prob(s, actions)[0]).sum() / 4
    gradient = torch.autograd.grad(j, list(a.actor.parameters()))
    norm = a.update(*data, 0.0)["grad_norm"].item()
    assert norm == pytest.approx(torch.cat([g.flatten() for g in gradient]).norm().item(), rel=1e-4)
    for p, g in zip(a.actor.parameters(), gradient, strict=True):
        torch.testing.assert_close(-p.grad, g, rtol=1e-3, atol=1e-4)


@by_baseline
def test_v_is_fitted_only_where_used_and_after_it_is_subtracted(baseline):
    a, calls = agent(CONTINUOUS, baseline=baseline), []
    gradient, fit, critic = a.policy_gradient, a.fit_value, [p.clone() for p in a.critic.parameters()]
    a.policy_gradient = lambda *x: calls.append("policy") or gradient(*x)
    a.fit_value = lambda *x: calls.append(len(x[1])) or fit(*x)
    data = episodes(a, 30, 50, 1)
    v = a.value(data[0])[data[3].bool()]
    g = a.returns(*(data[k] for k in (2, 4, 5, 3)))[data[3].bool()]
    info = a.update(*data, 0.0)
    assert calls == (["policy", 81] if baseline == "value" else ["policy"])
    assert all(map(torch.equal, critic, a.critic.parameters())) == (baseline != "value")
    if baseline == "value":
        assert info["explained_variance"].item() == pytest.approx((1 - (g - v).var() / g.var()).item(), rel=1e-4)


def test_v_learns_the_returns():
    a, s = agent(CONTINUOUS, learning_rate=3e-3, value_epochs=10), torch.randn(600, 3)
    g = 100 + 30 * s[:, 0]
    for _ in range(20):
        a.fit_value(s, g)
    assert (a.value(s) - g).square().mean() < 0.02 * g.var()


def test_episodes_are_whole_one_of_every_environment_all_started_together():
    """So that those of all lengths have the same chance; of the first to end most would be short."""
    envs = VectorEnvs("tiny_envs:Trace-v0", 4)
    envs.reset([0, 1, 2, 3])
    a = make_agent("reinforce", envs.observation_space, envs.action_space)
    for _ in range(6):
        before = envs.steps
        s, actions, r, running, s_end, terminal = collect(a, envs, "cpu")
        k = s[0, :, 0]
        lengths, sent = 1 + 2 * (k.long() % 3), (2 + 3 * actions).clamp(-1, 5).squeeze(-1)
        assert len(s) == lengths.max() and envs.steps - before == 4 * len(s) and not s[0, :, 1:].any()
        assert torch.equal(terminal, 1 - k % 2)  # else truncated
        for i, n in enumerate(lengths):
            assert running[:, i].tolist() == [1.0] * n + [0.0] * (len(s) - n)
            assert (s[:n, i, 0] == k[i]).all() and s[:n, i, 1].tolist() == list(range(n))
            torch.testing.assert_close(s_end[i], torch.stack([k[i], n, sent[n - 1, i]]))
            torch.testing.assert_close(r[:n, i], k[i] + (1 + torch.arange(n)) / 8 + sent[:n, i])
