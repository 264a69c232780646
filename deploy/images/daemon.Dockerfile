# The image of the daemon of each node: docker build -f deploy/images/daemon.Dockerfile -t REGISTRY/squall-daemon:TAG .
FROM rust:1-bookworm AS build
# The clients of containerd and of the CRI are made from their protocols when they are built.
RUN apt-get update && apt-get install -y --no-install-recommends protobuf-compiler libprotobuf-dev
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    target="$(uname -m)-unknown-linux-gnu" && \
    RUSTFLAGS="-C target-feature=+crt-static" \
    cargo build --locked --profile image --target "$target" -p squall-daemon && \
    cp "target/$target/image/squall-daemon" /squall-daemon

FROM scratch
COPY --from=build /squall-daemon /squall-daemon
# Root: containerd's socket and other users' processes. The capabilities are the DaemonSet's business.
USER 0:0
ENTRYPOINT ["/squall-daemon"]
