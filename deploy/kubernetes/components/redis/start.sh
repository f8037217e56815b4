#!/bin/sh
# Starts Redis for the services alone: start.sh redis-server OPTION...
#
# users.acl, beside this file, lets nobody in but the user samovar, on keys and channels that begin with sam:, and only
# with the commands that the services send: no EVAL, KEYS, CONFIG, RESTORE, DEBUG, FLUSHALL, SCAN. (Redis takes no
# comments in that file. The services' library also sends CLIENT SETINFO, which Redis before 7.2 cannot even name in such
# a list, and takes no for an answer.) Its password is made here when Redis first starts, and lies in $DATA/password (/data/password),
# in a volume that the services read. Put a password of your own there to have that one; remove it to have a new one.
set -eu

here=$(dirname "$0")
data=${DATA:-/data}
users=${TMPDIR:-/tmp}/users.acl

if [ ! -s "$data/password" ]; then
    # Renamed when it is whole: nobody reads half of it.
    head -c 32 /dev/urandom | sha256sum | cut -c 1-64 | tr -d '\n' >"$data/password.new"
    # The services run as another user than Redis.
    chmod 444 "$data/password.new"
    mv "$data/password.new" "$data/password"
fi
# Redis is told the hash of it; neither this file nor a list of processes has the password.
hash=$(tr -d '\n' <"$data/password" | sha256sum | cut -d ' ' -f 1)
(umask 077 && sed "/^user samovar /s/\$/ #$hash/" "$here/users.acl" >"$users")
# Protected mode refuses other machines where a password is missing. Here none is.
exec "$@" --protected-mode no --aclfile "$users"
