# syntax=docker/dockerfile:1.18
# What all images of ours share: `builder` installs packages into /venv, `runtime` has only Python and a user.
#
# Fix the base by its digest with --build-arg PYTHON_DIGEST=@sha256:… (docker buildx imagetools inspect tells it).
ARG PYTHON_IMAGE=docker.io/library/python:3.11.14-slim-bookworm
ARG PYTHON_DIGEST=

FROM ${PYTHON_IMAGE}${PYTHON_DIGEST} AS builder
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
COPY --chmod=755 deploy/docker/install.sh /usr/local/bin/install-requirements
# pip stays outside: what is copied from /venv to the final stage cannot install anything.
RUN python -m venv --without-pip /venv
COPY constraints.txt ./
COPY deploy/docker/requirements ./requirements

FROM ${PYTHON_IMAGE}${PYTHON_DIGEST} AS runtime
RUN python -m pip uninstall --yes pip setuptools wheel \
    && rm -rf /usr/local/lib/python3.11/ensurepip \
    && groupadd --gid 10001 vlmir \
    && useradd --uid 10001 --gid 10001 --home-dir /tmp --no-create-home --shell /usr/sbin/nologin vlmir \
    && install --directory --owner=10001 --group=10001 --mode=0750 /cache
# The root may be read-only: /tmp and /cache are all that is written.
ENV PATH=/venv/bin:$PATH \
    PYTHONPATH=/app \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp
WORKDIR /app
USER 10001:10001
