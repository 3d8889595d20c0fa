# One image for every service and operator command: `docker run tidemill ingest`, `… tidemill migrate`.

FROM rust:1.95-slim-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends \
    cmake g++ make pkg-config libcurl4-openssl-dev libssl-dev zlib1g-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN cargo build --locked --release -p tidemill

FROM debian:bookworm-slim
# What librdkafka links to, certificates, and curl for the health checks.
RUN apt-get update && apt-get install -y --no-install-recommends \
    ca-certificates curl libcurl4 libssl3 zlib1g \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --user-group tidemill \
    && install -d -o tidemill -g tidemill /var/lib/tidemill /var/lib/tidemill/warehouse /var/lib/tidemill/seen
COPY --from=build /src/target/release/tidemill /usr/local/bin/tidemill
COPY topics/*.yaml /etc/tidemill/topics/
USER 10001
WORKDIR /etc/tidemill
ENTRYPOINT ["tidemill"]
CMD ["--help"]
