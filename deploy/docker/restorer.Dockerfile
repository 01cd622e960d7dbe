# syntax=docker/dockerfile:1.18
# The restorer on Ray Serve, for compose and for KubeRay, which starts Ray itself. It only orchestrates; what it computes
# with PyTorch (a picture's views, as training made them) it computes on the CPU, so there is no other variant.
ARG BUILDER=builder
ARG RUNTIME=runtime

FROM ${BUILDER} AS build
RUN --mount=type=cache,target=/root/.cache/pip install-requirements cpu restorer
COPY vlmir /app/vlmir
COPY services /app/services
COPY deploy/serve.yaml /app/deploy/serve.yaml
RUN rm -rf /app/vlmir/assets && python -m compileall -q /app

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
ENV RAY_TMPDIR=/tmp \
    RAY_USAGE_STATS_ENABLED=0 \
    VLMIR_RAY_METRICS_PORT=8080
EXPOSE 50051 8000 6379 8265 10001 8080
USER 10001:10001
HEALTHCHECK --interval=10s --timeout=10s --start-period=180s --start-interval=3s --retries=3 \
    CMD ["python", "-m", "services.common.probe", "127.0.0.1:50051", "--service", "vlmir.v1.RestorerService"]
ENTRYPOINT ["python", "-m", "services.launcher.serve"]
CMD ["deploy/serve.yaml"]
