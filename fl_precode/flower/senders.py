"""Sender of a reply: Flower's SuperLink answers for a node that it has lost, in its own name."""

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
        self._by_id: dict[str, Message] = {}

    def remember(self, messages: Iterable[Message]) -> list[Message]:
        """The messages as a list; their ids are set later, when they are pushed."""
        self._messages, self._by_id = list(messages), {}
        return self._messages

    def answered_by(self, reply: Message) -> Message | None:
        """The message that a reply answers, when it is one of these."""
        wanted = reply.metadata.reply_to_message_id
        if len(self._by_id) < len(self._messages):  # with thousands of clients a search for each would take minutes
            self._by_id = {one.metadata.message_id: one for one in self._messages if one.metadata.message_id}
        return self._by_id.get(wanted)

    def node_of(self, reply: Message) -> str:
        """The node that was asked; the source that the reply names when the message is not known."""
        message = self.answered_by(reply)
        return str(reply.metadata.src_node_id if message is None else message.metadata.dst_node_id)
