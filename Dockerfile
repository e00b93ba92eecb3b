# syntax=docker/dockerfile:1
# SPDX-License-Identifier: Apache-2.0

ARG GO_VERSION=1.26.8

FROM --platform=$BUILDPLATFORM golang:${GO_VERSION}-bookworm AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN --mount=type=cache,target=/go/pkg/mod go mod download
COPY . .
ARG TARGETOS
ARG TARGETARCH
ARG VERSION=dev
ARG CGO_ENABLED=0
RUN --mount=type=cache,target=/go/pkg/mod --mount=type=cache,target=/root/.cache/go-build \
    CGO_ENABLED=${CGO_ENABLED} GOOS=${TARGETOS} GOARCH=${TARGETARCH} \
    go build -trimpath -buildvcs=false -ldflags "-s -w -X main.version=${VERSION}" -o /orb8 ./cmd/orb8

FROM scratch
ARG VERSION=dev
ARG REVISION=
LABEL org.opencontainers.image.title="orb8" \
      org.opencontainers.image.description="Who talks to whom in a cluster, and how well, from the kernels of its nodes" \
      org.opencontainers.image.source="https://github.com/Ignoramuss/orb8" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /src/LICENSE /src/NOTICE /licenses/
COPY --from=build /orb8 /orb8
# Loading BPF programs takes root, with the capabilities that the chart names.
ENTRYPOINT ["/orb8"]
