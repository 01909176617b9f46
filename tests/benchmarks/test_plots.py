"""benchmarks/plots.py: what the pictures show."""

import matplotlib.pyplot as plt
import numpy as np
import plots
import pytest
import records
import scores
from fake_runs import make_run, published_row


@pytest.fixture
def figures(monkeypatch):
    """The figures that a drawing function would have written, by file name."""
    drawn = {}
    monkeypatch.setattr(plots, "save", lambda figure, path, title: drawn.setdefault(path.name, figure))
    yield drawn
    plt.close("all")


@pytest.fixture
def results(tmp_path):
    """td3 with two seeds and sac with one on Hopper, td3 on Swimmer; 300 000 steps, one seed a little late."""
    for algorithm, env_id, seed, final, late in (
        ("td3", "Hopper-v5", 1, 100.0, 0), ("td3", "Hopper-v5", 2, 300.0, 1), ("sac", "Hopper-v5", 1, 50.0, 0),
        ("td3", "Swimmer-v5", 1, 10.0, 0),
    ):  # fmt: skip
        evaluations = {0: [0.0], 100_000: [final / 2], 300_000 + late: [final]}
        folder = make_run(tmp_path / "s", algorithm, env_id, seed, 300_000, evaluations, hardware="2 cores")
        (folder / "metrics.csv").write_text("step,seconds\n150000,600\n300000,1200\n")
    return scores.summarise(records.load_runs(tmp_path, "s"))


def panel(figure, title):
    (axes,) = [axes for axes in figure.axes if axes.get_title() == title]
    return axes


def test_curves_show_the_mean_its_band_and_the_published_level(figures, results, tmp_path):
    rows = [published_row(400.0, task="Hopper", env_version="v3", env_steps=300_000)]
    plots.draw_curves(tmp_path / "curves.png", results, rows)
    axes = panel(figures["curves.png"], "Hopper-v5")
    sac, td3, level = axes.lines
    np.testing.assert_allclose(td3.get_xydata(), [[0, 0], [100_000, 100], [300_000, 200]], rtol=1e-4)
    np.testing.assert_array_equal(sac.get_ydata(), [0, 25, 50])
    assert len(axes.collections) == 1  # one seed has no band
    assert axes.collections[0].get_datalim(axes.transData).intervaly == pytest.approx([0, 300], rel=1e-4)
    assert list(level.get_ydata()) == [400, 400] and axes.get_ylim()[1] >= 400 and level.get_linestyle() == "--"
    assert [text.get_text() for text in axes.texts] == ["td3 400.0 (v3, 300k)"]
    assert axes.get_xlabel() == "environment steps" and axes.get_ylabel() == "return of the deterministic policy"
    assert td3.get_color() == plots.colour("td3") != sac.get_color()


def test_published_levels_are_of_comparable_versions_and_their_labels_do_not_overlap(figures, tmp_path):
    make_run(tmp_path / "s", env_id="Ant-v5")
    results = scores.summarise(records.load_runs(tmp_path, "s"))
    plots.draw_curves(tmp_path / "curves.png", results, [published_row(5000.0, task="Ant", env_version="v3")])
    axes = panel(figures["curves.png"], "Ant-v5")
    assert len(axes.lines) == 1 and not axes.texts
    _, axes = plt.subplots()
    axes.set_ylim(0, 100)
    levels = (50.0, 1000), (50.5, 500), (98.0, 500), (99.0, 500)
    plots.draw_references(axes, [(results[0], published_row(mean, env_steps=steps)) for mean, steps in levels])
    assert [text.xyann[1] for text in axes.texts] == pytest.approx([50, 57.5, 92.5, 100])
    assert [line.get_linestyle() for line in axes.lines] == ["--", ":", ":", ":"]  # whether the steps agree
