"""One-step, n-step and Monte Carlo critics: bias against variance of their targets.

Lectures "Policy Gradient Methods", slides "Actor-Critic Methods" (the bias of bootstrapping reduces variance), and
"Pathwise derivatives, DDPG", slides "Stochastic Value Gradients V0" (learn Q, e.g. with TD(lambda)). The task is
Sutton and Barto's random walk: 19 states in a row, rewards -1 at the left end and 1 at the right, V(i) = i / 10 - 1.

    A_t = sum_k (gamma lambda)^k delta_{t+k},  V_t^targ = A_t + V(s_t)     [GAE.1], [GAE.2]
    lambda = 0 is the one-step target r + V(s'), lambda = 1 the Monte Carlo return; the n-step target has n terms

    python benchmarks/experiments/critics_lambda.py
"""

import itertools

import numpy as np
import pandas as pd
import torch
from common import COLOURS, Args, curve, in_parallel, plt, save, setup, tell
from torch import Tensor

# isort: split
from ppo import gae

TRUTH = torch.arange(1, 20) / 10 - 1
LAMBDAS = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 1.0)
LENGTHS = (1, 2, 4, 8, 16, 32, 64, 4000)  # n of the n-step targets
CUT = 200  # where the picture shows Monte Carlo, n = infinity
RATES = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8)  # step sizes; the best is taken, each target's own


def walk() -> Tensor:
    """The states, from 1 to 19, of an episode from the middle to either end, and 0 or 20 at last."""
    states = [10]
    while 0 < states[-1] < 20:
        states.append(states[-1] + 2 * int(torch.rand(()) < 0.5) - 1)
    return torch.tensor(states)


def targets(states: Tensor, v: Tensor, kind: str, value: float) -> Tensor:
    """V^targ of an episode's states with critic v [21], whose ends are worth 0, by lambda or by number of steps."""
    r, terminal = (states[1:] // 20 - (states[1:] == 0).long()).float(), torch.zeros(len(states) - 1)
    terminal[-1] = 1.0
    columns = [x.unsqueeze(1) for x in (r, v[states[:-1]], v[states[1:]], terminal, terminal)]
    if kind == "lambda":
        return v[states[:-1]] + gae(*columns, 1.0, value).squeeze(1)
    delta = torch.cat([gae(*columns, 1.0, 0.0).squeeze(1), torch.zeros(int(value) - 1)])
    return v[states[:-1]] + delta.unfold(0, int(value), 1).sum(1)  # sum of n of the delta


def horizon(kind: str, value: float) -> float:
    """Steps before the critic takes over, on average: n or 1 / (1 - lambda)."""
    return value if kind == "n-step" else 1 / max(1 - value, 1e-9)


def run(seed: int, walks: int, repeats: int) -> list[dict]:
    """Bias and variance of the targets of an untrained critic, and the error of critics learned from ten episodes."""
    torch.manual_seed(seed)
    sample, episodes, rows = [walk() for _ in range(walks)], [[walk() for _ in range(10)] for _ in range(repeats)], []
    for kind, value in [("lambda", x) for x in LAMBDAS] + [("n-step", x) for x in LENGTHS]:
        state = torch.cat([w[:-1] for w in sample])
        y = torch.cat([targets(w, torch.zeros(21), kind, value) for w in sample])
        mean = torch.stack([y[state == k].mean() for k in range(1, 20)])[state - 1]
        row = {"seed": seed, "kind": kind, "value": value, "horizon": min(horizon(kind, value), CUT)}
        row["bias2"] = (mean - TRUTH[state - 1]).square().mean().item()
        row["variance"] = (y - mean).square().mean().item()
        errors = {rate: [] for rate in RATES}
        for rate, batch in itertools.product(RATES, episodes):
            v = torch.zeros(21)
            for w in batch:
                v.index_add_(0, w[:-1], rate * (targets(w, v, kind, value) - v[w[:-1]]))
                errors[rate].append((v[1:20] - TRUTH).square().mean().sqrt().item())
        rate = min(RATES, key=lambda rate: np.nan_to_num(np.mean(errors[rate]), nan=np.inf))
        rows.append(row | {"error": np.mean(errors[rate]), "rate": rate})
    return rows


def main(args: Args) -> None:
    """Measure, draw, tell."""
    tasks = [(seed, *((50, 1) if args.quick else (500, 20))) for seed in range(args.seed, args.seed + args.seeds)]
    rows = pd.DataFrame([row for rows in in_parallel(run, tasks) for row in rows])
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.3, 3.6), layout="constrained")
    for kind, line in (("lambda", "-"), ("n-step", "--")):
        chosen = rows[rows["kind"] == kind]
        curve(left, chosen, "horizon", "bias2", f"bias², {kind}", color=COLOURS[0], linestyle=line)
        curve(left, chosen, "horizon", "variance", f"variance, {kind}", color=COLOURS[1], linestyle=line)
        curve(right, chosen, "horizon", "error", kind, color=COLOURS[2], linestyle=line, marker="o")
    for axis in (left, right):
        axis.set(xlabel="steps before the critic takes over: n or 1 / (1 - lambda)", xscale="log")
        axis.set_xticks([1, 2, 5, 10, 20, 50, CUT], ["1", "2", "5", "10", "20", "50", "Monte Carlo"])
        axis.minorticks_off()
        axis.legend()
    figure.suptitle("Targets of one-step, n-step and Monte Carlo critics: random walk, mean and 95 % interval")
    left.set_ylabel("mean square error of the targets at V = 0")
    right.set_ylabel("RMS error of V, mean over 10 episodes")
    save(args, "critics_lambda", rows, figure)
    mean = rows.groupby(["kind", "value"])[["bias2", "variance", "error"]].mean()
    one, carlo, best = mean.loc["lambda", 0.0], mean.loc["lambda", 1.0], mean["error"].idxmin()
    tell(
        f"With an untrained critic the error of the one-step target is bias (bias² {one['bias2']:.2f}, variance "
        f"{one['variance']:.2f}), that of the Monte Carlo return variance ({carlo['bias2']:.2f} and {carlo['variance']:.2f}).",
        f"Learning is best between them: the error of V is {mean['error'].min():.2f} with {best[0]} {best[1]:g}, "
        f"{one['error']:.2f} with one step and {carlo['error']:.2f} with Monte Carlo.",
    )


if __name__ == "__main__":
    main(setup(__doc__))
