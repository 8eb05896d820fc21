"""The authors' recorded outputs, met by this project's networks; and how pairs are compared.

The pairs in `data` hold generated numbers: names, shapes, seeds and outputs.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from harness.authors.parity import ParityCase, compare, fill, read_case, replay, run_parity, video
from harness.errors import UsageError

DATA = Path(__file__).parent / "data"
METHODS = [
    "AdaFocus V2",
    "AdaFocus V1",
    "AdaFocus V1 + TSM",
    "AdaFocus V2 + TSM",
    "Uni-AdaFocus",
    "Uni-AdaFocus + TSM",
    "Uni-AdaFocus + X3D",
]
"""As pairs name them."""
EVALUATIONS = sorted(path.stem for path in DATA.glob("*.npz") if not path.stem.startswith("train"))
TRAININGS = sorted(path.stem for path in DATA.glob("train*.npz"))


@pytest.mark.parametrize("name", EVALUATIONS)
def test_evaluation(name: str) -> None:
    result = replay(read_case(DATA / f"{name}.json"))
    assert result.status == "pass", result.detail


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAININGS)
def test_training_step(name: str) -> None:
    """Losses to 1e-6 and gradient norms to 1 %, in float64: from a quarter of a minute to two."""
    (result,) = run_parity(DATA, [name])
    assert result.status == "pass", result.detail


def test_every_family_member_has_a_recorded_training_step() -> None:
    assert {read_case(DATA / f"{name}.json").spec["method"] for name in TRAININGS} == set(METHODS)


def toy(**spec: object) -> ParityCase:
    arrays = {"logits": np.array([0.1, 0.2], np.float32), "cells": np.array([3, 4]), "labels": np.array([1])}
    return ParityCase("toy", {"method": "Nobody's", **spec}, arrays)


def test_real_outputs_have_a_tolerance_and_discrete_ones_none() -> None:
    outputs = dict(toy().expected)
    assert set(outputs) == {"logits", "cells"}
    assert compare(toy(), outputs).status == "pass"
    assert compare(toy(), {**outputs, "logits": outputs["logits"] + 9e-5}).status == "pass"
    far = compare(toy(), {**outputs, "logits": outputs["logits"] + 2e-4})
    assert (far.status, "logits differs" in far.detail) == ("fail", True)
    assert compare(toy(), {**outputs, "cells": np.array([3, 5])}).status == "fail"
    assert compare(toy(), {**outputs, "logits": outputs["logits"] * np.nan}).status == "fail"
    assert compare(toy(), {**outputs, "logits": outputs["logits"][:1]}).status == "fail"
    assert compare(toy(), {"logits": outputs["logits"]}).detail == "cells was not computed"


def test_training_steps_are_compared_relatively() -> None:
    case = replace(toy(kind="train"), arrays={"total": np.array(16.0), "gradnorm_x": np.array(28000.0)})
    assert compare(case, {"total": 16.0 + 1e-5, "gradnorm_x": 28200.0}).status == "pass"
    assert compare(case, {"total": 16.0 + 1e-4, "gradnorm_x": 28200.0}).status == "fail"
    assert compare(case, {"total": 16.0, "gradnorm_x": 28300.0}).status == "fail"


def test_a_pair_that_stops_is_a_failed_pair() -> None:
    """The others still run."""
    broken = replay(toy(method="AdaFocus V2", patch_size=128, tensors={"a.weight": [2]}))
    assert (broken.status, "AdaFocusV2 does not know" in broken.detail) == ("fail", True)
    empty = replay(toy(method="AdaFocus V1 + TSM"))
    assert empty.status == "fail" and empty.detail.startswith("adafocus-v1-tsm stopped with KeyError")


def test_a_pair_nobody_computes_is_unsupported() -> None:
    result = replay(toy())
    assert (result.status, result.detail) == ("unsupported", 'no method computes "Nobody\'s" yet')
    nameless = replay(replace(toy(), spec={}))
    assert (nameless.status, nameless.detail) == ("unsupported", "no method computes 'this pair' yet")


def test_a_pair_says_what_is_given() -> None:
    """What is an input of a training step is not compared."""
    case = replace(toy(kind="train", given=["labels", "cells"]))
    assert set(case.expected) == {"logits"}
    assert set(toy(kind="train").expected) == {"logits", "cells"}


def test_folders_without_pairs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no parity pairs"):
        run_parity(tmp_path)
    with pytest.raises(UsageError, match="has no pair nothing"):
        run_parity(DATA, ["nothing"])


def test_a_pair_is_read_back(tmp_path: Path) -> None:
    (tmp_path / "toy.json").write_text(json.dumps({"method": "m", "input_seed": 3, "tensors": {"a.bias": [2]}}))
    np.savez(tmp_path / "toy.npz", logits=np.zeros(2))
    case = read_case(tmp_path / "toy.json")
    assert case.name == "toy"
    assert case.checkpoint()["a.bias"].shape == (2,)
    assert case.clip(4, 16).shape == (2, 4, 3, 16, 16)


def test_generated_tensors_have_their_statistics() -> None:
    weight = fill("block.conv.weight", (64, 32, 3, 3))
    assert weight.dtype == np.float32
    assert weight.std() == pytest.approx(np.sqrt(2 / 288), rel=0.02)
    assert np.abs(weight.mean(axis=(1, 2, 3))).max() < 1e-7
    assert np.array_equal(weight, fill("block.conv.weight", (64, 32, 3, 3)))
    assert not np.array_equal(weight, fill("block.conv2.weight", (64, 32, 3, 3)))
    assert fill("bn.num_batches_tracked", ()).dtype == np.int64
    assert 1 <= fill("bn.running_var", (100,)).min() <= fill("bn.running_var", (100,)).max() <= 1.5
    assert fill("bn.weight", (1000,)).mean() == pytest.approx(0.8, abs=0.02)
    assert fill("bn.bias", (1000,)).std() == pytest.approx(0.02, rel=0.1)


def test_generated_clips_are_smooth() -> None:
    clip = video(0, (1, 2, 3, 64, 64))
    assert clip.dtype == np.float32
    assert 0.3 < clip.std() < 1.2
    assert np.abs(np.diff(clip)).mean() < 0.25
