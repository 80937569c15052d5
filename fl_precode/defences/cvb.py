"""The convolutional variational bottleneck (CVB), for the front of a network.

Scheliga, Mäder, Seeland: Privacy Preserving Federated Learning with Convolutional Variational Bottlenecks
(arXiv 2309.04515).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from fl_precode.defences.precode import check_settings, kl_to_standard_normal
from fl_precode.randomness.random_layers import Bottleneck

# The paper's bound on what enters softplus: sigma stays between 0.0067 and 5.0067.
_STAT_BOUND = 5.0


def default_latent(channels: int) -> int:
    """Number of latent channels by that of channels: half of them, 8 for fewer than 8.

    >>> default_latent(64), default_latent(9), default_latent(3)
    (32, 4, 8)
    """
    return channels // 2 if channels >= 8 else 8


class ConvBottleneck(Bottleneck):
    """CVB: encode feature maps to a Gaussian by a convolution, sample, decode by a 1x1 convolution.

    ``mu, s = encoder(h)``, ``sigma = softplus(clip(s, -5, 5))``, ``z = mu + eps * sigma``, ``out = decoder(z)`` in the
    shape of h; neither convolution has a bias. eps ~ N(0, I) is fresh at every forward pass, in evaluation mode too.

    The KL of an image is that of all its latents, N(mu, sigma²) to N(0, I), in nats: the sum over channels *and*
    positions, because the latents are independent given the image. Its weight in the loss is beta for each nat *per
    position*, ``beta * KL / (height * width)``, so that a beta suits images of every size; this is the scale on which
    the paper's values (0.1 for CNN and ViT, 5e-5 for ResNet18) stand.

    Args:
        channels: Channels that enter and leave.
        latent: Channels K of z; half of ``channels`` by default, 8 when there are fewer than 8.
        kernel: Side of the encoder's kernel, odd.
        beta: Weight of the KL term in the loss, per nat and position.
        reference_kl: Weigh the term that the authors' code adds in place of the KL: it takes sigma for a log-variance,
            ``-0.5 * (1 + sigma - mu² - exp(sigma))``, at odds with its own sampling. It pushes sigma to 0, that is, to
            less noise. `track_kl` reports the true nats all the same.

    Raises:
        ValueError: If a size is not positive, the kernel even, or beta negative or not finite.

    >>> sum(p.numel() for p in ConvBottleneck(12).parameters())
    3672
    """

    def __init__(
        self,
        channels: int,
        latent: int | None = None,
        kernel: int = 5,
        beta: float = 0.1,
        *,
        reference_kl: bool = False,
    ) -> None:
        super().__init__()
        if channels < 1:
            raise ValueError(f"expected positive channels, got {channels}")
        check_settings(1 if latent is None else latent, beta)
        check_kernel(kernel)
        self.channels = channels
        self.latent = default_latent(channels) if latent is None else latent
        self.kernel = kernel
        self.beta = beta
        self.reference_kl = reference_kl
        self.encoder = nn.Conv2d(channels, 2 * self.latent, kernel, padding=kernel // 2, bias=False)
        self.decoder = nn.Conv2d(self.latent, channels, 1, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """Pass ``hidden``, (batch, channels, height, width), through the bottleneck; same shape.

        Raises:
            ValueError: If it has another form.
        """
        if hidden.dim() != 4 or hidden.shape[1] != self.channels:
            raise ValueError(
                f"expected (batch, {self.channels}, height, width) before the convolutional bottleneck, "
                f"got {tuple(hidden.shape)}"
            )
        mu, stat = self.encoder(hidden).split(self.latent, dim=1)  # (batch, latent, height, width) each
        stat = stat.clamp(-_STAT_BOUND, _STAT_BOUND)
        kl = kl_to_standard_normal(mu, stat)
        weighed = _with_sigma_as_log_variance(mu, stat) if self.reference_kl else kl
        self.record(kl, self.beta * weighed / math.prod(hidden.shape[2:]))
        out: Tensor = self.decoder(mu + self.noise(mu) * F.softplus(stat))
        return out

    def latent_shape(self, hidden: Sequence[int]) -> tuple[int, ...]:
        """(latent, height, width) when (channels, height, width) enters."""
        return (self.latent, *hidden[1:])

    def extra_repr(self) -> str:
        """Settings in the module's printed form."""
        form = ", reference_kl=True" if self.reference_kl else ""
        return f"channels={self.channels}, latent={self.latent}, beta={self.beta}{form}"


def check_kernel(kernel: int) -> None:
    """Refuse kernels that cannot keep the size of a feature map.

    Raises:
        ValueError: If the side is not positive and odd.
    """
    if kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"expected an odd, positive kernel, which keeps the maps' size, got {kernel}")


def _with_sigma_as_log_variance(mu: Tensor, stat: Tensor) -> Tensor:
    """What the reference adds to its loss, for each image: (batch, ...) twice to (batch,)."""
    sigma = F.softplus(stat)
    return -0.5 * (1 + sigma - mu.square() - sigma.exp()).flatten(1).sum(dim=1)
