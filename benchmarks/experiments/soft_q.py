"""Soft Q-learning and its energy-based policy: does it keep every way to the goal open, where Q-learning keeps one?

Lecture "Handling Continuous Action Space", slides "Maximum Entropy Reinforcement Learning" and "A multi-goal
environment example": a point starts in the middle of four goals that are worth the same. With a temperature alpha,

    V(s) = alpha log sum_a exp(Q(s, a) / alpha)              soft maximum; max_a Q(s, a) as alpha -> 0
    pi(a | s) = exp((Q(s, a) - V(s)) / alpha)                the slide's exp(Q(s, a)), with its temperature
    L(Q) = mean (r + gamma (1 - terminal) V'(s') - Q(s, a))^2

    python benchmarks/experiments/soft_q.py
"""

import pandas as pd
import torch
from common import COLOURS, Args, in_parallel, plt, save, setup
from ddpg import follow, gradient_step, relu_mlp
from learning import over_seeds
from multi_goal import ANGLES, draw, random_memory, walk
from torch import Tensor

ALPHA = {"soft Q-learning": 0.15, "Q-learning": 1e-5}  # temperatures


def value(q: Tensor, alpha: float) -> Tensor:
    """V(s) [...] of Q(s, .) [..., actions]."""
    return alpha * torch.logsumexp(q / alpha, -1)  # V(s) = alpha log sum_a exp(Q(s, a) / alpha)


def policy(q: Tensor, alpha: float) -> Tensor:
    """pi(. | s) [..., actions] of Q(s, .) [..., actions]."""
    return ((q - value(q, alpha).unsqueeze(-1)) / alpha).exp()  # pi(a | s) = exp((Q - V) / alpha)   [SOFTQ.1]


def learn(name: str, seed: int, steps: int) -> torch.nn.Module:
    """Q after `steps` gradient steps on random actions in random places."""
    torch.manual_seed(seed)
    (q, q_target), memory = (relu_mlp(2, 128, 128, len(ANGLES)) for _ in range(2)), random_memory(50_000)
    optimizer = torch.optim.Adam(q.parameters(), 1e-3)

    def loss(s: Tensor, a: Tensor, r: Tensor, s2: Tensor, terminal: Tensor):
        with torch.no_grad():
            y = r + 0.99 * (1 - terminal) * value(q_target(s2), ALPHA[name])
        return (y - q(s).gather(-1, a.long()).squeeze(-1)).square().mean(), {}

    step = gradient_step(loss, optimizer, compile=False)
    for k in range(steps):
        optimizer.param_groups[0]["lr"] = 1e-3 * (1 - k / steps)
        step(*memory.sample(256))
        follow(q_target, q, 0.01)
    return q


def main(args: Args) -> None:
    tasks = [(name, args.seed + k, 100 if args.quick else 5000) for name in ALPHA for k in range(args.seeds)]
    nets, rows, n = in_parallel(learn, tasks), [], 400
    figure, axes = plt.subplots(1, 3, figsize=(8.3, 2.9), layout="constrained")
    for (name, seed, _), q in zip(tasks, nets, strict=True):
        torch.manual_seed(seed)
        path, shares = walk(lambda s, q=q, alpha=ALPHA[name]: policy(q(s), alpha).multinomial(1).squeeze(-1), n)
        rows += [{"algorithm": name, "seed": seed, "rank": k + 1, "share": x.item()} for k, x in enumerate(shares)]
        if seed == args.seed:
            draw(axes[0], path[:, :20], COLOURS[list(ALPHA).index(name)], f"20 paths of each, seed {seed}")
    for place, line in (((0.0, 0.0), "-o"), ((2.5, 2.5), "--s")):
        pi = policy(nets[0](torch.tensor(place)), ALPHA["soft Q-learning"]).detach()
        axes[1].plot(ANGLES.rad2deg(), pi, line, color="black", markersize=3, label=f"at {place}")
    axes[1].set(xlabel="direction [degrees]", ylabel="pi(a | s)", title="The soft policy", xticks=range(0, 361, 90))
    frame = pd.DataFrame(rows)
    for k, (name, of) in enumerate(frame.groupby("algorithm", sort=False)):
        axes[2].plot(of["rank"] + 0.2 * k - 0.1, of.share, "os"[k], alpha=0.6, label=f"{name} (n = {args.seeds})")
    axes[2].set(xlabel="goal, most visited first", ylabel=f"share of {n} paths", title="Goals reached, every seed")
    axes[1].legend(fontsize=7), axes[2].legend(fontsize=7)
    top, least = (frame[frame["rank"] == k].groupby("algorithm").share.apply(over_seeds) for k in (1, 4))
    most, fewest, one = top["soft Q-learning"], least["soft Q-learning"], top["Q-learning"]
    first = f"Of soft Q-learning's paths {most} end at the goal visited most, {fewest} at that visited least."
    says = [first, f"Of Q-learning's paths {one} end at one goal (means, 95 % intervals, n = {args.seeds})."]
    save(args, "soft_q", frame, figure, says)


if __name__ == "__main__":
    main(setup(__doc__))
