"""The federations of an audit: tapes, their undefended controls, and the updates that are attacked."""
