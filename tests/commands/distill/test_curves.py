"""The curves of report.png: colours that can be told apart, legends beside the panels, logs of one row."""

from itertools import combinations

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb

from dmdistill.commands.distill.diagnostics import BINS
from dmdistill.commands.distill.pictures import curves_figure

EYES = {  # what dichromats see of linear RGB: Machado et al. 2009, severity 1
    "usual": np.eye(3),
    "protanopia": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "deuteranopia": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "tritanopia": [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
}
TO_XYZ = [[0.4339, 0.3762, 0.1899], [0.2126, 0.7152, 0.0722], [0.0177, 0.1095, 0.8730]]  # divided by those of white


def lab(color, eyes):
    """The colour in CIELAB, L* first."""
    srgb = np.array(to_rgb(color))
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    xyz = TO_XYZ @ np.clip(np.array(EYES[eyes]) @ linear, 0, 1)
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def log_row(step):
    """A row of a log that has every kind of value."""
    row = {"step": step, "seconds": 1.0, "frechet_ema50": 3.0 / step, "frechet_ema500": 2.0 / step, "fake_lag": 1.0}
    losses = {f"loss_{name}": (i + 1) / step for i, name in enumerate(("kl", "fake", "reg", "gan", "discriminator"))}
    row |= losses | {"gradient_generator": 0.5, "gradient_fake": 2.0 / step}
    row |= {f"gap_{i}": 0.1 * (i + 1) / step for i in range(BINS)} | {f"fake_loss_{i}": 0.1 + i for i in range(BINS)}
    row |= {f"{who}_{what}": 0.1 for who in ("sample", "teacher") for what in ("mean", "std", "saturation")}
    return row | {"accuracy_real": 0.7, "accuracy_generated": 0.6}


def panels(rows):
    """The panels of a log's figure by their titles, drawn."""
    figure = curves_figure(rows)
    FigureCanvasAgg(figure).draw()
    return {axes.get_title(): axes for axes in figure.axes}


@pytest.mark.parametrize("eyes", EYES)
def test_lines_of_a_panel_can_be_told_apart(eyes):
    """By colours at a distance of 15, and dark enough on white; or by the line, of a teacher beside its student."""
    for title, axes in panels([log_row(10), log_row(20)]).items():
        assert all(lab(line.get_color(), eyes)[0] < 80 for line in axes.lines)
        for one, other in combinations(axes.lines, 2):
            distance = np.linalg.norm(lab(one.get_color(), eyes) - lab(other.get_color(), eyes))
            assert distance > 15 or one.get_linestyle() != other.get_linestyle(), (title, one, other)


@pytest.mark.parametrize("count", [1, 4])
def test_a_legend_covers_nothing(count):
    """It lies beside its panel, within the picture, and reaches no other panel or its numbers."""
    every = panels([log_row(10 * i) for i in range(1, count + 1)]).values()
    for axes in every:
        box, figure = axes.get_legend().get_window_extent(), axes.figure
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1 + 1
        assert figure.bbox.y0 - 1 <= box.y0
        assert not any(box.overlaps(other.bbox) for other in every)
        numbers = [text for other in every for text in other.get_yticklabels() if text.get_text()]
        assert not any(box.overlaps(text.get_window_extent()) for text in numbers)


def test_a_log_of_one_row_makes_points_with_their_values():
    every = panels([log_row(40)])
    assert len(every) == 8
    for axes in every.values():
        labels = [text.get_text() for text in axes.get_legend().get_texts()]
        assert len(labels) == len(axes.lines)
        points = []
        for line, label in zip(axes.lines, labels, strict=True):
            ((x, y),) = line.get_xydata()
            assert label.endswith(f" = {y:.3g}")
            assert line.get_marker() not in ("None", ".")
            assert line.get_markersize() >= 6
            assert axes.get_xlim()[0] < x < axes.get_xlim()[1]
            points.append(x)
        assert len(set(points)) == len(points)  # none covers another
        assert [text.get_text() for text in axes.get_xticklabels()] == ["40"]
    assert "One row" in next(iter(every.values())).figure.get_suptitle()


def test_a_log_without_rows_says_so():
    assert "No row" in curves_figure([]).get_suptitle()
    assert curves_figure([log_row(1), log_row(2)]).get_suptitle() == ""


def test_a_value_that_is_not_finite_leaves_the_rest_of_its_panel():
    rows = [{"step": 1, "loss_kl": 1.0}, {"step": 2, "loss_kl": float("nan")}, {"step": 3, "loss_kl": 0.1}]
    assert panels(rows)["losses"].get_yscale() == "log"
    assert panels([{"step": i, "loss_kl": float("inf")} for i in (1, 2)])["losses"].get_yscale() == "linear"
