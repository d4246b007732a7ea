"""Checkpoints of a training, by orbax: each is whole or absent, even if the process is killed."""

import contextlib
import json
import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from benchmarks.cli.errors import BenchmarkError


class Saved(NamedTuple):
    """What a checkpoint holds."""

    position: int
    """how many training steps were done before it"""
    state: Any
    """a pytree of device arrays"""
    history: Any
    """what was measured so far: nested dictionaries of NumPy arrays"""


class Checkpoints:
    """The checkpoints of one training run, in a folder of its own.

    A checkpoint is written under another name and renamed when it is complete; the previous one is
    kept until then.

    Args:
      folder: where they are; it is made when needed.
      about: a description of the run, as JSON. Only a run with the same description continues from
        a checkpoint.
      seconds: `save` does nothing until this many seconds after the last checkpoint, unless it
        must.
    """

    def __init__(self, folder: Path, about: dict[str, Any], *, seconds: float = 30.0):
        self.folder = folder.absolute()
        self._about = json.loads(json.dumps(about))
        self._seconds = seconds
        self._last = time.monotonic()

    def restore(self, template: Any) -> Saved | None:
        """The latest checkpoint, or None.

        Args:
          template: the state as `jax.eval_shape` gives it.

        Raises:
            BenchmarkError: if it belongs to another run or cannot be read, or a file lies where the
              folder should be.
        """
        for path in (self.folder, *self.folder.parents):
            if path.is_file():
                raise BenchmarkError(
                    f"{path} is a file where a folder for checkpoints should be: move it away, or"
                    " choose another --out."
                )
        if not self.folder.is_dir():
            return None
        named, treedef = _named(template)
        stored = {name: _stored(leaf) for name, leaf in named.items()}
        try:
            with _late_failures_in_silence(), self._manager() as manager:
                position = manager.latest_step()
                if position is None:
                    return None
                about = manager.restore(
                    position, args=ocp.args.Composite(about=ocp.args.JsonRestore())
                )
                self._check(about["about"], _shapes(stored))
                saved = manager.restore(
                    position,
                    args=ocp.args.Composite(
                        state=ocp.args.StandardRestore(stored), history=ocp.args.StandardRestore()
                    ),
                )
        except BenchmarkError:
            raise
        except Exception as error:  # orbax and its dependencies raise errors of many types
            raise BenchmarkError(
                f"the checkpoint in {self.folder} cannot be read ({_reason(error)}): delete its"
                " newest folder to go on from the one before, or start over with --restart."
            ) from error
        leaves = [_loaded(saved["state"][name], leaf) for name, leaf in named.items()]
        return Saved(position, jax.tree.unflatten(treedef, leaves), saved["history"])

    def save(self, position: int, state: Any, history: Any, *, must: bool = False) -> None:
        """Save the state after ``position`` steps; returns when the checkpoint is complete.

        Raises:
            BenchmarkError: if it cannot be written; earlier checkpoints stay as they are.
        """
        if not must and time.monotonic() - self._last < self._seconds:
            return
        arrays = {name: _stored(leaf) for name, leaf in _named(state)[0].items()}
        about = {"run": self._about, "arrays": _shapes(arrays)}
        try:
            with _late_failures_in_silence(), self._manager() as manager:
                if manager.latest_step() == position:
                    return
                manager.save(
                    position,
                    args=ocp.args.Composite(
                        about=ocp.args.JsonSave(about),
                        state=ocp.args.StandardSave(arrays),
                        history=ocp.args.StandardSave(history),
                    ),
                )
        except Exception as error:
            raise BenchmarkError(
                f"cannot write a checkpoint to {self.folder} ({_reason(error)}): what was saved"
                " before is whole; once this is mended, run the same command again to go on from"
                " there."
            ) from error
        self._last = time.monotonic()

    def positions(self) -> list[int]:
        """The positions of all complete checkpoints."""
        if not self.folder.is_dir():
            return []
        with self._manager() as manager:
            return sorted(manager.all_steps())

    def _manager(self) -> ocp.CheckpointManager:
        # Orbax logs each file, and asyncio the traceback of an error that we report in one line.
        for name in ("absl", "asyncio"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=2, enable_async_checkpointing=False, cleanup_tmp_directories=True
        )
        return ocp.CheckpointManager(self.folder, options=options)

    def _check(self, found: dict[str, Any], arrays: dict[str, Any]) -> None:
        difference = _difference(found["run"], self._about) or _difference(found["arrays"], arrays)
        if difference:
            raise BenchmarkError(
                f"the checkpoint in {self.folder} is another run's ({difference}): repeat the"
                " command that it belongs to, choose another --out, or discard it with --restart."
            )


@contextlib.contextmanager
def _late_failures_in_silence() -> Iterator[None]:
    """Keeps Python from printing a traceback for each read or write that ends after a failed one.

    Orbax closes its event loop when one of them fails, although others still have to report to it.
    They may end at any later time, so after an error the tracebacks stay off.
    """
    report = sys.unraisablehook

    def report_others(unraisable: "sys.UnraisableHookArgs") -> None:
        error = unraisable.exc_value
        if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
            report(unraisable)

    sys.unraisablehook = report_others
    yield
    sys.unraisablehook = report


def _named(tree: Any) -> tuple[dict[str, Any], Any]:
    """The leaves of a tree by their paths, and its structure."""
    leaves, treedef = jax.tree.flatten_with_path(tree)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}, treedef


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _stored(leaf: Any) -> Any:
    """A leaf as it is stored: random keys as their data, all else as it is."""
    if not isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.random.key_data(leaf) if _is_key(leaf) else leaf
    if _is_key(leaf):
        leaf = jax.eval_shape(jax.random.key_data, leaf)
    # It is restored to one device, however many devices it was saved from.
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device)


def _loaded(stored: jax.Array, template: Any) -> jax.Array:
    return jax.random.wrap_key_data(stored) if _is_key(template) else stored


def _shapes(arrays: dict[str, Any]) -> dict[str, str]:
    return {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in arrays.items()}


def _difference(there: dict[str, Any], here: dict[str, Any]) -> str | None:
    """In words, the first entry in which two descriptions differ."""
    for name in dict.fromkeys([*there, *here]):
        if (old := there.get(name)) != (new := here.get(name)):
            return f"{name}: {old} there, {new} here"
    return None


def _reason(error: Exception) -> str:
    """What went wrong, on one line; of a long line the end, which has the system's reason.

    What tensorstore appends is left out: its whole configuration.
    """
    cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
    text = str(cause).strip().partition("\n")[0].partition(" [tensorstore_spec")[0]
    return f"{type(cause).__name__}: {text if len(text) <= 200 else f'… {text[-200:]}'}"
