"""Breaks the algorithms on purpose and tells which of the faults in mutants.toml the tests would miss.

make mutants                          # all of them: exit code 1 and a list if one survives
python tests/mutants.py sac td3       # those in sac.py and td3.py
"""

import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10; pytest brings it
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
MUTANTS = tomllib.loads((ROOT / "tests" / "mutants.toml").read_text())["mutant"]


def survives(mutant: dict[str, str]) -> bool:
    """Whether all tests of the mutant's file pass on a copy of the repository with the fault in it."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("algorithms", "tests", "pyproject.toml", "README.md", "requirements.txt"):
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, Path(folder, name))
        path = Path(folder, "algorithms", f"{mutant['file']}.py")
        path.write_text(path.read_text().replace(mutant["text"], mutant["replacement"]))
        kind = "off" if mutant["file"] in ("ddpg", "td3", "sac", "her_ddpg") else "on"
        for tests in (
            [f"tests/algorithms/test_{mutant['file']}.py"],
            [f"tests/algorithms/test_{kind}_policy.py", "tests/test_agents.py", "-k", mutant["file"]],
            ["tests/algorithms/test_learning.py", "-k", mutant["file"]],
            ["tests/test_run_folder.py", "tests/test_command_line.py", "-k", mutant["file"]],
            ["tests/test_environments.py"],  # of the blocks that are the same everywhere
        ):
            command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
            code = subprocess.run(command, cwd=folder, capture_output=True).returncode
            if code == 1:
                return False
            if code not in (0, 5):  # all passed, or there are no such tests; others say nothing of the fault
                raise RuntimeError(f"{' '.join(command)} ended with {code} ({mutant['fault']} in {mutant['file']})")
    return True


def main() -> None:
    chosen = [m for m in MUTANTS if len(sys.argv) == 1 or m["file"] in sys.argv[1:]]
    survivors = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for mutant, alive in zip(chosen, pool.map(survives, chosen), strict=True):
            print(f"{'SURVIVES' if alive else 'noticed':9} {mutant['file']}: {mutant['fault']}", flush=True)
            survivors += [mutant] * alive
    print(f"{len(chosen)} faults, {len(survivors)} of them not noticed by any test")
    sys.exit(bool(survivors))


if __name__ == "__main__":
    main()
