"""Defences that change the model, as settings that know how to apply themselves."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from fl_precode.defences.cvb import check_kernel
from fl_precode.defences.extend import extend, extend_conv, extend_dropout
from fl_precode.defences.forward_trace import equal_copy
from fl_precode.defences.precode import check_settings


class ModelDefence(ABC):
    """Makes the defended copy of a model."""

    @abstractmethod
    def __call__(self, model: nn.Module, example: Tensor) -> nn.Module:
        """Return a defended copy; ``example`` is a batch as in training.

        Raises:
            ValueError: If the model cannot carry the defence.
        """


def _places(before: str | None) -> str | Sequence[str] | None:
    """``a|b`` names several."""
    return before.split("|") if before is not None and "|" in before else before


@dataclass(frozen=True, kw_only=True)
class Undefended(ModelDefence):
    """The model as it is."""

    def __call__(self, model: nn.Module, example: Tensor) -> nn.Module:
        """Return an equal copy."""
        return equal_copy(model)


@dataclass(frozen=True, kw_only=True)
class Precode(ModelDefence):
    """PRECODE; see `fl_precode.extend`.

    Attributes:
        latent: Length of the latent vector.
        beta: Per nat.
        before: Dotted name of a module, or several with ``|`` between them; None for the last Linear layer.
    """

    latent: int = 256
    beta: float = 1e-3
    before: str | None = None

    def __post_init__(self) -> None:
        check_settings(self.latent, self.beta)

    def __call__(self, model: nn.Module, example: Tensor) -> nn.Module:
        """See `ModelDefence`."""
        return extend(model, example, latent=self.latent, beta=self.beta, before=_places(self.before))


@dataclass(frozen=True, kw_only=True)
class PrecodeReference(ModelDefence):
    """PRECODE in the units of the authors' code."""

    before: str | None = None

    def __call__(self, model: nn.Module, example: Tensor) -> nn.Module:
        """See `ModelDefence`."""
        return extend(model, example, preset="precode-reference", before=_places(self.before))


@dataclass(frozen=True, kw_only=True)
class Cvb(ModelDefence):
    """The convolutional variational bottleneck; see `fl_precode.extend_conv`.

    Attributes:
        latent: Latent channels; None for half of those that enter, 8 when fewer than 8 enter.
        kernel: Side of the encoder's kernel, odd.
        beta: Per nat and position.
        before: As for `Precode`; None for the second convolution.
    """

    latent: int | None = None
    kernel: int = 5
    beta: float = 0.1
    before: str | None = None
    reference_kl: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_settings(1 if self.latent is None else self.latent, self.beta)
        check_kernel(self.kernel)

    def __call__(self, model: nn.Module, example: Tensor) -> nn.Module:
        """See `ModelDefence`."""
        return extend_conv(
            model,
            example,
            latent=self.latent,
            kernel=self.kernel,
            beta=self.beta,
            before=_places(self.before),
            reference_kl=self.reference_kl,
        )


@dataclass(frozen=True, kw_only=True)
class CvbReference(Cvb):
    """The same with the KL term of the authors' code."""

    reference_kl: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class Dropout(ModelDefence):
    """Dropout before the classifier; see `fl_precode.extend_dropout`.

    Attributes:
        p: Share of the features set to zero.
        before: As for `Precode`.
    """

    p: float = 0.5
    before: str | None = None

    def __post_init__(self) -> None:
        if not 0 < self.p < 1:
            raise ValueError(f"expected a dropout p between 0 and 1, exclusively, got {self.p}")

    def __call__(self, model: nn.Module, example: Tensor) -> nn.Module:
        """See `ModelDefence`."""
        return extend_dropout(model, example, p=self.p, before=_places(self.before))
