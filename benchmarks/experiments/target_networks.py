"""Target networks that follow softly by tau, hard every k updates, or not at all.

Lectures "Handling Continuous Action Space", slides "Deep Deterministic Policy Gradient (DDPG)" and "TD3: Case study:
different update rates for the policy and the target network", and "Actor Critic II", slide "Coding" (a copy every 200
steps). Question: what do they do to DDPG's return, and to the error of its critic?

    soft  theta' <- (1 - tau) theta' + tau theta  after every update       [DDPG.4]
    hard  theta' <- theta                         after every k-th update
    none  theta' = theta, which is tau = 1

    python benchmarks/experiments/target_networks.py
"""

import torch
from common import Args, curve, episodes, estimated_and_true, measure, off_policy, panels, save, setup

# isort: split
import ddpg

TASK, GAMMA = "Pendulum-v1", 0.95
NONE = "none (tau = 1)"
SETTINGS = {  # label: tau, updates between copies
    NONE: (1.0, None),
    "soft, tau = 0.05": (0.05, None),
    "soft, tau = 0.005": (0.005, None),
    "hard, every 20": (0.0, 20),
    "hard, every 200": (0.0, 200),
}


def run(seed: int, label: str, steps: int, every: int) -> list[dict]:
    """Train DDPG; the deterministic policy's return and the critic's error after every so many steps."""
    torch.manual_seed(seed)
    tau, copy_every = SETTINGS[label]  # how the target follows   [HARD.2]
    args = ddpg.Args(num_envs=1, gamma=GAMMA, tau=tau, device="cpu", compile=False)
    env, eval_env = ddpg.make_env(TASK), ddpg.make_env(TASK, evaluation=True)
    agent = ddpg.DDPG(env.observation_space, env.action_space, args)
    memory, rows = ddpg.Replay(steps, env.observation_space.shape[0], env.action_space.shape[0], "cpu"), []
    for step, _ in off_policy(agent, memory, env, seed, steps, start=every, batch=64):
        if copy_every and step % copy_every == 0:
            ddpg.follow(agent.actor_target, agent.actor, 1.0)  # theta' <- theta   [HARD.1]
            ddpg.follow(agent.critic_target, agent.critic, 1.0)  # theta' <- theta   [HARD.1]
        if step % every == 0:
            values = estimated_and_true(agent, agent.critic, eval_env, GAMMA, seed, n=2)
            earned = sum(r.sum() for _, r, _ in episodes(agent, eval_env, seed, 2)) / 2
            rows.append({"target": label, "seed": seed, "step": step, "return": earned} | values)
    return rows


def main(args: Args) -> None:
    """Measure, draw, tell."""
    steps, every = (200, 100) if args.quick else (4000, 500)
    rows = measure(run, args, *((label, steps, every) for label in SETTINGS))
    rows["error"] = (rows["estimated"] - rows["true"]).abs()
    figure, (left, right) = panels(f"Target networks of DDPG, {TASK}", 2, height=4.2)
    for label in SETTINGS:
        curve(left, rows[rows["target"] == label], "step", "return", label)
        curve(right, rows[rows["target"] == label], "step", "error", label)
    left.set(xlabel="environment steps", ylabel="return of an episode of 200 steps", ylim=(-1750, 50))
    right.set(xlabel="environment steps", ylabel="|mean Q(s, mu(s)) - true discounted return|", ylim=(0, 160))
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    late = rows[rows["step"] > steps // 2].groupby("target")[["return", "error"]].mean()
    best = late["return"].idxmax()
    says = [
        f"Over the second half of {steps} steps the target {best} earns most, {late['return'][best]:.0f} per episode; "
        f"without target network it is {late['return'][NONE]:.0f}, and Q is wrong by {late['error'][NONE]:.0f}, not by "
        f"{late['error'][best]:.1f}.",
        f"Copies every k steps do much as tau = 1 / k does: {late['return']['hard, every 20']:.0f} and "
        f"{late['return']['soft, tau = 0.05']:.0f} at 20, {late['return']['hard, every 200']:.0f} and "
        f"{late['return']['soft, tau = 0.005']:.0f} at 200, where Q lags behind (wrong by "
        f"{late['error']['hard, every 200']:.0f} and {late['error']['soft, tau = 0.005']:.0f}).",
    ]
    save(args, "target_networks", rows, figure, says)


if __name__ == "__main__":
    main(setup(__doc__, seeds=3))
