"""HER-DDPG's relabelling on transitions that tell where they come from, its losses by hand, and what it learns."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys

import gymnasium as gym
import her_ddpg
import numpy as np
import pytest
import torch
from conftest import logs, resume, rows, snapshot_during, train
from gymnasium.spaces import Box, Dict
from her_ddpg import HER_DDPG, Args, HindsightReplay, RunArgs, VectorEnvs
from torch import nn

OBSERVATIONS = Box(-np.inf, np.inf, (3,), np.float32)
ACTIONS = Box(np.float32([-1, 0]), np.float32([1, 4]))  # half ranges 1 and 2, centres 0 and 2
STRATEGIES = ["future", "final", "episode", "random"]


# ---- relabelling -----------------------------------------------------------------------------------------------------


class Tagged(gym.Env):
    """Every goal tells where it comes from: state t of episode k (unique over all environments) achieves (k, t); the
    goal wanted in episode k is (-k, 0). Episode k ends after 3 + k % 4 steps, or by the time limit after 5.
    """

    count = itertools.count(1)
    action_space = Box(-1, 1, (1,), np.float32)
    observation_space = Dict(
        {name: Box(-np.inf, np.inf, (2,), np.float32) for name in ("a", "observation", "desired_goal", "achieved_goal")}
    )

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.k, self.t = next(Tagged.count), 0
        return self.observe(), {}

    def step(self, action):
        self.t += 1
        obs = self.observe()
        r = float(self.compute_reward(obs["achieved_goal"], obs["desired_goal"], {}))
        return obs, r, self.t == 3 + self.k % 4, False, {}

    def observe(self):
        tag, goal = np.float32([self.k, self.t]), np.float32([-self.k, 0])
        return {"a": tag + 0.5, "observation": tag, "achieved_goal": tag, "desired_goal": goal}

    def compute_reward(self, achieved_goal, desired_goal, info):
        """Each argument, and its place, shows in the result."""
        return achieved_goal @ np.float32([1, 2]) + desired_goal @ np.float32([1000, 7])


class TaggedEnd(Tagged):
    """Terminates when the goal is reached, which is computed for one pair of goals at a time only."""

    def step(self, action):
        obs, r, _, _, info = super().step(action)
        return obs, r, self.compute_terminated(obs["achieved_goal"], obs["desired_goal"], info), False, info

    def compute_terminated(self, achieved_goal, desired_goal, info):
        return bool(achieved_goal[0] == desired_goal[0] and achieved_goal[1] == desired_goal[1])


gym.register("Tagged-v0", Tagged, max_episode_steps=5)
gym.register("TaggedEnd-v0", TaggedEnd, max_episode_steps=5)


def filled(steps: int, num_envs: int = 4, env_id: str = "Tagged-v0", **settings):
    """A memory of `steps` random steps of every environment, and (k, t) -> (s, a, r, s2, terminal) of all that ended.

    The order of the dictionary is that in which the episodes ended, as in memory.
    """
    torch.manual_seed(0)
    run = RunArgs(device="cpu")
    args = Args(env_id=env_id, num_envs=num_envs, **({"clip_target": False, "buffer_size": 50} | settings), run=run)
    envs = VectorEnvs(env_id, num_envs, seed=0)
    memory, complete, current = HindsightReplay(args, envs), {}, [{} for _ in range(num_envs)]
    for _ in range(steps):
        s, t, a = envs.obs, envs.lengths.copy(), torch.rand(num_envs, 1) * 2 - 1
        s2, r, terminal, done = envs.step(a)
        memory.add(t, s, a, r, s2, terminal, done=done)
        for i in range(num_envs):
            key = tuple(s[i, OBSERVATION].astype(int).tolist())
            current[i][key] = (s[i], a[i].numpy(), r[i], s2[i], terminal[i])
            if done[i]:
                complete |= current[i]
                current[i] = {}
    return memory, complete


EXTRA, ACHIEVED, DESIRED, OBSERVATION = (slice(i, i + 2) for i in (0, 2, 4, 6))  # gymnasium sorts the keys


def whole(complete: dict, capacity: int) -> set:
    """Keys of the transitions that the last `capacity` ones hold whole episodes of."""
    kept = list(complete)[-capacity:]
    return {(k, t) for k, t in kept if (k, 0) in kept}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_goals_rewards_and_seams(strategy):
    """The ring is filled sixteen times with episodes of 3 to 5 steps, so that its seam is anywhere in them."""
    for steps in (200, 203):
        memory, complete = filled(steps, goal_strategy=strategy)
        stored = whole(complete, 50)
        last = {k: max(t for k2, t in stored if k2 == k) for k, _ in stored}
        assert len(complete) > 15 * 50 and 42 <= len(stored) <= 50 and len(set(last.values())) > 1
        s, a, r, s2, terminal = (x.numpy() for x in memory.sample(8_000))
        seen, goals = set(), set()
        for i in range(len(s)):
            k, t = s[i, OBSERVATION].astype(int).tolist()
            seen.add((k, t))
            s0, a0, r0, s20, terminal0 = complete[k, t]
            goal = s[i, DESIRED]
            assert (goal == s2[i, DESIRED]).all(), "one goal in s and s2"
            for part in (EXTRA, ACHIEVED, OBSERVATION):
                assert (s[i, part] == s0[part]).all() and (s2[i, part] == s20[part]).all()
            assert (a[i] == a0).all() and terminal[i] == terminal0
            assert r[i] == k + 2 * (t + 1) + 1000 * goal[0] + 7 * goal[1], "compute_reward(achieved of s2, goal, info)"
            if goal[0] < 0:  # the episode's own goal
                assert (goal == s0[DESIRED]).all() and r[i] == r0
                continue
            k2, t2 = int(goal[0]), int(goal[1]) - 1  # the goal is what the s2 of transition t2 of episode k2 achieved
            goals.add((k, t, k2, t2))
        assert seen == stored, "every transition of the whole episodes, and no other"
        want = {
            "future": {(k, t, k, t2) for k, t in stored for t2 in range(t, last[k] + 1)},
            "final": {(k, t, k, last[k]) for k, t in stored},
            "episode": {(k, t, k, t2) for k, t in stored for t2 in range(last[k] + 1)},
            "random": {(k, t, k2, t2) for k, t in stored for k2, t2 in stored},
        }[strategy]
        assert goals <= want
        assert len(goals) > 0.9 * len(want) if strategy == "random" else goals == want


@pytest.mark.parametrize("k", [1, 4, 9])
def test_share_of_relabelled_transitions(k):
    memory, _ = filled(30, num_goals=k)
    s = memory.sample(20_000)[0]
    assert (s[:, DESIRED.start] > 0).float().mean().item() == pytest.approx(k / (k + 1), abs=0.012)  # 4 deviations


def test_draws_are_uniform():
    """Over transitions, not episodes; future goals over the remaining steps."""
    memory, complete = filled(40, buffer_size=10_000)
    s = memory.sample(100 * len(complete))[0].numpy()
    transitions = dict.fromkeys(complete, 0)
    for k, t in s[:, OBSERVATION].astype(int).tolist():
        transitions[k, t] += 1
    assert min(transitions.values()) > 55 and max(transitions.values()) < 150  # 100 each, standard deviation 10
    first = (s[:, OBSERVATION.start + 1] == 0) & (s[:, DESIRED.start] > 0) & (s[:, OBSERVATION.start] % 4 == 1)
    counts = np.bincount(s[first, DESIRED.start + 1].astype(int))  # episodes of 4 steps, from the first on
    assert counts[0] == 0 and len(counts) == 5
    np.testing.assert_allclose(counts[1:] / counts.sum(), 1 / 4, atol=0.06)


def test_without_her_nothing_is_relabelled():
    memory, complete = filled(50, her=False)
    s, _, r, s2, _ = (x.numpy() for x in memory.sample(1000))
    for i in range(len(s)):
        k, t = s[i, OBSERVATION].astype(int).tolist()
        s0, _, r0, s20, _ = complete[k, t]
        assert (s[i] == s0).all() and (s2[i] == s20).all() and r[i] == r0


def test_episodes_that_have_not_ended_are_not_drawn():
    memory, complete = filled(9, num_envs=3, buffer_size=1000)
    seen = {tuple(x) for x in memory.sample(2000)[0][:, OBSERVATION].int().tolist()}
    assert seen == set(complete) and len(seen) < 27


def test_new_episodes_after_an_interruption_do_not_continue_the_old_ones():
    """Environments whose state cannot be saved start anew when a run is resumed: what was collected is forgotten."""
    memory, _ = filled(4, num_envs=1, buffer_size=1000)
    before = memory.total
    row = torch.zeros(1, 8)
    for t in range(2):
        memory.add(np.array([t]), row, torch.zeros(1, 1), [7.0], row, [0.0], done=np.array([t == 1]))
    assert memory.total == before + 2
    assert memory.rows[before : before + 2, 8 + 1].tolist() == [7.0, 7.0]


def test_termination_is_recomputed_goal_by_goal():
    memory, _ = filled(60, env_id="TaggedEnd-v0", goal_strategy="future")
    _, _, _, s2, terminal = memory.sample(2000)
    reached = (s2[:, ACHIEVED] == s2[:, DESIRED]).all(1)
    assert torch.equal(terminal, reached.float()) and 0.2 < terminal.mean() < 0.6


def test_a_memory_read_back_draws_the_same():
    memory, _ = filled(61)
    other, _ = filled(7)
    state = {name: x.clone() if isinstance(x, torch.Tensor) else x for name, x in memory.state_dict().items()}
    assert len(state["rows"]) == len(state["span"]) == 50
    assert len(filled(7, buffer_size=1000)[0].state_dict()["rows"]) < 28, "the filled part only"
    other.load_state_dict(state)
    drawn = []
    for m in (memory, other):
        m.add(np.array([1, 2, 0, 1]), *(torch.ones(4, n) for n in m.columns), done=np.array([True, False, True, True]))
        torch.manual_seed(3)
        drawn.append(m.sample(500))
    assert all(torch.equal(x, y) for x, y in zip(*drawn, strict=True))


# ---- the agent -------------------------------------------------------------------------------------------------------


def agent(**settings) -> HER_DDPG:
    torch.manual_seed(0)
    return HER_DDPG(OBSERVATIONS, ACTIONS, Args(run=RunArgs(device="cpu", compile=False), **settings))


def batch(n: int = 8) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    low, high = torch.tensor(ACTIONS.low), torch.tensor(ACTIONS.high)
    return {
        "s": torch.randn(n, 3), "a": low + (high - low) * torch.rand(n, 2), "r": -torch.rand(n),
        "s2": torch.randn(n, 3), "terminal": (torch.rand(n) < 0.3).float(),
    }  # fmt: skip


class Value(nn.Module):
    """Q(s, a) = a . weights, with the weights as parameter."""

    def __init__(self, *weights: float):
        super().__init__()
        self.weights = nn.Parameter(torch.tensor(weights))

    def forward(self, s, a):
        return a @ self.weights.to(a.dtype)


def fix(actor: nn.Module, *tanh_output: float) -> None:
    """Make an actor return centre + tanh_output * scale everywhere."""
    with torch.no_grad():
        actor.net[-1].weight.zero_()
        actor.net[-1].bias.copy_(torch.tensor(tanh_output).atanh())


@pytest.mark.parametrize("clip_target", [True, False])
def test_target_worked_by_hand(clip_target):
    """gamma 0.75: returns of rewards from -1 to 0 are between -4 and 0."""
    a = agent(gamma=0.75, clip_target=clip_target)
    fix(a.actor_target, 0.5, -0.5)  # mu' = (0.5, 1)
    r, terminal = torch.tensor([-1.0, -1.0, 0.0]), torch.tensor([0.0, 1.0, 0.0])
    for weights, value in (((-2.0, -1.0), -2.0), ((-8.0, -2.0), -6.0), ((2.0, 1.0), 2.0)):
        a.critic_target = Value(*weights)
        y = torch.tensor([-1 + 0.75 * value, -1.0, 0.75 * value])
        want = {-2.0: [-2.5, -1.0, -1.5], -6.0: [-4.0, -1.0, -4.0], 2.0: [0.0, -1.0, 0.0]}[value]
        got = a.target(r, torch.randn(3, 3), terminal)
        torch.testing.assert_close(got, torch.tensor(want) if clip_target else y)


def test_losses_worked_by_hand():
    a = agent(gamma=0.75, action_l2=0.5)
    fix(a.actor_target, 0.5, -0.5)
    fix(a.actor, -0.5, 0.25)  # mu = (-0.5, 2.5), in half ranges (-0.5, 0.25)
    a.critic_target, a.critic = Value(-2.0, -1.0), Value(1.0, 2.0)
    # y = -1 + 0.75 * -2 = -2.5 and -1;  Q = 0.5 + 6, -1 + 2;  errors -9 and -2
    actions, terminal = torch.tensor([[0.5, 3.0], [-1.0, 1.0]]), torch.tensor([0.0, 1.0])
    loss, info = a.critic_loss(torch.zeros(2, 3), actions, torch.tensor([-1.0, -1.0]), torch.zeros(2, 3), terminal)
    assert loss.item() == pytest.approx((81 + 4) / 2)
    assert [info[x].item() for x in ("q", "q_target", "reward")] == pytest.approx([3.75, -1.75, -1.0])
    # Q(s, mu) = -0.5 + 5;  mean square (0.25 + 0.0625) / 2
    loss, info = a.actor_loss(torch.randn(4, 3))
    assert loss.item() == pytest.approx(-4.5 + 0.5 * 0.15625)
    assert info["action_square"].item() == pytest.approx(0.15625)


@pytest.fixture
def double():
    """float64 everywhere, so that finite differences are exact enough."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("which", ["critic", "actor"])
def test_gradients_against_finite_differences(double, which):
    a, data = agent(), {name: x.double() for name, x in batch().items()}
    if which == "critic":
        optimizer, gradient_of, loss, arguments = a.critic_optimizer, a.critic_gradient, a.critic_loss, data.values()
    else:
        optimizer, gradient_of, loss, arguments = a.actor_optimizer, a.actor_gradient, a.actor_loss, [data["s"]]
    gradient, _, norm = gradient_of(*arguments)
    assert norm.item() == pytest.approx(gradient.square().sum().item() ** 0.5)
    theta = optimizer.param_groups[0]["params"][0].data  # moves the networks, too
    assert len(theta) == len(gradient)
    for k in [*torch.randint(len(theta), (10,)).tolist(), *gradient.abs().topk(5).indices.tolist()]:
        theta[k] += 1e-6
        up = loss(*arguments)[0]
        theta[k] -= 2e-6
        down = loss(*arguments)[0]
        theta[k] += 1e-6
        assert gradient[k].item() == pytest.approx((up - down).item() / 2e-6, rel=1e-4, abs=1e-7)


def test_inputs_are_normalised_and_clipped():
    a = agent()
    s = torch.tensor([[1.0, 10.0, 7.0], [3.0, 30.0, 7.0]])
    torch.testing.assert_close(a.normalise(s), s.clamp(-5, 5))  # nothing seen yet
    a.obs_stats.update(s)  # means 2, 20, 7, standard deviations 1, 10, 0: the last counts as 0.01
    x = torch.tensor([[2.5, 0.0, 7.02], [9.0, -90.0, 6.9]])
    torch.testing.assert_close(a.normalise(x), torch.tensor([[0.5, -2.0, 2.0], [5.0, -5.0, -5.0]]), atol=1e-4, rtol=0)
    seen = []
    a.actor.forward = lambda x: seen.append(x) or torch.zeros(len(x), 2)
    a.critic.forward = lambda x, action: seen.append(x) or a.critic.net(torch.cat([x, action], -1)).squeeze(-1)
    a.act(x)
    a.explore(x)
    assert len(seen) == 2 and all(torch.equal(y, a.normalise(x)) for y in seen)


def snapshot(module: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def same(module: nn.Module, before: list[torch.Tensor]) -> bool:
    return all(torch.equal(p, q) for p, q in zip(module.parameters(), before, strict=True))


def test_a_cycle_is_statistics_then_updates_then_one_step_of_the_targets(monkeypatch):
    a, data = agent(tau=0.25, learning_rate=1e-2, batch_size=8), batch(24)
    old, seen, update = {name: snapshot(getattr(a, name)) for name in ("actor_target", "critic_target")}, [], a.update

    def watched(*minibatch):
        assert same(a.actor_target, old["actor_target"]) and same(a.critic_target, old["critic_target"])
        torch.testing.assert_close(a.obs_stats.mean, data["s"].mean(0))
        seen.append(minibatch)
        actor, critic = snapshot(a.actor), snapshot(a.critic)
        info = update(*minibatch)
        assert not same(a.actor, actor) and not same(a.critic, critic)
        return info

    monkeypatch.setattr(a, "update", watched)
    info = a.cycle(*data.values())
    assert set(info) == set(HER_DDPG.metrics)
    assert len(seen) == 3
    for got, given in zip(zip(*seen, strict=True), data.values(), strict=True):
        assert torch.equal(torch.cat(got), given), "each transition once, in order"
    for name, source in (("actor_target", a.actor), ("critic_target", a.critic)):
        for t, s, o in zip(getattr(a, name).parameters(), source.parameters(), old[name], strict=True):
            torch.testing.assert_close(t, 0.75 * o + 0.25 * s)


def test_updates_see_normalised_states():
    a, data = agent(learning_rate=0.0), batch()
    a.obs_stats.update(data["s"] * 10 + 3)
    info = a.update(**data)
    s, s2 = a.normalise(data["s"]), a.normalise(data["s2"])
    want = a.critic_loss(s, data["a"], data["r"], s2, data["terminal"])[0]
    assert info["critic_loss"].item() == pytest.approx(want.item())
    assert info["actor_loss"].item() == pytest.approx(a.actor_loss(s)[0].item())


def test_actor_step_leaves_the_critic_alone():
    a = agent(learning_rate=1e-3)
    a.critic_optimizer.param_groups[0]["lr"] = 0.0
    data, before, losses = batch(), snapshot(a.critic), []
    for _ in range(20):
        losses.append(a.update(**data)["actor_loss"].item())
    assert same(a.critic, before)
    assert losses[-1] < losses[0]


def test_action_penalty_keeps_actions_from_the_bounds():
    """A critic that wants the highest action: the penalty c a^2 of one dimension's mean over two makes it w / c."""
    for c, want in ((1.0, [0.6, -0.4]), (4.0, [0.15, -0.1])):
        a = agent(action_l2=c)
        a.critic = Value(0.6, -0.2)  # dQ/da in half ranges: 0.6 and -0.4
        for _ in range(100):
            gradient, _, _ = a.actor_gradient(torch.zeros(1, 3))
            her_ddpg.descend(a.actor_optimizer, gradient)
        mu = (a.act(torch.zeros(1, 3)) - a.actor.centre) / a.actor.scale
        torch.testing.assert_close(mu, torch.tensor([want]), atol=0.01, rtol=0)


def test_behaviour_is_noise_or_uniform_in_the_given_shares():
    def explored(**settings):
        a = agent(**settings)
        fix(a.actor, 0.5, -0.5)  # mu = (0.5, 1)
        x = a.explore(torch.zeros(40_000, 3))
        assert ((x >= a.low) & (x <= a.high)).all()
        return x

    x = explored(exploration_noise=0.1, random_eps=0.0)
    torch.testing.assert_close(x.mean(0), torch.tensor([0.5, 1.0]), atol=0.01, rtol=0)
    torch.testing.assert_close(x.std(0), torch.tensor([0.1, 0.2]), atol=0.005, rtol=0)
    x = explored(exploration_noise=0.1, random_eps=1.0)
    torch.testing.assert_close(x.mean(0), torch.tensor([0.0, 2.0]), atol=0.05, rtol=0)
    torch.testing.assert_close(x.std(0), torch.tensor([2.0, 4.0]) / 12**0.5, atol=0.02, rtol=0)
    x = explored(exploration_noise=0.0, random_eps=0.3)
    policy = (x == torch.tensor([0.5, 1.0])).float().mean(0)
    torch.testing.assert_close(policy, torch.tensor([0.7, 0.7]), atol=0.01, rtol=0)
    assert torch.equal(*((x == torch.tensor([0.5, 1.0])).T)), "all of an action is random, or nothing of it"
    x = explored(exploration_noise=5.0, random_eps=0.3)
    torch.testing.assert_close(x.amin(0), torch.tensor([-1.0, 0.0]))
    torch.testing.assert_close(x.amax(0), torch.tensor([1.0, 4.0]))


def test_compiled_gradients_equal_eager_ones():
    torch._dynamo.config.trace_autograd_ops = True
    eager, compiled, data = agent(), agent(), batch(16)
    compiled.critic_gradient = her_ddpg.gradient_function(compiled.critic_loss, compiled.critic, RunArgs(compile=True))
    x, y = eager.critic_gradient(*data.values())[0], compiled.critic_gradient(*data.values())[0]
    assert x.abs().max() > 1e-3
    torch.testing.assert_close(x, y, atol=1e-6, rtol=1e-4)


# ---- whole runs ------------------------------------------------------------------------------------------------------


class FarGoal(gym.Env):
    """PointGoal of tiny_envs.py, in a field so wide that aimless walks hardly ever end within 0.25 of the goal."""

    action_space = Box(-1, 1, (2,), np.float32)
    observation_space = Dict({name: Box(-9, 9, (2,)) for name in ("observation", "achieved_goal", "desired_goal")})

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.point = np.zeros(2, np.float32)
        angle = self.np_random.uniform(0, 2 * np.pi)
        self.goal = (3 * np.array([np.cos(angle), np.sin(angle)])).astype(np.float32)
        return self.observe(), {}

    def step(self, action):
        self.point = np.clip(self.point + 0.5 * np.clip(action, -1, 1), -9, 9).astype(np.float32)
        r = float(self.compute_reward(self.point, self.goal, {}))
        return self.observe(), r, False, False, {"is_success": float(r == 0)}

    def observe(self):
        return {"observation": self.point.copy(), "achieved_goal": self.point.copy(), "desired_goal": self.goal.copy()}

    def compute_reward(self, achieved_goal, desired_goal, info):
        return -(np.linalg.norm(achieved_goal - desired_goal, axis=-1) > 0.25).astype(np.float32)


gym.register("FarGoal-v0", FarGoal, max_episode_steps=15)


def settings(folder, env_id: str, total: int, **changes) -> Args:
    run = RunArgs(device="cpu", compile=False, run_dir=str(folder), eval_every=10**9, eval_episodes=20)
    defaults = {
        "learning_starts": 240, "batch_size": 64, "buffer_size": 5000, "episodes_per_cycle": 4, "updates_per_cycle": 30,
        "tau": 0.2, "action_l2": 0.1,
    }  # fmt: skip
    return Args(env_id=env_id, total_timesteps=total, run=run, **(defaults | changes))


def success(folder) -> float:
    """Share of the last evaluation's episodes that end at the goal."""
    table = rows(folder / "eval.csv")
    return float(np.mean([float(row["success"]) for row in table if row["step"] == table[-1]["step"]]))


def test_learns_goals_in_seconds_and_not_without_hindsight(tmp_path):
    assert success(her_ddpg.train(settings(tmp_path / "her", "FarGoal-v0", 1920))) >= 0.9
    assert success(her_ddpg.train(settings(tmp_path / "ddpg", "FarGoal-v0", 1920, her=False))) <= 0.1


def test_the_learning_test_notices_rewards_of_the_old_goal(tmp_path, monkeypatch):
    """New goals in s and s2, but rewards computed for the goals that the transitions had."""
    goals, init, old = HindsightReplay.goals, HindsightReplay.__init__, []

    def watched(self, j):
        old[:] = [self.rows[j % self.capacity][:, self.desired].numpy()]
        return goals(self, j)

    def wrong(self, args, envs):
        init(self, args, envs)
        right = self.compute_reward
        self.compute_reward = lambda achieved, goal, info: right(achieved, old[0], info)

    monkeypatch.setattr(HindsightReplay, "goals", watched)
    monkeypatch.setattr(HindsightReplay, "__init__", wrong)
    assert success(her_ddpg.train(settings(tmp_path / "run", "FarGoal-v0", 1920))) <= 0.3


def test_the_learning_test_notices_a_goal_that_only_s_has(tmp_path, monkeypatch):
    sample = HindsightReplay.sample

    def wrong(self, n):
        s, a, r, s2, terminal = sample(self, n)
        s2[:, self.desired] = s2[:, self.desired][torch.randperm(n)]
        return s, a, r, s2, terminal

    monkeypatch.setattr(HindsightReplay, "sample", wrong)
    assert success(her_ddpg.train(settings(tmp_path / "run", "FarGoal-v0", 1920))) <= 0.3


@pytest.mark.parametrize(("num_envs", "episodes_per_cycle"), [(1, 3), (4, 3), (8, 2)])
def test_number_of_updates_does_not_depend_on_num_envs(tmp_path, num_envs, episodes_per_cycle):
    """One cycle for every few episodes that end after the first 40 steps, over all environments."""
    changes = {"episodes_per_cycle": episodes_per_cycle, "updates_per_cycle": 5, "batch_size": 4, "buffer_size": 400}
    changes |= {"num_envs": num_envs, "learning_starts": 40}
    folder = her_ddpg.train(settings(tmp_path / "run", "tiny_envs:PointGoal-v0", 240, **changes))
    checkpoint = torch.load(folder / "checkpoint.pt", weights_only=True)
    episodes = [row for row in rows(folder / "train.csv") if int(row["step"]) > 40]
    state = checkpoint["agent"]["_extra_state"]
    for name in ("actor_optimizer", "critic_optimizer"):
        assert state[name]["state"][0]["step"] == len(episodes) // episodes_per_cycle * 5
    assert state["episodes"] == len(episodes) % episodes_per_cycle
    assert checkpoint["memory"]["rows"].shape == (16 * 15, 6 + 2 + 1 + 6 + 1)


@pytest.mark.parametrize("num_envs", [1, 4])
@pytest.mark.parametrize("env_id", ["tiny_envs:PointGoal-v0", "FetchReach-v4"])
def test_interrupted_in_the_middle_of_episodes(env_id, num_envs, tmp_path, monkeypatch):
    length = {"tiny_envs:PointGoal-v0": 15, "FetchReach-v4": 50}[env_id]
    cut, total = 2 * length + 7, 3 * length + 2  # of each environment; the checkpoint is at 2 * length + 5
    changes = {
        "env_id": env_id, "num_envs": num_envs, "total_timesteps": total * num_envs, "eval_every": length * num_envs,
        "checkpoint_every": (2 * length + 5) * num_envs, "run_dir": str(tmp_path / "run"), "learning_starts": 4,
    }  # fmt: skip
    snapshot_during(monkeypatch, "her_ddpg", tmp_path / "run", {cut * num_envs: tmp_path / "copy"})
    folder = train("her_ddpg", **changes)
    saved = torch.load(tmp_path / "copy" / "checkpoint.pt", weights_only=True)
    assert saved["envs"]["lengths"].tolist() == [5] * num_envs and saved["memory"]["current"].abs().sum() > 0
    assert logs(resume("her_ddpg", tmp_path / "copy")) == logs(folder)
    end, again = (torch.load(f / "checkpoint.pt", weights_only=True) for f in (folder, tmp_path / "copy"))
    for name, x in end["agent"].items():
        assert name == "_extra_state" or torch.equal(x, again["agent"][name]), name
    assert all(torch.equal(x, again["memory"][name]) for name, x in end["memory"].items() if name != "total")


@pytest.mark.parametrize("env_id", ["FetchReach-v4", "FetchPush-v4"])
def test_fetch_goes_on_bit_for_bit(env_id):
    envs, other = VectorEnvs(env_id, 2, seed=3), VectorEnvs(env_id, 2, seed=99)
    rng = np.random.default_rng(0)
    actions = torch.from_numpy(rng.uniform(-1, 1, (83, 2, 4)).astype("f4"))
    for a in actions[:23]:
        envs.step(a)
        other.step(-a)
    other.load_state_dict(envs.state_dict())
    for a in actions[23:]:  # over the end of an episode
        for x, y in zip(envs.step(a), other.step(a), strict=True):
            np.testing.assert_array_equal(x, y)
        np.testing.assert_array_equal(envs.obs, other.obs)


def test_importing_the_robots_prints_nothing(tmp_path):
    """gymnasium_robotics prints a notice on tasks that nobody asked for."""
    code = "import her_ddpg; her_ddpg.make_env('FetchReach-v4')"
    folder = her_ddpg.__file__.rsplit("/", 1)[0]
    result = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


# ---- what cannot work ------------------------------------------------------------------------------------------------


class NoReward(FarGoal):
    """Goals without a method compute_reward."""

    compute_reward = property()

    def step(self, action):
        return self.observe(), 0.0, False, False, {}


class OneByOne(FarGoal):
    """compute_reward takes one pair of goals only."""

    def compute_reward(self, achieved_goal, desired_goal, info):
        return -float(np.linalg.norm(achieved_goal - desired_goal) > 0.25)


class ZeroOne(FarGoal):
    """Reward 1 at the goal, else 0."""

    def compute_reward(self, achieved_goal, desired_goal, info):
        return super().compute_reward(achieved_goal, desired_goal, info) + 1


class Dense(FarGoal):
    """Minus the distance, which exceeds 1."""

    def compute_reward(self, achieved_goal, desired_goal, info):
        return -np.linalg.norm(achieved_goal - desired_goal, axis=-1)


for cls in (NoReward, OneByOne, ZeroOne, Dense):
    gym.register(f"{cls.__name__}-v0", cls, max_episode_steps=15)
gym.register("NoLimit-v0", FarGoal)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"env_id": "tiny_envs:Match-v0"}, "Match-v0 is not an environment of goals.*compute_reward: use ddpg.py"),
        ({"env_id": "NoReward-v0"}, "NoReward-v0 is not an environment of goals"),
        (
            {"env_id": "OneByOne-v0"},
            "compute_reward of 8 goals, one per row, failed .*: have it compute along the last",
        ),
        ({"env_id": "ZeroOne-v0"}, "from -1 to 0, but ZeroOne-v0 gives 1.0: use --no-clip-target"),
        ({"env_id": "NoLimit-v0"}, "no time limit: register it with max_episode_steps"),
        ({"buffer_size": 14, "batch_size": 4}, "--buffer-size 14 is less than an episode of 15 steps"),
        ({"buffer_size": 10**13}, "--buffer-size 10000000000000 exceeds the main memory: lower it"),
        ({"gamma": 1.0}, "--gamma 1 leaves returns without a bound"),
    ],
    ids=lambda x: next(iter(x.values())) if isinstance(x, dict) else "",
)
def test_what_cannot_work_is_one_line_and_creates_nothing(tmp_path, changes, message):
    args = settings(tmp_path / "run", changes.pop("env_id", "FarGoal-v0"), 480, **changes)
    with pytest.raises(her_ddpg.UserError, match=message) as error:
        her_ddpg.train(args)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_rewards_out_of_the_range_of_the_clip_end_the_run_when_they_are_drawn(tmp_path):
    args = settings(tmp_path / "run", "Dense-v0", 480)
    with pytest.raises(her_ddpg.UserError, match=r"from -1 to 0, but Dense-v0 gives -\d\.\d+: use --no-clip-target"):
        her_ddpg.train(args)


@pytest.mark.parametrize("env_id", ["ZeroOne-v0", "Dense-v0"])
def test_other_rewards_work_without_the_clip(tmp_path, env_id):
    folder = her_ddpg.train(settings(tmp_path / "run", env_id, 480, clip_target=False))
    assert json.loads((folder / "config.json").read_text())["args"]["clip_target"] is False
    q = float(rows(folder / "metrics.csv")[-1]["q_target"])
    assert q > 0 if env_id == "ZeroOne-v0" else q < -1
