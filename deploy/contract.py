"""What the code really has: ports, commands, environment variables, and who calls whom.

All that deploys the services (compose, Kubernetes, dashboards) is compared with this, and this with the code, by tests.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from pydantic_settings import BaseSettings

__all__ = ["ADDRESSES", "COMMANDS", "EDGES", "IMAGES", "PORTS", "SERVICES", "environment"]

SERVICES = ("captioner", "embedder", "sampler", "restorer", "gateway")
"""Our own servers; each has an image of its own."""

_METRICS = 9464

PORTS: Mapping[str, Mapping[str, int]] = MappingProxyType(
    {
        "captioner": {"grpc": 50061, "metrics": _METRICS},
        "embedder": {"grpc": 50062, "metrics": _METRICS},
        "sampler": {"grpc": 50063, "metrics": _METRICS},
        "gateway": {"grpc": 50050, "metrics": _METRICS},
        # What deploy/serve.yaml opens on the machine where Ray's head is, and no others.
        "restorer": {"grpc": 50051, "http": 8000},
        "ray": {"gcs": 6379, "dashboard": 8265, "client": 10001, "metrics": 8080},
        "mlflow": {"http": 5000},
        "minio": {"s3": 9000, "console": 9001},
        "triton": {"http": 8000, "grpc": 8001, "metrics": 8002},
        "models": {},  # it only calls
        "postgres": {"postgres": 5432},
        "prometheus": {"http": 9090},
        "grafana": {"http": 3000},
    }
)
"""Service → what for → the port it has in its container. ``ray`` is the head in which the restorer runs."""

COMMANDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        **{
            name: ("python", "-m", f"services.{name}")
            for name in ("captioner", "embedder", "sampler", "gateway")
        },
        # A Ray of its own, for compose; on Kubernetes KubeRay starts Ray and hands it the Serve config.
        "restorer": ("python", "-m", "services.launcher.serve", "deploy/serve.yaml"),
        "seed": ("python", "-m", "services.launcher.prepare"),
        "models": ("python", "-m", "services.launcher.models"),
        "probe": ("python", "-m", "services.common.probe"),
        "training": ("python", "-m", "training.stage2"),
        "mlflow": (
            *("mlflow", "server", "--host", "0.0.0.0", "--port", "5000"),
            *("--workers", "1", "--serve-artifacts"),
        ),
        "triton": (
            *("tritonserver", "--model-repository=s3://http://minio:9000/models"),
            # `models` and the embedder ask for models to be loaded, which Triton grants in this mode alone.
            *("--model-control-mode=explicit", "--load-model=*", "--disable-auto-complete-config"),
        ),
        "minio": ("server", "/data", "--console-address", ":9001"),
    }
)
"""Service or job → its command, to which settings are added by variables. What ``probe`` asks stands behind it."""

ADDRESSES: Mapping[tuple[str, str], str] = MappingProxyType(
    {
        ("gateway", "restorer"): "VLMIR_UPSTREAM",
        ("restorer", "captioner"): "VLMIR_CAPTIONER",
        ("restorer", "embedder"): "VLMIR_EMBEDDER",
        ("restorer", "sampler"): "VLMIR_SAMPLER",
        ("restorer", "minio"): "VLMIR_STORE_URL",
        ("sampler", "minio"): "VLMIR_STORE_URL",
        ("captioner", "mlflow"): "MLFLOW_TRACKING_URI",
        ("embedder", "mlflow"): "MLFLOW_TRACKING_URI",
        ("sampler", "mlflow"): "MLFLOW_TRACKING_URI",
        ("embedder", "triton"): "VLMIR_TRITON",
        # MLflow hands artifacts on, so that its clients need no account at MinIO.
        ("mlflow", "minio"): "MLFLOW_S3_ENDPOINT_URL",
        ("mlflow", "postgres"): "MLFLOW_BACKEND_STORE_URI",
        ("triton", "minio"): "",
        ("seed", "mlflow"): "MLFLOW_TRACKING_URI",
        ("seed", "minio"): "VLMIR_STORE_URL",
        ("models", "mlflow"): "MLFLOW_TRACKING_URI",
        ("models", "minio"): "VLMIR_STORE_URL",
        ("models", "triton"): "VLMIR_TRITON",
        ("training", "mlflow"): "MLFLOW_TRACKING_URI",
        ("buckets", "minio"): "STORE",
        **{
            ("prometheus", watched): ""
            for watched in (
                *("captioner", "embedder", "sampler", "gateway"),
                *("restorer", "triton", "minio"),
            )
        },
        ("grafana", "prometheus"): "",
    }
)
"""(client, server) → the variable that tells the client where the server is; empty: a file or an argument does.

MLflow's database has to be named with its driver, ``postgresql+psycopg2://``: else SQLAlchemy 2.1 takes psycopg 3,
which is not in the image.

Users are outside: they reach the gateway, and by links that the restorer signs MinIO. Prometheus reads the restorer at
Ray's metrics port. The restorer does not ask the registry: it asks the services what they hold.
"""

EDGES: frozenset[tuple[str, str]] = frozenset(ADDRESSES)
"""Who calls whom: (client, server)."""

IMAGES: Mapping[str, str] = MappingProxyType(
    {
        "minio": "quay.io/minio/minio:RELEASE.2025-09-07T16-13-09Z",
        "mc": "quay.io/minio/mc:RELEASE.2025-08-13T08-35-41Z",
        "postgres": "docker.io/library/postgres:17.6-bookworm",
        "triton": "nvcr.io/nvidia/tritonserver:24.10-py3",
        "prometheus": "docker.io/prom/prometheus:v3.5.0",
        "grafana": "docker.io/grafana/grafana:12.1.1",
    }
)
"""Other people's images, each with a tag that does not move. Digests cannot be known without a registry at hand."""

_OPENTELEMETRY = {
    *("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"),
    *(
        "OTEL_EXPORTER_OTLP_HEADERS",
        "OTEL_EXPORTER_OTLP_CERTIFICATE",
        "OTEL_EXPORTER_OTLP_INSECURE",
    ),
    *("OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG", "OTEL_SERVICE_NAME"),
    *("OTEL_RESOURCE_ATTRIBUTES", "OTEL_SDK_DISABLED"),
}
_PROCESS = {"HOME", "TMPDIR", "OMP_NUM_THREADS", "PYTHONUNBUFFERED"}
_GPU = {"CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES"}
_MLFLOW_CLIENT = {
    *("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"),
    *("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_SERVER_CERT_PATH"),
    *("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"),
    *("MLFLOW_DISABLE_TELEMETRY", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"),
}
_AWS = {
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_DEFAULT_REGION"),
    *("AWS_SHARED_CREDENTIALS_FILE", "AWS_PROFILE", "AWS_CA_BUNDLE"),
}
_RAY = {
    *("RAY_TMPDIR", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"),
    *("RAY_USAGE_STATS_ENABLED", "RAY_enable_metrics_collection", "VLMIR_RAY_METRICS_PORT"),
}
_WEIGHTS = _PROCESS | _OPENTELEMETRY | _MLFLOW_CLIENT | _GPU

_OTHERS: Mapping[str, set[str]] = {
    "captioner": _WEIGHTS,
    "embedder": _WEIGHTS,
    "sampler": _WEIGHTS,
    "gateway": _PROCESS | _OPENTELEMETRY,
    "restorer": _PROCESS | _OPENTELEMETRY | _RAY,
    "seed": _PROCESS | _MLFLOW_CLIENT,
    "models": _PROCESS | _MLFLOW_CLIENT,
    "training": _PROCESS | _MLFLOW_CLIENT | _GPU | _RAY | {"HF_HOME", "HF_HUB_OFFLINE"},
    "mlflow": {
        *_PROCESS,
        *_AWS,
        *("MLFLOW_BACKEND_STORE_URI", "MLFLOW_ARTIFACTS_DESTINATION", "MLFLOW_S3_ENDPOINT_URL"),
        *("MLFLOW_SERVER_ALLOWED_HOSTS", "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"),
        *("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "MLFLOW_DISABLE_TELEMETRY"),
        *("PGPASSWORD", "PGPASSWORD_FILE"),  # the latter is our image's
    },
    "minio": {
        *("MINIO_ROOT_USER", "MINIO_ROOT_PASSWORD"),
        *("MINIO_ROOT_USER_FILE", "MINIO_ROOT_PASSWORD_FILE"),
        *("MINIO_PROMETHEUS_AUTH_TYPE", "MINIO_BROWSER_REDIRECT_URL", "HOME"),
    },
    "buckets": {
        *("MC_CONFIG_DIR", "STORE", "ROOT_USER", "ROOT_PASSWORD"),
        *("SERVICES_KEY", "SERVICES_SECRET", "MLFLOW_KEY", "MLFLOW_SECRET"),
        *("WRITER_KEY", "WRITER_SECRET", "READER_KEY", "READER_SECRET"),
    },
    "postgres": {
        *("POSTGRES_DB", "POSTGRES_USER", "POSTGRES_PASSWORD", "POSTGRES_PASSWORD_FILE"),
        *("POSTGRES_INITDB_ARGS", "PGDATA"),
    },
    "triton": {
        *_AWS,
        *_GPU,
        *("TRITON_CLOUD_CREDENTIAL_PATH", "TRITON_AWS_MOUNT_DIRECTORY", "HOME"),
    },
    "prometheus": set(),
    "grafana": {
        *("GF_SECURITY_ADMIN_USER", "GF_SECURITY_ADMIN_PASSWORD"),
        *("GF_SECURITY_ADMIN_PASSWORD__FILE", "GF_USERS_ALLOW_SIGN_UP"),
        *("GF_AUTH_ANONYMOUS_ENABLED", "GF_ANALYTICS_REPORTING_ENABLED"),
        *("GF_ANALYTICS_CHECK_FOR_UPDATES", "GF_ANALYTICS_CHECK_FOR_PLUGIN_UPDATES"),
        *("GF_SERVER_ROOT_URL", "GF_PLUGINS_PREINSTALL_DISABLED"),
    },
}


def environment(service: str) -> frozenset[str]:
    """Names of the variables that a service reads: those of its settings classes, and of the packages it uses.

    Args:
        service: One of the keys of `PORTS` or `COMMANDS` that is a process of its own.

    Raises:
        KeyError: There is no such service.
    """
    ours = (name for settings in _settings(service) for name in _variables(settings))
    return frozenset({*ours, *_OTHERS[service]})


def _variables(settings: type[BaseSettings]) -> list[str]:
    prefix = settings.model_config["env_prefix"]
    return [f"{prefix}{field}".upper() for field in settings.model_fields]


def _settings(service: str) -> tuple[type[BaseSettings], ...]:
    """The classes that a service's entry reads; they are imported here, since some bring heavy packages."""
    from services.captioner.server import CaptionerSettings
    from services.common.store import StoreSettings
    from services.embedder.settings import EmbedderSettings
    from services.gateway.server import GatewaySettings
    from services.launcher.models import ModelsSettings
    from services.launcher.prepare import PrepareSettings
    from services.restorer.settings import ClusterSettings
    from services.sampler.settings import SamplerSettings

    found: Mapping[str, tuple[type[BaseSettings], ...]] = {
        "captioner": (CaptionerSettings,),
        "embedder": (EmbedderSettings,),
        "sampler": (SamplerSettings, StoreSettings),
        "gateway": (GatewaySettings,),
        "restorer": (ClusterSettings, StoreSettings),
        "seed": (PrepareSettings, StoreSettings),
        "models": (ModelsSettings, StoreSettings),
    }
    return found.get(service, ())
