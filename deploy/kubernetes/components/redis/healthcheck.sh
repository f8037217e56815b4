#!/bin/sh
# Asks Redis, as the services do, whether it answers: exit status 0 or 1. PORT is its port, 6379 if unset.
REDISCLI_AUTH=$(tr -d '\n' <"${DATA:-/data}/password") redis-cli --user samovar -p "${PORT:-6379}" ping | grep -q PONG
