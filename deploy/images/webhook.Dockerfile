# The image of the webhook: docker build -f deploy/images/webhook.Dockerfile -t REGISTRY/squall-webhook:TAG .
FROM rust:1-bookworm AS build
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    target="$(uname -m)-unknown-linux-gnu" && \
    RUSTFLAGS="-C target-feature=+crt-static" \
    cargo build --locked --profile image --target "$target" -p squall-webhook && \
    cp "target/$target/image/squall-webhook" /squall-webhook

FROM scratch
COPY --from=build /squall-webhook /squall-webhook
USER 65532:65532
ENTRYPOINT ["/squall-webhook"]
