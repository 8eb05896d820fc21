"""Room: from what is asked for to the work that it takes, before any of it is done.

`request` is what was typed, `suites`, `recipes`, `protocol` and `overrides` are what it refers to, `planner` resolves
it into the keyed `units` of work, `timing` a finished evaluation into what is timed, `building` makes recognizers out
of names and settings. A key here is a promise that equal keys give equal results: what a result depends on goes into
its unit.
"""
