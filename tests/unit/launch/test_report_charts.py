"""Charts: round axes, honest gaps, and marks that stay few."""

import xml.etree.ElementTree as ET

from launch.report_charts import Series, line_chart, number_text, ticks


def test_chart_numbers():
    assert ticks(0.0, 0.84) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert ticks(-3.0, 7.0) == [-4.0, -2.0, 0.0, 2.0, 4.0, 6.0, 8.0]
    assert ticks(0.0, 0.0) == [-0.6, -0.4, -0.2, 0.0, 0.2, 0.4, 0.6]
    assert ticks(0.0, 341.0) == [0.0, 100.0, 200.0, 300.0, 400.0]
    assert [number_text(x) for x in (0.0, 0.12345, 3.0, 1234.5, 0.00003)] == ["0", "0.123", "3", "1,234", "3e-05"]
    assert line_chart("x", [Series("a", ((1, None),))]) is None


def test_a_long_curve_keeps_its_line_and_thins_its_marks():
    svg = line_chart("Long", [Series("a", tuple((i, float(i)) for i in range(1500)))])
    assert svg is not None
    chart = ET.fromstring(svg)
    assert len(list(chart.iter("title"))) == 150
    (path,) = chart.findall("path")
    assert path.attrib["d"].count("L") == 1499
