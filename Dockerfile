# The server for NVIDIA GPUs (H100): docker build -f Dockerfile -t sglang-hathora .
#
# CUDA 13, as torch's wheels have it. They bring CUDA's libraries, not its compiler: SGLang and
# FlashInfer compile kernels when they are first used and want nvcc, headers and stubs. Hence devel.
FROM nvidia/cuda:13.0.1-devel-ubuntu24.04

# Ubuntu 24.04 has Python 3.12. python3-dev and g++: for the kernels that are compiled at run time.
# From ibverbs-providers on: what Mooncake loads. tini reaps orphans and passes SIGTERM on.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends \
        ca-certificates g++ python3 python3-dev python3-pip tini \
        ibverbs-providers libcurl4t64 libibverbs1 libnuma1 librdmacm1t64 \
 && rm -rf /var/lib/apt/lists/*

ENV VIRTUAL_ENV=/opt/venv \
    PATH=/opt/venv/bin:$PATH \
    UV_LINK_MODE=copy \
    PYTHONUNBUFFERED=1

# All of it compiled to bytecode: the user below cannot write there, and every start would pay.
WORKDIR /app
COPY requirements.txt requirements-gpu.txt ./
RUN --mount=type=cache,target=/root/.cache \
    python3 -m pip install --no-cache-dir --target /opt/uv uv==0.13.9 \
 && /opt/uv/bin/uv venv --python /usr/bin/python3 /opt/venv \
 && /opt/uv/bin/uv pip install --no-deps --compile-bytecode \
        --requirement requirements.txt --requirement requirements-gpu.txt

COPY LICENSE README.md pyproject.toml setup.cfg server.py ./
COPY pd_eagle pd_eagle
RUN /opt/uv/bin/uv pip install --no-cache --no-deps --no-build-isolation --config-setting editable_mode=compat --editable . \
 && python -m compileall -q pd_eagle

# Weights and compiled kernels go to /home/pd/.cache: mount a volume there to keep them. Once, on a
# machine with the GPUs, compile the kernels into it: docker run … --entrypoint pd-eagle … warm
RUN useradd --create-home --uid 10001 pd && install -d -o pd -g pd /home/pd/.cache
USER 10001
ENV HOME=/home/pd \
    PD_HOST=0.0.0.0

EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=180s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as u; u.urlopen(f\"http://127.0.0.1:{os.environ.get('HATHORA_DEFAULT_PORT') or 8000}/health/live\", timeout=4)"]
ENTRYPOINT ["tini", "--", "python", "server.py"]
