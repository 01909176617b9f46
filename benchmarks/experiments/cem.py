"""The cross-entropy method: what does the comparison table's method without gradients reach, and with which policies?

Lecture "Pathwise derivatives, DDPG", slide "Model Free Methods - Comparison", columns CEM and TRPO, rows "Cart-Pole
Balancing" and "Swimmer". CEM searches the parameters theta of a deterministic policy (Szita and Lorincz 2006):

    theta_i ~ N(m, diag(sd^2)),  i = 1..N,  G_i the return of one episode of the policy theta_i
    m, sd <- mean and standard deviation of the N/4 theta_i of the highest G_i, sd not below a floor

    python benchmarks/experiments/cem.py
"""

from functools import partial

import pandas as pd
import torch
from common import Args, plt, save, setup
from ddpg import DeterministicActor
from learning import Envs, curves, final, rollout, runs
from torch import Tensor
from torch.func import functional_call, vmap
from trpo import TRPO
from trpo import Args as TRPOArgs

TASKS = {"InvertedPendulum-v5": "Cart-Pole Balancing", "Swimmer-v5": "Swimmer"}
CEM = {"CEM, linear policy": (), "CEM, network": (64, 64)}  # hidden layers; TRPO's network has as many
N, LIMIT = 16, 250  # members of a generation, and steps of an episode


def act(actor: DeterministicActor, theta: Tensor, s: Tensor) -> Tensor:
    """Actions [n, act] of the actor in s [n, obs], with parameters theta [n, k], or [k] for all."""

    def one(theta: Tensor, s: Tensor) -> Tensor:
        parts = theta.split([p.numel() for p in actor.parameters()])
        named = zip(actor.named_parameters(), parts, strict=True)
        return functional_call(actor, {name: part.view(p.shape) for (name, p), part in named}, s)

    return vmap(one)(theta.expand(len(s), -1), s)


def refit(theta: Tensor, score: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    """m and sd [k] of the best quarter of theta [N, k] by their score [N]."""
    best = theta[score.topk(len(theta) // 4).indices]
    return best.mean(0), best.std(0, correction=0).clamp_min(floor)  # m, sd of the best   [CEM.2]


def learn(name: str, seed: int, task: str, total: int):
    """Yields the return, mean of 8 episodes, of CEM's m or of TRPO's policy without noise, every 5 N episodes."""
    envs, test = Envs(task, N, seed, max_episode_steps=LIMIT), Envs(task, 8, 1000, max_episode_steps=LIMIT)
    low, high = torch.tensor(envs.spaces[1].low), torch.tensor(envs.spaces[1].high)
    actor = DeterministicActor(envs.obs.shape[1], low, high, CEM.get(name, ())).requires_grad_(False)
    m = torch.zeros(sum(p.numel() for p in actor.parameters()))
    sd = torch.ones_like(m)
    trpo = TRPO(*envs.spaces, TRPOArgs(device="cpu", compile=False, num_envs=N))
    for k in range(1, total + 1):
        if name in CEM:
            theta = m + sd * torch.randn(N, len(m))  # theta_i ~ N(m, diag(sd^2))   [CEM.1]
            envs.restart()
            m, sd = refit(theta, envs.play(partial(act, actor, theta)), floor=0.1)
        else:
            trpo.update(*rollout(trpo, envs, LIMIT), k / total)
        if k % 5 == 0 or k == total:
            test.restart()
            score = test.play(partial(act, actor, m) if name in CEM else trpo.act).mean().item()
            yield {"task": task, "step": k * N * LIMIT, "return": score}


def main(args: Args) -> None:
    names = [*CEM, "TRPO"]
    frames = {task: runs(args, learn, names, task, 1 if args.quick else 15) for task in TASKS}
    figure, axes = plt.subplots(1, 2, figsize=(8.3, 3.4), layout="constrained")
    for axis, (task, frame) in zip(axes, frames.items(), strict=True):
        curves(axis, frame, "return", ylabel=f"return of {LIMIT} steps", title=f"{task} ({TASKS[task]})")
    last = [", ".join(f"{final(frame, 'return', name)} ({name})" for name in names) for frame in frames.values()]
    says = [f"The last return on {task} is {x}." for task, x in zip(TASKS, last, strict=True)]
    save(args, "cem", pd.concat(frames.values()), figure, says)


if __name__ == "__main__":
    main(setup(__doc__))
