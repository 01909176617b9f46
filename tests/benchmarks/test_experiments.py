"""The experiments behind the slides: each one runs, and its mathematics has the values worked by hand.

What is asserted of a run's numbers is what theory says of them, not what it happened to give.
"""

import contextlib
import importlib
import io
import math
import pickle
import re
import subprocess
import sys
from types import SimpleNamespace

import cem
import common
import critics_lambda
import dqn
import numpy as np
import pandas as pd
import ppo_kl_penalty as kl
import pytest
import q_actor_critic as qac
import soft_q as soft
import svg0_dpg as svg
import tasks
import torch
from conftest import ROOT
from guide import EXPERIMENTS
from gymnasium.spaces import Box, Discrete
from tiny_envs import EndlessChain
from torch import nn

FOLDER = ROOT / "benchmarks" / "experiments"


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """quick(name): what an experiment's quick form told, and its csv. It runs once, and in this process."""
    made = {}

    def run(name: str) -> tuple[str, pd.DataFrame]:
        if name not in made:
            out, module = tmp_path_factory.mktemp(name) / "deep", importlib.import_module(name)
            words = [f"{name}.py", "--quick", "--seed", "3", "--seeds", "2", "--out", str(out)]
            threads = torch.get_num_threads()

            def in_turn(function, *columns):
                """A pool's map: what goes to a process and comes back is pickled."""
                there = pickle.loads(pickle.dumps(function))
                return [pickle.loads(pickle.dumps(there(*call))) for call in zip(*columns, strict=True)]

            pool = SimpleNamespace(map=in_turn)
            with pytest.MonkeyPatch.context() as patch, common.plt.rc_context():
                patch.setattr(sys, "argv", words)
                patch.setattr(common, "ProcessPoolExecutor", lambda *_, **__: contextlib.nullcontext(pool))
                with contextlib.redirect_stdout(io.StringIO()) as printed:
                    module.main(common.setup(module.__doc__))
            common.plt.close("all")
            torch.set_num_threads(threads)
            assert {path.name for path in out.iterdir()} == {f"{name}.{x}" for x in ("csv", "png", "txt")}
            assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
            assert (out / f"{name}.png").stat().st_size < 60_000
            told = (out / f"{name}.txt").read_text()
            first = printed.getvalue().splitlines()[0]
            assert first == f"seeds 3 to 4, some seconds; what comes is written to {out}"
            assert printed.getvalue().removeprefix(first).split()[3:] == told.split()  # after the three paths
            made[name] = told.strip(), pd.read_csv(out / f"{name}.csv")
        return made[name]

    return run


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_quick_form_writes_picture_and_csv_and_tells_two_sentences(quick, name):
    told, rows = quick(name)
    assert told.count(". ") == 1 and told.endswith(".") and "nan" not in told
    assert set(rows["seed"]) == {3, 4} and ("algorithm" not in rows or rows["algorithm"].nunique() > 1)
    assert name == "trust_region" or not rows.isna().any(axis=None)
    seeds = re.search(r"main\(setup\(__doc__(?:, seeds=(\d+))?\)\)", (FOLDER / f"{name}.py").read_text())[1] or 5
    assert set(pd.read_csv(FOLDER / "pictures" / f"{name}.csv")["seed"]) == set(range(1, int(seeds) + 1))


def test_each_is_a_command():
    """In a process each, forked where the libraries are loaded already."""
    code = """if True:
        import os, runpy, sys
        import gymnasium, matplotlib.pyplot, pandas, scipy.stats, torch
        failed = []
        for script in sys.argv[1:]:
            if not (child := os.fork()):
                sys.argv, sys.path[0] = [script, "--help"], os.path.dirname(script)
                runpy.run_path(script, run_name="__main__")
            failed += [script] * (os.waitpid(child, 0)[1] != 0)
        sys.exit(" ".join(failed))
    """
    scripts = [str(FOLDER / f"{name}.py") for name in EXPERIMENTS]
    done = subprocess.run([sys.executable, "-c", code, *scripts], capture_output=True, text=True)
    assert done.stderr.strip() == "" and done.stdout.count("usage: ") == len(EXPERIMENTS)


def test_as_a_command_with_processes(tmp_path):
    words = [FOLDER / "soft_q.py", "--quick", "--seed", "3", "--seeds", "2", "--out", tmp_path]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.partition("\n")[2].split()[3:] == (tmp_path / "soft_q.txt").read_text().split()
    frame = pd.read_csv(tmp_path / "soft_q.csv")
    # the same state, the same action: without entropy all paths end at the same goal, or nowhere
    assert set(frame[frame.algorithm == "Q-learning"].share) <= {0, 1}


@pytest.mark.parametrize("words", [["--seeds", "1"], ["--seed", "-1"], ["--out", __file__ + "/x"]])
def test_bad_input_is_named(monkeypatch, capsys, words):
    monkeypatch.setattr(sys, "argv", ["pg_variance.py", *words])
    with pytest.raises(SystemExit) as end:
        common.setup("")
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("error: " + words[0])


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


def test_numbers_are_where_they_can_be(quick):
    svg0, chased, penalty = (quick(name)[1] for name in ("svg0_dpg", "dqn", "ppo_kl_penalty"))
    assert svg0.q.max() <= 0 and (svg0.sigma > 0).equals(svg0.algorithm == "SVG(0)")
    assert chased.true.between(-16.28 / (1 - 0.98), 0).all()  # rewards: -(pi^2 + 0.1 * 8^2 + 0.001 * 2^2) to 0
    for (algorithm, _), rows in penalty.groupby(["algorithm", "seed"]):
        adapted = np.cumprod(np.select([rows.kl < 0.01 / 1.5, rows.kl > 0.01 * 1.5], [0.5, 2], 1)).tolist()
        beta = {"KL penalty, target 0.01": adapted, "KL penalty, beta 1": [1] * len(rows)}
        assert rows.beta.tolist() == beta.get(algorithm, [0] * len(rows))


def test_svg0_climbs_the_mean_of_q_over_the_noise():
    assert svg.smoothed(torch.tensor(0.1), 0.0).item() == pytest.approx(-0.01 + 0.1 * (math.cos(2.5) - 1))
    z, weight = (torch.from_numpy(x) for x in np.polynomial.hermite_e.hermegauss(80))
    for d, sigma in ((0.0, 0.05), (0.3, 0.2)):
        mean = (weight * svg.smoothed(d + sigma * z, 0.0)).sum() / weight.sum()
        assert mean.item() == pytest.approx(svg.smoothed(torch.tensor(d), sigma).item(), abs=1e-6)


def test_without_noise_svg0_is_the_deterministic_policy_gradient(double):
    dpg = svg.DDPG(*svg.SPACES, svg.DDPGArgs(device="cpu", compile=False))
    sac = svg.SAC(*svg.SPACES, svg.SACArgs(device="cpu", compile=False, alpha="0"))
    dpg.critic, sac.critics = svg.KnownQ(), nn.ModuleList([svg.KnownQ(), svg.KnownQ()])
    with torch.no_grad():
        for ours, theirs in zip(list(sac.actor.parameters())[:4], list(dpg.actor.parameters())[:4], strict=True):
            ours.copy_(theirs)
        sac.actor.net[-1].weight.copy_(torch.cat([dpg.actor.net[-1].weight, torch.zeros(1, 256)]))
        sac.actor.net[-1].bias.copy_(torch.cat([dpg.actor.net[-1].bias, torch.tensor([-20.0])]))  # log sigma
    s = torch.linspace(-1, 1, 16).unsqueeze(-1)
    of_sac = torch.autograd.grad(sac.actor_loss(s, torch.randn(16, 1))[0], sac.actor.net[0].weight)[0]
    of_dpg = torch.autograd.grad(dpg.actor_loss(s)[0], dpg.actor.net[0].weight)[0]
    assert of_dpg.abs().max() > 1e-3
    torch.testing.assert_close(of_sac, of_dpg, rtol=1e-4, atol=1e-6)


def test_cem_refits_to_the_best_quarter_finds_a_maximum_and_acts_with_each_members_parameters():
    theta = torch.tensor([[0.0, 1], [1, 1], [2, 5], [9, 9], [4, 5], [9, 0], [0, 0], [9, 9]])
    m, sd = cem.refit(theta, torch.tensor([0.0, 1, 7, 2, 8, 3, 4, 5]), floor=0.5)
    assert m.tolist() == [3, 5] and sd.tolist() == [1, 0.5]
    torch.manual_seed(0)
    best, m, sd = torch.tensor([2.0, -1.0]), torch.zeros(2), torch.ones(2)
    for _ in range(40):
        theta = m + sd * torch.randn(64, 2)
        m, sd = cem.refit(theta, -(theta - best).square().sum(-1), floor=0.01)
    assert (m - best).abs().max() < 0.05
    actor = cem.DeterministicActor(2, torch.tensor([-3.0]), torch.tensor([3.0]), ()).requires_grad_(False)
    theta, s = (
        torch.tensor([[1.0, 0, 0], [0, 2, 1]]),
        torch.tensor([[0.5, 9], [9, -1]]),
    )  # weights and bias of two members
    assert cem.act(actor, theta, s).squeeze(-1).tolist() == pytest.approx([3 * math.tanh(0.5), 3 * math.tanh(-1)])


def test_dqn_and_double_dqn_value_different_actions():
    r, s2, terminal = torch.tensor([1.0, 1]), torch.zeros(2, 1), torch.tensor([0.0, 1])
    for double, value in ((False, 5), (True, 2)):
        agent = dqn.DQN(1, 2, double)
        for net, q in ((agent.q, [1.0, 3]), (agent.q_target, [5.0, 2])):
            net[-1].weight.data.zero_()
            net[-1].bias.data.copy_(torch.tensor(q))
        assert agent.target(r, s2, terminal).tolist() == pytest.approx([1 + 0.98 * value, 1])


@pytest.mark.parametrize("double", [False, True])
def test_dqn_learns_a_chain_of_two_states(double):
    torch.manual_seed(0)
    agent, column = dqn.DQN(1, 2, double), torch.tensor([[0.0], [0], [1], [1]])  # s_0 twice, s_1 twice
    a, terminal = torch.tensor([[0.0], [1], [0], [1]]), torch.tensor([0.0, 1, 1, 1])
    for k in range(1000):
        agent.step(column, a, torch.tensor([0.0, 0.5, 1, 0]), torch.ones(4, 1), terminal)
        if k % 20 == 0:
            dqn.follow(agent.q_target, agent.q, 1.0)
    q = agent.q(torch.tensor([[0.0], [1]])).detach()  # on to s_1, where a_0 pays 1; or 0.5 at once
    torch.testing.assert_close(q, torch.tensor([[0.98, 0.5], [1.0, 0.0]]), atol=0.02, rtol=0)


def test_soft_value_and_its_policy():
    q = 2 * torch.tensor([1.0, 3]).log()
    v, pi = soft.value(q, 2.0), soft.policy(q, 2.0)
    assert v.item() == pytest.approx(2 * math.log(4)) and pi.tolist() == pytest.approx([0.25, 0.75])
    assert v.item() == pytest.approx((pi * q - 2 * pi * pi.log()).sum().item())  # V = E[Q] + alpha H(pi)
    assert soft.value(q, 1e-5).item() == pytest.approx(q.max().item(), abs=1e-3)


def test_the_penalty_is_beta_times_the_kl_divergence():
    torch.manual_seed(0)
    spaces = Box(-1, 1, (1,), np.float32), Box(-1, 1, (1,), np.float32)
    agent = kl.PenaltyPPO(*spaces, kl.PPOArgs(device="cpu", compile=False, log_std_init=0.0), 2.0, None)
    agent.actor.mu[-1].weight.data.zero_()
    agent.actor.mu[-1].bias.data.fill_(0.5)  # pi = N(0.5, 1), pi_old = N(0, 1): KL = 0.5^2 / 2
    a = torch.randn(100_000, 1)
    logp_old = -0.5 * a.squeeze(-1).square() - 0.5 * math.log(2 * math.pi)
    batch = torch.zeros_like(a), a, logp_old, torch.randn(100_000), torch.zeros(100_000)
    penalty = (agent.loss(*batch)[0] - kl.PPO.loss(agent, *batch)[0]).item()
    log_ratio = agent.actor.log_prob(*batch[:2])[0].detach() - logp_old
    error = (log_ratio.exp() - 1 - log_ratio).std().item() / math.sqrt(100_000)
    assert abs(penalty - 2 * 0.125) < 2 * 4 * error


def test_q_actor_critic_makes_a_semi_gradient_step_and_its_advantage_has_mean_zero():
    torch.manual_seed(0)
    agent = qac.QActorCritic(Box(-9, 9, (2,), np.float32), Discrete(2), advantage=True)
    agent.critic = nn.Linear(2, 2, bias=False)
    agent.critic.weight.data.copy_(torch.eye(2))  # Q(s, a) = s_a
    s, s2, one = torch.tensor([[2.0, 5]]), torch.tensor([[3.0, 4]]), torch.ones(1)
    for terminal, y in ((0.0, 1 + 0.99 * 3), (1.0, 1.0)):
        loss, _ = agent.critic_loss(s, torch.tensor([1]), one, s2, torch.tensor([0]), torch.tensor([terminal]))
        assert loss.item() == pytest.approx(0.5 * (y - 5) ** 2)
        gradient = torch.autograd.grad(loss, agent.critic.weight)[0]  # - delta grad Q(s, a); none through Q(s', a')
        torch.testing.assert_close(gradient, torch.tensor([[0.0, 0], [(5 - y) * 2, (5 - y) * 5]]))
    pi = agent.actor.logits(s).softmax(-1).squeeze(0)
    weight = torch.cat([agent.weight(s, torch.tensor([a])) for a in range(2)])
    assert (pi @ weight).item() == pytest.approx(0, abs=1e-5) and (weight[1] - weight[0]).item() == pytest.approx(3)
