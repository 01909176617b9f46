"""Training, resuming and evaluating on an accelerator, where there is one."""

from __future__ import annotations

import pytest
import torch
from conftest import rows, run_script, train

PRESENT = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}


@pytest.mark.parametrize("device", PRESENT)
def test_trains_resumes_and_evaluates(device: str, algorithm: str, tmp_path):
    if not PRESENT[device]:
        pytest.skip(f"no {device} here")
    folder = train(algorithm, env_id="Pendulum-v1", run_dir=tmp_path / "run", device=device)
    for words in (
        ["--resume", folder, "--total-timesteps", 512],
        ["--evaluate", folder],
        ["--evaluate", folder, "--device=cpu"],
    ):
        result = run_script(algorithm, *words, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
    assert int(rows(folder / "eval.csv")[-1]["step"]) >= 512
