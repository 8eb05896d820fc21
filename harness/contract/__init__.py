"""Room: what a method and the harness promise each other. A new method needs nothing else but layers.

`declarations` holds what a method says of itself (clips, stages, points, card), `recognizer` the class it derives
from, `groups` its settings, `trace` what its forward reports, `exits` when videos may leave; `registry` finds methods,
`names` reads `method[setting=value]`, `values` turns settings into plain values and keys. A change here changes every
method: touch it last, and raise versions where results change.
"""
