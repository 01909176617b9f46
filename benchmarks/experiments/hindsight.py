"""Hindsight experience replay against plain DDPG, on a goal so small that it is hardly ever met by chance.

Lecture "Handling Continuous Action Space", slides "Hindsight Experience Replay (HER)". Question: what does it
take to learn where a reward is hardly ever seen? A point in the plane has 25 steps to its goal (tasks.py).

    g' = m(episode), what a later state of the episode achieved      [HER.1]
    r' = r(achieved(s2), g')                                         [HER.2]  in 4 of 5 replayed transitions

    python benchmarks/experiments/hindsight.py
"""

import numpy as np
import torch
from common import Args, curve, episodes, interact, interval, measure, panels, save, setup

# isort: split
import her_ddpg

TASK = "tasks:Point-v0"


def run(seed: int, her: bool, cycles: int) -> list[dict]:
    """Train with or without hindsight; share of 20 episodes that end at their goal, after every 10 cycles."""
    torch.manual_seed(seed)
    small = {"num_envs": 1, "batch_size": 64, "buffer_size": 100_000, "action_l2": 0.1, "tau": 0.1}
    args = her_ddpg.Args(env_id=TASK, her=her, device="cpu", compile=False, **small)  # with and without   [HIND.1]
    env, eval_env, rows = her_ddpg.make_env(TASK), her_ddpg.make_env(TASK), []
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
            row = {"hindsight": her, "seed": seed, "step": 100 * cycle, "success": np.mean(reached)}
            rows.append(row | {"replayed": 1 + info["reward"].item()})  # r = 0 at the goal, else -1
    return rows


def main(args: Args) -> None:
    """Measure, draw, tell."""
    cycles = 4 if args.quick else 100
    rows = measure(run, args, (True, cycles), (False, cycles))
    figure, axes = panels("DDPG with and without hindsight, a point and its goal", 2)
    for her, label in ((True, "with hindsight"), (False, "without")):
        for axis, column in zip(axes, ("success", "replayed"), strict=True):
            curve(axis, rows[rows["hindsight"] == her], "step", column, label)
    axes[0].set(xlabel="environment steps", ylabel="share of episodes that end at the goal", ylim=(-0.03, 1.03))
    axes[1].set(xlabel="environment steps", ylabel="share of replayed transitions at their goal")
    axes[0].legend()
    replayed, last = rows.groupby("hindsight")["replayed"].mean(), rows[rows["step"] == rows["step"].max()]
    (a, low, high), (b, low2, high2) = (interval(last[last["hindsight"] == her]["success"]) for her in (True, False))
    says = [
        f"After {rows['step'].max()} steps {a:.0%} [{low:.0%}, {min(high, 1):.0%}] of the episodes end at their goal "
        f"with hindsight, {b:.0%} [{low2:.0%}, {min(high2, 1):.0%}] without.",
        f"Of the transitions replayed {replayed[True]:.0%} are at their goal with hindsight and {replayed[False]:.1%} "
        "without.",
    ]
    save(args, "hindsight", rows, figure, says)


if __name__ == "__main__":
    main(setup(__doc__))
