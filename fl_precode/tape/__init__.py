"""The tape: one append-only folder with every update that a server received, and what it had sent.

Layout::

    tape.json                                  header: public knowledge about the federation
    manifest.jsonl                             one JSON object a line: round, observation, failure or sampling
    parameters/round-0001.safetensors          what the server sent, once a round
    observations/round-0001-node-7.safetensors what a client replied

Tensor files are written under a temporary name, flushed and renamed, then listed in the manifest with their SHA-256. A
reader can therefore follow while the tape is written. Files are 0600, folders 0700, and nothing is ever unpickled.
"""

from fl_precode.tape.format import TapeEntry, TapeError, TapeFailure, TapeHeader
from fl_precode.tape.reader import Tape
from fl_precode.tape.writer import TapeWriter

__all__ = ["Tape", "TapeEntry", "TapeError", "TapeFailure", "TapeHeader", "TapeWriter"]
