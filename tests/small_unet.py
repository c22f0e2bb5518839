"""A network of two convolutions in place of the UNet, for tests of what is around a network: its step compiles in a second.

Run as a script it is `jaxdiff` with that network.
"""

import flax.linen as nn

from jaxdiff.app import cli
from jaxdiff.app.build import networks


class SmallUNet(nn.Module):
    """It hears what it is given: x, the condition and the label."""

    channels: int = 128
    num_classes: int = 0

    @nn.compact
    def __call__(self, x, condition, label=None, train=False):
        hidden = nn.Conv(self.channels, (3, 3), name="first")(x)
        hidden += nn.Dense(self.channels, name="condition")(condition[:, None] / 10)[:, None, None]
        if self.num_classes:
            hidden += nn.Embed(self.num_classes + 1, self.channels, name="label")(label)[:, None, None]
        return nn.Conv(x.shape[-1], (3, 3), name="last")(nn.silu(hidden))


if __name__ == "__main__":
    networks.UNet = SmallUNet
    cli.entry()
