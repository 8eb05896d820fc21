"""Room: videos, from files and lists to clips; knows no method.

`cards` says what is known of a data set, `lists` reads its lists, `videos` opens it, `check` finds broken files,
`identity` says what a file holds, `decode` reads frames, `sampling` chooses them, `transforms` resizes and crops,
`clips` is the torch dataset. `glyphs`, `render` and `encode` make the embedded sets. What a record's fingerprint covers
is decided in `videos`.
"""
