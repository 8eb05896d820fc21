"""Training artifacts: one folder per key, whole or not there. Weights are safetensors; no pickles.

artifacts/KEY/model.safetensors    the stage's weights
artifacts/KEY/artifact.json        what it is and what it cost; its rename is the commit
artifacts/KEY/run/                 TensorBoard log; while it trains epochs and what it was begun with (`RESUMABLE`)
"""

from __future__ import annotations

import pickle
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.contract.declarations import below
from harness.contract.values import plain
from harness.errors import BenchError, CheckpointError, UsageError, about
from harness.store.files import file_hash, read_json, write_atomically, write_json
from harness.store.shapes import SCHEMA_VERSION, Artifact, Begun, TrainedArtifact, Versioned

if TYPE_CHECKING:
    from torch import Tensor, nn

OFFICIAL = "official"
"""The stage of an artifact that holds an authors' weights."""
UNREADABLE = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    LookupError,
    AssertionError,
    AttributeError,
    TypeError,
    OverflowError,
    struct.error,
)
"""What torch raises for files that are damaged, foreign, or hold more than tensors and numbers."""


RESUMABLE = ("epoch_*.pth", "last_checkpoint", "best.safetensors", "best.txt", "seconds.txt", "sources.json")
"""What only an unfinished training needs."""


def check_file(path: Path) -> None:
    """Raise CheckpointError where `path` is no file that could hold a checkpoint."""
    with about(path):
        if path.is_dir():
            raise CheckpointError(f"{path} is a folder; name the checkpoint file in it")
        if not path.exists():
            raise CheckpointError(f"{path} does not exist")
        if not path.stat().st_size:
            raise CheckpointError(f"{path} is empty; fetch or copy it again")


def unreadable(path: Path, error: Exception) -> CheckpointError:
    """What to tell of a checkpoint that torch or safetensors does not read; own words, no advice to run its code."""
    objects = re.findall(r"GLOBAL (\S+)", str(error))
    if objects:
        held = ", ".join(dict.fromkeys(objects))
        return CheckpointError(f"{path} cannot be read: it holds Python objects ({held}) beside tensors and numbers")
    what = "cannot be read as a file of tensors and numbers"
    return CheckpointError(f"{path} {what}: it is damaged, cut short, or holds something else; fetch or copy it again")


def folder(work_dir: Path | str, key: str) -> Path:
    """Where artifact `key` lies."""
    return Path(work_dir) / "artifacts" / key


def read(work_dir: Path | str, key: str) -> dict[str, Any] | None:
    """The description of a finished artifact; None where there is none, or one of another schema.

    Raises:
        BenchError: It is damaged or foreign; names file, key and what was expected.
    """
    path = folder(work_dir, key) / "artifact.json"
    if not path.exists():
        return None
    return read_json(path, TrainedArtifact) if read_json(path, Versioned)["schema"] == SCHEMA_VERSION else None


def begin(work_dir: Path | str, key: str, made_with: Mapping[str, Any]) -> Mapping[str, Any]:
    """Note what a training rests on, unless it was begun before; returns what it was begun with."""
    earlier = begun(work_dir, key)
    if earlier is None:
        write_json(folder(work_dir, key) / "run" / "sources.json", made_with)
    return earlier or made_with


def begun(work_dir: Path | str, key: str) -> dict[str, Any] | None:
    """What an unfinished training rests on (`sources`, `made_with`); None where none was begun.

    Raises:
        BenchError: There are epochs, and what they rest on is not known.
    """
    run = folder(work_dir, key) / "run"
    mark = run / "sources.json"
    if not mark.exists() and not any(run.glob("epoch_*.pth")):
        return None
    return read_json(mark, Begun)


def drop_epochs(work_dir: Path | str, key: str) -> None:
    """Remove what only an unfinished training needs; for a committed artifact."""
    run = folder(work_dir, key) / "run"
    for path in (path for pattern in RESUMABLE for path in run.glob(pattern)):
        path.unlink(missing_ok=True)


def commit(work_dir: Path | str, key: str, state: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    """Make artifact `key` of a work directory exist."""
    write(folder(work_dir, key), state, {**description, "key": key})


def write(target: Path, state: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    """Write the weights, then the description: its rename makes the artifact in folder `target` exist."""
    from safetensors.torch import save

    weights = target / "model.safetensors"
    write_atomically(weights, save({k: v.detach().cpu().contiguous() for k, v in state.items()}))
    entry = {"file": weights.name, "sha256": file_hash(weights)}
    write_json(target / "artifact.json", {**plain(description), "schema": SCHEMA_VERSION, "weights": entry})


def load_state(work_dir: Path | str, key: str) -> dict[str, Tensor]:
    """The weights of a finished artifact; a changed file is refused."""
    from safetensors.torch import load_file

    description = read(work_dir, key)
    if description is None:
        raise BenchError(f"artifact {key} in {work_dir} is not finished; run the stage that makes it first")
    path = folder(work_dir, key) / description["weights"]["file"]
    if not path.exists() or file_hash(path) != description["weights"]["sha256"]:
        raise CheckpointError(f"{path} is missing or was changed; remove {path.parent} and rerun")
    return load_file(path)


def located(checkpoint: Path) -> tuple[Path, dict[str, Any]]:
    """Weights file and description of the artifact in the folder `checkpoint`, or around that file.

    Raises:
        BenchError: There is no artifact of this project.
        UsageError: Another file of an artifact's folder was named.
        CheckpointError: The weights were changed.
    """
    target = checkpoint if checkpoint.is_dir() else checkpoint.parent
    weights, described = target / "model.safetensors", target / "artifact.json"
    if not described.exists() or not weights.exists():
        raise BenchError(
            f"{checkpoint} is not an artifact of this project (model.safetensors beside artifact.json); "
            "an authors' file is turned into one by `bench.py convert`"
        )
    description = read_json(described, Artifact)
    if not checkpoint.is_dir() and checkpoint.name not in (weights.name, described.name):
        raise UsageError(f"{checkpoint} is not the weights file of the artifact beside it; name {weights}")
    if file_hash(weights) != description["weights"]["sha256"]:
        raise CheckpointError(f"{weights} was changed after it was written; train or convert it again")
    return weights, description


def size_of(description: Mapping[str, Any]) -> str:
    """tiny or paper."""
    size: str | None = description.get("size")
    return size or ("tiny" if description["settings"].get("resolution", 224) < 200 else "paper")


def resolution_of(description: Mapping[str, Any]) -> int:
    """Side of the frames it takes, in pixels."""
    return int(description["settings"].get("resolution", 224))


def pipeline_of(description: Mapping[str, Any]) -> Any:
    """How the frames it was trained on became crops (`Protocol.pipeline`); `harness` where nothing is said."""
    return description.get("pipeline", "harness")


def require_resolution(checkpoint: Path, description: Mapping[str, Any], title: str, side: int) -> None:
    """Raise UsageError where the data set called `title` does not give the frames that a checkpoint takes."""
    if side != resolution_of(description):
        raise UsageError(f"{checkpoint} takes frames of {resolution_of(description)} px, {title} gives {side} px")


def read_weights(path: Path | str) -> dict[str, Tensor]:
    """Tensors of a weights file: .safetensors, or a torch file of tensors only (never unpickles code)."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(path)
    check_file(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        value = torch.load(path, map_location="cpu", weights_only=True)
    except (*UNREADABLE, SafetensorError) as error:
        raise unreadable(path, error) from error
    state = value.get("state_dict", value.get("model_state", value)) if isinstance(value, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise CheckpointError(f"{path} does not hold a state dict of tensors")
    return dict(state)


def load_into(
    model: nn.Module, state: Mapping[str, Tensor], *, into: str = "", take: str = "", origin: str = ""
) -> None:
    """Copy tensors below `take` of `state` to those below `into` of `model`.

    Every parameter and buffer of the model below `into` must be found with its shape, else CheckpointError
    names what is missing; tensors of the source that have no place are left.
    """
    own = {k: v for k, v in model.state_dict().items() if below(k, into)}
    found = {_join(into, _rest(k, take)): v for k, v in state.items() if below(k, take)}
    missing = sorted(k for k in own if k not in found and not k.endswith("num_batches_tracked"))
    wrong = sorted(k for k in own if k in found and found[k].shape != own[k].shape)
    if missing or wrong or not own:
        problems = [f"{len(missing)} tensors missing, first {missing[:3]}"] if missing else []
        problems += [f"{k}: {tuple(found[k].shape)} in the file, {tuple(own[k].shape)} in the model" for k in wrong[:3]]
        problems += [f"the model has nothing below {into!r}"] if not own else []
        raise CheckpointError(f"weights of {origin or 'the checkpoint'} do not fit: {'; '.join(problems)}")
    model.load_state_dict({k: found[k] for k in own if k in found}, strict=False)


def _rest(name: str, prefix: str) -> str:
    return name[len(prefix.rstrip(".")) :].lstrip(".") if prefix else name


def _join(prefix: str, rest: str) -> str:
    return f"{prefix.rstrip('.')}.{rest}".strip(".") if prefix else rest
