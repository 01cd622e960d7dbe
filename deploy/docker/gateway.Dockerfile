# syntax=docker/dockerfile:1.18
# The gateway: TLS, tokens and limits before the restorer. It holds neither pictures nor weights.
ARG BUILDER=builder
ARG RUNTIME=runtime

FROM ${BUILDER} AS build
RUN --mount=type=cache,target=/root/.cache/pip install-requirements cpu gateway
COPY vlmir /app/vlmir
COPY services /app/services
RUN rm -rf /app/vlmir/assets && python -m compileall -q /app

FROM ${RUNTIME}
COPY --from=build /venv /venv
COPY --from=build /app /app
ENV VLMIR_HOST=0.0.0.0 \
    VLMIR_PORT=50050 \
    VLMIR_METRICS_PORT=9464
EXPOSE 50050 9464
USER 10001:10001
HEALTHCHECK --interval=10s --timeout=10s --start-period=60s --start-interval=2s --retries=3 \
    CMD ["python", "-m", "services.common.probe", "127.0.0.1:50050"]
ENTRYPOINT ["python", "-m", "services.gateway"]
