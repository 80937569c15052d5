"""The audit record: everything that a report says, as versioned JSON, and how it is counted."""
