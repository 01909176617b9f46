"""Likelihood-ratio and pathwise estimates of the same policy gradient.

Lecture "Pathwise derivatives, DDPG", slides "Computing Gradients of Expectations", "Re-parametrized Policy Gradients".
Question: how does their variance change with the horizon T and the policy's standard deviation sigma? Dynamics and
reward of the point mass are known, as the pathwise derivative asks; the truth is by finite differences.

    likelihood ratio  grad J = E[sum_t grad log pi(a_t | s_t) G]              [REINFORCE.3] without a baseline
    pathwise          grad J = E_z[grad sum_t r(s_t, a_t)],  a_t = mu(s_t) + sigma z_t

    python benchmarks/experiments/pathwise_variance.py
"""

import torch
from common import Args, curve, measure, panels, save, setup
from tasks import accuracy, agent, finite_differences, simulate

N, HORIZONS, SIGMAS = 8, (5, 10, 20, 40), (0.1, 0.2, 0.3, 0.6, 1.0)
NAMES = ("likelihood ratio, total-return", "likelihood ratio, reward-to-go", "pathwise")


def run(seed: int, batches: int) -> list[dict]:
    """Variance of the three estimates of the gradient, from batches of N trajectories, for every horizon and sigma."""
    torch.manual_seed(seed)
    reinforce, rows = agent(N), []
    reinforce.args.baseline = "none"
    for horizon, sigma in [(t, 0.6) for t in HORIZONS] + [(10, sigma) for sigma in SIGMAS if sigma != 0.6]:
        reinforce.actor.log_std.data.fill_(sigma).log_()
        truth, running = finite_differences(reinforce.actor, horizon), torch.ones(horizon, N)
        estimates = {name: [] for name in NAMES}
        for _ in range(batches):
            s, a, r = simulate(reinforce.actor, N, horizon)
            gradient = torch.autograd.grad(r.sum(0).mean(), reinforce.theta())  # grad 1/N sum_i sum_t r   [PATH.1]
            estimates["pathwise"].append(torch.cat([g.flatten() for g in gradient]))
            s, a, r = s.detach(), a.detach(), r.detach()
            logp, g = reinforce.actor.log_prob(s, a)[0], reinforce.returns(r, s[-1], torch.ones(N), running)
            for name in NAMES[:2]:
                reinforce.args.estimator = name.split(", ")[1]
                estimates[name].append(reinforce.policy_gradient(logp, reinforce.advantages(s, g, running), running))
        row = {"seed": seed, "horizon": horizon, "sigma": sigma}
        rows.extend(row | {"estimate": name} | accuracy(x, truth) for name, x in estimates.items())
    return rows


def main(args: Args) -> None:
    """Measure, draw, tell."""
    rows = measure(run, args, (30 if args.quick else 500,))
    figure, axes = panels(f"Likelihood-ratio and pathwise gradients, {N} trajectories", 2)
    for name in NAMES:
        chosen = rows[rows["estimate"] == name]
        curve(axes[0], chosen[chosen["sigma"] == 0.6], "horizon", "variance", name, marker="o")
        curve(axes[1], chosen[chosen["horizon"] == 10], "sigma", "variance", name, marker="o")
    axes[0].set(xlabel="horizon T, steps (sigma = 0.6)", ylabel="variance / |grad J|²")
    axes[1].set_xlabel("sigma of the policy (T = 10 steps)")
    for axis, ticks in zip(axes, (HORIZONS, SIGMAS), strict=True):
        axis.set(xscale="log", yscale="log", ylim=(0.03, 2000))
        axis.set_xticks(ticks, map(str, ticks))
        axis.minorticks_off()
    axes[0].legend()
    variance = rows.groupby(["horizon", "sigma", "estimate"])["variance"].mean()
    ratio = {sigma: variance[10, sigma, NAMES[1]] / variance[10, sigma, NAMES[2]] for sigma in SIGMAS}
    says = [
        f"With T = 10 the likelihood ratio, even with rewards to go, has {ratio[1.0]:.0f} times the pathwise variance "
        f"at sigma = 1 and {ratio[0.1]:.0f} times at sigma = 0.1: only the score has a 1 / sigma.",
        f"All means are within {rows['standard_errors_off'].max():.1f} standard errors of the finite differences.",
    ]
    save(args, "pathwise_variance", rows, figure, says)


if __name__ == "__main__":
    main(setup(__doc__))
