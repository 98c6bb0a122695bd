# syntax=docker/dockerfile:1
# Two images of one repository:
#   docker build --target serve -t steno-serve:0.1.0 .
#   docker build --target train -t steno-train:0.1.0 --build-arg COMMIT=$(git rev-parse HEAD) .
# TORCH=cuda is the default; TORCH=cpu is for nodes without GPUs and needs TORCH_INDEX too (images/install.sh).

ARG PYTHON_IMAGE=python:3.11.13-slim-bookworm

# --- What both share -------------------------------------------------------------------------------
FROM ${PYTHON_IMAGE} AS base
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# tini passes SIGTERM on and reaps: a server's workers and a training's loaders are not pid 1's children.
RUN apt-get update \
 && apt-get install --no-install-recommends --yes tini=0.19.0-1+b3 \
 && rm -rf /var/lib/apt/lists/* \
 && groupadd --gid 1000 steno \
 && useradd --uid 1000 --gid 1000 --create-home steno
# GKE's device plugin lays driver and nvidia-smi there; NVIDIA's container toolkit brings them by itself.
ENV PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    PATH=/opt/venv/bin:${PATH}:/usr/local/nvidia/bin \
    LD_LIBRARY_PATH=/usr/local/nvidia/lib64
WORKDIR /app

# --- The packages, in stages that leave pip's tools behind -----------------------------------------
FROM base AS packages
COPY requirements/install.txt requirements/
RUN python -m venv /opt/venv \
 && python -m pip install --no-cache-dir --require-hashes -r requirements/install.txt

FROM packages AS serve-packages
ARG TORCH=cuda
ARG TORCH_INDEX=""
COPY requirements/serving.txt requirements/
COPY images/install.sh images/
RUN images/install.sh "${TORCH}" "${TORCH_INDEX}" requirements/serving.txt

FROM packages AS train-packages
ARG TORCH=cuda
ARG TORCH_INDEX=""
COPY requirements/training.txt requirements/pipelines.txt requirements/
COPY images/install.sh images/
RUN images/install.sh "${TORCH}" "${TORCH_INDEX}" requirements/training.txt requirements/pipelines.txt

# --- serve: TorchServe in the foreground -----------------------------------------------------------
# The root file system may be read-only: what is written goes to /models (the archive) and /tmp.
FROM base AS serve
COPY --from=serve-packages /opt/venv /opt/venv
COPY LICENSE NOTICE ./
COPY handler handler
COPY model/*.py model/
COPY store store
RUN install --directory --owner=steno --group=steno /models
USER 1000:1000
EXPOSE 8080 8082
ENTRYPOINT ["tini", "--"]
CMD ["python", "-m", "handler.launch", "--model-store", "/models", "--config", "/app/handler"]

# --- train: the steps of the pipeline --------------------------------------------------------------
FROM base AS train
COPY --from=train-packages /opt/venv /opt/venv
COPY LICENSE NOTICE ./
COPY handler handler
COPY model model
COPY store store
COPY training training
COPY kfp_pipelines kfp_pipelines
COPY k8s/trainjob.yaml k8s/
ARG COMMIT=unknown
# The pipeline mounts a disk at /scratch; matplotlib wants a folder of its own.
RUN install --directory --owner=steno --group=steno /scratch
ENV STENO_COMMIT=${COMMIT} \
    STENO_SCRATCH=/scratch \
    PYTHONPATH=/app \
    MPLCONFIGDIR=/tmp/matplotlib
USER 1000:1000
ENTRYPOINT ["tini", "--"]
CMD ["python", "-m", "kfp_pipelines", "--help"]
