"""Q actor-critic (Algorithm 2): what does it cost to weigh grad log pi by Q itself and not by the advantage?

Lecture "Policy Gradient Methods", slides "Actor-Critic Methods". Algorithm 2 at every step, with a_{t+1} drawn before
it is used, which the slide leaves out, and going on while (not until) s_t is not terminal:

    delta_t = r_t + gamma (1 - terminal_t) Q(s_{t+1}, a_{t+1}) - Q(s_t, a_t),         a_{t+1} ~ pi(. | s_{t+1})
    omega  <- omega + alpha_omega delta_t grad Q(s_t, a_t)                            critic
    theta  <- theta + alpha_theta grad log pi(a_t | s_t) Q(s_t, a_t)                  actor, "Q"
    theta  <- theta + alpha_theta grad log pi(a_t | s_t) (Q(s_t, a_t) - V(s_t))       actor, "Q - V"

The baseline V(s) = sum_a pi(a | s) Q(s, a) leaves the mean of the actor's step as it is. Adam makes the steps.

    python benchmarks/experiments/q_actor_critic.py
"""

import torch
from common import Args, plt, save, setup
from learning import Envs, curves, over_seeds, runs
from ppo import SoftmaxActor, gradient_step, mlp
from torch import Tensor, nn


class QActorCritic(nn.Module):
    """Algorithm 2. s is [n, obs], a [n] (integers from 0), r and terminal are [n]."""

    def __init__(self, observation_space, action_space, advantage: bool):
        super().__init__()
        self.advantage, obs_dim = advantage, observation_space.shape[0]  # theta, omega   [QAC.1]
        self.actor, self.critic = SoftmaxActor(obs_dim, action_space), mlp(obs_dim, int(action_space.n), gain=1.0)
        self.actor_step = gradient_step(self.actor_loss, torch.optim.Adam(self.actor.parameters(), 1e-4), False)
        self.critic_step = gradient_step(self.critic_loss, torch.optim.Adam(self.critic.parameters(), 3e-3), False)

    def q(self, s: Tensor, a: Tensor) -> Tensor:
        return self.critic(s).gather(-1, a.unsqueeze(-1)).squeeze(-1)

    def critic_loss(self, s: Tensor, a: Tensor, r: Tensor, s2: Tensor, a2: Tensor, terminal: Tensor):
        """Half the mean of delta^2, y fixed: its descent is omega <- omega + alpha_omega delta grad Q(s, a)."""
        y = r + 0.99 * (1 - terminal) * self.q(s2, a2).detach()  # y = r + gamma (1 - terminal) Q(s', a')   [QAC.5]
        return 0.5 * (y - self.q(s, a)).square().mean(), {}  # its gradient: -delta grad Q   [QAC.5], [QAC.6]

    @torch.no_grad()
    def weight(self, s: Tensor, a: Tensor) -> Tensor:
        """What weighs grad log pi(a | s): Q(s, a), or Q(s, a) - V(s)."""
        v = (self.actor.logits(s).softmax(-1) * self.critic(s)).sum(-1)
        return self.q(s, a) - v if self.advantage else self.q(s, a)

    def actor_loss(self, s: Tensor, a: Tensor):
        """Its descent is theta <- theta + alpha_theta grad log pi(a | s) weight."""
        return -(self.actor.log_prob(s, a)[0] * self.weight(s, a)).mean(), {}  # its gradient: -grad J   [QAC.7]


def learn(name: str, seed: int, steps: int):
    """Yields the mean return of the last 20 episodes; every step is the mean over 8 copies of CartPole-v1."""
    envs = Envs("CartPole-v1", 8, seed)  # s_0   [QAC.3]
    agent = QActorCritic(*envs.spaces, advantage=name == "Q - V")
    sample = torch.no_grad()(agent.actor.sample)
    a = sample(envs.obs)
    for step in range(8, steps + 1, 8):  # the steps of all episodes   [QAC.2]
        s, (s2, r, terminal, done) = envs.obs, envs.step(a)  # take a_t, get r_t, s_{t+1}   [QAC.4]
        agent.critic_step(s, a, r, s2, a2 := sample(s2), terminal)  # omega <- omega + alpha_omega delta grad Q [QAC.6]
        agent.actor_step(s, a)  # theta <- theta + alpha_theta grad J   [QAC.8]
        a = torch.where(done.bool(), sample(envs.obs), a2)  # at an end s2 is not where to act   [QAC.9]
        if step % 2000 == 0:
            yield {"step": step, "return": sum(envs.returns[-20:]) / 20}


def main(args: Args) -> None:
    frame = runs(args, learn, ["Q", "Q - V"], 4000 if args.quick else 40_000)
    figure, axis = plt.subplots(figsize=(6.5, 3.6), layout="constrained")
    curves(axis, frame, "return", ylabel="return, mean of 20 episodes", title="Q actor-critic on CartPole-v1")
    last = frame[frame.step == frame.step.max()].pivot(index="seed", columns="algorithm", values="return")
    says = [
        f"With the weight Q the last return is {over_seeds(last['Q'])} of 500, with Q - V {over_seeds(last['Q - V'])}.",
        f"V is worth {over_seeds(last['Q - V'] - last['Q'])} (means, 95 % intervals, n = {args.seeds}).",
    ]
    save(args, "q_actor_critic", frame, figure, says)


if __name__ == "__main__":
    main(setup(__doc__))
