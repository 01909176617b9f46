"""One-step, n-step and Monte Carlo critics: bias against variance of their targets.

Lectures "Policy Gradient Methods", slides "Actor-Critic Methods", and "Pathwise derivatives, DDPG", slides "Stochastic
Value Gradients V0" (TD(lambda)). A random walk from state 10 to either end: V(i) = i / 10 - 1 for i = 1 ... 19.

    A_t = sum_k (gamma lambda)^k delta_{t+k},  V_t^targ = A_t + V(s_t)     [GAE.1], [GAE.2]
    one-step: lambda = 0; Monte Carlo: lambda = 1; n-step: the first n terms at lambda = 1

    python benchmarks/experiments/critics_lambda.py
"""

import itertools

import torch
from common import COLOURS, Args, curve, measure, panels, save, setup
from tasks import random_walk

# isort: split
from ppo import gae

TRUTH, MONTE_CARLO = torch.arange(1, 20) / 10 - 1, 200  # Monte Carlo is shown at 200 steps
TARGETS = {("lambda", x): 1 / (1 - x) for x in (0.0, 0.5, 0.8, 0.9, 0.95, 0.98)}  # how many steps till V takes over
TARGETS |= {("n-step", n): n for n in (1, 2, 4, 8, 16, 32, 64)} | {("lambda", 1.0): MONTE_CARLO}
RATES = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8)  # step sizes; the best is taken, each target's own


def targets(states: torch.Tensor, v: torch.Tensor, kind: str, value: float) -> torch.Tensor:
    """V^targ of an episode's states with critic v [21], whose ends are worth 0, by lambda or by number of steps."""
    s, s2 = states[:-1], states[1:]
    r, terminal = (s2 == 20).float() - (s2 == 0).float(), (s2 % 20 == 0).float()
    columns = [x.unsqueeze(1) for x in (r, v[s], v[s2], terminal, terminal)]
    if kind == "lambda":
        return v[s] + gae(*columns, 1.0, value).squeeze(1)
    delta = torch.cat([gae(*columns, 1.0, 0.0).squeeze(1), torch.zeros(int(value) - 1)])
    return v[s] + delta.unfold(0, int(value), 1).sum(1)  # sum of n of the delta


def run(seed: int, walks: int, repeats: int) -> list[dict]:
    """Bias and variance of the targets of an untrained critic, and the error of critics learned from ten episodes."""
    torch.manual_seed(seed)
    sample, episodes = ([random_walk() for _ in range(n)] for n in (walks, 10 * repeats))
    state, rows = torch.cat([w[:-1] for w in sample]), []
    for (kind, value), steps in TARGETS.items():
        y = torch.cat([targets(w, torch.zeros(21), kind, value) for w in sample])
        mean = torch.stack([y[state == k].mean() for k in range(1, 20)])[state - 1]
        bias2, variance = (mean - TRUTH[state - 1]).square().mean().item(), (y - mean).square().mean().item()
        row = {"seed": seed, "kind": kind, "value": value, "steps": steps, "bias2": bias2, "variance": variance}
        errors = torch.zeros(len(RATES))
        for (k, rate), repeat in itertools.product(enumerate(RATES), range(repeats)):
            v = torch.zeros(21)
            for w in episodes[repeat::repeats]:
                v.index_add_(0, w[:-1], rate * (targets(w, v, kind, value) - v[w[:-1]]))
                errors[k] += (v[1:20] - TRUTH).square().mean().sqrt() / (10 * repeats)
        rows.append(row | {"error": errors.nan_to_num(torch.inf).min().item()})
    return rows


def main(args: Args) -> None:
    """Measure, draw, tell."""
    rows = measure(run, args, (50, 1) if args.quick else (500, 10))
    figure, (left, right) = panels("Targets of one-step, n-step and Monte Carlo critics, random walk", 2)
    for kind, line in (("lambda", "-"), ("n-step", "--")):
        columns = {"bias²": (left, "bias2"), "variance": (left, "variance"), "error": (right, "error")}
        for colour, (label, (axis, column)) in zip(COLOURS, columns.items(), strict=False):
            curve(axis, rows[rows["kind"] == kind], "steps", column, f"{label}, {kind}", color=colour, linestyle=line)
    for axis, label in ((left, "bias², variance of targets at V = 0"), (right, "RMS error of V over 10 episodes")):
        axis.set(xlabel="steps till V takes over: n or 1 / (1 - lambda)", ylabel=label, xscale="log")
        axis.set_xticks([1, 10, MONTE_CARLO], ["1", "10", "Monte Carlo"])
        axis.legend()
    mean = rows.groupby(["kind", "value"])[["bias2", "variance", "error"]].mean()
    ends = mean.loc["lambda"].loc[[0.0, 1.0]].itertuples()
    one, monte = (f"bias² {x.bias2:.2f}, variance {x.variance:.2f}, error of V {x.error:.2f}" for x in ends)
    best = f"V learns best, to {mean['error'].min():.2f}, with {'{} {:g}'.format(*mean['error'].idxmin())}."
    says = [f"One-step targets: {one}; Monte Carlo: {monte}.", best]
    save(args, "critics_lambda", rows, figure, says)


if __name__ == "__main__":
    main(setup(__doc__))
