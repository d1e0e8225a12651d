# A node of a Prism cluster: serves ONNX artifacts; no training framework inside.
FROM python:3.11-slim
RUN useradd --create-home prism
WORKDIR /opt/prism
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY cluster cluster
COPY converters converters
COPY deployments deployments
COPY loadtest loadtest
COPY config config
RUN pip install --no-cache-dir -c constraints.txt .
USER prism
ENV PRISM_HOME=/home/prism/.prism
EXPOSE 8000
HEALTHCHECK --interval=5s --timeout=2s --start-period=60s \
  CMD python -c "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/-/healthz', timeout=2)"
CMD ["prism", "up", "--block", "--config", "config/container.yaml"]
