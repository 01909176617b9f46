"""Run folders made by hand, for the tests of what reads them."""

import csv
import json

import numpy as np
import published
import records
import scores

SHA = "0123456789abcdef"


def make_run(root, algorithm="td3", env_id="HalfCheetah-v5", seed=1, total=1000, evaluations=None, **status):
    """A run folder; evaluations maps step -> episode returns, or pairs of return and success."""
    folder = root / algorithm / env_id / str(seed)
    (folder / "harness").mkdir(parents=True)
    settings = {"env_id": env_id, "seed": seed, "total_timesteps": total, "device": "cpu"}
    config = {"algorithm": algorithm, "args": settings, "versions": {"torch": "2.13.0"}, "script_sha256": SHA}
    (folder / "config.json").write_text(json.dumps(config | {"commands": [["python", "td3.py"]]}))
    (folder / "metrics.csv").write_text("step,seconds,loss\n500,60,\n")
    rows = []
    for step, episodes in ({0: [0.0, 0.0], total: [10.0, 20.0]} if evaluations is None else evaluations).items():
        rows += [
            [step, k, *np.atleast_1d(episode)[:1], 9, *np.atleast_1d(episode)[1:]] for k, episode in enumerate(episodes)
        ]
    header = ["step", "episode", "return", "length", "success"][: len(rows[0]) if rows else 4]
    with (folder / "eval.csv").open("w") as file:
        csv.writer(file).writerows([header, *rows])
    known = {"algorithm_sha256": records.algorithm_sha256(records.ROOT / "algorithms" / f"{algorithm}.py")}
    status = known | {"state": "done", "exit_code": 0, "seconds": 120.0, "command": ["python", "td3.py"]} | status
    (folder / "harness" / "status.json").write_text(json.dumps(status))
    return folder


def published_row(
    mean, kind="reference", task="HalfCheetah", env_version="v5", env_steps=1000, metric="return", spread="", caveat=""
):
    return published.Published(
        kind, "td3", task, env_version, env_steps, metric, mean, spread, "std over seeds" * bool(spread), "10",
        "evaluation at that step", caveat, "source", "table 1",
    )  # fmt: skip


def result_of(root):
    (result,) = scores.summarise(records.load_runs(root.parent, root.name))
    return result


def three_seeds(root, **settings):
    """Three runs with the final returns 100, 110 and 120."""
    total = settings.get("total", 1000)
    for seed, final in enumerate([100.0, 110.0, 120.0], 1):
        make_run(root, seed=seed, evaluations={0: [0.0, 0.0], total: [final - 5, final + 5]}, **settings)
    return result_of(root)
