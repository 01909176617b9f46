"""What the four off-policy algorithms must do alike: settings, gradients, targets, memory, behaviour, learning."""

from collections import Counter

import numpy as np
import pytest
import td3
import torch
from conftest import AGENTS, HAS_REPLAY, assert_gradients, learn, load, train
from off_policy import agent, batch, fix, same, snapshot

of_all = pytest.mark.parametrize("algorithm", HAS_REPLAY)
without_goals = pytest.mark.parametrize("algorithm", ["ddpg", "td3", "sac"])
with_noise = pytest.mark.parametrize("algorithm", ["ddpg", "td3", "her_ddpg"])

# ---- gradients and targets -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("algorithm", "which", "changes"),
    [
        *((name, which, {}) for name in HAS_REPLAY for which in ("critic", "actor")),
        *(("ddpg", which, {"network": "lillicrap"}) for which in ("critic", "actor")),
        *(("sac", which, {"value_network": True, "alpha": "auto"}) for which in ("critic", "actor", "value", "alpha")),
    ],
)
def test_gradients_against_finite_differences(double, algorithm, which, changes):
    """The networks of other optimisers get no gradient at all."""
    a, (s, *others) = agent(algorithm, learning_rate=0.0, **changes), batch(dtype=torch.float64)
    loss, step, optimizer = (getattr(a, f"{which}_{part}") for part in ("loss", "step", "optimizer"))
    noise = [torch.randn(8, 2)]
    arguments = {
        "critic": (s, *others, *noise[: algorithm in ("td3", "sac")]), "actor": (s, *noise[: algorithm == "sac"]),
        "value": (s, others[1]), "alpha": (torch.tensor(1.3),),
    }[which]  # fmt: skip
    info, parameters = step(*arguments), optimizer.param_groups[0]["params"]
    norm = torch.stack([p.grad.norm() for p in parameters]).norm()
    assert info[f"{which}_grad_norm"].item() == pytest.approx(norm.item()) and norm > 1e-4
    assert all(p.grad is None for p in a.parameters() if not any(p is q for q in parameters))
    assert_gradients({p: p.grad for p in parameters}, lambda: loss(*arguments)[0].item())


@pytest.mark.parametrize(
    ("algorithm", "targets", "changes"),
    [
        ("ddpg", {"actor_target": "actor", "critic_target": "critic"}, {}),
        ("td3", {"actor_target": "actor", "critics_target": "critics"}, {"policy_delay": 1}),
        ("sac", {"target_network": "critics"}, {}),
        ("sac", {"target_network": "value"}, {"value_network": True}),
        ("her_ddpg", {"actor_target": "actor", "critic_target": "critic"}, {}),
    ],
)
def test_targets_start_equal_and_follow_by_tau(algorithm, targets, changes):
    a = agent(algorithm, tau=0.25, learning_rate=1e-2, **changes)
    assert all(same(getattr(a, target), snapshot(getattr(a, source))) for target, source in targets.items())
    for _ in range(2):
        before = {name: snapshot(getattr(a, name)) for name in targets}
        getattr(a, "cycle" if algorithm == "her_ddpg" else "update")(*batch())
        for name, source in targets.items():
            assert not same(getattr(a, name), before[name])
            for t, p, old in zip(
                getattr(a, name).parameters(), snapshot(getattr(a, source)), before[name], strict=True
            ):
                torch.testing.assert_close(t.data, 0.75 * old + 0.25 * p)


@pytest.mark.parametrize("algorithm", ["td3", "sac"])
def test_twin_critics_start_different(algorithm):
    first, second = agent(algorithm).critics
    assert not any(torch.equal(p, q) for p, q in zip(first.parameters(), second.parameters(), strict=True))


# ---- memory and behaviour --------------------------------------------------------------------------------------------


def test_replay_overwrites_the_oldest_and_samples_all_that_is_left():
    memory = td3.Replay(5, 1, 1, "cpu")
    for k in range(4):  # two rows at a time: 0 1 | 2 3 | 4 5 | 6 7, so the last five are 3 to 7
        x = np.array([[2.0 * k], [2.0 * k + 1]])
        memory.add(x, x + 100, x[:, 0] + 200, x + 300, np.array([k % 2 == 0, False]))
    again = td3.Replay(5, 1, 1, "cpu")
    again.load_state_dict(memory.state_dict())
    again.add(*(torch.tensor([[x]]) for x in (8.0, 108.0, 208.0, 308.0, 0.0)))  # in the place of 3
    for m, left in ((memory, [3, 4, 5, 6, 7]), (again, [4, 5, 6, 7, 8])):
        s, a, r, s2, terminal = m.sample(1000)
        counts = Counter(s[:, 0].tolist())
        assert sorted(counts) == left and min(counts.values()) > 140  # 200 each, standard deviation 13
        assert torch.equal(a, s + 100) and torch.equal(r, s[:, 0] + 200) and torch.equal(s2, s + 300)
        assert torch.equal(terminal, (s[:, 0] == 4).float())
    assert len(td3.Replay(5, 1, 1, "cpu").state_dict()["rows"]) == 0, "the filled part only"


@of_all
@pytest.mark.parametrize("env_id", ["Countdown-v0", "Truncated-v0"])
def test_memory_of_a_run(algorithm, env_id, tmp_path, monkeypatch):
    """s2 is the state that the step led to, also where the environment was reset; terminal is true termination only.

    Two segments of 32 steps in two environments; states are (k, t), the episode's number and the step's (of goals, too:
    what is achieved is the observation). Actions are uniform, then explored, and stored as they were sent.
    """
    agent_class, drawn, sent = getattr(load(algorithm), AGENTS[algorithm]), {}, []
    for name in ("explore", "explore_uniformly"):

        def spy(self, argument, name=name, method=getattr(agent_class, name)):
            a = method(self, argument)
            assert name != "explore" or (a != self.act(argument)).all(), "noise"
            drawn.setdefault(name, []).append(a)
            return a

        monkeypatch.setattr(agent_class, name, spy)
    envs, step = load(algorithm).VectorEnvs, load(algorithm).VectorEnvs.step
    monkeypatch.setattr(envs, "step", lambda self, a: (sent.append(a) if self.cut_at < 1e9 else 0, step(self, a))[1])
    changes = {"num_envs": 2, "total_timesteps": 128, "checkpoint_every": 64, "learning_rate": 0.0}
    folder = train(algorithm, env_id=f"contract_envs:{env_id}", run_dir=str(tmp_path / "run"), **changes)
    uniform, explored = drawn["explore_uniformly"][:32], drawn["explore"]
    assert len(explored) == 32 and all(x is y for x, y in zip(sent, uniform + explored, strict=True))
    table = torch.load(folder / "checkpoint.pt", weights_only=True)["memory"]["rows"]
    obs = (table.shape[1] - 3) // 2
    k, t = table[:, :2].T
    end = 2 if env_id == "Truncated-v0" else 3 + k % 4
    assert torch.equal(table[:, obs + 2 : obs + 4], torch.stack([k, t + 1], 1)), "s2"
    assert torch.equal(table[:, obs + 1], k + (t + 1) / 8), "r"
    assert torch.equal(table[:, -1], ((t + 1 == end) & (env_id != "Truncated-v0")).float()), "terminal"
    assert sorted(table[:, obs].tolist()) == sorted(torch.cat(sent).flatten().tolist()), "a"
    walk = [(k, t) for k in range(32) for t in range(2 if env_id == "Truncated-v0" else 3 + k % 4)][:32]
    assert Counter(zip(k.tolist(), t.tolist(), strict=True)) == Counter(4 * walk)


@with_noise
def test_noise_has_the_right_size_in_each_dimension_and_actions_are_inside_the_bounds(algorithm):
    nothing_random = {"random_eps": 0.0} if algorithm == "her_ddpg" else {}
    a, wild = (agent(algorithm, exploration_noise=size, **nothing_random) for size in (0.1, 5.0))
    fix(a.actor, 0.0, 0.0)
    actions = a.explore(torch.zeros(20_000, 3))
    torch.testing.assert_close(actions.mean(0), torch.tensor([0.0, 2.0]), atol=0.01, rtol=0)
    torch.testing.assert_close(actions.std(0), torch.tensor([0.1, 0.2]), atol=0.005, rtol=0)
    x = wild.explore(torch.zeros(1000, 3))
    assert torch.equal(x.amin(0), a.low) and torch.equal(x.amax(0), a.high)


@of_all
def test_uniform_actions(algorithm):
    x = agent(algorithm).explore_uniformly(20_000)
    assert ((x >= torch.tensor([-1.0, 0.0])) & (x <= torch.tensor([1.0, 4.0]))).all()
    torch.testing.assert_close(x.mean(0), torch.tensor([0.0, 2.0]), atol=0.05, rtol=0)
    torch.testing.assert_close(x.std(0), torch.tensor([2.0, 4.0]) / 12**0.5, atol=0.02, rtol=0)
    assert np.corrcoef(x.T)[0, 1] == pytest.approx(0, abs=0.03)


@without_goals
@pytest.mark.parametrize("num_envs", [1, 4])
def test_one_update_per_environment_step_whatever_num_envs(algorithm, num_envs, tmp_path):
    folder = learn(algorithm, tmp_path, "Match-v0", 240, num_envs=num_envs, batch_size=4)
    checkpoint = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert checkpoint["critic_optimizer"]["state"][0]["step"] == 240 - 100
    assert checkpoint["actor_optimizer"]["state"][0]["step"] == (240 - 100) / (2 if algorithm == "td3" else 1)
