#!/bin/sh
# Looks the installed packages up in a database of known vulnerabilities. Ends with 0 only if all were looked up and none
# is known to have one: a database that cannot be reached says nothing.
set -eu

environment=${1:?the virtual environment to look at}
packages=$("$environment/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
log=$(mktemp)
trap 'rm -f "$log"' EXIT

# OSV's own database, which knows a package by its name and version alone, so that builds such as torch's +cpu are known.
if build/audit/bin/pip-audit --vulnerability-service osv --progress-spinner off --path "$packages" >"$log" 2>&1; then
    cat "$log"
    exit 0
fi
if grep -Eqi "connection|resolve|timed? ?out|max retries|unreachable" "$log"; then
    echo "The database of vulnerabilities cannot be reached from here, so nothing was audited. Run this again where" >&2
    echo "api.osv.dev can be reached over https, directly or through HTTPS_PROXY." >&2
    exit 2
fi
cat "$log" >&2
exit 1
