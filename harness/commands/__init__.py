"""Room: what the commands of `bench.py` do, a module each: read what was typed, call, print, return the exit status.

`options` holds the options that several commands share, `arguments` turns typed text into values, `display` is
what a run shows while it works. Nothing is computed here that a script could want: that stands in the rooms below.
Nobody imports this room but `bench.py`.
"""
