"""As what a network is to be exported, and where to."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch

from cifar_lightning.errors import UserError, bad_value, unknown_name
from cifar_lightning.variants import registry
from cifar_lightning.variants.context import Format

CPU = torch.device("cpu")
WEIGHTS = "safetensors"  # the format that needs this project to be executed
FORMATS = (*registry.FORMATS, WEIGHTS)


@dataclass(frozen=True)
class Wanted:
    """What is to be exported.

    Attributes:
        name: The weights alone, or a variant that ships files.
        opset: Of ONNX, if not the exporter's own.
    """

    name: str
    opset: int | None = None

    def checked(self) -> Self:
        """See that there is such a format; return it by the name as which variants are recorded.

        Raises:
            UserError: If not.
        """
        name, form = self.name, None
        if name != WEIGHTS:
            for part in name.split("+"):
                if part not in registry.PARTS:
                    raise unknown_name(f"format={name}", "format", part, FORMATS)
            name = registry.check(name, "format")
            form = registry.format_of(name)
            if form is None:
                allowed = f"{', '.join(FORMATS)}: it ships no file but the weights"
                raise bad_value("format", name, allowed)
        if self.opset is not None and (form is None or not form.files[0].endswith(".onnx")):
            raise bad_value("opset", self.opset, f"null, as format={name} is no ONNX")
        return replace(self, name=name)

    @property
    def variant(self) -> str:
        """The variant that it is measured as."""
        return "fp32" if self.name == WEIGHTS else self.name

    @property
    def files(self) -> tuple[str, ...]:
        """Their names, that which is loaded first."""
        return ("model.safetensors",) if self.name == WEIGHTS else self.form.files

    @property
    def form(self) -> Format:
        form = registry.format_of(self.name)
        assert form is not None
        return form

    def target(self, to: Path) -> tuple[Path, bool]:
        """Tell what ``to`` means: the folder to write to, and whether a file was named.

        Raises:
            UserError: If it is another format's file, or can't be written to.
        """
        suffixes = {Path(form.files[0]).suffix for form in registry.FORMATS.values()}
        own = Path(self.files[0]).suffix
        is_file = not to.is_dir() and to.suffix in {*suffixes, ".safetensors"}
        if is_file and to.suffix != own:
            raise bad_value("to", to, f"a folder, or a file *{own} where format={self.name}")
        folder = to.parent if is_file else to
        there = next(one for one in (folder, *folder.absolute().parents) if one.exists())
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            reason = "can't be written to" if there.is_dir() else "is no folder"
            raise UserError(f"to={to}: {there} {reason}")
        return folder, is_file
