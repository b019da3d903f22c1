# One image for every process; compose chooses which one runs. It runs with a read-only root: what is written goes to
# the volume and to /tmp. VARIANT=cpu brings torch's build without CUDA, VARIANT=cuda the one for NVIDIA's GPUs.
# Debian's release is the one whose PostgreSQL is POSTGRES: pg_restore of another version than the server's sends it what
# it does not know.
ARG VARIANT=cpu
ARG POSTGRES=15
FROM python:3.11-slim-bookworm AS build
ARG VARIANT
WORKDIR /app
RUN python -m venv /app/.venv
COPY pyproject.toml constraints.txt README.md LICENSE ./
# The dependencies alone first, so that a change of code does not fetch them again.
RUN /app/.venv/bin/python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; more = p['optional-dependencies']; print('\n'.join(p['dependencies'] + more['s3'] + more['otel']))" > requirements.txt \
    && case "$VARIANT" in \
         cpu) /app/.venv/bin/pip install --no-cache-dir --no-deps --index-url https://download.pytorch.org/whl/cpu "$(grep '^torch==' constraints.txt)" ;; \
         cuda) ;; \
         *) echo "VARIANT is $VARIANT; it may be cpu or cuda" >&2; exit 1 ;; \
       esac \
    && /app/.venv/bin/pip install --no-cache-dir -c constraints.txt -r requirements.txt
COPY prefix_engine ./prefix_engine
COPY prefix_store ./prefix_store
COPY service ./service
COPY trainer_worker ./trainer_worker
RUN /app/.venv/bin/pip install --no-cache-dir --no-deps .

FROM python:3.11-slim-bookworm AS base
# The engine's kernels are compiled for the very CPU, at the first start.
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
RUN useradd --system --uid 10001 --create-home prefixserve \
    && install -d -o prefixserve -g prefixserve -m 0700 /var/lib/prefixserve
COPY --from=build /app/.venv /app/.venv
ENV PATH=/app/.venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/var/lib/prefixserve/hub \
    PREFIX_DATA_DIR=/var/lib/prefixserve \
    XDG_CACHE_HOME=/var/lib/prefixserve/cache \
    PREFIX_HOST=0.0.0.0 \
    PREFIX_PORT=8000
USER prefixserve
WORKDIR /var/lib/prefixserve
VOLUME /var/lib/prefixserve

# `prefixserve backup` and `restore` beside PostgreSQL's own programs, for the operator alone.
FROM base AS ops
ARG POSTGRES
USER root
RUN apt-get update && apt-get install -y --no-install-recommends postgresql-client-${POSTGRES} && rm -rf /var/lib/apt/lists/* \
    && install -d -o prefixserve -g prefixserve -m 0700 /backups
ENV PATH=/usr/lib/postgresql/${POSTGRES}/bin:$PATH
USER prefixserve
CMD ["prefixserve", "--help"]

# The last one is what is built unless another is named.
FROM base AS process
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen('http://127.0.0.1:' + os.environ['PREFIX_PORT'] + '/livez', timeout=4)"]
CMD ["python", "-m", "service"]
