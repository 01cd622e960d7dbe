# syntax=docker/dockerfile:1.18
# The sampler: the diffusion network, many pictures in each call.
ARG BUILDER=builder
ARG RUNTIME=runtime

FROM ${BUILDER} AS build
ARG VARIANT=cpu
RUN --mount=type=cache,target=/root/.cache/pip install-requirements "$VARIANT" sampler
COPY vlmir /app/vlmir
COPY services /app/services
RUN python -m compileall -q /app

FROM ${RUNTIME}
COPY --from=build /venv /venv
COPY --from=build /app /app
ENV VLMIR_HOST=0.0.0.0 \
    VLMIR_PORT=50063 \
    VLMIR_METRICS_PORT=9464 \
    VLMIR_CACHE=/cache
EXPOSE 50063 9464
VOLUME ["/cache"]
USER 10001:10001
HEALTHCHECK --interval=10s --timeout=10s --start-period=120s --start-interval=2s --retries=3 \
    CMD ["python", "-m", "services.common.probe", "127.0.0.1:50063"]
ENTRYPOINT ["python", "-m", "services.sampler"]
