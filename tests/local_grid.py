"""Flower's Grid in one process: real messages, a real ClientApp, no sockets and no Ray."""

from __future__ import annotations

import copy
import uuid
from collections.abc import Iterable

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

FIRST_NODE = 7_000_000_000_000_000_000
"""Node ids are large random numbers in Flower; these are large, too."""


class LocalGrid(Grid):
    """Delivers each message to the client app at once and keeps the reply."""

    def __init__(self, client_app: ClientApp, nodes: int, run_config: dict[str, object]) -> None:
        # flwr 1.41 builds a Message only inside a task.
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1
        self.client_app = client_app
        self.contexts = {
            FIRST_NODE + i: Context(
                run_id=1,
                node_id=FIRST_NODE + i,
                node_config={"partition-id": i, "num-partitions": nodes},
                state=RecordDict(),
                run_config=dict(run_config),
            )
            for i in range(nodes)
        }
        self.replies: dict[str, Message] = {}

    def set_run(self, run):
        raise NotImplementedError

    @property
    def run(self):
        return Run.create_empty(run_id=1)

    def create_message(self, content, message_type, dst_node_id, group_id, ttl=None):
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        return list(self.contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = identity = str(uuid.uuid4())
            ids.append(identity)
            try:
                reply = self.client_app(copy.deepcopy(message), self.contexts[message.metadata.dst_node_id])
            except Exception as error:
                # What Flower's simulation engine makes of a client that raises.
                reply = Message(Error(code=2, reason=f"{type(error).__name__}: {error}"), reply_to=message)
            reply.metadata.__dict__["_src_node_id"] = message.metadata.dst_node_id
            reply.metadata.__dict__["_message_id"] = str(uuid.uuid4())
            self.replies[identity] = reply
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self.replies.pop(i) for i in message_ids if i in self.replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        return self.pull_messages(self.push_messages(messages))
