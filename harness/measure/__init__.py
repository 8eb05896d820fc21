"""Room: what a trained method gives and what it costs; nothing here trains.

`evaluation` runs it, `metrics` score it, `counter`, `cost_table` and `cross_check` count its work, `latency` times it
on this `machine` (`timing` is what one process does, `launches` joins several), `recording` writes evaluations down;
`predict` does so for one video, `gate` compares two revisions.
Counting and timing never share a process. A new metric is one function in `metrics`.
"""
