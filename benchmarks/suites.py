"""The benchmark suites, as data: which algorithm runs on which task, for how many steps, with which settings.

A default of a script is one value for all tasks. What a suite changes for a task stands here with its reason.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Experiment:
    """One algorithm on one task; a plan repeats it over seeds."""

    algorithm: str
    """Name of the script in algorithms/, without .py."""
    env_id: str
    """Gymnasium id."""
    total_timesteps: int
    """Environment steps of a run."""
    flags: dict[str, str] = field(default_factory=dict)
    """Settings that differ from the script's defaults: flag (without its dashes) -> value, "" for a switch."""
    reason: str = ""
    """Why they differ."""


SHORT_WARM_UP = {"learning-starts": "1000"}
SHORT_WARM_UP_REASON = "the TD3 authors' own choice for the small tasks: their episodes are short"
SHORT_WARM_UP_TASKS = ("Reacher-v5", "InvertedPendulum-v5", "InvertedDoublePendulum-v5")


def experiments(algorithm: str, tasks: tuple[str, ...], total_timesteps: int, **flags: str) -> list[Experiment]:
    """The algorithm on each task; `flags` (underscores for dashes) say how all of them are run or measured."""
    common = {name.replace("_", "-"): value for name, value in flags.items()}
    made = []
    for env_id in tasks:
        short = algorithm == "td3" and env_id in SHORT_WARM_UP_TASKS
        own, reason = (SHORT_WARM_UP, SHORT_WARM_UP_REASON) if short else ({}, "")
        made.append(Experiment(algorithm, env_id, total_timesteps, common | own, reason))
    return made


TD3_PAPER = (
    "HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "Ant-v5", "Reacher-v5", "InvertedPendulum-v5",
    "InvertedDoublePendulum-v5",
)  # fmt: skip
MUJOCO = (*TD3_PAPER, "Humanoid-v5", "Swimmer-v5")

SUITES: dict[str, list[Experiment]] = {
    # A few minutes on two cores: enough to see both learn on small tasks. PPO takes the steps of the first published
    # points; TD3's first is at 100 000 steps, ten minutes, so it stops earlier, too early for compiling to pay.
    "quick": [
        *experiments("td3", ("Reacher-v5",), 20_000, eval_every="1000", no_compile=""),
        *experiments("ppo", ("Reacher-v5", "InvertedPendulum-v5"), 92_160, eval_every="4096"),
    ],
    # The seven tasks of the TD3 paper at its length.
    "td3-paper": [e for algorithm in ("td3", "ppo") for e in experiments(algorithm, TD3_PAPER, 1_000_000)],
    # The nine tasks for which most figures are published.
    "mujoco": [e for algorithm in ("td3", "ppo") for e in experiments(algorithm, MUJOCO, 1_000_000)],
}
"""Name -> experiments. Every suite evaluates 10 episodes at least every 1/20 of a run."""
