# syntax=docker/dockerfile:1
# docker build -t distrec .                          CUDA (torch's wheels carry the CUDA libraries; the node needs a driver)
# docker build -t distrec:cpu --build-arg DEVICE=cpu .
FROM python:3.12-slim-bookworm

ARG DEVICE=cuda
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

# FBGEMM's and Faiss's wheels link OpenMP but do not bring it. A pinned version would stop to build when Debian replaces it.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/*

# From what changes least to what changes most: torch alone is most of the image, so a change elsewhere must not move it.
WORKDIR /app
COPY requirements/torch-${DEVICE}.txt requirements/
RUN pip install --no-deps --requirement requirements/torch-${DEVICE}.txt
# A closed set: a resolver would add the other distribution of FBGEMM, which does not load beside this one.
COPY requirements/${DEVICE}.txt requirements/s3.txt requirements/
RUN pip install --no-deps --requirement requirements/${DEVICE}.txt --requirement requirements/s3.txt

COPY pyproject.toml README.md ./
COPY distrec distrec
# With the closure's own setuptools: in isolation, pip would fetch whatever is the newest.
RUN pip install --no-deps --no-build-isolation --editable .
COPY configs configs

# Runs, data and a patched workspace are written here. By number, so that Kubernetes can tell that it is not root.
RUN useradd --uid 1000 --create-home distrec && mkdir -p runs data && chown -R distrec:distrec /app
USER 1000:1000

# No ENTRYPOINT: TorchX gives the whole command (bash -c 'exec python -m distrec.agent ...'), and on some schedulers an
# entrypoint would be put before it.
CMD ["python", "-m", "distrec.agent", "--help"]
