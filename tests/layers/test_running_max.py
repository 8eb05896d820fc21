"""The running-max classifier: closed forms, causality, and step by step equals all at once."""

from __future__ import annotations

import pytest
import torch

from harness.layers.running_max import RunningMaxClassifier


def build(**options) -> RunningMaxClassifier:
    torch.manual_seed(0)
    return RunningMaxClassifier(6, 4, 5, **{"hidden": 16, **options}).eval()


def test_without_mlp_it_is_the_maximum_so_far() -> None:
    classifier = build(hidden=0, shared=True)
    x = torch.randn(2, 5, 6)
    expected = torch.stack([classifier.heads[0](x[:, : t + 1].amax(1)) for t in range(5)], dim=1)
    torch.testing.assert_close(classifier(x), expected)


def test_every_step_has_its_own_layer() -> None:
    classifier = build()
    with torch.no_grad():
        for step, head in enumerate(classifier.heads):
            head.weight.zero_()
            head.bias.fill_(float(step))
    assert torch.equal(classifier(torch.randn(2, 5, 6))[..., 0], torch.arange(5.0).expand(2, 5))


@pytest.mark.parametrize("options", [{}, {"hidden": 0, "shared": True}, {"hidden": 0}])
@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_in_chunks_equals_at_once(options: dict, chunk: int) -> None:
    classifier = build(**options)
    x = torch.randn(3, 5, 6)
    peak, parts = None, []
    for start in range(0, 5, chunk):
        peaks = classifier.accumulate(x[:, start : start + chunk], peak)
        parts.append(classifier.classify(peaks, start))
        peak = peaks[:, -1]
    torch.testing.assert_close(torch.cat(parts, dim=1), classifier(x))


def test_later_frames_do_not_change_earlier_steps() -> None:
    classifier = build()
    x = torch.randn(2, 5, 6)
    y = x.clone()
    y[:, 3:] += 5
    assert torch.equal(classifier(x)[:, :3], classifier(y)[:, :3])
    assert not torch.equal(classifier(x)[:, 3:], classifier(y)[:, 3:])


def test_published_size() -> None:
    """26.75 M parameters for MobileNetV2 + ResNet-50 features, 16 steps, 200 classes, as in the authors' files."""
    classifier = RunningMaxClassifier(1280 + 2048, 200, 16)
    mlp = 3328 * 4096 + 4096 + 2 * 4096
    assert sum(p.numel() for p in classifier.parameters()) == mlp + 16 * (4096 * 200 + 200) == 26_754_176


def test_context_stands_behind_the_running_maximum() -> None:
    classifier = build(hidden=0, shared=True, context=2)
    x, context = torch.randn(2, 5, 6), torch.randn(2, 2)
    found = classifier.classify(classifier.accumulate(x), context_BE=context)
    expected = classifier.heads[0](torch.cat((x[:, :3].amax(1), context), dim=1))
    torch.testing.assert_close(found[:, 2], expected)
