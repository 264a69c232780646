# The image that fails in place of a container's own program under pod-failure:
# docker build -f deploy/images/crash.Dockerfile -t REGISTRY/squall-crash:TAG .
FROM rust:1-bookworm AS build
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    target="$(uname -m)-unknown-linux-gnu" && \
    RUSTFLAGS="-C target-feature=+crt-static" \
    cargo build --locked --profile image --target "$target" -p squall-fault --bin crash && \
    cp "target/$target/image/crash" /crash

FROM scratch
COPY --from=build /crash /crash
# A number and not root: else a pod with `runAsNonRoot` and no user of its own could not be started at all.
USER 65532:65532
ENTRYPOINT ["/crash"]
