"""The true images behind updates, wherever they are known from. For evaluation only: no attack ever sees them."""
