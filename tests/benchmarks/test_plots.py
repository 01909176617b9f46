"""benchmarks/plots.py: what the pictures show."""

import matplotlib.pyplot as plt
import numpy as np
import plots
import pytest
from fake_runs import cells_of, make_csv, make_run, published_row
from matplotlib.colors import to_hex


@pytest.fixture
def drawn(monkeypatch):
    """The figures that a drawing function would have written."""
    figures = []
    monkeypatch.setattr(plots, "save", lambda figure, path: figures.append(figure))
    yield figures
    plt.close("all")


def panel(figure, title):
    (axes,) = [axes for axes in figure.axes if axes.get_title() == title]
    return axes


def test_curves_show_means_intervals_and_published_points(drawn, tmp_path):
    for algorithm, seed, final in (("td3", 1, 100.0), ("td3", 2, 300.0), ("sac", 1, 50.0)):
        make_run(tmp_path, algorithm, "Hopper-v5", seed, 300_000, {0: [-900.0], 100_000: [final / 2], 300_000: [final]})
    make_run(tmp_path, "td3", "Reach-v0", 1, 1000, {0: [(-50.0, 0.0)], 1000: [(-2.0, 1.0)]})
    make_run(tmp_path, "td3", "Reach-v0", 2, 1000, {0: [(-50.0, 0.0)], 1000: [(-4.0, 0.5)]})
    rows = [published_row(400.0, "Hopper-v3", step=100_000, sd=30), published_row(1e4, "Hopper-v3", step=1_000_000)]
    plots.draw_curves(tmp_path / "curves.png", cells_of(tmp_path), rows)
    axes = panel(drawn[0], "Hopper-v5")
    sac, td3, point = axes.lines[:3]
    assert sac.get_linestyle() == "--" and td3.get_linestyle() == "-"  # one seed is dashed
    assert td3.get_xydata().tolist() == [[0, -900], [100_000, 100], [300_000, 200]]
    half = 12.7062 * 141.4214 / 2**0.5  # t with 1 degree of freedom, deviation of 100 and 300
    band = axes.collections[0].get_datalim(axes.transData).intervaly
    assert band == pytest.approx([200 - half, 200 + half], rel=1e-3)
    assert point.get_ydata() == [400] and to_hex(point.get_markerfacecolor()) == "#ffffff"
    assert point.get_xdata()[0] == pytest.approx(100_000, rel=0.1) and len(axes.containers) == 1  # none beyond the run
    low, high = axes.get_ylim()
    assert low > -100 and high > 400  # the first evaluation does not flatten the axis, the published point is on it
    assert panel(drawn[0], "Reach-v0").get_ylim()[0] > -5 and panel(drawn[0], "Reach-v0: success rate").lines
    assert [text.get_text() for text in drawn[0].legends[0].texts] == ["td3 (n = 2)", "sac (n = 1)", "published"]


def test_five_unknown_labels_have_colours_of_their_own(drawn, tmp_path):
    names = ["dqn", "cem", "ars", "my-agent", "zoo"]
    points = ((1, 0), (1, 3), (1, 9), (2, 5), (2, 9))  # evaluations of seed 2 begin later
    rows = [(name, "My-v0", seed, step, step + seed) for name in names for seed, step in points]
    path = make_csv(tmp_path / "mine.csv", *rows)
    make_run(tmp_path / "ours", env_id="My-v0", total=9)
    found = cells_of(path, tmp_path / "ours")
    colour = plots.colours(found)
    assert len(set(colour.values())) == len(colour) == 6 and colour["td3"] == plots.COLOURS["td3"]
    plots.draw_curves(tmp_path / "curves.png", found, [])
    lines = panel(drawn[0], "My-v0").lines
    assert {to_hex(line.get_color()) for line in lines} == set(colour.values())
    path = make_csv(tmp_path / "many.csv", *((f"a{k}", "My-v0", 1, 9, 9) for k in range(40)))
    assert len(set(plots.colours(cells_of(path)).values())) == 40


def test_speed_is_the_median_over_finished_runs(drawn, tmp_path):
    for seed, seconds in ((1, 10.0), (2, 20.0), (3, 1000.0)):
        make_run(tmp_path, seed=seed, seconds=seconds)
    make_run(tmp_path, seed=4, seconds=1.0, state="failed", evaluations={0: [0.0]})
    assert plots.steps_per_second(cells_of(tmp_path)) == {"td3": 50.0}
    plots.draw_speed(tmp_path / "speed.png", {"td3": 50.0}, plots.COLOURS)
    assert [bar.get_width() for bar in drawn[0].axes[0].patches] == [50.0]


def test_aggregates_show_what_has_an_interval(drawn, tmp_path):
    rng = np.random.default_rng(0)
    for seeds, titles in ((3, ["mean"]), (10, ["IQM", "mean", "optimality gap"])):
        matrices = {"td3": rng.normal(size=(seeds, 2)), "sac": np.ones((seeds, 2))}
        plots.draw_aggregates(tmp_path / "a.png", matrices, plots.COLOURS)
        assert [axes.get_title() for axes in drawn[-1].axes] == titles
        plots.draw_profiles(tmp_path / "p.png", matrices, plots.COLOURS)
        td3, sac = drawn[-1].axes[0].lines
        assert sac.get_ydata()[0] == 1 and sac.get_ydata()[-1] == 0  # all runs lie above 0, none above the highest
        assert td3.get_ydata()[0] == (matrices["td3"] > 0).mean()
        assert len(drawn[-1].axes[0].collections) == (0 if seeds < 10 else 2)
