"""Room: doing planned work, killable at any moment and never twice.

`execution` is `run` as a script would call it, `scheduler` starts the `jobs` (a process each), `training` trains one
stage with mmengine's Runner, `optimization` is its optimizer and schedule, `stills` the pre-training's network and
pictures; `timing_session` launches processes that time (`timing_worker`). Nothing half-done counts: an artifact exists
once it is whole.
"""
