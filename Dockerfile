# The operator: the control plane of outlast, without torch. Starts without a network but the cluster's own.
# docker build -t outlast/operator:0.1.0 .        (or `make images`, which works without a registry, too)

# The dependencies alone: what else changes in pyproject.toml installs nothing anew.
FROM docker.io/library/python:3.11-slim-bookworm AS requirements
COPY pyproject.toml images/install.py images/without_cuda.py /src/
RUN python3 /src/install.py list operator /src/pyproject.toml >/src/requirements.txt

FROM docker.io/library/python:3.11-slim-bookworm AS dependencies
RUN python3 -m venv /opt/build && /opt/build/bin/pip install --no-cache-dir 'hatchling>=1.26' \
    && python3 -m venv --without-pip /opt/outlast
COPY constraints.txt images/install.py images/without_cuda.py /src/
COPY --from=requirements /src/requirements.txt /src/
RUN /opt/build/bin/python /src/install.py operator /opt/outlast/bin/python /src/requirements.txt

FROM dependencies AS code
COPY pyproject.toml README.md LICENSE /src/
COPY trainer /src/trainer
COPY operator /src/operator
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation -w /wheels /src \
    && /opt/build/bin/pip --python /opt/outlast/bin/python install --no-deps --no-compile --prefix /code /wheels/*.whl \
    && /opt/build/bin/python -m compileall -q --invalidation-mode unchecked-hash /code

FROM docker.io/library/python:3.11-slim-bookworm
# What changes seldom first: a change of outlast moves the last layer alone.
COPY --from=dependencies /opt/outlast /opt/outlast
COPY --from=code /code /opt/outlast
# The user id has no name in the image: libraries that ask for one take it from USER.
ENV PATH=/opt/outlast/bin:/usr/local/bin:/usr/bin:/bin HOME=/tmp USER=outlast PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 65532:65532
WORKDIR /tmp
ENTRYPOINT ["outlast"]
CMD ["operator"]
