"""benchmarks/film.py: trained policies in one animated picture."""

import json
import subprocess
import sys

import film
import ppo
import pytest
import torch
from PIL import Image, ImageChops
from records import ROOT


def untrained(folder, env_id):
    """A folder with a policy."""
    settings, env = ppo.Args(env_id=env_id, compile=False, device="cpu"), ppo.make_env(env_id)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"algorithm": "ppo", "args": vars(settings)}))
    agent = ppo.PPO(env.observation_space, env.action_space, settings)
    torch.save({"step": 0, "policy": agent.state_dict()}, folder / "policy.pt")
    return folder


def run_film(output, *policies):
    words = ["--seconds", "0.2", "--size", "64", "--output", output, "--policies", *policies]
    command = [sys.executable, ROOT / "benchmarks" / "film.py", *words]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True)


def test_policies_move_side_by_side(tmp_path):
    made = run_film(tmp_path / "film.webp", *(untrained(tmp_path / x, x) for x in ("HalfCheetah-v5", "Hopper-v5")))
    if "cannot draw" in made.stderr:
        pytest.skip("there is no OpenGL")
    assert made.returncode == 0, made.stderr
    with Image.open(tmp_path / "film.webp") as picture:
        assert (picture.size, picture.n_frames) == ((128, 64), 4)
        frames = [picture.seek(k) or picture.convert("RGB") for k in (0, 3)]
    for left in (0, 64):
        assert ImageChops.difference(*(x.crop((left, 16, left + 64, 64)) for x in frames)).getbbox() is not None


def test_mistakes_are_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "osmesa")  # so that it is as before afterwards
    empty, damaged = tmp_path / "empty", untrained(tmp_path / "damaged", "Hopper-v5")
    empty.mkdir()
    (damaged / "policy.pt").write_text("half")
    for output, policies, settings, message in (
        ("film.webp", (empty,), {}, "name a run folder"), ("film.webp", (), {}, "no --policies: name at least one"),
        ("film.webp", (damaged,), {}, "policy.pt is missing or damaged"),
        ("film.webp", (untrained(tmp_path / "cart", "CartPole-v1"),), {}, "is of CartPole-v1, which is no MuJoCo task"),
        ("none/film.webp", (empty,), {}, "none/film.webp cannot be written"),
        ("film.webp", (empty,), {"size": 0}, "--size 0 is out of range"),
    ):  # fmt: skip
        with pytest.raises(film.InputError, match=message):
            film.main(film.Options(policies, tmp_path / output, **settings))
    made = run_film(tmp_path / "film.webp", empty)
    assert (made.returncode, made.stdout, made.stderr.count("\n")) == (2, "", 1) and made.stderr.startswith("error: ")
    assert not list(tmp_path.rglob("*.webp"))
