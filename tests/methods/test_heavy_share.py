"""What `latency --compile` compiles is nearly all of what each method executes."""

from __future__ import annotations

import pytest

from harness.contract.registry import method_cards
from harness.measure.parts import RESOLUTIONS, built, synthetic_clips
from harness.measure.timing import heavy_share

METHODS = sorted(name for name, card in method_cards().items() if "tiny" in card.sizes and card.variant_of is None)


@pytest.mark.parametrize("method", METHODS)
def test_at_least_nine_tenths_of_the_work_is_compiled(method: str) -> None:
    model = built(method, "tiny", RESOLUTIONS["tiny"], 10, {})
    point = model.operating_points()[0]
    assert heavy_share(model, [synthetic_clips(model, point.settings)], point) >= 0.9
