# The gateway alone: docker build -t model-dispatcher . && docker run -dp 8000:8000 model-dispatcher
# It starts without TorchServe; /health/ready says which one it looks for.
# DISPATCHER_SERVERS__LOCAL__URL and the others of docs/configuration.md point it elsewhere.

FROM python:3.12-slim AS build
WORKDIR /build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY requirements.txt ./
RUN python -m venv /venv && /venv/bin/pip install -r requirements.txt
COPY pyproject.toml README.md ./
COPY domain/ domain/
COPY application/ application/
COPY infrastructure/ infrastructure/
COPY bootstrap/ bootstrap/
COPY interface/ interface/
# Apart from what it needs, which changes less often and is far larger.
RUN /venv/bin/pip install --no-deps --target /app . && /venv/bin/pip uninstall --yes --quiet pip

FROM python:3.12-slim
# The same user as TorchServe's: its key file is readable by its own user only. A volume that is mounted
# at /run/torchserve gets the folder's owner, whichever container comes first.
RUN groupadd --gid 10001 dispatcher \
 && useradd --uid 10001 --gid dispatcher --no-create-home --shell /usr/sbin/nologin dispatcher \
 && install -d -o dispatcher -g dispatcher -m 0700 /run/torchserve /var/lib/dispatcher
COPY --from=build /venv /venv
COPY --from=build /app /app
WORKDIR /app
COPY dispatcher.toml ./
ENV PATH=/app/bin:/venv/bin:$PATH PYTHONPATH=/app PYTHONUNBUFFERED=1 \
 DISPATCHER_JOBS__PATH=/var/lib/dispatcher/jobs.sqlite
USER 10001:10001
# Jobs, where no Redis and RabbitMQ are configured for them.
VOLUME /var/lib/dispatcher
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 CMD ["python", "-c", \
 "from http.client import HTTPConnection as C; c = C('127.0.0.1', 8000, timeout=4); c.request('GET', '/health/live'); exit(c.getresponse().status != 200)"]
CMD ["model-dispatcher", "serve", "--host", "0.0.0.0"]
