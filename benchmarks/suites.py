"""The benchmark suites, as data: which algorithm runs on which task, for how many steps, with which settings.

A script's defaults serve all tasks. What a suite changes stands here with its reason; what it changes on purpose, to be
compared with the unchanged algorithm, is a variant with a name.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ALGORITHMS = tuple(sorted(path.stem for path in ROOT.glob("algorithms/*.py")))
PEERS = ("sb3-a2c", "sb3-ddpg", "sb3-ppo", "sb3-sac", "sb3-td3", "sb3-trpo")
"""Algorithms of other libraries, which benchmarks/peers.py trains."""


@dataclass(frozen=True)
class Experiment:
    """One algorithm on one task; a plan repeats it over seeds."""

    algorithm: str
    """Name of a script in algorithms/, without .py, or of a peer; or path of another script, with .py."""
    env_id: str
    """Gymnasium id."""
    total_timesteps: int
    """Environment steps of a run."""
    flags: dict[str, str] = field(default_factory=dict)
    """Settings that differ from the script's defaults: flag (without its dashes) -> value, "" for a switch."""
    reason: str = ""
    """Why they differ."""
    variant: str = ""
    """Name of what is changed on purpose; "" for the algorithm as it is."""
    seeds: int = 1
    """Seeds 1 to this are what the suite is made for."""

    @property
    def label(self) -> str:
        """Name in tables and folders."""
        return "-".join(filter(None, (Path(self.algorithm).stem, self.variant)))

    @property
    def script(self) -> Path:
        """The file to run."""
        if self.algorithm.endswith(".py"):
            return Path(self.algorithm).resolve()
        return ROOT / ("benchmarks/peers.py" if self.algorithm in PEERS else f"algorithms/{self.algorithm}.py")


def each(
    algorithms: tuple[str, ...], tasks: tuple[str, ...], steps: int, eval_every: int, seeds: int = 1,
    flags: dict[str, str] | None = None, reason: str = "", variant: str = "",
) -> list[Experiment]:  # fmt: skip
    """Every algorithm on every task."""
    settings = {"eval-every": str(eval_every), **(flags or {})}
    return [Experiment(a, task, steps, settings, reason, variant, seeds) for a in algorithms for task in tasks]


FOUR = ("HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "Ant-v5")
PENDULUMS = ("InvertedPendulum-v5", "InvertedDoublePendulum-v5")
EIGHT = (*FOUR, "Humanoid-v5", "Swimmer-v5", *PENDULUMS)
REACHER = ("Reacher-v5",)
NO_BASELINE = {
    "flags": {"baseline": "mean"},
    "reason": "no learned baseline: the average return is subtracted, as in the published runs",
    "variant": "no-learned-baseline",
}
SHORT_EPISODES = {
    "flags": {"num-envs": "16"},
    "reason": "episodes of 50 steps: four are too few for the step size that suits four of 1000",
}
SHORT_NO_BASELINE = NO_BASELINE | {
    "flags": SHORT_EPISODES["flags"] | NO_BASELINE["flags"],
    "reason": f"{NO_BASELINE['reason']}; {SHORT_EPISODES['reason']}",
}
FOUR_EPISODES = {"reason": "the default number of episodes in an update, 4", "variant": "four-episodes"}
NO_HINDSIGHT = {"flags": {"no-her": ""}, "reason": "ablation: goals are not relabelled", "variant": "no-her"}
REACH = {
    "flags": {"episodes-per-cycle": "2", "batch-size": "256"},
    "reason": "learned in 5 000 steps by one process of those whose work the defaults do eightfold, as published",
}
REACH_NO_HINDSIGHT = NO_HINDSIGHT | {
    "flags": REACH["flags"] | NO_HINDSIGHT["flags"],
    "reason": f"{NO_HINDSIGHT['reason']}; {REACH['reason']}",
}
QUICK = {"flags": {"no-compile": ""}, "reason": "too short for compiling to pay"}
QUICK_REACH = {"flags": REACH["flags"] | QUICK["flags"], "reason": f"{QUICK['reason']}; {REACH['reason']}"}
QUICK_OFF_POLICY = {
    "flags": {"no-compile": "", "learning-starts": "1000"},
    "reason": "too short for compiling to pay; the TD3 authors' own warm-up on short episodes",
}

SUITES: dict[str, list[Experiment]] = {
    # Some minutes on two cores: the fewest steps that show learning. The on-policy four take the steps of published
    # points; those of the off-policy three begin at 100 000 steps, which takes longer.
    "quick": [
        *each(("ddpg", "td3", "sac"), REACHER, 8_000, 400, **QUICK_OFF_POLICY),
        *each(("her_ddpg",), ("FetchReach-v4",), 10_000, 500, **QUICK_REACH),
        *each(("reinforce",), ("InvertedPendulum-v5",), 276_480, 12_288),
        *each(("a2c", "trpo", "ppo"), ("InvertedPendulum-v5",), 92_160, 4_096),
    ],
    # The nine tasks for which most figures are published.
    "on-policy": [
        *each(("reinforce", "a2c", "trpo", "ppo"), EIGHT, 1_000_000, 50_000, seeds=5),
        *each(("reinforce",), EIGHT, 1_000_000, 50_000, seeds=5, **NO_BASELINE),
        *each(("a2c", "trpo", "ppo"), REACHER, 1_000_000, 50_000, seeds=5),
        *each(("reinforce",), REACHER, 1_000_000, 50_000, seeds=5, **SHORT_EPISODES),
        *each(("reinforce",), REACHER, 1_000_000, 50_000, seeds=5, **SHORT_NO_BASELINE),
        *each(("reinforce",), REACHER, 1_000_000, 50_000, seeds=5, **FOUR_EPISODES),
    ],
    "off-policy": each(("sac", "td3", "ddpg"), FOUR, 1_000_000, 50_000, seeds=3),
    # The robot arm's goal tasks, with hindsight and without.
    "fetch": [
        experiment
        for change, reach in (({}, REACH), (NO_HINDSIGHT, REACH_NO_HINDSIGHT))
        for experiment in (
            *each(("her_ddpg",), ("FetchReach-v4",), 50_000, 2_500, seeds=5, **reach),
            *each(("her_ddpg",), ("FetchPush-v4",), 1_000_000, 50_000, seeds=3, **change),
            *each(("her_ddpg",), ("FetchPickAndPlace-v4", "FetchSlide-v4"), 2_000_000, 50_000, **change),
        )
    ],
    # Another library under the same protocol.
    "peers": each(("sb3-ppo", "sb3-a2c", "sb3-trpo"), FOUR[:3], 1_000_000, 50_000, seeds=3),
}
"""Name -> experiments. Every suite evaluates 10 episodes at least every 1/20 of a run."""
