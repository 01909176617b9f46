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
import torch
from common import COLOURS, Args, episodes, interact, interval, measure, panels, save, setup
from torch.distributions import Categorical, kl_divergence

# isort: split
import a2c
import ppo
import trpo

TASK, STEPS, MODULES = "CartPole-v1", 1024, {"A2C": a2c, "PPO": ppo, "TRPO": trpo}
SETTINGS = {  # label: settings
    **{f"PPO, eps = {eps:g}": {"clip_coef": eps, "num_minibatches": 8} for eps in (0.02, 0.2, math.inf)},
    **{f"TRPO, delta = {delta:g}": {"max_kl": delta} for delta in (0.0001, 0.01, 1.0)},
    **{f"A2C, alpha = {lr:g}": {"learning_rate": lr} for lr in (0.0003, 0.003, 0.03)},
}


def run(seed: int, label: str, updates: int) -> list[dict]:
    """KL moved by every update and, after the last five, the mean return of the deterministic policy (else empty)."""
    torch.manual_seed(seed)
    name, module = label.split(",")[0], MODULES[label.split(",")[0]]
    common = {"num_envs": 1, "num_steps": STEPS, "norm_obs": False, "anneal_lr": False, "compile": False}
    args = module.Args(**common | SETTINGS[label], device="cpu")
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
    updates = 2 if args.quick else 20
    rows = measure(run, args, *((label, updates) for label in SETTINGS))
    by_seed = rows.groupby(["setting", "seed"])[["kl", "return"]].mean().assign(log10_kl=lambda x: np.log10(x["kl"]))
    (figure, axis), table = panels(f"Policy steps and returns, {TASK}", 1), {}
    for label in SETTINGS:
        kl, earned = (interval(by_seed.loc[label][column]) for column in ("log10_kl", "return"))
        table[label] = 10 ** kl[0], earned[0]
        name, setting = label.split(", ")
        colour = COLOURS[list(MODULES).index(name)]
        axis.plot(*table[label], "o", color=colour, label=f"{name} (n = {args.seeds})")
        axis.hlines(earned[0], 10 ** kl[1], 10 ** kl[2], color=colour)
        axis.vlines(10 ** kl[0], *earned[1:], color=colour)
        axis.annotate(setting, table[label], (4, 5), textcoords="offset points", color=colour)
    axis.set(xscale="log", xmargin=0.1, ylim=(0, 540), xlabel="mean KL(old, new) of an update, nats")
    axis.set_ylabel(f"return of the last 5 of {updates} policies")
    figure.legend(handles=axis.lines[::3], loc="outside lower center", ncols=3)
    pairs = "; ".join(f"{label}: {kl:.1g} and {earned:.0f}" for label, (kl, earned) in table.items())
    best = max(table, key=lambda label: table[label][1])
    says = [f"Mean KL and final return are {pairs}.", f"{best} earns most, at {table[best][0]:.1g} nats per update."]
    save(args, "trust_region", rows, figure, says)


if __name__ == "__main__":
    main(setup(__doc__))
