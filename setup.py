"""Packaging. The base install is what a Beam worker needs; everything heavier is an extra."""

from setuptools import find_packages, setup

TRAINER = [
    # tf.data only. The CPU build is a quarter of the size where it exists.
    "tensorflow-cpu; sys_platform == 'linux' and platform_machine == 'x86_64'",
    "tensorflow; sys_platform != 'linux' or platform_machine != 'x86_64'",
    "jax",
    "keras",
    "matplotlib",  # curves and the confusion matrix
    "orbax-checkpoint",
    "packaging",  # which versions go together
]

setup(
    name="stanford-cars-tpu",
    version="0.1.0",
    description="Stanford Cars at one byte a pixel: a Beam job that quantizes to TFRecords, "
    "and a tf.data trainer for a distributed Keras CNN on TPU",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["pipeline", "pipeline.*", "trainer", "trainer.*"]),
    install_requires=[
        "apache-beam",
        "google-crc32c",  # otherwise checksums fall back to slow Python (beam#33407)
        "numba",
        "numpy>=2.3",
        "pillow",
        "rich",  # progress and tables
        "scikit-learn",  # --quantizer sklearn
        "scipy",  # .mat annotation files
        "tensorflow-datasets",  # the schema and the metadata; used without TensorFlow
    ],
    extras_require={
        "trainer": TRAINER,
        # With the TPU's driver and compiler: all that a TPU VM needs, and `check-tpu` on any Linux.
        "tpu": [*TRAINER, "jax[tpu]"],
        "gcp": ["apache-beam[gcp]"],  # gs:// and Dataflow
        # A real Flink cluster and a Cloud Storage on loopback, for tests/engines.
        "engines": ["apache-flink-libraries==1.20.*", "gcp-storage-emulator"],
        # The peers of benchmarks/quantize.py and, with ArrayRecord, of benchmarks/input.py.
        "bench": ["faiss-cpu", "imagequant", "opencv-python-headless", "grain", "array-record"],
        "test": ["hypothesis", "psutil", "pytest", "pytest-xdist"],
        "lint": ["mypy", "ruff"],
    },
)
