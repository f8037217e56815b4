#!/bin/sh
# Prints the browser that the demo page is tested in, or nothing: $CHROMIUM, or the first of these.
for candidate in "${CHROMIUM:-}" chromium chromium-browser google-chrome google-chrome-stable; do
    # A snap's stand-in is a script that only says how to install the snap.
    if [ -n "$candidate" ] && "$candidate" --version >/dev/null 2>&1; then
        command -v "$candidate"
        exit 0
    fi
done
