# A teacher on the transformers engine, without a GPU (docs/deploy.md).
# BuildKit; from the repository's root:
#   docker build -f docker/teacher-cpu.Dockerfile -t lsm-distill/teacher-cpu .

# Any Debian or Ubuntu with Python 3.11 or later and its venv module.
ARG BASE=python:3.11-slim-bookworm
# An image with wheels at its root, seen as /wheels while building.
ARG WHEELS=scratch

FROM ${WHEELS} AS wheels

# Dependencies: made again only when pyproject.toml or constraints.txt change.
FROM ${BASE} AS dependencies
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /build
COPY pyproject.toml constraints.txt docker/requirements.py ./
# pip's own configuration and a CA bundle may come as build secrets: no layer holds them.
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf \
    --mount=type=secret,id=ca_bundle,target=/etc/pip-ca-bundle.crt \
    --mount=type=bind,from=wheels,target=/wheels \
    python3 -m venv /opt/lsm \
    && python3 requirements.py pyproject.toml teacher otel > requirements.txt \
    && /opt/lsm/bin/pip install --no-cache-dir --disable-pip-version-check \
        ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} --find-links /wheels \
        -c constraints.txt -r requirements.txt

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

FROM ${BASE}
RUN useradd --uid 10001 --user-group --create-home --shell /usr/sbin/nologin lsm \
    && install --directory --owner lsm --group lsm /models /var/lib/lsm-distill/tokenizers
COPY --from=dependencies /opt/lsm /opt/lsm
RUN --mount=type=bind,from=program,source=/dist,target=/dist \
    /opt/lsm/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps --no-index \
        /dist/*.whl
ENV PATH=/opt/lsm/bin:$PATH HF_HOME=/models/hub PYTHONUNBUFFERED=1
WORKDIR /home/lsm
USER 10001:10001
# Models come by this volume, never by the image.
VOLUME /models
EXPOSE 50051 8080
HEALTHCHECK --interval=10s --timeout=10s --start-period=120s --retries=3 \
    CMD ["teacher-server", "probe"]
ENTRYPOINT ["teacher-server"]
CMD ["serve"]
