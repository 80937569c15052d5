"""Whose reply it is: Flower's SuperLink answers for a node that it has lost, in its own name."""

from __future__ import annotations

from collections.abc import Iterable

from flwr.app import Message


class Senders:
    """Remembers to whom a round's messages went.

    An error reply for a node that died carries the SuperLink's id as its source; the message that it answers tells the
    node.
    """

    def __init__(self) -> None:
        self._messages: list[Message] = []

    def remember(self, messages: Iterable[Message]) -> list[Message]:
        """The messages as a list; their ids are set later, when they are pushed."""
        self._messages = list(messages)
        return self._messages

    def node_of(self, reply: Message) -> str:
        """The node that was asked; the source that the reply names when the message is not known."""
        asked = {one.metadata.message_id: one.metadata.dst_node_id for one in self._messages if one.metadata.message_id}
        return str(asked.get(reply.metadata.reply_to_message_id, reply.metadata.src_node_id))
