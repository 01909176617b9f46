"""The critic's estimate against the true discounted return: DDPG's overestimation, and TD3's remedy.

Lecture "Handling Continuous Action Space", slides "TD3: Overestimation bias in actor-critic", "TD3: Measuring
overestimation bias". Question: how much more does Q(s, mu(s)) promise than following mu from s earns?

    DDPG  y = r + gamma (1 - terminal) Q'(s', mu'(s'))       [DDPG.1]
    TD3   y = r + gamma (1 - terminal) min_i Q'_i(s', a~)    [TD3.2]
    truth G_t = r_t + gamma G_{t+1} of ten episodes that follow mu

    python benchmarks/experiments/overestimation.py
"""

import torch
from common import COLOURS, Args, curve, estimated_and_true, interval, measure, off_policy, panels, save, setup

# isort: split
import ddpg
import td3

TASK, GAMMA = "Hopper-v5", 0.99


def run(seed: int, name: str, steps: int, every: int) -> list[dict]:
    """Train an agent; estimated and true values after every so many steps."""
    module = {"DDPG": ddpg, "TD3": td3}[name]
    torch.manual_seed(seed)
    env, eval_env = module.make_env(TASK), module.make_env(TASK, evaluation=True)
    args = module.Args(num_envs=1, gamma=GAMMA, tau=0.01, buffer_size=steps, device="cpu", compile=False)
    agent = getattr(module, name)(env.observation_space, env.action_space, args)
    memory, rows = module.Replay(steps, env.observation_space.shape[0], env.action_space.shape[0], "cpu"), []
    for step, _ in off_policy(agent, memory, env, seed, steps, start=every, batch=64):
        if step % every == 0:
            critic = agent.critic if name == "DDPG" else agent.critics[0]
            values = estimated_and_true(agent, critic, eval_env, GAMMA, seed, n=10)
            rows.append({"algorithm": name, "seed": seed, "step": step} | values)
    return rows


def main(args: Args) -> None:
    """Measure, draw, tell."""
    steps, every = (200, 100) if args.quick else (8000, 1000)
    rows = measure(run, args, ("DDPG", steps, every), ("TD3", steps, every))
    figure, axis = panels(f"Estimated and true values, {TASK}", 1)
    for colour, (name, chosen) in zip(COLOURS, rows.groupby("algorithm"), strict=False):
        curve(axis, chosen, "step", "estimated", f"{name}, estimated Q(s, mu(s))", color=colour)
        curve(axis, chosen, "step", "true", f"{name}, true discounted return", color=colour, linestyle="--")
    axis.set(xlabel="environment steps", ylabel="discounted return")
    axis.legend()
    last = rows[rows["step"] == rows["step"].max()].assign(bias=lambda x: x["estimated"] - x["true"])
    says = []
    for name, chosen in last.groupby("algorithm"):
        bias, low, high = interval(chosen["bias"])
        says.append(
            f"After {steps} steps {name}'s critic promises {chosen['estimated'].mean():.0f} where its policy earns "
            f"{chosen['true'].mean():.0f}, a bias of {bias:+.0f} [{low:+.0f}, {high:+.0f}]."
        )
    save(args, "overestimation", rows, figure, says)


if __name__ == "__main__":
    main(setup(__doc__, seeds=3))
