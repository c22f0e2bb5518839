"""A network of two convolutions in place of the UNet, for tests of what is around a network: its step compiles in a second.

Run as a script it is `jaxdiff` with that network.
"""

import flax.linen as nn
import jax.numpy as jnp

from jaxdiff.app import cli
from jaxdiff.app.build import networks


class SmallUNet(nn.Module):
    """It hears all that it is given, of context vectors their mean."""

    channels: int = 128
    num_classes: int = 0
    context_channels: int = 0

    @nn.compact
    def __call__(self, x, condition, label=None, train=False, *, context=None, spatial=None, augmentation=None, guidance=None):
        seen = x if spatial is None else jnp.concatenate([x, spatial], axis=-1)
        hidden = nn.Conv(self.channels, (3, 3), name="first")(seen)
        for name, number in (("condition", condition / 10), ("augmentation", augmentation), ("guidance", guidance)):
            if number is not None:
                hidden += nn.Dense(self.channels, name=name)(number[:, None])[:, None, None]
        if self.num_classes:
            hidden += nn.Embed(self.num_classes + 1, self.channels, name="label")(label)[:, None, None]
        if self.context_channels:
            hidden += nn.Dense(self.channels, name="context")(context.mean(1))[:, None, None]
        return nn.Conv(x.shape[-1], (3, 3), name="last")(nn.silu(hidden))


if __name__ == "__main__":
    networks.UNet = SmallUNet
    cli.entry()
