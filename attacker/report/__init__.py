"""Report: one self-contained page from an audit record, and nothing but the record."""
