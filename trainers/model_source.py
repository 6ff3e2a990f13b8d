"""Where a model comes from: a hub id, a folder, a GGUF file, or any of the latter inside an installed package.

Only paths are looked at here, so that `muster check` answers at once; loading is in `trainers.model`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from trainers.data.files import locate as locate_path
from trainers.errors import UserError

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")


@dataclass(frozen=True)
class ModelSource:
    """What `from_pretrained` is given: a folder or hub id, and the GGUF file in it, if it is one."""

    name: str
    """As the job says it."""
    path: str
    gguf_file: str | None = None

    @property
    def local(self) -> bool:
        """Whether nothing has to be fetched."""
        return Path(self.path).is_dir()

    def signature(self) -> list[tuple[str, int, int]]:
        """Name, size and time of each file: changes when the model does. Empty for a hub id."""
        if not self.local:
            return []
        wanted = [self.gguf_file] if self.gguf_file else ["*.json", "*.txt", "*.model", "*.jinja", "*.safetensors", "*.bin"]
        found = sorted({path for pattern in wanted for path in Path(self.path).glob(pattern)})
        return [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in found]


def locate(spec: str) -> ModelSource:
    """Resolves a job's `model:`.

    Raises:
        UserError: there is no such package, folder or file, or the folder holds no model.
    """
    path = Path(locate_path(spec)).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UserError(f"{spec!r}: there is no file {path}{_others(path.parent)}", key="model")
        return ModelSource(spec, str(path.parent), path.name)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(f"{spec!r}: the folder {path} has no config.json{_others(path)}; give a Hugging Face model folder or a .gguf file", key="model")
        return ModelSource(spec, str(path))
    if spec.startswith(("package:", "/", ".", "~")) or not _HUB_ID.match(spec):
        raise UserError(f"{spec!r}: there is no folder {path}; give a folder, a .gguf file, package:NAME/PATH or a hub id such as org/name", key="model")
    return ModelSource(spec, spec)


def _others(folder: Path) -> str:
    """GGUF files that do lie in the folder."""
    names = sorted(path.name for path in folder.glob("*.gguf"))
    return f" (there is {', '.join(names)})" if names else ""
