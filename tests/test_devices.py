"""Where and how it is computed: on an accelerator, where there is one; threads and precision."""

from __future__ import annotations

import pytest
import torch
from conftest import load, rows, run_script, settings, train

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


def test_threads_and_precision_are_those_of_the_settings():
    """The last run's are not kept: a second one in the same process sets its own."""
    for threads, precision in ((2, "medium"), (1, "highest")):
        load("td3").prepare(settings("td3", threads=threads, matmul_precision=precision))
        assert (torch.get_num_threads(), torch.get_float32_matmul_precision()) == (threads, precision)
