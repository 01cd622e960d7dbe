# syntax=docker/dockerfile:1.18
# Training, evaluation, export and promotion, one machine or many; also the job that seeds a registry.
ARG BUILDER=builder
ARG RUNTIME=runtime

FROM ${BUILDER} AS build
ARG VARIANT=cpu
RUN --mount=type=cache,target=/root/.cache/pip install-requirements "$VARIANT" training
COPY vlmir /app/vlmir
COPY services /app/services
COPY training /app/training
RUN python -m compileall -q /app

FROM ${RUNTIME}
USER 0:0
# KubeRay's probes ask by wget whether Ray is well, and its login shells forget the image's PATH.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends wget \
    && rm -rf /var/lib/apt/lists/* \
    && ln -s /venv/bin/ray /usr/local/bin/ray
COPY --from=build /venv /venv
COPY --from=build /app /app
VOLUME ["/cache"]
USER 10001:10001
# It runs jobs, which end; who waits for them looks at their exit status.
HEALTHCHECK NONE
ENTRYPOINT ["python", "-m"]
CMD ["training.stage2", "--help"]
