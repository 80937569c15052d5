"""Client mods: defences, and canaries for an audit, for Flower apps whose training code stays as it is."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Literal

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Context, Message
from flwr.clientapp.typing import ClientAppCallable, Mod
from torch import Generator, Tensor

from fl_precode.defences.registry import DefenceChain, changes_model, gradient_defence, perturbation_generator
from fl_precode.flower.recorder import looks_like_buffer
from fl_precode.flower.reply_filters import filter_reply
from fl_precode.observation import Gradients
from fl_precode.privacy.canaries import Canaries, Inserted, included


def gradient_defence_mod(
    spec: str,
    *,
    kind: Literal["weights", "gradient"] = "weights",
    buffers: Collection[str] | None = None,
    seed: int | None = None,
) -> Mod:
    """A mod that defends what a client sends: ``@app.train(mods=[gradient_defence_mod("noise:std=0.01")])``.

    The reply keeps its names, shapes and dtypes. Evaluation, errors, metrics and buffers pass as they are. Put it last
    in the list, so that no other mod sees (or clips) the noise; mods of a list run from the outside in.

    Args:
        spec: Defences that need neither model nor images: noise, laplace, prune, clip, quantise, sign, local-dp,
            central-dp, percentile, svt, joined by +. The last four change buffers and counters too, as the originals
            do.
        kind: What the app's clients reply: trained ``weights``, of which the update (trained minus received) is
            defended, or a ``gradient`` under the names of the parameters.
        buffers: Names of the arrays that are no parameters; by default those that the names of normalisation layers and
            integer types give away.
        seed: Makes the noise repeatable, for tests: whoever knows it can take the noise away. None draws
            from the operating system.

    Raises:
        ValueError: If the spec is wrong, changes the model, or needs model and images.
    """
    if kind not in ("weights", "gradient"):
        raise ValueError(f"expected kind to be 'weights' or 'gradient', got {kind!r}")
    chain = _message_defence(spec)

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        if message.metadata.message_type.partition(".")[0] != "train":
            return call_next(message, context)
        # Copied at once: the app may train in place on what it received.
        received = _arrays(message, "message") if kind == "weights" else {}
        generator = _generator(seed, message, context)
        reply = call_next(message, context)
        if reply.has_error():
            return reply
        if received and chain.filters_reply:
            filter_reply(message, reply, received, chain, generator, buffers)
        else:
            _change(reply, received, lambda update: chain(update, generator=generator), buffers)
        return reply

    return mod


def canary_mod(
    canaries: str,
    *,
    secret: str,
    kind: Literal["weights", "gradient"] = "weights",
    buffers: Collection[str] | None = None,
) -> Mod:
    """A mod that puts known gradients into what a client sends, each with probability 1/2, for an audit to look for.

    Put it last in the list, behind the mods that defend, so that their clip and noise meet the canaries as they meet
    the update: ``mods=[LocalDpMod(...), canary_mod("count=1000,norm=1", secret=...)]``. Mods of a list run from the
    outside in. Give the Interceptor the same text. Canaries disturb the training: use them in a run that is made to
    be audited.

    Args:
        canaries: ``count=1000,norm=1,seed=0,round=0``, as in `fl_precode.privacy.canaries.Canaries`.
        secret: Secret of at least 16 characters, the same at all clients, for the evaluation alone: it says which
            canaries are in. No server and no tape may have it.
        kind: As of `gradient_defence_mod`.
        buffers: As of `gradient_defence_mod`.

    Raises:
        ValueError: If there is no canary, an option does not exist, they are images, or the secret is too short.
    """
    if kind not in ("weights", "gradient"):
        raise ValueError(f"expected kind to be 'weights' or 'gradient', got {kind!r}")
    known = Canaries.parse(canaries)
    if known.kind != "gradients":
        raise ValueError(
            "a mod sees messages and no images: put canary images among the client's own "
            "(fl_precode.privacy.canary_images.with_canary_images), or take as=gradients"
        )
    included(secret, "", 0, known.count)  # refuses a secret that is too short, before anything is trained

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        if message.metadata.message_type.partition(".")[0] != "train":
            return call_next(message, context)
        number = _round_of(message)
        if number is None:
            raise ValueError("canaries need 'server-round' in the message's config, to be others in every round")
        received = _arrays(message, "message") if kind == "weights" else {}
        reply = call_next(message, context)
        if not reply.has_error() and known.enter(number):
            node = str(message.metadata.dst_node_id or context.node_id)
            inside = included(secret, node, number, known.count)
            inserted = Inserted(canaries=known.of(node, number), inside=inside)
            _change(reply, received, inserted.added_to, buffers)
        return reply

    return mod


def _round_of(message: Message) -> int | None:
    rounds = [record["server-round"] for record in message.content.config_records.values() if "server-round" in record]
    return int(str(rounds[0])) if rounds else None


def _message_defence(spec: str) -> DefenceChain:
    chain = gradient_defence(spec)
    if chain is None or changes_model(spec):
        raise ValueError(
            f"{spec!r} is a defence of the model, at least in part, which a mod cannot change; call "
            "fl_precode.extend(...) in the app's code, and name the defences of gradients here"
        )
    if any(part.needs_batch for part in chain.parts):
        raise ValueError(
            f"{spec!r} looks at the model and the images, and a mod sees messages only; call "
            "fl_precode.defences.gradient_defence(...) in the training function"
        )
    return chain


def _arrays(message: Message, words: str) -> dict[str, np.ndarray]:
    records = list(message.content.array_records.values())
    if len(records) != 1:
        raise ValueError(f"expected one ArrayRecord in the {words}, got {len(records)}; the defence must know which")
    return {name: array.numpy().copy() for name, array in records[0].items()}


def _generator(seed: int | None, message: Message, context: Context) -> Generator | None:
    if seed is None:
        return None
    number = _round_of(message)
    if number is None:
        raise ValueError(
            "a seeded defence needs 'server-round' in the message's config, or it would repeat its noise in every "
            "round, and the difference of two rounds would be free of it; leave seed out"
        )
    client = context.node_config.get("partition-id", context.node_id)
    return perturbation_generator(seed, str(client), str(number))


def _change(
    reply: Message,
    received: Mapping[str, np.ndarray],
    change_of: Callable[[Gradients], Mapping[str, Tensor]],
    buffers: Collection[str] | None,
) -> None:
    """Put what is made of the update in its place; names, types and buffers stay."""
    arrays = _arrays(reply, "reply")
    absent = sorted(arrays.keys() ^ received.keys()) if received else []
    if absent:
        raise ValueError(
            f"expected the reply's arrays to have the names that were received, to form the update; these are on one "
            f'side only: {absent[:4]}. If the clients send gradients, say kind="gradient"'
        )
    update: dict[str, Tensor] = {}
    for name, value in arrays.items():
        is_buffer = looks_like_buffer(name, value) if buffers is None else name in buffers
        if not is_buffer:
            # Arithmetic on 0-d arrays leaves NumPy scalars.
            update[name] = torch.from_numpy(np.asarray(value - received[name] if received else value))
    for name, change in change_of(update).items():
        value = change.numpy() + received[name] if received else change.numpy()
        arrays[name] = np.asarray(value, dtype=arrays[name].dtype)
    key = next(iter(reply.content.array_records))
    reply.content[key] = ArrayRecord({name: Array(value) for name, value in arrays.items()})
