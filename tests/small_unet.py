"""A network of two convolutions in place of the UNet, for tests of what is around a network: its step compiles in a second.

Run as a script it is `jaxdiff` with that network.
"""

import flax.linen as nn
import jax.numpy as jnp
from shared_contexts import share_contexts

from jaxdiff.app import cli
from jaxdiff.app.build import networks
from jaxdiff.models import autoencoder
from jaxdiff.models.layers import AddedEmbedding


class SmallUNet(nn.Module):
    """It hears all that a UNet is given, of context vectors their mean; a guidance scale at first not at all, as in a UNet."""

    channels: int = 128
    num_classes: int = 0
    context_channels: int = 0
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self, x, condition, label=None, train=False, *, context=None, spatial=None, augmentation=None, guidance=None, until=None
    ):
        width = 4 * self.channels
        embedding = nn.Dense(width, name="condition")(condition[:, None] / 10)
        if self.num_classes:
            embedding += nn.Embed(self.num_classes + 1, width, name="label")(label)
        if self.context_channels:
            embedding += nn.Dense(width, name="context")(context.mean(1))
        if augmentation is not None:
            embedding += nn.Dense(width, name="augmentation")(augmentation[:, None])
        if guidance is not None:
            embedding += AddedEmbedding(self.channels, name="guidance")(guidance)
        if until is not None:
            embedding += AddedEmbedding(self.channels, name="until")(until)
        seen = x if spatial is None else jnp.concatenate([x, spatial], axis=-1)
        hidden = nn.Conv(width, (3, 3), name="first")(seen) + nn.Dense(width, name="shift")(nn.silu(embedding))[:, None, None]
        return nn.Conv(x.shape[-1], (3, 3), name="last")(nn.Dropout(self.dropout, deterministic=not train)(nn.silu(hidden)))


def small_block(half, x, channels, name, attend=None):
    """A convolution, in place of a residual block of an autoencoder."""
    return half.conv(x, channels, name)


def replace_networks():
    """Small networks in place of a UNet's and an autoencoder's, for good; what else makes a test's process quick, too."""
    share_contexts()
    networks.UNet, autoencoder.Half.block = SmallUNet, small_block


if __name__ == "__main__":
    replace_networks()
    cli.entry()
