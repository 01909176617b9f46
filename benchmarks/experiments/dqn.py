"""DQN and double DQN on quantised actions: how far does the max in the target put Q above the true return?

Lecture "Policy Gradient Methods", slide "Deterministic Policies"; "Handling Continuous Action Space", slides
"Limitations of DQN", "Approaches for dealing with continuous action space" (11 levels) and "Recap: How double-DQN deals
with the overestimation problem"; "Actor Critic II", slide "Coding" (the hard target update):

    L(theta) = mean (y - Q(s, a; theta))^2                          a = argmax_a Q(s, a; theta) (eps-greedy)
    DQN         y = r + gamma (1 - terminal) max_a' Q(s', a'; theta-)
    double DQN  y = r + gamma (1 - terminal) Q(s', argmax_a' Q(s', a'; theta); theta-)

    python benchmarks/experiments/dqn.py
"""

import torch
from common import Args, plt, save, setup
from ddpg import Replay, follow, gradient_step, relu_mlp
from learning import Envs, curves, over_seeds, runs
from torch import Tensor, nn

GAMMA, TORQUES = 0.98, torch.linspace(-2, 2, 11).unsqueeze(-1)  # quantised actions   [DQN.4]
NOISE = 3.0  # std of noise in the rewards, which are -16 to 0: the values stay, but max prefers what errs upwards


class DQN(nn.Module):
    """Q(s, .) of all torques at once, and its target network; s is [n, obs], a [n, 1], r and terminal are [n]."""

    def __init__(self, obs_dim: int, actions: int, double: bool):
        super().__init__()
        self.double, self.q, self.q_target = double, *(relu_mlp(obs_dim, 64, 64, actions) for _ in range(2))
        follow(self.q_target.requires_grad_(False), self.q, 1.0)  # theta- <- theta
        self.step = gradient_step(self.loss, torch.optim.Adam(self.q.parameters(), 1e-3), compile=False)

    @torch.no_grad()
    def target(self, r: Tensor, s2: Tensor, terminal: Tensor) -> Tensor:
        """y [n]: theta- values the action that theta (double) or theta- itself prefers."""
        best = (self.q if self.double else self.q_target)(s2).argmax(-1, keepdim=True)  # argmax_a' Q(s', a')   [DQN.1]
        return r + GAMMA * (1 - terminal) * self.q_target(s2).gather(-1, best).squeeze(-1)  # y   [DQN.1]

    def loss(self, s: Tensor, a: Tensor, r: Tensor, s2: Tensor, terminal: Tensor):
        """L(theta); a is a float, as the replay memory keeps it."""
        q = self.q(s).gather(-1, a.long()).squeeze(-1)
        return (self.target(r, s2, terminal) - q).square().mean(), {}  # L = mean (y - Q(s, a))^2   [DQN.2]


def learn(name: str, seed: int, steps: int):
    """Yields the discounted return of the greedy policy, mean of 16 starts, and by how much max Q exceeds it."""
    envs, test = Envs("Pendulum-v1", 1, seed), Envs("Pendulum-v1", 16, 1000, max_episode_steps=400)  # 0.98^400 < 0.001
    agent, memory = DQN(3, len(TORQUES), double=name == "double DQN"), Replay(50_000, 3, 1, "cpu")
    for step in range(1, steps + 1):
        s, greedy = envs.obs, torch.rand(1) > max(0.05, 1 - step / 2000)  # with probability 1 - eps   [DQN.6]
        a = agent.q(s).argmax(-1) if greedy else torch.randint(len(TORQUES), (1,))  # argmax_a Q(s, a)   [DQN.3]
        s2, r, terminal, _ = envs.step(TORQUES[a])
        memory.add(s, a, r + NOISE * torch.randn(1), s2, terminal)
        if step >= 500:
            agent.step(*memory.sample(64))
        if step % 200 == 0:
            follow(agent.q_target, agent.q, 1.0)  # theta- <- theta   [DQN.5]
        if step % 1000 == 0:
            best = agent.q(test.restart(seed=1000)).max(-1).values
            true = test.play(lambda s: TORQUES[agent.q(s).argmax(-1)], GAMMA)
            yield {"step": step, "true": true.mean().item(), "error": (best - true).mean().item()}


def main(args: Args) -> None:
    frame = runs(args, learn, ["DQN", "double DQN"], 1000 if args.quick else 12_000)
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.3, 3.4), layout="constrained")
    curves(left, frame, "true", ylabel="discounted return from the start", title="What the greedy policy gets")
    curves(right, frame, "error", ylabel="max Q minus that return", title="What Q promises too much")
    late = frame[frame.step > 2 / 3 * frame.step.max()].groupby(["algorithm", "seed"])[["true", "error"]].mean()
    dqn, double = late.loc["DQN"], late.loc["double DQN"]
    says = [
        f"In the last third DQN's policy gets {over_seeds(dqn.true)}, double DQN's {over_seeds(double.true)}.",
        f"Their Q exceeds that by {over_seeds(dqn.error)} and {over_seeds(double.error)},",
        f"differing by {over_seeds(dqn.error - double.error)} (means, 95 % intervals, n = {args.seeds}).",
    ]
    save(args, "dqn", frame, figure, says)


if __name__ == "__main__":
    main(setup(__doc__))
