# The runtime, the gallery and the builder for any CPU:
#
#   docker build -f docker/cpu.Dockerfile -t dpm-edge .
#   docker run --rm -v "$PWD/work:/work" dpm-edge demo -o demo-out
FROM python:3.12-slim AS wheel
WORKDIR /source
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.12-slim
COPY --from=wheel /wheels /wheels
RUN pip install --no-cache-dir "$(find /wheels -name 'dpm_edge-*.whl')[cpu,fast,qdrant,parquet]" \
    && rm -r /wheels \
    && useradd --uid 10001 --create-home dpm \
    && install -d -o dpm /work
USER 10001
WORKDIR /work
ENTRYPOINT ["dpm-edge"]
CMD ["--help"]
