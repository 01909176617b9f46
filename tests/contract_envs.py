"""Environments with known rewards and lengths, and some that misbehave, for the contract tests."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete

# (low + high) / 2 - (high - low) / 2 rounds to less than low in the second, with + to more than high in the third
LOW, HIGH = np.float32([-1.0, 0.1, -1.1]), np.float32([1.0, 4.7, 0.3])


class Countdown(gym.Env):
    """Episode k of an environment has 3 + k % 4 steps; step t of it is rewarded with k + t / 8.

    The observation is (k, t), so that a transition tells where it comes from. Ends by termination; `both` truncates at
    the same step.
    """

    observation_space = Box(-np.inf, np.inf, (2,), np.float32)
    action_space = Box(-1, 1, (1,), np.float32)

    def __init__(self, both: bool = False):
        self.k, self.both = -1, both

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.k, self.t = 0 if seed is not None else self.k + 1, 0
        return np.float32([self.k, self.t]), {}

    def step(self, action):
        self.t += 1
        end = self.t == 3 + self.k % 4
        return np.float32([self.k, self.t]), self.k + self.t / 8, end, end and self.both, {}


class Success(Countdown):
    """Reports success at every step; an episode succeeds if its first observation's random number is positive."""

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.lucky = bool(self.np_random.random() < 0.5)
        return np.float32([self.lucky, 0]), {}

    def step(self, action):
        obs, r, terminated, truncated, _ = super().step(action)
        return obs, r + 100 * self.lucky, terminated, truncated, {"is_success": self.lucky and terminated}


class Hidden(gym.Env):
    """A random walk whose position is in an object of its own, which no checkpoint can hold."""

    observation_space = Box(-np.inf, np.inf, (1,), np.float32)
    action_space = Box(-1, 1, (1,), np.float32)

    class Ball:
        position = 0.0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.ball = Hidden.Ball()
        self.t = 0
        return np.float32([0.0]), {}

    def step(self, action):
        self.ball.position += self.np_random.normal()
        self.t += 1
        return np.float32([self.ball.position]), 1.0, self.t == 10, False, {}


class Broken(gym.Env):
    """From its 150th step on, gives NaN as reward (what="reward") or observation (what="obs")."""

    observation_space = Box(-np.inf, np.inf, (2,), np.float32)

    def __init__(self, what: str, discrete: bool = False):
        self.what, self.steps = what, 0
        self.action_space = Discrete(2) if discrete else Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.np_random.normal(size=2).astype(np.float32), {}

    def step(self, action):
        self.steps += 1
        self.t += 1
        bad = np.nan if self.steps >= 150 else 0.0
        obs = self.np_random.normal(size=2) + (bad if self.what == "obs" else 0)
        return obs.astype(np.float32), 1.0 + (bad if self.what == "reward" else 0), self.t == 10, False, {}


class Strict(gym.Env):
    """Raises if an action is outside its bounds, which differ in every dimension; keeps them all."""

    observation_space = Box(-1, 1, (2,), np.float32)
    action_space = Box(LOW, HIGH)
    actions: list[np.ndarray] = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), {}

    def step(self, action):
        if not (action.shape == (3,) and (action >= LOW).all() and (action <= HIGH).all()):
            raise AssertionError(f"action {action!r} is out of bounds")
        Strict.actions.append(action.copy())
        self.t += 1
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), float(action.sum()), self.t == 7, False, {}


class Image(Countdown):
    """Observations are images."""

    observation_space = Box(0, 255, (8, 8, 3), np.uint8)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros((8, 8, 3), np.uint8), {}


class AsGoal(gym.Wrapper):
    """Any environment as a goal-conditioned one: the first two observations are what is achieved, the goal is (0, 0).

    Rewards stay the environment's own; only those of relabelled goals come from compute_reward.
    """

    def __init__(self, env: gym.Env):
        super().__init__(env)
        inner, part = env.observation_space, Box(-np.inf, np.inf, (min(2, env.observation_space.shape[0]),))
        self.observation_space = Dict({"observation": inner, "achieved_goal": part, "desired_goal": part})

    def join(self, obs: np.ndarray) -> dict[str, np.ndarray]:
        achieved = obs[:2].astype(np.float32)
        return {"observation": obs, "achieved_goal": achieved, "desired_goal": np.zeros_like(achieved)}

    def reset(self, **kwargs):
        obs, info = self.env.reset(**kwargs)
        return self.join(obs), info

    def step(self, action):
        obs, *rest = self.env.step(action)
        return self.join(obs), *rest

    def compute_reward(self, achieved_goal, desired_goal, info):
        return -np.linalg.norm(achieved_goal - desired_goal, axis=-1)


class Unrenderable(Countdown):
    """Its renderer fails when it is used, as MuJoCo's does without OpenGL."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}

    def __init__(self, render_mode=None):
        super().__init__()
        self.render_mode = render_mode

    def render(self):
        raise RuntimeError("no OpenGL here")


class Aliased(gym.Env):
    """Two attributes share memory: the second is a view of the first, and the dynamics write to it."""

    observation_space = Box(-np.inf, np.inf, (2,), np.float32)

    def __init__(self):
        self.action_space = Box(-1, 1, (1,), np.float32)
        self.state = np.zeros(2)
        self.velocity = self.state[1:]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state[:] = self.np_random.uniform(-1, 1, 2)
        return self.state.astype(np.float32), {}

    def step(self, action):
        self.velocity += action
        self.state[0] += self.state[1]
        return self.state.astype(np.float32), 0.0, False, False, {}


class Endless(Aliased):
    """Never ends, and was registered without a time limit."""


gym.register("Unrenderable-v0", Unrenderable)
gym.register("Aliased-v0", Aliased, max_episode_steps=20)
gym.register("Endless-v0", Endless)
gym.register("Countdown-v0", Countdown)
gym.register("Both-v0", Countdown, kwargs={"both": True})
gym.register("Truncated-v0", Countdown, max_episode_steps=2)
gym.register("Success-v0", Success)
gym.register("Hidden-v0", Hidden)
gym.register("BrokenReward-v0", Broken, kwargs={"what": "reward"})
gym.register("BrokenObs-v0", Broken, kwargs={"what": "obs"})
gym.register("BrokenObsDiscrete-v0", Broken, kwargs={"what": "obs", "discrete": True})
gym.register("Strict-v0", Strict)
gym.register("Image-v0", Image)

for name in [
    "Countdown-v0", "Both-v0", "Truncated-v0", "Success-v0", "Hidden-v0", "BrokenReward-v0", "BrokenObs-v0",
    "Strict-v0", "Unrenderable-v0", "Aliased-v0", "Pendulum-v1",
    *(n for n in gym.registry if "mujoco" in str(gym.spec(n).entry_point) and n.endswith("-v5")),
]:  # fmt: skip
    gym.register(
        f"Goal{name}",
        lambda name=name, **kwargs: AsGoal(gym.make(name, max_episode_steps=-1, **kwargs)),
        max_episode_steps=gym.spec(name).max_episode_steps or 200,
    )
