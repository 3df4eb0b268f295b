# The operator: the control plane of outlast, without torch. Starts without a network but the cluster's own.
# docker build -t outlast/operator:0.1.0 .        (or `make images`, which works without a registry, too)
FROM docker.io/library/python:3.11-slim-bookworm AS build
RUN python3 -m venv /opt/build && /opt/build/bin/pip install --no-cache-dir 'hatchling>=1.26' \
    && python3 -m venv /opt/outlast
# What changes seldom first: the dependencies, in the versions that the tests ran with.
COPY pyproject.toml constraints.txt images/requirements.py /src/
RUN python3 /src/requirements.py operator /src/pyproject.toml /src/constraints.txt /src/pins.txt >/src/requirements.txt \
    && /opt/outlast/bin/pip install --no-cache-dir -c /src/pins.txt -r /src/requirements.txt
COPY README.md LICENSE /src/
COPY trainer /src/trainer
COPY operator /src/operator
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation -w /wheels /src \
    && /opt/outlast/bin/pip install --no-cache-dir --no-deps /wheels/*.whl \
    && /opt/outlast/bin/pip uninstall -y -q pip setuptools

FROM docker.io/library/python:3.11-slim-bookworm
COPY --from=build /opt/outlast /opt/outlast
# The user id has no name in the image: libraries that ask for one take it from USER.
ENV PATH=/opt/outlast/bin:/usr/local/bin:/usr/bin:/bin HOME=/tmp USER=outlast PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 65532:65532
WORKDIR /tmp
ENTRYPOINT ["outlast"]
CMD ["operator"]
