"""TensorBoard event files of a run."""

from collections.abc import Mapping
from typing import Any

from etils import epath


class EventWriter:
    """Writes numbers where TensorBoard finds them, without needing TensorBoard."""

    def __init__(self, folder: epath.Path) -> None:
        """Opens a new event file.

        Args:
            folder: for TensorBoard's `--logdir`.
        """
        import tensorflow as tf  # the only user beside trainer.data

        self._write = tf.summary.write
        self._writer = tf.summary.create_file_writer(str(folder))
        # `tf.summary.scalar` is TensorBoard's own function since TensorFlow 2.21 no longer brings
        # that package along; this metadata is what it would have written.
        self._scalar = tf.compat.v1.SummaryMetadata(
            plugin_data=tf.compat.v1.SummaryMetadata.PluginData(plugin_name="scalars")
        )

    def add(self, group: str, step: int, values: Mapping[str, Any]) -> None:
        """Writes the floats among `values` as `<group>/<name>`."""
        with self._writer.as_default(step=step):
            for name, value in values.items():
                if isinstance(value, float):
                    self._write(f"{group}/{name}", value, metadata=self._scalar)
        self._writer.flush()

    def close(self) -> None:
        """Closes the file."""
        self._writer.close()
