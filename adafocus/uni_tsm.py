"""Uni-AdaFocus on TSM (2024): one box per video and the frames that matter, for data sets where order matters.

    bench.py run --methods uni-adafocus-tsm,adafocus-v2-tsm,tsm --datasets glyphs-motion

The method itself stands in `adafocus.uni_clip`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from adafocus.clip_nets import TwoHeadNet
from adafocus.settings import FULL_SIZE, Networks
from adafocus.uni_clip import UniClip
from harness.contract.declarations import Stage
from harness.contract.groups import Dropout

from mmaction.registry import MODELS

CARD = {
    "name": "uni-adafocus-tsm",
    "class": "UniAdaFocusTSM",
    "title": "Uni-AdaFocus on TSM",
    "paper": "Uni-AdaFocus: Spatial-temporal Dynamic Computation for Video Recognition (arXiv 2412.11228)",
    "year": 2024,
    "adapts": ["space", "time", "sample"],
    "fidelity": "A",
    "source": "https://github.com/LeapLabTHU/Uni-AdaFocus",
    "authors": "adafocus.authors.uni_tsm",
    "summary": "Networks with temporal shift; one box of any size per video in the frames that matter; an early exit",
    "version": 3,
    "sizes": ["tiny", "paper"],
    "knobs": {"patch_size": "train", "exit": "test"},
    "settings": {},
}


@MODELS.register_module()
class UniAdaFocusTSM(UniClip):
    """Uni-AdaFocus on temporally shifted networks.

    Args:
        num_classes: C.
        networks: See Networks.
        dropout: Before the heads; the temporal policy sees the features behind it, as in the code.

    Source: docs/methods/uni-adafocus.md#on-tsm.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        networks: Networks = Networks(),
        dropout: Dropout = 0.5,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, networks=networks, **kwargs)
        self._assemble(*(TwoHeadNet(n, num_classes, dropout=dropout) for n in (networks.glance, networks.focus)))

    def _cells(self, exact: float) -> int:
        return max(1, int(exact))

    @classmethod
    def settings_for(cls, size: str, resolution: int) -> dict[str, Any]:
        if size == "paper":
            return {"patch_size": 128, **FULL_SIZE}
        return cls._tiny_settings(resolution)

    def recipe(self, size: str) -> Sequence[Stage]:
        if size != "paper":
            return self._tiny_recipe(epochs=12)
        groups = self._groups(policies=0.2, glance=0.5)
        return [
            Stage(
                "main",
                epochs=50,
                batch_size=64,
                lr=0.02,
                weight_decay=1e-3,
                clip_grad=20.0,
                groups=groups,
                init=self._init(),
            )
        ]
