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
from scores import SAME_STEP, Cell, Difference, welch

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


def load_published() -> list[Published]:
    """The rows of published.csv."""
    path = Path(__file__).with_name("published.csv")
    rows = pd.read_csv(path, keep_default_na=False, na_values={"step": "", "return": "", "success": "", "seeds": ""})
    made = []
    for row in rows.to_dict("records"):
        values = {"return": row.pop("return"), "success": row.pop("success")}
        metric = "success" if np.isnan(values["return"]) else "return"
        row["seeds"] = None if np.isnan(row["seeds"]) else int(row["seeds"])
        row["settings"] = json.loads(row["settings"] or "{}")
        made.append(Published(metric=metric, mean=values[metric], **row))
    return made


EFFECTS = ("roughly", "caveat", "not comparable")  # of a change between versions on returns, mildest first
CHANGES = pd.read_csv(Path(__file__).with_name("versions.csv"))


def split_env_id(env_id: str) -> tuple[str, str]:
    """Task and version of an environment: "my_module:Hopper-v5" -> ("Hopper", "v5"); the version may be ""."""
    task, version = re.fullmatch(r"(?:.*:)?(.+?)(?:-(v\d+))?", env_id).groups()
    return task, version or ""


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


def differing(cell: Cell, row: Published) -> str:
    """The settings in which ours differs from the published one: "gamma 0.9999, there 0.99"; "" if in none."""
    settings, unlike = script_of(cell.algorithm).defaults | cell.settings, []
    for name, wanted in row.settings.items():
        wanted = wanted if isinstance(wanted, list) else [wanted]
        if settings.get(name) not in wanted:
            unlike.append(f"{name} {settings.get(name)}, there {' or '.join(map(str, wanted))}")
    return ", ".join(unlike)


def select(published: list[Published], kind: str, cell: Cell, metric: str) -> list[Published]:
    """The published rows of a kind for a result's algorithm and task, by step.

    Rows made with our settings come before others. A variant ("reinforce-mean") only has those that ask for its very
    settings; Stable-Baselines3's ("sb3-ppo") only those of RL Zoo, as reference.
    """
    algorithm = cell.algorithm
    if algorithm.startswith("sb3-"):
        algorithm, kind = algorithm.removeprefix("sb3-"), "single" if kind == "reference" else ""
    base, _, variant = algorithm.partition("-")
    wanted = kind, base, metric, split_env_id(cell.env_id)[0]
    rows = [x for x in published if (x.kind, x.algorithm, x.metric, split_env_id(x.env_id)[0]) == wanted]
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
    ours, difference = cell.at(row.step, row.metric), None
    effect, change = version_effect(cell.env_id, row.env_id)
    if ours is None and row.step > cell.total:
        verdict = f"published at {count(row.step)}, ours are shorter"
    elif ours is None:
        verdict = "ours not evaluated there"
    elif unlike := differing(cell, row) or change * (effect == "not comparable"):
        verdict = f"not like with like: {unlike}"
    else:
        difference = welch(ours, row.mean, row.sd, row.seeds)
        verdict = str(difference)
    notes = [change] * bool(effect and difference) + [f"{row.source}, {row.algorithm}: {row.caveat}"] * bool(row.caveat)
    return Comparison(row, ours, difference, verdict, notes)


def reference(cell: Cell, published: list[Published], metric: str) -> Comparison | None:
    """The comparison with the reference of most steps among those that ours reach, else with the first beyond."""
    rows = select(published, "reference", cell, metric)
    within = [row for row in rows if row.step <= (1 + SAME_STEP) * cell.total]
    return compare(cell, (within or rows[::-1])[-1]) if rows else None


def anchors(env_id: str, published: list[Published]) -> tuple[Published, Published] | None:
    """Figures that count as 0 and 1 when scores are normalised: of random actions, and the best published reference.

    The best reference is the highest, over algorithms, at 1M steps. None if one of the two is missing, or the version
    of the task cannot be compared with the published one's.
    """
    rows = [row for row in published if split_env_id(row.env_id)[0] == split_env_id(env_id)[0]
            and row.metric == "return" and version_effect(env_id, row.env_id)[0] != "not comparable"]  # fmt: skip
    zeros = [row for row in rows if row.kind == "random"]
    ones = [row for row in rows if row.kind == "reference" and abs(row.step - 1e6) <= SAME_STEP * 1e6]
    return (zeros[0], max(ones, key=lambda row: row.mean)) if zeros and ones else None
