"""SVG(0) and the deterministic policy gradient on a known Q: what does the noise z in the action do?

Lecture "Pathwise derivatives, DDPG", slides "Known MDP-let's make it simpler", "Stochastic Value Gradients V0" and
"Compare with: Deep Deterministic Policy Gradients" ("No z!"):

    DPG     grad_theta mean_s Q(s, mu(s; theta))                               the actor's loss of ddpg.py    [DDPG.3]
    SVG(0)  grad_theta mean_s Q(s, mu(s; theta) + z sigma(s; theta))           that of sac.py with alpha = 0  [SAC.6]

with z from N(0, 1). Both actors end in a tanh. Q is a hill with ripples whose top, 0, is at c(s) = 0.5 + 0.2 s. SVG(0)
climbs its mean over z, in which the ripples are flatter; at a distance d of the mean action from c(s) it is
    E_z Q = -d^2 - sigma^2 + h (exp(-w^2 sigma^2 / 2) cos(w d) - 1),    Q itself at sigma = 0

    python benchmarks/experiments/svg0_dpg.py
"""

import numpy as np
import torch
from common import COLOURS, Args, plt, save, setup
from ddpg import DDPG
from ddpg import Args as DDPGArgs
from gymnasium.spaces import Box
from learning import runs
from sac import SAC
from sac import Args as SACArgs
from torch import Tensor, nn

H, W = 0.1, 25.0  # height and angular frequency of the ripples
SPACES = Box(-1, 1, (1,), np.float32), Box(-1, 1, (1,), np.float32)


def smoothed(d: Tensor, sigma: float) -> Tensor:
    """Mean of Q over normal noise of std sigma in the action, d being its mean's distance from the best action."""
    return -d.square() - sigma**2 + H * (np.exp(-((W * sigma) ** 2) / 2) * torch.cos(W * d) - 1)


class KnownQ(nn.Module):
    """The known Q: s [n, 1], a [n, 1] -> value [n]."""

    def forward(self, s: Tensor, a: Tensor) -> Tensor:
        return smoothed((a - 0.5 - 0.2 * s).squeeze(-1), 0.0)


def learn(name: str, seed: int, steps: int):
    """Yields Q of the action without noise, and the std of u in a = tanh(u), both means over the states."""
    dpg, grid = name == "DPG", torch.linspace(-1, 1, 201).unsqueeze(-1)
    settings = {"device": "cpu", "compile": False, "learning_rate": 3e-4}
    agent = DDPG(*SPACES, DDPGArgs(**settings)) if dpg else SAC(*SPACES, SACArgs(**settings, alpha="0"))
    agent.critic, agent.critics = KnownQ(), nn.ModuleList([KnownQ(), KnownQ()])  # DDPG's, SAC's
    for step in range(steps + 1):
        if step % 30 == 0:
            sigma = 0.0 if dpg else agent.actor.net(grid).chunk(2, -1)[1].exp().mean().item()
            yield {"step": step, "q": KnownQ()(grid, agent.act(grid)).mean().item(), "sigma": sigma}
        noise = () if dpg else (torch.randn(256, 1),)
        agent.actor_step(2 * torch.rand(256, 1) - 1, *noise)


def main(args: Args) -> None:
    frame = runs(args, learn, ["DPG", "SVG(0)"], 60 if args.quick else 1500)
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.3, 3.0), layout="constrained")
    d = torch.linspace(-1, 1, 200)
    for sigma, style in ((0.0, "-"), (0.05, "--"), (0.3, ":")):
        left.plot(d, smoothed(d, sigma), style, color="black", label=f"sigma = {sigma:g}")
    left.set(xlabel="mean action minus the best", ylabel="E[Q] over z", title="What it climbs", xticks=[-1, 0, 1])
    for (name, seed), run in frame.groupby(["algorithm", "seed"]):
        label = f"{name} (n = {args.seeds})" if seed == args.seed else None
        right.plot(run.step, run.q, color=COLOURS[name == "DPG"], label=label)
    right.set(xlabel="gradient steps", ylabel="mean of Q(s, mu(s)) over s", title="What it reaches")
    left.legend(loc="lower center"), right.legend(loc="lower right")
    last = frame[frame.step == frame.step.max()].set_index("algorithm")
    top, worst = (last.q > -0.02).groupby("algorithm").sum(), last.q.groupby("algorithm").min()
    says = [
        f"Climbing Q, DPG gets within 0.02 of the top in {top['DPG']} of {args.seeds} runs (worst {worst['DPG']:.2g}); "
        f"climbing its mean over the noise, SVG(0) does in {top['SVG(0)']} (worst {worst['SVG(0)']:.2g}).",
        f"The noise is learned too: sigma falls from {frame.sigma.max():.2g} to {last.sigma.max():.2g} at most.",
    ]
    save(args, "svg0_dpg", frame, figure, says)


if __name__ == "__main__":
    main(setup(__doc__))
