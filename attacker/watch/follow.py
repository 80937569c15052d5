"""Follows a tape while it is written and attacks the newest updates with something cheap. It only ever reads."""

from __future__ import annotations

import base64
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from attacker.attacks.attack import Attack, Outcome, Reconstruction
from attacker.attacks.registry import build_attack
from attacker.audit.counting import beats
from attacker.audit.evaluate import SUCCESS_THRESHOLD, as_images, in_order, scored
from attacker.audit.files import png_bytes
from attacker.audit.image_scale import estimate_scale
from attacker.audit.subject import Subject, TapeSource, open_subject
from attacker.audit.truth_open import truth_path
from attacker.watch.events import Event
from fl_precode.tape import Tape, TapeEntry, TapeError

CHEAP: Final = ("first-layer", "inverting-gradients:iterations=200,restarts=1")
"""Tried in turn until one fits."""

_MOST_IMAGES = 8
_MOST_KEPT = 500
_PROGRESS_SECONDS = 0.5
_UNKNOWN: Final = {"ssim": None, "guess": None, "back": None, "of": None, "truth": None}
"""What a result says of similarity where the truth is not known."""

Tell = Callable[[Event], None]


@dataclass(frozen=True, kw_only=True)
class _Kept:
    """Reconstructions of one update, (n, channels, height, width) in [0, 1], for when the truth becomes known."""

    id: int
    entry: TapeEntry
    images: Tensor


@dataclass(kw_only=True)
class Follower:
    """Attacks what arrives on a tape, the newest update first, so that it keeps up with any federation.

    Attributes:
        source: The tape, which need not exist yet.
        attacks: Specs, tried in turn until one fits the update.
        seed: Of the attacks.
        tell: Receives events (`attacker.watch.events`).
    """

    source: TapeSource
    tell: Tell
    attacks: Sequence[str] = CHEAP
    seed: int = 0
    _built: dict[str, Attack] = field(init=False)
    _done: set[TapeEntry] = field(init=False, default_factory=set)
    _kept: list[_Kept] = field(init=False, default_factory=list)
    _told: list[Event] = field(init=False, default_factory=list)
    _subject: Subject | None = field(init=False, default=None)
    _truth_stamp: float | None = field(init=False, default=None)
    _numbers: Iterator[int] = field(init=False, default_factory=itertools.count)

    def __post_init__(self) -> None:
        self._built = {spec: build_attack(spec) for spec in self.attacks}

    def step(self) -> bool:
        """Look at the tape once and attack at most one update; whether there was one."""
        subject = self._open()
        if subject is None:
            return False
        subject.tape.refresh()
        subject = self._look_for_truth(subject)
        left = [entry for entry in subject.tape.entries if entry not in self._done]
        self._tell_once(
            {
                "kind": "seen",
                "rounds": max((entry.round for entry in subject.tape.entries), default=0),
                "updates": len(subject.tape.entries),
                "left": len(left),
                "failures": len(subject.tape.failures),
            }
        )
        for problem in subject.tape.problems:
            self._tell_once({"kind": "problem", "text": problem})
        if not left:
            return False
        self._done.add(left[-1])
        self._attack(subject, left[-1])
        return True

    def _open(self) -> Subject | None:
        if self._subject is not None:
            return self._subject
        try:
            Tape(self.source.tape)
        except TapeError as error:
            # The federation may not have started; one that never does shows the reason.
            self._tell_once({"kind": "waiting", "why": str(error)})
            return None
        self._subject = self._opened()
        return self._subject

    def _opened(self) -> Subject:
        """The tape with whatever truth there is; a wrong evaluation file costs the similarity, not the page."""
        self._truth_stamp = self._stamp()
        try:
            subject = open_subject(self.source)
        except (ValueError, OSError, RuntimeError) as error:
            subject = open_subject(TapeSource(**{**vars(self.source), "truth": False}))
            self._tell_once({"kind": "problem", "text": f"The true images are not known: {error}"})
        self._tell_once(
            {
                "kind": "federation",
                "model": subject.victim.name,
                "defence": subject.defence,
                "truth": subject.truth_note,
            }
        )
        return subject

    def _stamp(self) -> float | None:
        """When the evaluation file or the recorded truth last changed; None without one."""
        path = truth_path(self.source.tape, self.source.truth, self.source.evaluation)
        try:
            return None if path is None else path.stat().st_mtime
        except OSError:
            return None

    def _look_for_truth(self, subject: Subject) -> Subject:
        """Read the evaluation file again when it has changed: nodes appear in it round by round."""
        if not self.source.truth or self._stamp() in (None, self._truth_stamp):
            return subject
        self._subject = subject = self._opened()
        later = {one.id: self._score(subject, one.entry, one.images) for one in self._kept}
        found = {number: score for number, score in later.items() if score["truth"] is not None}
        self._kept = [one for one in self._kept if one.id not in found]
        if found:
            self.tell({"kind": "scores", "found": found})
        return subject

    def _attack(self, subject: Subject, entry: TapeEntry) -> None:
        try:
            observation = subject.tape.load(entry)
        except TapeError as error:
            self._tell_once({"kind": "problem", "text": str(error)})
            return
        place: Event = {"round": entry.round, "node": entry.node}
        reason, done, spec = "no attack was named", None, ""
        for spec, attack in self._built.items():
            tell = self._progress({"kind": "attack", **place, "attack": spec})
            generator = torch.Generator().manual_seed(self.seed)
            try:
                (done,) = attack(subject.victim, [observation], generator=generator, progress=tell)
            except Exception as error:
                # A watch goes on whatever an attack does; the page names it.
                reason, done = f"{spec} failed: {type(error).__name__}: {error}", None
                continue
            if done.inputs is not None:
                break
            reason = done.reason
        self._report(subject, entry, spec, done, reason)

    def _progress(self, event: Event) -> Callable[[float, float | None], None]:
        last = -_PROGRESS_SECONDS

        def tell(done: float, _best: float | None) -> None:
            nonlocal last
            if time.monotonic() - last >= _PROGRESS_SECONDS:
                last = time.monotonic()
                self.tell({**event, "done": done})

        tell(0.0, None)
        return tell

    def _report(self, subject: Subject, entry: TapeEntry, spec: str, done: Reconstruction | None, reason: str) -> None:
        scale = estimate_scale(subject.victim.inputs, [] if done is None else [done])
        images = None if done is None else as_images(done, scale.inputs)
        number = next(self._numbers)
        event: Event = {"kind": "result", "id": number, "round": entry.round, "node": entry.node, "attack": spec}
        event |= {"seconds": 0.0 if done is None else done.seconds, "reason": reason if images is None else ""}
        score: Event = dict(_UNKNOWN)
        if images is not None:
            score = self._score(subject, entry, images)
            if score["truth"] is None:
                self._kept = [*self._kept, _Kept(id=number, entry=entry, images=images)][-_MOST_KEPT:]
        self.tell({**event, "image": picture(images), **score})

    def _score(self, subject: Subject, entry: TapeEntry, images: Tensor) -> Event:
        """What a result's event says of similarity to the truth; None where it is not known."""
        try:
            found = None if subject.truth is None or not subject.truth.knows(entry) else subject.truth.truth(entry)
        except ValueError as error:
            self._tell_once({"kind": "problem", "text": f"The truth of {entry.file} is not used: {error}"})
            found = None
        if found is None or subject.truth is None:
            return dict(_UNKNOWN)
        truth = found.images
        if images.shape != truth.shape:
            return {**_UNKNOWN, "truth": picture(truth)}
        values = [one.ssim for one in scored(in_order(images, truth), truth, Outcome.ITERATION_LIMIT)]
        guesses = [None if one is None else one.ssim for one in subject.truth.guesses.at(truth, found.labels)]
        back = [
            guess is not None and ssim is not None and beats(ssim, guess, SUCCESS_THRESHOLD)
            for ssim, guess in zip(values, guesses, strict=True)
        ]
        return {
            "ssim": _mean(values),
            "guess": _mean(guesses),
            "back": sum(back),
            "of": len(back),
            "truth": picture(truth),
        }

    def _tell_once(self, event: Event) -> None:
        """Tell what was not told before, or has changed since."""
        same = [one for one in self._told if one["kind"] == event["kind"]]
        if event["kind"] == "problem":
            if event in same:
                return
        elif same and same[-1] == event:
            return
        self._told.append(event)
        self.tell(event)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def picture(images: Tensor | None) -> str | None:
    """Up to eight images side by side as a PNG data URI; None without one."""
    if images is None:
        return None
    strip = torch.cat(list(images[:_MOST_IMAGES]), dim=2)
    return f"data:image/png;base64,{base64.b64encode(png_bytes(strip)).decode()}"


def follow(tape: Path, tell: Tell, *, attacks: Sequence[str] = CHEAP, seed: int = 0, every: float = 1.0) -> None:
    """Follow a tape for ever; see `Follower`.

    Args:
        tape: Folder of the tape, now or later.
        tell: Receives events; when it raises, following ends.
        attacks: Specs, tried in turn.
        seed: Of the attacks.
        every: Seconds between looks at a tape that has nothing new.
    """
    follower = Follower(source=TapeSource(tape=tape), tell=tell, attacks=attacks, seed=seed)
    while True:
        if not follower.step():
            # A reader that is gone is noticed here, also while nothing happens.
            tell({})
            time.sleep(every)
