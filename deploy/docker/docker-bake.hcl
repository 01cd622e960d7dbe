# All images: `make images`, or `docker buildx bake -f deploy/docker/docker-bake.hcl [cpu|gpu] [--load|--push]`.
#
# Each image carries an SBOM and its provenance. To keep them in a local image, --load needs Docker's containerd image
# store; with the older store set ATTEST=false, or push.

variable "REGISTRY" {
  default = "ghcr.io/vlmir"
}

variable "VERSION" {
  default = "0.1.0"
}

variable "REVISION" {
  default = ""
}

variable "PYTHON_IMAGE" {
  default = "docker.io/library/python:3.11.14-slim-bookworm"
}

# Such as @sha256:…; empty: what the tag means today.
variable "PYTHON_DIGEST" {
  default = ""
}

variable "ATTEST" {
  default = true
}

group "default" {
  targets = ["cpu"]
}

group "cpu" {
  targets = ["captioner", "embedder", "sampler", "gateway", "restorer", "training", "mlflow"]
}

# What has a variant with CUDA; the other parts of a cluster are those of `cpu`.
group "gpu" {
  targets = ["captioner-cuda", "embedder-cuda", "sampler-cuda", "training-cuda"]
}

target "common" {
  context   = "."
  platforms = ["linux/amd64"]
  args = {
    PYTHON_IMAGE  = "${PYTHON_IMAGE}"
    PYTHON_DIGEST = "${PYTHON_DIGEST}"
  }
}

target "builder" {
  inherits   = ["common"]
  dockerfile = "deploy/docker/base.Dockerfile"
  target     = "builder"
}

target "runtime" {
  inherits   = ["common"]
  dockerfile = "deploy/docker/base.Dockerfile"
  target     = "runtime"
}

target "image" {
  inherits = ["common"]
  contexts = {
    builder = "target:builder"
    runtime = "target:runtime"
  }
  attest = ATTEST ? ["type=provenance,mode=max", "type=sbom"] : []
  labels = {
    "org.opencontainers.image.version"  = "${VERSION}"
    "org.opencontainers.image.revision" = "${REVISION}"
    "org.opencontainers.image.licenses" = "Apache-2.0"
  }
}

target "captioner" {
  inherits   = ["image"]
  dockerfile = "deploy/docker/captioner.Dockerfile"
  args = {
    VARIANT = "cpu"
  }
  tags       = ["${REGISTRY}/captioner:${VERSION}"]
}

target "embedder" {
  inherits   = ["image"]
  dockerfile = "deploy/docker/embedder.Dockerfile"
  args = {
    VARIANT = "cpu"
  }
  tags       = ["${REGISTRY}/embedder:${VERSION}"]
}

target "sampler" {
  inherits   = ["image"]
  dockerfile = "deploy/docker/sampler.Dockerfile"
  args = {
    VARIANT = "cpu"
  }
  tags       = ["${REGISTRY}/sampler:${VERSION}"]
}

target "gateway" {
  inherits   = ["image"]
  dockerfile = "deploy/docker/gateway.Dockerfile"
  tags       = ["${REGISTRY}/gateway:${VERSION}"]
}

target "restorer" {
  inherits   = ["image"]
  dockerfile = "deploy/docker/restorer.Dockerfile"
  tags       = ["${REGISTRY}/restorer:${VERSION}"]
}

target "training" {
  inherits   = ["image"]
  dockerfile = "deploy/docker/training.Dockerfile"
  args = {
    VARIANT = "cpu"
  }
  tags       = ["${REGISTRY}/training:${VERSION}"]
}

target "mlflow" {
  inherits   = ["image"]
  dockerfile = "deploy/docker/mlflow.Dockerfile"
  tags       = ["${REGISTRY}/mlflow:${VERSION}"]
}

target "captioner-cuda" {
  inherits   = ["image"]
  dockerfile = "deploy/docker/captioner.Dockerfile"
  args = {
    VARIANT = "cuda"
  }
  tags       = ["${REGISTRY}/captioner:${VERSION}-cuda"]
}

target "embedder-cuda" {
  inherits   = ["image"]
  dockerfile = "deploy/docker/embedder.Dockerfile"
  args = {
    VARIANT = "cuda"
  }
  tags       = ["${REGISTRY}/embedder:${VERSION}-cuda"]
}

target "sampler-cuda" {
  inherits   = ["image"]
  dockerfile = "deploy/docker/sampler.Dockerfile"
  args = {
    VARIANT = "cuda"
  }
  tags       = ["${REGISTRY}/sampler:${VERSION}-cuda"]
}

target "training-cuda" {
  inherits   = ["image"]
  dockerfile = "deploy/docker/training.Dockerfile"
  args = {
    VARIANT = "cuda"
  }
  tags       = ["${REGISTRY}/training:${VERSION}-cuda"]
}
