"""What the on-policy algorithms have in common: policies, normalisers, advantages, rollouts, and that they learn."""

import math

import numpy as np
import pytest
import torch

from conftest import (  # isort: skip
    ACTIONS, AGENTS, FIXED_ROLLOUTS, OBSERVATIONS, ON_POLICY, assert_gradients, by_space, load, make_agent, rollout,
    train,
)  # fmt: skip
from gymnasium.spaces import Box

CONTINUOUS, DISCRETE = ACTIONS.values()
on_policy = pytest.mark.parametrize("algorithm", ON_POLICY)
actor_critic = pytest.mark.parametrize("algorithm", FIXED_ROLLOUTS)


def update(agent, progress: float = 0.0, **changes):
    """agent.update on a random rollout; for REINFORCE its rows are episodes that all have one length."""
    names = ("s", "a", "r", "s2", "terminal", "done")
    s, a, r, s2, terminal, done = (changes.get(k, x) for k, x in zip(names, rollout(agent), strict=True))
    if isinstance(agent, load("reinforce").REINFORCE):
        return agent.update(s, a, r, torch.ones_like(r), s2[-1], terminal[-1], progress)
    return agent.update(s, a, r, s2, terminal, done, progress)


@on_policy
@by_space
def test_log_prob_and_entropy_are_those_of_torch_distributions(algorithm, space):
    actor, s = make_agent(algorithm, OBSERVATIONS, space).actor, torch.randn(6, 3)
    if space is DISCRETE:
        a, reference = torch.tensor([0, 1, 2, 2, 0, 1]), torch.distributions.Categorical(logits=actor.logits(s))
    else:
        actor.log_std.data = torch.tensor([-0.5, 0.3])
        normal = torch.distributions.Normal(actor.mu(s), torch.tensor([-0.5, 0.3]).exp())
        a, reference = torch.randn(6, 2), torch.distributions.Independent(normal, 1)
    logp, entropy = actor.log_prob(s, a)
    torch.testing.assert_close(logp, reference.log_prob(a))
    torch.testing.assert_close(entropy, reference.entropy())


@on_policy
def test_explore_samples_the_policy_and_act_is_its_mode_in_environment_units(algorithm):
    agent, s = make_agent(algorithm, OBSERVATIONS, CONTINUOUS), torch.zeros(20_000, 3)
    agent.actor.mu[4].bias.data = torch.tensor([0.5, -0.5])
    x = agent.explore(s)
    torch.testing.assert_close(x.mean(0), torch.tensor([0.5, -0.5]), atol=0.02, rtol=0)
    torch.testing.assert_close(x.std(0), torch.full((2,), math.exp(-0.5)), atol=0.02, rtol=0)
    torch.testing.assert_close(agent.act(s[:1]), torch.tensor([[0.5, 1.0]]))  # 2 + 2 * -0.5
    agent = make_agent(algorithm, OBSERVATIONS, DISCRETE)
    agent.actor.logits[4].bias.data = torch.tensor([0.0, math.log(5), math.log(2)])
    shares = torch.bincount(agent.explore(s)) / len(s)
    torch.testing.assert_close(shares, torch.tensor([1 / 8, 5 / 8, 2 / 8]), atol=0.02, rtol=0)
    assert agent.act(s[:1]).tolist() == [3]  # the space starts at 2


@on_policy
def test_actions_are_clipped_and_scaled_per_dimension(algorithm):
    actor = make_agent(algorithm, OBSERVATIONS, CONTINUOUS).actor
    sent = actor.to_env(torch.tensor([[0.0, 0.0], [0.5, -0.5], [7.0, -7.0]]))
    torch.testing.assert_close(sent, torch.tensor([[0.0, 2.0], [0.5, 1.0], [1.0, 0.0]]))
    half = make_agent(algorithm, OBSERVATIONS, Box(np.float32([-np.inf, 0]), np.float32([np.inf, 4])))
    torch.testing.assert_close(half.actor.to_env(torch.tensor([[9.0, 9.0]])), torch.tensor([[9.0, 4.0]]))


@on_policy
def test_layers_start_orthogonal_with_the_right_gains(algorithm):
    agent = make_agent(algorithm, Box(-1, 1, (64,), np.float32), Box(-1, 1, (64,), np.float32), log_std_init=-1.5)
    for layers, gains in ((agent.actor.mu[::2], (2, 2, 1e-4)), (agent.critic[::2], (2, 2, 1))):
        for layer, gain in zip(layers, gains, strict=True):  # W W^T = gain^2
            torch.testing.assert_close(layer.weight @ layer.weight.T, gain * torch.eye(len(layer.weight)))
            assert not layer.bias.any()
    assert (agent.actor.log_std == -1.5).all()


@on_policy
def test_running_moments_are_those_of_all_rows(algorithm):
    x = torch.randn(100, 3) * torch.tensor([1.0, 5.0, 0.1]) + torch.tensor([0.0, 100.0, -3.0])
    moments = load(algorithm).RunningMoments(3)
    for part in x.split([1, 60, 39]):
        moments.update(part)
    torch.testing.assert_close(moments.mean, x.mean(0))
    torch.testing.assert_close(moments.var, x.var(0, correction=0), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(moments.std, x.std(0, correction=0), rtol=1e-3, atol=1e-3)
    small = load(algorithm).RunningMoments(3)  # what it starts from leaves no rounding error behind
    small.update(1e-4 * x)
    torch.testing.assert_close(small.var, (1e-4 * x).var(0, correction=0), rtol=1e-4, atol=0)


@on_policy
def test_observations_are_normalised_by_statistics_that_change_after_the_update_alone(algorithm):
    agent, raw = (make_agent(algorithm, OBSERVATIONS, CONTINUOUS, num_envs=8, norm_obs=x) for x in (True, False))
    seen, s = set(), torch.tensor([[3.0, 1.0, 99.0]])
    for net in (agent.actor.mu, agent.critic):
        net.register_forward_pre_hook(lambda *_: seen.add(agent.obs_stats.mean[0].item()))
    for a in (agent, raw):
        update(a, s=5 + torch.randn(16, 8, 3))
    assert seen == {0} and (agent.obs_stats.mean - 5).abs().max() < 0.5
    assert agent.obs_stats.count == 128 and raw.obs_stats.count == 0 and torch.equal(raw.normalise(s), s)
    agent.obs_stats.mean.fill_(1)
    agent.obs_stats.std.fill_(2)
    torch.testing.assert_close(agent.normalise(s), torch.tensor([[1.0, 0.0, 10.0]]))
    torch.testing.assert_close(agent.act(s), agent.actor.to_env(agent.actor.mu(torch.tensor([[1.0, 0.0, 10.0]]))))


@actor_critic
def test_rewards_are_scaled_by_the_std_of_a_return_that_restarts_with_every_episode(algorithm):
    agent = make_agent(algorithm, OBSERVATIONS, CONTINUOUS, gamma=0.5, num_envs=2)
    r = torch.tensor([[1.0, 2.0], [3.0, -1.0], [1.0, 1.0]])
    done = torch.tensor([[0.0, 1.0], [0.0, 0.0], [1.0, 0.0]])  # done, not terminal: truncation restarts it as well
    returns = [1, 2, 3.5, -1, 2.75, 0.5]  # 1, 0.5 * 1 + 3, 0.5 * 3.5 + 1;  2, then anew: -1, 0.5 * -1 + 1
    torch.testing.assert_close(agent.scale_rewards(r, done), r / np.std(returns), atol=1e-5, rtol=1e-5)
    returns += [1, 1.25]  # the next rollout goes on: anew, 0.5 * 0.5 + 1
    scaled = agent.scale_rewards(torch.tensor([[1.0, 1.0]]), torch.zeros(1, 2))
    torch.testing.assert_close(scaled, torch.ones(1, 2) / np.std(returns), atol=1e-5, rtol=1e-5)
    assert agent.scale_rewards(torch.tensor([[1e6, -1e6]]), torch.zeros(1, 2)).abs().max() <= 10
    agent = make_agent(algorithm, OBSERVATIONS, CONTINUOUS, norm_reward=False, num_envs=2)
    assert torch.equal(agent.scale_rewards(r, done), r)


@pytest.mark.parametrize("lam", [0.25, 1.0, 0.0])
@actor_critic
def test_advantages_worked_by_hand(algorithm, lam):
    """gamma = 0.5, r = 1 1 3, V(s) = 1 2 3, V(s2) = 2 3 4, so delta = 1, 0.5, 2 where nothing terminates.

    Three environments side by side: at its second step an episode goes on, is truncated, terminates.
    """
    agent, c = make_agent(algorithm, OBSERVATIONS, CONTINUOUS, gamma=0.5, gae_lambda=lam), 0.5 * lam
    agent.critic.forward = lambda s: s[..., :1]  # V(s) is the first number of s
    columns = lambda *x: torch.tensor(x).float().unsqueeze(-1).expand(-1, 3)  # noqa: E731
    s, s2 = (columns(*x).unsqueeze(-1).expand(-1, -1, 3) for x in ((1, 2, 3), (2, 3, 4)))
    terminal, done = torch.zeros(2, 3, 3)
    terminal[1, 2] = done[1, 1] = done[1, 2] = 1
    adv, v_target = agent.advantages(s, columns(1, 1, 3), s2, terminal, done)
    goes_on = [1 + c * (0.5 + c * 2), 0.5 + c * 2, 2]
    truncated, terminated = [1 + c * 0.5, 0.5, 2], [1 + c * -1, 1 - 2, 2]  # bootstrapped with V(s2) = 3 or not, cut
    torch.testing.assert_close(adv, torch.tensor([goes_on, truncated, terminated]).T)
    torch.testing.assert_close(v_target, adv + columns(1, 2, 3))


@actor_critic
def test_explained_variance(algorithm):
    """Before the update: 1 - Var(V^targ - V) / Var(V^targ)."""
    agent = make_agent(algorithm, OBSERVATIONS, CONTINUOUS, norm_obs=False, norm_reward=False, learning_rate=0.1)
    s, _, r, s2, terminal, done = rollout(agent)
    target, v = agent.advantages(s, r, s2, terminal, done)[1], agent.critic(s).squeeze(-1).detach()
    wanted = 1 - (target - v).var(correction=0) / target.var(correction=0)
    assert update(agent)["explained_variance"].item() == pytest.approx(wanted.item(), rel=1e-4)


def gradient(agent):
    """A random batch, the loss on it, and what a step (learning rate 0) gives the optimiser: gradients, norm."""
    torch.manual_seed(2)
    s, adv, v_target, noise = torch.randn(8, 3), *torch.randn(3, 8)
    a = agent.explore(s)
    logp_old = agent.actor.log_prob(s, a)[0].detach() + 0.05 * noise
    batches = {"A2C": (s, a, adv, v_target), "PPO": (s, a, logp_old, adv, v_target)}
    batch = batches.get(type(agent).__name__, (s, v_target))
    step, loss = (agent.step, agent.loss) if len(batch) > 2 else (agent.value_step, agent.value_loss)
    norm = step(*batch)["grad_norm" if len(batch) > 2 else "value_grad_norm"]
    trained = agent.parameters() if len(batch) > 2 else agent.critic.parameters()
    return {p: p.grad for p in trained}, norm.item(), lambda: loss(*batch)[0].item()


@by_space
@pytest.mark.parametrize("algorithm", [*ON_POLICY, "a2c shared"])
def test_gradients_against_finite_differences(double, algorithm, space):
    whole = {"ent_coef": 0.01, "max_grad_norm": 1e9} if algorithm[:3] in ("ppo", "a2c") else {}
    changes = whole | ({"shared_network": True} if "shared" in algorithm else {})
    agent = make_agent(algorithm.removesuffix(" shared"), OBSERVATIONS, space, learning_rate=0.0, **changes)
    grads, norm, loss = gradient(agent)
    assert norm == pytest.approx(torch.cat([g.flatten() for g in grads.values()]).norm().item())
    assert_gradients(grads, loss)


@pytest.mark.parametrize("algorithm", ["a2c", "ppo"])
def test_long_gradients_are_scaled_down_to_the_maximal_norm_and_short_ones_left(algorithm):
    bounds = {"max_grad_norm": 1e9}, {"max_grad_norm": 0.01}, {"max_grad_norm": 100.0}
    found = [gradient(make_agent(algorithm, OBSERVATIONS, CONTINUOUS, learning_rate=0.0, **x)) for x in bounds]
    free, clipped, short = (torch.cat([g.flatten() for g in x[0].values()]) for x in found)
    norm = free.norm().item()
    assert [x[1] for x in found] == pytest.approx([norm] * 3) and 0.01 < norm < 100
    torch.testing.assert_close(clipped, free * 0.01 / norm, rtol=1e-3, atol=1e-7)
    torch.testing.assert_close(short, free)


@on_policy
def test_learning_rate_falls_linearly_to_zero_unless_told_otherwise(algorithm):
    for anneal, progress, wanted in ((True, 0.0, 1e-3), (True, 0.75, 0.25e-3), (False, 0.75, 1e-3), (True, 1.0, 0.0)):
        agent = make_agent(algorithm, OBSERVATIONS, CONTINUOUS, learning_rate=1e-3, anneal_lr=anneal)
        before = [p.clone() for p in agent.critic.parameters()]
        assert update(agent, progress)["learning_rate"] == pytest.approx(wanted)
        optimizers = [agent.optimizer, getattr(agent, "value_optimizer", agent.optimizer)]
        assert all(x.param_groups[0]["lr"] == pytest.approx(wanted) for x in optimizers)
        assert all(map(torch.equal, before, agent.critic.parameters())) == (wanted == 0)


@on_policy
@by_space
def test_a_rollout_of_one_step_is_learned_from(algorithm, space):
    standardised = {"norm_adv": True} if hasattr(load(algorithm).Args, "norm_adv") else {}
    agent = make_agent(algorithm, OBSERVATIONS, space, num_envs=1, **standardised)
    s, a, r, s2, terminal, done = rollout(agent, 1, 1)
    info = update(agent, s=s, a=a, r=r, s2=s2, terminal=terminal, done=done)
    assert all(math.isfinite(float(value)) for value in info.values()) and set(info) == set(agent.metrics)


@actor_critic
@pytest.mark.parametrize("env_id", ["tiny_envs:Trace-v0", "tiny_envs:DiscreteTrace-v0"])
def test_rollouts_hold_what_happened(algorithm, env_id):
    module = load(algorithm)
    envs = module.VectorEnvs(env_id, 2)
    envs.reset([5, 6])
    agent, taken = make_agent(algorithm, envs.observation_space, envs.action_space), []
    explore = agent.explore
    agent.explore = lambda s: taken.append(explore(s)) or taken[-1]
    state = {k: v.clone() for k, v in agent.state_dict().items()}
    envs.cut_at = 2 * 40
    s, a, r, s2, terminal, done = rows = module.collect(agent, envs, 40, "cpu")
    assert all(x.shape[:2] == (40, 2) and x.dtype == torch.float32 for x in rows if x is not a)
    assert torch.equal(a, torch.stack(taken)) and (a[:, 0] != a[:, 1]).any()
    sent = a + 2 if a.ndim == 2 else (2 + 3 * a).clamp(-1, 5).squeeze(-1)
    assert a.ndim == 2 or (a.abs() > 1).any()  # kept as drawn, sent clipped
    for i in range(2):
        k, j = 5 + i, 0
        for t in range(40):
            assert s[t, i, :2].tolist() == [k, j] and (j > 0 or s[t, i, 2] == 0)
            j, end = j + 1, j + 1 == 1 + 2 * (k % 3)
            torch.testing.assert_close(s2[t, i], torch.tensor([k, j, sent[t, i]]).float())  # the final one at an end
            assert r[t, i].item() == pytest.approx(k + j / 8 + sent[t, i].item(), rel=1e-5)
            assert terminal[t, i] == (end and k % 2 == 0) and done[t, i] == (end or t == 39)  # cut as by a time limit
            k, j = (k + 1, 0) if end else (k, j)
    assert all(torch.equal(v, state[k]) for k, v in agent.state_dict().items())


@actor_critic
def test_a_run_is_made_of_rollouts_that_segments_cut_and_its_end_shortens(algorithm, tmp_path, monkeypatch):
    agent_class, seen = getattr(load(algorithm), AGENTS[algorithm]), []
    learn = agent_class.update
    monkeypatch.setattr(agent_class, "update", lambda *x: seen.append(x) or learn(*x))
    changes = {"total_timesteps": 100, "num_envs": 2, "num_steps": 16, "checkpoint_every": 33}  # segments of 64
    train(algorithm, run_dir=str(tmp_path / "run"), env_id="tiny_envs:Chain-v0", **changes)
    assert [len(x[1]) for x in seen] == [16, 16, 16, 2] and [x[-1] for x in seen] == [0, 0.32, 0.64, 0.96]
    assert [bool(x[6][-1].all()) for x in seen] == [False, True, False, True]  # done
    assert not any(x[5][-1].any() for x in seen)  # terminal
