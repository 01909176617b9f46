"""SAC's temperature, fixed against learned: what it does to the entropy and to the return.

Lectures "Handling Continuous Action Space", slides "SAC: Maximum entropy reinforcement learning", and "Actor Critic
II", slide "Max Entropy RL" (Lagrangian entropy adjustment).

    maximise E[sum_t r_t + alpha S[pi(. | s_t)]]               alpha fixed, here in four sizes
    L(alpha) = alpha (mean -log pi(a~ | s) - H)     [SAC.7]    alpha learned, with the target entropy H = -dim(a)

    python benchmarks/experiments/temperature.py
"""

import torch
from common import Args, curve, episodes, measure, off_policy, panels, save, setup

# isort: split
import sac

TASK, ALPHAS = "Pendulum-v1", ("0", "0.2", "5", "auto")


def run(seed: int, alpha: str, steps: int, every: int) -> list[dict]:
    """Train SAC; return of the deterministic policy, entropy of the stochastic one and alpha, every so many steps."""
    torch.manual_seed(seed)
    args = sac.Args(num_envs=1, alpha=alpha, gamma=0.95, tau=0.01, device="cpu", compile=False)
    env, eval_env = sac.make_env(TASK), sac.make_env(TASK, evaluation=True)
    agent = sac.SAC(env.observation_space, env.action_space, args)
    memory, rows = sac.Replay(steps, env.observation_space.shape[0], env.action_space.shape[0], "cpu"), []
    for step, info in off_policy(agent, memory, env, seed, steps, start=every, batch=64):
        if step % every == 0:
            earned = sum(r.sum() for _, r, _ in episodes(agent, eval_env, seed, 5)) / 5
            row = {"setting": alpha, "seed": seed, "step": step, "return": earned}
            rows.append(row | {name: info[name].item() for name in ("entropy", "alpha")})
    return rows


def main(args: Args) -> None:
    """Measure, draw, tell."""
    steps, every = (200, 100) if args.quick else (3000, 500)
    rows = measure(run, args, *((alpha, steps, every) for alpha in ALPHAS))
    figure, axes = panels(f"Temperature of SAC, {TASK}", 3)
    for alpha in ALPHAS:
        for axis, column in zip(axes, ("return", "entropy", "alpha"), strict=True):
            label = "alpha learned" if alpha == "auto" else f"alpha = {alpha}"
            curve(axis, rows[rows["setting"] == alpha], "step", column, label)
    axes[0].set(ylabel="return of an episode of 200 steps", ylim=(-1750, 50))
    axes[1].set_ylabel("entropy of the policy, nats")
    axes[1].axhline(-1, color="black", linewidth=1, linestyle=":", label="target H = -1")
    axes[2].set_ylabel("alpha")
    axes[2].set_yscale("symlog", linthresh=0.1)
    for axis in axes:
        axis.set_xlabel("environment steps")
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    last = rows[rows["step"] == rows["step"].max()].groupby("setting")[["return", "entropy", "alpha"]].mean()
    fixed = ", ".join(
        f"{last.loc[a, 'entropy']:.2f} at alpha = {a} (return {last.loc[a, 'return']:.0f})" for a in ALPHAS[:3]
    )
    auto = last.loc["auto"]
    says = [
        f"After {steps} steps the entropy is {fixed}, in nats.",
        f"Learned, alpha has come down from 1 to {auto['alpha']:.2f} and entropy to {auto['entropy']:.2f}, target -1, "
        f"with a return of {auto['return']:.0f}.",
    ]
    save(args, "temperature", rows, figure, says)


if __name__ == "__main__":
    main(setup(__doc__, seeds=3))
