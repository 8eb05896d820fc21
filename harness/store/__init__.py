"""Room: what lasts on the disk. Files that are whole or not there, artifacts, records, the hash of their sources.

`work_dir` knows where things lie and who holds the folder, `files` how they are written, `artifacts` and `records`
what is in them, `shapes` what readers hold them against, `sources` which code and surroundings made them. Records have
a schema with a version: add keys, never change the meaning of one. Reports read this room; nothing in it loads torch.
"""
