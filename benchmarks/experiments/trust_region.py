"""How far an update moves the policy, and what it does to the return: PPO's clip range, TRPO's delta and plain A2C.

Lecture "Policy Gradient Methods", slides "Constrained Policy Gradient", "Trust Region Policy Optimization (TRPO)" and
"Proximal Policy Optimization (PPO)". Question: how large is mean KL(pi_old(. | s_t) || pi(. | s_t)) of an update on a
rollout of 1024 steps, and what return comes of it?

    PPO   maximise mean min(ratio A, clip(ratio, 1 - eps, 1 + eps) A), many steps     [PPO.2]
    TRPO  maximise mean ratio A subject to mean KL <= delta, one step                 [TRPO.2]
    A2C   maximise mean log pi A, one step                                            [A2C.1]

    python benchmarks/experiments/trust_region.py
"""

import math

import numpy as np
import pandas as pd
import torch
from common import COLOURS, Args, episodes, in_parallel, interact, interval, plt, save, setup, tell
from torch.distributions import Categorical, kl_divergence

# isort: split
import a2c
import ppo
import trpo

TASK, STEPS = "CartPole-v1", 1024
MODULES = {"A2C": a2c, "PPO": ppo, "TRPO": trpo}
SETTINGS = {  # label: settings
    **{f"PPO, eps = {eps:g}": {"clip_coef": eps} for eps in (0.02, 0.2, math.inf)},
    **{f"TRPO, delta = {delta:g}": {"max_kl": delta} for delta in (0.0001, 0.01, 1.0)},
    **{f"A2C, alpha = {lr:g}": {"learning_rate": lr} for lr in (0.0003, 0.003, 0.03)},
}


def run(label: str, seed: int, updates: int) -> list[dict]:
    """KL moved by every update and, after the last five, the mean return of the deterministic policy (else empty)."""
    name = label.split(",")[0]
    module = MODULES[name]
    torch.manual_seed(seed)
    args = module.Args(num_envs=1, num_steps=STEPS, norm_obs=False, anneal_lr=False, device="cpu", compile=False)
    if name == "PPO":
        args.num_minibatches = 8
    for setting, value in SETTINGS[label].items():
        setattr(args, setting, value)
    env, eval_env = module.make_env(TASK), module.make_env(TASK, evaluation=True)
    agent, rows = getattr(module, name)(env.observation_space, env.action_space, args), []
    transitions = interact(env, agent.explore, seed, agent.actor.to_env)
    for update in range(1, updates + 1):
        rollout = [torch.stack(column) for column in zip(*(next(transitions) for _ in range(STEPS)), strict=True)]
        old = Categorical(logits=agent.actor.logits(rollout[0]).detach())
        agent.update(*rollout, progress=0.0)
        new = Categorical(logits=agent.actor.logits(rollout[0]).detach())
        row = {"setting": label, "seed": seed, "update": update, "kl": kl_divergence(old, new).mean().item()}
        if update > updates - 5:
            row["return"] = sum(r.sum() for _, r, _ in episodes(agent, eval_env, seed, 3)) / 3
        rows.append(row)
    return rows


def main(args: Args) -> None:
    """Measure, draw, tell."""
    updates = 2 if args.quick else 30
    tasks = [(label, seed, updates) for seed in range(args.seed, args.seed + args.seeds) for label in SETTINGS]
    rows = pd.DataFrame([row for rows in in_parallel(run, tasks) for row in rows])
    rows["log10_kl"] = np.log10(rows["kl"])
    by_seed = rows.groupby(["setting", "seed"])[["log10_kl", "return"]].mean()
    figure, axis = plt.subplots(figsize=(8.3, 4.2), layout="constrained")
    table = {}
    for label in SETTINGS:
        kl, earned = (interval(by_seed.loc[label][column]) for column in ("log10_kl", "return"))
        table[label] = 10 ** kl[0], earned[0]
        x = 10 ** np.array(kl)
        bars = {"xerr": [[x[0] - x[1]], [x[2] - x[0]]], "yerr": [[earned[0] - earned[1]], [earned[2] - earned[0]]]}
        colour = COLOURS[list(MODULES).index(label.split(",")[0])]
        axis.errorbar(*table[label], **bars, fmt="o", color=colour, alpha=0.8)
        axis.annotate(label.split(", ")[1], table[label], (4, 5), textcoords="offset points", color=colour)
    for colour, name in zip(COLOURS, MODULES, strict=False):
        axis.plot([], [], "o", color=colour, label=f"{name} (n = {args.seeds})")
    axis.set(xscale="log", xlabel="KL(old, new) of an update, nats, geometric mean over the run", ylim=(0, 540))
    axis.set(
        ylabel=f"return of the last 5 of {updates} policies", title=f"Policy steps and returns, {TASK}, 95 % intervals"
    )
    axis.legend(loc="lower left")
    save(args, "trust_region", rows.drop(columns="log10_kl"), figure)
    says = []
    for name in MODULES:
        of_name = {label.split(", ")[1]: values for label, values in table.items() if label.startswith(name)}
        says.append(
            f"{name} " + ", ".join(f"with {k} {kl:.1g} and {earned:.0f}" for k, (kl, earned) in of_name.items())
        )
    best = max(table, key=lambda label: table[label][1])
    tell(
        f"KL per update and final return: {'; '.join(says)}.",
        f"The best return, {table[best][1]:.0f} ({best}), goes with a KL of {table[best][0]:.1g} per update.",
    )


if __name__ == "__main__":
    main(setup(__doc__))
