"""The vectorised environments: what a step returns, how they are seeded, that their state can be saved whole.

VectorEnvs is the same text in every algorithm file (shared_blocks.py sees to that), so most tests take the first one.
"""

from __future__ import annotations

import io

import contract_envs
import numpy as np
import pytest
import torch
from conftest import AGENTS, ALGORITHMS, MUJOCO_TASKS, load, settings, task

FETCH = ["FetchReach-v4", "FetchPush-v4", "FetchSlide-v4", "FetchPickAndPlace-v4"]
module = load(ALGORITHMS[0])


def through_a_file(state):
    """The state as a checkpoint holds it: written by torch.save, read without running any code in it."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def random_actions(envs, n: int, seed: int) -> list[torch.Tensor]:
    """n batches of actions, uniform within the bounds (or over the discrete actions)."""
    rng, space, count = np.random.default_rng(seed), envs.action_space, len(envs.vector.envs)
    if hasattr(space, "n"):
        return [torch.from_numpy(rng.integers(space.n, size=count)) for _ in range(n)]
    return [torch.from_numpy(rng.uniform(space.low, space.high, (count, *space.shape)).astype("f4")) for _ in range(n)]


# ---- one step --------------------------------------------------------------------------------------------------------


def test_final_and_first_observation_rewards_and_counts():
    """Countdown's observations (episode, step) tell exactly where every transition begins and ends."""
    envs = module.VectorEnvs("contract_envs:Countdown-v0", 2, seed=0)
    expected, k, t = [], 0, 0  # both environments run in step, for their episodes' lengths are not random
    for n in range(1, 20):
        assert envs.obs.tolist() == [[k, t]] * 2 and envs.obs.dtype == np.float32
        s2, r, terminal, done = envs.step(torch.zeros(2, 1))
        t += 1
        ends = t == 3 + k % 4
        assert s2.tolist() == [[k, t]] * 2, "s2 of a finished episode is its own last state"
        assert r.tolist() == [k + t / 8] * 2 and r.dtype == np.float32
        assert terminal.tolist() == done.tolist() == [ends] * 2
        if ends:
            expected += [(2 * n, sum(k + i / 8 for i in range(1, t + 1)), t)] * 2
            k, t = k + 1, 0
        assert envs.steps == 2 * n, "steps are counted over all environments"
    assert envs.finished == expected and len(expected) == 8


@pytest.mark.parametrize("env_id, length, terminal", [("Both", 3, True), ("Truncated", 2, False)])
def test_truncation_is_no_termination_but_both_at_once_is(env_id: str, length: int, terminal: bool):
    envs = module.VectorEnvs(f"contract_envs:{env_id}-v0", 1, seed=0)
    steps = [envs.step(torch.zeros(1, 1)) for _ in range(length)]
    assert [bool(done[0]) for *_, done in steps] == [False] * (length - 1) + [True]
    assert [bool(end[0]) for _, _, end, _ in steps] == [False] * (length - 1) + [terminal]
    assert steps[-1][0].tolist() == [[0, length]] and envs.obs.tolist() == [[1, 0]]


def test_results_of_a_step_are_not_overwritten_by_the_next():
    envs = module.VectorEnvs("contract_envs:Countdown-v0", 2, seed=0)
    first = envs.step(torch.zeros(2, 1))
    before, obs, obs_before = [x.copy() for x in first], envs.obs, envs.obs.copy()
    for _ in range(3):
        envs.step(torch.zeros(2, 1))
    for x, y in zip([*first, obs], [*before, obs_before], strict=True):
        np.testing.assert_array_equal(x, y)


def test_environments_start_differently_and_reproducibly():
    def start(seed):
        return module.VectorEnvs("Reacher-v5", 4, seed).obs

    a = start(1)
    assert len(np.unique(a, axis=0)) == 4, "every environment has its own seed"
    np.testing.assert_array_equal(a, start(1))
    assert not np.isin(a[:, 4:8], start(2)[:, 4:8]).any(), "another seed shares no start state"


def test_seeds_of_training_evaluation_and_restart_are_apart():
    drawn = [module.seeds(seed, stream, 20) for seed in (0, 1, 2) for stream in (0, 1, 2)]
    assert len({x for stream in drawn for x in stream}) == 9 * 20
    assert module.seeds(5, 1, 3) == module.seeds(5, 1, 8)[:3]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_actions_stay_within_each_dimensions_bounds(algorithm: str):
    """Strict raises if one does not; with outputs so large that every action is at a bound, rounding alone would
    leave some of these bounds."""
    script = load(algorithm)
    envs = script.VectorEnvs(task(algorithm, "contract_envs:Strict-v0"), 2, seed=0)
    args = settings(algorithm, env_id="contract_envs:Strict-v0", num_envs=2, device="cpu")
    agent = getattr(script, AGENTS[algorithm])(envs.observation_space, envs.action_space, args)
    last = [layer for layer in agent.actor.modules() if isinstance(layer, torch.nn.Linear)][-1]
    contract_envs.Strict.actions.clear()
    for bias in (-50.0, 0.0, 50.0):
        with torch.no_grad():
            last.weight.zero_()
            last.bias.fill_(bias)
        script.evaluate(agent, [script.make_env(args.env_id) for _ in range(2)], [0, 1, 2], "cpu")
        for _ in range(20):
            a = agent.explore(torch.from_numpy(envs.obs))
            envs.step(agent.actor.to_env(a) if hasattr(agent.actor, "to_env") else a)
    low, mid, high = (part[:21] for part in np.split(np.array(contract_envs.Strict.actions), 3))  # the evaluations
    np.testing.assert_allclose(low, np.broadcast_to(contract_envs.LOW, low.shape), rtol=0.02)
    np.testing.assert_allclose(high, np.broadcast_to(contract_envs.HIGH, high.shape), rtol=0.02)
    np.testing.assert_allclose(mid.mean(0), (contract_envs.LOW + contract_envs.HIGH) / 2, atol=1e-5)


# ---- saving and restoring --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("env_id", [*MUJOCO_TASKS, "CartPole-v1", "Pendulum-v1", "contract_envs:Aliased-v0", *FETCH])
def test_restored_environments_continue_bit_for_bit(env_id: str):
    """At several instants, into copies made from another seed, and on over the end of an episode."""
    envs = module.VectorEnvs(env_id, 2, seed=3)
    for env in envs.vector.envs:  # 45 steps before the time limit, so that also tasks of 1000 steps cross it
        layer = next(layer for layer in module.wrappers(env) if hasattr(layer, "_max_episode_steps"))
        layer._elapsed_steps = layer._max_episode_steps - 45
    for round, steps in enumerate((1, 6, 23)):
        for a in random_actions(envs, steps, seed=round):
            envs.step(a)
        saved = through_a_file(envs.state_dict())
        copy = module.VectorEnvs(env_id, 2, seed=99)
        for a in random_actions(copy, 2, seed=7):
            copy.step(a)
        copy.load_state_dict(saved)
        copy.finished.clear()
        envs.finished.clear()
        np.testing.assert_array_equal(envs.obs, copy.obs)
        for a in random_actions(envs, 60, seed=10 + round):
            for x, y in zip(envs.step(a), copy.step(a), strict=True):
                np.testing.assert_array_equal(x, y)
            np.testing.assert_array_equal(envs.obs, copy.obs)
        assert envs.finished == copy.finished and envs.steps == copy.steps
        assert [env.action_space.sample().tolist() for env in envs.vector.envs] == [
            env.action_space.sample().tolist() for env in copy.vector.envs
        ]
        if round == 0:
            assert envs.finished, "an episode must have ended on the way"


PLAIN = {
    "float64": np.float64(0.1), "float32": np.float32(0.1), "int64": np.int64(-3), "uint64": np.uint64(2**64 - 1),
    "bool": np.bool_(True), "python": [None, True, 3, 2**127 + 1, 0.1, "text", (1, (2.5, [3]))],
    "arrays": (np.arange(6, dtype=np.uint8).reshape(2, 3), np.zeros((0, 2)), np.array([True, False])),
    "order": np.asfortranarray(np.arange(6.0).reshape(2, 3)), "view": np.arange(10)[::3],
    "nan": np.array([np.nan, -0.0, np.inf], np.float16), 3: {"nested": {"deep": np.int8(7)}},
}  # fmt: skip


def equal(x, y) -> bool:
    """Same type, same dtype, same bits, all the way down."""
    if type(x) is not type(y):
        return False
    if isinstance(x, np.ndarray | np.generic):
        return x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes()
    if isinstance(x, dict):
        return list(x) == list(y) and all(equal(x[key], y[key]) for key in x)
    return len(x) == len(y) and all(map(equal, x, y)) if isinstance(x, list | tuple) else x == y


@pytest.mark.parametrize("name", list(PLAIN))
def test_plain_data_survives_encoding(name):
    assert equal(module.decode(through_a_file(module.encode(PLAIN[name]))), PLAIN[name])


def test_encoding_copies():
    x = np.zeros(3)
    encoded = module.encode({"x": x})
    x[0] = 1
    assert encoded["x"].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    "value",
    [object(), np.random.RandomState(0), np.random.default_rng(0), {np.int64(1): 2}, {(object(),): 1}, {1, 2}, b"x",
     np.array(["a"]), np.array([object()]), np.longdouble(1), [[object()]], lambda: 0, torch.zeros(1)],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_what_is_not_plain_data_is_refused(value):
    """Rather than a checkpoint that cannot be read or that lacks a part."""
    with pytest.raises(module.UnsavableState):
        module.encode({"x": value})


def test_state_that_cannot_be_saved_starts_new_episodes_and_says_so(capsys):
    envs = module.VectorEnvs("contract_envs:Hidden-v0", 2, seed=1)
    for _ in range(4):
        envs.step(torch.zeros(2, 1))
    saved = through_a_file(envs.state_dict())
    starts = []
    for _ in range(2):
        copy = module.VectorEnvs("contract_envs:Hidden-v0", 2, seed=1)
        copy.load_state_dict(saved)
        out = capsys.readouterr().out
        assert out.count("\n") == 1 and "cannot be saved" in out and "Ball" in out and "new episodes" in out
        assert copy.steps == 8 and copy.lengths.tolist() == [0, 0] and copy.obs.tolist() == [[0], [0]]
        starts.append(copy.step(torch.zeros(2, 1))[0])
    np.testing.assert_array_equal(*starts)
    fresh = module.VectorEnvs("contract_envs:Hidden-v0", 2, seed=1).step(torch.zeros(2, 1))[0]
    assert not np.isin(starts[0], fresh).any(), "new episodes, not those of the run's start again"


@pytest.mark.parametrize("what", ["Reward", "Obs"])
def test_nan_from_the_environment_ends_the_run(what: str):
    envs = module.VectorEnvs(f"contract_envs:Broken{what}-v0", 1, seed=0)
    for _ in range(149):
        envs.step(torch.zeros(1, 1))
    with pytest.raises(SystemExit, match=r"^error: the environment gave a reward or observation of NaN.*step 150"):
        envs.step(torch.zeros(1, 1))


def test_nan_action_never_reaches_the_environment():
    envs = module.VectorEnvs("contract_envs:Strict-v0", 1, seed=0)
    contract_envs.Strict.actions.clear()
    with pytest.raises(SystemExit, match=r"^error: the policy gave an action of NaN"):
        envs.step(torch.tensor([[0.0, np.nan, 0.0]]))
    assert not contract_envs.Strict.actions
