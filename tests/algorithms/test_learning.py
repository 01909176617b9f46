"""Every algorithm learns small tasks in seconds, and the value of a chain that can be worked out; HER-DDPG apart."""

import pytest
import torch
from conftest import HAS_REPLAY, final_value, learn, make_agent, rows
from tiny_envs import EndlessChain

GAMMA = {"gamma": 0.8}
ROLLOUTS = GAMMA | {"norm_reward": False, "learning_rate": 3e-3, "num_steps": 32}
REPLAY = GAMMA | {"tau": 0.1}
CHAIN = [  # algorithm, steps, settings, value of the endless chain: 5 for its rewards
    ("a2c", 12_000, ROLLOUTS, 5),
    ("ppo", 4096, ROLLOUTS | {"update_epochs": 10}, 5),
    ("trpo", 8192, ROLLOUTS, 5),
    ("ddpg", 404, REPLAY, 5),
    ("td3", 404, REPLAY, 5),
    ("sac", 404, REPLAY | {"alpha": "0"}, 5),
    # the widest policy has an entropy of 0.68 on [-1, 1] (log 2 if it were uniform): Q = (1 + 0.8 alpha 0.68) / 0.2
    ("sac", 404, REPLAY | {"alpha": "1"}, 7.7),
    ("sac", 404, REPLAY | {"alpha": "1", "value_network": True}, 7.7),
]


@pytest.mark.parametrize(("algorithm", "steps", "changes", "value"), CHAIN)
def test_endless_chain_is_worth_one_over_one_minus_gamma(algorithm, steps, changes, value, tmp_path):
    """Less than 4 if truncation were stored as termination."""
    folder = learn(algorithm, tmp_path, "Chain-v0", steps, **changes)
    if algorithm in HAS_REPLAY:
        learned = float(rows(folder / "metrics.csv")[-1]["q"])
    else:
        agent = make_agent(algorithm, EndlessChain.observation_space, EndlessChain().action_space)
        agent.load_state_dict(torch.load(folder / "checkpoint.pt", weights_only=True)["agent"])
        learned = agent.critic(agent.normalise(torch.ones(1, 1))).item()
    assert learned == pytest.approx(value, abs=0.5 if algorithm in HAS_REPLAY else 0.3)


LEARN = [  # algorithm, steps, settings of what learns Match, where the best constant action gets -0.8; return to exceed
    ("reinforce", 6400, {"num_envs": 32, "value_epochs": 4, "learning_rate": 1e-2}, -0.25),
    ("a2c", 12_000, {"num_steps": 16, "learning_rate": 5e-3, "norm_reward": False}, -0.25),
    ("ppo", 6144, {"update_epochs": 5, "learning_rate": 3e-3}, -0.25),
    ("trpo", 8192, {"max_kl": 0.05, "update_epochs": 5}, -0.25),
    ("ddpg", 504, {}, -0.2),
    ("ddpg", 704, {"network": "lillicrap", "critic_weight_decay": 1e-3, "actor_learning_rate": 3e-4}, -0.3),
    ("td3", 504, {}, -0.2),
    ("sac", 504, {}, -0.2),
    ("sac", 504, {"alpha": "auto"}, -0.3),
    ("sac", 504, {"value_network": True}, -0.3),
]


@pytest.mark.parametrize(("algorithm", "steps", "changes", "least"), LEARN)
def test_learns_asymmetric_actions(algorithm, steps, changes, least, tmp_path):
    assert final_value(learn(algorithm, tmp_path, "Match-v0", steps, **changes)) > least


@pytest.mark.parametrize(("algorithm", "steps", "changes", "least"), LEARN[:4])
def test_learns_discrete_actions(algorithm, steps, changes, least, tmp_path):
    """Where a constant one gets -0.5."""
    assert final_value(learn(algorithm, tmp_path, "DiscreteMatch-v0", steps, **changes)) > least


@pytest.mark.parametrize(
    ("algorithm", "steps", "changes"),
    [
        ("ppo", 16_384, {"num_steps": 64, "update_epochs": 5, "learning_rate": 3e-3}),
        ("trpo", 24_576, {"num_steps": 64, "max_kl": 0.03, "update_epochs": 20}),
    ],
)
def test_balances_a_pendulum(algorithm, steps, changes, tmp_path):
    folder = learn(algorithm, tmp_path, "InvertedPendulum-v5", steps, eval_episodes=4, **changes)
    assert final_value(folder) > 900
