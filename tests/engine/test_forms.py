"""Forms of components: prepared for what occurs, divided, compiled, remembered; results stay."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness.contract.components import Call, component
from harness.contract.declarations import EMPTY
from harness.contract.frames import Frames
from harness.contract.recognizer import EfficientRecognizer
from harness.contract.trace import Trace
from harness.engine import forms as module
from harness.engine.forms import divided, engaged, filled
from harness.errors import UsageError

COMPILER = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on the CPU needs g++")


class Toy(EfficientRecognizer):
    """A convolution with batch norm, a part that no compiler takes as a whole, and a small head."""

    def __init__(self) -> None:
        super().__init__(2, resolution=8, data_preprocessor={"type": "BaseDataPreprocessor"})
        self.net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.odd, self.head = nn.Linear(4, 4), nn.Linear(4, 2)
        self.rows: list[int] = []

    def classify(
        self, clips: Mapping[str, Frames], point: Mapping[str, Any] = EMPTY, generator: torch.Generator | None = None
    ) -> Tensor:
        vectors, _ = self.look(clips["frames"].all().flatten(0, 1), None)
        return self.conclude(self.break_off(vectors)).unflatten(0, (len(clips["frames"]), -1)).mean(1)

    @component("net")
    def look(self, x_N3HW: Tensor, _: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        maps = self.net(self.normalise(x_N3HW))
        return maps.mean((2, 3)), {"maps": maps}

    @component("odd")
    def break_off(self, x_ND: Tensor) -> Tensor:
        self.rows.append(len(x_ND))
        torch._dynamo.graph_break()
        return self.odd(x_ND)

    @component("head", fast=False)
    def conclude(self, x_ND: Tensor) -> Tensor:
        return self.head(x_ND)


@pytest.fixture
def toy() -> Toy:
    torch.manual_seed(0)
    model = Toy()
    nn.init.uniform_(model.net[1].running_var, 0.5, 2.0)
    return model.eval()


def clips(videos: int, frames: int = 5) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(videos)
    return {"frames": torch.randint(0, 256, (videos, frames, 3, 8, 8), dtype=torch.uint8, generator=generator)}


@torch.inference_mode()
def said(toy: Toy, batch: dict[str, Tensor]) -> Tensor:
    return toy.infer(batch, trace=Trace(len(batch["frames"])))


def test_components_run_as_they_are_where_nothing_was_learned(toy: Toy) -> None:
    plain = said(toy, clips(2))
    with engaged(toy, context={}) as forms:
        assert torch.equal(said(toy, clips(2)), plain)
        assert forms.unprepared == 2 and not forms.ways  # the head has no form
    assert toy.forms == {}


def test_calls_are_divided_by_measured_times(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "measured", lambda call, sizes, clock: {n: {1: 1.0, 2: 1.1}.get(n, 9.0) for n in sizes})
    plain = said(toy, clips(1))
    with engaged(toy, context={}) as forms:
        with forms.learning():
            said(toy, clips(1))
        toy.rows.clear()
        torch.testing.assert_close(said(toy, clips(1)), plain)
        assert toy.rows == [2, 2, 1]
        said(toy, clips(1, frames=3))
        assert toy.rows == [2, 2, 1, 2, 1]
    assert forms.unprepared == 0
    assert forms.compiled() == set()
    assert {entry["component"] for entry in forms.told().values()} == {"net", "odd"}


def test_measured_times_are_kept(toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "UNDISTURBED", 0.0)

    def learn(context: str) -> dict[str, Any]:
        with engaged(toy, context={"machine": context}, table=tmp_path) as forms, forms.learning():
            said(toy, clips(1))
        return forms.told()

    first = learn("a")
    assert len(list(tmp_path.glob("*.json"))) == 2
    monkeypatch.setattr(module, "measured", lambda *_: pytest.fail("measured again"))
    assert learn("a") == first
    with pytest.raises(BaseException, match="measured again"):
        learn("b")


def test_disturbed_times_are_not_kept(toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for own, kept in ((0.5, 0), (1.0, 2)):
        clock = SimpleNamespace(perf_counter=time.perf_counter, process_time=lambda own=own: own * time.perf_counter())
        monkeypatch.setattr(module, "time", clock)
        with engaged(toy, context={}, table=tmp_path) as forms, forms.learning():
            said(toy, clips(1))
        assert len(list(tmp_path.glob("*.json"))) == kept and len(forms.ways) == 2


def test_more_rows_are_measured_when_they_occur(toy: Toy) -> None:
    with engaged(toy, context={}) as forms:
        for videos in (1, 4):
            with forms.learning():
                said(toy, clips(videos))
            (way,) = (way for (call, _), way in forms.ways.items() if call == Call("look"))
            assert max(way.rows.seconds) == {1: 8, 4: 32}[videos]


def test_rows_are_filled_up_for_fixed_sizes() -> None:
    x = torch.arange(5.0)[:, None]
    calls: list[list[float]] = []

    def run(a: Tensor, b: None) -> dict[str, Tensor]:
        calls.append(a[:, 0].tolist())
        return {"twice": 2 * a}

    assert torch.equal(divided(run, (x, None), (4, 4), exact=True)["twice"], 2 * x)
    assert calls == [[0, 1, 2, 3], [4, 4, 4, 4]]
    assert filled((x, None), 7)[0][:, 0].tolist() == [0, 1, 2, 3, 4, 0, 1]


@COMPILER
def test_compiled_parts_say_the_same_and_nothing_is_compiled_later(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "measured", lambda call, sizes, clock: {n: (call(n), n / 1e3)[1] for n in sizes})
    monkeypatch.setattr(module, "_fastest", lambda ways, args: ways[-1])
    plain = {videos: said(toy, clips(videos)) for videos in (1, 2, 3)}
    with engaged(toy, "compiled", context={}) as forms:
        with forms.learning():
            said(toy, clips(3))
        assert {call.attribute: way.name for (call, _), way in forms.ways.items()} == {
            "look": "compiled", "break_off": "eager",
        }  # fmt: skip
        assert forms.compiled() == {"net"} and forms.prepare_s > 0
        with torch.compiler.set_stance("fail_on_recompile"):
            for videos, logits in plain.items():
                torch.testing.assert_close(said(toy, clips(videos)), logits, rtol=1e-4, atol=1e-5)
    assert forms.unprepared == 0


def test_unknown_engine_is_refused(toy: Toy) -> None:
    with pytest.raises(UsageError, match="did you mean 'compiled'"), engaged(toy, "compile", context={}):
        pass


@pytest.mark.gpu
def test_graphs_say_the_same(toy: Toy) -> None:
    toy.cuda()
    batches = {videos: {"frames": clips(videos)["frames"].cuda()} for videos in (1, 2, 3)}
    plain = {videos: said(toy, batch) for videos, batch in batches.items()}
    with engaged(toy, "graphs", context={}) as forms:
        with forms.learning():
            said(toy, batches[3])
        for videos, logits in plain.items():
            torch.testing.assert_close(said(toy, batches[videos]), logits, rtol=1e-3, atol=1e-3)
    assert forms.unprepared == 0
