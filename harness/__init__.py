"""Everything that knows no method: contract, data, protocol, training, evaluation, cost, records.

Kept empty on purpose: `bench.py --help`, `list` and `reports` import parts of it without torch.
"""
