# The runtime and the builder for an NVIDIA GPU. NVIDIA's image brings TensorRT and its Python bindings:
#
#   docker build -f docker/gpu.Dockerfile -t dpm-edge:gpu .
#   docker run --rm --gpus all -v "$PWD/work:/work" dpm-edge:gpu build dpm-t -o engine --backend tensorrt --precision fp16
#
# A plan fits the TensorRT that built it: build and run in the same image. Not yet run on a GPU.
FROM nvcr.io/nvidia/tensorrt:25.09-py3 AS wheel
WORKDIR /source
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM nvcr.io/nvidia/tensorrt:25.09-py3
COPY --from=wheel /wheels /wheels
RUN python3 -m venv --system-site-packages /opt/dpm-edge \
    && /opt/dpm-edge/bin/pip install --no-cache-dir "$(find /wheels -name 'dpm_edge-*.whl')[cpu,gpu,qdrant,parquet]" \
    && rm -r /wheels \
    && useradd --uid 10001 --create-home dpm \
    && install -d -o dpm /work
ENV PATH=/opt/dpm-edge/bin:$PATH
USER 10001
WORKDIR /work
ENTRYPOINT ["dpm-edge"]
CMD ["--help"]
