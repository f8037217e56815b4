# Stands in for redis:7-alpine: Debian's own Redis 7. Like that image it has a user redis, listens without protected
# mode, which would refuse every other container, and keeps its data in /data.
ARG ROOT
FROM ${ROOT}
RUN apt-get update -q \
    && apt-get install -q -y --no-install-recommends redis-server \
    && rm -rf /var/lib/apt/lists/* \
    && mkdir /data && chown redis /data \
    && printf '%s\n' '#!/bin/sh' 'if [ "$1" = redis-server ]; then shift; set -- redis-server --protected-mode no "$@"; fi' \
        'exec "$@"' >/usr/local/bin/docker-entrypoint.sh \
    && chmod 755 /usr/local/bin/docker-entrypoint.sh
WORKDIR /data
ENTRYPOINT ["docker-entrypoint.sh"]
CMD ["redis-server"]
