"""Latency of every method's `infer` (tiny, one video, one thread) against this machine's baseline."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from harness.contract.registry import method_cards
from harness.measure.gate import ALPHA, CASES_PER_METHOD, GateResult, line, stored
from harness.measure.gate_worker import Case, cases

METHODS = sorted(method_cards())
BLOCKS, FORWARDS, WARMUP = 12, 4, 5
"""A sample is the median of one block of forwards: single ones are too noisy and not independent."""


@cache
def cases_of(method: str) -> dict[str, Case]:
    torch.set_num_threads(1)
    return {case.name: case for case in cases(method)}


@pytest.mark.parametrize("part", ["", ":exit"], ids=["full", "exit"])
@pytest.mark.parametrize("method", METHODS)
def test_latency(method, part, benchmark, storing, baselines, results):
    case = cases_of(method).get(method + part)
    if case is None:
        pytest.skip(f"{method} has no exits")
    benchmark.pedantic(case.run, rounds=BLOCKS * FORWARDS, warmup_rounds=WARMUP)
    samples = np.median(np.reshape(benchmark.stats.stats.data, (BLOCKS, FORWARDS)), axis=1).tolist()
    if storing:
        results.append(GateResult(case.name, (), tuple(samples), None, f"{1e3 * np.median(samples):.2f} ms"))
        return
    result = stored(case.name, samples, baselines, alpha=ALPHA / (CASES_PER_METHOD * len(METHODS)))
    results.append(result)
    if result.verdict is not None and result.verdict.broken:
        pytest.fail(f"{line(result)}\nsee whether it stays: bench.py gate --against REV --methods {method}")
