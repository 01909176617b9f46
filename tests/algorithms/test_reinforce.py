"""REINFORCE's estimates of the policy gradient against exact ones, its trajectories, and what it learns."""

from __future__ import annotations

import copy
import itertools
import math
from typing import NamedTuple

import gymnasium as gym
import numpy as np
import pytest
import reinforce
import torch
from conftest import final_return
from gymnasium.spaces import Box, Discrete
from reinforce import REINFORCE, Args, Episodes, RunArgs, Trajectory, VectorEnvs, chunks, rewards_to_go
from torch import Tensor, nn

OBSERVATIONS = Box(-np.inf, np.inf, (3,), np.float32)
ACTIONS = Box(np.float32([-1, 0]), np.float32([1, 4]))  # half ranges 1 and 2, centres 0 and 2


def agent(actions=ACTIONS, **settings) -> REINFORCE:
    torch.manual_seed(0)
    return REINFORCE(OBSERVATIONS, actions, Args(run=RunArgs(device="cpu", compile=False), **settings))


def trajectories(a: REINFORCE, *lengths: int) -> list[Trajectory]:
    torch.manual_seed(1)
    found = []
    for k, length in enumerate(lengths):
        s = torch.randn(length, 3)
        found.append(Trajectory(s, a.explore(s), torch.randn(length), torch.randn(3), k % 2 == 0))
    return found


@pytest.fixture
def double():
    """float64 everywhere, so that finite differences are exact enough."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


# ---- the policy gradient theorem on a tabular task -------------------------------------------------------------------

# Three states, two actions, at most three steps. NEXT[s][a]: equally likely successors, None ends the episode.
NEXT = [[(1, 2), (2, 2)], [(2, 2), (None, None)], [(None, 0), (1, 1)]]
REWARD = torch.tensor([[7.0, 4.0], [3.0, 9.0], [5.0, 2.0]], dtype=torch.float64)
POLICY = torch.tensor([[0.25, 0.75], [0.5, 0.5], [0.75, 0.25]], dtype=torch.float64)  # pi(a | s)
HORIZON = 3


class Path(NamedTuple):
    """One possible trajectory: its states, actions, the state it led to (0 for none), how it ended, the dice's odds."""

    s: tuple[int, ...]
    a: tuple[int, ...]
    s_end: int
    terminal: bool
    odds: float


def paths(s: int | None = 0, before: Path = Path((), (), 0, False, 1.0)) -> list[Path]:
    """All trajectories from state s on, after those steps."""
    if s is None or len(before.s) == HORIZON:
        return [before._replace(s_end=s or 0, terminal=s is None)]
    return [
        path
        for a in (0, 1)
        for s2 in NEXT[s][a]
        for path in paths(s2, Path((*before.s, s), (*before.a, a), 0, False, before.odds / 2))
    ]


PATHS = paths()


def one_hot(states: tuple[int, ...]) -> Tensor:
    return torch.eye(3)[list(states)]


def rewards(path: Path) -> Tensor:
    return REWARD[list(path.s), list(path.a)]


def trajectory(path: Path) -> Trajectory:
    return Trajectory(one_hot(path.s), torch.tensor(path.a), rewards(path), torch.eye(3)[path.s_end], path.terminal)


def tabular(policy: Tensor = POLICY, **settings) -> REINFORCE:
    """The agent with a table of logits, one row per state, instead of a network: its policy is the given one."""
    settings = {"norm_obs": False, "scale_gradient": False, "gamma": 1.0, "bootstrap": False} | settings
    a = agent(Discrete(2), **settings)
    a.actor.logits = nn.Linear(3, 2, bias=False)
    a.actor.logits.weight.data = policy.log().T.contiguous()
    return a


def probabilities(a: REINFORCE) -> Tensor:
    """p(tau) of every path under the agent's policy."""
    logp = a.actor.logits.weight.T.log_softmax(-1)
    return torch.stack([path.odds * logp[list(path.s), list(path.a)].sum().exp() for path in PATHS])


def exhaustive(a: REINFORCE) -> list[Trajectory]:
    """A batch that holds every trajectory exactly as often as its probability says: batch means are expectations."""
    counts = 512 * probabilities(a).detach()
    assert torch.equal(counts.round(), counts.round(decimals=6)) and round(counts.sum().item()) == 512
    return [trajectory(path) for path, count in zip(PATHS, counts, strict=True) for _ in range(round(count.item()))]


def finite_differences(a: REINFORCE, gamma: float = 1.0, end_values: Tensor | None = None) -> Tensor:
    """Gradient of J = E[sum_t gamma^t r_t], plus V(s_end) of the truncated if given, from J at theta +- eps e_k."""
    g = [(gamma ** torch.arange(len(path.s)) * rewards(path)).sum() for path in PATHS]
    if end_values is not None:
        g = [
            g_i + (0 if p.terminal else gamma ** len(p.s) * end_values[p.s_end])
            for g_i, p in zip(g, PATHS, strict=True)
        ]
    g, theta, gradient = torch.stack(g), a.actor.logits.weight.data.view(-1), []
    for k in range(len(theta)):
        theta[k] += 1e-5
        up = probabilities(a) @ g
        theta[k] -= 2e-5
        gradient.append((up - probabilities(a) @ g) / 2e-5)
        theta[k] += 1e-5
    return torch.stack(gradient).detach()


def estimate(a: REINFORCE, batch: list[Trajectory]) -> Tensor:
    """The agent's estimate of grad J from a batch."""
    s, actions = torch.cat([tau.s for tau in batch]), torch.cat([tau.a for tau in batch])
    return a.policy_gradient(s, actions, a.returns(batch))[0]


ESTIMATORS = ["total-return", "reward-to-go"]
BASELINES = ["none", "mean", "optimal", "value"]


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_expected_estimate_is_the_gradient_of_j(double, estimator, baseline):
    a = tabular(estimator=estimator, baseline=baseline)
    wanted = finite_differences(a)
    assert wanted.abs().min() > 0.01
    torch.testing.assert_close(estimate(a, exhaustive(a)), wanted, atol=1e-7, rtol=1e-7)


def test_expected_estimate_of_the_discounted_total_return(double):
    a = tabular(estimator="total-return", baseline="mean", gamma=0.7)
    torch.testing.assert_close(estimate(a, exhaustive(a)), finite_differences(a, 0.7), atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_bootstrapping_counts_the_value_of_a_truncated_end_as_reward(double, estimator):
    a = tabular(estimator=estimator, baseline="value", bootstrap=True, gamma=1 - 1e-12)
    a.return_stats.var.fill_(100.0)  # so that V matters
    wanted = finite_differences(a, end_values=a.value(torch.eye(3)))
    assert (wanted - finite_differences(a)).abs().max() > 0.01
    torch.testing.assert_close(estimate(a, exhaustive(a)), wanted, atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize("baseline", BASELINES)
def test_scaling_changes_the_gradients_length_alone(double, baseline):
    a, scaled = tabular(baseline=baseline), tabular(baseline=baseline, scale_gradient=True)
    batch = exhaustive(a)
    x, y = estimate(a, batch), estimate(scaled, batch)
    assert y.norm() < 1 < x.norm()
    torch.testing.assert_close(x / x.norm(), y / y.norm())


@pytest.mark.parametrize("baseline", ["mean", "optimal"])
def test_scaling_does_not_depend_on_what_every_return_has_in_common(double, baseline):
    a = tabular(baseline=baseline, scale_gradient=True)
    batch = exhaustive(a)
    s, actions, g = torch.cat([tau.s for tau in batch]), torch.cat([tau.a for tau in batch]), a.returns(batch)
    x, y = (a.policy_gradient(s, actions, [g_t + shift for g_t in g])[0] for shift in (0.0, 1000.0))
    torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_baselines_lower_the_variance_and_the_optimal_one_most(double, estimator):
    """Of the gradient that one trajectory contributes, parameter by parameter."""
    a = tabular(estimator=estimator, baseline="none")
    batch = exhaustive(a)
    g = a.returns(batch)
    if estimator == "total-return":
        g = [x[:1].expand(len(x)) for x in g]
    score = torch.stack([a.score(tau.s, tau.a, torch.ones(len(tau.r))) for tau in batch])
    weighted = torch.stack([a.score(tau.s, tau.a, x) for tau, x in zip(batch, g, strict=True)])
    torch.testing.assert_close(score.mean(0), torch.zeros(6), atol=1e-12, rtol=0)  # why a baseline leaves the mean
    b = a.optimal_baseline(score, weighted)
    mean = torch.stack([x.mean() for x in g]).mean()
    none, average, optimal, less, more = (
        (weighted - x * score).var(0, correction=0) for x in (0.0, mean, b, 0.9 * b, 1.1 * b)
    )
    assert (optimal < average).all() and (average < none).all()
    assert (optimal < less).all() and (optimal < more).all()
    if estimator == "total-return":  # the slides' formula
        total = torch.stack([x[0] for x in g]).unsqueeze(1)
        torch.testing.assert_close(b, (score.square() * total).mean(0) / score.square().mean(0))


@pytest.mark.parametrize(("baseline", "share"), [("none", 1.0), ("value", 1.0), ("mean", 0.5)])
def test_expectation_over_batches_of_two(double, baseline, share):
    """All pairs of trajectories: the mean of the two shortens the estimate by (N - 1) / N, the others are unbiased."""
    a = tabular(estimator="total-return", baseline=baseline)
    p = probabilities(a).detach()
    batch = [trajectory(path) for path in PATHS]
    pairs = itertools.product(range(len(PATHS)), repeat=2)
    expected = sum(p[i] * p[j] * estimate(a, [batch[i], batch[j]]) for i, j in pairs)
    torch.testing.assert_close(expected, share * finite_differences(a), atol=1e-7, rtol=1e-7)


def test_importance_sampled_gradient_is_the_on_policy_one(double):
    """Trajectories of another policy theta', weighted with prod_t pi_theta(a_t | s_t) / pi_theta'(a_t | s_t)."""
    a, other = tabular(), tabular(POLICY.flip(0, 1))
    batch = exhaustive(other)
    logp, logp_other = (x.actor.logits.weight.T.log_softmax(-1).detach() for x in (a, other))
    total = 0
    for tau in batch:
        states = tau.s.argmax(-1)
        ratio = (logp[states, tau.a] - logp_other[states, tau.a]).sum().exp()
        total = total + a.score(tau.s, tau.a, (ratio * tau.r.sum()).expand(len(tau.r)))
    torch.testing.assert_close(total / len(batch), finite_differences(a), atol=1e-7, rtol=1e-7)


def test_likelihood_ratio_and_pathwise_gradients_of_a_gaussian_expectation_agree(double):
    """grad E[f(a)], a = mu + std eps, on the nodes of a quadrature that is exact for polynomials."""
    a = agent()
    nodes, weights = (torch.tensor(x) for x in np.polynomial.hermite_e.hermegauss(12))
    eps, p = torch.cartesian_prod(nodes, nodes), torch.cartesian_prod(weights, weights).prod(-1) / (2 * math.pi)
    s = torch.randn(1, 3).expand(len(p), 3)
    f = lambda x: 3 - (x[:, 0] - 0.3).square() + x[:, 0] * x[:, 1] - x[:, 1] ** 3  # noqa: E731
    actions = a.actor.mu(s) + a.actor.log_std.exp() * eps
    pathwise = torch.autograd.grad((p * f(actions)).sum(), list(a.actor.parameters()))
    likelihood_ratio = a.score(s, actions.detach(), p * f(actions).detach())
    assert likelihood_ratio.norm() > 1
    torch.testing.assert_close(likelihood_ratio, torch.cat([x.flatten() for x in pathwise]), atol=1e-9, rtol=1e-7)


# ---- pieces of the estimate ------------------------------------------------------------------------------------------


def test_rewards_to_go_by_hand():
    g = rewards_to_go(torch.tensor([1.0, 2.0, 4.0]), 8.0, 0.5)
    assert g.tolist() == [1 + 0.5 * (2 + 0.5 * (4 + 0.5 * 8)), 2 + 0.5 * (4 + 0.5 * 8), 4 + 0.5 * 8]


def test_only_truncated_trajectories_are_bootstrapped():
    a = agent(gamma=0.5)
    s_end, r = torch.ones(3), torch.tensor([1.0, 1.0])
    v = a.value(a.normalise(s_end.unsqueeze(0))).item()
    over, cut = (Trajectory(torch.zeros(2, 3), torch.zeros(2, 2), r, s_end, terminal) for terminal in (True, False))
    g_over, g_cut = a.returns([over, cut])
    torch.testing.assert_close(g_over, torch.tensor([1.5, 1.0]))
    torch.testing.assert_close(g_cut, torch.tensor([1.5 + v / 4, 1 + v / 2]))
    for other in ({"bootstrap": False}, {"baseline": "mean"}, {"baseline": "none"}):
        assert torch.equal(agent(gamma=0.5, **other).returns([over, cut])[1], g_over)


@pytest.mark.parametrize("space", [ACTIONS, Discrete(3)], ids=["continuous", "discrete"])
@pytest.mark.parametrize("n", [1, 255, 256, 257, 700])
def test_filling_up_chunks_changes_nothing(double, space, n):
    a = agent(space)
    s, w = torch.randn(n, 3), torch.randn(n)
    actions = a.actor.sample(s).detach()
    whole = torch.autograd.grad((w * a.actor.log_prob(s, actions)[0]).sum(), list(a.actor.parameters()))
    torch.testing.assert_close(a.score(s, actions, w), torch.cat([x.flatten() for x in whole]))
    pieces = chunks(s, actions, w)
    assert {len(x) for piece in pieces for x in piece} == {256} and len(pieces) == -(-n // 256)
    error = (a.critic(s).squeeze(-1) - w).square()
    (s_1, w_1, ones), *_ = chunks(s, w, torch.ones(n))
    torch.testing.assert_close(a.value_loss(s_1, w_1, ones)[0], error[:256].mean())


def test_compiled_gradients_equal_eager_ones_whatever_the_trajectories_lengths():
    torch._dynamo.config.trace_autograd_ops = True
    eager, compiled = agent(), agent()
    compiled.gradient = reinforce.gradient_function(compiled.loss, compiled.actor, RunArgs(compile=True))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for n in (5, 300, 700):
            s, actions, w = torch.randn(n, 3), torch.randn(n, 2), torch.randn(n)
            x, y = eager.score(s, actions, w), compiled.score(s, actions, w)
            assert x.abs().max() > 0.1
            torch.testing.assert_close(x, y, atol=1e-4, rtol=1e-4)


# ---- update ----------------------------------------------------------------------------------------------------------


def test_the_policy_step_follows_the_gradient_upwards():
    a = agent(learning_rate=1e-4)
    before = a.optimizer.param_groups[0]["params"][0].clone()
    batch = trajectories(a, 30, 50, 20, 40)
    s, actions = torch.cat([tau.s for tau in batch]).clamp(-10, 10), torch.cat([tau.a for tau in batch])
    gradient, _ = a.policy_gradient(s, actions, a.returns(batch))
    a.update(batch, 0.0)
    step = a.optimizer.param_groups[0]["params"][0] - before
    large = gradient.abs() > 1e-3  # Adam's first step is the learning rate along the gradient's sign
    assert large.sum() > 100
    torch.testing.assert_close(step[large], 1e-4 * gradient[large].sign(), atol=2e-6, rtol=0)


def test_v_is_not_fitted_to_the_returns_before_it_is_subtracted():
    a, calls = agent(), []
    gradient, fit = a.policy_gradient, a.fit_value
    a.policy_gradient = lambda *x: calls.append("policy") or gradient(*x)
    a.fit_value = lambda *x: calls.append("fit") or fit(*x)
    a.update(trajectories(a, 30, 50), 0.0)
    assert calls == ["policy", "fit"]


def test_v_learns_the_returns():
    a = agent(learning_rate=3e-3, anneal_lr=False, value_epochs=10)
    s = torch.randn(600, 3)
    g = 100 + 30 * s[:, 0]
    for _ in range(20):
        a.fit_value(s, g)
    assert (a.value(s) - g).square().mean() < 0.02 * g.var()


@pytest.mark.parametrize("baseline", BASELINES)
def test_statistics_and_critic_move_after_the_policys_step_and_only_where_used(baseline):
    a = agent(baseline=baseline)
    critic = [p.clone() for p in a.critic.parameters()]
    info = a.update(trajectories(a, 30, 50, 1), 0.25)
    assert all(math.isfinite(float(value)) for value in info.values())
    assert info.keys() | {"value_loss", "explained_variance"} == a.metrics.keys()
    assert a.obs_stats.count.item() == 81
    same = all(torch.equal(p, q) for p, q in zip(a.critic.parameters(), critic, strict=True))
    assert same == (baseline != "value") == ("value_loss" not in info)
    assert info["episode_length"] == 27 and info["learning_rate"] == pytest.approx(0.75 * a.args.learning_rate)


def test_a_trajectory_of_one_step_without_reward_is_learned_from():
    a = agent(Discrete(2), episodes_per_update=1)
    tau = Trajectory(torch.zeros(1, 3), torch.tensor([1]), torch.zeros(1), torch.zeros(3), True)
    for _ in range(3):
        info = a.update([tau], 0.0)
    assert all(math.isfinite(float(value)) for value in info.values())


def test_saved_agent_goes_on_as_the_original():
    a, b = agent(), agent()
    a.update(trajectories(a, 30, 50), 0.0)
    b.load_state_dict(copy.deepcopy(a.state_dict()))
    batch = trajectories(a, 20, 60)
    for x in (a, b):
        torch.manual_seed(5)
        x.update(batch, 0.5)
    s = torch.randn(5, 3) * 4 + 2
    assert torch.equal(a.act(s), b.act(s)) and torch.equal(a.value(s), b.value(s))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_envs": 8, "episodes_per_update": 4}, ("--num-envs 8", "--episodes-per-update 4")),
        ({"num_envs": 1, "episodes_per_update": 1, "baseline": "mean"}, ("--baseline mean", "--episodes-per-update 1")),
        ({"gamma": 1.0}, ("--gamma 1.0", "--no-bootstrap")),
    ],
)
def test_contradictions_are_refused(settings, words):
    with pytest.raises(reinforce.UserError) as error:
        Args(**settings).check()
    assert all(word in str(error.value) for word in words)


# ---- whole trajectories ----------------------------------------------------------------------------------------------


class Lottery(gym.Env):
    """Half of the episodes last 2 steps, half 12. s = (episode, t, length / 12), reward t; the long ones are cut."""

    observation_space = Box(-np.inf, np.inf, (3,), np.float32)
    action_space = Discrete(2)
    episodes = itertools.count()

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.t = next(self.episodes), 0
        self.length = int(self.np_random.choice([2, 12]))
        return self.observe(), {}

    def observe(self):
        return np.float32([self.episode, self.t, self.length / 12])

    def step(self, action):
        self.t += 1
        over = self.t == self.length
        return self.observe(), float(self.t), over and self.length == 2, over and self.length == 12, {}


gym.register("Lottery-v0", Lottery)


def step(envs: VectorEnvs, episodes: Episodes) -> np.ndarray:
    """One step with random actions, as train makes it; returns done."""
    first, s, a = envs.lengths == 0, torch.from_numpy(envs.obs), torch.randint(2, (len(envs.obs),))
    s2, r, terminal, done = envs.step(a)
    episodes.add(first, s, a, r, s2, terminal, done)
    return done


def batches(episodes: Episodes, n: int, number: int) -> list[list[Trajectory]]:
    """So many batches from n environments."""
    envs, found = VectorEnvs("Lottery-v0", n, seed=0), []
    while len(found) < number:
        done = step(envs, episodes)
        if episodes.complete():
            found.append(episodes.take())
            if not done.all():
                envs.restart(reinforce.seeds(0, 3 + envs.steps, n))
    return found


@pytest.mark.parametrize(("wanted", "n"), [(5, 1), (8, 8), (7, 3)])
def test_trajectories_are_whole_and_belong_to_one_episode(wanted, n):
    for batch in batches(Episodes(wanted, n, "cpu"), n, 20):
        assert len(batch) == wanted
        assert len({tau.s[0, 0].item() for tau in batch}) == wanted
        for tau in batch:
            length = round(12 * tau.s[0, 2].item())
            assert len(tau.s) == len(tau.a) == len(tau.r) == length in (2, 12)
            assert (tau.s[:, 0] == tau.s_end[0]).all() and tau.s[:, 1].tolist() == list(range(length))
            assert tau.r.tolist() == list(range(1, length + 1)) and tau.s_end[1] == length
            assert tau.terminal == (length == 2)


def share_of_long_episodes(episodes: Episodes) -> float:
    lengths = [len(tau.r) for batch in batches(episodes, 4, 150) for tau in batch]
    return float(np.mean([length == 12 for length in lengths]))


class FirstToEnd(Episodes):
    """The mistake: the first N episodes to end are used, however many were started."""

    def add(self, *step):
        self.started = -math.inf
        super().add(*step)
        del self.ended[self.wanted :]


def test_episodes_of_all_lengths_have_the_same_chance():
    """Of 1200 episodes half are long, give or take 0.014; of the first to end fewer are."""
    assert share_of_long_episodes(Episodes(8, 4, "cpu")) == pytest.approx(0.5, abs=0.05)
    assert share_of_long_episodes(FirstToEnd(8, 4, "cpu")) < 0.4


def test_an_unfinished_batch_is_saved_and_restored():
    torch.manual_seed(0)
    episodes, other, envs = Episodes(6, 2, "cpu"), Episodes(6, 2, "cpu"), VectorEnvs("Lottery-v0", 2, seed=0)
    while len(episodes.ended) < 3:
        step(envs, episodes)
    other.load_state_dict(copy.deepcopy(episodes.state_dict()))
    state, results = envs.state_dict(), []
    for part in (episodes, other):
        torch.manual_seed(1)
        envs.load_state_dict(state)
        while not part.complete():
            step(envs, part)
        results.append(part.take())
    for tau, same in zip(*results, strict=True):
        assert torch.equal(tau.a, same.a) and torch.equal(tau.r, same.r) and tau.terminal == same.terminal
        assert torch.equal(tau.s[:, 1:], same.s[:, 1:])  # the first column numbers all episodes of the process


def test_an_episode_that_a_resume_had_to_give_up_is_replaced():
    episodes = Episodes(2, 1, "cpu")
    for t, first, done in ((0, True, False), (1, False, False), (10, True, False), (11, False, True), (20, True, True)):
        assert not episodes.complete()
        s, s2, done = torch.tensor([[float(t)]]), np.float32([[t + 1]]), np.array([done])
        episodes.add(np.array([first]), s, torch.zeros(1), np.float32([t]), s2, done, done)
    assert [tau.r.tolist() for tau in episodes.take()] == [[10, 11], [20]]


# ---- learning --------------------------------------------------------------------------------------------------------


def settings(folder, env_id: str, total: int, **changes) -> Args:
    run = RunArgs(device="cpu", compile=False, run_dir=str(folder), eval_every=10**9)
    return Args(env_id=env_id, total_timesteps=total, run=run, **changes)


def match(folder, env_id: str) -> float:
    """Return after training on one of the Match tasks; the best constant action gets -0.8 and -0.5."""
    batch = {"num_envs": 8, "episodes_per_update": 32, "learning_rate": 1e-2}
    return final_return(reinforce.train(settings(folder, env_id, 6400, **batch)))


@pytest.mark.parametrize("env_id", ["tiny_envs:Match-v0", "tiny_envs:DiscreteMatch-v0"])
def test_learns_a_tiny_environment_in_seconds(tmp_path, env_id):
    assert match(tmp_path / "run", env_id) > -0.25


def test_the_learning_test_notices_a_wrong_sign(tmp_path, monkeypatch):
    right = REINFORCE.policy_gradient
    monkeypatch.setattr(REINFORCE, "policy_gradient", lambda *x: (-right(*x)[0], right(*x)[1]))
    assert match(tmp_path / "run", "tiny_envs:DiscreteMatch-v0") < -0.5


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_every_estimator_learns(estimator, baseline):
    """Episodes of two steps, in which the actions should follow the sign of s_0: chance gets 1, the best 2."""
    a = agent(Discrete(2), estimator=estimator, baseline=baseline, learning_rate=1e-2)
    for _ in range(60):
        s = torch.rand(16, 2, 3) * 2 - 1
        actions = a.explore(s.flatten(0, 1)).view(16, 2)
        r = (actions == (s[..., 0] > 0)).float()
        a.update([Trajectory(*tau, True) for tau in zip(s, actions, r, s[:, 0], strict=True)], 0.0)
    assert r.sum(1).mean() > 1.6


def test_learns_cart_pole(tmp_path):
    assert final_return(reinforce.train(settings(tmp_path / "run", "CartPole-v1", 50_000))) >= 450


def test_an_unfinished_last_batch_is_not_learned_from(tmp_path):
    """And a run ends exactly where it was told to."""
    folder = reinforce.train(settings(tmp_path / "run", "Lottery-v0", 200, episodes_per_update=100))
    saved = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert saved["envs"]["steps"] == 200 and saved["agent"]["obs_stats.count"] == 0
    assert len(saved["episodes"]["columns"][0]) == 50
