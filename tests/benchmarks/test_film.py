"""benchmarks/film.py: trained policies in one animated picture."""

import subprocess
import sys

import pytest
from PIL import Image, ImageChops
from records import COMMITTED, ROOT

POLICIES = COMMITTED / "policies"
TWO = [POLICIES / "ppo" / "HalfCheetah-v5", POLICIES / "trpo" / "Hopper-v5"]


def film(output, *policies):
    words = ["--policies", *policies, "--seconds", "0.2", "--size", "64", "--output", output]
    command = [sys.executable, ROOT / "benchmarks" / "film.py", *words]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True)


def test_policies_move_side_by_side(tmp_path):
    made = film(tmp_path / "film.webp", *TWO)
    if "cannot draw" in made.stderr:
        pytest.skip("there is no OpenGL")
    assert made.returncode == 0, made.stderr
    with Image.open(tmp_path / "film.webp") as picture:
        assert (picture.size, picture.n_frames) == ((128, 64), 4)
        frames = [picture.seek(k) or picture.convert("RGB") for k in (0, 3)]
    for left in (0, 64):
        assert ImageChops.difference(*(x.crop((left, 16, left + 64, 64)) for x in frames)).getbbox() is not None


def test_a_folder_without_a_policy_is_refused(tmp_path):
    made = film(tmp_path / "film.webp", tmp_path)
    assert made.returncode == 2 and "name a run folder" in made.stderr and not (tmp_path / "film.webp").exists()
