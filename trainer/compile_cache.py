"""Compiled programs stay on disk, so that the next start of the same run does not compile.

JAX finds a program by its text, the devices and the versions; another recipe never gets one that is
not its own. The folder may be deleted at any time.
"""

import os

import jax

VARIABLE = "JAX_COMPILATION_CACHE_DIR"


def enable() -> None:
    """Makes JAX keep programs that take a second or more to compile.

    They go to the folder that JAX's own variable names (nowhere if it is set and empty), else to
    the user's cache folder.
    """
    if VARIABLE in os.environ:  # JAX has read it
        return
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if os.path.isabs(home):  # not so where there is no home
        jax.config.update("jax_compilation_cache_dir", os.path.join(home, "stanford-cars-tpu/jax"))
