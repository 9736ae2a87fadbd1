# A worker of the preprocessing job for Dataflow, or for Flink with --environment_type=DOCKER; and
# the launcher of the flex template, which Dataflow starts from the same image.
# Build at the root of the repository:
#   docker build -f docker/pipeline.Dockerfile -t REGION-docker.pkg.dev/PROJECT/REPOSITORY/pipeline .
# The Beam version must be that of constraints.txt, the Python that of the launcher.
FROM apache/beam_python3.11_sdk:2.77.0

# The kernels are compiled now, not by every worker when it starts. numba's cache is only used where
# processor and features are those it was made for, so both are named: without the second line the
# features of the machine that builds the image would be part of the key. Every machine type of
# Google Cloud but n1, whose oldest processors lack AVX2, has them.
ENV NUMBA_CPU_NAME=x86-64-v3 \
    NUMBA_CPU_FEATURES=+avx2,+bmi,+bmi2,+fma,+lzcnt,+popcnt \
    NUMBA_CACHE_DIR=/opt/numba \
    # Otherwise google-cloud-storage asks for the bucket's properties at every file Beam opens.
    DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA=true

WORKDIR /opt/pipeline
COPY --from=gcr.io/dataflow-templates-base/python311-template-launcher-base \
    /opt/google/dataflow/python_template_launcher /opt/google/dataflow/python_template_launcher
ENV FLEX_TEMPLATE_PYTHON_PY_FILE=/opt/pipeline/flex_template.py
COPY docker/flex_template.py ./

COPY setup.py constraints.txt ./
COPY pipeline pipeline
# The pinned versions are those of the launcher: they are part of the data set's fingerprint.
RUN pip install --no-cache-dir --constraint constraints.txt 'apache-beam[gcp]' .

# Fills the cache, and proves that the image can do the work.
RUN cd /tmp && python -m pipeline sample sample --train=1 --test=1 \
    && python -m pipeline preprocess --data_dir=sample --output_dir=shards \
    && python -m pipeline verify shards && rm -r sample shards

# The entry point stays that of the base image: /opt/apache/beam/boot.
