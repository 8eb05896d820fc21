"""Room: what lasts on the disk. Files that are whole or not there, artifacts, records, the hash of their sources.

`work_dir` knows where things lie and who holds the folder, `files` how they are written, `artifacts` and `records`
what is in them, `sources` which code made them. Records have a schema with a version: add keys, never change the
meaning of one. Reports read this room; nothing here imports torch.
"""
