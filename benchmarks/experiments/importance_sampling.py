"""The policy gradient from another policy's trajectories, by importance sampling.

Lecture "Policy Gradient Methods", additional material, slides "Importance Sampling".
Question: how far may the sampling policy theta' be from theta? Here its mean is shifted by d standard deviations at
each of T steps: the second moment of the weights is exp(T d^2), so that exp(-T d^2) of the samples count.

    grad J = E_theta'[(prod_t pi_theta(a_t | s_t) / pi_theta'(a_t | s_t)) (sum_t grad log pi_theta(a_t | s_t)) G(tau)]

    python benchmarks/experiments/importance_sampling.py
"""

import copy

import numpy as np
import torch
from common import Args, curve, measure, panels, save, setup
from tasks import accuracy, agent, finite_differences, simulate

HORIZON, N, SHIFTS = 10, 100, (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7)
NAMES = ("no weights", "weights", "weights over their mean")


def run(seed: int, batches: int) -> list[dict]:
    """Error of the estimates from batches of N trajectories, for every shift of the sampling policy."""
    torch.manual_seed(seed)
    reinforce = agent(N)
    reinforce.args.estimator, reinforce.args.baseline = "total-return", "none"
    truth, running, rows = finite_differences(reinforce.actor, HORIZON), torch.ones(HORIZON, N), []
    for shift in SHIFTS:
        other = copy.deepcopy(reinforce.actor)  # theta'
        other.mu.bias.data += shift * other.log_std.data.exp()
        estimates, weights = {name: [] for name in NAMES}, []
        for _ in range(batches):
            with torch.no_grad():
                s, a, r = simulate(other, N, HORIZON)
                logp_other = other.log_prob(s, a)[0]
            logp = reinforce.actor.log_prob(s, a)[0]
            weight = (logp - logp_other).sum(0).exp().detach()  # prod_t pi_theta / pi_theta'   [IS.1]
            g = reinforce.advantages(s, reinforce.returns(r, s[-1], torch.ones(N), running), running)
            for name, w in zip(NAMES, (torch.ones(N), weight, weight / weight.mean()), strict=True):
                estimates[name].append(reinforce.policy_gradient(logp, w * g, running))  # w grad log pi G   [IS.1]
            weights.append(weight)
        w = torch.stack(weights).double()
        share = (w.sum(1).square() / (N * w.square().sum(1))).mean().item()
        row = {"seed": seed, "shift": shift, "effective_share": share, "weight": w.mean().item()}
        row["weight_standard_error"] = w.std().item() / w.numel() ** 0.5
        rows.extend(row | {"estimate": name} | accuracy(x, truth) for name, x in estimates.items())
    return rows


def main(args: Args) -> None:
    """Measure, draw, tell."""
    rows = measure(run, args, (30 if args.quick else 500,))
    figure, (left, right) = panels(f"Importance-sampled policy gradient, {N} trajectories of {HORIZON} steps", 2)
    for name in NAMES:
        curve(left, rows[rows["estimate"] == name], "shift", "error", name, marker="o")
    weighted = rows[rows["estimate"] == "weights"]
    curve(right, weighted, "shift", "effective_share", "(sum w)² / (N sum w²)", marker="o")
    theory = np.exp(-HORIZON * np.square(SHIFTS))
    right.plot(SHIFTS, theory, "--", color="black", label="exp(-T d²)")
    left.set(xlabel="shift d of the mean action, standard deviations", yscale="log")
    left.set_ylabel("root mean square error / |grad J|")
    right.set(xlabel=left.get_xlabel(), ylabel="effective share of the samples", yscale="log", ylim=(3e-3, 1.3))
    left.legend()
    right.legend()
    error = rows.groupby(["shift", "estimate"])["error"].mean()
    share = weighted.groupby("shift")["effective_share"].mean()
    near = weighted[weighted["shift"] <= 0.3]["standard_errors_off"].max()
    says = [
        f"At d = 0.3 the weighted gradient is wrong by {error[0.3, 'weights']:.1f} |grad J| and the unweighted one by "
        f"{error[0.3, 'no weights']:.1f}; up to there its mean is within {near:.1f} standard errors of the truth.",
        f"But the price rises with exp(T d²): {share[0.3]:.0%} of the samples count at d = 0.3 and {share[0.7]:.0%} at "
        f"d = 0.7, where in theory it is {theory[-1]:.1%}: so few large weights are not even met.",
    ]
    save(args, "importance_sampling", rows, figure, says)


if __name__ == "__main__":
    main(setup(__doc__))
