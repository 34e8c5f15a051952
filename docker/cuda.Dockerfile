# pgolf on NVIDIA GPUs. From the repository's top: docker build -f docker/cuda.Dockerfile -t pgolf:cuda .
# The image brings torch for its CUDA, and the compiler that torch.compile and Triton's kernels call.
FROM pytorch/pytorch:2.8.0-cuda12.8-cudnn9-devel
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
COPY pyproject.toml README.md LICENSE /opt/pgolf/
COPY src /opt/pgolf/src
RUN pip install --no-cache-dir "/opt/pgolf[hub,bench]" \
    && useradd --create-home --uid 10001 pgolf
USER 10001
WORKDIR /home/pgolf
ENTRYPOINT ["pgolf"]
CMD ["--help"]
