"""PPO with a KL penalty instead of the clip: does it hold the policy as close, and does it learn as well?

Lecture "Policy Gradient Methods", slide "Proximal Policy Optimization (PPO)": "the hard KL constraint is removed in
favour of a penalization". The slide's formula is the clip; this is the paper's other objective (Schulman et al. 2017):

    L^KLPEN = mean(ratio_t A_t) - beta KL[pi_old, pi],     and after each update, d being its KL:
    d < d_targ / 1.5:  beta <- beta / 2,                   d > 1.5 d_targ:  beta <- 2 beta
The loss estimates the KL as the mean of ratio - 1 - log ratio: right in expectation, as is its gradient; d is exact.

    python benchmarks/experiments/ppo_kl_penalty.py
"""

import copy

import numpy as np
from common import Args, plt, save, setup
from learning import Envs, curves, over_seeds, rollout, runs
from ppo import PPO
from ppo import Args as PPOArgs
from torch import Tensor
from torch.distributions import Normal, kl_divergence

VARIANTS = {  # clip range (1e9: none, which leaves ratio_t A_t), beta at the start, d_targ (None: beta stays)
    "clip 0.2": (0.2, 0.0, None),
    "KL penalty, target 0.01": (1e9, 1.0, 0.01),
    "KL penalty, beta 1": (1e9, 1.0, None),
    "neither": (1e9, 0.0, None),
}


class PenaltyPPO(PPO):
    """PPO whose loss has beta KL[pi_old, pi] added, and whose beta is adapted if there is a target."""

    def __init__(self, observation_space, action_space, args: PPOArgs, beta: float, kl_target: float | None):
        self.beta, self.kl_target = beta, kl_target
        super().__init__(observation_space, action_space, args)

    def loss(self, *minibatch: Tensor):
        loss, info = super().loss(*minibatch)
        return loss + self.beta * info["kl"], info  # -L^KLPEN = -mean(ratio A) + beta KL   [KLPEN.1]

    def update(self, s: Tensor, *rest) -> dict:
        old, s_seen = copy.deepcopy(self.actor), self.normalise(s.flatten(0, 1))
        super().update(s, *rest)
        before, after = (Normal(actor.mu(s_seen), actor.log_std.exp()) for actor in (old, self.actor))
        d = kl_divergence(before, after).sum(-1).mean().item()
        if self.kl_target is not None:
            self.beta *= 0.5 if d < self.kl_target / 1.5 else 2 if d > 1.5 * self.kl_target else 1  # [KLPEN.2]
        return {"kl": d, "log_kl": np.log10(d), "beta": self.beta}


def learn(name: str, seed: int, rollouts: int):
    """Yields, for each rollout of 8 x 128 steps, the KL of its update, beta, and the return of the last 20 episodes."""
    (clip, *penalty), envs = VARIANTS[name], Envs("InvertedPendulum-v5", 8, seed)
    settings = {"num_steps": 128, "num_minibatches": 8, "learning_rate": 1e-3, "anneal_lr": False, "clip_coef": clip}
    agent = PenaltyPPO(*envs.spaces, PPOArgs(device="cpu", compile=False, **settings), *penalty)
    for k in range(1, rollouts + 1):
        info = agent.update(*rollout(agent, envs, 128), k / rollouts)
        yield {"step": k * 8 * 128, "return": np.mean(envs.returns[-20:])} | info


def main(args: Args) -> None:
    frame = runs(args, learn, list(VARIANTS), 2 if args.quick else 30)
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.3, 3.6), layout="constrained")
    curves(left, frame, "log_kl", ylabel="log10 of an update's KL [nats]", title="How far the policy moves")
    curves(right, frame, "return", ylabel="return, mean of 20 episodes", title="InvertedPendulum-v5")
    runs_of = frame.groupby(["algorithm", "seed"])
    kl, gain = (
        [f"{over_seeds(x[v])} ({v})" for v in VARIANTS] for x in (runs_of.kl.median(), runs_of["return"].mean())
    )
    says = [
        f"The median update moves the policy by a KL of {', '.join(kl)} nats.",
        f"The return over the run is {', '.join(gain)} (means, 95 % intervals, n = {args.seeds}).",
    ]
    save(args, "ppo_kl_penalty", frame, figure, says)


if __name__ == "__main__":
    main(setup(__doc__))
