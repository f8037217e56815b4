# Stands in for python:3.11-slim: Debian's own Python under the names that image has, with nothing but pip beside it.
ARG ROOT
FROM ${ROOT}
RUN apt-get update -q \
    && apt-get install -q -y --no-install-recommends ca-certificates python3 python3-pip python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && ln -s python3 /usr/bin/python
CMD ["python3"]
