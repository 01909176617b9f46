"""The variance of REINFORCE's gradient estimates, and what baselines do to it.

Lecture "Policy Gradient Methods", slides "Finite Differences", "The REINFORCE Algorithm" and "REINFORCE with Baseline".
Question: how much do reward-to-go and the baselines reduce the variance, and do they leave the mean alone? The truth is
the finite-difference gradient of the exactly known J of a point mass.

    grad J = 1/N sum_tau sum_t grad log pi(a_t | s_t) (G - b)     [REINFORCE.3], G of [REINFORCE.1] or [REINFORCE.2]
    dJ/dtheta_k ~ (J(theta + eps e_k) - J(theta)) / eps

    python benchmarks/experiments/pg_variance.py
"""

import itertools

import torch
from common import COLOURS, Args, interval, measure, panels, save, setup
from tasks import accuracy, agent, finite_differences, simulate

HORIZON, N = 20, 8
ESTIMATORS, BASELINES = ("total-return", "reward-to-go"), ("none", "mean", "optimal", "value")


def run(seed: int, batches: int) -> list[dict]:
    """Variance and mean of every estimator over many batches of N trajectories."""
    torch.manual_seed(seed)
    reinforce = agent(N)
    truth = finite_differences(reinforce.actor, HORIZON)
    running, terminal = torch.ones(HORIZON, N), torch.ones(N)
    with torch.no_grad():
        s, _, r = simulate(reinforce.actor, 2000, HORIZON)  # of its own, for V: not those that it is subtracted from
    g = reinforce.returns(r, s[-1], torch.ones(2000), torch.ones_like(r))
    reinforce.fit_value(s.flatten(0, 1), g.flatten())
    estimates = {pair: [] for pair in itertools.product(ESTIMATORS, BASELINES)}
    for _ in range(batches):
        with torch.no_grad():
            s, a, r = simulate(reinforce.actor, N, HORIZON)
        logp = reinforce.actor.log_prob(s, a)[0]
        for reinforce.args.estimator, reinforce.args.baseline in estimates:
            adv = reinforce.advantages(s, reinforce.returns(r, s[-1], terminal, running), running)
            gradient = reinforce.policy_gradient(logp, adv, running)
            estimates[reinforce.args.estimator, reinforce.args.baseline].append(gradient)
    names = [{"seed": seed, "estimator": estimator, "baseline": baseline} for estimator, baseline in estimates]
    return [row | accuracy(x, truth) for row, x in zip(names, estimates.values(), strict=True)]


def main(args: Args) -> None:
    """Measure, draw, tell."""
    rows = measure(run, args, (100 if args.quick else 1000,))
    figure, axes = panels(f"Gradient estimates of REINFORCE, {N} trajectories of {HORIZON} steps", 2)
    for axis, name in zip(axes, ("variance", "length"), strict=True):
        for k, (estimator, chosen) in enumerate(rows.groupby("estimator", sort=False)):
            mean, low, high = zip(*(interval(x) for _, x in chosen.groupby("baseline", sort=False)[name]), strict=True)
            where = [place + 0.2 * k for place in range(len(BASELINES))]
            axis.hlines(where, low, high, color=COLOURS[k])
            axis.plot(mean, where, "o", color=COLOURS[k], label=f"{estimator} (n = {args.seeds})")
        axis.set_yticks(range(len(BASELINES)), BASELINES)
        axis.invert_yaxis()
    axes[0].set(xlabel="variance / |grad J|²", xscale="log", ylabel="baseline")
    axes[0].legend()
    axes[1].axvline(1, color="black", linewidth=1, label="finite differences")
    axes[1].set_xlabel("mean estimate along grad J, in |grad J|")
    axes[1].legend(handles=axes[1].lines[-1:])
    cells = rows.groupby(["estimator", "baseline"])
    variance = cells["variance"].mean()
    mean, low, high = interval(cells.get_group(("total-return", "mean"))["length"])
    plain, best = variance["total-return", "none"], variance.idxmin()
    off = rows[rows["baseline"].isin(["none", "value"])]["standard_errors_off"].max()
    says = [
        f"Of a variance of {plain:.3g} |grad J|² reward-to-go leaves {variance['reward-to-go', 'none']:.3g}, and "
        f"{best[0]} with baseline {best[1]} {variance[best]:.3g}, which is {plain / variance[best]:.0f} times less.",
        f"Without a baseline and with a learned V every component's mean is within {off:.1f} standard errors of the "
        f"finite differences; the mean return of the same {N} trajectories shortens it to {mean:.2f} [{low:.2f}, "
        f"{high:.2f}] of its length, in theory to 1 - 1/N = {1 - 1 / N:.3f}.",
    ]
    save(args, "pg_variance", rows, figure, says)


if __name__ == "__main__":
    main(setup(__doc__, seeds=10))
