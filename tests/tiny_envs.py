"""Environments small enough to be worked out by hand or learned in seconds."""

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete


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
gym.register("Match-v0", Match, max_episode_steps=2)
gym.register("DiscreteMatch-v0", Match, max_episode_steps=2, kwargs={"discrete": True})


class FarGoal(gym.Env):
    """A point is pushed to a goal that is 3 away: reward 0 within 0.25 of it, else -1. Aimless walks hardly get there.

    `rewards` "dense": minus the distance, "single": compute_reward takes one pair of goals only.
    """

    action_space = Box(-1, 1, (2,), np.float32)
    observation_space = Dict({name: Box(-9, 9, (2,)) for name in ("observation", "achieved_goal", "desired_goal")})

    def __init__(self, rewards: str = ""):
        self.rewards = rewards

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.point, goal = np.zeros(2, np.float32), self.np_random.uniform(-1, 1, 2)
        self.goal = np.float32(goal * 3 / np.linalg.norm(goal))
        return self.observe(), {}

    def step(self, action):
        self.point = np.clip(self.point + 0.5 * np.clip(action, -1, 1), -9, 9).astype(np.float32)
        reward = float(self.compute_reward(self.point, self.goal, {}))
        return self.observe(), reward, False, False, {"is_success": float(reward >= 0)}

    def observe(self):
        return {"observation": self.point.copy(), "achieved_goal": self.point.copy(), "desired_goal": self.goal.copy()}

    def compute_reward(self, achieved_goal, desired_goal, info):
        distance = np.linalg.norm(achieved_goal - desired_goal, axis=None if self.rewards == "single" else -1)
        return -distance if self.rewards == "dense" else -np.float32(distance > 0.25)


gym.register("FarGoal-v0", FarGoal, max_episode_steps=15)
gym.register("DenseGoal-v0", FarGoal, max_episode_steps=15, kwargs={"rewards": "dense"})
gym.register("SingleGoal-v0", FarGoal, max_episode_steps=15, kwargs={"rewards": "single"})


class Trace(gym.Env):
    """Episode k, from seed % 7 on, has 1 + 2 * (k % 3) steps; it terminates if k is even and is truncated if it is odd.

    The observation is (k, t, the action that led there), the reward k + t / 8 + that action.
    """

    observation_space = Box(-np.inf, np.inf, (3,), np.float32)

    def __init__(self, discrete: bool):
        self.k, self.action_space = -1, Discrete(3, start=2) if discrete else Box(-1, 5, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        self.k, self.t = self.k + 1 if seed is None else seed % 7, 0
        return np.float32([self.k, 0, 0]), {}

    def step(self, action):
        self.t, a, end = self.t + 1, float(np.squeeze(action)), self.t + 1 == 1 + 2 * (self.k % 3)
        odd, reward = bool(self.k % 2), self.k + self.t / 8 + a
        return np.float32([self.k, self.t, a]), reward, end and not odd, end and odd, {}


gym.register("Trace-v0", Trace, max_episode_steps=9, kwargs={"discrete": False})
gym.register("DiscreteTrace-v0", Trace, max_episode_steps=9, kwargs={"discrete": True})
