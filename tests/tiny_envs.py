"""Environments small enough to be worked out by hand or learned in seconds."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Discrete


class EndlessChain(gym.Env):
    """Reward 1 for ever: every state is worth 1 / (1 - gamma). Only the time limit ends an episode."""

    observation_space = Box(-1, 1, (1,), np.float32)

    def __init__(self, discrete: bool = False):
        self.action_space = Discrete(2) if discrete else Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.ones(1, np.float32), {}

    def step(self, action):
        return np.ones(1, np.float32), 1.0, False, False, {}


class Match(gym.Env):
    """One-step episodes: the observation tells which action pays, reward 0 at best and more negative further away.

    Continuous actions have asymmetric bounds, different in each dimension: [-1, 1] and [0, 4].
    """

    observation_space = Box(-1, 1, (2,), np.float32)

    def __init__(self, discrete: bool = False):
        self.discrete = discrete
        self.action_space = Discrete(2) if discrete else Box(np.float32([-1, 0]), np.float32([1, 4]))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.goal = self.np_random.uniform(-0.8, 0.8, 2).astype(np.float32)
        return self.goal.copy(), {}

    def step(self, action):
        if self.discrete:
            reward = -float(action != (self.goal[0] > 0))
        else:
            wanted = self.goal * np.float32([1, 2]) + np.float32([0, 2])
            reward = -float(np.abs((action - wanted) / np.float32([1, 2])).sum())
        return self.goal.copy(), reward, True, False, {}


gym.register("Chain-v0", EndlessChain, max_episode_steps=5)
gym.register("DiscreteChain-v0", EndlessChain, max_episode_steps=5, kwargs={"discrete": True})
gym.register("Match-v0", Match)
gym.register("DiscreteMatch-v0", Match, kwargs={"discrete": True})


class Crash(EndlessChain):
    """Raises an exception after a few hundred steps, as a broken simulator would."""

    steps = 0

    def step(self, action):
        self.steps += 1
        if self.steps > 300:
            raise RuntimeError("the simulator broke")
        return super().step(action)


gym.register("Crash-v0", Crash, max_episode_steps=5)
