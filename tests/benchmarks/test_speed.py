"""benchmarks/speed.py: bad input, the arithmetic of its table, and one real measurement. Speeds are not tested."""

import re
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import speed


def test_bad_input_is_one_line(capsys, monkeypatch):
    monkeypatch.setattr(speed, "fresh", lambda function: False)
    for settings, message in (
        ({"algorithms": ("dqn",)}, "--algorithms dqn is not one of"), ({"repeats": 0}, "--repeats 0 is out of range"),
        ({"seconds": -1.0}, "--seconds -1.0 is out of"), ({"output": "/no/such/folder/a"}, "--output /no/such/folder"),
        ({"device": "cuda"}, "--device cuda was not found: use cpu"),
    ):  # fmt: skip
        with pytest.raises(SystemExit) as stopped:
            speed.check(speed.Args(**settings))
        error = capsys.readouterr().err
        assert stopped.value.code == 2 and error.startswith(f"error: {message}") and error.count("\n") == 1


def test_sides_alternate_and_ratios_are_of_neighbouring_measurements(monkeypatch):
    own, sb3, single = [200.0, 400.0, 300.0], [400.0, 100.0, 300.0], [100.0, 100.0, 50.0]
    left, measured = {speed.ours: own[:], speed.sb3: sb3[:], speed.sb3_default: single[:]}, []

    def measure(function, algorithm, steps, device, *precision):
        measured.append((function.__name__, steps, *precision))
        return left[function].pop(0)

    monkeypatch.setattr(speed, "fresh", measure)
    monkeypatch.setattr(speed, "GUESS", {"td3": (150, 100)})
    rates = speed.compare("td3", speed.Args(repeats=3, seconds=2, matmul_precision="medium"), peer=True)
    assert measured == [("ours", 300, "medium"), ("sb3", 200), ("sb3_default", 200)] * 3
    assert rates == {"ours": own, "sb3": sb3, "sb3 with 1 env": single}
    assert speed.row("td3", rates) == (
        "| td3 | HalfCheetah-v5 | **1.00** | **4.00** "
        "| 300 (200, 400, 300) | 300 (400, 100, 300) | 100 (100, 100, 50) |"
    )  # the medians of 1/2, 4, 1 and of 2, 4, 6
    assert speed.row("td3", {"ours": [7.0]}) == "| td3 | HalfCheetah-v5 | - | - | 7 (7) | - | - |"


def test_a_part_is_counted_without_the_parts_inside_it():
    inner = SimpleNamespace(work=lambda: time.sleep(0.05))
    outer = SimpleNamespace(work=lambda: (inner.work(), time.sleep(0.02), inner.work()))
    clock = speed.Clock()
    clock.time(inner, "work", "inner")
    clock.time(outer, "work", "outer")
    outer.work()
    assert 0.1 <= clock.spent["inner"] < 0.2 and 0.02 <= clock.spent["outer"] < 0.05


def test_gradients_lose_digits_at_lower_precision():
    errors = speed.gradient_errors("ppo")["loss"]
    assert max(errors[:2]) < 1e-5 and errors[0] <= errors[2] < 0.05


def test_a_measurement_from_the_command_line(tmp_path):
    command = ["benchmarks/speed.py", "--algorithms", "a2c", "--repeats", "1", "--seconds", "0.2"]
    command += ["--output", str(tmp_path / "speed")]
    result = subprocess.run([sys.executable, *command], cwd=speed.ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "speed.md").read_text() == result.stdout and (tmp_path / "speed-peers.png").stat().st_size
    assert f"`python {' '.join(command)}`" in result.stdout and "each measurement of 0.2 s" in result.stdout
    rate = re.search(r"^\| a2c \| HalfCheetah-v5 \|[^|]+\|[^|]+\| (\d+) \(\1\) \|", result.stdout, re.MULTILINE)
    written = re.search(
        r"^a2c,HalfCheetah-v5,highest,ours,0,([\d.]+)$", (tmp_path / "speed.csv").read_text(), re.MULTILINE
    )
    assert rate and float(written[1]) == pytest.approx(int(rate[1]), abs=0.5)
    parts = re.search(r"^\| a2c \|((?: -?\d+ \|){6})$", result.stdout, re.MULTILINE)
    assert parts and float(parts[1].split("|")[0]) > 0  # physics
