"""The evidence pack of an audit: a decision sheet and its annex, and the files that others' checkers read."""
