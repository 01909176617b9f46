"""The experiments on gradient estimates, critics, trust regions and replay: their mathematics, and that each one runs.

What is asserted of their numbers is what theory says of them, not what a run happened to give.
"""

import math
import subprocess
import sys

import common
import critics_lambda
import numpy as np
import pandas as pd
import pytest
import tasks
import torch
from conftest import ROOT
from tiny_envs import EndlessChain
from torch import nn

EXPERIMENTS = ROOT / "benchmarks" / "experiments"
NAMES = ["pg_variance", "importance_sampling", "pathwise_variance", "overestimation", "target_networks"]
NAMES += ["trust_region", "temperature", "critics_lambda", "hindsight"]


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """quick(name): what a quick run printed, and its csv."""
    made = {}

    def run(name: str) -> tuple[str, pd.DataFrame]:
        if name not in made:
            out = tmp_path_factory.mktemp(name) / "deep"
            command = [sys.executable, EXPERIMENTS / f"{name}.py", "--quick", "--seeds", "2", "--out", out]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            assert {path.name for path in out.iterdir()} == {f"{name}.{x}" for x in ("csv", "png", "txt")}
            assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
            told = (out / f"{name}.txt").read_text()
            assert done.stdout.split()[3:] == told.split()  # after the three paths
            made[name] = told, pd.read_csv(out / f"{name}.csv")
        return made[name]

    return run


@pytest.mark.parametrize("name", NAMES)
def test_quick_run_tells_what_it_shows(quick, name):
    told, rows = quick(name)
    assert set(rows["seed"]) == {1, 2}
    assert told.count(". ") == 1  # two sentences
    assert "nan" not in told


def test_gradient_estimates_agree_with_finite_differences(quick):
    rows = quick("pg_variance")[1].set_index(["estimator", "baseline"])
    for baseline in ("none", "value"):  # the others come from the trajectories that they are subtracted from
        assert (rows.loc[[("total-return", baseline), ("reward-to-go", baseline)], "standard_errors_off"] < 4).all()
    variance = rows.groupby(level=[0, 1])["variance"].mean()
    assert variance["total-return", "mean"] < variance["total-return", "none"] / 2
    assert variance["reward-to-go", "none"] < variance["total-return", "none"] / 2
    assert variance["reward-to-go", "value"] < variance["reward-to-go", "none"] / 2


def test_pathwise_and_likelihood_ratio_agree(quick):
    rows = quick("pathwise_variance")[1]
    assert (rows["standard_errors_off"] < 4.5).all()
    variance = rows.groupby(["sigma", "estimate"])["variance"].mean().unstack()
    assert (variance["pathwise"] < variance["likelihood ratio, reward-to-go"] / 5).all()


def test_importance_weights_have_mean_one_and_correct_the_gradient(quick):
    rows = quick("importance_sampling")[1]
    near = rows[rows["shift"].between(0.1, 0.3)]
    assert ((near["weight"] - 1).abs() < 4 * near["weight_standard_error"]).all()
    assert (near[near["estimate"] == "weights"]["standard_errors_off"] < 4.5).all()
    assert (near[near["estimate"] == "no weights"]["standard_errors_off"] > 4.5).all()
    share = rows.groupby("shift")["effective_share"].mean()
    assert share[0.0] == 1
    assert share[0.2] == pytest.approx(math.exp(-10 * 0.2**2), rel=0.05)


def test_point_mass_by_hand():
    actor = tasks.agent(2).actor
    with torch.no_grad():
        actor.log_std.fill_(0.0)  # a = -x + z: E r_0 = -(1 + 1/4) - (1 + 1/4 + 1) / 10 = -1.475
    assert tasks.exact_return(actor, 1) == pytest.approx(-1.475)
    # x_1 = 0.8 x_0 + 0.2 z: m = 0.8, v = 0.16 + 0.04 = 0.2, E r_1 = -(0.64 + 0.2) - (0.64 + 0.2 + 1) / 10 = -1.024
    assert tasks.exact_return(actor, 2) == pytest.approx(-2.499)
    # d E r_0 / d log std = -0.2, / d w = -0.2 w E[x^2] = 0.25, / d drift = 0 at t = 0, / d bias = -0.2 E[-x] = 0.2
    gradient = tasks.finite_differences(actor, 1)
    np.testing.assert_allclose(gradient, [-0.2, 0.25, 0.0, 0.2], atol=1e-5)
    torch.manual_seed(1)
    with torch.no_grad():
        r = tasks.simulate(actor, 100_000, 2)[2].sum(0)
    assert abs(r.mean() + 2.499) < 4 * r.std() / len(r) ** 0.5


def test_accuracy_by_hand():
    estimates = [torch.tensor([1.0, 0.0]), torch.tensor([3.0, 0.0]), torch.tensor([2.0, 3.0])]  # mean (2, 1)
    found = tasks.accuracy(estimates, torch.tensor([2.0, 0.0], dtype=torch.float64))
    assert found["variance"] == pytest.approx((1 + 3) / 4)
    assert found["error"] == pytest.approx(math.sqrt((1 + 1 + 9) / 3 / 4))
    assert found["length"] == pytest.approx(1)
    assert found["standard_errors_off"] == pytest.approx(1)  # second component: mean 1, std sqrt(3), 3 estimates


def test_targets_of_a_walk_by_hand(quick):
    states, v = torch.tensor([18, 17, 18, 19, 20]), torch.arange(21) / 10
    v[[0, 20]] = 0.0  # the ends are worth nothing
    assert critics_lambda.targets(states, v, "n-step", 2).tolist() == pytest.approx([1.8, 1.9, 1.0, 1.0])
    assert critics_lambda.targets(states, v, "lambda", 0.0).tolist() == pytest.approx([1.7, 1.8, 1.9, 1.0])
    assert critics_lambda.targets(states, v, "lambda", 1.0).tolist() == pytest.approx([1.0, 1.0, 1.0, 1.0])
    wanted = [1.6625, 1.625, 1.45, 1.0]  # y_t = V(s_{t+1}) / 2 + y_{t+1} / 2 where there is no reward
    assert critics_lambda.targets(states, v, "lambda", 0.5).tolist() == pytest.approx(wanted)
    rows = quick("critics_lambda")[1].groupby(["kind", "value"]).mean()
    assert rows.loc[("lambda", 0.0), "variance"] < rows.loc[("lambda", 1.0), "variance"] / 10
    assert rows.loc[("lambda", 1.0), "bias2"] < rows.loc[("lambda", 0.0), "bias2"] / 2


def test_true_discounted_return_by_hand():
    agent = nn.Module()
    agent.act = lambda s: torch.zeros(len(s), 1)
    env = common.gym.wrappers.TimeLimit(EndlessChain(), 9)  # reward 1 for ever; the last 7 of 9 steps do not count
    found = common.estimated_and_true(agent, lambda s, a: 2 * s[:, 0], env, 0.5, seed=1, n=3)
    assert found == {"estimated": 2.0, "true": pytest.approx(2 - (0.5**8 + 0.5**7) / 2)}


def test_steps_obey_what_limits_them(quick):
    kl = quick("trust_region")[1].groupby("setting")["kl"].max()
    assert kl["TRPO, delta = 0.0001"] <= 1.01e-4
    assert kl["TRPO, delta = 0.01"] <= 1.01e-2
    assert kl["PPO, eps = 0.02"] < kl["PPO, eps = inf"]
    assert kl["A2C, alpha = 0.0003"] < kl["A2C, alpha = 0.03"]


def test_hindsight_replays_goals_that_were_reached(quick):
    replayed = quick("hindsight")[1].groupby("hindsight")["replayed"].mean()
    assert replayed[True] > 0.1 > replayed[False]


def test_the_pictures_fewer_colours_leave_every_curve_its_own():
    random, (figure, axes) = np.random.default_rng(1), common.panels("curves", 2)
    for axis in axes:
        for k, colour in enumerate(common.COLOURS[:5]):
            y = random.normal(np.linspace(0, k, 8), 1, (3, 8))
            frame = pd.DataFrame({"seed": [1] * 8 + [2] * 8 + [3] * 8, "x": [*range(8)] * 3, "y": y.flatten()})
            common.curve(axis, frame, "x", "y", str(k), color=colour)
    drawn = np.asarray(common.picture(figure).convert("RGB")).reshape(-1, 3).astype(int)
    for colour in common.COLOURS[:5]:
        wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert abs(drawn - wanted).max(1).min() <= 8, f"no pixel is {colour}"


@pytest.mark.parametrize("words", [["--seeds", "1"], ["--seed", "-1"], ["--out", __file__ + "/x"]])
def test_bad_input_is_named(words):
    script = EXPERIMENTS / "pg_variance.py"
    done = subprocess.run([sys.executable, script, *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: " + words[0])
    assert done.stdout == ""
