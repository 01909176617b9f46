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
    variant: str = ""
    """Name of what is changed on purpose, for an ablation or a trial; "" for the algorithm as it is."""

    @property
    def label(self) -> str:
        """Name in tables and folders."""
        return f"{self.algorithm}-{self.variant}" if self.variant else self.algorithm


ON_POLICY = ("reinforce", "a2c", "trpo", "ppo")
OFF_POLICY = ("ddpg", "td3", "sac")

TASK_SETTINGS: dict[str, tuple[tuple[str, ...], dict[str, str], str]] = {
    # task -> (algorithms, flags, reason)
    **{
        task: (OFF_POLICY, {"learning-starts": "1000"}, "short episodes: the TD3 authors' own choice for these tasks")
        for task in ("Reacher-v5", "InvertedPendulum-v5", "InvertedDoublePendulum-v5")
    },
    "Swimmer-v5": (
        (*ON_POLICY, *OFF_POLICY),
        {"gamma": "0.9999"},
        "a stroke pays off later than gamma 0.99 looks: RL Baselines3 Zoo's choice for this task",
    ),
}


def experiments(
    algorithm: str, tasks: tuple[str, ...], total_timesteps: int, variant: str = "", **flags: str
) -> list[Experiment]:
    """The algorithm on each task; `flags` (underscores for dashes) say how all of them are run or measured.

    A `variant` is named after the switch that makes it: "no-her" runs with --no-her.
    """
    common = {name.replace("_", "-"): value for name, value in flags.items()}
    made = []
    for env_id in tasks:
        algorithms, own, reason = TASK_SETTINGS.get(env_id, ((), {}, ""))
        special = algorithm in algorithms
        reasons = [reason] * special + [f"ablation: --{variant}"] * bool(variant)
        settings = common | (own if special else {}) | ({variant: ""} if variant else {})
        made.append(Experiment(algorithm, env_id, total_timesteps, settings, "; ".join(reasons), variant))
    return made


TD3_PAPER = (
    "HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "Ant-v5", "Reacher-v5", "InvertedPendulum-v5",
    "InvertedDoublePendulum-v5",
)  # fmt: skip
MUJOCO = (*TD3_PAPER, "Humanoid-v5", "Swimmer-v5")

SUITES: dict[str, list[Experiment]] = {
    # Some minutes on two cores: the fewest steps that show learning. The on-policy four take the steps of published
    # points; the off-policy three, whose first is at 100 000 steps, stop earlier, too early for compiling to pay.
    "quick": [
        *[e for name in OFF_POLICY for e in experiments(name, ("Reacher-v5",), 8_000, eval_every="400", no_compile="")],
        *experiments("her_ddpg", ("FetchReach-v4",), 10_000, eval_every="500", no_compile=""),
        *experiments("reinforce", ("InvertedPendulum-v5",), 276_480, eval_every="12288"),
        *[e for name in ON_POLICY[1:] for e in experiments(name, ("InvertedPendulum-v5",), 92_160, eval_every="4096")],
    ],
    # The seven tasks of the TD3 paper at its length.
    "td3-paper": [
        e for name in (*OFF_POLICY, *ON_POLICY) for e in experiments(name, TD3_PAPER, 1_000_000, eval_every="50000")
    ],
    # The nine tasks for which most figures are published.
    "mujoco": [
        e for name in (*OFF_POLICY, *ON_POLICY) for e in experiments(name, MUJOCO, 1_000_000, eval_every="50000")
    ],
    # The robot arm's goal tasks, from the one learned in minutes to the two that take millions of steps.
    "fetch": [
        *experiments("her_ddpg", ("FetchReach-v4",), 50_000, eval_every="2500"),
        *experiments("her_ddpg", ("FetchPush-v4",), 1_000_000, eval_every="50000"),
        *experiments("her_ddpg", ("FetchReach-v4",), 50_000, variant="no-her", eval_every="2500"),
        *experiments("her_ddpg", ("FetchPush-v4",), 1_000_000, variant="no-her", eval_every="50000"),
        *experiments("her_ddpg", ("FetchPickAndPlace-v4", "FetchSlide-v4"), 4_000_000, eval_every="100000"),
    ],
    # A trial, see TRIALS.
    "pendulum": [
        *experiments("a2c", ("InvertedDoublePendulum-v5",), 1_000_000, eval_every="50000"),
        *experiments("a2c", ("InvertedDoublePendulum-v5",), 1_000_000, variant="no-norm-adv", eval_every="50000"),
        *experiments("trpo", ("InvertedDoublePendulum-v5",), 1_000_000, eval_every="50000"),
        Experiment(
            "trpo",
            "InvertedDoublePendulum-v5",
            1_000_000,
            {"eval-every": "50000", "max-kl": "0.001"},
            "trial: steps a tenth as large in KL divergence",
            "small-kl",
        ),
    ],
    # A trial, see TRIALS.
    "td3-start": [
        Experiment("td3", "HalfCheetah-v5", 100_000, {"eval-every": "5000"}),
        Experiment(
            "td3",
            "HalfCheetah-v5",
            100_000,
            {"eval-every": "5000", "num-envs": "1"},
            "trial: one environment, as in the paper",
            "1-env",
        ),
        Experiment(
            "td3",
            "HalfCheetah-v5",
            100_000,
            {
                "eval-every": "5000",
                "num-envs": "1",
                "learning-rate": "1e-3",
                "batch-size": "100",
                "learning-starts": "10000",
            },
            "trial: the paper's settings, except for the networks' width",
            "paper",
        ),
    ],
}
"""Name -> experiments. Every suite evaluates 10 episodes at least every 1/20 of a run."""

TRIALS = {
    "pendulum": "Why A2C and TRPO lose what they have learned on InvertedDoublePendulum.",
    "td3-start": (
        "Whether the 8 environments or the settings make TD3 start more slowly on HalfCheetah than the published curve."
    ),
}
"""Suites that look for the cause of a result, and what they ask; on tuning seeds: --first-seed 11 --seeds 2."""

TUNING = (
    "seeds 11 and 12 (reinforce, a2c, trpo, ppo: HalfCheetah-v5 and Hopper-v5; her_ddpg: FetchPush-v4), in trial runs "
    "that were not kept"
)
"""Seeds and tasks on which trial runs were made while defaults were chosen."""

REMARKS: dict[tuple[str, str, str], str] = {
    ("mujoco", "trpo", "InvertedDoublePendulum-v5"): (
        "learned within the first evaluations and lost again, like the published curve (see On the way). On both "
        "tuning seeds steps a tenth as large in KL divergence end higher, yet they lose some of it too (suite pendulum)"
    ),
    ("mujoco", "a2c", "InvertedDoublePendulum-v5"): (
        "learned, and lost now and then, on the tuning seeds more so than on these (suite pendulum); cause not known. "
        "With advantages that are not standardised one tuning seed ends with it and the other without"
    ),
    ("mujoco", "a2c", "Hopper-v5"): (
        "it hops, but in the last evaluation of every seed it falls before half of an episode is over; cause not known"
    ),
    ("mujoco", "a2c", "Swimmer-v5"): (
        "hardly learns; cause not known. With gamma 0.99, with which the published figure was probably made, it has "
        "not been tried"
    ),
    ("mujoco", "td3", "HalfCheetah-v5"): (
        "behind from the start (see On the way): after 100k steps on the tuning seeds, the learning rate, batch, first "
        "random steps and single environment of the paper reach the published level; our defaults, which are the "
        "authors' later ones, do not, neither with 8 environments nor with one (suite td3-start). What the paper's "
        "settings give at 1M steps has not been tried, and one seed does not tell whether the end is worse"
    ),
    ("mujoco", "ddpg", "Hopper-v5"): (
        "it rises and falls from one evaluation to the next, so that the last one alone says little (see Curves)"
    ),
    **{
        ("mujoco", "sac", task): "other work was done beside it, so that its duration is too long"
        for task in ("HalfCheetah-v5", "Hopper-v5")
    },
    ("fetch", "her_ddpg", "FetchPush-v4"): (
        "begun for 2M steps and cut to 1M when it had reached its plateau, so that the length was chosen on the seed "
        "that is reported"
    ),
    ("fetch", "her_ddpg-no-her", "FetchReach-v4"): (
        "learns it too, only later (see Curves), since random actions now and then reach a goal. The returns at the "
        "end are equal because both reach the same goals in the same few steps"
    ),
}
"""(suite, label, task) -> what to know of a result, above all why it is below the published one."""
