"""The report end to end on fabricated records: files, figures, escaping, awkward cases."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import bench
import reports
from harness.authors.published import published_results
from harness.errors import BenchError
from harness.measure.metrics import METRICS, softmax
from harness.plan.protocol import Protocol
from harness.store.files import write_json
from reports import export, plots, tables
from reports.claims import Claims
from reports.collect import collect, pareto
from reports.folds import pooled_tables
from reports.page import GroupPictures, page
from reports.text import latex_head, to_latex
from tests.reports.conftest import AR_NET, RANDOM, TSN, V2, Factory

EVIL = """<script>alert(1)</script> & "x" 'y' $a_b$ | `q` \\frac{1} %~^#"""


class Page(HTMLParser):
    """Collects the tags and the text of a page; raises where it is not well nested."""

    VOID = ("meta", "link", "br", "img", "path", "use", "image", "rect", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    """One full report: four methods, two seeds, timings, a failed cell; all names hostile."""
    root = tmp_path_factory.mktemp("report")
    factory = Factory(root)
    hostile = dataclasses.replace(V2, title=EVIL, settings={"note": EVIL}, departures=(EVIL,))
    factory.usual(2, [TSN, hostile, RANDOM, AR_NET])
    factory.failure(EVIL, EVIL)
    return root / "report", reports.build([root], root / "report")


def test_every_file_is_written(built):
    out, files = built
    names = {path.name for path in files}
    assert {"index.html", "comparison.md", "comparison.tex", "points.csv", "points.parquet"} <= names
    assert {"latency.csv", "latency.parquet"} <= names
    plots = ("accuracy-gflops", "accuracy-latency", "gflops-distribution", "exits", "components")
    assert {f"glyphs-spot-{plot}.{kind}" for plot in plots for kind in ("png", "pdf")} <= names
    assert len([n for n in names if "-frames-" in n and n.endswith(".png")]) == 2
    assert files[0].name == "index.html" and all(path.stat().st_size > 200 for path in files)
    assert {path.name for path in out.iterdir()} == names


def test_page_is_well_formed_self_contained_and_without_script(built):
    found = Page((built[0] / "index.html").read_text())
    tags = {tag for tag, _ in found.tags}
    assert "svg" in tags and not tags & {"script", "link", "iframe", "object", "img"}
    for _, attributes in found.tags:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("href", "xlink:href", "src"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:image/png"))
    text = (built[0] / "index.html").read_text()
    assert "url(http" not in text and "@import" not in text


def test_hostile_names_are_shown_as_text(built):
    text = (built[0] / "index.html").read_text()
    assert "<script>alert" not in text
    assert " ".join(EVIL.split()) in " ".join(Page(text).text.split())


def test_every_url_inside_the_page_has_its_target(built):
    text = (built[0] / "index.html").read_text()
    targets = set(re.findall(r'id="([^"]+)"', text))
    used = set(re.findall(r"url\(#([^)]+)\)", text)) | set(re.findall(r'href="#([^"]+)"', text))
    assert used and used <= targets


def test_hostile_names_do_not_break_markdown_or_latex(built):
    markdown = (built[0] / "comparison.md").read_text()
    assert "<script>" not in markdown
    tables_in = [line for line in markdown.splitlines() if line.startswith("| ")]
    headline = [re.split(r"(?<!\\)\|", line) for line in tables_in[:6]]
    assert len({len(line) for line in headline}) == 1
    latex = (built[0] / "comparison.tex").read_text()
    plain = re.sub(r"\\[&%$#_{}]", "", latex)
    rows = [line for line in plain.splitlines() if line.endswith(r"\\") and line.count("&") == 11]
    assert len(rows) == 2 + 4
    assert plain.count("{") == plain.count("}") and r"\frac" not in plain and r"\toprule" in plain


def test_points_hold_every_record_and_point(built):
    frame = pd.read_csv(built[0] / "points.csv")
    assert len(frame) == 2 * sum(1 + len(fake.curve) for fake in (TSN, V2, RANDOM, AR_NET))
    parquet = pd.read_parquet(built[0] / "points.parquet")
    assert list(parquet.columns) == list(frame.columns) and parquet.top1.tolist() == frame.top1.tolist()
    full = frame[(frame.method == "adafocus-v2") & (frame.point == "full")]
    assert sorted(full.seed) == [0, 1] and full.gflops_mean.iloc[0] == pytest.approx(0.0215)
    assert ((full.top1_low <= full.top1) & (full.top1 <= full.top1_high)).all()


def test_what_a_spreadsheet_takes_for_a_formula_is_text(factory, tmp_path):
    factory.evaluation(dataclasses.replace(TSN, title="=HYPERLINK(1)", curve=()), dataset="@SUM(A1)", videos=20)
    csv, parquet = export.write(export.points(collect([factory.work_dir]).evaluations), tmp_path / "points")
    row = pd.read_csv(csv).iloc[0]
    assert (row.title, row.dataset) == ("'=HYPERLINK(1)", "'@SUM(A1)")
    assert pd.read_parquet(parquet).title.iloc[0] == "=HYPERLINK(1)"


def test_letters_that_pdflatex_lacks_have_a_way_around(factory):
    factory.evaluation(dataclasses.replace(TSN, title="図 É", curve=()), videos=20)
    text = to_latex(tables.headline(collect([factory.work_dir]).groups[0]), "x")
    assert r"\beyondlatin{図}{56F3} É" in text and r"\providecommand{\beyondlatin}" in latex_head(text)
    assert "beyondlatin" not in latex_head("É")
    outside = re.sub(r"\\beyondlatin\{.\}", "", text)
    assert all(ord(c) < 0x180 for c in outside)


def test_latencies_derive_percentiles_from_the_samples(built):
    frame = pd.read_csv(built[0] / "latency.csv")
    assert (frame.median_low_ms <= frame.median_ms).all() and (frame.median_ms <= frame.median_high_ms).all()
    assert (frame.median_ms <= frame.p90_ms).all() and (frame.p90_ms <= frame.p99_ms).all()


def test_same_records_give_the_same_files(factory, tmp_path):
    factory.evaluation(dataclasses.replace(RANDOM, components={"focus": 1.0}), videos=20)
    first, second = (reports.build([factory.work_dir], tmp_path / name) for name in ("one", "two"))
    for one, two in zip(first, second, strict=True):
        assert one.read_bytes() == two.read_bytes(), one.name


def test_seeds_are_averaged_and_their_spread_stands_apart(factory):
    values = []
    for seed in range(3):
        record = factory.evaluation(TSN, seed)
        values.append(record.result["points"][0]["metrics"]["top1"])
    point = collect([factory.work_dir]).groups[0].methods[0].default
    estimate = point.metrics["top1"]
    assert point.seeds == 3
    assert estimate.value == pytest.approx(sum(v["value"] for v in values) / 3)
    assert estimate.low == pytest.approx(sum(v["low"] for v in values) / 3)
    assert estimate.sd == pytest.approx(pd.Series([v["value"] for v in values]).std())


def test_one_seed_has_no_spread(factory):
    factory.evaluation(TSN)
    assert collect([factory.work_dir]).groups[0].methods[0].default.metrics["top1"].sd is None


def test_versions_of_a_data_set_are_apart_unless_asked(factory):
    factory.evaluation(TSN, fingerprint="aaaa1111")
    factory.evaluation(V2, fingerprint="bbbb2222", seed=1)
    groups = collect([factory.work_dir]).groups
    assert [g.title for g in groups] == ["Glyphs (spot) (data bbbb2222)", "Glyphs (spot) (data aaaa1111)"]
    assert all(len(g.methods) == 1 and "they are not compared" in g.notes[-1] for g in groups)
    (group,) = collect([factory.work_dir], allow_mixed=True).groups
    assert len(group.methods) == 2 and "did not see the same data" in group.notes[0]
    assert tables.findings(group)[-1].startswith("The methods did not see the same videos")


def test_a_run_without_a_report_says_so_and_leaves_no_page_as_if_new(factory, capsys):
    record = factory.evaluation(TSN, videos=20)
    out = factory.work_dir / "report"
    out.mkdir()
    (out / "index.html").write_text("an earlier page")
    (record.path / "result.json").write_text("{}")
    assert not bench._report([factory.work_dir], out, sys.stdout)
    assert "no report: " in capsys.readouterr().err
    assert not (out / "index.html").exists() and (out / "index.old.html").exists()


def test_folds_are_tables_of_their_own(factory):
    factory.evaluation(TSN)
    for fold in (1, 2):
        factory.evaluation(TSN, part=f"fold={fold}", fingerprint=f"f{fold}")
    titles = [g.title for g in collect([factory.work_dir]).groups]
    assert titles == ["Glyphs (spot)", "Glyphs (spot) (fold=1)", "Glyphs (spot) (fold=2)"]


def test_folds_are_pooled_over_all_videos(factory):
    counts = {}
    for fold in range(5):
        for fake in (TSN, V2):
            record = factory.evaluation(fake, part=f"fold={fold}", fingerprint=f"f{fold}", videos=30 + fold)
            right = record.result["points"][0]["metrics"]["top1"]["value"] * (30 + fold) / 100
            counts[fake.title] = counts.get(fake.title, 0) + right
    factory.evaluation(RANDOM, part="fold=0", fingerprint="f0", videos=30)
    (table,) = pooled_tables(collect([factory.work_dir]).groups)
    assert {row.cells[0].text: row.cells[2].text for row in table.rows} == {
        title: f"{100 * right / 160:.1f}" for title, right in counts.items()
    }
    assert all(row.cells[4].text == "160" and row.cells[2].note for row in table.rows)
    assert "5 folds of column fold" in table.note and "left out: Random patch" in table.note


def test_pooled_folds_are_the_first_section_of_the_page(factory):
    for fold in range(2):
        factory.evaluation(dataclasses.replace(TSN, curve=()), part=f"fold={fold}", fingerprint=f"f{fold}", videos=20)
    report = collect([factory.work_dir])
    pictures = {g.anchor: GroupPictures() for g in report.groups}
    shown = {g.anchor: [tables.headline(g)] for g in report.groups}
    text = Page(page(report, pictures, shown, pooled_tables(report.groups))).text
    assert text.index("all folds pooled") < text.index("(fold=0)")
    assert "2 folds are too few to differ" in text


def test_an_older_version_of_a_fold_is_not_pooled(factory):
    fake = dataclasses.replace(TSN, curve=())
    for version, fold in ((1, 0), (0, 0), (1, 1)):
        factory.evaluation(fake, seed=version, part=f"fold={fold}", fingerprint=f"v{version}f{fold}", videos=20)
    (table,) = pooled_tables(collect([factory.work_dir]).groups)
    assert table.note.startswith("2 folds") and [row.cells[3].text for row in table.rows] == ["1"]


def test_folds_of_map_are_ranked_together(factory):
    fake = dataclasses.replace(TSN, main="mAP", curve=())
    records = [factory.evaluation(fake, part=f"fold={f}", fingerprint=f"f{f}", videos=40) for f in range(3)]
    logits, targets = (np.concatenate([r.arrays()[name] for r in records]) for name in ("p0_logits", "targets"))
    (table,) = pooled_tables(collect([factory.work_dir]).groups)
    assert table.rows[0].cells[2].text == f"{METRICS['mAP'](softmax(logits), targets):.1f}"
    assert "ranked together" in table.note


def test_intervals_of_a_handful_of_videos_are_not_printed(factory):
    factory.evaluation(TSN, videos=16)
    (group,) = collect([factory.work_dir]).groups
    assert tables.headline(group).rows[0].cells[3].note == ""
    assert any("16 test videos: intervals are printed from 20 on" in note for note in group.notes)


def test_another_protocol_is_another_table(factory):
    factory.evaluation(TSN)
    factory.evaluation(TSN, protocol=Protocol(epoch_scale=0.5))
    titles = [g.title for g in collect([factory.work_dir]).groups]
    assert sorted(titles) == ["Glyphs (spot) (epoch scale 0.5)", "Glyphs (spot) (epoch scale 1.0)"]


def test_another_protocol_is_no_other_version_of_the_data(factory):
    factory.evaluation(TSN, fingerprint="one")
    factory.evaluation(TSN, protocol=Protocol(limit=10), fingerprint="two")
    assert not any("versions" in note for g in collect([factory.work_dir]).groups for note in g.notes)


def test_what_does_not_change_a_number_does_not_split_a_table(factory):
    factory.evaluation(TSN)
    factory.evaluation(V2, protocol=Protocol(threads=2, budgets=(0.5,), eval_batch=4))
    assert len(collect([factory.work_dir]).groups) == 1


def test_settings_tell_equal_titles_apart(factory):
    for patch in (96, 128):
        factory.evaluation(dataclasses.replace(V2, settings={"patch": patch, "frames": 8}))
    labels = {m.label for m in collect([factory.work_dir]).groups[0].methods}
    assert labels == {"AdaFocus V2 (patch=96)", "AdaFocus V2 (patch=128)"}


def test_an_older_version_of_a_method_is_left_out_and_said(factory):
    old = factory.evaluation(TSN)
    factory.evaluation(TSN, method={**old.result["method"], "version": 2})
    (group,) = collect([factory.work_dir]).groups
    assert [r.result["method"]["version"] for r in group.methods[0].records] == [2]
    assert any("older versions" in note for note in group.notes)


def test_folders_are_joined_and_shared_records_taken_once(factory, tmp_path):
    factory.evaluation(TSN)
    other = Factory(tmp_path / "other")
    other.evaluation(TSN)
    other.evaluation(V2)
    report = collect([factory.work_dir, other.work_dir])
    assert [len(m.records) for m in report.groups[0].methods] == [1, 1]


def test_nothing_recorded_is_an_error_that_says_what_failed(factory, tmp_path):
    factory.failure("tsn on glyphs, seed 0", "no disk left")
    with pytest.raises(BenchError, match="no finished evaluation(.|\n)*no disk left"):
        reports.build([factory.work_dir], tmp_path / "out")
    with pytest.raises(BenchError, match="is not a folder of results"):
        reports.build([tmp_path / "nowhere"], tmp_path / "out")


def test_a_changed_array_is_refused(factory, tmp_path):
    record = factory.evaluation(AR_NET)
    (record.path / "per_video.npz").write_bytes(b"tampered")
    with pytest.raises(BenchError, match="was changed after it was recorded"):
        reports.build([factory.work_dir], tmp_path / "out")


def test_one_static_method_without_timings_or_exits(factory, tmp_path):
    factory.evaluation(dataclasses.replace(TSN, curve=()), videos=20)
    names = {path.name for path in reports.build([factory.work_dir], tmp_path / "out")}
    assert "glyphs-spot-accuracy-gflops.png" in names
    assert not any(word in name for name in names for word in ("latency.png", "exits", "frames", "distribution"))
    assert "Latency was not measured" in (tmp_path / "out" / "index.html").read_text()
    assert pd.read_csv(tmp_path / "out" / "latency.csv").empty


def test_out_of_memory_is_a_result(factory):
    record = factory.evaluation(AR_NET)
    factory.latency(record, batch=1)
    factory.latency(record, batch=64, status="out of memory")
    table = tables.timing_table(collect([factory.work_dir]).groups[0])
    assert [row.cells[3].text == "out of memory" for row in table.rows] == [False, True]


def test_timings_of_two_machines_are_never_in_one_figure(factory):
    record = factory.evaluation(TSN)
    for name in ("Some CPU", "Other CPU"):
        factory.latency(record, device=name)
    factory.latency(record, batch=16, device="Other CPU")
    (group,) = collect([factory.work_dir]).groups
    assert len(group.setups) == 2 and group.setups[0].startswith("Other CPU")
    assert all(len(t.records) == 1 for t in group.methods[0].timings)


def test_savings_on_the_clock_against_savings_on_paper(factory):
    record = factory.evaluation(TSN)
    factory.latency(record, "full", ms=10.0)
    factory.latency(record, "frames=4", ms=8.0)
    (row,) = tables.savings(collect([factory.work_dir]).groups[0]).rows
    assert [c.text for c in row.cells] == ["TSN", "frames=4", "full", "50", "20", "0.40"]


def test_a_method_with_one_point_saves_against_the_static_one(factory):
    for fake, ms in ((TSN, 10.0), (AR_NET, 12.0)):
        factory.latency(factory.evaluation(fake), ms=ms)
    (row,) = tables.savings(collect([factory.work_dir]).groups[0]).rows
    assert [c.text for c in row.cells][:3] == ["AR-Net", "full", "TSN"]
    assert row.cells[4].text == "−20"


def test_findings_carry_the_interval_of_their_claim(factory):
    for seed in range(2):
        factory.evaluation(TSN, seed)
        factory.evaluation(dataclasses.replace(V2, skill=3.9, curve=[(0.5, 0.5, 0.01)]), seed)
    (group,) = collect([factory.work_dir]).groups
    best, cheap, caveat = tables.findings(group)
    assert re.search(r"Best Top-1 accuracy: .*, \+?[\d.]+ points \[−[\d.]+, \+[\d.]+\] against the next method, ", best)
    assert "not distinguishable from it: " in best
    assert cheap.startswith("Cheapest measured within one point") and "not shown to be within one point" in cheap
    assert caveat == (
        "Intervals of differences cover videos and training seeds, corrected for choosing among 6 points on the "
        "test videos."
    )


def test_findings_of_one_seed_are_about_networks(factory):
    factory.evaluation(TSN)
    factory.evaluation(AR_NET)
    assert "networks of one training each, not methods" in tables.findings(collect([factory.work_dir]).groups[0])[-1]


def test_bold_is_what_cannot_be_told_from_the_best(factory):
    near = dataclasses.replace(TSN, name="near", title="Near", skill=3.8, curve=())
    far = dataclasses.replace(TSN, name="far", title="Far", skill=0.5, curve=())
    for fake in (dataclasses.replace(TSN, curve=()), near, far):
        for seed in range(3):
            factory.evaluation(fake, seed)
    (group,) = collect([factory.work_dir]).groups
    assert {row.cells[0].text: row.cells[3].best for row in tables.headline(group).rows} == {
        "TSN": True,
        "Near": True,
        "Far": False,
    }


def test_pareto_tags_need_a_difference_that_is_shown(factory):
    cheap = dataclasses.replace(TSN, name="cheap", title="Cheap", gflops=0.01, skill=1.0, curve=())
    middle = dataclasses.replace(TSN, name="middle", title="Middle", gflops=0.03, skill=3.6, curve=())
    dear = dataclasses.replace(TSN, name="dear", title="Dear", gflops=0.06, skill=3.9, curve=())
    for fake in (cheap, middle, dear):
        factory.evaluation(fake)
    (group,) = collect([factory.work_dir]).groups
    tags = {row.cells[0].text: row.cells[0].note for row in tables.headline(group).rows}
    assert tags == {"Cheap": "(Pareto)", "Middle": "(Pareto)", "Dear": "(observed front)"}


def test_the_best_is_among_the_contenders(factory, monkeypatch):
    fakes = [dataclasses.replace(TSN, name=f"m{i}", title=f"M{i}", curve=()) for i in range(8)]
    for fake in fakes:
        factory.evaluation(fake, videos=20)
    (group,) = collect([factory.work_dir]).groups
    rng, kept = np.random.default_rng(0), 0
    for _ in range(100):  # eight networks that are equally good
        drawn = {id(p): 100.0 * (rng.random((1, 200)) < 0.8) for p in group.points}
        monkeypatch.setattr(group, "_scores", drawn)
        monkeypatch.setattr(group, "quality", lambda p, drawn=drawn: float(drawn[id(p)].mean()))
        kept += id(group.points[3]) in Claims(group, group.points).contenders
    assert kept >= 93


def test_pareto_front_keeps_only_what_nothing_beats():
    costs, values = [1, 2, 2, 3, 4, 5], [50, 60, 55, 60, 70, 65]
    assert pareto(costs, values) == [0, 1, 4]
    assert pareto(costs, [-v for v in values], higher_is_better=False) == [0, 1, 4]
    assert pareto([], []) == []


def test_costs_of_one_table_share_their_decimals():
    cost = tables.cost_format([0.0680, 0.0215, 0.0208])
    assert [cost(v) for v in (0.068, 0.0009)] == ["0.0680", "0.0009"]
    assert tables.cost_format([39.0, 17.6, 27.0])(27.0) == "27.0"
    assert tables.cost_format([0.0])(0.0) == "0.00"


def test_silent_classes_are_named_under_map(factory, tmp_path):
    factory.evaluation(dataclasses.replace(TSN, main="mAP", curve=()), videos=8)
    reports.build([factory.work_dir], tmp_path / "out")
    assert (
        "2 classes have no test video and count as 0 in mAP: digit 8, digit 9"
        in (tmp_path / "out" / "index.html").read_text()
    )


def test_a_finished_cell_is_no_longer_failed(factory):
    record = factory.evaluation(TSN)
    key = record.result["key"]
    write_json(factory.work_dir / "records" / "failed" / f"{key}.json", {"key": key, "what": "old", "reason": "old"})
    factory.failure("new", "new")
    assert [f["what"] for f in collect([factory.work_dir]).failures] == ["new"]


def test_reports_never_import_torch():
    code = "import sys, reports.writing, reports.compare; print('torch' in sys.modules or 'mmengine' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_page_template_names_no_machine_path(built):
    assert str(built[0].parent) not in (built[0] / "index.html").read_text()
    assert json.dumps(str(Path.home())) not in (built[0] / "comparison.tex").read_text()


def test_published_figures_are_hollow_marks_of_the_methods_shown(factory):
    factory.evaluation(dataclasses.replace(V2, main="mAP"), dataset="activitynet")
    factory.evaluation(TSN, dataset="glyphs")
    for group in collect([factory.work_dir]).groups:
        lines = plots.over_gflops(group).axes[0].get_lines()
        hollow = [line for line in lines if line.get_markerfacecolor() == "none"]
        expected = [
            r.gflops
            for r in published_results(group.dataset["name"])
            if (r.ours, r.metric, r.quoted) == ("adafocus-v2", "mAP", False) and r.gflops
        ]
        assert sorted(line.get_xdata()[0] for line in hollow) == sorted(expected)
        assert bool(hollow) == (group.dataset["name"] == "activitynet")
