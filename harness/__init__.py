"""Everything that knows no method, in rooms that follow the way of the data (docs/rooms.md). Imports nothing.

    commands -> authors -> work -> measure -> plan -> data, layers -> store -> contract -> compat -> errors

Arrows run one way, to the right; a room imports only rooms behind it (import-linter, `pyproject.toml`).
"""
