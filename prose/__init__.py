"""The linter of prose: `make lint` runs it on help texts, errors, docstrings, report templates and pages."""
