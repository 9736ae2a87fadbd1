"""Checkpoints: what a run has become after a step, and the proof that restoring gave it back.

A checkpoint is a folder `<step>/` that Orbax writes beside the training and renames when it is
whole, so a killed run leaves either all of it or nothing under that name. It holds the arrays of
the training state and a `RunRecord`: everything about the run that the arrays do not say, and a
SHA-256 of each array. `restore` compares them; Keras and Orbax have both been seen to hand back
unrestored weights without a word (keras#23251).
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import logging
import platform
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from trainer.config import TrainConfig
from trainer.errors import CheckpointError
from trainer.metadata import DatasetInfo

# Orbax reports each rename and each host barrier at warning level.
logging.getLogger("absl").setLevel(logging.ERROR)

LATEST = "checkpoints"
BEST = "best"

_PACKAGES = ("jax", "jaxlib", "keras", "numpy", "orbax-checkpoint")

State = dict[str, Any]  # nested dictionaries of arrays; see train.init_state


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """What a checkpoint says beside its arrays.

    Attributes:
        config: the recipe; with it seed, global batch and data streams.
        class_names: the class table, in label order.
        image_size: side of the stored pictures, in pixels.
        colors: palette size; 0 for pictures that were never quantized.
        data_fingerprint: of the data folder.
        preprocessing: `preprocessing.json` of the data folder.
        total_steps: of the whole run.
        device_kind: such as `cpu`.
        versions: of Python and the packages that touch the numbers.
    """

    config: TrainConfig
    class_names: tuple[str, ...]
    image_size: int
    colors: int
    data_fingerprint: str
    preprocessing: Mapping[str, Any]
    total_steps: int
    device_kind: str
    versions: Mapping[str, str]

    @classmethod
    def of(cls, config: TrainConfig, info: DatasetInfo, total_steps: int) -> "RunRecord":
        """Returns the record of a run of `config` on the data of `info`, here and now."""
        versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
        return cls(
            config=config,
            class_names=tuple(info.class_names),
            image_size=info.image_size,
            colors=info.colors,
            data_fingerprint=info.fingerprint,
            preprocessing=info.preprocessing,
            total_steps=total_steps,
            device_kind=jax.devices()[0].device_kind,
            versions={"python": platform.python_version(), **versions},
        )

    def to_json(self) -> dict[str, Any]:
        """Returns the record as a JSON object, the inverse of `from_json`."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        fields["config"] = self.config.to_json()
        return json.loads(json.dumps(fields, default=dict))

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "RunRecord":
        """Returns the record written by `to_json`; an unknown key is a TypeError."""
        return cls(
            **{
                **value,
                "config": TrainConfig.from_json(value["config"]),
                "class_names": tuple(value["class_names"]),
            }
        )


def check_data(saved: RunRecord, info: DatasetInfo, folder: str) -> None:
    """Raises if a trained model cannot be used on some data.

    Args:
        saved: record of the model.
        info: the data.
        folder: of the model, for the message.

    Raises:
        CheckpointError: for another class table or palette size, with both sides named.
    """
    theirs, ours = saved.class_names, tuple(info.class_names)
    if theirs != ours:
        where = next(
            (i for i, pair in enumerate(zip(theirs, ours, strict=False)) if pair[0] != pair[1]),
            min(len(theirs), len(ours)),
        )
        raise CheckpointError(
            f"{folder} was trained on {len(theirs)} classes, {info.data_dir} has {len(ours)}; the "
            f"first difference is class {where}: {_item(theirs, where)} / {_item(ours, where)}"
        )
    if saved.colors != info.colors:
        raise CheckpointError(
            f"{folder} was trained on pictures of {_colors(saved.colors)}, those of "
            f"{info.data_dir} have {_colors(info.colors)}"
        )


def check_same_run(saved: RunRecord, now: RunRecord, info: DatasetInfo, folder: str) -> None:
    """Raises if continuing a run would not end where it would have ended.

    Args:
        saved: record of the run to continue.
        now: record of the command.
        info: the data of the command.
        folder: of the model, for the message.

    Raises:
        CheckpointError: for another class table, palette size, architecture, recipe or data, with
            both sides named.
    """
    check_data(saved, info, folder)
    differences = saved.config.differences(now.config)
    if saved.data_fingerprint != now.data_fingerprint:
        differences.append(
            f"data fingerprint: {saved.data_fingerprint[:12]} / {now.data_fingerprint[:12]}"
        )
    if saved.total_steps != now.total_steps and not differences:
        differences.append(f"steps of the run: {saved.total_steps} / {now.total_steps}")
    if differences:
        raise CheckpointError(
            f"{folder} holds another run ({'; '.join(differences)}); "
            "repeat the command that began it, or give another --model_dir"
        )


def notes(saved: RunRecord, now: RunRecord) -> list[str]:
    """Returns why a continued run, though allowed, may end in other last bits; empty if it may not.

    Args:
        saved: record of the run to continue.
        now: record of the command.
    """
    there = {"device": saved.device_kind, **saved.versions}
    here = {"device": now.device_kind, **now.versions}
    changed = [
        f"{name} {there.get(name, 'none')} / {here.get(name, 'none')}"
        for name in sorted(there.keys() | here.keys())
        if there.get(name) != here.get(name)
    ]
    return [f"note     continued elsewhere, bits may differ: {', '.join(changed)}"] * bool(changed)


def _item(names: tuple[str, ...], index: int) -> str:
    return repr(names[index]) if index < len(names) else "none"


def _colors(colors: int) -> str:
    return f"{colors} colours" if colors else "24-bit colour"


def leaves(state: State) -> dict[str, Any]:
    """Returns the arrays of a state by their path, such as `weights.stem_conv.kernel`."""
    flat = jax.tree_util.tree_flatten_with_path(state)[0]
    return {".".join(str(part.key) for part in path): leaf for path, leaf in flat}


def checksums(state: State) -> dict[str, str]:
    """Returns the SHA-256 of each array's bytes, by path."""
    host = jax.device_get(leaves(state))
    return {
        name: hashlib.sha256(np.ascontiguousarray(leaf).tobytes()).hexdigest()
        for name, leaf in host.items()
    }


def _shapes(state: State) -> dict[str, list[int]]:
    return {name: list(leaf.shape) for name, leaf in leaves(state).items()}


class Checkpoints:
    """The checkpoints of one folder; a context manager that waits for the last one when left.

    Attributes:
        folder: where they are.
    """

    def __init__(self, folder: epath.Path, *, keep: int = 1) -> None:
        """Opens or creates a folder of checkpoints.

        Args:
            folder: local, or on an object store.
            keep: how many of the latest stay.
        """
        # Orbax wants it absolute, and epath's absolute() and resolve() break gs://.
        self.folder = epath.Path(folder if "://" in str(folder) else folder.absolute())
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                cleanup_tmp_directories=True,
                # Two managers of one process that save at once, the latest and the best, would
                # wait at each other's barriers for ever.
                multiprocessing_options=ocp.options.MultiprocessingOptions(
                    barrier_sync_key_prefix=self.folder.name
                ),
            ),
            item_names=("state", "run"),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._manager.close()

    def latest_step(self) -> int | None:
        """Returns the step of the latest whole checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: State, run: RunRecord) -> None:
        """Starts to write a checkpoint; returns when the arrays are copied off the devices.

        A checkpoint of `step` that is already there is left as it is.

        Args:
            step: number of steps done.
            state: as from `train.init_state`.
            run: what to write beside it.
        """
        if self.latest_step() == step:
            return
        record = {
            "step": step,
            "run": run.to_json(),
            "shapes": _shapes(state),
            "sha256": checksums(state),
        }
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), run=ocp.args.JsonSave(record)
            ),
        )

    def wait(self) -> None:
        """Waits until what `save` started is on disk."""
        self._manager.wait_until_finished()

    def read_run(self, step: int) -> RunRecord:
        """Returns the record of a checkpoint without reading its arrays.

        Raises:
            CheckpointError: if it cannot be read.
        """
        return RunRecord.from_json(self._read_record(step)["run"])

    def restore(self, step: int, like: State) -> State:
        """Reads a checkpoint and checks that every array is the one that was saved.

        Args:
            step: which.
            like: a state of the same structure, arrays or `jax.ShapeDtypeStruct` with shardings.

        Returns:
            The arrays, placed as those of `like`.

        Raises:
            CheckpointError: if it is damaged, or of another architecture than `like`.
        """
        record = self._read_record(step)
        self._check_architecture(record, like)
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), like
        )
        try:
            restored = self._manager.restore(
                step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
            )
        except (ValueError, OSError, KeyError) as error:
            raise self._damaged(step, error) from error
        state = restored["state"]
        found = checksums(state)
        wrong = [name for name, digest in record["sha256"].items() if found.get(name) != digest]
        if wrong:
            raise self._damaged(step, f"{wrong[0]} is not what was saved")
        if int(state["step"]) != step:
            raise self._damaged(step, f"its arrays are of step {int(state['step'])}")
        return state

    def _read_record(self, step: int) -> dict[str, Any]:
        try:
            restored = self._manager.restore(
                step, args=ocp.args.Composite(run=ocp.args.JsonRestore())
            )
        except (ValueError, OSError, KeyError) as error:
            raise self._damaged(step, error) from error
        return restored["run"]

    def _check_architecture(self, record: dict[str, Any], like: State) -> None:
        theirs, ours = record["shapes"], _shapes(like)
        differing = sorted(
            name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name)
        )
        if differing:
            name = differing[0]
            raise CheckpointError(
                f"{self.folder} holds another architecture: {len(differing)} arrays differ, the "
                f"first is {name}: {theirs.get(name, 'none')} / {ours.get(name, 'none')}"
            )

    def _damaged(self, step: int, why: object) -> CheckpointError:
        reason = str(why).splitlines()[0] if str(why) else type(why).__name__
        return CheckpointError(
            f"{self.folder / str(step)}: the checkpoint is damaged ({reason}); delete this folder "
            "to continue from the one before it"
        )
