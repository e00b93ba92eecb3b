# syntax=docker/dockerfile:1
# SPDX-License-Identifier: Apache-2.0

ARG GO_VERSION=1.26.8
ARG BASE=gcr.io/distroless/base-nossl-debian12

FROM --platform=$BUILDPLATFORM golang:${GO_VERSION}-bookworm AS build
ARG TARGETOS
ARG TARGETARCH
# NVIDIA's library is loaded through cgo; 0 builds without, and without NVML.
ARG CGO_ENABLED=1
# The compiler for another architecture than this one's.
RUN set -eu; \
    if [ "${CGO_ENABLED}" = 1 ] && [ "$(go env GOARCH)" != "${TARGETARCH}" ]; then \
        case "${TARGETARCH}" in \
        amd64) cross=x86-64-linux-gnu cc=x86_64-linux-gnu-gcc ;; \
        arm64) cross=aarch64-linux-gnu cc=aarch64-linux-gnu-gcc ;; \
        *) echo "no compiler for ${TARGETARCH}: build with CGO_ENABLED=0" >&2; exit 1 ;; \
        esac; \
        apt-get update; \
        apt-get install -y --no-install-recommends "gcc-${cross}" "libc6-dev-${TARGETARCH}-cross"; \
        go env -w "CC=${cc}"; \
    fi
WORKDIR /src
COPY go.mod go.sum ./
RUN --mount=type=cache,target=/go/pkg/mod go mod download
COPY . .
ARG VERSION=dev
RUN --mount=type=cache,target=/go/pkg/mod --mount=type=cache,target=/root/.cache/go-build \
    CGO_ENABLED=${CGO_ENABLED} CGO_CFLAGS="-g -O2 -Wno-deprecated-declarations" GOOS=${TARGETOS} GOARCH=${TARGETARCH} \
    go build -trimpath -buildvcs=false -tags netgo,osusergo \
    -ldflags "-s -w -X main.version=${VERSION}" -o /orb8 ./cmd/orb8

# glibc, which NVIDIA's library needs, certificates, and no shell.
FROM ${BASE}
ARG VERSION=dev
ARG REVISION=
LABEL org.opencontainers.image.title="orb8" \
      org.opencontainers.image.description="Who talks to whom in a cluster, and how well, from the kernels of its nodes" \
      org.opencontainers.image.source="https://github.com/Ignoramuss/orb8" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /src/LICENSE /src/NOTICE /licenses/
COPY --from=build /orb8 /orb8
# Loading BPF programs takes root, with the capabilities that the chart names.
USER 0:0
ENTRYPOINT ["/orb8"]
