"""What a report says of its latencies: intervals over launches, marks of disturbed and partly compiled figures."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest
from matplotlib.collections import PathCollection

import reports
from harness.store.files import write_json
from reports import plots, tables
from reports.collect import Group, collect
from reports.timings import BUSY, UNKNOWN, setup_label
from tests.reports.conftest import AR_NET, TSN, V2, Factory

LOAD = "load 0.62 per core by other processes"


def only_group(factory: Factory) -> Group:
    (group,) = collect([factory.work_dir]).groups
    return group


def cells(table: tables.Table | None, title: str) -> list[str]:
    """Texts and notes of a column."""
    assert table is not None
    place = [c.title for c in table.columns].index(title)
    return [f"{row.cells[place].text} {row.cells[place].note}".strip() for row in table.rows]


def test_a_disturbed_figure_is_marked_in_every_table_and_explained(factory: Factory) -> None:
    record = factory.evaluation(TSN)
    factory.latency(record, ms=10.0, disturbed=[LOAD])
    factory.latency(record, "frames=4", ms=6.0, disturbed=["load 0.31 per core by other processes"])
    factory.latency(record, "frames=2", ms=4.0)
    group = only_group(factory)
    note = f"{BUSY} taken while the machine was busy: load 0.31 to 0.62 per core by other processes."
    assert BUSY in cells(tables.headline(group), "Latency")[0]
    assert f"{BUSY} taken while the machine was busy: {LOAD}." in tables.headline(group).note
    marked = [BUSY in cell for cell in cells(tables.operating_points(group), "Latency")]
    assert marked == [False, False, True, True], "frames=1 (not timed), frames=2, frames=4, full"
    assert [BUSY in cell for cell in cells(tables.timing_table(group), "Median")] == [False, True, True]
    for table in (tables.operating_points(group), tables.timing_table(group), tables.savings(group)):
        assert table is not None and note in table.note
    assert all(BUSY in cell for cell in cells(tables.savings(group), "Clock saved")), "their reference is disturbed"
    figure = plots.over_latency(group)
    assert figure is not None and "machine was busy" in " ".join(figure.axes[0].get_title().split())


def test_a_quiet_report_bears_no_mark(factory: Factory) -> None:
    factory.usual(1, [TSN, V2])
    group = only_group(factory)
    for table in (tables.headline(group), tables.operating_points(group), tables.savings(group)):
        assert table is not None and BUSY not in table.note
        assert not any(BUSY in cell.note for row in table.rows for cell in row.cells)


@pytest.mark.parametrize(("share", "note"), [(0.06, "partly compiled (6%)"), (0.95, "")])
def test_what_is_partly_compiled_says_so(factory: Factory, share: float, note: str) -> None:
    factory.latency(factory.evaluation(AR_NET), engine="compiled", compiled_share=share)
    group = only_group(factory)
    assert group.setups[0].endswith("compiled")
    (cell,) = cells(tables.headline(group), "Latency")
    assert cell.endswith(note) and ("compiled" in cell) == bool(note)


def test_the_interval_of_a_median_covers_its_launches(factory: Factory) -> None:
    wall = [0.010, 0.0101, 0.0099] * 3 + [0.020, 0.0201, 0.0199] * 3
    launches = [{"forwards": 9, "others": None}, {"forwards": 9, "others": None}]
    more = {"wall_s": wall, "videos": [1] * 18, "gflops": [0.1] * 18}
    factory.latency(factory.evaluation(TSN), launches=launches, **more)
    group = only_group(factory)
    (timing,) = group.methods[0].timings
    low, high = timing.interval_ms
    assert low < 10.2 and high > 19.8
    assert (timing.launches, cells(tables.timing_table(group), "Launches")) == (2, ["2"])
    frame = pd.read_csv(write(factory) / "latency.csv")
    assert frame.median_low_ms[0] == pytest.approx(low) and frame.launches[0] == 2


def test_records_of_one_launch_are_read(factory: Factory) -> None:
    record = factory.latency(factory.evaluation(TSN))
    old = {"launches", "disturbed", "outputs", "compiled_share", "precision", "options", "engine", "forms"}
    path = record.path / "result.json"
    path.write_text(pd.Series({k: v for k, v in record.result.items() if k not in old}).to_json())
    group = only_group(factory)
    assert group.methods[0].timings[0].launches == 1
    table = tables.timing_table(group)
    assert cells(table, "Median")[0].endswith(f"– {UNKNOWN}"), "one launch has no interval over launches"
    for shown in (table, tables.headline(group), tables.operating_points(group)):
        assert shown is not None and f"{UNKNOWN} not known whether the machine was quiet." in shown.note
    assert UNKNOWN in cells(tables.headline(group), "Latency")[0]
    assert f" ms {UNKNOWN}" in " ".join(tables.findings(group))
    assert pd.read_csv(write(factory) / "latency.csv").disturbed[0] == "not known"


def test_a_timing_that_was_repeated_with_other_options_counts_once(factory: Factory) -> None:
    record = factory.evaluation(TSN)
    later = {"created": "2026-11-20T14:00:00+00:00", "options": {"min_seconds": 1.0, "launches": 5}}
    factory.latency(record, ms=5.0, **later)
    factory.latency(record, ms=50.0, disturbed=[LOAD])
    (timing,) = only_group(factory).methods[0].timings
    assert timing.ms(0.5) < 10 and timing.note == "" and timing.launches == 3


def test_a_record_without_a_mode_is_of_batches_and_no_other_mode_is_mixed_with_it(factory: Factory) -> None:
    old = dict(factory.latency(factory.evaluation(TSN), ms=5.0).result)
    path = factory.work_dir / "records" / "latency" / old["key"] / "result.json"
    del old["mode"]
    write_json(path, old)
    factory.stream(factory.evaluation(TSN), batch=1, created="2026-11-20T14:00:00+00:00")
    (timing,) = only_group(factory).methods[0].timings
    assert timing.ms(0.5) < 10
    assert sorted(pd.read_csv(write(factory) / "latency.csv")["mode"]) == ["batch", "stream"]


def test_streams_have_a_table_of_their_own(factory: Factory) -> None:
    record = factory.evaluation(V2)
    names = [p["name"] for p in record.result["points"]]
    factory.latency(record, batch=16)
    assert tables.stream_table(only_group(factory)) is None
    factory.stream(record, gflops=[4.0] * 24)
    factory.stream(record, names[1], gflops=[2.0] * 24, wall_s=[3 / 80] * 24, disturbed=[LOAD])
    group = only_group(factory)
    table = tables.stream_table(group)
    assert table is not None and "older than 60 s" in table.note and "load 0.62" in table.note
    place = dict(zip(cells(table, "Point"), range(2), strict=True))
    full, exits = place[names[0]], place[names[1]]

    def shown(title: str) -> str:
        return cells(table, title)[full]

    assert shown("Throughput") == "80" and shown("Plain loop") == "50"
    assert shown("Ratio") == "1.60 [1.60, 1.60]"
    assert shown("Own time") == "250 / 400" and shown("Fill") == "83"
    assert shown("MACs saved") == shown("Clock saved") == "–"
    assert cells(table, "MACs saved")[exits] == f"50 {names[0]}"
    assert cells(table, "Clock saved")[exits].startswith("25") and BUSY in cells(table, "Clock saved")[exits]
    assert cells(table, "Clock / MACs")[exits] == "0.50"
    assert [t.batch for t in group.methods[0].timings] == [16], "the other tables know nothing of them"
    frame = pd.read_csv(write(factory) / "latency.csv").set_index("mode")
    assert frame.loc["stream", "stream_ratio"].tolist()[0] == pytest.approx(1.6)
    assert "as a stream" in (write(factory) / "index.html").read_text().lower()


def test_a_stream_for_which_memory_was_not_enough_is_shown(factory: Factory) -> None:
    factory.stream(factory.evaluation(TSN), status="out of memory", stream=None, wall_s=[], videos=[], launches=[])
    table = tables.stream_table(only_group(factory))
    assert table is not None and len(table.rows[0].cells) == len(table.columns)
    assert cells(table, "Throughput") == ["out of memory"]


def test_timings_of_several_seeds_are_pooled(factory: Factory) -> None:
    for seed in range(2):
        factory.latency(factory.evaluation(TSN, seed))
    (timing,) = only_group(factory).methods[0].timings
    assert timing.launches == 6 and timing.wall_s.size == 48


def test_tf32_and_deterministic_kernels_are_part_of_the_setup(factory: Factory) -> None:
    device = {"name": "GPU", "kind": "cuda", "fingerprint": "f", "driver": "1", "clocks": {}}
    exact = {"tf32_convolution": False, "tf32_matmul": False, "deterministic": True}
    fast = {"tf32_convolution": True, "tf32_matmul": False, "cudnn_benchmark": True}
    result = factory.latency(factory.evaluation(TSN)).result
    setups = [setup_label({**result, "device": {**device, "kernels": kernels}}) for kernels in (exact, fast)]
    assert setups[0].endswith("no TF32, deterministic") and setups[1].endswith("TF32 convolution, cudnn benchmark")


def test_half_precision_tells_how_often_it_agrees(factory: Factory) -> None:
    metrics = {"top1": {"value": 71.0, "low": 65.0, "high": 77.0}}
    agreement = {"top1": 0.985, "exits": 0.97, "decisions": None, "boxes": 1.0}
    found = {"videos": 200, "agreement": agreement, "metrics": metrics}
    factory.latency(factory.evaluation(V2), dtype="bfloat16", precision=found)
    table = tables.timing_table(only_group(factory))
    assert table is not None
    told = "in bfloat16: top1 71.0, the same as in float32: top1 98.5 %, exits 97.0 %, boxes 100.0 %."
    assert f"AdaFocus V2 at full {told}" in table.note
    frame = pd.read_csv(write(factory) / "latency.csv")
    assert (frame.agreement_exits[0], frame.top1_in_dtype[0]) == (0.97, 71.0)


def test_every_point_is_on_the_latency_plot_and_in_one_row_of_the_savings(factory: Factory) -> None:
    factory.usual(1, [TSN, V2])
    group = only_group(factory)
    figure = plots.over_latency(group)
    assert figure is not None
    drawn = {tuple(at) for c in figure.axes[0].collections if isinstance(c, PathCollection) for at in c.get_offsets()}
    assert len(drawn) == sum(len(m.points) for m in group.methods)
    table = tables.savings(group)
    assert table is not None
    assert len(table.rows) == sum(len(m.points) - 1 for m in group.methods), "both batch sizes stand in one row"
    assert [c.unit for c in table.columns][4:] == ["%, batch 1", "clock / MACs, batch 1", "%, batch 16",
                                                   "clock / MACs, batch 16"]  # fmt: skip


def from_file(ms: float, eager_ms: float, frames: float) -> dict[str, Any]:
    """What a record of mode `file` has: three launches, the last one slower."""
    wall, factors = [ms / 1e3] * 2, (1.0, 1.0, 1.2)
    return {
        "mode": "file",
        "wall_s": [factor * s for factor in factors for s in wall],
        "videos": [1] * 6,
        "launches": [{"forwards": 2, "others": 0.0}] * 3,
        "phases_s": {"decode": 0.004, "transform": 0.001, "transfer": 0.0, "model": 0.003},
        "frames_decoded": frames,
        "peak_memory_bytes": None,
        "eager_clips": {"wall_s": [eager_ms / 1e3] * 6, "frames_decoded": 23.0},
    }


def test_the_third_clock_stands_beside_the_models_own(factory: Factory) -> None:
    record = factory.evaluation(TSN)
    taken = {"full": (10.0, 20.0, 20.0, 23.0), "frames=4": (6.0, 8.0, 16.0, 14.0)}
    for point, (model_ms, file_ms, eager_ms, frames) in taken.items():
        factory.latency(record, point, wall_s=[model_ms / 1e3] * 6, videos=[1] * 6)
        cost = next(p for p in record.result["points"] if p["name"] == point)["gflops"]["mean"]
        factory.latency(record, point, gflops=[cost] * 6, **from_file(file_ms, eager_ms, frames))
    group = only_group(factory)
    table = tables.file_table(group)
    assert [c.split(" ")[0] for c in cells(table, "From file")] == ["8.00", "20.0"]
    assert cells(table, "Model") == ["6.00", "10.0"]
    assert cells(table, "Frames decoded") == ["14.0 (23.0)", "23.0 (23.0)"]
    assert [c.split(" ")[0] for c in cells(table, "Lazy / eager")] == ["0.53", "1.06"]
    assert cells(table, "Decode") == ["4.00"] * 2 and cells(table, "Rest") == ["3.00"] * 2
    savings = tables.savings(group)
    assert savings is not None
    assert [c.unit for c in savings.columns][4:] == [
        "%, batch 1", "clock / MACs, batch 1", "%, batch 1 from file", "clock / MACs, batch 1 from file",
    ]  # fmt: skip
    assert [cell.text for cell in savings.rows[0].cells][4:] == ["40", "0.80", "60", "1.20"]
    assert all(len(m.timings) == 2 for m in group.methods), "the clocks are not mixed"
    frame = pd.read_csv(write(factory) / "latency.csv").set_index(["point", "mode"])
    assert frame.lazy_over_eager["frames=4", "file"] == pytest.approx(0.5 * 1.2 ** (1 / 3))
    assert frame.frames_decoded["frames=4", "file"] == 14


def test_a_report_without_the_third_clock_shows_none(factory: Factory) -> None:
    factory.usual(1, [TSN])
    assert tables.file_table(only_group(factory)) is None


def test_out_of_memory_on_the_third_clock(factory: Factory) -> None:
    nothing = {"wall_s": [], "videos": [], "launches": [], "eager_clips": {"wall_s": [], "frames_decoded": 0.0}}
    factory.latency(factory.evaluation(TSN), status="out of memory", **from_file(1.0, 1.0, 1.0) | nothing)
    assert cells(tables.file_table(only_group(factory)), "From file") == ["out of memory"]
    write(factory)


def write(factory: Factory):
    """The folder of a whole report."""
    reports.build([factory.work_dir], factory.work_dir / "report")
    return factory.work_dir / "report"
