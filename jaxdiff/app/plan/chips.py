"""Published figures of TPU chips, and the topologies that their compiler knows."""

import math
import re
from typing import Any, NamedTuple

from jaxdiff.io.errors import ConfigError, first_line


class Chip(NamedTuple):
    """Peaks of one chip, in FLOPs (bfloat16) and bytes a second."""

    flops: float
    hbm_bandwidth: float
    hbm_gib: float  # what the compiler allows a program, less than what is built in
    tile: int  # side of a matrix unit
    link: float  # one inter-chip link in one direction
    dcn: float  # a chip's share of its host's network between slices, in one direction


# Peaks, links and networks: Google Cloud, "TPU v4", "TPU v5e", "TPU v5p", "TPU v6e" (cloud.google.com/tpu/docs). A link is the
# bidirectional bandwidth of a chip (v5e 400, v5p 1200, v6e 800 GB/s) over its ports (4, 6, 4) and both directions; of v4 that of
# Jouppi et al. (2023), "TPU v4", table 4. DCN: of v5e and v6e a pod's 6.4 and 25.6 Tb/s over 256 chips, of v5p 50 Gb/s a chip;
# v4's is not published and taken as v5p's. HBM: what libtpu 0.0.42 says where a program is too big.
CHIPS = {
    "v4": Chip(275e12, 1228e9, 30.75, 128, 50e9, 6.25e9),
    "v5e": Chip(197e12, 819e9, 15.75, 128, 50e9, 3.125e9),
    "v5p": Chip(459e12, 2765e9, 95.73, 128, 100e9, 6.25e9),
    "v6e": Chip(918e12, 1640e9, 31.24, 256, 100e9, 12.5e9),
}
FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")  # of v5e and v6e
MOST = {"v4": 4096, "v5p": 8960}  # chips of a pod, whose sides are 1x1x1 or 2x2x1 and up
VALID = f"v5e or v6e with {', '.join(FLAT)}, v5p with 1x1x1, 2x2x1 to 16x20x28, v4 with 1x1x1, 2x2x1 to 16x16x16"


class Topology(NamedTuple):
    """Chips that are described and need not be there."""

    name: str
    slices: int
    chip: Chip
    shape: tuple[int, ...]

    @property
    def devices(self) -> int:
        """The number of chips in all slices."""
        return self.slices * math.prod(self.shape)

    @property
    def ici(self) -> float:
        """Bytes a second that a chip can send to its neighbours: one link along sides of two chips, two along longer ones."""
        return self.chip.link * sum(min(length - 1, 2) for length in self.shape)


def topology(name: str, slices: int = 1) -> Topology:
    """The topology of a name such as `v5e:4x4`, which must be one that the compiler knows."""
    kind, _, shape = name.partition(":")
    sides = tuple(int(length) for length in shape.split("x")) if re.fullmatch(r"\d+(x\d+){1,2}", shape) else ()
    deep = kind in MOST and len(sides) == 3 and 1 <= math.prod(sides) <= MOST[kind]
    if not deep and not (kind in ("v5e", "v6e") and shape in FLAT):
        raise ConfigError(f"--topology {name}: no such TPU; write {VALID}")
    if slices < 1:
        raise ConfigError(f"--slices must be at least 1, got {slices}")
    return Topology(name, slices, CHIPS[kind], sides)


def device_descriptions(where: Topology) -> list[Any]:
    """The devices of a topology, none of which need be there. Call it in a child process: libtpu may abort."""
    from jax.experimental import topologies

    options: dict[str, Any] = {"num_slices": where.slices} if where.slices > 1 else {}
    if math.prod(where.shape) == 1:
        options["chips_per_host_bounds"] = [1, 1, 1]
    if where.name.startswith("v4"):
        options["chip_config_name"] = "megacore"  # one device a chip
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=where.name, **options).devices)
    except Exception as error:  # libtpu's own
        raise ConfigError(f"--topology {where.name}: the TPU compiler knows none ({first_line(error)}); write {VALID}") from error
