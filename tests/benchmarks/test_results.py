"""benchmarks/results: the committed policies are those of the table."""

import importlib
import json

import numpy as np
import pandas as pd
import pytest
from records import COMMITTED

POLICIES = sorted(path.parent for path in COMMITTED.glob("policies/*/*/policy.pt"))
EVALUATED = ["ppo/HalfCheetah-v5", "ppo/Walker2d-v5", "reinforce/Humanoid-v5"]


def run_of(folder):
    """Settings of a policy's run, and its evaluations in results.csv."""
    args = json.loads((folder / "config.json").read_text())["args"]
    rows = pd.read_csv(COMMITTED / "results.csv").query("source == 'gradus'")
    same = (
        (rows["algorithm"] == folder.parent.name) & (rows["env_id"] == args["env_id"]) & (rows["seed"] == args["seed"])
    )
    return args, rows[same]


def test_policies_are_small_and_each_is_of_a_run_of_the_table():
    sizes = [(folder / "policy.pt").stat().st_size for folder in POLICIES]
    assert max(sizes) < 2**20 and sum(sizes) < 40 * 2**20
    for folder in POLICIES:
        args, rows = run_of(folder)
        assert args["env_id"] == folder.name and args["seed"] <= 10 and len(rows) > 0, folder


@pytest.mark.parametrize("name", EVALUATED)
def test_a_policy_earns_what_the_table_says(name):
    """Exactly on the machine that made it, within three standard errors elsewhere, as rounding differs."""
    folder = COMMITTED / "policies" / name
    args, rows = run_of(folder)
    script = importlib.import_module(name.partition("/")[0].partition("-")[0])
    agent, _, step = script.load_policy(folder, getattr(script, script.__name__.upper()), script.Args)
    envs = script.VectorEnvs(args["env_id"], args["eval_episodes"], evaluation=True)
    returns = [x["return"] for x in script.evaluate(agent, envs, args["seed"], args["eval_episodes"], "cpu")]
    (expected,) = rows.loc[rows["step"] == step, "return"]
    assert abs(np.mean(returns) - expected) <= 3 * np.std(returns, ddof=1) / np.sqrt(len(returns)) + 1e-5 * abs(
        expected
    )
