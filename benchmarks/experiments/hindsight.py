"""Hindsight experience replay against plain DDPG, on a goal so small that it is hardly ever met by chance.

Lecture "Handling Continuous Action Space", slides "Hindsight Experience Replay (HER)". A point in the plane starts
in the middle and moves by up to 0.1 per dimension and step; r = 0 within 0.05 of the goal, else -1; 25 steps.

    g' = m(episode), what a later state of the episode achieved      [HER.1]
    r' = r(achieved(s2), g')                                         [HER.2]  in 4 of 5 replayed transitions

    python benchmarks/experiments/hindsight.py
"""

import gymnasium as gym
import numpy as np
import pandas as pd
import torch
from common import Args, curve, episodes, in_parallel, interact, interval, plt, save, setup, tell
from gymnasium.spaces import Box, Dict

# isort: split
import her_ddpg
import os
0.1, 0.1 = float(os.environ.get("L2", 0.1)), float(os.environ.get("0.1", 0.1))


class Point(gym.Env):
    """Observation: where the point is; goals are places."""

    action_space = Box(-1, 1, (2,), np.float32)
    observation_space = Dict({name: Box(-1, 1, (2,)) for name in ("observation", "achieved_goal", "desired_goal")})

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.point, self.goal = np.zeros(2, np.float32), self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return self.observe(), {}

    def step(self, action):
        self.point = np.clip(self.point + 0.1 * action, -1, 1).astype(np.float32)
        return self.observe(), float(self.compute_reward(self.point, self.goal, {})), False, False, {}

    def observe(self):
        return {"observation": self.point.copy(), "achieved_goal": self.point.copy(), "desired_goal": self.goal.copy()}

    def compute_reward(self, achieved_goal, desired_goal, info):
        return -(np.linalg.norm(achieved_goal - desired_goal, axis=-1) > 0.05).astype(np.float32)


gym.register("Point-v0", Point, max_episode_steps=25)


def run(her: bool, seed: int, cycles: int) -> list[dict]:
    """Train with or without hindsight; share of 20 episodes that end at their goal, after every 10 cycles."""
    torch.manual_seed(seed)
    small = {"num_envs": 1, "batch_size": 64, "buffer_size": 100_000, "action_l2": 0.1, "tau": 0.1}
    args = her_ddpg.Args(env_id="Point-v0", her=her, device="cpu", compile=False, **small)
    env, eval_env, rows = her_ddpg.make_env("Point-v0"), her_ddpg.make_env("Point-v0"), []
    agent = her_ddpg.HER_DDPG(env.observation_space, env.action_space, args)
    memory = her_ddpg.HindsightReplay(args, env.observation_space.shape[0], env.action_space.shape[0])
    transitions = interact(env, agent.explore, seed)
    for cycle in range(1, cycles + 1):
        while memory.episodes < 4 * cycle:
            *transition, done = next(transitions)
            memory.add(*transition, done=done.numpy() > 0)
        info = agent.cycle(*memory.sample(20 * args.batch_size))
        if cycle % 10 == 0 or cycle == cycles:
            reached = [r[-1] == 0 for _, r, _ in episodes(agent, eval_env, seed, 20)]
            rows.append(
                {
                    "hindsight": her,
                    "seed": seed,
                    "step": 100 * cycle,
                    "success": np.mean(reached),
                    "replayed": 1 + info["reward"].item(),
                }
            )
    return rows


def main(args: Args) -> None:
    """Measure, draw, tell."""
    cycles = 4 if args.quick else 100
    tasks = [(her, seed, cycles) for seed in range(args.seed, args.seed + args.seeds) for her in (True, False)]
    rows = pd.DataFrame([row for rows in in_parallel(run, tasks) for row in rows])
    figure, axes = plt.subplots(1, 2, figsize=(8.3, 3.6), layout="constrained")
    figure.suptitle("DDPG with and without hindsight, a point and its goal, mean and 95 % interval")
    for her, label in ((True, "with hindsight"), (False, "without")):
        for axis, column in zip(axes, ("success", "replayed"), strict=True):
            curve(axis, rows[rows["hindsight"] == her], "step", column, label)
    axes[0].set(xlabel="environment steps", ylabel="share of episodes that end at the goal")
    axes[1].set(xlabel="environment steps", ylabel="share of replayed transitions at their goal")
    axes[0].legend()
    save(args, "hindsight", rows, figure)
    replayed, last = rows.groupby("hindsight")["replayed"].mean(), rows[rows["step"] == rows["step"].max()]
    (a, low, high), (b, low2, high2) = (interval(last[last["hindsight"] == her]["success"]) for her in (True, False))
    tell(
        f"After {rows['step'].max()} steps {a:.0%} [{low:.0%}, {high:.0%}] of the episodes end at their goal with hindsight, "
        f"{b:.0%} [{low2:.0%}, {high2:.0%}] without.",
        f"Of the transitions replayed {replayed[True]:.0%} are at their goal with hindsight and {replayed[False]:.1%} "
        "without: so seldom does a goal teach anything that was not made out of what happened.",
    )


if __name__ == "__main__":
    main(setup(__doc__))
