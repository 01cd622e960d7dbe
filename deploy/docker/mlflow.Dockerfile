# syntax=docker/dockerfile:1.18
# MLflow's server with what it needs for PostgreSQL and S3; it has no code of ours.
ARG BUILDER=builder
ARG RUNTIME=runtime

FROM ${BUILDER} AS build
RUN --mount=type=cache,target=/root/.cache/pip install-requirements cpu mlflow
COPY --chmod=755 deploy/docker/with-secrets.sh /usr/local/bin/with-secrets

FROM ${RUNTIME}
COPY --from=build /venv /venv
COPY --from=build /usr/local/bin/with-secrets /usr/local/bin/with-secrets
ENV MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false \
    MLFLOW_DISABLE_TELEMETRY=true
EXPOSE 5000
USER 10001:10001
HEALTHCHECK --interval=10s --timeout=10s --start-period=90s --start-interval=2s --retries=3 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:5000/health', timeout=5)"]
ENTRYPOINT ["/usr/local/bin/with-secrets", "mlflow"]
CMD ["server", "--host", "0.0.0.0", "--port", "5000", "--workers", "1", "--serve-artifacts"]
