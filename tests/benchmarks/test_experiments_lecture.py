"""Experiments with the lectures' other algorithms: each runs, and its mathematics has the values worked by hand."""

import math
import subprocess
import sys

import cem
import dqn
import numpy as np
import pandas as pd
import ppo_kl_penalty as kl
import pytest
import q_actor_critic as qac
import soft_q as soft
import svg0_dpg as svg
import torch
from conftest import ROOT
from gymnasium.spaces import Box, Discrete
from torch import nn


@pytest.mark.parametrize("name", ["cem", "dqn", "ppo_kl_penalty", "q_actor_critic", "soft_q", "svg0_dpg"])
def test_quick_form_writes_picture_and_csv_and_tells_two_sentences(name, tmp_path):
    folder = ROOT / "benchmarks" / "experiments"
    assert set(pd.read_csv(folder / "pictures" / f"{name}.csv").seed) == {1, 2, 3, 4, 5}  # the committed one
    command = [sys.executable, str(folder / f"{name}.py"), "--quick", "--seed", "3", "--seeds", "2", "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{name}.csv", f"{name}.png", f"{name}.txt"]
    assert (tmp_path / f"{name}.png").stat().st_size < 60_000
    told = (tmp_path / f"{name}.txt").read_text().strip()
    assert " ".join(done.stdout.split()[3:]) == told  # after the three paths
    assert told.count(". ") == 1 and told.endswith(".") and "nan" not in told
    frame = pd.read_csv(tmp_path / f"{name}.csv")
    assert set(frame.seed) == {3, 4} and frame.algorithm.nunique() > 1 and not frame.isna().any(axis=None)
    if name == "soft_q":  # the same state, the same action: without entropy all paths end at the same goal, or nowhere
        assert set(frame[frame.algorithm == "Q-learning"].share) <= {0, 1}
    if name == "svg0_dpg":
        assert frame.q.max() <= 0 and (frame.sigma > 0).equals(frame.algorithm == "SVG(0)")
    if name == "dqn":  # rewards are from -(pi^2 + 0.1 * 8^2 + 0.001 * 2^2) to 0
        assert frame.true.between(-16.28 / (1 - 0.98), 0).all()
    if name == "ppo_kl_penalty":
        for (algorithm, _), rows in frame.groupby(["algorithm", "seed"]):
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
