# syntax=docker/dockerfile:1.18
# The embedder: CLIP, by Triton, ONNX Runtime or PyTorch.
ARG BUILDER=builder
ARG RUNTIME=runtime

FROM ${BUILDER} AS build
ARG VARIANT=cpu
RUN --mount=type=cache,target=/root/.cache/pip install-requirements "$VARIANT" embedder
COPY vlmir /app/vlmir
COPY services /app/services
RUN python -m compileall -q /app

FROM ${RUNTIME}
COPY --from=build /venv /venv
COPY --from=build /app /app
ENV VLMIR_HOST=0.0.0.0 \
    VLMIR_PORT=50062 \
    VLMIR_METRICS_PORT=9464 \
    VLMIR_CACHE=/cache
EXPOSE 50062 9464
VOLUME ["/cache"]
USER 10001:10001
HEALTHCHECK --interval=10s --timeout=10s --start-period=120s --start-interval=2s --retries=3 \
    CMD ["python", "-m", "services.common.probe", "127.0.0.1:50062"]
ENTRYPOINT ["python", "-m", "services.embedder"]
