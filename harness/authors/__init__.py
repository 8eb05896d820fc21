"""Room: holding this project against the papers and their authors' code.

`official` reads released checkpoints, `parity` replays recorded inputs and outputs, `published` holds the printed
figures (`figures/*.csv`, package data), `paper_costs` counts beside them. Which tensors go where is a method's matter
and stands beside it (`adafocus/authors`); here is only what all of them need.
"""
