# syntax=docker/dockerfile:1
# The image of every role and every tool: one binary, libvips and ONNX Runtime beside it.
# No shell, no package manager, no root; nothing is written but to /tmp and, where parts
# run embedded, to /data.

FROM node:22-bookworm-slim AS node

FROM golang:1.26-bookworm AS build
# Node.js fetches the prebuilt native parts, by the checksums of a lock file.
COPY --from=node /usr/local/bin/node /usr/local/bin/node
COPY --from=node /usr/local/lib/node_modules /usr/local/lib/node_modules
RUN ln -s ../lib/node_modules/npm/bin/npm-cli.js /usr/local/bin/npm
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY internal/native internal/native
RUN sh internal/native/install.sh
COPY . .
# What pictures and pages need is in build/bin/lib and in the binary; the rest stays here.
# /data and /spool are made with the user who will write there: a volume over an empty
# directory takes its owner from it.
RUN make build \
	&& mkdir -p /out/app/lib /out/data /out/spool \
	&& cp build/bin/pixtools /out/app/ \
	&& cp -P build/bin/lib/* /out/app/lib/

FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /out/app /app
COPY --from=build --chown=nonroot:nonroot /out/data /data
COPY --from=build --chown=nonroot:nonroot /out/spool /spool
# PRIVATE_ADDR is an address, and no secret.
# hadolint ignore=DL3064
ENV PATH=/app:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
	HOST=0.0.0.0 \
	PORT=8000 \
	PRIVATE_ADDR=0.0.0.0:9090 \
	SPOOL_DIR=/spool \
	PIXTOOLS_DATA_DIR=/data
EXPOSE 8000 9090
# The form without a shell: there is none.
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 CMD ["/app/pixtools", "ready"]
ENTRYPOINT ["/app/pixtools"]
CMD ["serve"]
