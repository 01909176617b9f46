"""Environments with known rewards and lengths, and some that misbehave, for the contract tests."""

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict

# (low + high) / 2 - (high - low) / 2 rounds to less than low in the second, with + to more than high in the third
LOW, HIGH = np.float32([-1.0, 0.1, -1.1]), np.float32([1.0, 4.7, 0.3])


class Countdown(gym.Env):
    """Episode k since the last seeding has 3 + k % 4 steps; step t of it is rewarded with k + t / 8.

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
    """Every other episode or so is lucky: it has 6 steps more, earns 100 more at each and ends with success."""

    def reset(self, **kwargs):
        obs, info = super().reset(**kwargs)
        self.lucky = bool(self.np_random.random() < 0.5)
        self.t -= 6 * self.lucky
        return obs, info

    def step(self, action):
        _, r, end, _, _ = super().step(action)
        return np.float32([self.lucky, self.t]), r + 100 * self.lucky, end, False, {"is_success": self.lucky and end}


class Hidden(Countdown):
    """A random walk of 10 steps whose position is in an object of its own, which no checkpoint could hold.

    `fault`: from the 150th step on a "reward" or an "observation" of NaN, or an exception ("crash").
    """

    class Ball:
        position = 0.0

    def __init__(self, fault: str = ""):
        super().__init__()
        self.fault, self.steps = fault, 0

    def reset(self, **kwargs):
        super().reset(**kwargs)
        self.ball = Hidden.Ball()
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.t, self.steps = self.t + 1, self.steps + 1
        self.ball.position += self.np_random.normal() + 0.1 * action[0]
        values = {"reward": self.ball.position, "observation": self.ball.position}
        if self.steps >= 150 and self.fault == "crash":
            raise ValueError("the simulator broke")
        if self.steps >= 150 and self.fault:
            values[self.fault] = np.nan
        return np.float32([values["observation"], self.t]), values["reward"], self.t == 10, False, {}


class Strict(Countdown):
    """Raises if an action is outside its bounds, which differ in every dimension."""

    action_space = Box(LOW, HIGH)

    def step(self, action):
        if not (action.shape == (3,) and (action >= LOW).all() and (action <= HIGH).all()):
            raise AssertionError(f"action {action!r} is out of bounds")
        return super().step(action)


class Image(Countdown):
    """Observations are images."""

    observation_space = Box(0, 255, (8, 8, 3), np.uint8)


class Screen(Countdown):
    """Can be shown and filmed, by a fake that notes its pictures; or its renderer fails, as without OpenGL."""

    metadata = {"render_modes": ["rgb_array", "human"], "render_fps": 30}
    shown: list[str] = []

    def __init__(self, render_mode=None, works: bool = True):
        super().__init__()
        self.render_mode, self.works = render_mode, works

    def step(self, action):
        if self.render_mode == "human":
            self.render()
        return super().step(action)

    def render(self):
        if not self.works:
            raise RuntimeError("no OpenGL here")
        Screen.shown.append(self.render_mode)
        return None if self.render_mode == "human" else np.zeros((64, 64, 3), np.uint8)


def outdated(**kwargs):
    """An environment that was written for an older library."""
    return np.name_that_is_gone


class AsGoal(gym.Wrapper):
    """Any environment as a goal-conditioned one: the first two observations are what is achieved, the goal is (0, 0).

    Rewards stay the environment's own; only those of relabelled goals come from compute_reward.
    """

    def __init__(self, env: gym.Env):
        super().__init__(env)
        part = Box(-np.inf, np.inf, (2,))
        parts = {"observation": env.observation_space, "achieved_goal": part, "desired_goal": part}
        self.observation_space = Dict(parts)

    def join(self, obs: np.ndarray) -> dict[str, np.ndarray]:
        return {"observation": obs, "achieved_goal": np.float32(obs[:2]), "desired_goal": np.zeros(2, np.float32)}

    def reset(self, **kwargs):
        obs, info = self.env.reset(**kwargs)
        return self.join(obs), info

    def step(self, action):
        obs, *rest = self.env.step(action)
        return self.join(obs), *rest

    def compute_reward(self, achieved_goal, desired_goal, info):
        return -np.linalg.norm(achieved_goal - desired_goal, axis=-1)


OWN = {
    "Countdown": (Countdown, {}), "Both": (Countdown, {"both": True}), "Truncated": (Countdown, {}),
    "Success": (Success, {}), "Hidden": (Hidden, {}), "Strict": (Strict, {}),
    "reward": (Hidden, {"fault": "reward"}), "observation": (Hidden, {"fault": "observation"}),
    "crash": (Hidden, {"fault": "crash"}), "Image": (Image, {}), "Screen": (Screen, {}),
    "Unrenderable": (Screen, {"works": False}), "Lacking": ("contract_envs:NoSuchClass", {}),
    "Outdated": (outdated, {}),
    "Ant20": ("gymnasium.envs.mujoco.ant_v5:AntEnv", {}),
}  # fmt: skip
for name, (make, kwargs) in OWN.items():
    gym.register(f"{name}-v0", make, kwargs=kwargs, max_episode_steps=2 if name == "Truncated" else 20)
gym.register("Endless-v0", "gymnasium.envs.classic_control.pendulum:PendulumEnv")  # without a time limit
for name in [*(f"{name}-v0" for name in OWN if name != "Image"), "Endless-v0", "Pendulum-v1", "Reacher-v5"]:
    gym.register(
        f"Goal{name}",
        lambda name=name, **kwargs: AsGoal(gym.make(name, max_episode_steps=-1, **kwargs)),
        max_episode_steps=gym.spec(name).max_episode_steps,
    )
