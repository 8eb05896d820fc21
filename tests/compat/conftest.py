"""A Runner leaves its default scope and its device behind in the process; other tests must not see them."""

from __future__ import annotations

from collections.abc import Iterator

import mmengine.device.utils as device_utils
import pytest
from mmengine.registry import DefaultScope


@pytest.fixture(autouse=True, scope="module")
def _nothing_left_behind() -> Iterator[None]:
    scopes, device = dict(DefaultScope._instance_dict), device_utils.DEVICE
    yield
    DefaultScope._instance_dict.clear()
    DefaultScope._instance_dict.update(scopes)
    device_utils.DEVICE = device
