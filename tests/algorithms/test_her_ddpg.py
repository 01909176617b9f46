"""HER-DDPG's relabelling on transitions that tell where they come from, its losses by hand, and what it learns."""

import itertools

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import final_value, learn, rows, settings
from gymnasium.spaces import Box, Dict
from her_ddpg import HER_DDPG, HindsightReplay, RunFailed, VectorEnvs
from off_policy import TWO, Value, agent, batch, fix, same, snapshot
from torch import nn

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


gym.register("TaggedGoal-v0", Tagged, max_episode_steps=5)
gym.register("TaggedEndGoal-v0", TaggedEnd, max_episode_steps=5)
EXTRA, ACHIEVED, DESIRED, OBSERVATION = (slice(i, i + 2) for i in (0, 2, 4, 6))  # gymnasium sorts the keys


def filled(steps: int, num_envs: int = 4, env_id: str = "TaggedGoal-v0", cut: bool = False, **changes):
    """A memory of `steps` random steps of every environment, and (k, t) -> (s, a, r, s2, terminal) of all that ended,
    in the order in which the episodes did. With `cut` a segment ends in the middle.
    """
    torch.manual_seed(0)
    args = settings("her_ddpg", env_id=env_id, num_envs=num_envs, **{"buffer_size": 50} | changes)
    envs, memory = VectorEnvs(env_id, num_envs), HindsightReplay(args, 8, 1)
    complete, current = {}, [{} for _ in range(num_envs)]
    envs.reset(list(range(num_envs)))
    for step in range(steps):
        envs.cut_at = envs.steps + num_envs if cut and step == steps - 11 else np.inf
        s, a = envs.obs, torch.rand(num_envs, 1) * 2 - 1
        s2, r, terminal, done = envs.step(a)
        memory.add(s, a, r, s2, terminal, done=done)
        for i in range(num_envs):
            current[i][tuple(s[i, OBSERVATION].astype(int).tolist())] = (s[i], a[i].numpy(), r[i], s2[i], terminal[i])
            if done[i]:
                complete |= current[i]
                current[i] = {}
        if envs.cut_at < np.inf:
            envs.reset()
    return memory, complete


@pytest.mark.parametrize("strategy", ["future", "final", "episode", "random"])
@pytest.mark.parametrize("steps", [200, 203])
def test_goals_rewards_and_seams(strategy, steps):
    """The ring is filled sixteen times with episodes of 1 to 5 steps, so that its seam is anywhere in them."""
    memory, complete = filled(steps, goal_strategy=strategy, cut=True)
    kept = list(complete)[-50:]
    stored = {(k, t) for k, t in kept if (k, 0) in kept}
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
        goals.add((k, t, int(goal[0]), int(goal[1]) - 1))  # what the s2 of transition t2 of episode k2 achieved
    assert seen == stored, "every transition of the whole episodes, and no other"
    want = {
        "future": {(k, t, k, t2) for k, t in stored for t2 in range(t, last[k] + 1)},
        "final": {(k, t, k, last[k]) for k, t in stored},
        "episode": {(k, t, k, t2) for k, t in stored for t2 in range(last[k] + 1)},
        "random": {(k, t, k2, t2) for k, t in stored for k2, t2 in stored},
    }[strategy]
    assert goals <= want
    assert len(goals) > 0.9 * len(want) if strategy == "random" else goals == want


@pytest.mark.parametrize(("changes", "share"), [({"num_goals": 1}, 0.5), ({"num_goals": 4}, 0.8), ({"her": False}, 0)])
def test_share_of_relabelled_transitions(changes, share):
    s = filled(30, **changes)[0].sample(20_000)[0]
    assert (s[:, DESIRED.start] > 0).float().mean().item() == pytest.approx(share, abs=0.012)  # 4 deviations


def test_draws_are_uniform():
    """Over transitions, not episodes; future goals over the remaining steps. What has not ended is not drawn."""
    memory, complete = filled(40, buffer_size=10_000)
    assert len(complete) < 160
    s = memory.sample(100 * len(complete))[0].numpy()
    transitions = dict.fromkeys(complete, 0)
    for k, t in s[:, OBSERVATION].astype(int).tolist():
        transitions[k, t] += 1
    assert min(transitions.values()) > 55 and max(transitions.values()) < 150  # 100 each, standard deviation 10
    first = (s[:, OBSERVATION.start + 1] == 0) & (s[:, DESIRED.start] > 0) & (s[:, OBSERVATION.start] % 4 == 1)
    counts = np.bincount(s[first, DESIRED.start + 1].astype(int))  # episodes of 4 steps, from the first on
    assert counts[0] == 0 and len(counts) == 5
    np.testing.assert_allclose(counts[1:] / counts.sum(), 1 / 4, atol=0.06)


def test_termination_is_recomputed_goal_by_goal():
    _, _, _, s2, terminal = filled(60, env_id="TaggedEndGoal-v0")[0].sample(2000)
    reached = (s2[:, ACHIEVED] == s2[:, DESIRED]).all(1)
    assert torch.equal(terminal, reached.float()) and 0.2 < terminal.mean() < 0.6


def test_a_memory_read_back_draws_the_same():
    memory, other = filled(60, cut=True)[0], filled(7, num_envs=4)[0]
    state = {name: x.clone() if isinstance(x, torch.Tensor) else x for name, x in memory.state_dict().items()}
    assert len(state["rows"]) == len(state["span"]) == 50
    assert len(filled(7, buffer_size=1000)[0].state_dict()["rows"]) < 28, "the filled part only"
    other.load_state_dict(state)
    drawn = []
    for m in (memory, other):
        m.running = [[] for _ in range(4)]  # as at the beginning of a segment
        m.add(*(torch.ones(4, n) for n in m.columns), done=np.array([True, False, True, True]))
        torch.manual_seed(3)
        drawn.append(m.sample(500))
    assert all(torch.equal(x, y) for x, y in zip(*drawn, strict=True)) and memory.episodes == other.episodes


# ---- the agent -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip_target", [True, False])
def test_target_worked_by_hand(clip_target):
    """gamma 0.75: returns of rewards from -1 to 0 are between -4 and 0."""
    a = agent("her_ddpg", gamma=0.75, clip_target=clip_target)
    fix(a.actor_target, 0.5, -0.5)  # mu' = (0.5, 1)
    r, terminal = torch.tensor([-1.0, -1.0, 0.0]), torch.tensor([0.0, 1.0, 0.0])
    for weights, value in (((-2.0, -1.0), -2.0), ((-8.0, -2.0), -6.0), ((2.0, 1.0), 2.0)):
        a.critic_target = Value(*weights)
        y = torch.tensor([-1 + 0.75 * value, -1.0, 0.75 * value])
        want = {-2.0: [-2.5, -1.0, -1.5], -6.0: [-4.0, -1.0, -4.0], 2.0: [0.0, -1.0, 0.0]}[value]
        got = a.target(r, torch.randn(3, 3), terminal)
        torch.testing.assert_close(got, torch.tensor(want) if clip_target else y)


def test_losses_worked_by_hand():
    a = agent("her_ddpg", gamma=0.75, action_l2=0.5)
    fix(a.actor_target, 0.5, -0.5)
    fix(a.actor, -0.5, 0.25)  # mu = (-0.5, 2.5), in half ranges (-0.5, 0.25)
    a.critic_target, a.critic = Value(-2.0, -1.0), Value(1.0, 2.0)
    # y = -1 + 0.75 * -2 = -2.5 and -1;  Q = 0.5 + 6, -1 + 2;  errors -9 and -2
    s, actions, r, *rest = TWO
    loss, info = a.critic_loss(s, actions, -r, *rest)
    assert loss.item() == pytest.approx((81 + 4) / 2)
    assert [info[x].item() for x in ("q", "q_target", "reward")] == pytest.approx([3.75, -1.75, -1.0])
    # Q(s, mu) = -0.5 + 5;  mean square (0.25 + 0.0625) / 2
    loss, info = a.actor_loss(torch.randn(4, 3))
    assert loss.item() == pytest.approx(-4.5 + 0.5 * 0.15625)
    assert info["action_square"].item() == pytest.approx(0.15625)


def test_inputs_are_normalised_and_clipped():
    a = agent("her_ddpg", random_eps=0.0)
    s = torch.tensor([[1.0, 10.0, 7.0], [3.0, 30.0, 7.0]])
    torch.testing.assert_close(a.normalise(s), s.clamp(-5, 5))  # nothing seen yet
    a.obs_stats.update(s)  # means 2, 20, 7, standard deviations 1, 10, 0: the last counts as 0.01
    x = torch.tensor([[2.5, 0.0, 7.02], [9.0, -90.0, 6.9]])
    torch.testing.assert_close(a.normalise(x), torch.tensor([[0.5, -2.0, 2.0], [5.0, -5.0, -5.0]]), atol=1e-4, rtol=0)
    seen, critic = [], a.critic.net.forward
    a.actor.net.register_forward_pre_hook(lambda net, x: seen.append(x[0]))
    a.critic.net.forward = lambda x: seen.append(x[:, :3]) or critic(x)
    a.act(x)
    a.explore(x)
    a.update(x, torch.zeros(2, 2), torch.zeros(2), x, torch.zeros(2))
    assert len(seen) == 5 and all(torch.equal(y, a.normalise(x)) for y in seen)


def test_a_cycle_is_statistics_then_updates_then_one_step_of_the_targets(monkeypatch):
    a, data, seen = agent("her_ddpg", learning_rate=1e-2, batch_size=8), batch(24), []
    old, update = {name: snapshot(getattr(a, name)) for name in ("actor_target", "critic_target")}, a.update

    def watched(*minibatch):
        assert all(same(getattr(a, name), before) for name, before in old.items())
        torch.testing.assert_close(a.obs_stats.mean, data[0].mean(0))
        seen.append(minibatch)
        actor, critic = snapshot(a.actor), snapshot(a.critic)
        info = update(*minibatch)
        assert not same(a.actor, actor) and not same(a.critic, critic)
        return info

    monkeypatch.setattr(a, "update", watched)
    assert set(a.cycle(*data)) == set(HER_DDPG.metrics)
    assert len(seen) == 3 and a.obs_stats.count == 24 and not same(a.actor_target, old["actor_target"])
    for got, given in zip(zip(*seen, strict=True), data, strict=True):
        assert torch.equal(torch.cat(got), given), "each transition once, in order"


def test_behaviour_is_uniform_in_the_given_share():
    a = agent("her_ddpg", exploration_noise=0.0, random_eps=0.3)
    a.actor.net = nn.Sequential(nn.Linear(3, 2))  # fast
    fix(a.actor, 0.5, -0.5)  # mu = (0.5, 1)
    x = a.explore(torch.zeros(40_000, 3))
    of_policy = (x == torch.tensor([0.5, 1.0])).float()
    assert of_policy[:, 0].mean().item() == pytest.approx(0.7, abs=0.01)
    assert torch.equal(*of_policy.T), "all of an action is random, or nothing of it"
    rest = x[of_policy[:, 0] == 0]
    torch.testing.assert_close(rest.std(0), torch.tensor([2.0, 4.0]) / 12**0.5, atol=0.03, rtol=0)


# ---- whole runs ------------------------------------------------------------------------------------------------------


def run(folder, env_id: str = "FarGoal-v0", **changes):
    """Train FarGoal, which is learned in seconds."""
    values = {"learning_starts": 240, "batch_size": 128, "learning_rate": 2e-3, "episodes_per_cycle": 4, "tau": 0.2,
              "updates_per_cycle": 30, "action_l2": 0.1, "clip_target": True, "buffer_size": 5000}  # fmt: skip
    return learn("her_ddpg", folder, env_id, 1200, **values | changes)


@pytest.mark.parametrize("her", [True, False])
def test_learns_goals_in_seconds_and_not_without_hindsight(tmp_path, her):
    share = final_value(run(tmp_path, her=her), "success")
    assert share >= 0.7 if her else share <= 0.2


@pytest.mark.parametrize(("num_envs", "episodes_per_cycle"), [(1, 3), (4, 3), (8, 2)])
def test_number_of_updates_does_not_depend_on_num_envs(tmp_path, num_envs, episodes_per_cycle):
    """A cycle whenever so many more episodes have ended, over all environments, once 45 steps are over."""
    changes = {"episodes_per_cycle": episodes_per_cycle, "updates_per_cycle": 3, "batch_size": 4, "num_envs": num_envs}
    folder = learn("her_ddpg", tmp_path, "FarGoal-v0", 240, learning_starts=45, **changes)
    checkpoint = torch.load(folder / "checkpoint.pt", weights_only=True)
    before = sum(int(row["step"]) <= 45 for row in rows(folder / "train.csv"))
    cycles = 16 // episodes_per_cycle - before // episodes_per_cycle
    for name in ("actor_optimizer", "critic_optimizer"):
        assert checkpoint[name]["state"][0]["step"] == cycles * 3
    assert checkpoint["memory"]["rows"].shape == (16 * 15, 6 + 2 + 1 + 6 + 1)


@pytest.mark.parametrize(
    ("env_id", "changes", "message"),
    [
        ("DenseGoal-v0", {}, r"from -1 to 0, not -\d\.\d+: use --no-clip-target"),
        ("FarGoal-v0", {"buffer_size": 14, "batch_size": 4}, "--buffer-size 14 is less than an episode"),
    ],
)
def test_what_shows_in_the_data_only_ends_the_run_with_one_line(tmp_path, env_id, changes, message):
    with pytest.raises(RunFailed, match=message):
        run(tmp_path, env_id, **changes)
