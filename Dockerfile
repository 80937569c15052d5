# One image for every role of docker-compose.yml; what a container may do is decided there. Builds with the classic
# builder and with BuildKit.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm
FROM ${PYTHON_IMAGE}

# PyTorch for CPUs is not on PyPI. For a GPU: TORCH=torch==2.13.0 and an empty index. An empty index switches it off.
ARG TORCH=torch==2.13.0+cpu
ARG PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore

WORKDIR /app
# The dependencies in layers of their own: a change of the code does not fetch them again.
RUN pip install "${TORCH}" numpy
COPY pyproject.toml ./
RUN python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
print(*p['dependencies'], *p['optional-dependencies']['audit'], sep='\n')" \
    > /tmp/requirements.txt && pip install -r /tmp/requirements.txt && rm /tmp/requirements.txt

COPY LICENSE README.md ./
COPY fl_precode fl_precode
COPY attacker attacker
COPY server server
COPY clients clients
COPY deploy deploy
# Named volumes take the owner of the folder that they are mounted on.
# The reference app is of a checkout, which this image holds.
RUN pip install --no-deps -e . && python -m compileall -q /app \
    && useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin app \
    && for folder in state tape results audit data/client-0 data/client-1 data/client-2 keys/ca keys/superlink \
        keys/superexec keys/nodes keys/node-0 keys/node-1 keys/node-2; do mkdir -p "/$folder"; done \
    && chown -R 10001:10001 /state /tape /results /audit /data /keys && chmod -R go-rwx /state /tape /results /audit /data /keys

ENV HOME=/tmp FLWR_HOME=/tmp/flwr MPLCONFIGDIR=/tmp/matplotlib OMP_NUM_THREADS=1 \
    FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1 FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1
USER 10001:10001
CMD ["fl-precode", "--help"]
