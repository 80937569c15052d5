"""Updates of clients that train before they send: unrolled steps, updates that are formed, and a surrogate."""
