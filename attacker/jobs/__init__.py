"""Jobs: pieces of work for this process, others here or a Ray cluster, and what is finished of them on the disk.

Audits and experiments say what a job does, by the dotted name of a `Work`, and how its results become a file. Nothing
here knows attacks, tapes or records, and nothing is pickled: text goes to workers, files come out.
"""
