"""Room: the authors' side of the AdaFocus family, a module per method (named in its CARD).

`from_official` of each reads a released checkpoint, `parity` replays a recorded pair of inputs and outputs. They
import the method, never the other way round. `layout` is the renaming that the files need, `replay` what replays need;
docs/methods/adafocus-checkpoints.md describes the files.
"""
