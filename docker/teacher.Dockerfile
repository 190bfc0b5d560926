# A teacher on vLLM and NVIDIA GPUs (docs/deploy.md).
# BuildKit; from the repository's root:
#   docker build -f docker/teacher.Dockerfile -t lsm-distill/teacher .

# A Debian or Ubuntu with Python 3.11 or later. torch brings its own CUDA libraries
# and the host the driver; vLLM compiles kernels at start, for which the default base
# has nvcc.
ARG BASE=nvidia/cuda:13.0.2-devel-ubuntu24.04
# An image with wheels at its root, seen as /wheels while building.
ARG WHEELS=scratch

FROM ${WHEELS} AS wheels

FROM ${BASE} AS python
# Versions are the base's own; the compiler and the headers are for Triton's kernels.
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        g++ python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

# Dependencies: made again only when pyproject.toml changes. vLLM pins its own torch
# and transformers, so constraints.txt stays out of it.
FROM python AS dependencies
WORKDIR /build
COPY pyproject.toml docker/requirements.py ./
# pip's own configuration and a CA bundle may come as build secrets: no layer holds them.
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf \
    --mount=type=secret,id=ca_bundle,target=/etc/pip-ca-bundle.crt \
    --mount=type=bind,from=wheels,target=/wheels \
    python3 -m venv /opt/lsm \
    && python3 requirements.py pyproject.toml vllm otel > requirements.txt \
    && /opt/lsm/bin/pip install --no-cache-dir --disable-pip-version-check \
        --find-links /wheels -r requirements.txt

# Our own code as a wheel.
FROM dependencies AS program
COPY README.md LICENSE ./
COPY proto/teacher_proto proto/teacher_proto
COPY teacher_server teacher_server
COPY student_trainer student_trainer
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf \
    --mount=type=secret,id=ca_bundle,target=/etc/pip-ca-bundle.crt \
    --mount=type=bind,from=wheels,target=/wheels \
    /opt/lsm/bin/pip wheel --no-cache-dir --disable-pip-version-check --no-deps \
        --find-links /wheels --wheel-dir /dist .

FROM python
RUN useradd --uid 10001 --user-group --create-home --shell /usr/sbin/nologin lsm \
    && install --directory --owner lsm --group lsm /models /var/lib/lsm-distill/tokenizers
COPY --from=dependencies /opt/lsm /opt/lsm
RUN --mount=type=bind,from=program,source=/dist,target=/dist \
    /opt/lsm/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps --no-index \
        /dist/*.whl
ENV PATH=/opt/lsm/bin:$PATH HF_HOME=/models/hub PYTHONUNBUFFERED=1 \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    LSM_TEACHER__ENGINE__NAME=vllm
WORKDIR /home/lsm
USER 10001:10001
# Models come by this volume, never by the image.
VOLUME /models
EXPOSE 50051 8080
# Loading and compiling a large model takes minutes.
HEALTHCHECK --interval=10s --timeout=10s --start-period=900s --retries=3 \
    CMD ["teacher-server", "probe"]
ENTRYPOINT ["teacher-server"]
CMD ["serve"]
