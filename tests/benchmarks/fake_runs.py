"""Results made by hand, for the tests of what reads them."""

import csv
import json

import numpy as np
import published
import records
import scores


def make_run(root, algorithm="td3", env_id="HalfCheetah-v5", seed=1, total=1000, evaluations=None, args=None, **status):
    """A run folder; evaluations maps step -> episode returns, or pairs of return and success; status None: by hand."""
    folder = root / (status.get("label") or algorithm) / env_id / str(seed)
    (folder / "harness").mkdir(parents=True)
    script = records.ROOT / "algorithms" / f"{algorithm}.py"
    settings = {"env_id": env_id, "seed": seed, "total_timesteps": total, "device": "cpu"} | (args or {})
    config = {"algorithm": algorithm, "args": settings, "versions": {"torch": "2.13.0"}, "script_sha256": "f" * 64}
    (folder / "config.json").write_text(json.dumps(config | {"commands": [["python", f"{algorithm}.py"]]}))
    rows = []
    for step, episodes in ({0: [0.0, 0.0], total: [10.0, 20.0]} if evaluations is None else evaluations).items():
        rows += [[step, k, *np.atleast_1d(e)[:1], 9, *np.atleast_1d(e)[1:]] for k, e in enumerate(episodes)]
    header = ["step", "episode", "return", "length", "success"][: len(rows[0]) if rows else 4]
    with (folder / "eval.csv").open("w") as file:
        csv.writer(file).writerows([header, *rows])
    known = {"code_sha256": records.code_sha256(script) if script.exists() else "", "label": algorithm}
    status = known | {"state": "done", "exit_code": 0, "seconds": 120.0, "total_timesteps": total} | status
    (folder / "harness" / "status.json").write_text(json.dumps(status))
    return folder


def published_row(mean, env_id="HalfCheetah-v5", step=1000.0, sd=None, seeds=10, **fields):
    spread = {"spread": "" if sd is None else str(sd), "spread_kind": "" if sd is None else "std over seeds"}
    row = {"kind": "reference", "source": "source", "algorithm": "td3", "metric": "return", "settings": {}}
    row |= {"protocol": "evaluation at that step", "caveat": "", "source_location": "table 1"}
    return published.Published(env_id=env_id, step=step, mean=mean, seeds=seeds, **(row | spread | fields))


def cells_of(*paths, **options):
    return scores.cells(*records.read(paths), **options)


def finals(root, *values, total=1000, **settings):
    """Runs of seeds 1, 2, ... with these final returns, and the only cell that they make."""
    for seed, final in enumerate(values, 1):
        make_run(root, seed=seed, total=total, evaluations={0: [0.0], total: [final - 5, final + 5]}, **settings)
    return cells_of(root)[-1]


def make_csv(path, *rows):
    """A csv of another program, with rows of algorithm, env_id, seed, step, return."""
    path.write_text("\n".join(["algorithm,env_id,seed,step,return", *(",".join(map(str, row)) for row in rows)]))
    return path
