# pgolf on the CPU. From the repository's top: docker build -f docker/cpu.Dockerfile -t pgolf:cpu .
# Behind another package index: --build-arg PIP_INDEX_URL=... (pip reads it); so can a CPU build of torch be had.
FROM python:3.12-slim
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
COPY pyproject.toml README.md LICENSE constraints.txt /opt/pgolf/
COPY src /opt/pgolf/src
RUN pip install --no-cache-dir -c /opt/pgolf/constraints.txt "/opt/pgolf[hub,bench]" \
    && useradd --create-home --uid 10001 pgolf
USER 10001
WORKDIR /home/pgolf
ENTRYPOINT ["pgolf"]
CMD ["--help"]
