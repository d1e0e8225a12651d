# A node of a Prism cluster: serves artifacts; no training framework inside.
#   docker build -t prism:0.1.0 .
#   docker build -t prism:0.1.0-gpu --build-arg GPU=1 .            (GPU=ort-tensorrt: with TensorRT beside CUDA)
FROM python:3.11-slim
ARG GPU=""
ARG PACKAGES="s3fs gcsfs"
# tini: what Ray's processes leave behind has to be reaped, and signals have to arrive.
RUN apt-get update && apt-get install -y --no-install-recommends tini && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home --uid 1000 prism
WORKDIR /opt/prism
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY cluster cluster
COPY converters converters
COPY deployments deployments
COPY loadtest loadtest
COPY config config
# One ONNX Runtime: both would own the folder onnxruntime/. Of a GPU only the driver comes from the machine.
RUN case "${GPU}" in "") runtime=cpu ;; ort-tensorrt) runtime=ort-tensorrt ;; *) runtime=gpu ;; esac; \
    pip install --no-cache-dir -c constraints.txt ".[${runtime}]" ${PACKAGES}
USER prism
ENV PRISM_HOME=/home/prism/.prism
EXPOSE 8000
HEALTHCHECK --interval=5s --timeout=2s --start-period=60s \
  CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/-/healthz', timeout=2)"]
ENTRYPOINT ["tini", "--"]
CMD ["prism", "up", "--block", "--config", "config/container.yaml"]
