"""PPO's policies, advantages, loss and update against numbers worked by hand, and what it learns."""

from __future__ import annotations

import math

import numpy as np
import ppo
import pytest
import torch
from conftest import final_return
from gymnasium.spaces import Box, Discrete
from ppo import PPO, Args, Rollout, RunArgs, gae
from torch import nn

OBSERVATIONS = Box(-np.inf, np.inf, (3,), np.float32)
ACTIONS = Box(np.float32([-1, 0]), np.float32([1, 4]))  # half ranges 1 and 2, centres 0 and 2


def agent(actions=ACTIONS, **settings) -> PPO:
    torch.manual_seed(0)
    return PPO(OBSERVATIONS, actions, Args(run=RunArgs(device="cpu", compile=False), **settings))


def rollout(a: PPO, t: int = 16, n: int = 8) -> Rollout:
    torch.manual_seed(1)
    s = torch.randn(t, n, 3)
    actions = torch.stack([a.explore(row) for row in s])
    done = (torch.rand(t, n) < 0.2).float()
    return Rollout(s, actions, torch.randn(t, n), torch.randn(t, n, 3), done * (torch.rand(t, n) < 0.5), done)


# ---- advantages ------------------------------------------------------------------------------------------------------

# gamma = lambda = 0.5, r = 1 1 3, V(s) = 1 2 3, V(s2) = 2 3 4, so delta = 1, 0.5, 2 where nothing terminates.
# The episode's state at its second step decides: (terminal, done) -> A by hand
GAE_TRUTH_TABLE = {
    "goes on": (0, 0, [1 + 0.25 * (0.5 + 0.25 * 2), 0.5 + 0.25 * 2, 2]),
    "truncated": (0, 1, [1 + 0.25 * 0.5, 0.5, 2]),  # bootstrapped with V(s2) = 3, cut
    "terminated": (1, 1, [1 + 0.25 * -1, 1 - 2, 2]),  # no bootstrap, cut
}


@pytest.mark.parametrize("case", GAE_TRUTH_TABLE)
def test_gae_truth_table(case):
    terminal, done, wanted = GAE_TRUTH_TABLE[case]
    column = lambda *x: torch.tensor(x, dtype=torch.float32).unsqueeze(-1)  # noqa: E731
    adv = gae(
        column(1, 1, 3), column(1, 2, 3), column(2, 3, 4), column(0, terminal, 0), column(0, done, 0), 0.5, 0.5
    )  # fmt: skip
    torch.testing.assert_close(adv, column(*wanted))


def test_gae_extremes_are_td_error_and_monte_carlo():
    torch.manual_seed(0)
    r, v, v2 = torch.randn(3, 5, 2)
    v2[:-1] = v[1:]
    zero = torch.zeros(5, 2)
    torch.testing.assert_close(gae(r, v, v2, zero, zero, 0.9, 0.0), r + 0.9 * v2 - v)
    weights = 0.9 ** torch.arange(5.0)
    monte_carlo = (weights[:, None] * r).sum(0) + 0.9**5 * v2[-1] - v[0]
    torch.testing.assert_close(gae(r, v, v2, zero, zero, 0.9, 1.0)[0], monte_carlo)


# ---- policies --------------------------------------------------------------------------------------------------------


def test_gaussian_log_prob_and_entropy():
    a = agent()
    with torch.no_grad():
        a.actor.log_std.copy_(torch.tensor([-0.5, 0.3]))
    s, x = torch.randn(6, 3), torch.randn(6, 2)
    reference = torch.distributions.Normal(a.actor.mu(s), a.actor.log_std.exp())
    logp, entropy = a.actor.log_prob(s, x)
    torch.testing.assert_close(logp, reference.log_prob(x).sum(-1))
    torch.testing.assert_close(entropy, reference.entropy().sum(-1))


def test_softmax_log_prob_and_entropy():
    a = agent(Discrete(4, start=2))
    s, x = torch.randn(6, 3), torch.tensor([0, 1, 2, 3, 0, 1])
    reference = torch.distributions.Categorical(logits=a.actor.logits(s))
    logp, entropy = a.actor.log_prob(s, x)
    torch.testing.assert_close(logp, reference.log_prob(x))
    torch.testing.assert_close(entropy, reference.entropy())
    assert a.actor.to_env(x).tolist() == [2, 3, 4, 5, 2, 3]


def test_samples_follow_the_policy():
    a = agent()
    x = a.actor.sample(torch.zeros(50_000, 3))
    torch.testing.assert_close(x.mean(0), a.actor.mu(torch.zeros(3)), atol=0.02, rtol=0)
    torch.testing.assert_close(x.std(0), torch.full((2,), math.exp(-0.5)), atol=0.02, rtol=0)
    d = agent(Discrete(3))
    with torch.no_grad():
        d.actor.logits[4].bias.copy_(torch.tensor([0.0, math.log(2), math.log(5)]))
    shares = torch.bincount(d.actor.sample(torch.zeros(50_000, 3))) / 50_000
    torch.testing.assert_close(shares, torch.tensor([1 / 8, 2 / 8, 5 / 8]), atol=0.02, rtol=0)
    assert d.act(torch.zeros(1, 3)).item() == 2


def test_actions_reach_the_environment_clipped_and_scaled_per_dimension():
    a = agent()
    sent = a.actor.to_env(torch.tensor([[0.0, 0.0], [0.5, -0.5], [7.0, -7.0]]))
    torch.testing.assert_close(sent, torch.tensor([[0.0, 2.0], [0.5, 1.0], [1.0, 0.0]]))
    unbounded = agent(Box(np.float32([-np.inf, 0]), np.float32([np.inf, 4])))
    torch.testing.assert_close(unbounded.actor.to_env(torch.tensor([[9.0, 9.0]])), torch.tensor([[9.0, 4.0]]))


# ---- loss ------------------------------------------------------------------------------------------------------------


class Fixed(nn.Module):
    """A policy whose log-probabilities and entropy are given."""

    def __init__(self, logp: list[float], entropy: float):
        super().__init__()
        self.logp, self.entropy = torch.tensor(logp, requires_grad=True), torch.tensor(entropy)

    def log_prob(self, s, a):
        return self.logp, self.entropy.expand(len(self.logp))


def test_loss_worked_by_hand():
    a = agent(clip_coef=0.2, vf_coef=0.5, ent_coef=0.1)
    a.actor = Fixed([math.log(x) for x in (1.5, 0.5, 1.5, 0.5)], 2.0)
    a.critic = nn.Linear(3, 1)
    nn.init.zeros_(a.critic.weight)
    nn.init.constant_(a.critic.bias, 1.0)
    k = 0.75**0.5  # four advantages of +-k have mean 0 and standard deviation 1: normalising leaves them
    adv = torch.tensor([k, k, -k, -k])
    loss, info = a.loss(torch.zeros(4, 3), None, torch.zeros(4), adv, torch.tensor([1.0, 2.0, 3.0, 1.0]))
    # min(ratio A, clip(ratio) A) = 1.2 k, 0.5 k, -1.5 k, -0.8 k;  V - target = 0, -1, -2, 0
    l_clip, l_vf = (1.2 + 0.5 - 1.5 - 0.8) * k / 4, 5 / 4
    assert info["policy_loss"].item() == pytest.approx(-l_clip, abs=1e-6)
    assert info["value_loss"].item() == pytest.approx(l_vf)
    assert loss.item() == pytest.approx(-(l_clip - 0.5 * l_vf + 0.1 * 2.0), abs=1e-6)
    assert info["clip_fraction"].item() == 1.0
    kl = (0.5 - math.log(1.5) + -0.5 - math.log(0.5)) / 2
    assert info["kl"].item() == pytest.approx(kl, abs=1e-6)
    loss.backward()
    # the clipped samples (first and last) push no further, the others still do: d loss / d logp = - ratio A / 4
    torch.testing.assert_close(a.actor.logp.grad, torch.tensor([0.0, -0.5 * k / 4, 1.5 * k / 4, 0.0]))


def test_advantages_are_normalised_per_minibatch_and_one_alone_is_left():
    a = agent(vf_coef=0.0)
    s, actions = torch.randn(6, 3), torch.randn(6, 2)
    logp_old = torch.randn(6)
    one, two = (
        a.loss(s, actions, logp_old, adv, torch.zeros(6))[0] for adv in (torch.arange(6.0), 7 * torch.arange(6.0) - 3)
    )
    assert one.item() == pytest.approx(two.item(), rel=1e-5)
    ratio = (a.actor.log_prob(s[:1], actions[:1])[0] - logp_old[:1]).exp().item()
    single = a.loss(s[:1], actions[:1], logp_old[:1], torch.tensor([2.0]), torch.zeros(1))[1]["policy_loss"]
    assert single.item() == pytest.approx(-min(2 * ratio, 2 * min(max(ratio, 0.8), 1.2)))


@pytest.fixture
def double():
    """float64 everywhere, so that finite differences are exact enough."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("space", [ACTIONS, Discrete(3)], ids=["continuous", "discrete"])
def test_gradients_against_finite_differences(double, space):
    a = agent(space, ent_coef=0.01, max_grad_norm=1e9)
    s, adv, v_target = torch.randn(8, 3), torch.randn(8), torch.randn(8)
    actions = a.actor.sample(s).detach()
    logp_old = a.actor.log_prob(s, actions)[0].detach() + 0.05 * torch.randn(8)
    arguments = (s, actions, logp_old, adv, v_target)
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


def test_gradients_are_scaled_down_to_the_maximal_norm():
    free, clipped = agent(max_grad_norm=1e9), agent(max_grad_norm=0.01)
    arguments = torch.randn(8, 3), torch.randn(8, 2), torch.randn(8), torch.randn(8), torch.randn(8)
    g, _, norm = free.gradient(*arguments)
    h, _, norm_before = clipped.gradient(*arguments)
    assert norm.item() == pytest.approx(norm_before.item()) == pytest.approx(g.norm().item())
    assert h.norm().item() == pytest.approx(0.01, rel=1e-3)
    torch.testing.assert_close(h, g * 0.01 / norm, rtol=1e-3, atol=1e-7)


def test_compiled_gradients_equal_eager_ones():
    torch._dynamo.config.trace_autograd_ops = True
    eager, compiled = agent(), agent()
    compiled.gradient = ppo.gradient_function(compiled.loss, compiled, RunArgs(compile=True), 0.5)
    arguments = torch.randn(16, 3), torch.randn(16, 2), torch.randn(16), torch.randn(16), torch.randn(16)
    x, y = eager.gradient(*arguments)[0], compiled.gradient(*arguments)[0]
    assert x.abs().max() > 1e-3
    torch.testing.assert_close(x, y, atol=1e-6, rtol=1e-4)


def test_one_vector_moves_all_parameters_and_is_restored_with_them():
    a, b = agent(), agent()
    theta = a.optimizer.param_groups[0]["params"][0]
    assert len(theta) == sum(p.numel() for p in a.parameters())
    ppo.descend(a.optimizer, torch.ones_like(theta))
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q - 3e-4)  # Adam's first step is the learning rate against the gradient's sign
    b.load_state_dict(a.state_dict())
    assert torch.equal(b.optimizer.param_groups[0]["params"][0], theta)


# ---- update ----------------------------------------------------------------------------------------------------------


def test_first_step_starts_at_ratio_one_even_though_statistics_change():
    a = agent(update_epochs=1, num_minibatches=1, num_envs=8, num_steps=16)
    for _ in range(3):  # the observation statistics differ at each of these
        info = a.update(rollout(a), 0.0)
        assert info["kl"].item() == pytest.approx(0, abs=1e-6)
        assert info["clip_fraction"].item() == 0
    assert a.obs_stats.count.item() == 3 * 16 * 8


def test_every_sample_is_used_once_an_epoch_the_smaller_last_minibatch_too():
    a = agent(update_epochs=2, num_minibatches=3, num_envs=8, num_steps=16)  # 128 samples: 43, 43, 42
    seen = []
    gradient = a.gradient
    a.gradient = lambda s, *rest: seen.append(s) or gradient(s, *rest)
    data = rollout(a)
    assert a.update(data, 0.0)["gradient_steps"] == 6
    assert [len(s) for s in seen] == [43, 43, 42] * 2
    for epoch in (seen[:3], seen[3:]):
        torch.testing.assert_close(
            torch.cat(epoch).sort(0).values, a_normalised(data).sort(0).values, atol=1e-6, rtol=1e-6
        )
    assert not torch.equal(seen[0], seen[3])


def a_normalised(data: Rollout) -> torch.Tensor:
    """The observations of a first update: statistics start at mean 0 and standard deviation 1."""
    return data.s.flatten(0, 1).clamp(-10, 10)


def test_advantages_are_recomputed_every_epoch_unless_told_otherwise():
    for recompute, wanted in ((True, 4), (False, 1)):
        a, calls = agent(update_epochs=4, recompute_advantages=recompute), []
        advantages = a.advantages
        a.advantages = lambda *x, f=advantages, seen=calls: seen.append(1) or f(*x)
        a.update(rollout(a), 0.0)
        assert len(calls) == wanted


def test_target_kl_stops_before_the_step_and_counts_only_steps_made():
    a = agent(target_kl=1e-4, learning_rate=1e-2, num_minibatches=4, num_envs=8, num_steps=16, anneal_lr=False)
    kls = []
    gradient = a.gradient

    def spy(*minibatch):
        result = gradient(*minibatch)
        kls.append((result[1]["kl"].item(), [p.detach().clone() for p in a.parameters()]))
        return result

    a.gradient = spy
    info = a.update(rollout(a), 0.0)
    assert kls[-1][0] > 1e-4 and all(kl <= 1e-4 for kl, _ in kls[:-1])
    assert info["gradient_steps"] == len(kls) - 1 < 40
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), kls[-1][1], strict=True))


def test_learning_rate_falls_linearly_to_zero():
    a = agent(learning_rate=1e-3, update_epochs=1, num_minibatches=4)
    for progress, wanted in ((0.0, 1e-3), (0.75, 0.25e-3), (1.0, 0.0)):
        assert a.update(rollout(a), progress)["learning_rate"] == pytest.approx(wanted)
        assert a.optimizer.param_groups[0]["lr"] == pytest.approx(wanted)


def test_rewards_are_scaled_by_the_std_of_a_return_that_restarts_with_every_episode():
    a = agent(gamma=0.5, num_envs=2)
    r = torch.tensor([[1.0, 2.0], [3.0, -1.0], [1.0, 1.0]])
    done = torch.tensor([[0.0, 1.0], [0.0, 0.0], [1.0, 0.0]])  # done, not terminal: truncation restarts it as well
    scaled = a.scale_rewards(r, done)
    returns = [1, 2, 3.5, -1, 2.75, 0.5]  # 1, 0.5 * 1 + 3, 0.5 * 3.5 + 1;  2, then anew: -1, 0.5 * -1 + 1
    torch.testing.assert_close(scaled, r / np.std(returns), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(a.discounted_return, torch.tensor([0.0, 0.5]))


def test_running_moments_are_those_of_all_rows():
    x = torch.randn(100, 3) * torch.tensor([1.0, 5.0, 0.1]) + torch.tensor([0.0, 100.0, -3.0])
    moments = ppo.RunningMoments(3)
    for part in x.split([1, 60, 39]):
        moments.update(part)
    torch.testing.assert_close(moments.mean, x.mean(0))
    torch.testing.assert_close(moments.var, x.var(0, correction=0), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(moments.standardise(x).std(0, correction=0), torch.ones(3), rtol=1e-3, atol=0)


def test_a_rollout_of_one_step_is_learned_from():
    a = agent(num_envs=1, num_steps=64, num_minibatches=2)
    info = a.update(rollout(a, t=1, n=1), 0.0)
    assert all(math.isfinite(float(value)) for value in info.values())


def test_a_policy_without_normaliser_is_saved_as_such():
    a, b = agent(norm_obs=False), agent(norm_obs=False)
    a.update(rollout(a), 0.0)
    assert a.obs_stats.count == 0
    b.load_state_dict(a.state_dict())
    s = 50 * torch.randn(5, 3)
    assert torch.equal(a.normalise(s), s) and torch.equal(a.act(s), b.act(s))


def test_a_policy_loads_whatever_the_number_of_environments():
    a, b = agent(num_envs=8), agent(num_envs=1)
    a.update(rollout(a), 0.0)
    b.load_state_dict(a.state_dict())
    s = torch.randn(5, 3)
    assert torch.equal(a.act(s), b.act(s))


def test_float64_action_spaces_are_served_in_float32():
    a = agent(Box(np.float64([-1, 0]), np.float64([1, 4]), dtype=np.float64))
    assert a.act(torch.zeros(1, 3)).dtype == torch.float32


def test_the_normaliser_is_part_of_the_saved_policy():
    a, b = agent(), agent()
    a.update(rollout(a), 0.0)
    b.load_state_dict(a.state_dict())
    s = torch.randn(5, 3) * 4 + 2
    assert torch.equal(a.act(s), b.act(s))
    b.obs_stats.mean += 1
    assert not torch.equal(a.act(s), b.act(s))


# ---- learning --------------------------------------------------------------------------------------------------------


def settings(folder, env_id: str, total: int, **changes) -> Args:
    run = RunArgs(device="cpu", compile=False, run_dir=str(folder), eval_every=10**9)
    return Args(env_id=env_id, total_timesteps=total, run=run, **changes)


def chain_value(tmp_path, monkeypatch, env_id: str, truncation_is_termination: bool) -> float:
    """Value that PPO's critic learns for the endless chain (gamma 0.8, so 5), optionally with the classical mistake."""
    if truncation_is_termination:
        collect = ppo.collect
        monkeypatch.setattr(ppo, "collect", lambda *x: (data := collect(*x))._replace(terminal=data.done))
    s = settings(
        tmp_path / "run",
        env_id,
        4096,
        gamma=0.8,
        norm_reward=False,
        num_steps=32,
        num_minibatches=4,
        learning_rate=3e-3,
    )
    folder = ppo.train(s)
    state = torch.load(folder / "checkpoint.pt", weights_only=True)["agent"]
    envs = ppo.VectorEnvs(env_id, 1, 0)
    a = PPO(envs.observation_space, envs.action_space, s)
    a.load_state_dict(state)
    return a.critic(a.normalise(torch.ones(1, 1))).item()


@pytest.mark.parametrize("env_id", ["tiny_envs:Chain-v0", "tiny_envs:DiscreteChain-v0"])
def test_endless_chain_is_worth_one_over_one_minus_gamma(tmp_path, monkeypatch, env_id):
    assert chain_value(tmp_path, monkeypatch, env_id, truncation_is_termination=False) == pytest.approx(5, abs=0.3)


def test_the_chain_test_notices_truncation_stored_as_termination(tmp_path, monkeypatch):
    assert chain_value(tmp_path, monkeypatch, "tiny_envs:Chain-v0", truncation_is_termination=True) < 4


@pytest.mark.parametrize("env_id", ["tiny_envs:Match-v0", "tiny_envs:DiscreteMatch-v0"])
def test_learns_a_tiny_environment_in_seconds(tmp_path, env_id):
    folder = ppo.train(settings(tmp_path / "run", env_id, 12_288, num_steps=64, num_minibatches=8, learning_rate=3e-3))
    assert final_return(folder) > -0.2  # continuous: the best constant action gets about -0.8, discrete: -0.5


def test_learns_the_inverted_pendulum(tmp_path):
    folder = ppo.train(settings(tmp_path / "run", "InvertedPendulum-v5", 40_000))
    assert final_return(folder) >= 900


def test_learns_the_cart_pole(tmp_path):
    folder = ppo.train(settings(tmp_path / "run", "CartPole-v1", 50_000))
    assert final_return(folder) >= 450
