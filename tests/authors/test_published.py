"""The figures shipped with the package: complete, consistent with each other, readable without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from itertools import pairwise

import pytest

from harness.authors.published import exit_table, paper_table, published_part, published_parts, published_results

DATASETS = {"activitynet", "fcvid", "mini-kinetics", "sthv1", "sthv2", "jester", "kinetics400"}


def test_results_are_plausible():
    results = published_results()
    assert {r.dataset for r in results} == DATASETS
    assert all(r.metric in ("mAP", "top1") and 10 < r.value < 100 for r in results)
    assert all(r.gflops is None or r.gflops > 0 for r in results)
    assert all(r.paper and r.location and r.method and r.read in ("print", "plot") for r in results)
    assert len(set(results)) == len(results)


@pytest.mark.parametrize(
    ("dataset", "method", "value", "gflops"),
    [
        ("activitynet", "AdaFocusV2-MN2/RN (128^2)", 79.0, 27.0),
        ("activitynet", "AdaFocusV2-RN+ (128^2)", 76.1, 15.3),
        ("activitynet", "AR-Net", 73.8, 33.5),
        ("sthv1", "TSM", 46.1, 32.7),
        ("jester", "AdaFocusV2-TSM (176^2)", 96.9, 33.7),
    ],
)
def test_known_figures_are_there(dataset, method, value, gflops):
    found = [r for r in published_results(dataset) if (r.method, r.value, r.gflops) == (method, value, gflops)]
    assert found
    assert {r.dataset for r in published_results(dataset)} == {dataset}


def test_fixed_costs():
    rows = {(r.method, r.dataset, r.variant): r for r in paper_table()}
    assert len(rows) == len(paper_table())
    printed = [r.gflops for r in paper_table() if (r.method, r.dataset) == ("adafocus-v2", "activitynet")]
    assert printed == [17.6, 27.0, 39.0, 24.8, 34.1, 46.1]
    assert {r.gflops for r in paper_table() if r.method in ("tsn", "tsm")} == {32.7}
    for row in paper_table():
        if row.from_constants is not None:
            assert row.from_constants == pytest.approx(row.gflops, rel=0.005), row.label()


def test_every_exit_is_there_and_the_last_is_the_whole():
    """docs/measurement.md#gflops: the cost models of the authors' exit scripts."""
    whole = {(r.method, r.dataset, json.dumps(r.settings)): r for r in paper_table()}
    exits = {}
    for row in exit_table():
        exits.setdefault((row.method, row.dataset, json.dumps(row.settings)), []).append(row)
    assert Counter((method, len(rows)) for (method, _, _), rows in exits.items()) == {
        ("adafocus-v2", 16): 2,
        ("uni-adafocus", 17): 1,
        ("uni-adafocus-tsm", 2): 4,
        ("uni-adafocus-x3d", 2): 1,
    }
    for key, rows in exits.items():
        assert [row.point for row in rows] == [{"exit_at": step} for step in range(len(rows))]
        assert all(later.gflops > sooner.gflops for sooner, later in pairwise(rows))
        assert rows[-1].gflops == pytest.approx(whole[key].from_constants, rel=1e-4)
        assert rows[0].covers == whole[key].covers


def test_exit_cost_models():
    """V2+ pays the same for every frame; Uni-AdaFocus all glances at once, the policies with the first patch."""
    rows = [r for r in exit_table() if r.method == "adafocus-v2" and r.settings["glance"] == "resnet50"]
    assert [r.from_constants for r in rows] == pytest.approx([2.131277762 * k for k in range(1, 17)], abs=1e-6)
    costs = [r.from_constants for r in exit_table() if r.method == "uni-adafocus"]
    steps = [later - sooner for sooner, later in pairwise(costs)]
    patch = 1.334601664 + 0.008392704 + 0.0016384
    assert costs[0] == pytest.approx(4.889, abs=1e-3) and costs[-1] == pytest.approx(27.23, abs=1e-3)
    assert steps == pytest.approx([patch + 0.822485376 + 0.00412992] + [patch] * 15, abs=2e-6)
    assert exit_table()[0].label().endswith("P=128, exit_at 0")


def test_v2_constants_are_the_sum_of_its_parts():
    """docs/measurement.md#gflops: the parts, the heads and one per batch-norm channel, 2 MACs short of the constant."""
    variant = "adafocus-v2 mobilenet_v2"
    parts = [p.macs for p in published_parts() if p.variant == variant and not p.component.startswith("local_CNN")]
    macs = sum(parts) + published_part(variant, "local_CNN_per_frame_128") + 17_056 + 26_560 + 6_208
    (row,) = [r for r in paper_table() if r.dataset == "activitynet" and r.gflops == 27.0]
    assert 16 * (macs - 2) == pytest.approx(row.from_constants * 1e9, abs=500)


def test_unknown_part_is_an_error():
    with pytest.raises(KeyError):
        published_part("adafocus-v2 mobilenet_v2", "nothing")


def test_no_torch():
    code = (
        "import sys; from harness.authors import published; from harness.measure import conventions;"
        " published.published_results(); published.paper_table();"
        " print('torch' in sys.modules or 'fvcore' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
