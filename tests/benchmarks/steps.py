"""A script with the command line of those in algorithms/ that only counts: for the tests of the harness.

Every 100 steps it evaluates and writes its checkpoint; its return is the seed plus --gain.
"""

import argparse
import json
import os
import time
from pathlib import Path

parser = argparse.ArgumentParser()
for kind, flags in ((str, ["--env-id"]), (int, ["--seed", "--total-timesteps"]), (Path, ["--run-dir", "--resume"])):
    for flag in flags:
        parser.add_argument(flag, type=kind)
parser.add_argument("--delay", type=float, default=0.0, help="seconds per 100 steps")
parser.add_argument("--crash-at", type=int, help="step at which it fails")
parser.add_argument("--stop-at", type=int, help="step at which it ends without a word")
parser.add_argument("--gain", type=float, default=0)
parser.add_argument("--eval-every", type=int, help="not heeded")
args = parser.parse_args()
folder = args.run_dir or args.resume
folder.mkdir(parents=True, exist_ok=True)
config, checkpoint = folder / "config.json", folder / "checkpoint.pt"
begun = json.loads(config.read_text()) if args.resume else {"algorithm": "steps", "commands": []}
start = int(checkpoint.read_text()) if args.resume and checkpoint.exists() else 0
begun["args"] = {"env_id": args.env_id, "seed": args.seed, "total_timesteps": args.total_timesteps, "device": "cpu"}
begun["commands"].append({"start": start, "pid": os.getpid()})
config.write_text(json.dumps(begun))
logs = {"metrics": "step,seconds\n", "eval": "step,episode,return,length\n"}
for name, header in logs.items():
    rows = (folder / f"{name}.csv").read_text().splitlines()[1:] if start else []
    kept = [row for row in rows if int(row.split(",")[0]) <= start]
    (folder / f"{name}.csv").write_text(header + "".join(f"{row}\n" for row in kept))
for step in range(start + 100, args.total_timesteps + 100, 100):
    time.sleep(args.delay)
    if args.crash_at and step >= args.crash_at:
        raise RuntimeError("the simulator broke")
    if args.stop_at and step >= args.stop_at:
        break
    for name, row in (("metrics", f"{step},{step / 100}\n"), ("eval", f"{step},0,{args.seed + args.gain:g},9\n")):
        with open(folder / f"{name}.csv", "a") as file:
            file.write(row)
    checkpoint.with_suffix(".tmp").write_text(str(step))
    os.replace(checkpoint.with_suffix(".tmp"), checkpoint)
