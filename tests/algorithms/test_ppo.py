"""PPO's clipped loss and its epochs of minibatches; see test_on_policy.py too."""

import math
from functools import partial

import pytest
import torch
from conftest import ACTIONS, OBSERVATIONS, make_agent, rollout
from ppo import PPO

agent = partial(make_agent, "ppo", OBSERVATIONS, ACTIONS["continuous"], num_envs=8, num_steps=16)


def spy(a: PPO) -> list[tuple[torch.Tensor, ...]]:
    """The minibatches that the agent makes steps on."""
    seen, step = [], a.step
    a.step = lambda *minibatch: seen.append(minibatch) or step(*minibatch)
    return seen


def test_loss_worked_by_hand():
    a = agent(vf_coef=0.4, ent_coef=0.1)  # clip_coef is 0.2
    logp = torch.tensor([1.5, 0.5, 1.5, 0.5]).log().requires_grad_()
    a.actor.log_prob = lambda s, a: (logp, torch.full((4,), 2.0))
    a.critic.forward = lambda s: torch.ones(4, 1)
    k = 0.75**0.5  # advantages that normalising turns into k, k, -k, -k
    adv = torch.tensor([5.0, 5.0, -1.0, -1.0])
    loss, info = a.loss(torch.zeros(4, 3), None, torch.zeros(4), adv, torch.tensor([1.0, 2.0, 3.0, 1.0]))
    # min(ratio A, clip(ratio) A) = 1.2 k, 0.5 k, -1.5 k, -0.8 k;  V - target = 0, -1, -2, 0
    l_clip, l_vf = (1.2 + 0.5 - 1.5 - 0.8) * k / 4, 5 / 4
    kl = (0.5 - math.log(1.5) + -0.5 - math.log(0.5)) / 2
    wanted = {"policy_loss": -l_clip, "value_loss": l_vf, "entropy": 2.0, "kl": kl, "clip_fraction": 1.0}
    assert {name: x.item() for name, x in info.items()} == pytest.approx(wanted, abs=1e-6)
    assert loss.item() == pytest.approx(-(l_clip - 0.4 * l_vf + 0.1 * 2.0), abs=1e-6)
    loss.backward()
    # the clipped samples (first and last) push no further, the others still do: d loss / d logp = - ratio A / 4
    torch.testing.assert_close(logp.grad, torch.tensor([0.0, -0.5 * k / 4, 1.5 * k / 4, 0.0]))


@pytest.mark.parametrize("recompute", [False, True])
def test_every_sample_is_used_once_an_epoch_the_smaller_last_minibatch_too(recompute):
    """And it stays together with its action, its log-probability under the old policy, its advantage and target."""
    a = agent(update_epochs=3, num_minibatches=3, recompute_advantages=recompute, norm_reward=False, learning_rate=0.01)
    s, actions, *rest = data = rollout(a)
    s, s2 = a.normalise(s), a.normalise(rest[1])
    seen, before = spy(a), [x.flatten() for x in a.advantages(s, rest[0], s2, *rest[2:])]
    s, actions = s.flatten(0, 1), actions.flatten(0, 1)
    wanted = [s, actions, a.actor.log_prob(s, actions)[0].detach(), *before]
    assert a.update(*data, 0.0)["gradient_steps"] == 9
    assert [len(x[0]) for x in seen] == [43, 43, 42] * 3  # of 128
    order = s[:, 0].argsort()
    for epoch in range(3):
        columns = [torch.cat(x) for x in zip(*seen[3 * epoch : 3 * epoch + 3], strict=True)]
        found = columns[0][:, 0].argsort()
        assert not torch.equal(found, order)
        for k, (x, y) in enumerate(zip(columns, wanted, strict=True)):
            changed = k > 2 and recompute and epoch > 0  # advantages and targets, by the critic's steps
            assert torch.allclose(x[found], y[order], atol=1e-5) != changed
    assert not torch.equal(seen[0][0], seen[3][0])


def test_target_kl_stops_before_the_step_and_counts_only_steps_made():
    a, kls = agent(target_kl=1e-4, learning_rate=1e-2, update_epochs=10), []
    loss, seen = a.loss, spy(a)
    a.loss = lambda *minibatch: kls.append(loss(*minibatch)[1]["kl"].item()) or loss(*minibatch)
    info = a.update(*rollout(a), 0.0)
    n = next(k for k, kl in enumerate(kls) if kl > 1e-4)
    assert info["gradient_steps"] == len(seen) == n and 0 < n < 40
    assert all(state["step"] == n for state in a.optimizer.state.values())
    assert agent(learning_rate=1e-2, update_epochs=10).update(*rollout(a), 0.0)["gradient_steps"] == 40
