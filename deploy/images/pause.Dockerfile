# The image that sleeps in place of a container's own program under pod-failure:
# docker build -f deploy/images/pause.Dockerfile -t REGISTRY/squall-pause:TAG .
FROM rust:1-bookworm AS build
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    target="$(uname -m)-unknown-linux-gnu" && \
    RUSTFLAGS="-C target-feature=+crt-static" \
    cargo build --locked --profile image --target "$target" -p squall-fault --bin pause && \
    cp "target/$target/image/pause" /pause

FROM scratch
COPY --from=build /pause /pause
# A number and not root: else a pod with `runAsNonRoot` and no user of its own could not be started at all.
USER 65532:65532
ENTRYPOINT ["/pause"]
