# An image with entityq and the examples: `docker run IMAGE worker -A examples.bank:app`.
FROM python:3.13-slim AS build
WORKDIR /build
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY entityq ./entityq
COPY cli ./cli
RUN python -m venv /venv && /venv/bin/pip install --no-cache-dir --constraint constraints.txt .

FROM python:3.13-slim
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1
RUN useradd --system --no-create-home entityq
# Not the clone's pyproject.toml: it asks for embedded servers.
WORKDIR /srv
COPY examples ./examples
USER entityq
ENTRYPOINT ["entityq"]
CMD ["--help"]
