"""Published returns (published.csv): what a result of ours is compared with, and what tells the two apart.

published.csv has the columns of results.csv: means over seeds, with spread, number of seeds and source. Its kinds:

    reference  of the figures found that were evaluated at `step` or in the ten evaluations before, with at least 8
               seeds (HER: 1), the one with the highest mean (Ant and Humanoid: v4 before older versions)
    headline   the best claim, often a maximum over training; for HER without a stated number of steps
    single     one agent, tuned for its task, of RL Baselines3 Zoo: the headline of peers' runs
    v5         what else is known of version v5: small repositories with few seeds
    random     random actions
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from records import count, script_of
from scores import SAME_STEP, Cell, Difference, Interval, t_interval, welch

PUBLISHED = Path(__file__).parent / "published.csv"
SAMPLED = ("std over seeds", "95%")  # what `spread_kind` begins with where a test can be made


@dataclass(frozen=True)
class Published:
    """A row of published.csv; step is 0 for random actions and nan where the source does not tell."""

    kind: str
    source: str
    algorithm: str
    env_id: str
    step: float
    metric: str
    """return or success"""
    mean: float
    spread: str
    """Standard deviation, or "low|high", the 95 % interval of the mean; "" if none is published."""
    spread_kind: str
    seeds: int | None
    settings: dict[str, Any]
    """Settings of ours that make it like the published one (a list: any of these); where they differ, no verdict."""
    protocol: str
    caveat: str
    """What else tells it from ours, of which the protocol is a deterministic evaluation at that step; "" if nothing."""
    source_location: str

    @property
    def sd(self) -> float | None:
        """Standard deviation over seeds, with division by n - 1; None where it is not known.

        Sources divide by n (as far as can be told, see the notes in published.csv). A 95 % bootstrap interval of the
        mean is 2 * 1.96 standard deviations (with division by n) over sqrt(n) wide.
        """
        if not self.spread_kind.startswith(SAMPLED) or not self.seeds or self.seeds < 2:
            return None
        if "|" in self.spread:
            low, high = map(float, self.spread.split("|"))
            return (high - low) / (2 * 1.96) * self.seeds / np.sqrt(self.seeds - 1)
        return float(self.spread) * np.sqrt(self.seeds / (self.seeds - 1))

    @property
    def interval(self) -> Interval | None:
        """95 % t interval of the mean over seeds; None where the deviation is not known or 0."""
        return t_interval(self.mean, self.sd, self.seeds)


def load_published(path: Path = PUBLISHED) -> list[Published]:
    """The published figures, in the order of the file."""
    rows = pd.read_csv(path, keep_default_na=False, na_values={"step": "", "return": "", "success": "", "seeds": ""})
    made = []
    for row in rows.to_dict("records"):
        value, success = row.pop("return"), row.pop("success")
        row |= {"metric": "success", "mean": success} if np.isnan(value) else {"metric": "return", "mean": value}
        row["seeds"] = None if np.isnan(row["seeds"]) else int(row["seeds"])
        row["settings"] = json.loads(row["settings"] or "{}")
        made.append(Published(**row))
    return made


# ======================================================================================================================
# 1 Versions of environments
# ======================================================================================================================

EFFECTS = ("roughly", "caveat", "not comparable")  # of a change between versions on returns, mildest first
CHANGES = pd.read_csv(Path(__file__).parent / "versions.csv")


def split_env_id(env_id: str) -> tuple[str, str]:
    """Task and version of an environment: "my_module:Hopper-v5" -> ("Hopper", "v5"); the version may be ""."""
    task, _, version = env_id.split(":")[-1].rpartition("-")
    return (task, version) if re.fullmatch(r"v\d+", version) else (env_id.split(":")[-1], "")


def version_effect(ours: str, theirs: str) -> tuple[str | None, str]:
    """Effect (one of EFFECTS, None if there is none) of two versions of an environment differing, and what changed.

    versions.csv holds the changes from the "Version History" in the docstrings of gymnasium/envs/mujoco/*_v5.py, and of
    Gymnasium-Robotics for the Fetch tasks (issues 207 and 251 for v3 and v4); both are also on the environments' pages.
    Changes of the info dictionary, of arguments and of defaults that stay the same are not listed; neither is v3, which
    adds arguments only, nor v4's move to the mujoco bindings, across which Gymnasium calls returns comparable.
    A task without entry counts as comparable at equal versions only.
    """
    (task, version), (_, other) = split_env_id(ours), split_env_id(theirs)
    if version == other:
        return None, ""
    changes = CHANGES[CHANGES["task"] == task]
    if changes.empty or not version or not other:
        return "not comparable", f"{task}: nothing is known about {other or 'its version'} against {version or 'ours'}"
    low, high = sorted((int(version[1:]), int(other[1:])))
    crossed = changes[(low < changes["version"]) & (changes["version"] <= high)]
    if crossed.empty:
        return None, ""
    worst = max(crossed["effect"], key=EFFECTS.index)
    return worst, f"{task} {version} against {other}: {'; '.join(crossed[crossed['effect'] == worst]['change'])}"


# ======================================================================================================================
# 2 Like with like
# ======================================================================================================================


def differing(cell: Cell, row: Published) -> str:
    """The settings in which ours differs from the published one: "gamma 0.9999, there 0.99"; "" if in none."""
    settings = script_of(cell.algorithm).defaults | cell.settings
    wanted = {name: value if isinstance(value, list) else [value] for name, value in row.settings.items()}
    unlike = [name for name, values in wanted.items() if settings.get(name) not in values]
    return ", ".join(f"{name} {settings.get(name)}, there {' or '.join(map(str, wanted[name]))}" for name in unlike)


def select(published: list[Published], kind: str, cell: Cell) -> list[Published]:
    """The published rows of a kind for a result's algorithm and task, by step.

    Rows made with our settings come before others. A variant ("reinforce-mean") only has those that ask for its very
    settings; Stable-Baselines3's ("sb3-ppo") only those of RL Zoo, as reference.
    """
    algorithm = cell.algorithm
    if algorithm.startswith("sb3-"):
        algorithm, kind = algorithm.removeprefix("sb3-"), "single" if kind == "reference" else ""
    base, _, variant = algorithm.partition("-")
    task = split_env_id(cell.env_id)[0]
    rows = [r for r in published if (r.kind, r.algorithm, split_env_id(r.env_id)[0]) == (kind, base, task)]
    alike = [row for row in rows if not differing(cell, row) and (row.settings or not variant)]
    return sorted(alike or ([] if variant else rows), key=lambda row: row.step)


@dataclass(frozen=True)
class Comparison:
    """A result beside a published figure, at its step. `difference` is None where they are unlike: see `verdict`."""

    row: Published
    ours: np.ndarray | None
    """Our values at the published step [seeds]; None if they were not evaluated near it."""
    difference: Difference | None
    verdict: str
    notes: list[str]
    """What else tells the two apart."""


def compare(cell: Cell, row: Published) -> Comparison:
    """Our result at the step of a published figure beside it; judged where versions and settings are alike."""
    values, difference = cell.at(row.step, row.metric), None
    effect, change = version_effect(cell.env_id, row.env_id)
    if values is None:
        verdict = (
            f"published at {count(row.step)}, ours are shorter" if row.step > cell.total else "ours not evaluated there"
        )
    elif effect == "not comparable" or differing(cell, row):
        verdict = f"not like with like: {differing(cell, row) or change}"
    else:
        difference = welch(values, row.mean, row.sd, row.seeds)
        verdict = str(difference)
    notes = [change] * bool(effect and difference) + [f"{row.source}, {row.algorithm}: {row.caveat}"] * bool(row.caveat)
    return Comparison(row, values, difference, verdict, notes)


def reference(cell: Cell, published: list[Published], metric: str) -> Comparison | None:
    """The comparison with the reference of most steps among those that ours reach, else with the first beyond."""
    rows = [row for row in select(published, "reference", cell) if row.metric == metric]
    within = [row for row in rows if row.step <= (1 + SAME_STEP) * cell.total]
    return compare(cell, (within or rows[::-1])[-1]) if rows else None


def anchors(env_ids: set[str], published: list[Published]) -> dict[str, tuple[Published, Published]]:
    """Figures that count as 0 and 1 when scores are normalised: env_id -> (random actions, best published reference).

    The best reference is the highest, over algorithms, at 1M steps. Environments without both, or whose version cannot
    be compared with the published one's, are left out.
    """
    found = {}
    for env_id in env_ids:
        rows = [row for row in published if split_env_id(row.env_id)[0] == split_env_id(env_id)[0]
                and row.metric == "return" and version_effect(env_id, row.env_id)[0] != "not comparable"]  # fmt: skip
        zeros = [row for row in rows if row.kind == "random"]
        ones = [row for row in rows if row.kind == "reference" and abs(row.step - 1e6) <= 25_000]
        if zeros and ones:
            found[env_id] = zeros[0], max(ones, key=lambda row: row.mean)
    return found
