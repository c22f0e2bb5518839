"""`jaxdiff import`: its flags, and what it does."""

import pathlib
from dataclasses import dataclass
from typing import Literal

import tyro

from jaxdiff.app.cli.arguments import names_in, refuse
from jaxdiff.io.errors import UsageError


@dataclass(frozen=True)
class Import:
    """Make a run of published weights: of diffusers, CompVis or OpenAI.

    SOURCE is a folder or a file (safetensors, or PyTorch's .pt, .ckpt, of which nothing is run), or OWNER/NAME of the Hugging Face
    hub. From --prediction on, flags say what a file does not, where it is not as published most often.

    Example: jaxdiff import downloads/stable-diffusion-v1-5 --workdir runs/sd15
    """

    source: tyro.conf.Positional[str]
    workdir: pathlib.Path
    """Directory of the run: a new one, or that of the same import."""
    size: str = ""
    """Of its images: 256, or HEIGHTxWIDTH; by default as published."""
    data: str = ""
    """The data set that it is compared with."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """In which it computes; bfloat16 is several times as fast on a TPU."""
    adapt: pathlib.Path | None = None
    """Of a LoRA: the run that it adapts."""
    scale: float = 1.0
    """Of a LoRA."""
    prediction: Literal["noise", "v", "x0"] | None = None
    """Of a file without a scheduler; this also says that it is no consistency model."""
    betas: Literal["linear", "scaled_linear", "cosine"] | None = None
    heads: int | None = None
    """Number of attention heads."""
    head_channels: int | None = None
    """Or their width."""
    tokenizer: str = ""
    """Folders of the text encoders' tokenizers, with commas, for one file of weights."""
    new_order: bool | None = None
    """OpenAI's network has use_new_attention_order; --no-new-order: it has not."""


def import_(args: Import) -> int:
    from jaxdiff.app.runs import imported
    from jaxdiff.data import importing

    if args.adapt is not None:
        refuse(
            args,
            ("size", "data", "dtype", "tokenizer", "prediction", "betas", "heads", "head_channels", "new_order"),
            "does not apply to a LoRA",
        )
        print(imported.import_lora(pathlib.Path(args.source), args.adapt, args.workdir, args.scale))
        return 0
    if args.scale != 1:
        raise UsageError("--scale is of a LoRA; give --adapt RUN too")
    options = {name: getattr(args, name) for name in ("heads", "head_channels", "new_order") if getattr(args, name) is not None}
    options |= {"heads": 0} if "head_channels" in options and "heads" not in options else {}
    chain = {name: getattr(args, name) for name in ("prediction", "betas") if getattr(args, name)}
    size = importing.parse_size(args.size) if args.size else None
    tokenizers = [pathlib.Path(name) for name in names_in(args.tokenizer)]
    print(
        imported.import_weights(args.source, args.workdir, imported.Wanted(size, args.data, options, chain, tokenizers, args.dtype))
    )
    return 0
