"""Published returns, and how ours compare with them.

published.csv holds one figure per row, each with environment version, seeds, protocol and source. Its kinds:

    reference  of the figures found that were evaluated at env_steps or in the ten evaluations before, with at least 8
               seeds (HER: 1), the one with the highest mean (Ant and Humanoid: v4 before older versions)
    headline   the best claim, often a maximum over training
    v5         what else is known of version v5: small repositories with few seeds
    random     random actions
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.stats
from records import SAME_STEP, count
from scores import CONFIDENCE, Interval, Result, nearest

PUBLISHED = Path(__file__).parent / "published.csv"


@dataclass(frozen=True)
class Published:
    """A row of published.csv; env_steps is 0 for random actions."""

    kind: str
    algorithm: str
    task: str
    env_version: str
    env_steps: int
    metric: str
    mean: float
    spread: str
    """Standard deviation over seeds, or "low|high", the 95 % interval of the mean; "" if none is published."""
    spread_kind: str
    seeds: str
    protocol: str
    caveat: str
    """What else tells it from ours, of which the protocol is a deterministic evaluation at that step; "" if nothing."""
    source: str
    source_location: str

    @property
    def interval(self) -> Interval:
        """95 % interval of the mean over seeds, from Student's t; only the mean where no spread is published.

        Standard deviations are taken as the sources compute them, with division by the number of seeds.
        """
        if not self.spread:
            return self.mean, self.mean
        if "|" in self.spread:
            low, high = map(float, self.spread.split("|"))
            return low, high
        freedom = int(self.seeds) - 1
        half = scipy.stats.t.ppf((1 + CONFIDENCE) / 2, freedom) * float(self.spread) / np.sqrt(freedom)
        return self.mean - half, self.mean + half


def split_env_id(env_id: str) -> tuple[str, str]:
    """Task and version of an environment: "my_module:Hopper-v5" -> ("Hopper", "v5"); the version may be ""."""
    task, _, version = env_id.split(":")[-1].rpartition("-")
    return (task, version) if re.fullmatch(r"v\d+", version) else (env_id.split(":")[-1], "")


def load_published(path: Path = PUBLISHED) -> list[Published]:
    """The published figures, in the order of the file."""
    with path.open(encoding="utf-8", newline="") as file:
        return [
            Published(**row | {"env_steps": int(row["env_steps"]), "mean": float(row["mean"])})
            for row in csv.DictReader(file)
        ]


def number(value: float) -> str:
    """A score for people: 10574, 96.2, -3.87."""
    return f"{value:.{0 if abs(value) >= 1000 else 1 if abs(value) >= 10 else 2}f}"


# ======================================================================================================================
# Comparison
# ======================================================================================================================

EFFECTS = ("roughly", "caveat", "not comparable")  # of a change between versions on returns, mildest first
NEW_PHYSICS = (2, "roughly", "v2 moved to mujoco-py >= 1.50")
HEALTHY = "v5 gives healthy_reward only while healthy"
FETCH = (
    (2, "roughly", "v2 moved to the mujoco bindings"),
    (3, "roughly", "v3 resets the simulator's internal state"),
    (4, "roughly", "v4 corrects the initial state after a reset"),
)
CHANGES = {  # task -> (version that brought the change, effect on a comparison across it, what changed)
    "HalfCheetah": (NEW_PHYSICS,),
    "Swimmer": (NEW_PHYSICS,),
    "Hopper": (NEW_PHYSICS, (5, "roughly", HEALTHY)),
    "InvertedPendulum": (NEW_PHYSICS, (5, "roughly", HEALTHY)),
    "InvertedDoublePendulum": (
        NEW_PHYSICS,
        (5, "roughly", HEALTHY + " and drops constant zeros from the observation"),
    ),
    "Reacher": (
        NEW_PHYSICS,
        (5, "roughly", "v5 computes the reward after the physics step and drops a constant zero from the observation"),
    ),
    "Walker2d": (
        NEW_PHYSICS,
        (5, "caveat", "v5 gives both feet friction 1.9 (right foot 0.9 before) and " + HEALTHY[3:]),
    ),
    "Ant": (
        NEW_PHYSICS,
        (4, "not comparable", "v4 drops the contact forces from the observation and the reward"),
        (5, "not comparable", "v5 observes contact forces, always charges contact_cost, and " + HEALTHY[3:]),
    ),
    "Humanoid": (
        NEW_PHYSICS,
        (4, "not comparable", "v4 drops contact_cost"),
        (5, "not comparable", "v5 restores contact_cost, drops constant zeros, and " + HEALTHY[3:]),
    ),
    "FetchReach": FETCH,
    "FetchPush": FETCH,
    "FetchSlide": FETCH,
    "FetchPickAndPlace": FETCH,
}


@dataclass(frozen=True)
class Comparison:
    """Our result beside the published ones; any part may be missing (None).

    difference: our mean minus the reference. verdict: "above" or "below" when our 95 % interval of the mean lies wholly
    above or below the reference's, else "within"; followed by "(roughly)" or "(caveat)" where `note` says what changed
    between the versions, and by "(protocol)" where the reference has a caveat; or the reason why there is no verdict.
    """

    reference: Published | None
    headline: Published | None
    difference: float | None
    verdict: str
    note: str | None


def version_effect(task: str, ours: str, published: str) -> tuple[str | None, str | None]:
    """Effect (one of EFFECTS, None if there is none) of two environment versions differing, and what changed.

    The changes in CHANGES are those of the "Version History" in the docstrings of gymnasium/envs/mujoco/*_v5.py, and of
    Gymnasium-Robotics for the Fetch tasks (issues 207 and 251 for v3 and v4); both are also on the environments' pages.
    Changes of the info dictionary, of arguments and of defaults that stay the same are not listed; neither is v3, which
    adds arguments only, nor v4's move to the mujoco bindings, across which Gymnasium calls returns comparable.
    A task without entry counts as comparable at equal versions only.
    """
    if ours == published:
        return None, None
    if task not in CHANGES or not ours or not published:
        return "not comparable", f"{task}: nothing is known about {published or 'its version'} against {ours or 'ours'}"
    low, high = sorted((int(ours[1:]), int(published[1:])))
    crossed = [(EFFECTS.index(effect), what) for version, effect, what in CHANGES[task] if low < version <= high]
    if not crossed:
        return None, None
    worst = max(effect for effect, _ in crossed)
    changes = "; ".join(what for effect, what in crossed if effect == worst)
    return EFFECTS[worst], f"{task} {ours} against {published}: {changes}"


def can_compare(env_id: str, row: Published) -> bool:
    """Whether returns on the environment mean the same as those of the published figure, perhaps roughly."""
    return version_effect(*split_env_id(env_id), row.env_version)[0] != "not comparable"


def choose(rows: list[Published], steps: int | None) -> Published | None:
    """The row nearest to `steps`, or that with the most steps if `steps` is unknown; None if there are no rows."""
    if steps is None:
        return max(rows, key=lambda row: row.env_steps, default=None)
    return min(rows, key=lambda row: abs(row.env_steps - steps), default=None)


def select(published: list[Published], kind: str, result: Result) -> list[Published]:
    """The published rows of a kind for a result's algorithm and task; a variant of an algorithm has none."""
    wanted = (kind, result.label, split_env_id(result.env_id)[0])
    return [row for row in published if (row.kind, row.algorithm, row.task) == wanted]


def compare(result: Result, published: list[Published]) -> Comparison:
    """Our result at its number of steps beside the published reference and headline."""
    reference = choose(select(published, "reference", result), result.total)
    headline = choose(select(published, "headline", result), result.total)

    def undecided(reason: str, difference: float | None = None, note: str | None = None) -> Comparison:
        return Comparison(reference, headline, difference, reason, note)

    if reference is None:
        return undecided("no published figure")
    ours = result.estimates.get(reference.metric)
    if ours is None:
        return undecided("no finished run" if not result.scored else f"no {reference.metric} of ours")
    effect, note = version_effect(*split_env_id(result.env_id), reference.env_version)
    reasons = []
    if nearest([reference.env_steps], result.total, SAME_STEP) is None:
        reasons.append(
            f"published at {count(reference.env_steps)}, ours at {count(result.total)}: not comparable at equal steps"
        )
    if effect == "not comparable":
        reasons.append(f"not comparable: {note.partition(':')[0]}")
    if reasons:
        return undecided("; ".join(reasons), note=note)
    difference = ours.mean - reference.mean
    if not np.isfinite(difference):
        return undecided("our mean is not finite", note=note)
    if ours.mean_interval is None:
        return undecided("1 seed, no interval", difference, note)
    (low, high), (least, most) = ours.mean_interval, reference.interval
    verdict = "above" if most < low else "below" if least > high else "within"
    doubts = [effect] * bool(effect) + ["protocol"] * bool(reference.caveat)
    return Comparison(reference, headline, difference, verdict + (f" ({', '.join(doubts)})" if doubts else ""), note)


def anchors(
    env_ids: set[str], published: list[Published], steps: int = 1_000_000
) -> dict[str, tuple[Published, Published]]:
    """Figures that count as 0 and 1 when scores are normalised: env_id -> (random actions, best published reference).

    The best reference is the highest, over algorithms, that was evaluated at `steps`. Environments without both, or
    whose version cannot be compared with the published one's, are left out.
    """
    found = {}
    for env_id in env_ids:
        task = split_env_id(env_id)[0]
        rows = [row for row in published if row.task == task and row.metric == "return" and can_compare(env_id, row)]
        zeros = [row for row in rows if row.kind == "random"]
        ones = [
            row for row in rows
            if row.kind == "reference" and nearest([row.env_steps], steps, SAME_STEP) is not None
        ]  # fmt: skip
        if zeros and ones:
            found[env_id] = zeros[0], max(ones, key=lambda row: row.mean)
    return found
