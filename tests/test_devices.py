"""Training, resuming and evaluating on an accelerator, where there is one."""

from __future__ import annotations

import pytest
import torch
from conftest import ALGORITHMS, resume, run_script, train

PRESENT = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("device", list(PRESENT))
def test_trains_resumes_and_evaluates(device: str, algorithm: str, tmp_path):
    if not PRESENT[device]:
        pytest.skip(f"no {device} here")
    changes = {"episodes_per_update": 1} if algorithm == "reinforce" else {}  # of 200 steps
    folder = train(
        algorithm, env_id="Pendulum-v1", total_timesteps=256, run_dir=tmp_path / "run", device=device, **changes
    )
    first = torch.load(folder / "checkpoint.pt", weights_only=True, map_location="cpu")
    assert first["generators"]["device"] is not None
    resume(algorithm, folder, total_timesteps=512)
    second = torch.load(folder / "checkpoint.pt", weights_only=True, map_location="cpu")
    weights = [name for name in first["agent"] if name.endswith("weight")]
    assert weights and all(not torch.equal(first["agent"][name], second["agent"][name]) for name in weights)
    for where in (device, "cpu"):
        result = run_script(algorithm, "--evaluate", folder, "--device", where, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
