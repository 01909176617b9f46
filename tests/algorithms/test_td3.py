"""TD3's target, losses and delayed updates against numbers worked by hand."""

import pytest
import torch
from off_policy import TWO, Value, agent, batch, fix, pair, same, snapshot


def test_target_worked_by_hand():
    """Smoothing noise clipped, in half action ranges per dimension; the smoothed action inside the bounds of each; the
    smaller of both critics; no bootstrap from a termination."""
    a = agent("td3", gamma=0.9, policy_noise=0.2, noise_clip=0.5)
    fix(a.actor, 0.0, 0.0)  # must not matter
    fix(a.actor_target, 0.9, 0.8)  # mu' = (0.9, 3.6)
    a.critics, a.critics_target = pair(Value(-99.0, 0.0), Value(-99.0, 0.0)), pair(Value(1.0, 1.0), Value(5.0, 0.5))
    noise = torch.tensor([[3.0, -0.5], [3.0, -0.5], [-9.0, 9.0]])
    # eps = clip(0.2 noise, -0.5, 0.5) * (1, 2) = (0.5, -0.2) twice, (-0.5, 1);  a~ = (1, 3.4) twice, (0.4, 4)
    # Q'_1 = 4.4, 4.4, 4.4;  Q'_2 = 6.7, 6.7, 4;  the smaller: 4.4, 4.4, 4
    y = a.target(torch.tensor([1.0, 1.0, 2.0]), torch.zeros(3, 3), torch.tensor([0.0, 1.0, 0.0]), noise)
    torch.testing.assert_close(y, torch.tensor([1 + 0.9 * 4.4, 1.0, 2 + 0.9 * 4]))


def test_losses_worked_by_hand():
    a = agent("td3", gamma=0.9)
    fix(a.actor_target, 0.0, 0.0)
    fix(a.actor, 0.5, -0.5)  # mu = (0.5, 1)
    a.critics_target = pair(Value(1.0, 1.0), Value(3.0, 0.5))  # at (0, 2): 2 and 1 -> 1
    a.critics = pair(Value(1.0, 0.0), Value(0.0, 1.0))
    # y = 1 + 0.9 * 1 = 1.9 and 1;  Q_1 = 0.5, -1;  Q_2 = 3, 1;  errors 1.4, 2 and -1.1, 0
    loss, info = a.critic_loss(*TWO, torch.zeros(2, 2))
    assert loss.item() == pytest.approx((1.4**2 + 2**2) / 2 + (1.1**2 + 0) / 2)
    assert (info["q"].item(), info["q_target"].item()) == pytest.approx((-0.25, 1.45))
    a.critics = pair(Value(1.0, 2.0), Value(-100.0, 100.0))  # the first alone counts
    assert a.actor_loss(torch.randn(4, 3))[0].item() == pytest.approx(-2.5)


def test_policy_and_targets_move_only_with_the_delayed_update():
    """Also across a checkpoint: the count of updates is part of state_dict."""
    parts = ("critics", "actor", "actor_target", "critics_target")
    a = agent("td3", policy_delay=3, learning_rate=1e-2)
    for call in range(1, 7):
        if call == 5:
            other = agent("td3", policy_delay=3, learning_rate=1e-2)
            other.load_state_dict(a.state_dict())
            a = other
        before = {name: snapshot(getattr(a, name)) for name in parts}
        info = a.update(*batch())
        moved = {name for name in parts if not same(getattr(a, name), before[name])}
        assert moved == ({"critics"} if call % 3 else set(parts))
        assert ("actor_loss" in info) == (call % 3 == 0)


def test_smoothing_noise_is_normal_and_new_in_every_update():
    a, seen, data = agent("td3", policy_delay=3), [], batch(20_000)
    a.critic_step = lambda *arguments: seen.append(arguments[-1]) or {}
    a.update(*data)
    a.update(*data)
    assert not torch.equal(*seen)
    torch.testing.assert_close(seen[0].std(0), torch.ones(2), atol=0.03, rtol=0)
    torch.testing.assert_close(seen[0].mean(0), torch.zeros(2), atol=0.03, rtol=0)
