"""The vectorised environments: what a step returns, how they are seeded, that a reset decides all that follows.

VectorEnvs is the same text in every algorithm file (shared_blocks.py sees to that), so most tests take one of them.
"""

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import load, make_agent, train

TASKS = [
    "Ant-v5", "HalfCheetah-v5", "Hopper-v5", "Humanoid-v5", "HumanoidStandup-v5", "InvertedDoublePendulum-v5",
    "InvertedPendulum-v5", "Pusher-v5", "Reacher-v5", "Swimmer-v5", "Walker2d-v5", "FetchReach-v4", "FetchPush-v4",
    "FetchSlide-v4", "FetchPickAndPlace-v4", "CartPole-v1", "Pendulum-v1", "contract_envs:Hidden-v0",
]  # fmt: skip
module = load("td3")


def start(env_id: str, num_envs: int, seed: int = 0):
    """Environments after their first reset."""
    envs = module.VectorEnvs(env_id, num_envs)
    envs.reset(module.seeds(seed, n=num_envs))
    return envs


def test_final_and_first_observation_rewards_and_counts():
    """Countdown's observations (episode, step) tell exactly where every transition begins and ends."""
    envs = start("contract_envs:Countdown-v0", 2)
    expected, k, t = [], 0, 0  # both environments run in step, for their episodes' lengths are not random
    for n in range(1, 20):
        assert envs.obs.tolist() == [[k, t]] * 2 and envs.obs.dtype == np.float32
        s2, r, terminal, done = envs.step(torch.zeros(2, 1))
        t += 1
        ends = t == 3 + k % 4
        assert s2.tolist() == [[k, t]] * 2, "s2 of a finished episode is its own last state"
        assert r.tolist() == [k + t / 8] * 2 and s2.dtype == np.float32
        assert terminal.tolist() == done.tolist() == [ends] * 2
        if ends:
            expected += [(i, 2 * n, {"return": sum(k + i / 8 for i in range(1, t + 1)), "length": t}) for i in (0, 1)]
            k, t = k + 1, 0
        assert envs.steps == 2 * n, "steps are counted over all environments"
    assert envs.finished == expected and len(expected) == 8
    envs.reset([1, 2])
    assert envs.obs.tolist() == [[0, 0]] * 2 and not envs.returns.any()


@pytest.mark.parametrize("env_id, length, terminal", [("Both", 3, True), ("Truncated", 2, False)])
def test_truncation_is_no_termination_but_both_at_once_is(env_id: str, length: int, terminal: bool):
    envs = start(f"contract_envs:{env_id}-v0", 1)
    steps = [envs.step(torch.zeros(1, 1)) for _ in range(length)]
    assert [bool(done[0]) for *_, done in steps] == [False] * (length - 1) + [True]
    assert [bool(end[0]) for _, _, end, _ in steps] == [False] * (length - 1) + [terminal]
    assert steps[-1][0].tolist() == [[0, length]] and envs.obs.tolist() == [[1, 0]]


def test_a_cut_is_a_truncation_of_unfinished_episodes():
    envs = start("contract_envs:Countdown-v0", 2)
    envs.cut_at = 4
    assert not envs.step(torch.zeros(2, 1))[3].any()
    s2, _, terminal, done = envs.step(torch.zeros(2, 1))
    assert done.all() and not terminal.any() and s2.tolist() == [[0, 2]] * 2 and envs.finished == []


def test_results_of_a_step_are_not_overwritten_by_the_next():
    envs = start("contract_envs:Countdown-v0", 2)
    first = [*envs.step(torch.zeros(2, 1)), envs.obs]
    before = [x.copy() for x in first]
    for _ in range(3):
        envs.step(torch.zeros(2, 1))
    for x, y in zip(first, before, strict=True):
        np.testing.assert_array_equal(x, y)


def test_environments_start_differently_and_reproducibly():
    a = start("Reacher-v5", 4, 1).obs
    assert len(np.unique(a, axis=0)) == 4, "every environment has its own seed"
    np.testing.assert_array_equal(a, start("Reacher-v5", 4, 1).obs)
    assert not np.isin(a[:, 4:8], start("Reacher-v5", 4, 2).obs[:, 4:8]).any(), "another seed shares no start state"
    streams = [(1, 1, 0), (1, 1, 9), (1, 2), (1, 3), (1, 4, 0), (1, 4, 9), (2, 1, 0), (0, 1, 0), (10**20, 1, 0)]
    drawn = {x for entropy in streams for x in module.seeds(*entropy, n=20)}
    assert len(drawn) == 9 * 20, "all are apart"
    assert module.seeds(5, 1, n=3) == module.seeds(5, 1, n=8)[:3]


@pytest.mark.parametrize("env_id", TASKS)
def test_a_seeded_reset_decides_everything(env_id: str):
    """Exact resume rests on it: used and fresh environments, reset alike, go on alike to the last bit."""
    used, fresh = start(env_id, 2, seed=99), module.VectorEnvs(env_id, 2)
    space = used.action_space
    space.seed(0)
    for round in range(2):
        for n in range(60):
            a = torch.from_numpy(np.stack([space.sample(), space.sample()]))
            steps = [envs.step(a) for envs in ((used, fresh) if round else (used,))]
            assert not round or all(np.array_equal(x, y) for x, y in zip(*steps, strict=True)), f"step {n}"
        used.reset([7, 8])
        fresh.reset([7, 8])
        np.testing.assert_array_equal(used.obs, fresh.obs)


def test_an_evaluation_counts_the_first_episode_of_each_seed():
    """However many run side by side, and however long each is."""
    envs = [module.VectorEnvs("contract_envs:Success-v0", n) for n in (1, 4, 6)]
    agent = make_agent("td3", envs[0].observation_space, envs[0].action_space)
    one, four, six = (module.evaluate(agent, e, 3, 6, "cpu") for e in envs)
    assert one == four == six and {episode["length"] for episode in one} == {3, 9}


def test_an_action_of_nan_never_reaches_the_environment():
    """Strict would raise another error."""
    envs = start("contract_envs:Strict-v0", 1)
    with pytest.raises(module.RunFailed, match=r"^action became NaN or infinite at step 0"):
        envs.step(torch.tensor([[0.0, np.nan, 0.0]]))


def test_a_missing_class_is_told_and_a_fault_inside_an_environment_shows_itself():
    with pytest.raises(module.UserError, match="NoSuchClass"):
        module.make_env("contract_envs:Lacking-v0")
    gym.register("Elsewhere-v0", "contract_envs:NoSuchClass")
    with pytest.raises(module.UserError, match="NoSuchClass"):
        module.make_env("Elsewhere-v0")
    with pytest.raises(AttributeError, match="name_that_is_gone"):
        module.make_env("contract_envs:Outdated-v0")


def test_make_env_may_return_an_environment_that_is_not_registered(tmp_path, monkeypatch):
    own = type(gym.make("contract_envs:Countdown-v0").unwrapped)
    monkeypatch.setattr(module, "make_env", lambda env_id, evaluation=False, **kwargs: own())
    folder = train("td3", env_id="mine", run_dir=tmp_path / "run")
    assert (folder / "eval.csv").read_text().count("\n256,") == 2
    monkeypatch.setattr(load("reinforce"), "make_env", module.make_env)
    with pytest.raises(load("reinforce").UserError, match="--env-id mine has no time limit"):
        train("reinforce", env_id="mine", run_dir=tmp_path / "other")
