# The image of the controller: docker build -f deploy/images/controller.Dockerfile -t REGISTRY/squall-controller:TAG .
FROM rust:1-bookworm AS build
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    target="$(uname -m)-unknown-linux-gnu" && \
    RUSTFLAGS="-C target-feature=+crt-static" \
    cargo build --locked --profile image --target "$target" -p squall-controller && \
    cp "target/$target/image/squall-controller" /squall-controller

FROM scratch
COPY --from=build /squall-controller /squall-controller
USER 65532:65532
ENTRYPOINT ["/squall-controller"]
